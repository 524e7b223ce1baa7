//! `TaskQueue` of `soloist.dev/v1alpha1`.
//!
//! The comments on the fields are the manual: `kubectl explain taskqueue.spec --recursive` prints them.
#![allow(unreachable_pub, reason = "KubeSchema repeats each struct inside a function to derive its schema")]

mod queues;
mod scaling;
mod status;
mod worker;

use kube::{CustomResource, KubeSchema};
use schemars::transform::transform_subschemas;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};

pub use queues::{BindingSpec, DeadLetterSpec, ExchangeSpec, ExchangeType, Overflow, QueueSpec, QueueType};
pub use scaling::{FallbackSpec, OnDrainTimeout, ScaleDownSpec, ScalingMode, ScalingSpec, ScheduleSpec};
pub use status::{DecisionStatus, TaskQueueStatus};
pub use worker::{ImagePullPolicy, Resources, WorkerSpec};

/// Longest name of a TaskQueue: names made from it (`<name>-worker`) stay within the 63 characters of a label.
pub const MAX_NAME_LENGTH: usize = 52;

/// What a TaskQueue is to be: its broker, its queues, its workers, and how many of them.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "soloist.dev",
    version = "v1alpha1",
    kind = "TaskQueue",
    plural = "taskqueues",
    singular = "taskqueue",
    shortname = "tq",
    category = "soloist",
    namespaced,
    status = "TaskQueueStatus",
    derive = "PartialEq",
    doc = "A TaskQueue is one or more RabbitMQ queues and as many single-task workers as they need: the operator declares the queues, runs a Deployment of workers and moves its replicas with the backlog. The workers speak Celery's protocol.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether everything works; -o wide shows what does not"
    ),
    printcolumn(
        name = "Backlog",
        type_ = "integer",
        json_path = ".status.ready",
        description = "Messages that wait for a worker"
    ),
    printcolumn(
        name = "Running",
        type_ = "integer",
        json_path = ".status.running",
        description = "Tasks that workers run now"
    ),
    printcolumn(
        name = "Replicas",
        type_ = "integer",
        json_path = ".status.replicas",
        description = "Worker pods that exist"
    ),
    printcolumn(
        name = "Desired",
        type_ = "integer",
        json_path = ".status.desiredReplicas",
        description = "Worker pods that the last decision asked for"
    ),
    printcolumn(
        name = "Min",
        type_ = "integer",
        json_path = ".spec.scaling.minReplicas",
        description = "Fewest workers"
    ),
    printcolumn(
        name = "Max",
        type_ = "integer",
        json_path = ".spec.scaling.maxReplicas",
        description = "Most workers"
    ),
    printcolumn(
        name = "Scaling",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"ScalingActive\")].reason",
        description = "Whether the number of workers follows the backlog (Active), or why not"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Broker",
        type_ = "string",
        json_path = ".status.broker",
        description = "Where the queues are",
        priority = "1"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        description = "What works or does not, in words",
        priority = "1"
    ),
    validation = Rule::new("size(self.metadata.name) <= 52").message(
        "metadata.name may have 52 characters at most, so that the names made from it fit into labels"
    ),
    validation = Rule::new(
        "has(self.spec.queues) == has(oldSelf.spec.queues) || ((!has(self.spec.queues) || self.spec.queues.all(q, q.name != self.metadata.name || (q.type == 'classic' && !has(q.maxPriority)))) && (!has(oldSelf.spec.queues) || oldSelf.spec.queues.all(q, q.name != self.metadata.name || (q.type == 'classic' && !has(q.maxPriority)))))"
    ).message(
        "without spec.queues there is a classic one of the TaskQueue's name, whose type and maxPriority can't change: give the queue another name; docs/taskqueue.md (Another type) has the steps"
    )
)]
#[cfg_attr(test, kube(cel))]
#[serde(rename_all = "camelCase")]
#[schemars(transform = for_kubernetes)]
pub struct TaskQueueSpec {
    /// The RabbitMQ broker that holds the queues.
    pub broker: BrokerSpec,

