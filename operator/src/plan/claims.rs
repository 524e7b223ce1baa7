//! Who may use a queue when two TaskQueues name the same one on the same broker: the older.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;

use super::reason::Reason;
use super::status::QUEUES_DECLARED;
use super::topology::{Topology, names};
use crate::api::v1alpha1::TaskQueue;

/// A queue that an older TaskQueue uses on the same broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The queue.
    pub queue: String,
    /// The TaskQueue that has it, as `namespace/name`.
    pub holder: String,
}

/// The first queue of `task_queue` that `other` has a right to, if both are on the same broker.
///
/// The older one has the right. Of two of the same second, the one whose `namespace/name` comes first: any rule does, as long as both sides
/// come to the same answer.
pub fn claim(task_queue: &TaskQueue, topology: &Topology, other: &TaskQueue) -> Option<Claim> {
    let queue = shared_queue(topology, other)?;
    if seniority(other) >= seniority(task_queue) || task_queue.metadata.uid == other.metadata.uid {
        return None;
    }
    Some(Claim { queue: queue.to_owned(), holder: qualified_name(other) })
}

/// Whether a claim holds, given whether both TaskQueues are on the same broker, if that is known.
///
/// What isn't known is no reason to let a second TaskQueue onto a queue: then a claim that held until now goes on to. One whom the broker
/// doesn't let in, and who has no workers there from before, has no use for the queue.
pub fn holds(same_broker: Option<bool>, was_claimed: bool, holder_is_locked_out: bool) -> bool {
    !holder_is_locked_out && same_broker.unwrap_or(was_claimed)
}

/// Whether the conditions of a TaskQueue say that a queue of it is claimed: all that is known after the operator has begun anew.
pub fn is_claimed(conditions: &[Condition]) -> bool {
    let claimed = Reason::QueueClaimed.as_str();
    conditions.iter().any(|condition| condition.type_ == QUEUES_DECLARED && condition.reason == claimed)
}

/// The first queue that another TaskQueue names too.
pub fn shared_queue<'a>(topology: &'a Topology, other: &TaskQueue) -> Option<&'a str> {
    topology.all_names().find(|queue| names(other, queue))
}

fn seniority(task_queue: &TaskQueue) -> (Option<String>, String) {
    let created = task_queue.creation_timestamp().map(|time| time.0.to_string());
    (created, qualified_name(task_queue))
}

fn qualified_name(task_queue: &TaskQueue) -> String {
    format!("{}/{}", task_queue.namespace().unwrap_or_default(), task_queue.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn task_queue(name: &str, created: &str, queues: &[&str]) -> TaskQueue {
        let queues: Vec<_> = queues.iter().map(|name| json!({"name": name})).collect();
        serde_json::from_value(json!({
            "apiVersion": "soloist.dev/v1alpha1",
            "kind": "TaskQueue",
            "metadata": {"name": name, "namespace": "default", "uid": name, "creationTimestamp": created},
            "spec": {
                "broker": {"secretRef": {"name": "rabbitmq"}},
                "queues": queues,
                "worker": {"image": "w"},
                "scaling": {"maxReplicas": 5},
            },
        }))
        .unwrap()
    }

    fn claimed(younger: &TaskQueue, older: &TaskQueue) -> Option<Claim> {
        claim(younger, &Topology::new(younger), older)
    }

    #[test]
    fn older_task_queue_has_the_queue() {
        let older = task_queue("one", "2026-11-21T10:00:00Z", &["red", "blue"]);
        let younger = task_queue("two", "2026-11-21T10:00:01Z", &["green", "blue"]);
        let claim = Claim { queue: "blue".into(), holder: "default/one".into() };
        assert_eq!(claimed(&younger, &older), Some(claim));
        assert_eq!(claimed(&older, &younger), None);
    }

    #[test]
    fn two_of_one_second_agree_on_the_holder() {
        let one = task_queue("one", "2026-11-21T10:00:00Z", &["red"]);
        let two = task_queue("two", "2026-11-21T10:00:00Z", &["red"]);
        assert_eq!(claimed(&one, &two), None);
        assert!(claimed(&two, &one).is_some());
    }

    #[test]
    fn dead_letter_queues_count() {
        let older = task_queue("one", "2026-11-21T10:00:00Z", &["red"]);
        let younger = task_queue("two", "2026-11-21T10:00:01Z", &["red.dead"]);
        assert_eq!(claimed(&younger, &older).map(|claim| claim.queue).as_deref(), Some("red.dead"));
    }

    #[test]
    fn claim_goes_by_the_broker_where_that_is_known() {
        assert!(holds(Some(true), false, false));
        assert!(!holds(Some(false), true, false));
    }

    #[test]
    fn claim_goes_on_while_the_broker_is_unknown() {
        assert!(holds(None, true, false));
        assert!(!holds(None, false, false), "there was none");
    }

    #[test]
    fn who_is_locked_out_claims_nothing() {
        assert!(!holds(Some(true), true, true));
    }

    #[test]
    fn conditions_remember_the_claim() {
        let condition = |type_: &str, reason: &str| -> Condition {
            serde_json::from_value(json!({
                "type": type_, "status": "False", "reason": reason, "message": "",
                "lastTransitionTime": "2026-11-21T10:00:00Z",
            }))
            .unwrap()
        };
        assert!(is_claimed(&[
            condition("Ready", "SecretNotFound"),
            condition("QueuesDeclared", "QueueClaimed")
        ]));
        assert!(!is_claimed(&[condition("QueuesDeclared", "Declared")]));
    }

    #[test]
    fn nobody_competes_with_itself() {
        let one = task_queue("one", "2026-11-21T10:00:00Z", &["red"]);
        assert_eq!(claimed(&one, &one), None);
    }
}
