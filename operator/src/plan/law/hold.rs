//! When fewer workers may be asked for, and which changes are noise.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Terms;

/// Start-up times for which a worker is kept: much shorter, and starting it was not worth it.
const STARTUPS: f64 = 4.0;
/// Service times for which a worker is kept, and their upper limit in seconds.
const SERVICES: f64 = 2.0;
const LONGEST_SECONDS: f64 = 120.0;

/// A small change is made, too, if it was wanted for so many seconds without a break.
const PATIENCE_SECONDS: f64 = 300.0;

/// Seconds for which a number that was wanted is kept.
pub(super) fn window_seconds(startup_seconds: f64, service_seconds: f64) -> f64 {
    (super::knob("WS",4.0) * startup_seconds).max(super::knob("WM",0.0)).max((SERVICES * service_seconds).min(LONGEST_SECONDS))
}

/// What was wanted in the past, and when the number was last changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// Numbers wanted, and until when, ever smaller: a number that a later, greater one outlived can't be a maximum.
    past: VecDeque<(Instant, u32)>,
    changed_at: Option<Instant>,
    lacking_since: Option<Instant>,
}

impl Wanted {
    /// Notes what is wanted, and whether that is more than there is.
    pub(super) fn record(&mut self, now: Instant, wanted: u32, lacking: bool, window: Duration) {
        while self.past.back().is_some_and(|(_, past)| *past <= wanted) {
            self.past.pop_back();
        }
        self.past.push_back((now, wanted));
        let memory = window.max(Duration::from_secs_f64(PATIENCE_SECONDS));
        while self.past.front().is_some_and(|(at, _)| now.duration_since(*at) > memory) {
            self.past.pop_front();
        }
        self.lacking_since = lacking.then(|| self.lacking_since.unwrap_or(now));
    }

    /// The greatest number wanted within the window before `now`.
    pub(super) fn greatest(&self, now: Instant, window: Duration) -> u32 {
        let within = |(at, _): &&(Instant, u32)| now.duration_since(*at) <= window;
        self.past.iter().find(within).map_or(0, |(_, wanted)| *wanted)
    }

    /// Notes that the number was changed.
    pub(super) fn changed(&mut self, now: Instant) {
        self.changed_at = Some(now);
        self.lacking_since = None;
    }

    /// Whether the last change is long enough ago to take workers away.
    pub(super) fn may_lower(&self, now: Instant, window: Duration) -> bool {
        self.changed_at.is_none_or(|at| now.duration_since(at) >= window)
    }

    /// The number to go down to from `held`, which may be `held` itself.
    pub(super) fn lowered(&self, now: Instant, window: Duration, held: u32, min: u32) -> u32 {
        let soon = self.greatest(now, window).max(min);
        if soon <= min || f64::from(soon) <= f64::from(held) * (1.0 - super::knob("DT",0.2)) {
            return soon.min(held);
        }
        self.greatest(now, window.max(Duration::from_secs_f64(PATIENCE_SECONDS))).max(min).min(held)
    }

    /// Whether asking for `wanted` instead of `held` workers would follow noise.
    pub(super) fn is_noise(&self, held: u32, wanted: u32, terms: &Terms, now: Instant) -> bool {
        let since = |at: Option<Instant>| at.map(|at| now.duration_since(at).as_secs_f64());
        // While the workers of the last step are still starting, there is no telling what they will do.
        let settling = since(self.changed_at).is_some_and(|seconds| seconds < terms.startup_seconds);
        let step = if settling { super::knob("SET",0.2) } else { super::knob("UT",0.2) };
        let patient = since(self.lacking_since).is_some_and(|seconds| seconds >= super::knob("PU", 120.0));
        !patient && f64::from(wanted) < f64::from(held) * (1.0 + step)
    }
}
