//! Why a TaskQueue has so many workers: the terms of its last decision, in sentences.

use serde::Serialize;
use soloist_operator::api::v1alpha1::{DecisionStatus, ScalingMode, TaskQueue};
use soloist_operator::plan::autoscaler::DEFAULT_WAIT_SECONDS;
use soloist_terminal::{Failure, count, json, line};

use crate::args::{Format, Output};
use crate::cluster::Cluster;
use crate::gather;
use crate::snapshot::Subject;
use crate::status::observed;

/// The explanation of a number.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(crate) struct Explanation {
    /// The number, and how many there are.
    summary: String,
    /// Why it is what it is.
    because: Vec<String>,
    /// What keeps it from being another.
    bounds: Vec<String>,
    /// What would change it.
    changes: Vec<String>,
}

/// Runs the command.
pub(crate) async fn run(cluster: &Cluster, name: &str, output: Output) -> Result<(), Failure> {
    let now = cluster.now().await?;
    let task_queue = gather::task_queue(cluster, name).await?;
    let operators = gather::operators(cluster).await;
    let explanation = explain(&task_queue);
    match output.format {
        Format::Json => json(&explanation),
        Format::Text => {
            let subject = Subject { object: as_object(&task_queue)?, task_queue: Ok(task_queue) };
            let observed = observed(&subject, &operators, now);
            line(&format!("{}\n\nobserved {} ago", text(&explanation), observed.shown))
        }
    }
}

fn as_object(task_queue: &TaskQueue) -> Result<kube::api::DynamicObject, Failure> {
    let value = serde_json::to_value(task_queue).and_then(serde_json::from_value);
    value.map_err(|error| Failure::other(error.to_string()))
}

fn text(explanation: &Explanation) -> String {
    let mut lines = vec![explanation.summary.clone()];
    for (title, sentences) in [
        ("why", &explanation.because),
        ("bounds", &explanation.bounds),
        ("what would change it", &explanation.changes),
    ] {
        if !sentences.is_empty() {
            lines.push(format!("\n{title}"));
            lines.extend(sentences.iter().map(|sentence| format!("  {sentence}")));
        }
    }
    lines.join("\n")
}

/// Explains the last decision.
pub(crate) fn explain(task_queue: &TaskQueue) -> Explanation {
    let name = task_queue.metadata.name.as_deref().unwrap_or_default();
    let status = task_queue.status.clone().unwrap_or_default();
    let there =
        format!("{name} has {}, {} ready", count(status.replicas.into(), "worker"), status.ready_replicas);
    let Some(decision) = &status.decision else {
        return Explanation {
            summary: format!("{there}; the operator has decided nothing yet"),
            changes: vec!["what keeps it from deciding says: kubectl soloist doctor".to_owned()],
            ..Explanation::default()
        };
    };
    let is_only_said = task_queue.spec.scaling.mode == ScalingMode::Recommend;
    let verb = if is_only_said { "would be" } else { "is to be" };
    Explanation {
        summary: format!("{there}; {verb} {} ({})", decision.replicas, decision.reason),
        because: because(task_queue, decision),
        bounds: bounds(task_queue, decision),
        changes: changes(task_queue, decision),
    }
}

