//! `TaskQueue` of `soloist.dev/v1alpha1`.
//!
//! The comments on the fields are the manual: `kubectl explain taskqueue.spec --recursive` prints them.
#![allow(unreachable_pub, reason = "KubeSchema repeats each struct inside a function to derive its schema")]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::transform::transform_subschemas;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

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

/// One queue on the broker.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.type != 'quorum' || !has(self.maxPriority)")
        .message("maxPriority works on classic queues only: leave it out, or set type to classic"),
    validation = Rule::new("self.type == 'quorum' || !has(self.deliveryLimit)")
        .message("deliveryLimit works on quorum queues only: leave it out, or set type to quorum"),
    validation = Rule::new("self.type != 'quorum' || !has(self.overflow) || self.overflow != 'rejectPublishDlx'")
        .message("overflow rejectPublishDlx works on classic queues only: use rejectPublish or dropHead"),
    validation = Rule::new("!has(self.overflow) || has(self.maxLength)")
        .message("overflow says what happens beyond maxLength: set maxLength too"),
    validation = Rule::new("!self.name.startsWith('amq.')")
        .message("names that start with `amq.` belong to the broker: choose another name"),
    validation = Rule::new("self.type == oldSelf.type")
        .message("type can't change on an existing queue: make another TaskQueue, whose queue has a new name and this type, let the producers use it, and delete this one when it is empty; docs/taskqueue.md (Another type) has the steps"),
    validation = Rule::new("has(self.maxPriority) == has(oldSelf.maxPriority) && (!has(self.maxPriority) || self.maxPriority == oldSelf.maxPriority)")
        .message("maxPriority can't change on an existing queue: make another TaskQueue, whose queue has a new name and this maxPriority, let the producers use it, and delete this one when it is empty; docs/taskqueue.md (Another type) has the steps"),
)]
#[serde(rename_all = "camelCase")]
pub struct QueueSpec {
    /// Name of the queue on the broker. Producers publish to this name. It can't start with `amq.` or contain a comma or white space.
    #[schemars(length(min = 1, max = 200), regex(pattern = r"^[^,\s]+$"))]
    pub name: String,

    /// classic (the default) is what Celery clients expect without any setting. quorum is replicated over the nodes of a RabbitMQ
    /// cluster; Celery producers then need `task_create_missing_queue_type = "quorum"` (5.6 or newer), or
    /// `queue_arguments={"x-queue-type": "quorum"}` on their Queue (any version). It can't change on an existing queue.
    #[serde(default, rename = "type")]
    pub queue_type: QueueType,

    /// Number of priorities of a classic queue: messages with a higher priority go first. Each priority costs memory and CPU on the
    /// broker; 2 to 10 are usual. Celery clients must declare the queue with the same `x-max-priority`. It can't change on an existing queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 255))]
    pub max_priority: Option<u8>,

    /// Seconds after which a message that no worker took is dead-lettered, or dropped if dead letters are off.
    /// Set through a policy on the broker, which needs the management API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_000_000))]
    pub message_ttl_seconds: Option<u32>,

    /// The most messages that may wait in the queue. Set through a policy on the broker, which needs the management API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_length: Option<u32>,

    /// What happens beyond maxLength.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overflow: Option<Overflow>,

    /// How often a quorum queue delivers a message again before it dead-letters it (or drops it, if dead letters are off). When left
    /// out: the broker's default, which is 20 from RabbitMQ 4.0 on. Set through a policy, which needs the management API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub delivery_limit: Option<u32>,

    /// What happens to messages that are rejected, expire or exceed a limit.
    #[serde(default)]
    pub dead_letter: DeadLetterSpec,

    /// Exchanges that route messages to this queue. When left out: the direct exchange of the same name with the same routing key, as
    /// Celery declares it. Publishing to the default exchange with the name of the queue works always.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub bindings: Vec<BindingSpec>,
}

/// Kind of a queue on the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum QueueType {
    /// On one node of the broker.
    #[default]
    Classic,
    /// Replicated by Raft over the nodes of the broker.
    Quorum,
}

