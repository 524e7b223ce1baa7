//! How many tasks arrive: learned from the balance of what waits, runs and was finished, without asking the broker for rates.

use std::collections::VecDeque;
use std::time::Instant;

use super::Tasks;

/// A short average and longer ones of the arrival rate, in seconds. Simulated: half and twice of them do much the same.
const WINDOWS: [f64; 4] = [20.0, 80.0, 320.0, 1280.0];
/// Parts of a window, which are forgotten one after the other.
const BINS: usize = 16;
/// Two averages contradict each other when they differ by more standard deviations of the shorter one. That is about 3 of their
/// difference, since the averages have the latest arrivals in common.
const CONTRADICTION: f64 = 2.4;
/// A rate of so many arrivals within the silence since the last one is ruled out: at random, one silence in twenty is longer.
const SILENT_ARRIVALS: f64 = 3.0;
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
    /// What waited and ran, in sum, and what was finished, at the previous reading.
    previous: Option<(Instant, f64, u64)>,
    /// Below zero while more arrivals were counted than came: the parts of a reading are not all of the same instant.
    carry: f64,
    averages: [Average; WINDOWS.len()],
    arrived_at: Option<Instant>,
    /// Messages that arrived at an instant or soon after it, the oldest first.
    curve: VecDeque<(Instant, u64)>,
}

impl Arrivals {
    /// Takes in a reading.
    pub(super) fn observe(&mut self, ready: u64, tasks: &Tasks, now: Instant) {
        let level = ready as f64 + f64::from(tasks.running);
        let Some((then, previous, finished)) = self.previous.replace((now, level, tasks.finished)) else {
            // When the first messages arrived can't be known.
            self.curve.push_back((now, ready));
            return;
        };
        let elapsed = now.duration_since(then).as_secs_f64();
        // A counter that starts again belongs to an observer that did.
        self.carry += level - previous + tasks.finished.saturating_sub(finished) as f64;
        if elapsed <= 0.0 {
            return;
        }
        let arrived = self.carry.max(0.0);
        self.carry = self.carry.min(0.0) * (-elapsed / FORGET_SECONDS).exp();
        if arrived > 0.0 {
            self.arrived_at = Some(now);
            self.curve.push_back((then, arrived.round() as u64));
        }
        self.average(arrived / elapsed, elapsed);
        self.forget(ready);
    }

    fn average(&mut self, rate: f64, elapsed: f64) {
        for (average, window) in self.averages.iter_mut().zip(WINDOWS) {
            average.pass(rate, elapsed, window);
        }
        // A fall is believed at once: what was before it says nothing about what comes.
        for long in 1..WINDOWS.len() {
            let (of_short, of_long) = (self.averages[long - 1].rate, self.averages[long].rate);
            if of_short < of_long && contradict(of_short, of_long, WINDOWS[long - 1]) {
                self.averages[long].scale(of_short / of_long);
            }
        }
    }

    /// Tasks that arrive: the longest average that no shorter one contradicts, but none shorter than tasks may wait. What comes and
    /// goes within that time is a matter of the backlog.
    pub(super) fn rate(&self, wait_seconds: f64, now: Instant) -> Rate {
        let rates = self.averages.each_ref().map(|average| average.rate);
        let longest = WINDOWS.len() - 1;
        let shortest = WINDOWS.iter().position(|window| *window >= wait_seconds).unwrap_or(longest);
        let agrees = |long: &usize| {
            (shortest..*long).all(|short| !contradict(rates[short], rates[*long], WINDOWS[short]))
        };
        let agreed = (shortest..=longest).rev().find(agrees).unwrap_or(shortest);
        let silence = self.arrived_at.map_or(0.0, |at| now.duration_since(at).as_secs_f64());
        let possible = if silence > 0.0 { SILENT_ARRIVALS / silence } else { f64::INFINITY };
        Rate { rate: rates[agreed].min(possible), window_seconds: WINDOWS[agreed] }
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

/// The average of a window, which forgets its oldest part when a new one begins.
#[derive(Clone, Debug, Default)]
struct Average {
    /// Arrivals in each part of the window, in a ring.
    bins: [f64; BINS],
    current: usize,
    /// Seconds for which the current part lasts already.
    lasted: f64,
    rate: f64,
}

impl Average {
    /// Lets `elapsed` seconds pass with this rate.
    fn pass(&mut self, rate: f64, elapsed: f64, window: f64) {
        let part = window / BINS as f64;
        // Of a longer time nothing of before is left.
        let mut left = elapsed.min(window + part);
        while left > 0.0 {
            if self.lasted >= part {
                self.current = (self.current + 1) % BINS;
                self.bins[self.current] = 0.0;
                self.lasted = 0.0;
            }
            let step = left.min(part - self.lasted).max(f64::EPSILON * window);
            self.bins[self.current] += rate * step;
            self.lasted += step;
            left -= step;
        }
        self.rate = self.bins.iter().sum::<f64>() / (window - part + self.lasted);
    }

    fn scale(&mut self, factor: f64) {
        self.bins.iter_mut().for_each(|bin| *bin *= factor);
        self.rate *= factor;
    }
}

/// Whether two averages differ by more than chance would have it.
fn contradict(of_short: f64, of_long: f64, short_window: f64) -> bool {
    // The variance of the average of a Poisson process is rate / window.
    let deviation = (of_long.max(of_short) / short_window).sqrt();
    (of_long - of_short).abs() > CONTRADICTION * deviation
}

#[cfg(test)]
mod tests;