fn because(task_queue: &TaskQueue, decision: &DecisionStatus) -> Vec<String> {
    let mut sentences = vec![decision.message.clone()];
    let scaling = &task_queue.spec.scaling;
    let waiting = match decision.ready {
        Some(0) => "no message waits".to_owned(),
        Some(ready) => {
            format!("{} wait, the oldest for {} s", count(ready, "message"), decision.oldest_wait_seconds)
        }
        None => "how many messages wait is not known".to_owned(),
    };
    sentences.push(format!("{waiting}; {} run", count(decision.running.into(), "task")));
    if is_by_tasks(task_queue) {
        let tasks = scaling.tasks_per_worker.unwrap_or(1);
        sentences.push(format!(
            "spec.scaling.tasksPerWorker is {tasks}: a worker for each {tasks} that wait or run"
        ));
    } else {
        let wait = scaling.max_wait_seconds.unwrap_or(DEFAULT_WAIT_SECONDS);
        sentences.push(format!(
            "{} tasks a second arrive and take {} s each: that keeps {} workers busy; a worker takes {} s to start",
            decision.arrival_rate, decision.service_seconds, decision.offered_load, decision.startup_seconds
        ));
        sentences.push(format!(
            "so that none waits longer than {wait} s: {} for what arrives, {} for what waits, and more than {} would have nothing to do",
            decision.load_workers, decision.backlog_workers, decision.useful_workers
        ));
    }
    sentences.push(match decision.wanted_within_window > decision.wanted {
        true => format!(
            "{} wanted now, and {} within the last {} s",
            decision.wanted, decision.wanted_within_window, decision.window_seconds
        ),
        false => format!("{} wanted", decision.wanted),
    });
    sentences
}

fn bounds(task_queue: &TaskQueue, decision: &DecisionStatus) -> Vec<String> {
    let scaling = &task_queue.spec.scaling;
    let mut sentences = vec![format!("{} to {} workers", decision.min_replicas, decision.max_replicas)];
    if (decision.min_replicas, decision.max_replicas) != (scaling.min_replicas, scaling.max_replicas) {
        sentences.push(format!(
            "by a schedule: spec.scaling alone says {} to {}",
            scaling.min_replicas, scaling.max_replicas
        ));
    }
    match decision.reason.as_str() {
        "Ceiling" => sentences.push(format!(
            "the maximum holds it down: {} wanted, so tasks wait longer than they should",
            decision.wanted
        )),
        "Floor" => sentences.push(format!("the minimum holds it up: {} wanted", decision.wanted)),
        _ => {}
    }
    if let Some(replicas) = task_queue.spec.replicas {
        sentences.push(format!("spec.replicas is {replicas}: set by hand, it overrules everything else"));
    }
    sentences
}

