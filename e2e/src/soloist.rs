//! What the tests and benchmarks of Soloist on a cluster share: a namespace and a virtual host for each, TaskQueues, and
//! tasks.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use anyhow::{Context, Result};
use celery_client::{AsyncResult, Celery, Signature};
use futures_util::FutureExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, ResourceExt};
use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep};

use crate::cluster::Cluster;
use crate::testing::{self, TestNamespace};
use crate::{http, paths, process, wait};

/// How long a pod may take from the decision to its first task on a busy machine.
pub const START: Duration = Duration::from_secs(60);

/// One test at a time: one of them takes the broker away, another one measures.
static TURN: Mutex<()> = Mutex::const_new(());

/// A namespace with the Secrets of a broker (a virtual host of its own) and of Redis, and the operator's right to read them.
pub struct Test {
    /// What it runs on.
    pub cluster: Cluster,
    /// Where its objects are.
    pub namespace: TestNamespace,
    /// With all rights.
    pub client: kube::Client,
    /// The virtual host's URL.
    pub broker_url: String,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Test {
    /// Makes all that; `name` is a few lower-case words joined by dashes.
    pub async fn new(name: &str) -> Result<Self> {
        Self::in_turn(name, Some(TURN.lock().await)).await
    }

    /// The same for a test that minds no other, and that no other minds: it does not wait for its turn.
    pub async fn beside_others(name: &str) -> Result<Self> {
        Self::in_turn(name, None).await
    }

    async fn in_turn(name: &str, turn: Option<MutexGuard<'static, ()>>) -> Result<Self> {
        let cluster = Cluster::attach()?;
        let client = cluster.client().await?;
        let namespace = testing::namespace_for_test(&client, name).await?;
        let broker_url = cluster.rabbitmq.create_vhost(&namespace.name).await?;
        let test = Self { cluster, namespace, client, broker_url, _turn: turn };
        let grant = paths::repository().join("manifests/samples/secret-reader.yaml");
        let grant = std::fs::read_to_string(&grant).with_context(|| format!("read {}", grant.display()))?;
        test.namespace.apply(&grant).await?;
        test.secret("rabbitmq", &test.broker_url).await?;
        test.secret("redis", &test.cluster.redis.url()).await?;
        Ok(test)
    }

    /// Runs the body of the test as [`TestNamespace::run`] does, and deletes the virtual host too, whatever comes of it.
    pub async fn run<T>(&self, within: Duration, body: impl Future<Output = Result<T>>) -> Result<T> {
        let outcome = AssertUnwindSafe(self.namespace.run(within, body)).catch_unwind().await;
        let deleted = self.cluster.rabbitmq.delete_vhost(&self.namespace.name).await;
        match outcome {
            Ok(result) => {
                let value = result?;
                deleted.with_context(|| format!("delete the virtual host {}", self.namespace.name))?;
                Ok(value)
            }
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Makes or changes a Secret that holds a URI.
    pub async fn secret(&self, name: &str, uri: &str) -> Result<()> {
        let yaml = format!(
            "{{apiVersion: v1, kind: Secret, metadata: {{name: {name}}}, stringData: {{uri: '{uri}'}}}}"
        );
        self.namespace.apply(&yaml).await.map(drop)
    }

    /// Applies a TaskQueue of the stock worker; `scaling` is YAML in flow style.
    pub async fn task_queue(&self, name: &str, scaling: &str) -> Result<()> {
        self.namespace.apply(&task_queue(name, scaling)).await.map(drop)
    }

    /// The TaskQueues of the namespace.
    pub fn task_queues(&self) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("soloist.dev", "v1alpha1", "TaskQueue");
        Api::namespaced_with(self.client.clone(), &self.namespace.name, &ApiResource::from_gvk(&kind))
    }

    /// Waits until a condition of a TaskQueue has this status and reason, and gives back its message.
    pub async fn condition(&self, name: &str, kind: &str, status: &str, reason: &str) -> Result<String> {
        let task_queues = self.task_queues();
        wait::until(&format!("{name} to be {kind}={status} because of {reason}"), START, || async {
            let task_queue = task_queues.get(name).await?;
            let condition = condition(&task_queue, kind).context("no such condition")?;
            let (seen_status, seen_reason) = (&condition["status"], &condition["reason"]);
            anyhow::ensure!(seen_status == status && seen_reason == reason, "it is {condition}");
            Ok(Some(condition["message"].as_str().unwrap_or_default().to_owned()))
        })
        .await
    }

    /// The Deployment of a TaskQueue's workers.
    pub async fn deployment(&self, name: &str) -> Result<Deployment> {
        let deployments: Api<Deployment> = self.namespace.api();
        Ok(deployments.get(&format!("{name}-worker")).await?)
    }

    /// The number of workers that the Deployment is told to have.
    pub async fn replicas(&self, name: &str) -> Result<i32> {
        self.deployment(name).await?.spec.and_then(|spec| spec.replicas).context("no replicas")
    }

    /// Waits until that number is `wanted`.
    pub async fn until_replicas(&self, name: &str, wanted: i32, within: Duration) -> Result<()> {
        wait::until(&format!("{name} to have {wanted} replicas"), within, || async {
            let now = self.replicas(name).await?;
            anyhow::ensure!(now == wanted, "it has {now}");
            Ok(Some(()))
        })
        .await
    }

    /// The worker pods of a TaskQueue.
    pub async fn pods(&self, name: &str) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = self.namespace.api();
        let mine = ListParams::default().labels(&format!("soloist.dev/task-queue={name}"));
        Ok(pods.list(&mine).await?.items)
    }

    /// A Celery client on the test's virtual host, with results in Redis. Queues are the operator's to make.
    pub async fn celery(&self) -> Result<Celery> {
        self.celery_of(&self.broker_url).await
    }

    /// The same on another virtual host.
    pub async fn celery_of(&self, broker_url: &str) -> Result<Celery> {
        let celery = Celery::builder(broker_url.parse()?).results(self.cluster.redis.url().parse()?);
        Ok(celery.create_missing_queues(false).connect().await?)
    }
}

/// What a pod of Soloist's tells Prometheus at one moment.
pub struct Scrape(String);

impl Scrape {
    /// Asks an operator's or worker's pod.
    pub async fn of(pod: &Pod) -> Result<Self> {
        let address =
            pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()).context("no address yet")?;
        Self::at(&format!("{address}:8080")).await
    }

