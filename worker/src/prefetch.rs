//! How many messages to hold unacknowledged.
//!
//! With one message at a time the worker idles while its acknowledgement and the next message are on their way, which is
//! most of the time if tasks last microseconds. With several, a message may wait here behind a long task while another
//! worker is free. So the worker holds several only while its tasks have been short for long enough, and gives them back
//! as soon as one takes long.

use std::time::Duration;

/// Longest that a message is to wait here behind others.
pub(crate) const PATIENCE: Duration = Duration::from_millis(10);

/// How many messages may be held. Each step is a new consumer, so there are few of them.
const LEVELS: [u16; 4] = [1, 4, 16, 64];

/// Short tasks in a row that it takes for each message that is held. If the next of so many tasks is long, as it well may be, few messages
/// are given back.
const EVIDENCE: u64 = 8;

/// How much more evidence it takes each time that messages had to be given back, and up to how often.
const DOUBT: u64 = 8;
const FALLS_MAX: u32 = 4;

/// Short tasks in a row after which one fall is forgiven.
const FORGIVEN_AFTER: u64 = 50_000;

/// Weight of the newest runtime in the mean: the last dozen or so count.
const NEWEST: f64 = 1.0 / 16.0;

/// What is known of the tasks that were run lately.
#[derive(Debug)]
pub(crate) struct Prefetch {
    most: u16,
    /// Seconds.
    mean_runtime: f64,
    short_in_a_row: u64,
    falls: u32,
}

impl Prefetch {
    /// Never more than `most`.
    pub(crate) fn new(most: u16) -> Self {
        Self { most, mean_runtime: PATIENCE.as_secs_f64(), short_in_a_row: 0, falls: 0 }
    }

    /// A task has run this long.
    pub(crate) fn ran(&mut self, runtime: Duration) {
        self.mean_runtime += (runtime.as_secs_f64() - self.mean_runtime) * NEWEST;
        if runtime > PATIENCE {
            self.short_in_a_row = 0;
            return;
        }
        self.short_in_a_row += 1;
        if self.short_in_a_row.is_multiple_of(FORGIVEN_AFTER) {
            self.falls = self.falls.saturating_sub(1);
        }
    }

    /// A message has come that a worker had before. Quorum queues count deliveries, and drop a message that has had too
    /// many: it should not be given back again only because it waited here.
    pub(crate) fn redelivered(&mut self) {
        self.short_in_a_row = 0;
    }

    /// A task takes long, and messages that were waiting behind it are given back.
    pub(crate) fn fell(&mut self) {
        self.short_in_a_row = 0;
        self.falls = (self.falls + 1).min(FALLS_MAX);
    }

    /// How many messages to hold, when it were `held` up to now.
    pub(crate) fn level(&self, held: u16) -> u16 {
        let wait = PATIENCE.as_secs_f64();
        let evidence = self.short_in_a_row / (EVIDENCE * DOUBT.pow(self.falls));
        let is_allowed = |level: &u16| {
            *level <= self.most
                && u64::from(*level) <= evidence
                && f64::from(*level) * self.mean_runtime <= wait
        };
        let allowed = LEVELS.into_iter().rev().find(is_allowed).unwrap_or(1);
        // Not to and fro when tasks are just as long as they may be.
        let is_bearable = self.short_in_a_row > 0 && f64::from(held) * self.mean_runtime <= 2.0 * wait;
        if is_bearable { allowed.max(held) } else { allowed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECONDS: Duration = Duration::from_micros(20);

    /// The level after `count` tasks of `runtime`, one level after the other.
    fn climb(prefetch: &mut Prefetch, count: u64, runtime: Duration) -> u16 {
        (0..count).fold(1, |held, _| {
            prefetch.ran(runtime);
            prefetch.level(held)
        })
    }

    #[test]
    fn one_message_is_held_until_tasks_are_known_to_be_short() {
        let mut prefetch = Prefetch::new(64);
        assert_eq!(prefetch.level(1), 1);
        assert_eq!(climb(&mut prefetch, 4 * EVIDENCE - 1, MICROSECONDS), 1);
        assert_eq!(climb(&mut prefetch, 1, MICROSECONDS), 4);
        assert_eq!(climb(&mut prefetch, 60 * EVIDENCE, MICROSECONDS), 64);
    }

    #[test]
    fn no_message_waits_longer_than_it_may_on_average() {
        for (runtime, level) in [(50, 64), (200, 16), (600, 16), (1_000, 4), (2_600, 1), (50_000, 1)] {
            let mut prefetch = Prefetch::new(64);
            let runtime = Duration::from_micros(runtime);
            assert_eq!(climb(&mut prefetch, 5_000, runtime), level, "{runtime:?}");
        }
    }

    #[test]
    fn never_more_than_is_allowed() {
        assert_eq!(climb(&mut Prefetch::new(1), 5_000, MICROSECONDS), 1);
        assert_eq!(climb(&mut Prefetch::new(20), 5_000, MICROSECONDS), 16);
    }

    #[test]
    fn tasks_that_grow_longer_lower_the_level() {
        let mut prefetch = Prefetch::new(64);
        let mut held = climb(&mut prefetch, 1_000, MICROSECONDS);
        for _ in 0..100 {
            prefetch.ran(Duration::from_millis(2));
            held = prefetch.level(held);
        }
        assert_eq!(held, 4);
    }

    #[test]
    fn a_level_that_is_just_bearable_is_kept() {
        let mut prefetch = Prefetch::new(64);
        climb(&mut prefetch, 1_000, Duration::from_micros(200));
        assert_eq!((prefetch.level(64), prefetch.level(16)), (64, 16));
        climb(&mut prefetch, 1_000, Duration::from_micros(400));
        assert_eq!((prefetch.level(64), prefetch.level(16)), (16, 16));
    }

    #[test]
    fn after_each_fall_it_takes_more_to_climb() {
        let mut prefetch = Prefetch::new(64);
        climb(&mut prefetch, 1_000, MICROSECONDS);
        prefetch.fell();
        assert_eq!(prefetch.level(64), 1);
        assert_eq!(climb(&mut prefetch, 100, MICROSECONDS), 1);
        assert_eq!(climb(&mut prefetch, 4_000, MICROSECONDS), 64);
        prefetch.fell();
        assert_eq!(climb(&mut prefetch, 4_000, MICROSECONDS), 4);
    }

    #[test]
    fn a_message_that_had_been_given_back_ends_the_holding() {
        let mut prefetch = Prefetch::new(64);
        let held = climb(&mut prefetch, 1_000, MICROSECONDS);
        prefetch.redelivered();
        assert_eq!(prefetch.level(held), 1);
    }
}