/// What happens beyond maxLength. dropHead (the broker's default): the oldest message is dead-lettered or dropped. rejectPublish:
/// new messages are refused. rejectPublishDlx (classic only): new messages are refused and dead-lettered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Overflow {
    /// Dead-letter or drop the oldest message.
    DropHead,
    /// Refuse new messages.
    RejectPublish,
    /// Refuse new messages and dead-letter them.
    RejectPublishDlx,
}

/// Dead letters of a queue.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterSpec {
    /// Keep rejected, expired and surplus messages in the queue `<name>.dead` (of the same type), which no worker consumes. Set through a
    /// policy on the broker: without the management API the queue is declared, but nothing is sent to it and a condition says so.
    #[serde(default = "enabled")]
    pub enabled: bool,
}

impl Default for DeadLetterSpec {
    fn default() -> Self {
        Self { enabled: enabled() }
    }
}

fn enabled() -> bool {
    true
}

/// One way for messages into a queue.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BindingSpec {
    /// The exchange, which is declared (durable) if it isn't there.
    pub exchange: ExchangeSpec,

    /// The routing key, with `*` and `#` as wildcards for a topic exchange; a fanout exchange doesn't look at it.
    /// When left out: the name of the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub routing_key: Option<String>,
}

/// An exchange on the broker.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExchangeSpec {
    /// Name of the exchange.
    #[schemars(length(min = 1, max = 255))]
    pub name: String,

    /// How the exchange routes: direct (equal routing keys), topic (patterns) or fanout (to every queue).
    #[serde(default, rename = "type")]
    pub exchange_type: ExchangeType,
}

/// How an exchange routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ExchangeType {
    /// To queues bound with the same routing key.
    #[default]
    Direct,
    /// To queues bound with a pattern that the routing key matches.
    Topic,
    /// To every bound queue.
    Fanout,
}

/// The worker pods.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerSpec {
    /// Image of the worker: `soloist-worker`, or one built with the soloist-worker library. A new image is rolled out as by any
    /// Deployment; workers finish their task first.
    #[schemars(length(min = 1, max = 1024))]
    pub image: String,

    /// When the image is pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,

    /// Program to run, instead of the image's entrypoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,

    /// Arguments of the program, instead of the image's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,

    /// Environment variables of the worker container. They win over those that the operator sets (SOLOIST_…).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub env: Vec<EnvVar>,

    /// Secrets and ConfigMaps whose keys become environment variables of the worker container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_from: Vec<EnvFromSource>,

    /// CPU and memory of the worker container. A worker runs one task at a time, so these are the resources of one task.
    #[serde(default)]
    pub resources: Resources,

    /// Seconds that a worker gets to finish its task when its pod is to go (scale-in, rollout, node drain). After that it is killed, and
    /// the broker gives the task to another worker. Make it longer than your longest task.
    #[serde(default = "drain_timeout_seconds")]
    #[schemars(range(min = 0, max = 604_800))]
    pub drain_timeout_seconds: u32,

    /// Everything else about the pods, as metadata and spec of a pod template: labels, nodeSelector, tolerations, volumes, sidecars,
    /// serviceAccountName and so on. It is merged over what the operator makes; items of lists are matched by their key (containers,
    /// volumes and env by name, volumeMounts by mountPath), and the worker container is named `worker`. A field that Kubernetes
    /// doesn't know is refused with a condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "pod_template_overlay")]
    pub template: Option<serde_json::Value>,
}

fn drain_timeout_seconds() -> u32 {
    300
}

impl WorkerSpec {
    /// The pod template overlay as a typed value, or what is wrong with it: a value of the wrong type, or a field that pods do not have.
    pub fn template(&self) -> Result<Option<PodTemplateSpec>, String> {
        let Some(written) = &self.template else { return Ok(None) };
        let typed: PodTemplateSpec =
            serde_path_to_error::deserialize(written).map_err(|error| error.to_string())?;
        let known = serde_json::to_value(&typed).map_err(|error| error.to_string())?;
        match unknown_field("", written, &known) {
            Some(path) => Err(format!("unknown field `{path}`")),
            None => Ok(Some(typed)),
        }
    }
}

