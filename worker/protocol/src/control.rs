//! Remote control: commands that monitors broadcast to workers, and the replies.

mod reply;

pub use reply::{
    BrokerInfo, DeliveryInfo, ExchangeInfo, PoolInfo, QueueInfo, ScheduledTask, Stats, TaskInfo,
};

use crate::{Glob, Map};
use regex_lite::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The fanout exchange that commands go to, transient.
pub const EXCHANGE: &str = "celery.pidbox";
/// The direct exchange that replies go to, transient.
pub const REPLY_EXCHANGE: &str = "reply.celery.pidbox";
/// `x-expires` of a mailbox queue in milliseconds: gone ten seconds after its consumer.
pub const QUEUE_EXPIRES_MS: i32 = 10_000;
/// `x-message-ttl` of a mailbox queue in milliseconds.
pub const QUEUE_MESSAGE_TTL_MS: i32 = 300_000;

/// Name of a worker's mailbox queue.
#[must_use]
pub fn mailbox(node: &str) -> String {
    format!("{node}.{EXCHANGE}")
}

/// Name of the queue that a caller reads replies from.
#[must_use]
pub fn reply_queue(caller: &str) -> String {
    format!("{caller}.{REPLY_EXCHANGE}")
}

/// A command to some or all workers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// What to do: `ping`, `stats`, `revoke`...
    pub method: String,
    /// Its arguments.
    #[serde(default, deserialize_with = "null_as_default")]
    pub arguments: Map,
    /// Node names it is meant for; none or an empty list for all.
    #[serde(default)]
    pub destination: Option<Vec<String>>,
    /// Pattern of the node names it is meant for.
    #[serde(default)]
    pub pattern: Option<String>,
    /// How the pattern is written: `glob` or `pcre`.
    #[serde(default)]
    pub matcher: Option<String>,
    /// Label of the replies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
    /// Where replies go; absent when none are wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<ReplyTo>,
}

/// Where replies go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReplyTo {
    /// Exchange to publish to.
    pub exchange: String,
    /// Routing key to publish with.
    pub routing_key: String,
}

fn null_as_default<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Map, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Command {
    /// Whether a node is meant.
    ///
    /// A list of destinations rules out the pattern. A pattern that can't be read is no worker's.
    #[must_use]
    pub fn is_for(&self, node: &str) -> bool {
        if let Some(destination) = self.destination.as_deref().filter(|nodes| !nodes.is_empty()) {
            return destination.iter().any(|name| name == node);
        }
        let (Some(pattern), Some(matcher)) = (self.pattern.as_deref(), self.matcher.as_deref()) else {
            return true;
        };
        match matcher {
            "glob" => Glob::new(pattern).is_match(node),
            "pcre" => {
                let expression = Regex::new(&format!("^(?:{pattern})"));
                expression.is_ok_and(|expression| expression.is_match(node))
            }
            _ => false,
        }
    }

    /// Reads a command's body.
    ///
    /// # Errors
    /// When it isn't one.
    pub fn decode(body: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(body)
    }

    /// The body to publish.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a command has string keys only")
    }
}

/// The body of a reply: `{"<node>": <reply>}`.
#[must_use]
pub fn encode_reply(node: &str, reply: Value) -> Vec<u8> {
    let body = Map::from_iter([(node.to_owned(), reply)]);
    serde_json::to_vec(&body).expect("JSON values always serialise")
}

/// Reads the body of a reply into node names and replies.
///
/// # Errors
/// When it isn't an object.
pub fn decode_reply(body: &[u8]) -> serde_json::Result<Map> {
    serde_json::from_slice(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(matcher: &str, pattern: &str) -> Command {
        Command { pattern: Some(pattern.into()), matcher: Some(matcher.into()), ..Command::default() }
    }

    #[test]
    fn a_command_without_address_is_for_everyone() {
        assert!(Command::default().is_for("celery@a"));
        assert!(Command { destination: Some(vec![]), ..Command::default() }.is_for("celery@a"));
    }

    #[test]
    fn a_destination_rules_out_the_pattern() {
        let command = Command { destination: Some(vec!["celery@b".into()]), ..pattern("glob", "*") };
        assert!(command.is_for("celery@b"));
        assert!(!command.is_for("celery@a"));
        assert!(pattern("glob", "*@b").is_for("celery@b") && !pattern("glob", "*@b").is_for("celery@a"));
    }

    #[test]
    fn expressions_are_anchored_at_the_start() {
        assert!(pattern("pcre", "cel.*@r|x").is_for("celery@red"));
        assert!(!pattern("pcre", "red").is_for("celery@red"));
        assert!(!pattern("pcre", "(").is_for("celery@red"));
        assert!(!pattern("sql", "%").is_for("celery@red"));
    }
}
