//! How many tasks arrive: learned from the balance of what waits, runs and was finished, without asking the broker for rates.

use std::collections::VecDeque;
use std::time::Instant;

use super::Tasks;

/// A short average and longer ones of the arrival rate, in seconds. Simulated: 10/30/180 to 20/90/300 do much the same.
const WINDOWS: [f64; 3] = [15.0, 60.0, 240.0];
/// Two averages contradict each other when they differ by more standard deviations of the shorter one. About 3 of their difference,
/// since the averages share what is recent.
const CONTRADICTION: f64 = 2.2;
/// A rate of so many arrivals within the silence since the last one is ruled out: at random, one silence in a hundred is longer.
const SILENT_ARRIVALS: f64 = 4.6;
/// How fast a drop of what is in the system that no finished task explains (a purge, a lost message) is forgotten, in seconds.
const FORGET_SECONDS: f64 = 10.0;
/// Steps of the arrival curve that are kept. With one a second: a quarter of an hour of arrivals that all wait.
const CURVE_STEPS: usize = 1024;

/// An arrival rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rate {
    /// Tasks a second.
    pub(super) rate: f64,
    /// Seconds over which it is an average.
    pub(super) window_seconds: f64,
}

/// Messages that arrived about the same time and still wait.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Waiting {
    /// How long the oldest of them may have waited, in seconds.
    pub(super) waited_seconds: f64,
    /// Messages that must start until these have: these and all older ones.
    pub(super) messages: u64,
}

/// Learns the arrival rate, and when the waiting messages arrived.
#[derive(Clone, Debug, Default)]
pub(super) struct Arrivals {
    /// What waited, ran and was finished, in sum, at the previous reading.
    previous: Option<(Instant, f64)>,
    /// Below zero while more arrivals were counted than came: the parts of a reading are not all of the same instant.
    carry: f64,
    averages: [f64; WINDOWS.len()],
    arrived_at: Option<Instant>,
    /// Messages that arrived at an instant or soon after it, the oldest first.
    curve: VecDeque<(Instant, u64)>,
}

impl Arrivals {
    /// Takes in a reading.
    pub(super) fn observe(&mut self, ready: u64, tasks: &Tasks, wait_seconds: f64, now: Instant) {
        let level = ready as f64 + f64::from(tasks.running) + tasks.finished as f64;
        let Some((then, previous)) = self.previous.replace((now, level)) else {
            // When the first messages arrived can't be known.
            self.curve.push_back((now, ready));
            return;
        };
        let elapsed = now.duration_since(then).as_secs_f64();
        self.carry += level - previous;
        if elapsed <= 0.0 {
            return;
        }
        let arrived = self.carry.max(0.0);
        self.carry = self.carry.min(0.0) * (-elapsed / FORGET_SECONDS).exp();
        if arrived > 0.0 {
            self.arrived_at = Some(now);
            self.curve.push_back((then, arrived.round() as u64));
        }
        self.average(arrived / elapsed, elapsed, &windows(wait_seconds));
        self.forget(ready);
    }

    fn average(&mut self, rate: f64, elapsed: f64, windows: &[f64]) {
        for (average, window) in self.averages.iter_mut().zip(windows) {
            let old = (-elapsed / window).exp();
            *average = *average * old + rate * (1.0 - old);
        }
        // A fall is believed at once: what was before it says nothing about what comes.
        for long in 1..windows.len() {
            let (of_short, of_long) = (self.averages[long - 1], self.averages[long]);
            if of_short < of_long && contradict(of_short, of_long, windows[long - 1]) {
                self.averages[long] = of_short;
            }
        }
    }

    /// Tasks that arrive: the longest average that no shorter one contradicts.
    pub(super) fn rate(&self, wait_seconds: f64, now: Instant) -> Rate {
        let windows = windows(wait_seconds);
        let agrees = |long: &usize| {
            (0..*long).all(|short| !contradict(self.averages[short], self.averages[*long], windows[short]))
        };
        let agreed = (0..windows.len()).rev().find(agrees).unwrap_or(0);
        let silence = self.arrived_at.map_or(0.0, |at| now.duration_since(at).as_secs_f64());
        let possible = if silence > 0.0 { SILENT_ARRIVALS / silence } else { f64::INFINITY };
        Rate { rate: self.averages[agreed].min(possible), window_seconds: windows[agreed] }
    }

    /// The `ready` messages by age, the oldest first. Queues are first in, first out, so these are the latest arrivals.
    pub(super) fn waiting(&self, ready: u64, now: Instant) -> Vec<Waiting> {
        let mut groups = Vec::new();
        let mut younger = 0;
        for &(at, arrived) in self.curve.iter().rev() {
            if younger >= ready {
                break;
            }
            let waited_seconds = now.duration_since(at).as_secs_f64();
            groups.push(Waiting { waited_seconds, messages: ready - younger });
            younger = younger.saturating_add(arrived);
        }
        groups.reverse();
        groups
    }

    /// Drops the arrivals that do not wait any more, and the oldest ones if there are too many steps.
    fn forget(&mut self, ready: u64) {
        let mut known: u64 = self.curve.iter().map(|(_, arrived)| arrived).sum();
        while let Some((_, arrived)) = self.curve.front() {
            known -= arrived;
            if known < ready && self.curve.len() <= CURVE_STEPS || self.curve.len() == 1 {
                break;
            }
            self.curve.pop_front();
        }
    }
}

/// The shortest average is as long as tasks may wait: what comes and goes within that time is a matter of the backlog.
fn windows(wait_seconds: f64) -> [f64; WINDOWS.len()] {
    WINDOWS.map(|window| window.max(wait_seconds))
}

/// Whether two averages differ by more than chance would have it.
fn contradict(of_short: f64, of_long: f64, short_window: f64) -> bool {
    // The variance of an exponential average of a Poisson process is rate / (2 × window).
    let deviation = (of_long.max(of_short) / (2.0 * short_window)).sqrt();
    (of_long - of_short).abs() > CONTRADICTION * deviation
}

#[cfg(test)]
mod tests;
