//! Which changes are noise, and when workers may be taken away.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Terms;

/// Start-up times for which a number that was wanted is kept: for less, starting the workers was not worth it.
const STARTUPS: f64 = 4.0;
/// Service times for which it is kept, and the upper limit of that in seconds.
const SERVICES: f64 = 2.0;
const LONGEST_SECONDS: f64 = 120.0;
/// Seconds for which a change smaller than a step must have been wanted without a break.
const PATIENCE_UP_SECONDS: f64 = 60.0;
const PATIENCE_DOWN_SECONDS: f64 = 240.0;

/// How long a number that was wanted is kept, if the user doesn't say.
pub(super) fn window(terms: &Terms) -> Duration {
    let services = (SERVICES * terms.service_seconds).min(LONGEST_SECONDS);
    Duration::from_secs_f64((STARTUPS * terms.startup_seconds).max(services))
}

/// What was wanted in the past, and when the number was last changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// Numbers wanted, and until when, ever smaller: a number that a later, greater one outlived can't be a maximum.
    past: VecDeque<(Instant, u32)>,
    changed_at: Option<Instant>,
    /// Since when more were wanted than there are.
    lacking_since: Option<Instant>,
}

impl Wanted {
    /// Notes what is wanted while there are `held`.
    pub(super) fn record(&mut self, now: Instant, wanted: u32, held: u32, window: Duration) {
        while self.past.back().is_some_and(|(_, past)| *past <= wanted) {
            self.past.pop_back();
        }
        self.past.push_back((now, wanted));
        let memory = patient(window);
        while self.past.front().is_some_and(|(until, _)| now.duration_since(*until) > memory) {
            self.past.pop_front();
        }
        self.lacking_since = (wanted > held).then(|| self.lacking_since.unwrap_or(now));
    }

    /// The greatest number wanted within the window before `now`.
    pub(super) fn greatest(&self, now: Instant, window: Duration) -> u32 {
        let within = |(until, _): &&(Instant, u32)| now.duration_since(*until) <= window;
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

    /// The number to go down to from `held`, by a part of at least `step` or after long; it may be `held` itself.
    pub(super) fn lowered(&self, now: Instant, window: Duration, held: u32, min: u32, step: f64) -> u32 {
        let greatest = self.greatest(now, window).max(min);
        let large = f64::from(greatest) <= f64::from(held) * (1.0 - step);
        let lowered =
            if large || greatest == min { greatest } else { self.greatest(now, patient(window)).max(min) };
        lowered.min(held)
    }

    /// Whether asking for `wanted` instead of `held` workers would follow noise: a change by less than `step`, not for long.
    pub(super) fn is_noise(&self, held: u32, wanted: u32, step: f64, now: Instant) -> bool {
        let lacking = self.lacking_since.map_or(0.0, |since| now.duration_since(since).as_secs_f64());
        lacking < PATIENCE_UP_SECONDS && f64::from(wanted) < f64::from(held) * (1.0 + step)
    }
}

fn patient(window: Duration) -> Duration {
    window.max(Duration::from_secs_f64(PATIENCE_DOWN_SECONDS))
}

#[cfg(test)]
mod tests;