    /// Asks a program at `host:port`.
    pub async fn at(address: &str) -> Result<Self> {
        Ok(Self(http::get(&format!("http://{address}/metrics")).await?))
    }

    /// How many series there are.
    pub fn series(&self) -> usize {
        self.0.lines().filter(|line| !line.starts_with('#')).count()
    }

    /// The values of a metric, one for each of its labels.
    pub fn values(&self, metric: &str) -> Vec<f64> {
        self.with_label(metric, "")
    }

    /// Those that have this label.
    pub fn with_label(&self, metric: &str, label: &str) -> Vec<f64> {
        let value = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            let is_it = series.split('{').next() == Some(metric) && series.contains(label);
            is_it.then(|| value.parse().ok()).flatten()
        };
        self.0.lines().filter_map(value).collect()
    }

    /// Their sum.
    pub fn sum(&self, metric: &str) -> f64 {
        self.values(metric).iter().sum()
    }
}

/// Sends a task to a queue.
pub async fn send(
    celery: &Celery,
    queue: &str,
    task: &str,
    arguments: impl serde::Serialize,
) -> Result<AsyncResult> {
    Ok(celery.send(&Signature::new(task).with_args(&arguments)?.queue(queue)).await?)
}

/// YAML of a TaskQueue of the stock worker.
pub fn task_queue(name: &str, scaling: &str) -> String {
    format!(
        r"
apiVersion: soloist.dev/v1alpha1
kind: TaskQueue
metadata: {{name: {name}}}
spec:
  broker: {{secretRef: {{name: rabbitmq}}}}
  results: {{secretRef: {{name: redis}}}}
  worker:
    image: ghcr.io/soloist-dev/soloist-worker:{version}
    resources: {{requests: {{cpu: 5m, memory: 8Mi}}}}
  scaling: {scaling}
",
        version = env!("CARGO_PKG_VERSION")
    )
}

/// The same TaskQueue with its pods for a node that doesn't exist: the operator is looked at, not the node.
pub fn on_no_node(task_queue: &str) -> String {
    let nowhere = "    template: {spec: {nodeSelector: {soloist.dev/bench: nowhere}}}\n  scaling:";
    task_queue.replacen("  scaling:", nowhere, 1)
}

/// A condition of a TaskQueue, if it has it.
pub fn condition<'a>(task_queue: &'a DynamicObject, kind: &str) -> Option<&'a Value> {
    task_queue.data["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// Whether a pod's worker is ready for tasks.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whether a pod's containers have started, ready or not.
pub fn is_running(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses
        .into_iter()
        .any(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()))
}

/// Kills a worker's process as the kernel does when memory runs out. Its pod stays, and starts the container again.
///
/// # Errors
/// If no process of this machine is that worker.
pub fn kill_process_of(pod: &str) -> Result<()> {
    let variable = format!("POD_NAME={pod}");
    let worker = process::of_the_machine().find(|process| process.has_variable(&variable));
    worker.with_context(|| format!("no process of {pod} on this machine"))?.signal(Signal::KILL)
}

/// How often the containers of these pods were started again.
pub fn restarts(pods: &[Pod]) -> i32 {
    let statuses = pods.iter().filter_map(|pod| pod.status.as_ref()?.container_statuses.as_ref());
    statuses.flatten().map(|container| container.restart_count).sum()
}

/// Looks again and again for as long as `how_long`, and fails as soon as `check` does.
pub async fn holds<Checking>(how_long: Duration, check: impl Fn() -> Checking) -> Result<()>
where
    Checking: Future<Output = Result<()>>,
{
    let end = Instant::now() + how_long;
    loop {
        check().await?;
        if Instant::now() >= end {
            return Ok(());
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// The names of pods, for messages.
pub fn names(pods: &[Pod]) -> Vec<String> {
    pods.iter().map(ResourceExt::name_any).collect()
}

/// The value of a task, or its error.
pub async fn value(result: &AsyncResult, within: Duration) -> Result<Value> {
    Ok(result.get(within).await?)
}
