//! What is to be written to the cluster: the difference between what is wanted and what is there.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::json;

use super::autoscaler::{Decision, DecisionReason};
use super::drift;
use super::metadata::{APPLIED_HASH_ANNOTATION, AUTOSCALER, OPERATOR};
use super::reason::Reason;
use super::status::Problem;
use crate::api::v1alpha1::TaskQueue;

/// What is to be written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// The Deployment to apply, with a number of replicas only as long as the autoscaler doesn't own it.
    pub apply: Option<Deployment>,
    /// The number of replicas to set, as the autoscaler.
    pub scale: Option<u16>,
    /// What keeps things from being written.
    pub problem: Option<Problem>,
}

/// Compares the Deployment that is wanted with the one that is there.
///
/// `drift_is_known` says that what is there differs from what is wanted even right after it was applied, because the API server
/// writes something in another way; it would be applied for ever.
pub fn changes(
    task_queue: &TaskQueue,
    wanted: Result<Deployment, Problem>,
    live: Option<&Deployment>,
    decision: &Decision,
    drift_is_known: bool,
) -> Changes {
    if let Some(live) = live.filter(|live| !belongs_to(live, task_queue)) {
        return Changes { problem: Some(name_conflict(live)), ..Changes::default() };
    }
    let mut changes = Changes::default();
    let first = decision.ask_for.unwrap_or(decision.replicas);
    match (wanted, live) {
        (Err(problem), _) => changes.problem = Some(problem),
        // What may not run needs no Deployment; one that is there goes to zero.
        (Ok(_), None) if decision.reason == DecisionReason::QueueClaimed => {}
        // Without a number, a new Deployment would start with one pod.
        (Ok(wanted), None) => changes.apply = Some(with_replicas(wanted, first)),
        (Ok(wanted), Some(live)) => {
            if applied_hash(live) != applied_hash(&wanted) || (!drift_is_known && has_drifted(live, &wanted))
            {
                // Were the number left out while nobody else owns it, it would fall back to one.
                let number = decision.ask_for.unwrap_or_else(|| replicas(live));
                let owned = match decision.ask_for {
                    Some(_) => own_replicas(live, |manager| manager == AUTOSCALER),
                    None => own_replicas(live, |manager| manager != OPERATOR),
                };
                changes.apply = Some(if owned { wanted } else { with_replicas(wanted, number) });
            }
        }
    }
    changes.scale = match live {
        None => changes.apply.as_ref().map(|_| first),
        Some(live) => scale(live, decision),
    };
    changes
}

/// The number of replicas to set on a Deployment that is there: none if the autoscaler asks for it already.
pub fn scale(live: &Deployment, decision: &Decision) -> Option<u16> {
    let is_set = |wanted| replicas(live) == wanted && own_replicas(live, |manager| manager == AUTOSCALER);
    decision.ask_for.filter(|wanted| !is_set(*wanted))
}

/// Replicas asked for.
pub fn replicas(deployment: &Deployment) -> u16 {
    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
    // Kubernetes' own default.
    u16::try_from(replicas.unwrap_or(1)).unwrap_or_default()
}

/// Whether the live Deployment lacks something of the wanted one.
pub fn has_drifted(live: &Deployment, wanted: &Deployment) -> bool {
    match (serde_json::to_value(live), serde_json::to_value(wanted)) {
        (Ok(live), Ok(wanted)) => drift::missing(&live, &wanted).is_some(),
        _ => true,
    }
}

/// The hash of what was applied last.
pub fn applied_hash(deployment: &Deployment) -> Option<&str> {
    deployment.metadata.annotations.as_ref()?.get(APPLIED_HASH_ANNOTATION).map(String::as_str)
}

/// Whether a Deployment is the one of this TaskQueue.
pub fn belongs_to(deployment: &Deployment, task_queue: &TaskQueue) -> bool {
    let owners = deployment.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|owner| {
        owner.controller == Some(true) && Some(owner.uid.as_str()) == task_queue.metadata.uid.as_deref()
    })
}

