//! How long to wait between attempts.

use std::time::Duration;

/// Waits that double from one attempt to the next, up to a limit, each shortened by a random part of up to a half so
/// that many workers which lost the same server don't come back to it in step.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    first: Duration,
    limit: Duration,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, limit: Duration) -> Self {
        Self { next: first, first, limit }
    }

    /// The wait before the next attempt. `random` is uniform in 0 to 1.
    pub(crate) fn next(&mut self, random: f64) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(self.limit);
        full.mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0)
    }

    /// An attempt succeeded: start over.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// A number in 0 to 1, random enough to spread attempts.
pub(crate) fn random() -> f64 {
    let (high, _) = uuid::Uuid::new_v4().as_u64_pair();
    f64::from(u32::try_from(high >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_limit_and_starts_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(300));
        let waits: Vec<_> = (0..4).map(|_| backoff.next(0.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 300, 300]);
        backoff.reset();
        assert_eq!(backoff.next(0.0).as_millis(), 100);
    }

    #[test]
    fn randomness_takes_off_at_most_a_half() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(100));
        assert_eq!(backoff.next(1.0).as_millis(), 50);
        for _ in 0..100 {
            assert!((0.0..=1.0).contains(&random()));
        }
    }
}