    /// Where workers store the results of tasks. When left out, results are not stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub results: Option<ResultsSpec>,

    /// The queues that the workers consume. When left out: one queue, named as the TaskQueue. Queues are declared on the broker
    /// and declared anew if somebody deletes them; removing one here leaves the queue and its messages on the broker.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".to_owned()]),
        validation = Rule::new("!self.exists(q, q.deadLetter.enabled && self.exists(other, other.name == q.name + '.dead'))")
            .message("a queue here has the name of another one's dead letter queue (`<name>.dead`): rename it, or set deadLetter.enabled to false on the other")
    )]
    pub queues: Vec<QueueSpec>,

    /// What happens to the queues on the broker when the TaskQueue is deleted. It can be changed until the TaskQueue is gone: setting Retain
    /// ends a deletion that waits for the broker.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,

    /// A fixed number of workers, set by hand: while it is set, autoscaling rests and scaling.minReplicas and
    /// scaling.maxReplicas do not apply. `kubectl scale taskqueue NAME --replicas=N` sets it;
    /// `kubectl patch taskqueue NAME --type=json -p '[{"op":"remove","path":"/spec/replicas"}]'` gives the number back to the autoscaler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub replicas: Option<u16>,

    /// The worker pods.
    pub worker: WorkerSpec,

    /// How many workers run, and when that changes.
    pub scaling: ScalingSpec,
}

/// What happens to the queues on the broker when their TaskQueue is deleted. Retain: they stay, with their messages. DeleteIfEmpty: those
/// without messages and consumers go once the workers are gone; the others stay, and an event names them. Delete: they go with all their
/// messages, and so do their dead letter queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// Queues stay.
    #[default]
    Retain,
    /// Queues go, with what is in them.
    Delete,
    /// Queues without messages go.
    DeleteIfEmpty,
}

/// The RabbitMQ broker that holds the queues.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerSpec {
    /// The Secret that says where the broker is and how to log in. Its keys are either username, password, host, port and vhost (as
    /// RabbitMQ's cluster operator writes them), or uri (amqp:// or amqps://). An optional key managementUri says where the management
    /// API is, if not on port 15672 of the same host. A change is noticed within about 30 seconds; nothing needs a restart.
    pub secret_ref: SecretReference,
}

/// The name of a Secret in the namespace of the TaskQueue.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Name of the Secret. It is in the namespace of the TaskQueue.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Where workers store the results of tasks: exactly one of the fields.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.secretRef) != has(self.rpc)").message("spec.results needs exactly one of secretRef (Redis) and rpc"))]
#[serde(rename_all = "camelCase")]
pub struct ResultsSpec {
    /// Results go to Redis. The Secret has the key uri (redis:// or rediss://), or host, port, username, password and db.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretReference>,

    /// Results go back to the caller as messages over the broker (Celery's `rpc://`). Write `rpc: {}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpc: Option<RpcResults>,
}

/// Results over the broker. It has no settings yet.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RpcResults {}

/// Makes a schema what Kubernetes and `kubectl explain` want: no formats such as `uint16`, which Kubernetes doesn't know and warns about
/// (the bounds say the same), and no line breaks within a paragraph, which kubectl would keep.
fn for_kubernetes(schema: &mut Schema) {
    if schema
        .get("format")
        .and_then(|format| format.as_str())
        .is_some_and(|format| format.starts_with("uint"))
    {
        schema.remove("format");
    }
    if let Some(description) = schema.get("description").and_then(|description| description.as_str()) {
        let paragraphs: Vec<_> =
            description.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect();
        schema.insert("description".to_owned(), paragraphs.join("\n\n").into());
    }
    transform_subschemas(&mut (for_kubernetes as fn(&mut Schema)), schema);
}

#[cfg(test)]
mod tests;