/// The problem that a Deployment of the wanted name is there and belongs to something else.
pub fn name_conflict(deployment: &Deployment) -> Problem {
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    Problem {
        reason: Reason::NameConflict,
        message: format!("a Deployment `{name}` exists and does not belong to this TaskQueue"),
    }
}

/// Whether such a manager owns the number of replicas.
fn own_replicas(deployment: &Deployment, is_meant: impl Fn(&str) -> bool) -> bool {
    let mut entries = deployment.metadata.managed_fields.iter().flatten();
    entries.any(|entry| is_meant(entry.manager.as_deref().unwrap_or_default()) && has_replicas(entry))
}

fn has_replicas(entry: &ManagedFieldsEntry) -> bool {
    entry.fields_v1.as_ref().is_some_and(|fields| fields.0.pointer("/f:spec/f:replicas").is_some())
}

fn with_replicas(mut deployment: Deployment, replicas: u16) -> Deployment {
    deployment.spec.get_or_insert_default().replicas = Some(replicas.into());
    deployment
}

/// Drops what the operator doesn't look at from a Deployment, so that a thousand of them fit into little memory.
pub fn trim(deployment: &mut Deployment) {
    if let Some(entries) = &mut deployment.metadata.managed_fields {
        entries.retain(has_replicas);
        for fields in entries.iter_mut().filter_map(|entry| entry.fields_v1.as_mut()) {
            fields.0 = json!({"f:spec": {"f:replicas": {}}});
        }
    }
    if let Some(annotations) = &mut deployment.metadata.annotations {
        annotations.retain(|name, _| name == APPLIED_HASH_ANNOTATION);
    }
}

