//! How often a message is published again when the connection is lost: Celery's `retry_policy`.

use std::time::Duration;

/// How often a message is published again when the broker can't be reached, and the waits in between.
///
/// Celery's own by default: three times, at once, after 0.2 and after 0.4 seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How often it is tried again; 0 for never.
    pub max_retries: u32,
    /// Wait before the first time.
    pub interval_start: Duration,
    /// How much longer each further wait is.
    pub interval_step: Duration,
    /// Longest wait.
    pub interval_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_retries: 3,
            interval_start: Duration::ZERO,
            interval_step: Duration::from_millis(200),
            interval_max: Duration::from_secs(1),
        }
    }
}

impl RetryPolicy {
    /// One attempt, and no other.
    #[must_use]
    pub fn never() -> Self {
        Self { max_retries: 0, ..Self::default() }
    }

    /// The waits before each retry.
    pub(crate) fn delays(self) -> impl Iterator<Item = Duration> {
        (0..self.max_retries).map(move |retry| {
            let wait = self.interval_start.saturating_add(self.interval_step.saturating_mul(retry));
            wait.min(self.interval_max)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_the_longest() {
        let policy = RetryPolicy { max_retries: 7, ..RetryPolicy::default() };
        let waits: Vec<_> = policy.delays().map(|wait| wait.as_millis()).collect();
        assert_eq!(waits, [0, 200, 400, 600, 800, 1000, 1000]);
        assert_eq!(RetryPolicy::never().delays().count(), 0);
    }
}
