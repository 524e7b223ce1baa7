//! From a plain task's signature to the request that is published for it.

use super::Signature;
use crate::json::JsonError;
use crate::request::{Embed, TimeLimit};
use crate::{Arguments, Map, Request, date};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Why a signature can't be sent.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// A chain, group or chord: more than one message.
    #[error("`{0}` is not a single task")]
    Canvas(String),
    /// Only JSON is written.
    #[error("serializer `{0}` is not supported, only json is")]
    Serializer(String),
    /// An option that doesn't have its type.
    #[error("option `{name}` of `{task}`")]
    Option {
        /// Name of the option.
        name: &'static str,
        /// The task that it belongs to.
        task: String,
        /// What is wrong with it.
        source: JsonError,
    },
    /// A moment that isn't one, or is too far away.
    #[error("option `{name}` of `{task}` is no moment: {value}")]
    Moment {
        /// Name of the option.
        name: &'static str,
        /// The task that it belongs to.
        task: String,
        /// The option's value.
        value: String,
    },
}

/// Where a signature asks to be sent: to a queue, or to an exchange with a routing key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// A queue by name.
    pub queue: Option<String>,
    /// An exchange by name.
    pub exchange: Option<String>,
    /// A routing key.
    pub routing_key: Option<String>,
}

impl Route {
    /// To a queue by name.
    #[must_use]
    pub fn to_queue(queue: impl Into<String>) -> Self {
        Self { queue: Some(queue.into()), ..Self::default() }
    }
}

impl Signature {
    /// Where it asks to be sent.
    #[must_use]
    pub fn route(&self) -> Route {
        let text = |name| self.text_option(name).map(str::to_owned);
        Route { queue: text("queue"), exchange: text("exchange"), routing_key: text("routing_key") }
    }

    /// The request to publish, under the signature's own id or else the one given, countdowns counted from `now`.
    ///
    /// Nulls and options that Celery doesn't know either are dropped.
    ///
    /// # Errors
    /// When it is a canvas, or an option doesn't have its type.
    pub fn to_request(&self, id: impl FnOnce() -> String, now: Timestamp) -> Result<Request, SignatureError> {
        if let Some(kind) = &self.subtask_type {
            return Err(SignatureError::Canvas(kind.clone()));
        }
        if let Some(serializer) = self.text_option("serializer").filter(|serializer| *serializer != "json") {
            return Err(SignatureError::Serializer(serializer.to_owned()));
        }
        let text = |name| self.text_option(name).map(str::to_owned);
        let id = text("task_id").unwrap_or_else(id);
        let stamp_names = self.stamp_names();
        let mut stamps = Map::new();
        for name in &stamp_names {
            if let Some(value) = self.options.get(name) {
                stamps.insert(name.clone(), value.clone());
            }
        }
        Ok(Request {
            eta: self.eta_from(now)?,
            expires: self.moment("expires", now)?,
            retries: self.typed("retries")?.unwrap_or_default(),
            group: text("group_id"),
            group_index: self.typed("group_index")?,
            root_id: text("root_id"),
            parent_id: text("parent_id"),
            time_limit: TimeLimit { hard: self.typed("time_limit")?, soft: self.typed("soft_time_limit")? },
            shadow: text("shadow"),
            ignore_result: self.typed("ignore_result")?,
            replaced_task_nesting: self.typed("replaced_task_nesting")?.unwrap_or_default(),
            stamped_headers: (!stamp_names.is_empty()).then_some(stamp_names),
            stamps,
            headers: self.typed("headers")?.unwrap_or_default(),
            reply_to: text("reply_to"),
            priority: self.typed("priority")?,
            embed: Embed {
                callbacks: self.signatures("link")?,
                errbacks: self.signatures("link_error")?,
                chain: self.signatures("chain")?,
                chord: self.typed("chord")?,
            },
            ..Request::new(&self.task, id, Arguments::from_values(&self.args, &self.kwargs))
        })
    }

    /// A list of signatures, which Celery also writes as a single one; none when it is empty.
    fn signatures(&self, name: &'static str) -> Result<Option<Vec<Signature>>, SignatureError> {
        let signatures = match self.option(name) {
            Some(Value::Array(_)) => self.typed::<Vec<Signature>>(name)?,
            _ => self.typed::<Signature>(name)?.map(|single| vec![single]),
        };
        Ok(signatures.filter(|signatures| !signatures.is_empty()))
    }

    fn typed<T: DeserializeOwned>(&self, name: &'static str) -> Result<Option<T>, SignatureError> {
        self.option(name).map(T::deserialize).transpose().map_err(|source| SignatureError::Option {
            name,
            task: self.task.clone(),
            source: source.into(),
        })
    }

    /// `countdown`, unless it is zero, or else `eta`.
    fn eta_from(&self, now: Timestamp) -> Result<Option<Timestamp>, SignatureError> {
        match self.moment("countdown", now)?.filter(|moment| *moment != now) {
            Some(moment) => Ok(Some(moment)),
            None => self.moment("eta", now),
        }
    }

    /// A moment as seconds from now, or as a date.
    fn moment(&self, name: &'static str, now: Timestamp) -> Result<Option<Timestamp>, SignatureError> {
        let Some(value) = self.option(name) else { return Ok(None) };
        let moment = match value {
            Value::String(text) => date::parse(text).ok(),
            // A date that was tagged with its type.
            Value::Object(_) => crate::json::DateTime::deserialize(value).ok().map(|moment| moment.0),
            _ => value
                .as_f64()
                .and_then(|seconds| SignedDuration::try_from_secs_f64(seconds).ok())
                .and_then(|duration| now.checked_add(duration).ok()),
        };
        let invalid = || SignatureError::Moment { name, task: self.task.clone(), value: value.to_string() };
        moment.map(Some).ok_or_else(invalid)
    }
}
