//! When to tell monitors that this worker is alive, and whether it is busy.

use std::time::Duration;

use tokio::time::Instant;

/// Time between two heartbeats when nothing changes. Readers give a worker up after twice this.
pub(crate) const INTERVAL: Duration = Duration::from_secs(2);

/// Least time between two heartbeats, so that a worker with short tasks doesn't send more of them than tasks.
const AT_MOST_EVERY: Duration = Duration::from_millis(500);

/// Decides when the next heartbeat is due.
#[derive(Debug)]
pub(crate) struct Throttle {
    sent_at: Instant,
    sent_active: u32,
}

impl Throttle {
    /// A heartbeat has just been sent at `now`, saying that `active` tasks run.
    pub(crate) fn sent(now: Instant, active: u32) -> Self {
        Self { sent_at: now, sent_active: active }
    }

    /// The number that it said.
    pub(crate) fn active(&self) -> u32 {
        self.sent_active
    }

    /// When the next one is due, while `active` tasks run.
    pub(crate) fn due(&self, active: u32) -> Instant {
        self.sent_at + if active == self.sent_active { INTERVAL } else { AT_MOST_EVERY }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_worker_is_heard_of_every_interval() {
        let now = Instant::now();
        assert_eq!(Throttle::sent(now, 1).due(1), now + INTERVAL);
    }

    #[test]
    fn a_change_is_told_at_once_after_a_quiet_spell() {
        let now = Instant::now();
        let quiet_since = now - Duration::from_secs(1);
        assert!(Throttle::sent(quiet_since, 0).due(1) <= now);
    }

    #[test]
    fn changes_in_quick_succession_are_told_together() {
        let now = Instant::now();
        let throttle = Throttle::sent(now, 0);
        assert_eq!(throttle.due(1), now + AT_MOST_EVERY);
        assert_eq!(throttle.due(0), now + INTERVAL, "what has changed back is no news");
    }
}
