//! Results: what a worker leaves under a task's id, and where.

use crate::content::{self, ContentError, Limits};
use crate::{Exception, Map, date};
use jiff::Timestamp;
use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// How long Celery keeps results by default, in seconds: one day.
pub const EXPIRES_SECONDS: u64 = 86_400;

/// Redis key, and channel, of a task's result.
#[must_use]
pub fn task_key(task_id: &str) -> String {
    format!("celery-task-meta-{task_id}")
}

/// Redis key of a saved group's results.
#[must_use]
pub fn group_key(group_id: &str) -> String {
    format!("celery-taskset-meta-{group_id}")
}

/// Where a task is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Nothing is known of it: never stored.
    Pending,
    /// A worker has it: in events only.
    Received,
    /// A worker runs it.
    Started,
    /// It will be run again.
    Retry,
    /// It returned a value.
    Success,
    /// It raised an exception.
    Failure,
    /// It was cancelled, or expired.
    Revoked,
    /// Its message was refused: internal to workers.
    Rejected,
    /// It leaves no state: internal to workers.
    Ignored,
    /// A state that the task made up, such as `PROGRESS`.
    Custom(String),
}

impl State {
    /// Celery's name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Pending => "PENDING",
            Self::Received => "RECEIVED",
            Self::Started => "STARTED",
            Self::Retry => "RETRY",
            Self::Success => "SUCCESS",
            Self::Failure => "FAILURE",
            Self::Revoked => "REVOKED",
            Self::Rejected => "REJECTED",
            Self::Ignored => "IGNORED",
            Self::Custom(name) => name,
        }
    }

    /// Whether nothing follows: success, failure or revoked.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Success | Self::Failure | Self::Revoked)
    }

    /// Whether its result is an exception: failure, retry or revoked.
    #[must_use]
    pub fn is_exception(&self) -> bool {
        matches!(self, Self::Failure | Self::Retry | Self::Revoked)
    }
}

impl From<&str> for State {
    fn from(name: &str) -> Self {
        match name {
            "PENDING" => Self::Pending,
            "RECEIVED" => Self::Received,
            "STARTED" => Self::Started,
            "RETRY" => Self::Retry,
            "SUCCESS" => Self::Success,
            "FAILURE" => Self::Failure,
            "REVOKED" => Self::Revoked,
            "REJECTED" => Self::Rejected,
            "IGNORED" => Self::Ignored,
            other => Self::Custom(other.to_owned()),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for State {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name: Cow<'de, str> = Deserialize::deserialize(deserializer)?;
        Ok(Self::from(name.as_ref()))
    }
}

/// A task's stored state and result, in Celery's order of keys.
#[derive(Clone, Debug)]
pub struct TaskMeta {
    /// Where the task is in its life.
    pub status: State,
    /// The value returned, as JSON text; an exception for the states that are one.
    pub result: Box<RawValue>,
    /// Traceback of the exception.
    pub traceback: Option<String>,
    /// What the task sent in turn.
    pub children: Option<Vec<ResultTuple>>,
    /// When it reached a final state.
    pub date_done: Option<Timestamp>,
    /// Id of its group.
    pub group_id: Option<String>,
    /// Id of the task that sent it.
    pub parent_id: Option<String>,
    /// What is added when extended results are on.
    pub extended: Option<Box<Extended>>,
    /// Id of the task.
    pub task_id: String,
}

/// What a result says of its task when extended results are on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Extended {
    /// Name of the task.
    pub name: Option<String>,
    /// Positional arguments.
    pub args: Option<Value>,
    /// Keyword arguments.
    pub kwargs: Option<Value>,
    /// Node name of the worker.
    pub worker: Option<String>,
    /// How often it was retried.
    pub retries: Option<u32>,
    /// Routing key that it was delivered with.
    pub queue: Option<String>,
    /// Names of the stamps, and the stamps by name.
    #[serde(flatten)]
    pub stamps: Map,
}

impl TaskMeta {
    /// A meta of any state with a JSON result, at no time yet.
    #[must_use]
    pub fn new(task_id: impl Into<String>, status: State, result: Box<RawValue>) -> Self {
        Self {
            status,
            result,
            traceback: None,
            children: None,
            date_done: None,
            group_id: None,
            parent_id: None,
            extended: None,
            task_id: task_id.into(),
        }
    }

    /// A value returned. Its children are an empty list until the task's are known.
    #[must_use]
    pub fn success(task_id: impl Into<String>, result: Box<RawValue>, done: Timestamp) -> Self {
        let meta = Self::new(task_id, State::Success, result);
        Self { children: Some(Vec::new()), date_done: Some(done), ..meta }
    }

    /// An exception raised.
    #[must_use]
    pub fn failure(
        task_id: impl Into<String>,
        exception: &Exception,
        traceback: Option<String>,
        done: Timestamp,
    ) -> Self {
        let meta = Self::new(task_id, State::Failure, raw(exception));
        Self { traceback, children: Some(Vec::new()), date_done: Some(done), ..meta }
    }

    /// Cancelled or expired; the reason is `revoked`, `expired` or `terminated`.
    #[must_use]
    pub fn revoked(task_id: impl Into<String>, reason: &str, done: Timestamp) -> Self {
        let meta = Self::new(task_id, State::Revoked, raw(&Exception::task_revoked(reason)));
        Self { children: Some(Vec::new()), date_done: Some(done), ..meta }
    }

    /// To be run again, because of an exception.
    #[must_use]
    pub fn retry(task_id: impl Into<String>, cause: Option<&Exception>, traceback: Option<String>) -> Self {
        let meta = Self::new(task_id, State::Retry, raw(&cause));
        Self { traceback, children: Some(Vec::new()), ..meta }
    }

