//! Options of a signature: one method for each that Celery's `apply_async` takes.

use super::Signature;
use crate::date;
use crate::request::number;
use jiff::Timestamp;
use serde_json::Value;
use std::time::Duration;

impl Signature {
    /// An option that is set and not null.
    #[must_use]
    pub fn option(&self, name: &str) -> Option<&Value> {
        self.options.get(name).filter(|value| !value.is_null())
    }

    /// An option that is a text.
    #[must_use]
    pub fn text_option(&self, name: &str) -> Option<&str> {
        self.option(name).and_then(Value::as_str)
    }

    /// Sets any option by its name in Celery.
    #[must_use]
    pub fn set(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.options.insert(name.into(), value.into());
        self
    }

    /// Sends it to a queue.
    #[must_use]
    pub fn queue(self, queue: impl Into<String>) -> Self {
        self.set("queue", queue.into())
    }

    /// Gives it an id, instead of a random one.
    #[must_use]
    pub fn task_id(self, id: impl Into<String>) -> Self {
        self.set("task_id", id.into())
    }

    /// Lets it be run a while after it was sent.
    #[must_use]
    pub fn countdown(self, delay: Duration) -> Self {
        self.set("countdown", number(delay.as_secs_f64()))
    }

    /// Lets it be run from a moment on.
    #[must_use]
    pub fn eta(self, moment: Timestamp) -> Self {
        self.set("eta", date::format(moment))
    }

    /// Lets it go unstarted a while after it was sent.
    #[must_use]
    pub fn expires(self, lifetime: Duration) -> Self {
        self.set("expires", number(lifetime.as_secs_f64()))
    }

    /// Lets it go unstarted from a moment on.
    #[must_use]
    pub fn expires_at(self, moment: Timestamp) -> Self {
        self.set("expires", date::format(moment))
    }

    /// Its priority in a queue that has some, higher first.
    #[must_use]
    pub fn priority(self, priority: u8) -> Self {
        self.set("priority", priority)
    }

    /// Stops it after a time (hard limit).
    #[must_use]
    pub fn time_limit(self, limit: Duration) -> Self {
        self.set("time_limit", number(limit.as_secs_f64()))
    }

    /// Asks it to stop after a time (soft limit).
    #[must_use]
    pub fn soft_time_limit(self, limit: Duration) -> Self {
        self.set("soft_time_limit", number(limit.as_secs_f64()))
    }

    /// Whether its result is not stored.
    #[must_use]
    pub fn ignore_result(self, ignore: bool) -> Self {
        self.set("ignore_result", ignore)
    }

    /// Shows it under another name.
    #[must_use]
    pub fn shadow(self, name: impl Into<String>) -> Self {
        self.set("shadow", name.into())
    }

    /// Adds a header of the caller's own, which the task can read.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        let headers = self.options.entry("headers").or_insert_with(|| Value::Object(crate::Map::new()));
        if headers.is_null() {
            *headers = Value::Object(crate::Map::new());
        }
        if let Some(headers) = headers.as_object_mut() {
            headers.insert(name.into(), value.into());
        }
        self
    }

    /// Calls another task with the result, when this one succeeds.
    #[must_use]
    pub fn link(self, callback: Signature) -> Self {
        self.push_to("link", callback)
    }

    /// Calls another task, when this one fails.
    #[must_use]
    pub fn link_error(self, errback: Signature) -> Self {
        self.push_to("link_error", errback)
    }

    /// Labels it, and what is sent because of it, for revoking by label.
    #[must_use]
    pub fn stamp(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        let name = name.into();
        let mut names = self.stamp_names();
        if !names.contains(&name) {
            names.push(name.clone());
        }
        self.options.insert(name, value.into());
        self.set("stamped_headers", names)
    }

    /// Names of the stamps.
    #[must_use]
    pub fn stamp_names(&self) -> Vec<String> {
        let names = self.option("stamped_headers").and_then(Value::as_array);
        names.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
    }

    /// Appends to an option that is a list of signatures, or a single one.
    pub(crate) fn push_to(mut self, name: &str, signature: Signature) -> Self {
        let signature = serde_json::to_value(signature).expect("a signature has string keys only");
        let list = match self.options.get_mut(name).map(Value::take) {
            None | Some(Value::Null) => vec![signature],
            Some(Value::Array(mut list)) => {
                // The same callback twice is sent once, as by Celery.
                if !list.contains(&signature) {
                    list.push(signature);
                }
                list
            }
            Some(single) => vec![single, signature],
        };
        self.set(name, list)
    }
}
