//! From a message to a request: protocol 2, protocol 1, and the hybrid of both.

use super::{DecodeError, Embed, Malformed, Request, TimeLimit};
use crate::content::{self, Limits};
use crate::json::{self, JsonError};
use crate::message::Properties;
use crate::{Arguments, Map, Signature, date};
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

impl Request {
    /// Decodes a message of protocol 2 or 1.
    ///
    /// Every header but `task` and `id` may be missing or null.
    ///
    /// # Errors
    /// When the message is no task, or one that can't be run; see [`Malformed`] for the cases.
    pub fn decode(
        headers: Map,
        properties: &Properties,
        body: &[u8],
        limits: &Limits,
    ) -> Result<Self, DecodeError> {
        // Read first, so that whatever is wrong with the rest ends up as the result of this id.
        let text = |key| headers.get(key).and_then(Value::as_str).map(str::to_owned);
        let (task, task_id) = (text("task"), text("id"));
        let mut request = Self { task: task.clone().unwrap_or_default(), ..Self::default() };
        match request.read(headers, properties, body, limits) {
            Ok(()) => Ok(request),
            Err(malformed) => {
                let from_body = |text: String| Some(text).filter(|text| !text.is_empty());
                Err(DecodeError {
                    task_id: task_id.or_else(|| from_body(request.id)),
                    task: task.or_else(|| from_body(request.task)),
                    malformed,
                })
            }
        }
    }

    /// What can be read of a message of protocol 2 that [`decode`](Self::decode) refuses: who waits for the call. None if
    /// not even its id and what was to follow it can be.
    ///
    /// The arguments are left out: it is not to be run.
    #[must_use]
    pub fn salvage(headers: &Map, properties: &Properties, body: &[u8], limits: &Limits) -> Option<Self> {
        let text = |key| headers.get(key).and_then(Value::as_str).map(str::to_owned);
        let body = content::decode(
            properties.content_type.as_deref(),
            properties.content_encoding.as_deref(),
            text("compression").as_deref(),
            body,
            limits,
        );
        let body = body.ok()?;
        let items: Vec<&RawValue> = serde_json::from_slice(&body).ok()?;
        Some(Self {
            embed: parse_embed(items.get(2)?).ok()?,
            group: text("group"),
            group_index: headers.get("group_index").and_then(Value::as_i64),
            root_id: text("root_id"),
            reply_to: properties.reply_to.clone().filter(|reply_to| !reply_to.is_empty()),
            ..Self::new(text("task")?, text("id")?, Arguments::default())
        })
    }

    fn read(
        &mut self,
        headers: Map,
        properties: &Properties,
        body: &[u8],
        limits: &Limits,
    ) -> Result<(), Malformed> {
        let is_v1 = !headers.contains_key("task");
        let compression = headers.get("compression").and_then(Value::as_str).map(str::to_owned);
        let text = content::decode(
            properties.content_type.as_deref(),
            properties.content_encoding.as_deref(),
            compression.as_deref(),
            body,
            limits,
        )?;
        json::refuse_large_integers(&text).map_err(undecodable)?;
        let is_object = text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
        if is_object {
            // Header fields are read afterwards: they win.
            self.read_object(&text)?;
        } else if is_v1 {
            // Parsed only to tell damaged JSON from JSON that is no task.
            serde_json::from_slice::<&RawValue>(&text).map_err(|error| undecodable(error.into()))?;
            return Err(Malformed::NotATask);
        }
        self.read_headers(headers)?;
        if !is_object {
            self.read_triple(&text)?;
        }
        if self.task.is_empty() {
            return Err(if is_v1 { Malformed::NotATask } else { invalid("the task has no name") });
        }
        if self.id.is_empty() {
            return Err(if is_v1 { Malformed::NotATask } else { invalid("the message has no task id") });
        }
        self.reply_to = properties.reply_to.clone().filter(|reply_to| !reply_to.is_empty());
        self.correlation_id = properties.correlation_id.clone().filter(|id| !id.is_empty());
        self.priority = properties.priority;
        Ok(())
    }

    fn read_headers(&mut self, headers: Map) -> Result<(), Malformed> {
        for (key, value) in headers {
            match key.as_str() {
                "task" => self.task = required_text("task", value)?,
                "id" => self.id = required_text("id", value)?,
                // The body is decompressed by now.
                "compression" => {}
                "eta" => set(&mut self.eta, moment("eta", value)?),
                "expires" => set(&mut self.expires, moment("expires", value)?),
                "retries" => self.retries = count("retries", &value)?,
                "replaced_task_nesting" => {
                    self.replaced_task_nesting = count("replaced_task_nesting", &value)?
                }
                "group" => set(&mut self.group, optional_text("group", value)?),
                "group_index" => set(&mut self.group_index, value.as_i64()),
                "root_id" => self.root_id = optional_text("root_id", value)?,
                "parent_id" => self.parent_id = optional_text("parent_id", value)?,
                "timelimit" => self.time_limit = time_limit(&value)?,
                "ignore_result" => self.ignore_result = value.as_bool(),
                "stamped_headers" => self.stamped_headers = names(value),
                "stamps" => self.stamps = object(value),
                // For display only: another type is not worth failing a task for.
                "shadow" => self.shadow = display_text(value),
                "origin" => self.origin = display_text(value),
                "lang" => self.lang = display_text(value),
                "argsrepr" => self.argsrepr = display_text(value),
                "kwargsrepr" => self.kwargsrepr = display_text(value),
                _ => {
                    self.headers.insert(key, value);
                }
            }
        }
        Ok(())
    }

