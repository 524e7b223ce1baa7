//! `spec.queues`.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
