//! Exceptions as results carry them: a Python class named by module and type, and the arguments of its constructor.

use crate::repr;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::fmt;

/// An exception in the form that Celery stores: what a failed, retried or revoked task leaves as its result.
///
/// A Python reader finds the class among the modules it has imported; when there is none it makes a class of that name,
/// so any error of ours surfaces there by its name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exception {
    /// Class name, such as `ValueError`: a Python identifier.
    pub exc_type: String,
    /// Arguments of the constructor.
    pub exc_message: ExceptionMessage,
    /// Module of the class, such as `builtins`.
    pub exc_module: Option<String>,
}

/// What an exception was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ExceptionMessage {
    /// The constructor's arguments.
    Arguments(Vec<Value>),
    /// A text, from older writers.
    Text(String),
    /// Anything else that was written there.
    Other(Value),
}

impl Exception {
    /// An exception of a class, with its arguments.
    #[must_use]
    pub fn new(module: &str, name: &str, arguments: Vec<Value>) -> Self {
        Self {
            exc_type: name.to_owned(),
            exc_message: ExceptionMessage::Arguments(arguments),
            exc_module: Some(module.to_owned()),
        }
    }

    /// One of Python's own exceptions, such as `ValueError`, with a message.
    #[must_use]
    pub fn builtin(name: &str, message: impl Into<String>) -> Self {
        Self::new("builtins", name, vec![Value::String(message.into())])
    }

    /// `celery.exceptions.NotRegistered`: no task of this name.
    #[must_use]
    pub fn not_registered(task: &str) -> Self {
        Self::celery("NotRegistered", vec![task.into()])
    }

    /// `celery.exceptions.TaskRevokedError`: the reason is `revoked`, `expired` or `terminated`.
    #[must_use]
    pub fn task_revoked(reason: &str) -> Self {
        Self::celery("TaskRevokedError", vec![reason.into()])
    }

    /// `celery.exceptions.InvalidTaskError`: the message is not a task, or its fields contradict the protocol.
    #[must_use]
    pub fn invalid_task(message: impl Into<String>) -> Self {
        Self::celery("InvalidTaskError", vec![Value::String(message.into())])
    }

    /// `celery.exceptions.MaxRetriesExceededError`.
    #[must_use]
    pub fn max_retries_exceeded(message: impl Into<String>) -> Self {
        Self::celery("MaxRetriesExceededError", vec![Value::String(message.into())])
    }

    /// `celery.exceptions.Reject`: the task refused its message.
    #[must_use]
    pub fn reject(reason: impl Into<String>, requeue: bool) -> Self {
        Self::celery("Reject", vec![Value::String(reason.into()), requeue.into()])
    }

    /// `celery.exceptions.ChordError`: a member of a chord's header failed.
    #[must_use]
    pub fn chord(message: impl Into<String>) -> Self {
        Self::celery("ChordError", vec![Value::String(message.into())])
    }

    /// `billiard.exceptions.TimeLimitExceeded`: killed at the hard limit, in seconds.
    #[must_use]
    pub fn time_limit_exceeded(seconds: f64) -> Self {
        Self::new("billiard.exceptions", "TimeLimitExceeded", vec![crate::request::number(seconds)])
    }

    /// `billiard.exceptions.SoftTimeLimitExceeded`: the task did not handle its soft limit.
    #[must_use]
    pub fn soft_time_limit_exceeded() -> Self {
        Self::new("billiard.exceptions", "SoftTimeLimitExceeded", Vec::new())
    }

    /// `billiard.exceptions.WorkerLostError`: the process that ran the task died.
    #[must_use]
    pub fn worker_lost(message: impl Into<String>) -> Self {
        Self::new("billiard.exceptions", "WorkerLostError", vec![Value::String(message.into())])
    }

