//! The end of a TaskQueue whose queues go with it (`spec.deletionPolicy`).
//!
//! ```text
//! deleted ── workers to zero ── queues off the broker ── finalizer off ── gone
//!                 │                    │
//!                 └ no longer than     └ no longer than [`GIVE_UP_AFTER`] while the broker can't be used: then the queues stay,
//!                   they may drain       and an event says so
//! ```
//!
//! Only such TaskQueues have a finalizer, and nothing but a missing operator can keep it on for ever.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::Resource as _;
use kube::api::{Api, Patch, PatchParams};
use kube::core::ObjectMeta;
use serde_json::json;

use super::Error;
use super::context::{Context, Guarded, Memory, reference};
use super::events::{News, publish};
use super::observe::{Observed, rivals_on_broker};
use crate::api::v1alpha1::{DeletionPolicy, TaskQueue};
use crate::broker::{Removal, Removed};
use crate::plan::changes::replicas;
use crate::plan::reason::Reason;
use crate::plan::status::BrokerState;
use crate::plan::topology::Queue;

/// Keeps a TaskQueue until its queues are gone.
pub(super) const FINALIZER: &str = "soloist.dev/queues";

/// A deletion that can't get at the broker for this long leaves the queues where they are. Longer than a restart of RabbitMQ
/// takes; shorter than it takes somebody to look for why a namespace doesn't go.
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);

/// The same for a broker that is there: it may have hundreds of queues to delete, one after the other.
const GIVE_UP_CONNECTED_AFTER: Duration = Duration::from_secs(600);

/// Time that workers have for their end beyond what they may drain.
const LEEWAY_SECONDS: i64 = 60;

/// How far the end of a TaskQueue is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// To be looked at again.
    Underway,
    /// The finalizer is off.
    Gone,
}

/// Whether a TaskQueue is about to go, and its queues with it. With `Retain` they stay, though a finalizer of an earlier policy may be on.
pub(super) fn is_ending(task_queue: &TaskQueue) -> bool {
    task_queue.metadata.deletion_timestamp.is_some()
        && has_finalizer(&task_queue.metadata)
        && task_queue.spec.deletion_policy != DeletionPolicy::Retain
}

/// Whether the workers of a TaskQueue are gone, or have had their time.
pub(super) fn workers_are_gone(observed: &Observed, task_queue: &TaskQueue, now: Timestamp) -> bool {
    let none =
        observed.pods.is_empty() && observed.deployment.as_ref().is_none_or(|live| replicas(live) == 0);
    let deleted_at = task_queue.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    let allowed = i64::from(task_queue.spec.worker.drain_timeout_seconds()) + LEEWAY_SECONDS;
    none || deleted_at.is_some_and(|deleted_at| now.as_second() - deleted_at.as_second() > allowed)
}

/// Brings the finalizer in line with the policy.
pub(super) async fn keep_finalizer(task_queue: &TaskQueue, context: &Context) -> Result<(), Error> {
    let deleted = task_queue.metadata.deletion_timestamp.is_some();
    let wanted = task_queue.spec.deletion_policy != DeletionPolicy::Retain;
    match (wanted, has_finalizer(&task_queue.metadata)) {
        // One that is being deleted takes no more finalizers.
        (true, false) if !deleted => set_finalizer(&task_queue.metadata, true, context).await,
        (false, true) => set_finalizer(&task_queue.metadata, false, context).await,
        _ => Ok(()),
    }
}

/// The steps after the workers: the queues, then the finalizer.
pub(super) async fn end(
    task_queue: &TaskQueue,
    observed: &Observed,
    memory: &mut Memory,
    context: &Context,
) -> Result<Progress, Error> {
    if !workers_are_gone(observed, task_queue, Timestamp::now()) {
        return Ok(Progress::Underway);
    }
    let (mine, shared) = queues_to_go(task_queue, observed, context);
    let removed = match &observed.removed {
        Some(removed) => removed.clone(),
        None if mine.is_empty() => Removed::default(),
        None => {
            let (patience, why) = match &observed.broker {
                BrokerState::Failed(problem) => (GIVE_UP_AFTER, problem.message.as_str()),
                BrokerState::Connecting => (GIVE_UP_AFTER, "the broker does not answer"),
                BrokerState::Connected => (GIVE_UP_CONNECTED_AFTER, "the broker takes too long"),
            };
            let since = *memory.waiting_for_removal.get_or_insert_with(Instant::now);
            if since.elapsed() < patience {
                let only_if_empty = task_queue.spec.deletion_policy == DeletionPolicy::DeleteIfEmpty;
                context.hub.remove(&reference(task_queue), &Removal { queues: mine, only_if_empty });
                return Ok(Progress::Underway);
            }
            let kept = mine.iter().map(|queue| (format!("queue `{}`", queue.name), why.to_owned()));
            Removed { gone: Vec::new(), kept: kept.collect() }
        }
    };
    tell(task_queue, removed, shared, context).await;
    set_finalizer(&task_queue.metadata, false, context).await?;
    Ok(Progress::Gone)
}