    /// Protocol 2: `[args, kwargs, embed]`.
    fn read_triple(&mut self, text: &[u8]) -> Result<(), Malformed> {
        let items: Vec<&RawValue> = serde_json::from_slice(text).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => invalid("the body is not an array"),
            _ => undecodable(error.into()),
        })?;
        let [args, kwargs, embed] = items.as_slice() else {
            return Err(invalid(format!("the body has {} elements instead of 3", items.len())));
        };
        self.arguments = arguments(Some(args), Some(kwargs))?;
        self.embed = parse_embed(embed)?;
        Ok(())
    }

    /// Protocol 1: everything in one object.
    fn read_object(&mut self, text: &[u8]) -> Result<(), Malformed> {
        let fields: BTreeMap<String, &RawValue> =
            serde_json::from_slice(text).map_err(|error| undecodable(error.into()))?;
        let field = |key: &str| fields.get(key).copied();
        // First, so that an error in the rest can be stored under the id.
        if let Some(task) = read::<Option<String>>("task", field("task"))?.flatten() {
            self.task = task;
        }
        self.id = read::<Option<String>>("id", field("id"))?.flatten().unwrap_or_default();
        self.arguments = arguments(field("args"), field("kwargs"))?;
        self.retries = read::<Option<u32>>("retries", field("retries"))?.flatten().unwrap_or_default();
        let value =
            |key: &'static str| Ok::<_, Malformed>(read::<Value>(key, field(key))?.unwrap_or_default());
        self.eta = moment("eta", value("eta")?)?;
        self.expires = moment("expires", value("expires")?)?;
        self.time_limit = time_limit(&value("timelimit")?)?;
        let group = optional_text("group", value("group")?)?;
        self.group = optional_text("taskset", value("taskset")?)?.or(group);
        self.group_index = value("group_index")?.as_i64();
        self.embed = Embed {
            callbacks: read::<Option<Vec<Signature>>>("callbacks", field("callbacks"))?.flatten(),
            errbacks: read::<Option<Vec<Signature>>>("errbacks", field("errbacks"))?.flatten(),
            chain: None,
            chord: read::<Option<Box<Signature>>>("chord", field("chord"))?.flatten(),
        };
        Ok(())
    }
}

fn arguments(args: Option<&RawValue>, kwargs: Option<&RawValue>) -> Result<Arguments, Malformed> {
    let given = |raw: Option<&RawValue>| raw.filter(|raw| raw.get() != "null").map(ToOwned::to_owned);
    Arguments::from_optional_raw(given(args), given(kwargs)).map_err(|error| invalid(error.to_string()))
}

/// The usual embed is four nulls; it must be an object, though it may be empty.
fn parse_embed(raw: &RawValue) -> Result<Embed, Malformed> {
    if !raw.get().starts_with('{') {
        return Err(invalid("the third element of the body is not an object"));
    }
    serde_json::from_str(raw.get())
        .map_err(|error| invalid(format!("the third element of the body: {error}")))
}

fn read<T: DeserializeOwned>(key: &'static str, raw: Option<&RawValue>) -> Result<Option<T>, Malformed> {
    raw.map(|raw| serde_json::from_str(raw.get()))
        .transpose()
        .map_err(|error| invalid(format!("field `{key}`: {error}")))
}

fn set<T>(field: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *field = value;
    }
}

fn required_text(key: &'static str, value: Value) -> Result<String, Malformed> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(invalid(format!("header `{key}` is not a text: {other}"))),
    }
}

fn optional_text(key: &'static str, value: Value) -> Result<Option<String>, Malformed> {
    match value {
        Value::Null => Ok(None),
        other => required_text(key, other).map(Some),
    }
}

fn display_text(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn moment(key: &'static str, value: Value) -> Result<Option<Timestamp>, Malformed> {
    let Some(text) = optional_text(key, value)? else { return Ok(None) };
    date::parse(&text).map(Some).map_err(|error| invalid(format!("header `{key}`: {error}")))
}

fn count(key: &'static str, value: &Value) -> Result<u32, Malformed> {
    if value.is_null() {
        return Ok(0);
    }
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    number.ok_or_else(|| invalid(format!("header `{key}` is not a count: {value}")))
}

fn time_limit(value: &Value) -> Result<TimeLimit, Malformed> {
    type Pair = (Option<f64>, Option<f64>);
    let pair = Option::<Pair>::deserialize(value);
    let (hard, soft) = pair
        .map_err(|_| invalid(format!("header `timelimit` is not a pair of numbers: {value}")))?
        .unwrap_or_default();
    Ok(TimeLimit { hard, soft })
}

fn names(value: Value) -> Option<Vec<String>> {
    serde_json::from_value(value).ok()
}

fn object(value: Value) -> Map {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

fn invalid(message: impl Into<String>) -> Malformed {
    Malformed::InvalidTask(message.into())
}

fn undecodable(error: JsonError) -> Malformed {
    Malformed::Undecodable(format!("the body is not JSON: {error}"))
}
