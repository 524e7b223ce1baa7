//! Canvases: chains, groups and chords of signatures, and what to publish for one.
//!
//! ```
//! use celery_protocol::Signature;
//! use celery_protocol::canvas::{chord, group};
//!
//! let add = |x: i32| Signature::new("tasks.add").arg(x);
//! // add(1, 2), then both of add(3, 10) and add(3, 20) at the same time, then the sum of their results
//! let canvas = add(1).arg(2) | group([add(10), add(20)]) | Signature::new("tasks.sum");
//! // the same group and sum by themselves
//! let sum = chord([add(1).arg(10), add(2).arg(20)], Signature::new("tasks.sum"));
//! # let _ = (canvas, sum);
//! ```

mod abandoned;
mod each;
mod kind;
mod plan;

pub use abandoned::{Abandoned, abandoned, errbacks};
pub use each::change_calls;
pub use plan::{CanvasError, ChordStart, Plan, plan};

use crate::{Map, Signature};
use serde_json::Value;
use std::ops::BitOr;

/// Calls one after the other, each with the result of the one before it.
#[must_use]
pub fn chain(tasks: impl IntoIterator<Item = Signature>) -> Signature {
    canvas("chain", [("tasks", values(tasks))])
}

/// Calls at the same time.
#[must_use]
pub fn group(tasks: impl IntoIterator<Item = Signature>) -> Signature {
    canvas("group", [("tasks", values(tasks))])
}

/// Calls at the same time, and then one more with the list of their results.
#[must_use]
pub fn chord(header: impl IntoIterator<Item = Signature>, body: Signature) -> Signature {
    chord_of(values(header), body)
}

fn chord_of(header: Value, body: Signature) -> Signature {
    canvas("chord", [("kwargs", Value::Object(Map::new())), ("header", header), ("body", value(&body))])
}

/// Calls a task with each item in turn, in one run: `celery.map`.
#[must_use]
pub fn map(task: &Signature, items: impl IntoIterator<Item = Value>) -> Signature {
    built_in("celery.map", task, items)
}

/// Calls a task with the arguments that each item lists in turn, in one run: `celery.starmap`.
#[must_use]
pub fn starmap(task: &Signature, items: impl IntoIterator<Item = Value>) -> Signature {
    built_in("celery.starmap", task, items)
}

/// Calls a task with the arguments that each item lists, in runs of some items each: `celery.chunks`.
#[must_use]
pub fn chunks(task: &Signature, items: impl IntoIterator<Item = Value>, size: usize) -> Signature {
    built_in("celery.chunks", task, items).kwarg("n", size)
}

fn built_in(name: &str, task: &Signature, items: impl IntoIterator<Item = Value>) -> Signature {
    let items: Vec<Value> = items.into_iter().collect();
    Signature::new(name).kwarg("task", value(task)).kwarg("it", items).immutable()
}

fn canvas<const N: usize>(kind: &str, kwargs: [(&str, Value); N]) -> Signature {
    Signature {
        kwargs: kwargs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        subtask_type: Some(kind.to_owned()),
        ..Signature::new(format!("celery.{kind}"))
    }
}

fn values(signatures: impl IntoIterator<Item = Signature>) -> Value {
    signatures.into_iter().map(|signature| value(&signature)).collect()
}

fn value(signature: &Signature) -> Value {
    serde_json::to_value(signature).expect("a signature has string keys only")
}

/// Chaining: `a | b` calls `b` with the result of `a`.
///
/// A group in front of something becomes a chord with it, when the canvas is sent.
impl BitOr for Signature {
    type Output = Signature;

    fn bitor(self, next: Signature) -> Signature {
        let mut steps = kind::steps(self);
        steps.extend(kind::steps(next));
        chain(steps)
    }
}

#[cfg(test)]
mod tests;