/// The queues that go, and those that another TaskQueue uses too.
fn queues_to_go(
    task_queue: &TaskQueue,
    observed: &Observed,
    context: &Context,
) -> (Vec<Queue>, Vec<(String, String)>) {
    let rivals = rivals_on_broker(task_queue, &observed.topology, context);
    let user = |queue: &Queue| {
        let is_used = |name: &str| name == queue.name || Some(name) == queue.dead_letters.as_deref();
        rivals.iter().find(|(_, topology)| topology.all_names().any(is_used))
    };
    let (mut mine, mut shared) = (Vec::new(), Vec::new());
    for queue in &observed.topology.queues {
        match user(queue) {
            Some((other, _)) => {
                shared.push((format!("queue `{}`", queue.name), format!("TaskQueue {other} uses it")));
            }
            None => mine.push(queue.clone()),
        }
    }
    (mine, shared)
}

async fn tell(task_queue: &TaskQueue, removed: Removed, shared: Vec<(String, String)>, context: &Context) {
    let kept: Vec<String> =
        removed.kept.into_iter().chain(shared).map(|(what, why)| format!("{what}: {why}")).collect();
    let gone = removed.gone.join(", ");
    tracing::info!(deleted = gone, kept = kept.join("; "), "TaskQueue ends");
    let reference = task_queue.object_ref(&());
    if !gone.is_empty() {
        let note = format!("deleted on the broker: {gone}");
        let news =
            News { warning: false, reason: Reason::QueuesDeleted, action: "Delete".to_owned(), note: &note };
        publish(&reference, context, news).await;
    }
    if !kept.is_empty() {
        let note = format!("still on the broker: {}", kept.join("; "));
        let news =
            News { warning: true, reason: Reason::QueuesKept, action: "Delete".to_owned(), note: &note };
        publish(&reference, context, news).await;
    }
}

/// Lets go of a TaskQueue that can't be read, and so doesn't say what is to go with it.
pub(super) async fn release_invalid(invalid: &Guarded, context: &Context) -> Result<(), Error> {
    let metadata = invalid.meta();
    if metadata.deletion_timestamp.is_none() || !has_finalizer(metadata) {
        return Ok(());
    }
    let note = "the TaskQueue can't be read: its queues are still on the broker";
    let news = News { warning: true, reason: Reason::QueuesKept, action: "Delete".to_owned(), note };
    publish(&invalid.object_ref(&()), context, news).await;
    set_finalizer(metadata, false, context).await
}

fn has_finalizer(metadata: &ObjectMeta) -> bool {
    metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

/// Puts the finalizer on or takes it off, if the TaskQueue is still as the watch showed it.
async fn set_finalizer(metadata: &ObjectMeta, on: bool, context: &Context) -> Result<(), Error> {
    let name = metadata.name.clone().unwrap_or_default();
    let others = metadata.finalizers.iter().flatten().filter(|finalizer| *finalizer != FINALIZER);
    let finalizers: Vec<&str> = others.map(String::as_str).chain(on.then_some(FINALIZER)).collect();
    let patch = json!({"metadata": {
        "uid": metadata.uid,
        "resourceVersion": metadata.resource_version,
        "finalizers": finalizers,
    }});
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<TaskQueue> = Api::namespaced(context.client.clone(), namespace);
    match api.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => {
            tracing::info!(on, "finalizer set");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(source) => Err(Error::SetFinalizer { name, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_stay_once_the_policy_says_so_whatever_the_finalizer() {
        let deleted = |policy| {
            let task_queue = json!({
                "apiVersion": "soloist.dev/v1alpha1",
                "kind": "TaskQueue",
                "metadata": {"name": "emails", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FINALIZER]},
                "spec": {
                    "broker": {"secretRef": {"name": "rabbitmq"}},
                    "worker": {"image": "w"},
                    "scaling": {"maxReplicas": 5},
                    "deletionPolicy": policy,
                },
            });
            is_ending(&serde_json::from_value(task_queue).unwrap())
        };
        assert_eq!(["Delete", "DeleteIfEmpty", "Retain"].map(deleted), [true, true, false]);
    }
}
