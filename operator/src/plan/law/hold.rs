//! When fewer workers may be asked for, and which changes are noise.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{TOLERANCE, Terms};

/// Start-up times for which a worker is kept: much shorter, and starting it was not worth it.
const STARTUPS: f64 = 4.0;
/// Service times for which a worker is kept, and their upper limit in seconds.
const SERVICES: f64 = 2.0;
const LONGEST_SECONDS: f64 = 120.0;

/// Seconds for which a number that was wanted is kept.
pub(super) fn window_seconds(startup_seconds: f64, service_seconds: f64) -> f64 {
    (STARTUPS * startup_seconds).max((SERVICES * service_seconds).min(LONGEST_SECONDS))
}

/// What was wanted in the past, as far as the window needs it, and when the number was last changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// Numbers wanted at an instant, the oldest first. Equal neighbours are one.
    past: VecDeque<(Instant, u32)>,
    changed_at: Option<Instant>,
}

impl Wanted {
    /// Notes what is wanted, and returns the greatest number wanted within the window.
    pub(super) fn record(&mut self, now: Instant, wanted: u32, window: Duration) -> u32 {
        // A smaller number that a later, greater one outlives can't be a maximum.
        while self.past.back().is_some_and(|(_, past)| *past <= wanted) {
            self.past.pop_back();
        }
        self.past.push_back((now, wanted));
        while self.past.len() > 1
            && self.past.front().is_some_and(|(at, _)| now.duration_since(*at) > window)
        {
            self.past.pop_front();
        }
        self.past.front().map_or(wanted, |(_, greatest)| *greatest)
    }

    /// Notes that the number was changed.
    pub(super) fn changed(&mut self, now: Instant) {
        self.changed_at = Some(now);
    }

    /// Whether the last change is long enough ago to take workers away.
    pub(super) fn may_lower(&self, now: Instant, window: Duration) -> bool {
        self.changed_at.is_none_or(|at| now.duration_since(at) >= window)
    }

    /// Whether asking for `wanted` instead of `held` workers would follow noise.
    pub(super) fn is_noise(&self, held: u16, wanted: u16, terms: &Terms, _now: Instant) -> bool {
        let more = f64::from(wanted - held);
        held > 0 && more < TOLERANCE * f64::from(held) && terms.backlog_workers <= u32::from(held)
    }
}
