//! Scale-in watched from outside: which pods were deleted and in what state, and how often each task was begun.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use celery_client::amqp::short;
use celery_client::{AsyncResult, BrokerAddress, Celery, connect};
use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
use lapin::ExchangeKind;
use lapin::options::{BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::audit::{self, Mark};
use crate::soloist::{self, Scrape, Test};
use crate::{celery_workers, chart, wait};

/// Who deletes pods when a ReplicaSet has too many.
const REPLICA_SET_CONTROLLER: (&str, &str) = ("kube-system", "replicaset-controller");

/// What the operator counts tasks in that it failed to protect.
pub const INTERRUPTED: &str = "soloist_scale_in_interrupted_tasks_total";

/// The TaskQueue of a trial.
pub const TASK_QUEUE: &str = "jobs";

/// A watch on the pods of a namespace.
pub struct Deletions {
    /// For each pod that is being deleted: whether it might be, when that began.
    seen: Arc<Mutex<HashMap<String, bool>>>,
    task: JoinHandle<()>,
}

impl Deletions {
    /// Starts to watch, in the background.
    pub fn watch(client: kube::Client, namespace: &str) -> Self {
        let seen = Arc::new(Mutex::new(HashMap::new()));
        let noting = Arc::clone(&seen);
        let pods: Api<Pod> = Api::namespaced(client, namespace);
        let task = tokio::spawn(async move {
            let mut events = watcher(pods, watcher::Config::default()).default_backoff().boxed();
            loop {
                match events.try_next().await {
                    Ok(Some(Event::Apply(pod) | Event::InitApply(pod)))
                        if pod.metadata.deletion_timestamp.is_some() =>
                    {
                        lock(&noting).entry(pod.name_any()).or_insert_with(|| might_go(&pod));
                    }
                    Ok(Some(Event::Delete(pod))) => {
                        lock(&noting).entry(pod.name_any()).or_insert_with(|| might_go(&pod));
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => return,
                    // The watcher goes on by itself after an error.
                    Err(error) => eprintln!("watch the pods: {error}"),
                }
            }
        });
        Self { seen, task }
    }
}

impl Drop for Deletions {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether a pod is drained, or on no node.
fn might_go(pod: &Pod) -> bool {
    let is_drained = pod.labels().get("soloist.dev/state").is_some_and(|state| state == "drained");
    is_drained || pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none())
}

/// A consumer of the events of tasks, which comes back when the broker does.
struct Starts {
    counts: Arc<Mutex<HashMap<String, u32>>>,
    task: JoinHandle<()>,
}

impl Starts {
    fn watch(broker: BrokerAddress) -> Self {
        let counts = Arc::new(Mutex::new(HashMap::new()));
        let counting = Arc::clone(&counts);
        let task = tokio::spawn(async move {
            loop {
                if let Err(error) = count_starts(&broker, &counting).await {
                    eprintln!("events of tasks are interrupted: {error:#}");
                }
                sleep(Duration::from_millis(500)).await;
            }
        });
        Self { counts, task }
    }
}

impl Drop for Starts {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn count_starts(broker: &BrokerAddress, counts: &Mutex<HashMap<String, u32>>) -> Result<()> {
    let connection = connect(broker, "test-scale-in").await?;
    let channel = connection.create_channel().await?;
    // Kept while nobody listens: no start is missed but by the broker's own restart.
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let queue = short("test-scale-in.events");
    channel.queue_declare(queue.clone(), durable, FieldTable::default()).await?;
    let exchange = short("celeryev");
    let lasting = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(exchange.clone(), ExchangeKind::Topic, lasting, FieldTable::default()).await?;
    let binding = QueueBindOptions::default();
    // Workers send several events as one message, whose key is `task.multi`.
    channel.queue_bind(queue.clone(), exchange, short("task.#"), binding, FieldTable::default()).await?;
    let no_ack = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut events = channel.basic_consume(queue, short("test"), no_ack, FieldTable::default()).await?;
    while let Some(event) = events.next().await {
        let events = match serde_json::from_slice(&event?.data)? {
            Value::Array(events) => events,
            event => vec![event],
        };
        for event in events.iter().filter(|event| event["type"] == "task-started") {
            let id = event["uuid"].as_str().context("an event without uuid")?;
            *lock(counts).entry(id.to_owned()).or_default() += 1;
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whose workers a trial is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// The stock worker.
    Soloist,
    /// Celery's, with one process for its tasks.
    Celery,
    /// Celery's, with its solo pool.
    CelerySolo,
}

/// A TaskQueue whose workers are made busy and taken away, again and again.
pub struct Trial<'a> {
    /// Where it is.
    pub test: &'a Test,
    celery: Celery,
    workers: u16,
    kind: Kind,
    /// Shortest and longest task.
    seconds: (f64, f64),
    starts: Starts,
    deletions: Deletions,
    mark: Mark,
    results: Mutex<Vec<Arc<AsyncResult>>>,
    /// How many of them there were before workers were made busy last.
    sent_before: Mutex<usize>,
    /// Tasks that may have been begun twice for another cause than scale-in.
    excused: Mutex<HashSet<String>>,
}

/// Pods of the installed operator.
pub async fn installed(test: &Test) -> Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::namespaced(test.client.clone(), chart::NAMESPACE);
    Ok(pods.list(&ListParams::default().labels("app.kubernetes.io/name=soloist")).await?.items)
}

/// Tasks that the installed operator says were interrupted since its pods were made.
pub async fn interrupted_by_installed(test: &Test) -> Result<f64> {
    // One of them may be starting again just now.
    wait::until("the operators' metrics", soloist::START, || async {
        let mut interrupted = 0.0;
        for pod in installed(test).await? {
            interrupted += Scrape::of(&pod).await?.sum(INTERRUPTED);
        }
        Ok(Some(interrupted))
    })
    .await
}

/// What came of a trial.
#[derive(Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Figures {
    /// Tasks sent.
    pub tasks: usize,
    /// Deletions that the API server let the ReplicaSet controller make.
    pub deletes: usize,
    /// Those of them of workers that weren't drained.
    pub undrained_deletes: usize,
    /// Deletions that it refused.
    pub refused_deletes: usize,
    /// Tasks without a result.
    pub lost: usize,
    /// Tasks that were begun more than once.
    pub ran_twice: usize,
    /// Tasks whose beginning nobody has told of: they might have had two.
    pub unseen: usize,
    /// Tasks that were there when the broker was killed, of which these two are not asked.
    pub excused: usize,
}

impl Figures {
    /// Whether no worker was deleted undrained, and each task ran once.
    pub fn are_good(&self) -> bool {
        (self.undrained_deletes, self.lost, self.ran_twice, self.unseen) == (0, 0, 0, 0)
    }
}

impl<'a> Trial<'a> {
    /// Makes the TaskQueue, without workers yet.
    pub async fn new(test: &'a Test, workers: u16, kind: Kind, seconds: (f64, f64)) -> Result<Self> {
        let scaling =
            format!("{{maxReplicas: {workers}, tasksPerWorker: 1, scaleDown: {{stabilizationSeconds: 1}}}}");
        match kind {
            Kind::Soloist => test.task_queue(TASK_QUEUE, &scaling).await?,
            Kind::Celery => {
                celery_workers::task_queue(test, TASK_QUEUE, "prefork", &scaling).await?;
            }
            Kind::CelerySolo => celery_workers::task_queue(test, TASK_QUEUE, "solo", &scaling).await?,
        }
        Ok(Self {
            test,
            celery: test.celery().await?,
            workers,
            kind,
            seconds,
            starts: Starts::watch(test.broker_url.parse()?),
            deletions: Deletions::watch(test.client.clone(), &test.namespace.name),
            mark: audit::mark()?,
            results: Mutex::default(),
            sent_before: Mutex::default(),
            excused: Mutex::default(),
        })
    }

    /// Merges something into the TaskQueue.
    pub async fn change(&self, patch: Value) -> Result<()> {
        let parameters = PatchParams::default();
        self.test.task_queues().patch(TASK_QUEUE, &parameters, &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Sets the number of workers as `kubectl scale taskqueue` does; none gives it back to the autoscaler.
    pub async fn scale(&self, replicas: Option<u16>) -> Result<()> {
        self.change(json!({"spec": {"replicas": replicas}})).await
    }

    /// Sets the number of replicas as `kubectl scale deployment` does, once the operator has been told to leave it alone.
    pub async fn scale_deployment(&self, replicas: u16) -> Result<()> {
        self.change(json!({"spec": {"replicas": null, "scaling": {"mode": "Off"}}})).await?;
        // The operator must know before, or it would set the number back.
        self.test.condition(TASK_QUEUE, "ScalingActive", "False", "ScalingOff").await?;
        let deployments: Api<Deployment> = self.test.namespace.api();
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        deployments.patch_scale(&format!("{TASK_QUEUE}-worker"), &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Sends tasks, and waits until every worker has one.
    pub async fn make_busy(&self, tasks_for_each: u16) -> Result<()> {
        self.scale(Some(self.workers)).await?;
        let within = self.starting();
        wait::until("the workers to be ready", within, || async {
            let pods = self.pods().await?;
            let ready = pods.iter().filter(|pod| soloist::is_ready(pod)).count();
            ensure!(ready >= usize::from(self.workers), "{ready} are");
            Ok(Some(()))
        })
        .await?;
        *lock(&self.sent_before) = lock(&self.results).len();
        for _ in 0..self.workers * tasks_for_each {
            let seconds = self.seconds.0 + fastrand::f64() * (self.seconds.1 - self.seconds.0);
            let result = soloist::send(&self.celery, TASK_QUEUE, "tasks.sleep", (seconds,)).await?;
            lock(&self.results).push(Arc::new(result));
        }
        let waiting_at_most = u64::from(self.workers * (tasks_for_each - 1));
        wait::until("the workers to be busy", Duration::from_secs(60), || async {
            let task_queue = self.test.task_queues().get(TASK_QUEUE).await?;
            let (running, ready) =
                (&task_queue.data["status"]["running"], &task_queue.data["status"]["ready"]);
            let are_busy = match self.kind {
                Kind::Soloist => running.as_u64().is_some_and(|running| running >= self.workers.into()),
                // Those of the solo pool don't say what they run, and each holds one message.
                Kind::Celery | Kind::CelerySolo => {
                    ready.as_u64().is_some_and(|ready| ready <= waiting_at_most)
                }
            };
            ensure!(are_busy, "{running} tasks run, {ready} wait");
            Ok(Some(()))
        })
        .await
    }

    /// Waits until there is no worker any more.
    pub async fn until_gone(&self) -> Result<()> {
        wait::until(
            "the workers to be gone",
            self.starting() + Duration::from_secs_f64(2.0 * self.seconds.1),
            || async {
                let pods = self.pods().await?;
                ensure!(pods.is_empty(), "{} are there", pods.len());
                Ok(Some(()))
            },
        )
        .await
    }

    /// Lets the autoscaler do what is left, and waits until there is neither task nor worker.
    pub async fn finish(&self) -> Result<()> {
        self.change(json!({"spec": {"replicas": null, "scaling": {"mode": "Auto"}}})).await?;
        let results = lock(&self.results).clone();
        for result in &results {
            // What has no result at the end is counted then.
            let _ = soloist::value(result, self.starting()).await;
        }
        self.until_gone().await
    }

    /// What workers were made busy with last may be begun twice, for another cause than scale-in: a broker that is killed delivers again what
    /// runs then, and what it had just been told the end of. What is told of their beginning may be lost, too.
    pub fn excuse(&self) {
        let results = lock(&self.results);
        let last = results.iter().skip(*lock(&self.sent_before)).map(|result| result.id().to_owned());
        lock(&self.excused).extend(last);
    }

    /// What has come of it.
    pub async fn figures(&self) -> Result<Figures> {
        let results = lock(&self.results).clone();
        let mut figures = Figures { tasks: results.len(), ..Figures::default() };
        for result in &results {
            // It is there, or it is lost; but Redis may be slow to say so on a busy machine.
            if soloist::value(result, Duration::from_secs(10)).await.is_err() {
                figures.lost += 1;
            }
            let begun = lock(&self.starts.counts).get(result.id()).copied().unwrap_or_default();
            if lock(&self.excused).contains(result.id()) {
                figures.excused += 1;
            } else if begun > 1 {
                figures.ran_twice += 1;
            } else if begun == 0 {
                figures.unseen += 1;
            }
        }
        let (namespace, account) = REPLICA_SET_CONTROLLER;
        for event in audit::since(self.mark)? {
            let Some(object) = event.object_ref.as_ref().filter(|_| event.is_about("pods")) else { continue };
            let by_scale_in = event.verb == "delete" && event.is_from(namespace, account);
            if !by_scale_in || object.namespace != self.test.namespace.name {
                continue;
            }
            match event.response_status.as_ref().map(|status| status.code) {
                Some(200..300) => {
                    figures.deletes += 1;
                    if lock(&self.deletions.seen).get(&object.name) != Some(&true) {
                        eprintln!("{} was deleted, and was not drained", object.name);
                        figures.undrained_deletes += 1;
                    }
                }
                Some(403) => figures.refused_deletes += 1,
                _ => {}
            }
        }
        Ok(figures)
    }

    /// The workers, once a second at most: to list a hundred pods is work for the API server, which they need too.
    async fn pods(&self) -> Result<Vec<Pod>> {
        sleep(Duration::from_secs(1)).await;
        self.test.pods(TASK_QUEUE).await
    }

    /// How long all pods may take to start, or to end.
    fn starting(&self) -> Duration {
        Duration::from_secs(60) + Duration::from_secs(4) * self.workers.into()
    }
}
