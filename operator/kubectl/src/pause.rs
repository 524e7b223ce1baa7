//! Holds the number of workers, and lets it go again.

use std::time::Duration;

use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use soloist_operator::api::v1alpha1::{ScalingMode, TaskQueue};
use soloist_operator::plan::metadata::PAUSED_ANNOTATION;
use soloist_operator::plan::reason::Reason;
use soloist_terminal::{Failure, count, line};
use tokio::time::{Instant, sleep};

use crate::cluster::Cluster;
use crate::failure;
use crate::gather;

/// Who the API server notes as the one who changed it.
const MANAGER: &str = "kubectl-soloist";

/// How long the operator may take to say that it has seen the change.
const SEEN_WITHIN: Duration = Duration::from_secs(10);

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Holds the number.
pub(crate) async fn pause(cluster: &Cluster, name: &str) -> Result<(), Failure> {
    let task_queue = gather::task_queue(cluster, name).await?;
    if let Some(why) = needs_no_pause(&task_queue) {
        return line(&format!("{name} needs no pause: {why}"));
    }
    let patched = patch(cluster, name, &json!({"spec": {"scaling": {"paused": true}}})).await?;
    let seen = until_seen(cluster, name, &patched, true).await?;
    let replicas = seen.status.map_or(0, |status| status.desired_replicas);
    line(&format!(
        "{name} is paused at {}: none is added or taken away, whatever waits. Workers that fail are replaced, and tasks go on.",
        count(replicas.into(), "worker")
    ))?;
    line(&format!("to go on: kubectl soloist resume {name} -n {}", cluster.namespace))
}

/// Lets it go.
pub(crate) async fn resume(cluster: &Cluster, name: &str) -> Result<(), Failure> {
    // Both ways of pausing: what somebody else has set is undone as well.
    let patched = patch(
        cluster,
        name,
        &json!({"metadata": {"annotations": {PAUSED_ANNOTATION: null}}, "spec": {"scaling": {"paused": null}}}),
    )
    .await?;
    let seen = until_seen(cluster, name, &patched, false).await?;
    if let Some(why) = needs_no_pause(&patched) {
        return line(&format!(
            "{name} isn't paused, but {why}; what would change that: kubectl soloist why {name} -n {}",
            cluster.namespace
        ));
    }
    let decision = seen.status.and_then(|status| status.decision);
    let says = decision
        .map_or_else(|| "the operator has decided nothing yet".to_owned(), |decision| decision.message);
    line(&format!("{name} follows its backlog again: {says}"))
}

/// Why the number doesn't move anyway.
fn needs_no_pause(task_queue: &TaskQueue) -> Option<String> {
    let spec = &task_queue.spec;
    match (spec.scaling.mode, spec.replicas) {
        (ScalingMode::Auto, None) => None,
        (_, Some(replicas)) => Some(format!("spec.replicas fixes the number at {replicas}")),
        (mode, None) => {
            Some(format!("spec.scaling.mode is {mode:?}, so the operator leaves the number alone"))
        }
    }
}

async fn patch(cluster: &Cluster, name: &str, patch: &serde_json::Value) -> Result<TaskQueue, Failure> {
    let task_queues: Api<TaskQueue> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    task_queues.patch(name, &parameters, &Patch::Merge(patch)).await.map_err(|error| failure::of(&error))
}

/// Waits until the operator's status speaks of the change. An annotation that goes is no new generation: the decision tells.
async fn until_seen(
    cluster: &Cluster,
    name: &str,
    patched: &TaskQueue,
    paused: bool,
) -> Result<TaskQueue, Failure> {
    let deadline = Instant::now() + SEEN_WITHIN;
    loop {
        let task_queue = gather::task_queue(cluster, name).await?;
        let status = task_queue.status.as_ref();
        let seen = status.and_then(|status| status.observed_generation);
        let decision = status.and_then(|status| status.decision.as_ref());
        let is_held = decision.is_some_and(|decision| decision.reason == Reason::Paused.as_str());
        if seen >= patched.metadata.generation && (paused || !is_held) {
            return Ok(task_queue);
        }
        if Instant::now() >= deadline {
            let message = format!(
                "it is written, and the operator has not said within {SEEN_WITHIN:?} that it has seen it"
            );
            return Err(failure::late(message).hint("kubectl soloist doctor says whether it runs"));
        }
        sleep(LOOK_EVERY).await;
    }
}
