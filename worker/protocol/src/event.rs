//! Events: what workers tell monitors over the `celeryev` exchange.

use crate::Map;
use serde::{Deserialize, Serialize};

/// The topic exchange that events go to, durable.
pub const EXCHANGE: &str = "celeryev";
/// Seconds between two heartbeats of a worker; a reader gives it up after twice that.
pub const HEARTBEAT_SECONDS: f64 = 2.0;

/// An event with the fields that all of them carry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Node name of the worker, or `gen<pid>@<host>` of a client.
    pub hostname: String,
    /// Hours west of UTC of the sender's clock; ours is always 0.
    #[serde(default)]
    pub utcoffset: f64,
    /// Process id of the sender.
    #[serde(default)]
    pub pid: i64,
    /// Logical clock of the sender.
    #[serde(default)]
    pub clock: u64,
    /// Seconds since 1970.
    pub timestamp: f64,
    /// The type, and what comes with it.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Types of events, with their own fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum EventKind {
    /// A worker has started.
    WorkerOnline(WorkerState),
    /// A worker is alive.
    WorkerHeartbeat(WorkerState),
    /// A worker stops.
    WorkerOffline(WorkerState),
    /// A client has sent a task.
    TaskSent(TaskSent),
    /// A worker has a task's message.
    TaskReceived(TaskReceived),
    /// A worker has begun to run a task.
    TaskStarted {
        /// Id of the task.
        uuid: String,
    },
    /// A task has returned a value.
    TaskSucceeded {
        /// Id of the task.
        uuid: String,
        /// Display form of the value.
        result: String,
        /// Seconds it ran. Monitors need the number.
        runtime: f64,
    },
    /// A task has raised an exception.
    TaskFailed {
        /// Id of the task.
        uuid: String,
        /// Display form of the exception, see [`Exception::repr`](crate::Exception::repr).
        exception: String,
        /// Its traceback.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        traceback: Option<String>,
    },
    /// A task will be run again.
    TaskRetried {
        /// Id of the task.
        uuid: String,
        /// Display form of the exception.
        exception: String,
        /// Its traceback.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        traceback: Option<String>,
    },
    /// A task was cancelled, or has expired.
    TaskRevoked {
        /// Id of the task.
        uuid: String,
        /// Whether it was running.
        terminated: bool,
        /// Signal that it was stopped by.
        signum: Option<i32>,
        /// Whether it has expired.
        expired: bool,
    },
    /// A task has refused its message.
    TaskRejected {
        /// Id of the task.
        uuid: String,
        /// Whether the message went back to its queue.
        requeue: bool,
    },
    /// Any other event.
    #[serde(untagged)]
    Other(Map),
}

/// What a worker says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerState {
    /// Seconds between two heartbeats.
    pub freq: f64,
    /// Number of tasks being run. Unknown, not zero, in the extra heartbeat that Python sends on command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<u32>,
    /// Number of tasks begun since the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processed: Option<u64>,
    /// The machine's load averages over 1, 5 and 15 minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loadavg: Option<[f64; 3]>,
    /// Name of the software.
    #[serde(default)]
    pub sw_ident: String,
    /// Version of the software.
    #[serde(default)]
    pub sw_ver: String,
    /// Operating system.
    #[serde(default)]
    pub sw_sys: String,
}

/// A task that a client has sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskSent {
    /// Id of the task.
    pub uuid: String,
    /// Its name.
    pub name: Option<String>,
    /// Display form of the positional arguments.
    pub args: Option<String>,
    /// Display form of the keyword arguments.
    pub kwargs: Option<String>,
    /// Id of the workflow.
    pub root_id: Option<String>,
    /// Id of the task that sent it.
    pub parent_id: Option<String>,
    /// How often it was retried.
    pub retries: u32,
    /// Not to be run before.
    pub eta: Option<String>,
    /// Not to be started after.
    pub expires: Option<String>,
    /// Queue it was sent to.
    pub queue: Option<String>,
    /// Exchange it was sent to.
    pub exchange: Option<String>,
    /// Routing key it was sent with.
    pub routing_key: Option<String>,
}

/// A task that a worker has the message of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskReceived {
    /// Id of the task.
    pub uuid: String,
    /// Its name, or what it is shown as.
    pub name: Option<String>,
    /// Display form of the positional arguments.
    pub args: Option<String>,
    /// Display form of the keyword arguments.
    pub kwargs: Option<String>,
    /// Id of the workflow.
    pub root_id: Option<String>,
    /// Id of the task that sent it.
    pub parent_id: Option<String>,
    /// How often it was retried.
    pub retries: u32,
    /// Not to be run before.
    pub eta: Option<String>,
    /// Not to be started after.
    pub expires: Option<String>,
}

impl EventKind {
    /// Celery's name of the type: `task-failed`.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::WorkerOnline(_) => "worker-online",
            Self::WorkerHeartbeat(_) => "worker-heartbeat",
            Self::WorkerOffline(_) => "worker-offline",
            Self::TaskSent(_) => "task-sent",
            Self::TaskReceived(_) => "task-received",
            Self::TaskStarted { .. } => "task-started",
            Self::TaskSucceeded { .. } => "task-succeeded",
            Self::TaskFailed { .. } => "task-failed",
            Self::TaskRetried { .. } => "task-retried",
            Self::TaskRevoked { .. } => "task-revoked",
            Self::TaskRejected { .. } => "task-rejected",
            Self::Other(fields) => fields.get("type").and_then(|name| name.as_str()).unwrap_or_default(),
        }
    }

    /// Routing key that the event is published with: `task.failed`.
    #[must_use]
    pub fn routing_key(&self) -> String {
        self.name().replace('-', ".")
    }
}

impl Event {
    /// The body to publish.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an event has string keys only")
    }

    /// Reads a body: one event, or the array of them that Python workers send.
    ///
    /// # Errors
    /// When it is neither.
    pub fn decode(body: &[u8]) -> serde_json::Result<Vec<Self>> {
        if body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
            serde_json::from_slice(body)
        } else {
            serde_json::from_slice(body).map(|event| vec![event])
        }
    }
}
