//! What workers answer: the objects that monitors take apart.

use crate::Map;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// A task that a worker has: in the answers to `active`, `reserved`, `scheduled` and `query_task`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskInfo {
    /// Id of the task.
    pub id: String,
    /// Its name, or what it is shown as.
    pub name: String,
    /// Positional arguments; their display form where a safe answer was asked for.
    pub args: Value,
    /// Keyword arguments, likewise.
    pub kwargs: Value,
    /// Its name.
    #[serde(rename = "type")]
    pub task: String,
    /// Node name of the worker.
    pub hostname: String,
    /// When it was begun, in seconds since 1970.
    pub time_start: Option<f64>,
    /// Whether its message was acknowledged.
    pub acknowledged: bool,
    /// How its message came.
    pub delivery_info: DeliveryInfo,
    /// Process that runs it.
    pub worker_pid: Option<u32>,
}

/// How a message came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryInfo {
    /// Exchange that it was published to.
    pub exchange: String,
    /// Routing key that it was published with.
    pub routing_key: String,
    /// Its priority.
    pub priority: Option<u8>,
    /// Whether it was delivered before.
    pub redelivered: bool,
}

/// A task that waits for its time: in the answer to `scheduled`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScheduledTask {
    /// When it is due.
    pub eta: String,
    /// A number of the timer's, always 6.
    pub priority: i32,
    /// The task.
    pub request: TaskInfo,
}

/// A queue that a worker consumes: in the answer to `active_queues`. Flower reads most keys, so that all are written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueueInfo {
    /// Its name.
    pub name: String,
    /// Exchange that it is bound to.
    pub exchange: ExchangeInfo,
    /// Key that it is bound with.
    pub routing_key: String,
    /// Arguments that it was declared with.
    pub queue_arguments: Option<Map>,
    /// Arguments of the binding.
    pub binding_arguments: Option<Map>,
    /// Arguments of the consumer.
    pub consumer_arguments: Option<Map>,
    /// Whether it survives a restart of the broker.
    pub durable: bool,
    /// Whether it belongs to one connection.
    pub exclusive: bool,
    /// Whether it goes away with its last consumer.
    pub auto_delete: bool,
    /// Whether messages are taken without acknowledgement.
    pub no_ack: bool,
    /// Another name, always none.
    pub alias: Option<String>,
    /// More bindings, always empty.
    pub bindings: Vec<Value>,
    /// Whether it is left to others to declare.
    pub no_declare: Option<bool>,
    /// Seconds until the unused queue goes away.
    pub expires: Option<f64>,
    /// Seconds that a message may wait.
    pub message_ttl: Option<f64>,
    /// Number of messages that it holds at most.
    pub max_length: Option<u64>,
    /// Bytes that it holds at most.
    pub max_length_bytes: Option<u64>,
    /// Highest priority.
    pub max_priority: Option<u8>,
}

/// An exchange that a queue is bound to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExchangeInfo {
    /// Its name.
    pub name: String,
    /// `direct`, `topic` or `fanout`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Arguments that it was declared with.
    pub arguments: Option<Map>,
    /// Whether it survives a restart of the broker.
    pub durable: bool,
    /// Whether it has to exist already.
    pub passive: bool,
    /// Whether it goes away with its last queue.
    pub auto_delete: bool,
    /// How messages to it are kept.
    pub delivery_mode: Option<u8>,
    /// Whether it is left to others to declare.
    pub no_declare: bool,
}

impl QueueInfo {
    /// A queue as Celery declares it by default: durable, bound to a direct exchange of its own name.
    #[must_use]
    pub fn durable(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            exchange: ExchangeInfo {
                name: name.to_owned(),
                kind: "direct".to_owned(),
                arguments: None,
                durable: true,
                passive: false,
                auto_delete: false,
                delivery_mode: None,
                no_declare: false,
            },
            routing_key: name.to_owned(),
            queue_arguments: None,
            binding_arguments: None,
            consumer_arguments: None,
            durable: true,
            exclusive: false,
            auto_delete: false,
            no_ack: false,
            alias: None,
            bindings: Vec::new(),
            no_declare: None,
            expires: None,
            message_ttl: None,
            max_length: None,
            max_length_bytes: None,
            max_priority: None,
        }
    }
}

/// The answer to `stats`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Number of tasks begun, by name.
    pub total: BTreeMap<String, u64>,
    /// Process id of the worker.
    pub pid: u32,
    /// Its logical clock, which Celery writes as a text here.
    pub clock: String,
    /// Seconds since it was started.
    pub uptime: u64,
    /// What runs its tasks.
    pub pool: PoolInfo,
    /// What it is connected to.
    pub broker: BrokerInfo,
    /// How many messages it takes in advance.
    pub prefetch_count: u32,
    /// What it has used of the machine; `"N/A"` where that isn't known.
    pub rusage: Value,
}

/// What runs a worker's tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PoolInfo {
    /// Name of the software.
    pub implementation: String,
    /// Tasks at the same time.
    pub max_concurrency: u32,
    /// Ids of the processes; exporters count them.
    pub processes: Vec<u32>,
    /// Tasks after which a process is replaced.
    pub max_tasks_per_child: Option<u32>,
    /// Whether tasks wait for a free process.
    pub put_guarded_by_semaphore: bool,
    /// Soft and hard time limit in seconds, or nothing.
    pub timeouts: Vec<Option<f64>>,
}

/// What a worker is connected to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BrokerInfo {
    /// Host.
    pub hostname: String,
    /// User.
    pub userid: String,
    /// Virtual host.
    pub virtual_host: String,
    /// Port.
    pub port: u16,
    /// Always false.
    pub insist: bool,
    /// Whether the connection is encrypted.
    pub ssl: Value,
    /// Always `amqp` for RabbitMQ.
    pub transport: String,
    /// Seconds that a connection may take to be made.
    pub connect_timeout: f64,
    /// Options of the transport.
    pub transport_options: Map,
    /// How the user was told.
    pub login_method: Option<String>,
    /// Always none.
    pub uri_prefix: Option<String>,
    /// Seconds between heartbeats.
    pub heartbeat: Option<f64>,
    /// How the next of several brokers is found.
    pub failover_strategy: Option<String>,
    /// Other brokers.
    pub alternates: Vec<String>,
}
