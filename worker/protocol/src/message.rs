//! A message as AMQP carries it: headers, properties and a body, free of any client library's types.

use crate::Map;
use serde::{Deserialize, Serialize};

/// The AMQP properties that Celery uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Properties {
    /// Type of the body: `application/json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Encoding of the body's text: `utf-8`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_encoding: Option<String>,
    /// 1 = transient, 2 = persistent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivery_mode: Option<u8>,
    /// Priority in the queue, higher first. Absent means 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// Id of the task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// Queue for answers over RPC: the producer's own id, or empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// Milliseconds until the broker may drop the message, as a decimal text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration: Option<String>,
}

/// A complete message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// Application headers. Texts are to be written as AMQP long strings.
    pub headers: Map,
    /// AMQP properties.
    pub properties: Properties,
    /// Body bytes.
    pub body: Vec<u8>,
}