    /// `kombu.exceptions.ContentDisallowed`: a content type that isn't accepted.
    #[must_use]
    pub fn content_disallowed(message: impl Into<String>) -> Self {
        Self::new("kombu.exceptions", "ContentDisallowed", vec![Value::String(message.into())])
    }

    /// `kombu.exceptions.DecodeError`: a body that can't be read.
    #[must_use]
    pub fn decode_error(message: impl Into<String>) -> Self {
        Self::new("kombu.exceptions", "DecodeError", vec![Value::String(message.into())])
    }

    fn celery(name: &str, arguments: Vec<Value>) -> Self {
        Self::new("celery.exceptions", name, arguments)
    }

    /// Python's display form, which events carry: `ValueError('boom', 3)`.
    #[must_use]
    pub fn repr(&self) -> String {
        let arguments = match &self.exc_message {
            ExceptionMessage::Arguments(arguments) => repr::tuple(arguments),
            ExceptionMessage::Text(text) => format!("({},)", repr::string(text)),
            ExceptionMessage::Other(value) => format!("({},)", repr::value(value)),
        };
        // A call has no comma after a single argument, unlike a tuple.
        let arguments = arguments.strip_suffix(",)").map_or(arguments.clone(), |call| format!("{call})"));
        format!("{}{arguments}", self.exc_type)
    }

    /// Python's `str()` of the exception: its message alone.
    #[must_use]
    pub fn message(&self) -> String {
        let plain = |value: &Value| value.as_str().map_or_else(|| repr::value(value), str::to_owned);
        match &self.exc_message {
            ExceptionMessage::Arguments(arguments) => match arguments.as_slice() {
                [] => String::new(),
                [only] => plain(only),
                several => repr::tuple(several),
            },
            ExceptionMessage::Text(text) => text.clone(),
            ExceptionMessage::Other(value) => plain(value),
        }
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message() {
            message if message.is_empty() => formatter.write_str(&self.exc_type),
            message => write!(formatter, "{}: {message}", self.exc_type),
        }
    }
}

impl std::error::Error for Exception {}

impl<'de> Deserialize<'de> for Exception {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields {
            exc_type: String,
            #[serde(default = "no_arguments")]
            exc_message: ExceptionMessage,
            #[serde(default)]
            exc_module: Option<String>,
        }
        fn no_arguments() -> ExceptionMessage {
            ExceptionMessage::Arguments(Vec::new())
        }
        let Fields { exc_type, exc_message, exc_module } = Fields::deserialize(deserializer)?;
        Ok(Self { exc_type, exc_message, exc_module })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn is_stored_as_celery_stores_it() {
        let exception = Exception::new("builtins", "ValueError", vec!["boom".into(), 3.into()]);
        let text = r#"{"exc_type":"ValueError","exc_message":["boom",3],"exc_module":"builtins"}"#;
        assert_eq!(serde_json::to_string(&exception).unwrap(), text);
        assert_eq!(serde_json::from_str::<Exception>(text).unwrap(), exception);
    }

    #[test]
    fn older_writers_leave_a_text_or_no_module() {
        let exception: Exception =
            serde_json::from_value(json!({"exc_type": "E", "exc_message": "boom"})).unwrap();
        assert_eq!(exception.exc_message, ExceptionMessage::Text("boom".into()));
        assert_eq!(exception.repr(), "E('boom')");
        assert_eq!(exception.message(), "boom");
    }

    #[test]
    fn display_forms_are_pythons() {
        assert_eq!(Exception::reject("nope", false).repr(), "Reject('nope', False)");
        assert_eq!(Exception::soft_time_limit_exceeded().repr(), "SoftTimeLimitExceeded()");
        assert_eq!(Exception::time_limit_exceeded(2.0).repr(), "TimeLimitExceeded(2)");
        assert_eq!(Exception::builtin("ValueError", "boom").to_string(), "ValueError: boom");
        assert_eq!(Exception::soft_time_limit_exceeded().to_string(), "SoftTimeLimitExceeded");
    }
}
