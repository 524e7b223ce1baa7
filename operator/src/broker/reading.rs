//! What the answers of a broker say about the length of a queue, and which of them are not to be believed yet.

use std::time::{Duration, Instant};

/// A quorum queue whose leader doesn't answer within 250 ms is reported as empty (RabbitMQ 3.10 to 4.3), so an empty queue is
/// believed only if the answer came well before that.
const PROMPT: Duration = Duration::from_millis(200);

/// An empty queue that wasn't empty before is believed when this long has passed since the first such answer.
const CONFIRM_EMPTY_AFTER: Duration = Duration::from_millis(900);

/// While a queue grows it is read again after this long, so that a burst is seen as a whole and answered in one step.
pub(super) const SETTLE: Duration = Duration::from_millis(250);

/// A queue that keeps growing is reported as it is after this long.
const SETTLE_AT_MOST: Duration = Duration::from_millis(900);

/// The length of one queue, as far as it is known.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    /// Messages ready, as last believed.
    ready: Option<u64>,
    /// When that was read; absent if not on this connection.
    read_at: Option<Instant>,
    /// Since when it is said to be empty.
    empty_since: Option<Instant>,
    /// Since when it grows, and how long it was when read last.
    growing: Option<(Instant, u64)>,
    /// Consumers, as last said; absent if not on this connection.
    consumers: Option<u32>,
}

/// The answer of a broker about one queue.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// The queue's name.
    pub(super) queue: String,
    /// Messages ready.
    pub(super) ready: u64,
    /// Consumers.
    pub(super) consumers: u32,
    /// How long it came after the question, or after the answer before it.
    pub(super) took: Duration,
    /// When it came: the answers for many queues, some of which hang, take a while.
    pub(super) at: Instant,
}

impl Reading {
    /// Takes in an answer that came `took` after the question, or after the answer before it.
    pub(super) fn update(&mut self, ready: u64, took: Duration, now: Instant) {
        if ready == 0 && self.ready != Some(0) {
            self.growing = None;
            if took >= PROMPT {
                self.empty_since = None;
                return;
            }
            let since = *self.empty_since.get_or_insert(now);
            if now.duration_since(since) < CONFIRM_EMPTY_AFTER {
                return;
            }
        } else if ready > self.ready.unwrap_or(0) {
            self.empty_since = None;
            let (since, seen) = *self.growing.get_or_insert((now, 0));
            if ready > seen && now.duration_since(since) < SETTLE_AT_MOST {
                self.growing = Some((since, ready));
                return;
            }
        }
        *self = Self { ready: Some(ready), read_at: Some(now), empty_since: None, growing: None, ..*self };
    }

    /// Takes in the number of consumers. It is believed at once: too few of them only means not to take workers away.
    pub(super) fn attached(&mut self, consumers: u32) {
        self.consumers = Some(consumers);
    }

    /// Consumers; absent if they weren't read on this connection.
    pub(super) fn consumers(&self) -> Option<u32> {
        self.consumers
    }

    /// Whether the queue is to be read again soon.
    pub(super) fn is_growing(&self) -> bool {
        self.growing.is_some()
    }

    /// The connection is lost: the number is kept, but it is no longer fresh.
    pub(super) fn disconnect(&mut self) {
        *self = Self { ready: self.ready, ..Self::default() };
    }

    /// Messages ready, as last believed.
    pub(super) fn ready(&self) -> Option<u64> {
        self.ready
    }

    /// How old the number is; absent if it wasn't read on this connection.
    pub(super) fn age(&self, now: Instant) -> Option<Duration> {
        self.read_at.map(|read_at| now.duration_since(read_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_millis(1);

    /// Takes in answers at the given milliseconds; the numbers believed after each.
    fn believed(answers: &[(u64, u64, Duration)]) -> Vec<Option<u64>> {
        let origin = Instant::now();
        let mut reading = Reading::default();
        let take = |(at, ready, took): &(u64, u64, Duration)| {
            reading.update(*ready, *took, origin + Duration::from_millis(*at));
            reading.ready()
        };
        answers.iter().map(take).collect()
    }

    #[test]
    fn empty_is_believed_the_second_time() {
        assert_eq!(believed(&[(0, 0, QUICK), (250, 0, QUICK), (1000, 0, QUICK)]), [None, None, Some(0)]);
        let emptied = [(0, 5, QUICK), (250, 5, QUICK), (1000, 0, QUICK), (2000, 0, QUICK)];
        assert_eq!(believed(&emptied), [None, Some(5), Some(5), Some(0)]);
    }

    #[test]
    fn slow_zero_of_a_stuck_leader_is_never_believed() {
        let slow = Duration::from_millis(251);
        let answers = [(0, 240, QUICK), (250, 240, QUICK), (1000, 0, slow), (2000, 0, slow), (9000, 0, slow)];
        assert_eq!(believed(&answers)[1..], [Some(240); 4]);
    }

    #[test]
    fn zero_between_messages_is_not_believed() {
        let answers = [(0, 9, QUICK), (250, 9, QUICK), (1000, 0, QUICK), (2000, 9, QUICK), (3000, 0, QUICK)];
        assert_eq!(believed(&answers)[1..], [Some(9); 4]);
    }

    #[test]
    fn burst_is_believed_when_it_has_stopped_growing() {
        let burst =
            [(0, 0, QUICK), (1000, 0, QUICK), (2000, 200, QUICK), (2250, 450, QUICK), (2500, 500, QUICK)];
        assert_eq!(believed(&burst)[1..], [Some(0); 4]);
        assert_eq!(believed(&[&burst[..], &[(2750, 500, QUICK)]].concat())[5], Some(500));
    }

    #[test]
    fn endless_growth_is_reported_within_a_second() {
        let answers: Vec<_> = (0..9).map(|step| (step * 250, 100 + step * 100, QUICK)).collect();
        assert_eq!(believed(&answers)[..5], [None, None, None, None, Some(500)]);
    }

    #[test]
    fn shrinking_is_believed_at_once() {
        assert_eq!(believed(&[(0, 9, QUICK), (250, 9, QUICK), (1000, 4, QUICK)])[2], Some(4));
    }

    #[test]
    fn lost_connection_makes_a_number_old_not_zero() {
        let now = Instant::now();
        let mut reading = Reading::default();
        reading.update(9, QUICK, now);
        reading.update(9, QUICK, now);
        assert!(reading.age(now).is_some());
        reading.disconnect();
        assert_eq!((reading.ready(), reading.age(now)), (Some(9), None));
    }
}
