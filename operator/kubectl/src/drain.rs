//! Replaces a worker by another, after it has finished its task.
//!
//! The pod is evicted with a grace period that is as long as its task may take: the worker gets SIGTERM, takes no more messages, finishes,
//! stores the result, acknowledges and exits; the Deployment makes another pod at once. There is no way back from it, and none is needed:
//! the number of workers stays the same. An eviction, and not a deletion, so that a PodDisruptionBudget has its say.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, Preconditions};
use kube::api::PostParams;
use kube::core::{ObjectMeta, Status};
use kube::{Api, ResourceExt as _};
use soloist_operator::plan::metadata::TASK_QUEUE_LABEL;
use soloist_terminal::{Failure, count, line};
use tokio::time::{Instant, sleep};

use crate::args::Drain;
use crate::cluster::Cluster;
use crate::failure;
use crate::status::is_busy;

/// Time between two looks at the pod.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Runs the command.
pub(crate) async fn run(cluster: &Cluster, drain: &Drain) -> Result<(), Failure> {
    let (name, namespace) = (&drain.pod, &cluster.namespace);
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let pod = pods.get(name).await.map_err(|error| failure::of(&error))?;
    let Some(task_queue) = pod.labels().get(TASK_QUEUE_LABEL) else {
        return Err(Failure::other(format!("pod {name} is no worker: it has no label {TASK_QUEUE_LABEL}"))
            .hint(format!("workers are listed by: kubectl get pods -n {namespace} -l {TASK_QUEUE_LABEL}")));
    };
    match pod.metadata.deletion_grace_period_seconds {
        Some(grace) if pod.metadata.deletion_timestamp.is_some() => {
            line(&format!("{name} of {task_queue} is going already, and has {grace} s in all for it"))?;
        }
        _ => {
            evict(&pods, &pod, drain.grace_period).await?;
            line(&format!(
                "{name} of {task_queue} takes no more tasks, and has {} s to finish the one it runs; another worker is being made",
                drain.grace_period
            ))?;
        }
    }
    until_gone(cluster, &pods, &pod, Duration::from_secs(drain.timeout.into())).await
}

/// Has the pod go within a grace period. kube's own call loses the grace period on the way.
async fn evict(pods: &Api<Pod>, pod: &Pod, grace_period: u32) -> Result<(), Failure> {
    let name = pod.name_any();
    let eviction = Eviction {
        metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
        delete_options: Some(DeleteOptions {
            grace_period_seconds: Some(grace_period.into()),
            preconditions: Some(Preconditions { uid: pod.uid(), ..Preconditions::default() }),
            ..DeleteOptions::default()
        }),
    };
    let evicted: Result<Status, _> =
        pods.create_subresource("eviction", &name, &PostParams::default(), &eviction).await;
    match evicted {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 429 => Err(failure::late(&status.message)
            .hint("a PodDisruptionBudget keeps it for now: `kubectl get poddisruptionbudgets` says how many may be away")),
        Err(error) => Err(failure::of(&error)),
    }
}

/// Tells how far it is until it is gone.
async fn until_gone(cluster: &Cluster, pods: &Api<Pod>, pod: &Pod, timeout: Duration) -> Result<(), Failure> {
    let (name, uid) = (pod.name_any(), pod.uid());
    let begun = Instant::now();
    let mut told = None;
    while begun.elapsed() < timeout {
        let now = pods.get_opt(&name).await.map_err(|error| failure::of(&error))?;
        let Some(now) = now.filter(|now| now.uid() == uid) else {
            return line(&format!("{name} is gone, after {}", count(begun.elapsed().as_secs(), "second")));
        };
        let doing = doing(&now, is_busy(&cluster.client, &cluster.namespace, &name).await);
        if told != Some(doing) {
            line(&format!("{:>4}s  {doing}", begun.elapsed().as_secs()))?;
            told = Some(doing);
        }
        sleep(LOOK_EVERY).await;
    }
    if timeout.is_zero() {
        return Ok(());
    }
    Err(failure::late(format!("{name} is not gone after {} s; it goes on finishing its task", timeout.as_secs()))
        .hint(format!("`kubectl soloist drain {name}` waits on; `kubectl delete pod {name} --grace-period=0` gives its task to another worker")))
}

/// What a pod does that is to go.
fn doing(pod: &Pod, busy: Option<bool>) -> &'static str {
    let mut containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let has_ended = containers.any(|container| {
        container.name == "worker" && container.state.as_ref().is_some_and(|state| state.terminated.is_some())
    });
    match busy {
        _ if has_ended => "has finished",
        Some(true) => "runs its task",
        Some(false) => "runs no task",
        None => "finishes what it has",
    }
}
