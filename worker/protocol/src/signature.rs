//! Signatures: calls that are data, carried inside messages as callbacks, chain steps and chord bodies.

mod options;
mod request;

pub use request::{Route, SignatureError};

use crate::Map;
use crate::json::{self, JsonError};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// A task, its arguments and the options to call it with.
///
/// Serialises with all six keys that Celery expects; a signature without `options` makes a Python worker fail.
///
/// ```
/// use celery_protocol::Signature;
/// use std::time::Duration;
///
/// let add = Signature::new("tasks.add").arg(1).arg(2).queue("red").countdown(Duration::from_secs(10));
/// assert_eq!(add.args, [1, 2]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Signature {
    /// Name of the task, or `celery.chain` and so on for a canvas.
    pub task: String,
    /// Positional arguments.
    pub args: Vec<Value>,
    /// Keyword arguments.
    pub kwargs: Map,
    /// Any option of `apply_async`: `task_id`, `queue`, `countdown`, `link`...
    pub options: Map,
    /// `chain`, `group` or `chord` for a canvas, none for a plain task.
    pub subtask_type: Option<String>,
    /// Whether an incoming value (the previous step's result) is left out.
    pub immutable: bool,
    /// Number of parts in a chord body's header, written by Celery 5.0 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chord_size: Option<u64>,
}

impl Signature {
    /// A task without arguments.
    #[must_use]
    pub fn new(task: impl Into<String>) -> Self {
        Self { task: task.into(), ..Self::default() }
    }

    /// Adds a positional argument.
    #[must_use]
    pub fn arg(mut self, value: impl Into<Value>) -> Self {
        self.args.push(value.into());
        self
    }

    /// Adds a keyword argument.
    #[must_use]
    pub fn kwarg(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.kwargs.insert(name.into(), value.into());
        self
    }

    /// Sets all positional arguments from a tuple, a slice or a `Vec`; `()` stands for none.
    ///
    /// # Errors
    /// When it isn't a sequence, or a value has no JSON form.
    pub fn with_args(mut self, args: &(impl Serialize + ?Sized)) -> Result<Self, JsonError> {
        self.args = match json::to_value(args)? {
            Value::Array(args) => args,
            Value::Null => Vec::new(),
            _ => return Err(JsonError::Shape("positional arguments are not a sequence")),
        };
        Ok(self)
    }

    /// Sets all keyword arguments from a map or a struct; `()` stands for none.
    ///
    /// # Errors
    /// When it isn't a map, or a value has no JSON form.
    pub fn with_kwargs(mut self, kwargs: &(impl Serialize + ?Sized)) -> Result<Self, JsonError> {
        self.kwargs = match json::to_value(kwargs)? {
            Value::Object(kwargs) => kwargs,
            Value::Null => Map::new(),
            _ => return Err(JsonError::Shape("keyword arguments are not a map")),
        };
        Ok(self)
    }

    /// Leaves out the incoming value: the previous step's result is not passed on to this task.
    #[must_use]
    pub fn immutable(mut self) -> Self {
        self.immutable = true;
        self
    }

    /// Prepends the value that a callback, a chain step or a chord body is called with, unless it is immutable.
    #[must_use]
    pub fn with_incoming(mut self, value: Value) -> Self {
        if !self.immutable {
            self.args.insert(0, value);
        }
        self
    }

    /// Merges options over the signature's own, as Celery does when a signature is applied.
    ///
    /// The overrides win, except that a group's id and the stamps stay those that the signature already has. Nulls
    /// override nothing.
    #[must_use]
    pub fn with_options(mut self, overrides: Map) -> Self {
        let stamps = self.stamp_names();
        for (key, value) in overrides {
            let keeps_own = key == "group_id" || key == "stamped_headers" || stamps.contains(&key);
            if value.is_null() || (keeps_own && self.option(&key).is_some()) {
                continue;
            }
            self.options.insert(key, value);
        }
        self
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields {
            task: String,
            #[serde(default)]
            args: Option<Vec<Value>>,
            #[serde(default)]
            kwargs: Option<Map>,
            #[serde(default)]
            options: Option<Map>,
            #[serde(default)]
            subtask_type: Option<String>,
            #[serde(default)]
            immutable: Option<bool>,
            #[serde(default)]
            chord_size: Option<u64>,
        }
        let fields = Fields::deserialize(deserializer)?;
        Ok(Self {
            task: fields.task,
            args: fields.args.unwrap_or_default(),
            kwargs: fields.kwargs.unwrap_or_default(),
            options: fields.options.unwrap_or_default(),
            subtask_type: fields.subtask_type,
            immutable: fields.immutable.unwrap_or_default(),
            chord_size: fields.chord_size,
        })
    }
}

#[cfg(test)]
mod tests;