    /// Being run by a process of a node.
    #[must_use]
    pub fn started(task_id: impl Into<String>, pid: u32, node: &str) -> Self {
        #[derive(Serialize)]
        struct Where<'a> {
            pid: u32,
            hostname: &'a str,
        }
        let meta = Self::new(task_id, State::Started, raw(&Where { pid, hostname: node }));
        Self { children: Some(Vec::new()), ..meta }
    }

    /// Reads the result as a type.
    ///
    /// # Errors
    /// When it doesn't fit the type.
    pub fn result_as<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(self.result.get())
    }

    /// The exception, for a state that is one.
    #[must_use]
    pub fn exception(&self) -> Option<Exception> {
        self.status.is_exception().then(|| self.result_as::<Option<Exception>>().ok().flatten()).flatten()
    }

    /// The JSON text to store.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a meta has string keys only")
    }

    /// Reads a stored text, also one that Celery 5.7 has compressed.
    ///
    /// # Errors
    /// When it isn't a task's meta, or its compression is unknown or damaged.
    pub fn decode(text: &[u8]) -> serde_json::Result<Self> {
        match text.strip_prefix(COMPRESSED) {
            None => serde_json::from_slice(text),
            Some(compressed) => {
                serde_json::from_slice(&decompress(compressed).map_err(serde_json::Error::custom)?)
            }
        }
    }
}

/// What compressed results begin with; the name of the compression follows, a NUL, and the compressed text.
const COMPRESSED: &[u8] = b"\0celery-compressed\0";

fn decompress(compressed: &[u8]) -> Result<Vec<u8>, ContentError> {
    let end = compressed.iter().position(|byte| *byte == 0).unwrap_or(compressed.len());
    let (name, text) = compressed.split_at(end);
    let (name, text) = (String::from_utf8_lossy(name), text.get(1..).unwrap_or_default());
    content::expand(&name, text, Limits::default().decompressed_bytes)
}

fn raw(value: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("exceptions have string keys only")
}

impl Serialize for TaskMeta {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Fields<'a> {
            status: &'a State,
            result: &'a RawValue,
            traceback: &'a Option<String>,
            children: &'a Option<Vec<ResultTuple>>,
            date_done: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            group_id: &'a Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            parent_id: &'a Option<String>,
            #[serde(flatten)]
            extended: Option<&'a Extended>,
            task_id: &'a str,
        }
        Fields {
            status: &self.status,
            result: &self.result,
            traceback: &self.traceback,
            children: &self.children,
            date_done: self.date_done.map(date::format),
            group_id: &self.group_id,
            parent_id: &self.parent_id,
            extended: self.extended.as_deref(),
            task_id: &self.task_id,
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for TaskMeta {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // By hand, because a flattened struct can't hold raw JSON.
        struct Meta;
        impl<'de> Visitor<'de> for Meta {
            type Value = TaskMeta;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a task's result object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TaskMeta, A::Error> {
                let mut meta = TaskMeta::new("", State::Pending, raw(&()));
                let mut extended = Map::new();
                let mut has_status = false;
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    match key.as_ref() {
                        "status" => {
                            meta.status = map.next_value()?;
                            has_status = true;
                        }
                        "result" => meta.result = map.next_value()?,
                        "traceback" => meta.traceback = map.next_value()?,
                        "children" => meta.children = map.next_value()?,
                        "date_done" => {
                            let text: Option<Cow<'de, str>> = map.next_value()?;
                            meta.date_done =
                                text.map(|text| date::parse(&text)).transpose().map_err(A::Error::custom)?;
                        }
                        "group_id" => meta.group_id = map.next_value()?,
                        "parent_id" => meta.parent_id = map.next_value()?,
                        "task_id" => meta.task_id = map.next_value()?,
                        _ => {
                            extended.insert(key.into_owned(), map.next_value()?);
                        }
                    }
                }
                if !has_status {
                    return Err(A::Error::missing_field("status"));
                }
                if !extended.is_empty() {
                    let extended =
                        serde_json::from_value(Value::Object(extended)).map_err(A::Error::custom)?;
                    meta.extended = Some(Box::new(extended));
                }
                Ok(meta)
            }
        }
        deserializer.deserialize_map(Meta)
    }
}

/// A handle to a result: `[[id, parent], null]` for a task, `[[id, parent], [member, ...]]` for a group.
#[derive(Clone, Debug, PartialEq)]
pub struct ResultTuple {
    /// Id of the task, or of the group.
    pub id: String,
    /// Handle of what came before it.
    pub parent: Option<Box<ResultTuple>>,
    /// Handles of a group's members; none for a task.
    pub members: Option<Vec<ResultTuple>>,
}

impl ResultTuple {
    /// The handle of a task without a parent.
    #[must_use]
    pub fn task(id: impl Into<String>) -> Self {
        Self { id: id.into(), parent: None, members: None }
    }

    /// The handle of a group without a parent.
    #[must_use]
    pub fn group(id: impl Into<String>, members: Vec<ResultTuple>) -> Self {
        Self { id: id.into(), parent: None, members: Some(members) }
    }
}

impl Serialize for ResultTuple {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ((&self.id, &self.parent), &self.members).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ResultTuple {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        type Parts = ((String, Option<Box<ResultTuple>>), Option<Vec<ResultTuple>>);
        let ((id, parent), members) = Parts::deserialize(deserializer)?;
        Ok(Self { id, parent, members })
    }
}