fn changes(task_queue: &TaskQueue, decision: &DecisionStatus) -> Vec<String> {
    let name = task_queue.metadata.name.as_deref().unwrap_or_default();
    let namespace = task_queue.metadata.namespace.as_deref().unwrap_or_default();
    let patch = |spec: &str| {
        format!(
            "kubectl patch taskqueue {name} -n {namespace} --type=merge -p '{{\"spec\":{{\"scaling\":{spec}}}}}'"
        )
    };
    let window = decision.window_seconds;
    let sentence = match decision.reason.as_str() {
        "Backlog" | "Load" => "more: more tasks, longer ones, or a shorter wait that is allowed; fewer: the opposite, and only after the window".to_owned(),
        "Idle" => "a message in a queue".to_owned(),
        "Floor" => format!("fewer: {}", patch(r#"{"minReplicas":N}"#)),
        "Ceiling" => format!("more: {}", patch(r#"{"maxReplicas":N}"#)),
        "Steady" => "a load that is clearly another: the number is so nearly right that a change would be noise".to_owned(),
        "Stabilizing" => format!("fewer: when no more than {} were wanted for {window} s on end (spec.scaling.scaleDown.stabilizationSeconds)", decision.wanted),
        "BacklogUnknown" => "nothing, until every queue can be read again: kubectl soloist doctor".to_owned(),
        "WorkersSilent" => "fewer: only when each worker says what it runs; until then workers are only added".to_owned(),
        "WorkersDetached" => "fewer: only when all workers consume again; until then workers are only added".to_owned(),
        "Fallback" => "a backlog that can be read: kubectl soloist doctor".to_owned(),
        "Paused" => format!("kubectl soloist resume {name} -n {namespace}"),
        "Manual" => format!("kubectl scale taskqueue/{name} -n {namespace} --replicas=N; or back to the autoscaler: kubectl patch taskqueue {name} -n {namespace} --type=json -p '[{{\"op\":\"remove\",\"path\":\"/spec/replicas\"}}]'"),
        "Recommended" => format!("nothing here: somebody else sets the number; to have it done: {}", patch(r#"{"mode":"Auto"}"#)),
        "Off" => format!("nothing here: the number is left alone; to have it set: {}", patch(r#"{"mode":"Auto"}"#)),
        "QueueClaimed" => "nothing, while an older TaskQueue has one of the queues: kubectl soloist doctor".to_owned(),
        other => format!("see docs/scaling.md for {other}"),
    };
    let mut sentences = vec![sentence];
    if matches!(decision.reason.as_str(), "Backlog" | "Load" | "Stabilizing") && window > 0.0 {
        sentences.push(format!("the window is {window} s: fewer workers come once in it at most"));
    }
    sentences
}

fn is_by_tasks(task_queue: &TaskQueue) -> bool {
    let scaling = &task_queue.spec.scaling;
    scaling.tasks_per_worker.is_some() && scaling.max_wait_seconds.is_none()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use soloist_operator::plan::law;

    use super::*;

    fn task_queue(scaling: Value, decision: Value) -> TaskQueue {
        let mut written = json!({"replicas": 4, "reason": "Load", "message": "4: because", "wanted": 4, "minReplicas": 0, "maxReplicas": 10});
        written.as_object_mut().unwrap().extend(decision.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "apiVersion": "soloist.dev/v1alpha1", "kind": "TaskQueue", "metadata": {"name": "emails", "namespace": "shop"},
            "spec": {"broker": {"secretRef": {"name": "rabbitmq"}}, "worker": {"image": "i"}, "scaling": scaling},
            "status": {"replicas": 3, "readyReplicas": 2, "decision": written},
        }))
        .unwrap()
    }

    fn explained(scaling: Value, decision: Value) -> String {
        text(&explain(&task_queue(scaling, decision)))
    }

    #[test]
    fn every_term_of_a_decision_is_in_a_sentence() {
        let told = explained(
            json!({"maxReplicas": 10, "maxWaitSeconds": 7}),
            json!({"ready": 351, "running": 21, "oldestWaitSeconds": 1.5, "arrivalRate": 9.25, "serviceSeconds": 2.75, "startupSeconds": 6.5,
                "offeredLoad": 25.5, "loadWorkers": 31, "backlogWorkers": 29, "usefulWorkers": 372, "wanted": 30, "wantedWithinWindow": 33, "windowSeconds": 44.0}),
        );
        for term in [
            "351",
            "21 tasks",
            "1.5 s",
            "9.25",
            "2.75 s",
            "6.5 s",
            "25.5",
            "31",
            "29",
            "372",
            "30 wanted",
            "33 within",
            "44 s",
            "7 s",
            "3 workers, 2 ready",
        ] {
            assert!(told.contains(term), "{term} is missing in:\n{told}");
        }
    }

    #[test]
    fn bounds_name_what_holds_the_number() {
        let told = explained(json!({"maxReplicas": 10}), json!({"reason": "Ceiling", "wanted": 40}));
        assert!(
            told.contains("40 wanted, so tasks wait longer") && told.contains(r#""maxReplicas":N"#),
            "{told}"
        );
        let told = explained(json!({"maxReplicas": 10}), json!({"minReplicas": 5, "maxReplicas": 8}));
        assert!(
            told.contains("5 to 8 workers")
                && told.contains("by a schedule: spec.scaling alone says 0 to 10"),
            "{told}"
        );
    }

    #[test]
    fn what_is_not_known_is_no_zero() {
        let told = explained(json!({"maxReplicas": 10}), json!({"reason": "BacklogUnknown"}));
        assert!(
            told.contains("how many messages wait is not known") && told.contains("kubectl soloist doctor"),
            "{told}"
        );
    }

    #[test]
    fn every_reason_has_a_way_out() {
        let ordered = ["Paused", "Manual", "Recommended", "Off", "QueueClaimed"];
        for reason in law::Reason::ALL.iter().map(|reason| reason.as_str()).chain(ordered) {
            let told = explained(json!({"maxReplicas": 10}), json!({"reason": reason}));
            assert!(!told.contains("docs/scaling.md for"), "{reason} has none");
        }
    }
}
