//! Signatures: calls that are data, carried inside messages as callbacks, chain steps and chord bodies.

use crate::Map;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// A task, its arguments and the options to call it with.
///
/// Serialises with all six keys that Celery expects; a signature without `options` makes a Python worker fail.
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
