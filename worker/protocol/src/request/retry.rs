//! The same call once more.

use super::Request;
use crate::{Arguments, Map};
use jiff::Timestamp;

impl Request {
    /// The call to send for a retry of this one, not before `eta`: the same id, one more retry, everything that was to follow it,
    /// the caller's own headers.
    #[must_use]
    pub fn retried(&self, eta: Option<Timestamp>) -> Self {
        Self {
            retries: self.retries.saturating_add(1),
            eta,
            parent_id: Some(self.id.clone()),
            headers: without_delivery_history(&self.headers),
            ..self.clone()
        }
    }

    /// The same call with other arguments.
    #[must_use]
    pub fn with_arguments(self, arguments: Arguments) -> Self {
        Self { arguments, argsrepr: None, kwargsrepr: None, ..self }
    }
}

/// Header of a message that there may be two of: how often it had come back. Ours; Celery's workers take no notice.
pub const ATTEMPTS_HEADER: &str = "soloist-attempts";

/// Headers without those that the broker (or a Soloist worker) added on the way: they tell of one delivery, and RabbitMQ drops a message whose
/// `x-death` says that it goes in circles.
#[must_use]
pub fn without_delivery_history(headers: &Map) -> Map {
    headers
        .iter()
        .filter(|(name, _)| !is_delivery_history(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Whether the broker (or a Soloist worker) added the header of this name on the way.
#[must_use]
pub fn is_delivery_history(name: &str) -> bool {
    matches!(name, "x-death" | "x-delivery-count" | "x-acquired-count" | ATTEMPTS_HEADER)
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_retry_is_the_same_call_once_more() {
        let headers = json!({
            "tenant": "a", "x-death": [{}], "x-first-death-queue": "celery_delayed_3", "x-delivery-count": 1,
        });
        let request = Request {
            headers: headers.as_object().unwrap().clone(),
            retries: 1,
            group: Some("g".into()),
            reply_to: Some("client".into()),
            ..Request::new("t.add", "id1", Arguments::default())
        };
        let eta = Timestamp::UNIX_EPOCH;
        let retried = request.retried(Some(eta));
        assert_eq!((retried.retries, retried.eta), (2, Some(eta)));
        assert_eq!((retried.id.as_str(), retried.parent_id.as_deref()), ("id1", Some("id1")));
        assert_eq!(json!(retried.headers), json!({"tenant": "a"}));
        assert_eq!((retried.group, retried.reply_to), (request.group, request.reply_to));
    }
}
