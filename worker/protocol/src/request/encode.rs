//! From a request to a message of protocol 2.

use super::{Request, TimeLimit, number};
use crate::content;
use crate::message::{Message, Properties};
use crate::{Map, date};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

impl Request {
    /// Encodes the call as a message of protocol 2, persistent and uncompressed.
    ///
    /// `now` is only used for what is left of `expires`, which the broker enforces too.
    #[must_use]
    pub fn encode(&self, now: Timestamp) -> Message {
        Message {
            headers: self.encode_headers(),
            properties: self.encode_properties(now),
            body: self.encode_body(),
        }
    }

    fn encode_headers(&self) -> Map {
        let text = |text: &Option<String>| text.clone().map_or(Value::Null, Value::String);
        let moment = |moment: Option<Timestamp>| moment.map(date::format).into();
        let mut headers = Map::with_capacity(20 + self.headers.len());
        let mut put = |key: &str, value: Value| {
            headers.insert(key.to_owned(), value);
        };
        put("lang", self.lang.as_deref().unwrap_or("rs").into());
        put("task", self.task.as_str().into());
        put("id", self.id.as_str().into());
        put("shadow", text(&self.shadow));
        put("eta", moment(self.eta));
        put("expires", moment(self.expires));
        put("group", text(&self.group));
        put("group_index", self.group_index.into());
        put("retries", self.retries.into());
        put("timelimit", self.time_limit.encode());
        put("root_id", self.root().into());
        put("parent_id", text(&self.parent_id));
        put("argsrepr", self.args_repr().into());
        put("kwargsrepr", self.kwargs_repr().into());
        put("origin", text(&self.origin));
        put("ignore_result", self.ignore_result.into());
        put("replaced_task_nesting", self.replaced_task_nesting.into());
        put("stamped_headers", self.stamped_headers.clone().into());
        put("stamps", self.stamps.clone().into());
        for (key, value) in &self.headers {
            // The caller's own headers never stand in for the protocol's.
            headers.entry(key).or_insert_with(|| value.clone());
        }
        headers
    }

    fn encode_properties(&self, now: Timestamp) -> Properties {
        Properties {
            content_type: Some(content::JSON.to_owned()),
            content_encoding: Some(content::UTF_8.to_owned()),
            delivery_mode: Some(2),
            priority: Some(self.priority.unwrap_or(0)),
            correlation_id: Some(self.correlation().to_owned()),
            // Celery sends the empty text when there is nowhere to answer to.
            reply_to: Some(self.reply_to.clone().unwrap_or_default()),
            expiration: self.expires.map(|expires| {
                expires.as_millisecond().saturating_sub(now.as_millisecond()).max(0).to_string()
            }),
        }
    }

    fn encode_body(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Body<'a>(&'a RawValue, &'a RawValue, &'a super::Embed);
        serde_json::to_vec(&Body(self.arguments.positional(), self.arguments.keyword(), &self.embed))
            .expect("raw JSON and signatures always serialise")
    }
}

impl TimeLimit {
    fn encode(self) -> Value {
        let limit = |limit: Option<f64>| limit.map_or(Value::Null, number);
        Value::Array(vec![limit(self.hard), limit(self.soft)])
    }
}