/// The first field that was written but does not come back from the typed value.
fn unknown_field(path: &str, written: &serde_json::Value, known: &serde_json::Value) -> Option<String> {
    use serde_json::Value;
    match (written, known) {
        (Value::Object(written), known) => written.iter().find_map(|(name, value)| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match known.get(name) {
                Some(known) => unknown_field(&path, value, known),
                // Typed values leave out what is null or empty: that is not a field that got lost.
                None if is_empty(value) => None,
                None => Some(path),
            }
        }),
        (Value::Array(written), Value::Array(known)) => {
            written.iter().zip(known).enumerate().find_map(|(index, (written, known))| {
                unknown_field(&format!("{path}[{index}]"), written, known)
            })
        }
        _ => None,
    }
}

fn is_empty(value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        _ => false,
    }
}

/// When the image is pulled: Always, IfNotPresent or Never. When left out: as Kubernetes does it (Always for the tag latest,
/// IfNotPresent for any other).
// (For an optional enum, kube takes the description from the type and drops that of the field.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImagePullPolicy {
    /// Before every start.
    Always,
    /// If the node doesn't have it.
    IfNotPresent,
    /// Never: the node must have it.
    Never,
}

impl ImagePullPolicy {
    /// The word that Kubernetes uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// CPU and memory of a container.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the container is guaranteed, and what the scheduler counts: `{cpu: 100m, memory: 64Mi}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub requests: BTreeMap<String, Quantity>,

    /// What the container may use at most. Beyond its memory limit a worker is killed, and the broker gives its task to another one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub limits: BTreeMap<String, Quantity>,
}

impl Default for Resources {
    fn default() -> Self {
        let requests = [("cpu", "100m"), ("memory", "64Mi")];
        Self {
            requests: requests.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned()))).into(),
            limits: BTreeMap::new(),
        }
    }
}

/// How many workers run, and when that changes.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.minReplicas <= self.maxReplicas")
        .message("scaling.minReplicas may not be greater than scaling.maxReplicas"),
    validation = Rule::new("!(has(self.maxWaitSeconds) && has(self.tasksPerWorker))")
        .message("scaling.maxWaitSeconds and scaling.tasksPerWorker exclude each other: say how long a task may wait, or how many tasks there are for one worker"),
    validation = Rule::new("!self.paused || self.mode == 'Auto'")
        .message("scaling.paused holds the number of workers, which modes Recommend and Off leave alone anyway: remove it, or set scaling.mode to Auto"),
    validation = Rule::new("!has(self.fallback) || self.fallback.replicas <= self.maxReplicas")
        .message("scaling.fallback.replicas may not be greater than scaling.maxReplicas"),
    validation = Rule::new("!has(self.schedules) || self.schedules.all(s, (has(s.minReplicas) ? s.minReplicas : self.minReplicas) <= (has(s.maxReplicas) ? s.maxReplicas : self.maxReplicas))")
        .message("in scaling.schedules, minReplicas may not be greater than maxReplicas; what a schedule leaves out is taken from scaling"),
)]
#[serde(rename_all = "camelCase")]
pub struct ScalingSpec {
    /// Fewest workers, also when nothing waits. 0 (the default) means that an idle TaskQueue costs nothing.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10000))]
    pub min_replicas: u16,

    /// Most workers, whatever the backlog.
    #[schemars(range(min = 1, max = 10000))]
    pub max_replicas: u16,

    /// How many seconds a task may wait for a worker. The operator finds out how many tasks arrive, how long they take and how long a
    /// worker takes to start, and runs as few workers as keep the wait. Shorter than a start, it keeps idle workers ready; longer, an
    /// idle TaskQueue costs nothing. When neither this nor tasksPerWorker is given: 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub max_wait_seconds: Option<u32>,

    /// How many tasks there are for one worker, instead of maxWaitSeconds: the number of workers is
    /// (messages ready + tasks running) / tasksPerWorker, rounded up. 1 is the quickest and the most expensive; 10 means that a worker does
    /// about ten tasks of a burst one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub tasks_per_worker: Option<u32>,

