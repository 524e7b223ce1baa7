//! Messages that come back again and again, because each worker that takes one dies of it.
//!
//! A quorum queue counts how often it has delivered a message. A classic queue only tells that it has done so before, so the
//! count is kept in a header: a message that comes back is replaced by a copy that says how often it has. The copy goes to the
//! end of the queue, which also lets other messages be run before the next attempt.

use lapin::{message::Delivery, types::AMQPValue};
use serde_json::Value;

use crate::broker::Arrival;

/// How often a message is delivered without coming to an end, unless set. Harmless interruptions count too (a pod that was
/// evicted, a message given back unstarted), so it is no small number; RabbitMQ 4 gives messages of quorum queues 20.
pub(crate) const DEFAULT_LIMIT: u32 = 10;

/// Header of the copy: how often the message came back.
const HEADER: &str = "soloist-attempts";

/// What is to be done with a message, seen how often it was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Run it.
    Run,
    /// Replace it by a copy that counts this delivery.
    Mark,
    /// Don't try again: it was delivered so often.
    GiveUp(u32),
}

/// What is to be done with a message that was delivered `before` so often, by the queue's own count or the header's.
fn judge(is_redelivered: bool, by_queue: Option<u32>, by_header: u32, limit: u32) -> Verdict {
    let before = by_queue.unwrap_or_else(|| by_header + u32::from(is_redelivered));
    match (is_redelivered, by_queue) {
        _ if before >= limit => Verdict::GiveUp(before),
        (true, None) => Verdict::Mark,
        _ => Verdict::Run,
    }
}

/// What is to be done with a message if it may come back `limit` times at most.
pub(crate) fn verdict(delivery: &Arrival, limit: u32) -> Verdict {
    judge(
        delivery.redelivered,
        header(delivery, "x-delivery-count"),
        header(delivery, HEADER).unwrap_or(0),
        limit,
    )
}

/// Whether a message may have been delivered before, to this worker or another.
pub(crate) fn is_redelivered(delivery: &Delivery) -> bool {
    delivery.redelivered || header(delivery, HEADER).is_some()
}

/// The header that a copy of this message needs, if any.
pub(crate) fn mark(delivery: &Delivery) -> Option<(String, Value)> {
    let before = header(delivery, HEADER);
    let is_marked = before.is_some() || delivery.redelivered;
    let attempts = before.unwrap_or(0) + u32::from(delivery.redelivered);
    is_marked.then(|| (HEADER.to_owned(), attempts.into()))
}

fn header(delivery: &Delivery, name: &str) -> Option<u32> {
    let headers = delivery.properties.headers().as_ref()?;
    let count = match headers.inner().get(name)? {
        AMQPValue::LongInt(count) => i64::from(*count),
        AMQPValue::LongLongInt(count) => *count,
        _ => return None,
    };
    u32::try_from(count).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_classic_queues_messages_are_counted_in_a_header() {
        assert_eq!(judge(false, None, 0, 3), Verdict::Run);
        assert_eq!(judge(true, None, 0, 3), Verdict::Mark);
        assert_eq!(judge(false, None, 1, 3), Verdict::Run);
        assert_eq!(judge(true, None, 1, 3), Verdict::Mark);
        assert_eq!(judge(true, None, 2, 3), Verdict::GiveUp(3));
        assert_eq!(judge(false, None, 3, 3), Verdict::GiveUp(3));
    }

    #[test]
    fn a_quorum_queue_counts_by_itself() {
        assert_eq!(judge(true, Some(2), 0, 3), Verdict::Run);
        assert_eq!(judge(true, Some(3), 0, 3), Verdict::GiveUp(3));
        assert_eq!(judge(false, Some(0), 0, 3), Verdict::Run);
    }
}
