//! A call of a task as its worker sees it, decoded from a message of protocol 2 or 1, and encoded as protocol 2.

mod decode;
mod encode;
mod error;
mod retry;

pub use error::{DecodeError, Malformed};
pub use retry::{ATTEMPTS_HEADER, is_delivery_history, without_delivery_history};

use crate::{Arguments, Map, Signature};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;

/// One call of a task: what a message says, apart from how it was delivered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// Registered name of the task.
    pub task: String,
    /// Id of this call, kept through retries. Any text, usually a UUID.
    pub id: String,
    /// The arguments.
    pub arguments: Arguments,
    /// What follows this call: callbacks, errbacks, the rest of a chain, a chord.
    pub embed: Embed,
    /// Not to be run before.
    pub eta: Option<Timestamp>,
    /// Not to be started after.
    pub expires: Option<Timestamp>,
    /// How often it was retried so far.
    pub retries: u32,
    /// Id of the group that this call belongs to. Says nothing of chords, see [`Embed::chord`].
    pub group: Option<String>,
    /// Position in the group.
    pub group_index: Option<i64>,
    /// Id of the first call of the workflow, see [`Request::root`].
    pub root_id: Option<String>,
    /// Id of the call that sent this one.
    pub parent_id: Option<String>,
    /// Time limits that override the task's own.
    pub time_limit: TimeLimit,
    /// Name to show instead of the task's, see [`Request::display_name`].
    pub shadow: Option<String>,
    /// Whether the result is stored; `None` leaves it to the task.
    pub ignore_result: Option<bool>,
    /// Who sent it: `gen<pid>@<host>`.
    pub origin: Option<String>,
    /// Language of who sent it: `py`, `rs`.
    pub lang: Option<String>,
    /// Display form of the positional arguments, see [`Request::args_repr`].
    pub argsrepr: Option<String>,
    /// Display form of the keyword arguments, see [`Request::kwargs_repr`].
    pub kwargsrepr: Option<String>,
    /// How often the call was replaced by another.
    pub replaced_task_nesting: u32,
    /// Names of the stamps.
    pub stamped_headers: Option<Vec<String>>,
    /// Stamps by name: a scalar or a list each.
    pub stamps: Map,
    /// Headers of the caller's own.
    pub headers: Map,
    /// Where an answer over RPC goes: a queue. `None` also for the empty text that Celery sends when there is none.
    pub reply_to: Option<String>,
    /// What an answer over RPC is labelled with; the id when the message had none.
    pub correlation_id: Option<String>,
    /// Priority in the queue, higher first.
    pub priority: Option<u8>,
}

/// What follows a call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Embed {
    /// Called with the result when it succeeds.
    pub callbacks: Option<Vec<Signature>>,
    /// Called when it fails.
    pub errbacks: Option<Vec<Signature>>,
    /// The rest of the chain, reversed: the last element runs next.
    pub chain: Option<Vec<Signature>>,
    /// Body of the chord that this call is a member of.
    pub chord: Option<Box<Signature>>,
}

/// Time limits in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TimeLimit {
    /// The task is stopped.
    pub hard: Option<f64>,
    /// The task is asked to stop.
    pub soft: Option<f64>,
}

impl TimeLimit {
    /// The hard limit, when it is a positive number.
    #[must_use]
    pub fn hard(&self) -> Option<Duration> {
        seconds(self.hard)
    }

    /// The soft limit, when it is a positive number.
    #[must_use]
    pub fn soft(&self) -> Option<Duration> {
        seconds(self.soft)
    }
}

fn seconds(number: Option<f64>) -> Option<Duration> {
    number.filter(|seconds| *seconds > 0.0).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
}

impl Request {
    /// A call of a task, with everything else at its default.
    #[must_use]
    pub fn new(task: impl Into<String>, id: impl Into<String>, arguments: Arguments) -> Self {
        let id = id.into();
        Self { task: task.into(), correlation_id: Some(id.clone()), id, arguments, ..Self::default() }
    }

    /// Id of the workflow: its first call's, or this one's own.
    #[must_use]
    pub fn root(&self) -> &str {
        self.root_id.as_deref().unwrap_or(&self.id)
    }

    /// The name that monitors show: `shadow` or the task's.
    #[must_use]
    pub fn display_name(&self) -> &str {
        self.shadow.as_deref().filter(|shadow| !shadow.is_empty()).unwrap_or(&self.task)
    }

    /// The label of an answer over RPC.
    #[must_use]
    pub fn correlation(&self) -> &str {
        self.correlation_id.as_deref().unwrap_or(&self.id)
    }

    /// Whether it may no longer be started.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires < now)
    }

    /// How long until it may be run, if not yet.
    #[must_use]
    pub fn delay(&self, now: Timestamp) -> Option<Duration> {
        let eta = self.eta.filter(|eta| *eta > now)?;
        eta.duration_since(now).try_into().ok()
    }

    /// Display form of the positional arguments, as the sender wrote it or else made from them.
    #[must_use]
    pub fn args_repr(&self) -> String {
        self.argsrepr.clone().unwrap_or_else(|| self.arguments.positional_repr())
    }

    /// Display form of the keyword arguments, as the sender wrote it or else made from them.
    #[must_use]
    pub fn kwargs_repr(&self) -> String {
        self.kwargsrepr.clone().unwrap_or_else(|| self.arguments.keyword_repr())
    }
}

/// Seconds as Python would have written them: whole numbers without a fraction.
pub(crate) fn number(seconds: f64) -> Value {
    let whole = seconds.trunc();
    // 2^53: up to there each whole float is exactly one integer.
    if whole == seconds && whole.abs() < 9_007_199_254_740_992.0 {
        #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and within 53 bits")]
        let integer = whole as i64;
        integer.into()
    } else {
        seconds.into()
    }
}

#[cfg(test)]
mod tests;