    /// Auto (the default): the operator sets the number of workers. Recommend: it says in status.decision what it would set, and leaves
    /// the number to whoever else sets it, such as a HorizontalPodAutoscaler on the workers' Deployment. "Off": it doesn't even say; write it
    /// in quotes, as YAML takes a bare Off for `false`.
    /// spec.replicas counts in every mode.
    #[serde(default)]
    pub mode: ScalingMode,

    /// Hold the number of workers where it is. The backlog is still shown. The annotation `soloist.dev/paused: "true"` does the same, for
    /// those who may not or cannot change the spec, such as where GitOps would change it back.
    #[serde(default)]
    pub paused: bool,

    /// Times at which other bounds hold than minReplicas and maxReplicas: more workers before the working day begins, fewer while a
    /// database is being backed up. Where two of them overlap, the later one in the list counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub schedules: Vec<ScheduleSpec>,

    /// How careful scale-in is. Scale-out is always immediate.
    #[serde(default)]
    pub scale_down: ScaleDownSpec,

    /// How many workers to have at least when the backlog has not been known for long, as when the broker can't be reached. When left
    /// out, the number is held. It only adds workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<FallbackSpec>,
}

/// What the operator does about the number of workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ScalingMode {
    /// It sets it.
    #[default]
    Auto,
    /// It says what it would be.
    Recommend,
    /// Nothing.
    Off,
}

/// A time, again and again, at which other bounds hold.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.minReplicas) || has(self.maxReplicas)").message("a schedule needs minReplicas, maxReplicas, or both"))]
#[serde(rename_all = "camelCase")]
pub struct ScheduleSpec {
    /// When it begins: minute, hour, day of month, month, day of week, as in a crontab. `30 7 * * MON-FRI` is half past seven on working
    /// days.
    #[schemars(length(min = 9, max = 100), regex(pattern = r"^\S+(\s+\S+){4}$"))]
    pub cron: String,

    /// The time zone of cron, by its name in the IANA database, such as Europe/Berlin. When left out: UTC.
    #[serde(default = "utc")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,

    /// How many seconds it lasts.
    #[schemars(range(min = 60, max = 2_678_400))]
    pub duration_seconds: u32,

    /// Fewest workers in that time. When left out: scaling.minReplicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub min_replicas: Option<u16>,

    /// Most workers in that time. When left out: scaling.maxReplicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub max_replicas: Option<u16>,
}

fn utc() -> String {
    "UTC".to_owned()
}

/// How careful scale-in is.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScaleDownSpec {
    /// Workers are taken away only down to the greatest number that was needed within this many seconds, and once in this time at most.
    /// When left out: four times what a worker takes to start, or twice what a task takes (120 at most), whichever is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub stabilization_seconds: Option<u32>,

    /// What becomes of a worker that was told to take no more tasks and isn't done after worker.drainTimeoutSeconds.
    #[serde(default)]
    pub on_drain_timeout: OnDrainTimeout,
}

/// Wait (the default): it is left alone until it is done; an event says so, so that somebody can look. Force: it is deleted, and another
/// worker gets its task after that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnDrainTimeout {
    /// It is left alone until it is done.
    #[default]
    Wait,
    /// It is deleted.
    Force,
}

/// What to do when the backlog has not been known for long.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FallbackSpec {
    /// For how many seconds the backlog must not have been known.
    #[schemars(range(min = 10, max = 86400))]
    pub after_seconds: u32,

    /// Workers to have then, at least.
    #[schemars(range(min = 1, max = 10000))]
    pub replicas: u16,
}

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

fn pod_template_overlay(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "metadata": {
                "type": "object",
                "description": "Labels and annotations of the pods.",
                "x-kubernetes-preserve-unknown-fields": true,
            },
            "spec": {
                "type": "object",
                "description": "Fields of a pod's spec (`kubectl explain pod.spec`).",
                "x-kubernetes-preserve-unknown-fields": true,
            },
        },
    })
}

fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": {
            "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
            "x-kubernetes-int-or-string": true,
        },
    })
}

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
