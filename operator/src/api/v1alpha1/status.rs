//! `status`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::for_kubernetes;

/// What the operator saw and did last. It can be rebuilt from the cluster and the broker at any time.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = for_kubernetes)]
pub struct TaskQueueStatus {
    /// The metadata.generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// What works and what does not: Ready (the summary), BrokerReachable, QueuesDeclared, WorkersAvailable and ScalingActive. The
    /// reasons come from a closed list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,

    /// Worker pods that exist.
    #[serde(default)]
    pub replicas: u16,

    /// Worker pods that are ready for tasks.
    #[serde(default)]
    pub ready_replicas: u16,

    /// Worker pods that the last decision asked for.
    #[serde(default)]
    pub desired_replicas: u16,

    /// Label selector of the worker pods, for `kubectl scale` and for autoscalers.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,

    /// Messages that wait in the queues for a worker. Absent while the broker doesn't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<u64>,

    /// Tasks that workers run now, those of pods that are about to go included. Absent while not every worker says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<u32>,

    /// Where the queues are: the broker's address without credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<String>,

    /// Why the number of workers is what it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<DecisionStatus>,
}

/// Why the number of workers is what it is: what was observed, what follows from it, and the bounds. Averages are rounded to two digits.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecisionStatus {
    /// The number decided on, or recommended.
    pub replicas: u16,

    /// What the number rests on, from a closed list, for example Backlog, Load, Stabilizing, Paused or BacklogUnknown.
    pub reason: String,

    /// The decision as a sentence: `37 = ceil((350 ready + 20 running) / 10)`.
    pub message: String,

    /// Messages that waited. Absent if that wasn't known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<u64>,

    /// Tasks that ran.
    #[serde(default)]
    pub running: u32,

    /// Seconds that the oldest waiting message has waited.
    #[serde(default)]
    pub oldest_wait_seconds: f64,

    /// Tasks that arrive, a second.
    #[serde(default)]
    pub arrival_rate: f64,

    /// Seconds over which arrivalRate is an average: fewer after a change of the load.
    #[serde(default)]
    pub arrival_rate_window_seconds: f64,

    /// Seconds that a task takes.
    #[serde(default)]
    pub service_seconds: f64,

    /// Seconds from the creation of a pod to its first task, the 95th percentile.
    #[serde(default)]
    pub startup_seconds: f64,

    /// Workers that are busy on average: arrivalRate times serviceSeconds.
    #[serde(default)]
    pub offered_load: f64,

    /// Workers for what arrives.
    #[serde(default)]
    pub load_workers: u32,

    /// Workers for what waits, so that it starts in time.
    #[serde(default)]
    pub backlog_workers: u32,

    /// Workers that could have something to do. More are never wanted.
    #[serde(default)]
    pub useful_workers: u32,

    /// Workers wanted: the greater of loadWorkers and backlogWorkers, but no more than usefulWorkers.
    #[serde(default)]
    pub wanted: u32,

    /// The greatest number wanted within the last windowSeconds. Fewer workers than this are not asked for.
    #[serde(default)]
    pub wanted_within_window: u32,

    /// Seconds for which a number that was wanted is kept.
    #[serde(default)]
    pub window_seconds: f64,

    /// Fewest workers at this time, schedules considered.
    #[serde(default)]
    pub min_replicas: u16,

    /// Most workers at this time, schedules considered.
    #[serde(default)]
    pub max_replicas: u16,
}