/// The resource version of a Deployment as a number, by which its versions can be compared.
pub fn resource_version(deployment: &Deployment) -> Option<u64> {
    deployment.metadata.resource_version.as_ref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::deployment::deployment;
    use crate::plan::law;
    use crate::plan::topology::Topology;

    fn task_queue() -> TaskQueue {
        serde_json::from_value(json!({
            "apiVersion": "soloist.dev/v1alpha1",
            "kind": "TaskQueue",
            "metadata": {"name": "red", "namespace": "default", "uid": "1"},
            "spec": {
                "broker": {"secretRef": {"name": "rabbitmq"}},
                "worker": {"image": "w"},
                "scaling": {"maxReplicas": 5},
            },
        }))
        .unwrap()
    }

    fn wanted() -> Deployment {
        deployment(&task_queue(), &Topology::new(&task_queue()), None)
    }

    /// The Deployment as it is in the cluster, the replicas owned by the autoscaler.
    fn live(replicas: u16) -> Deployment {
        let mut live = with_replicas(wanted(), replicas);
        live.metadata.managed_fields = serde_json::from_value(json!([
            {"manager": AUTOSCALER, "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
        ]))
        .unwrap();
        live
    }

    fn decision(replicas: u16) -> Decision {
        Decision::of(replicas, DecisionReason::Law(law::Reason::Backlog))
    }

    fn planned(live: Option<&Deployment>, replicas: u16) -> Changes {
        changes(&task_queue(), Ok(wanted()), live, &decision(replicas), false)
    }

    fn applied_replicas(changes: &Changes) -> Option<i32> {
        changes.apply.as_ref().unwrap().spec.as_ref().unwrap().replicas
    }

    #[test]
    fn nothing_is_written_when_all_is_as_wanted() {
        assert_eq!(planned(Some(&live(3)), 3), Changes::default());
    }

    #[test]
    fn new_deployment_starts_with_the_decided_number() {
        let changes = planned(None, 0);
        assert_eq!((applied_replicas(&changes), changes.scale), (Some(0), Some(0)));
        assert_eq!(applied_replicas(&planned(None, 7)), Some(7));
    }

    #[test]
    fn new_deployment_starts_with_the_number_set_by_hand_while_another_is_recommended() {
        let decision = Decision { ask_for: Some(3), ..decision(20) };
        let changes = changes(&task_queue(), Ok(wanted()), None, &decision, false);
        assert_eq!((applied_replicas(&changes), changes.scale), (Some(3), Some(3)));
    }

    #[test]
    fn scaling_touches_nothing_else() {
        assert_eq!(planned(Some(&live(0)), 50), Changes { scale: Some(50), ..Changes::default() });
    }

    #[test]
    fn drift_is_repaired_without_the_replicas() {
        let mut drifted = live(3);
        drifted.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0].image =
            Some("evil".into());
        let changes = planned(Some(&drifted), 3);
        assert_eq!((applied_replicas(&changes), changes.scale), (None, None));
    }

    #[test]
    fn replicas_that_somebody_else_took_over_are_applied_rather_than_dropped() {
        let mut taken = live(3);
        taken.metadata.managed_fields = None;
        assert_eq!(planned(Some(&taken), 3), Changes { scale: Some(3), ..Changes::default() });
        taken.metadata.annotations = None;
        assert_eq!(applied_replicas(&planned(Some(&taken), 3)), Some(3));
    }

    #[test]
    fn a_number_that_others_set_is_left_to_them() {
        let left = Decision { ask_for: None, ..decision(9) };
        let planned = |live: &Deployment| changes(&task_queue(), Ok(wanted()), Some(live), &left, false);
        let mut theirs = live(3);
        theirs.metadata.managed_fields.as_mut().unwrap()[0].manager = Some("kube-controller-manager".into());
        assert_eq!(planned(&theirs), Changes::default());
        theirs.metadata.annotations = None;
        assert_eq!((applied_replicas(&planned(&theirs)), planned(&theirs).scale), (None, None));
        // Nobody's but ours: left out, it would be lost.
        theirs.metadata.managed_fields.as_mut().unwrap()[0].manager = Some(OPERATOR.into());
        assert_eq!((applied_replicas(&planned(&theirs)), planned(&theirs).scale), (Some(3), None));
    }

    #[test]
    fn of_who_set_what_the_number_is_kept() {
        let mut live = live(3);
        let entry = json!({"manager": "hpa", "fieldsV1": {"f:spec": {"f:replicas": {}, "f:template": {}}}});
        let managed = live.metadata.managed_fields.as_mut().unwrap();
        managed.push(serde_json::from_value(entry).unwrap());
        managed.push(
            serde_json::from_value(json!({"manager": "kubectl", "fieldsV1": {"f:metadata": {}}})).unwrap(),
        );
        trim(&mut live);
        let kept = live.metadata.managed_fields.unwrap();
        assert_eq!(kept.len(), 2);
        assert_eq!(kept[1].fields_v1.as_ref().unwrap().0, json!({"f:spec": {"f:replicas": {}}}));
    }

    #[test]
    fn drift_that_applying_does_not_change_is_left() {
        let mut drifted = live(3);
        drifted.metadata.labels = None;
        assert!(planned(Some(&drifted), 3).apply.is_some());
        assert_eq!(
            changes(&task_queue(), Ok(wanted()), Some(&drifted), &decision(3), true),
            Changes::default()
        );
    }

    #[test]
    fn foreign_deployment_is_left_alone() {
        let mut foreign = live(3);
        foreign.metadata.owner_references = None;
        let changes = planned(Some(&foreign), 5);
        assert_eq!((&changes.apply, changes.scale), (&None, None));
        assert_eq!(changes.problem.unwrap().reason, Reason::NameConflict);
    }

    #[test]
    fn claimed_task_queue_gets_no_deployment_and_loses_its_workers() {
        let claimed = Decision { reason: DecisionReason::QueueClaimed, ..decision(0) };
        assert_eq!(changes(&task_queue(), Ok(wanted()), None, &claimed, false), Changes::default());
        assert_eq!(changes(&task_queue(), Ok(wanted()), Some(&live(3)), &claimed, false).scale, Some(0));
    }

    #[test]
    fn invalid_template_still_scales_what_runs() {
        let problem = Problem { reason: Reason::TemplateInvalid, message: String::new() };
        let changes = changes(&task_queue(), Err(problem), Some(&live(3)), &decision(5), false);
        assert_eq!((changes.apply, changes.scale), (None, Some(5)));
    }
}
