//! The series of TaskQueues, kept as plain numbers. A gauge of the Prometheus crate has its own copy of name, help and labels, and is
//! copied at each scrape: too much for fifteen thousand of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::plan::status::CONDITIONS;

/// What has one series for each TaskQueue. A number that isn't known has none: a zero would be a lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Messages that wait for a worker.
    MessagesReady,
    /// Messages in the dead letter queues.
    MessagesDead,
    /// Tasks that workers run.
    RunningTasks,
    /// Worker pods that exist.
    Replicas,
    /// Worker pods asked for.
    ReplicasDesired,
    /// Worker pods that are draining or drained.
    ReplicasLeaving,
    /// Fewest workers, by the spec and the schedule that holds.
    ReplicasMin,
    /// Most workers, by the spec and the schedule that holds.
    ReplicasMax,
    /// How long the oldest waiting message has waited, in seconds.
    OldestWait,
    /// Age of the oldest reading that decisions rest on, in seconds.
    ObservationAge,
}

/// Each with name and help, in the order of their declaration.
pub(super) const QUANTITIES: [(Quantity, &str, &str); 10] = [
    (Quantity::MessagesReady, "soloist_taskqueue_messages_ready", "Messages that wait for a worker."),
    (Quantity::MessagesDead, "soloist_taskqueue_messages_dead", "Messages in the dead letter queues."),
    (Quantity::RunningTasks, "soloist_taskqueue_running_tasks", "Tasks that workers run."),
    (Quantity::Replicas, "soloist_taskqueue_replicas", "Worker pods that exist."),
    (
        Quantity::ReplicasDesired,
        "soloist_taskqueue_replicas_desired",
        "Worker pods that the last decision asked for.",
    ),
    (
        Quantity::ReplicasLeaving,
        "soloist_taskqueue_replicas_leaving",
        "Worker pods that take no more tasks because they are to go.",
    ),
    (
        Quantity::ReplicasMin,
        "soloist_taskqueue_replicas_min",
        "Fewest workers, by the spec and the schedule that holds.",
    ),
    (
        Quantity::ReplicasMax,
        "soloist_taskqueue_replicas_max",
        "Most workers, by the spec and the schedule that holds.",
    ),
    (
        Quantity::OldestWait,
        "soloist_taskqueue_oldest_wait_seconds",
        "How long the oldest message has waited for a worker.",
    ),
    (
        Quantity::ObservationAge,
        "soloist_observation_age_seconds",
        "Age of the oldest queue reading that decisions on a TaskQueue rest on.",
    ),
];

const CONDITION: (&str, &str) =
    ("soloist_taskqueue_condition", "Condition of a TaskQueue: 1 True, 0 False, -1 Unknown.");

/// The numbers of all TaskQueues, by their labels as they stand in a scrape.
#[derive(Default)]
pub(super) struct TaskQueues(Mutex<BTreeMap<String, Numbers>>);

#[derive(Default)]
struct Numbers {
    quantities: [Option<f64>; QUANTITIES.len()],
    conditions: [Option<i8>; CONDITIONS.len()],
}

impl TaskQueues {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Numbers>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// States quantities of a TaskQueue, or that they aren't known.
    pub(super) fn set(&self, namespace: &str, task_queue: &str, quantities: &[(Quantity, Option<f64>)]) {
        let mut all = self.all();
        let numbers = all.entry(labels(namespace, task_queue)).or_default();
        for (quantity, value) in quantities {
            numbers.quantities[*quantity as usize] = *value;
        }
    }

    /// A quantity of a TaskQueue, if it is known.
    #[cfg(test)]
    pub(super) fn get(&self, namespace: &str, task_queue: &str, quantity: Quantity) -> Option<f64> {
        self.all().get(&labels(namespace, task_queue))?.quantities[quantity as usize]
    }

    /// States a condition of a TaskQueue.
    pub(super) fn set_condition(&self, namespace: &str, task_queue: &str, condition: &str, value: i8) {
        if let Some(index) = CONDITIONS.iter().position(|known| *known == condition) {
            let mut all = self.all();
            all.entry(labels(namespace, task_queue)).or_default().conditions[index] = Some(value);
        }
    }

    /// Removes the series of a TaskQueue.
    pub(super) fn forget(&self, namespace: &str, task_queue: &str) {
        self.all().remove(&labels(namespace, task_queue));
    }

    /// Appends all series, in Prometheus' text format.
    pub(super) fn render(&self, text: &mut String) {
        let all = self.all();
        for (quantity, name, help) in QUANTITIES {
            let known = |numbers: &Numbers| numbers.quantities[quantity as usize];
            let series = all.iter().filter_map(|(labels, numbers)| Some((labels, known(numbers)?)));
            family(text, (name, help), series.map(|(labels, value)| ("", labels, value)));
        }
        let conditions = CONDITIONS.map(|condition| format!("condition=\"{condition}\","));
        let series = all.iter().flat_map(|(labels, numbers)| {
            let stated = conditions.iter().zip(numbers.conditions);
            stated.filter_map(move |(condition, value)| Some((condition.as_str(), labels, value?.into())))
        });
        family(text, CONDITION, series);
    }
}

/// The labels of a TaskQueue. Kubernetes allows nothing in names that would have to be escaped.
fn labels(namespace: &str, task_queue: &str) -> String {
    format!("namespace=\"{namespace}\",taskqueue=\"{task_queue}\"")
}

/// Appends a metric with its series, each with a label of its own, those of the TaskQueue, and the number.
fn family<'a>(
    text: &mut String,
    (name, help): (&str, &str),
    series: impl Iterator<Item = (&'a str, &'a String, f64)>,
) {
    let mut series = series.peekable();
    if series.peek().is_none() {
        return;
    }
    // Writing to a string can't fail.
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
    for (own, labels, value) in series {
        let _ = writeln!(text, "{name}{{{own}{labels}}} {value}");
    }
}
