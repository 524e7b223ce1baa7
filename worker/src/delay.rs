//! Messages that are not due yet: they wait in the broker's delay queues, so that no worker is kept from other work.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use celery_client::amqp;
use celery_protocol::{Message, Request, delay, request::without_delivery_history};
use jiff::Timestamp;
use lapin::message::Delivery;

use crate::{
    attempts,
    task::DeliveryInfo,
    tracker::{Stage, Tracked},
};

/// A message that is due within this time is held. The delay queues count in whole seconds: what is held is what would make
/// the difference between on time and most of a second late.
const HELD: Duration = Duration::from_millis(200);

/// How many calls that were put off are remembered, for showing.
const SHOWN: usize = 1000;

/// How long a message waits in the delay queues so that it comes out just in time or, at worst, 0.8 s late; never too early
/// by more than can be held. Zero for one that needn't go there.
pub(crate) fn whole_seconds(wait: Duration) -> u32 {
    let Some(rest) = wait.checked_sub(HELD).filter(|rest| !rest.is_zero()) else { return 0 };
    let seconds = rest.as_secs().saturating_add(u64::from(rest.subsec_nanos() > 0));
    u32::try_from(seconds).map_or(delay::MAX_SECONDS, |seconds| seconds.min(delay::MAX_SECONDS))
}

/// The message of a delivery, to be sent once more. It says that it was delivered before if this one was: there may be two of
/// it.
pub(crate) fn again(delivery: &Delivery) -> Message {
    let headers = delivery.properties.headers().as_ref().map(amqp::headers).unwrap_or_default();
    let mut headers = without_delivery_history(&headers);
    headers.extend(attempts::mark(delivery));
    Message { headers, properties: amqp::properties(&delivery.properties), body: delivery.data.clone() }
}

/// The calls that this worker has put off last, for those who ask over remote control.
#[derive(Debug, Default)]
pub(crate) struct Postponed(Mutex<VecDeque<Tracked>>);

impl Postponed {
    /// A call was put off.
    pub(crate) fn add(&self, request: Arc<Request>, delivery_info: DeliveryInfo, now: Timestamp) {
        let mut calls = self.calls();
        calls.retain(|call| is_pending(call, now) && call.request.id != request.id);
        if calls.len() == SHOWN {
            calls.pop_front();
        }
        calls.push_back(Tracked::new(request, delivery_info, Stage::Scheduled));
    }

    /// What `show` makes of those that are not due yet at `now`, oldest first.
    pub(crate) fn show<T>(&self, now: Timestamp, show: impl FnMut(&Tracked) -> Option<T>) -> Vec<T> {
        self.calls().iter().filter(|call| is_pending(call, now)).filter_map(show).collect()
    }

    fn calls(&self) -> MutexGuard<'_, VecDeque<Tracked>> {
        // Calls are whole or not there, so a panic elsewhere leaves nothing that could mislead.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_pending(call: &Tracked, now: Timestamp) -> bool {
    call.request.delay(now).is_some()
}

#[cfg(test)]
mod tests {
    use celery_protocol::Arguments;

    use super::*;

    #[test]
    fn waits_are_rounded_so_that_little_is_held_and_nothing_is_early() {
        let millis = |millis| whole_seconds(Duration::from_millis(millis));
        assert_eq!([0, 150, 200, 201, 990, 1000, 1200, 1201].map(millis), [0, 0, 0, 1, 1, 1, 1, 2]);
        assert_eq!(whole_seconds(Duration::from_millis(59_990)), 60);
        assert_eq!(whole_seconds(Duration::MAX), delay::MAX_SECONDS);
        assert_eq!(whole_seconds(Duration::from_secs(1 << 30)), delay::MAX_SECONDS);
    }

    #[test]
    fn what_is_due_is_no_longer_shown() {
        let postponed = Postponed::default();
        let now = Timestamp::UNIX_EPOCH;
        let request = |id: &str, seconds| {
            let eta = Some(now + Duration::from_secs(seconds));
            Arc::new(Request { eta, ..Request::new("t.add", id, Arguments::default()) })
        };
        let ids = |seconds| {
            postponed.show(now + Duration::from_secs(seconds), |call| Some(call.request.id.clone()))
        };
        for (id, seconds) in [("a", 10), ("b", 20), ("a", 10)] {
            postponed.add(request(id, seconds), DeliveryInfo::default(), now);
        }
        assert_eq!(ids(0), ["b", "a"]);
        assert_eq!(ids(15), ["b"]);
        for number in 0..SHOWN {
            postponed.add(request(&number.to_string(), 30), DeliveryInfo::default(), now);
        }
        assert_eq!(ids(0).len(), SHOWN);
    }
}
