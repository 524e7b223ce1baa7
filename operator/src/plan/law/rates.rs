//! How many tasks arrive: learned from the balance of what waits, runs and was finished, without asking the broker for rates.

use std::collections::VecDeque;
use std::time::Instant;

use super::Tasks;

/// Shortest and longer averages of the arrival rate, in seconds.
const WINDOWS: [f64; 3] = [15.0, 60.0, 240.0];
/// Two averages contradict each other when they differ by more standard deviations of a Poisson process than this.
const CONTRADICTION: f64 = 3.0;
/// A rate of so many arrivals within the silence since the last one is ruled out (at random, one silence in a hundred is longer).
const SILENT_ARRIVALS: f64 = 4.6;
/// How fast a drop of what is in the system that no finished task explains (a purge, a lost message) is forgotten, in seconds.
const FORGET_SECONDS: f64 = 10.0;
/// Steps of the arrival curve that are kept: with one a second, more than the longest wait that makes sense to control.
const CURVE_STEPS: usize = 1024;

/// Messages that arrived about the same time and still wait.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Waiting {
    /// How long the oldest of them may have waited, in seconds.
    pub(super) waited_seconds: f64,
    /// Messages that wait at least about as long: these and all older ones.
    pub(super) messages: u64,
}

/// Learns the arrival rate, and when the waiting messages arrived.
#[derive(Clone, Debug, Default)]
pub(super) struct Arrivals {
    previous: Option<(Instant, f64)>,
    /// Negative while arrivals were counted in advance: the readings of a balance are not all of the same instant.
    carry: f64,
    averages: [f64; WINDOWS.len()],
    arrived_at: Option<Instant>,
    /// Arrivals at or after an instant, the oldest first.
    curve: VecDeque<(Instant, u64)>,
    fraction: f64,
}

impl Arrivals {
    /// Takes in a reading of everything at once.
    pub(super) fn observe(&mut self, ready: u64, tasks: &Tasks, wait_seconds: f64, now: Instant) {
        let level = ready as f64 + f64::from(tasks.running) + tasks.finished as f64;
        let Some((then, previous)) = self.previous.replace((now, level)) else {
            // When the first messages arrived can't be known.
            self.push(now, ready as f64);
            return;
        };
        let elapsed = now.duration_since(then).as_secs_f64();
        if elapsed <= 0.0 {
            self.previous = Some((then, previous));
            return;
        }
        self.carry += level - previous;
        let arrived = self.carry.max(0.0);
        self.carry = self.carry.min(0.0) * (-elapsed / FORGET_SECONDS).exp();
        let windows = windows(wait_seconds);
        for (average, window) in self.averages.iter_mut().zip(windows) {
            let old = (-elapsed / window).exp();
            *average = *average * old + arrived / elapsed * (1.0 - old);
        }
        // A fall is believed at once: what was before it says nothing about what comes.
        for long in 1..windows.len() {
            let (of_short, of_long) = (self.averages[long - 1], self.averages[long]);
            if of_short < of_long && contradict(of_short, of_long, windows[long - 1]) {
                self.averages[long] = of_short;
            }
        }
        if arrived > 0.0 {
            self.arrived_at = Some(now);
        }
        self.push(then, arrived);
        self.forget(ready);
    }

    /// Tasks that arrive a second, and the seconds of the average: the longest one that no shorter one contradicts.
    pub(super) fn rate(&self, wait_seconds: f64, now: Instant) -> (f64, f64) {
        let windows = windows(wait_seconds);
        let agreed = (0..windows.len())
            .rev()
            .find(|&long| {
                (0..long).all(|short| !contradict(self.averages[short], self.averages[long], windows[short]))
            })
            .unwrap_or(0);
        let silence = self.arrived_at.map_or(0.0, |at| now.duration_since(at).as_secs_f64());
        let possible = if silence > 0.0 { SILENT_ARRIVALS / silence } else { f64::INFINITY };
        (self.averages[agreed].min(possible), windows[agreed])
    }

    /// The `ready` messages by age, the oldest first: queues are first in, first out, so those are the latest arrivals.
    pub(super) fn waiting(&self, ready: u64, now: Instant) -> Vec<Waiting> {
        let mut groups = Vec::new();
        let mut left = ready;
        for &(at, arrived) in self.curve.iter().rev() {
            if left == 0 {
                break;
            }
            groups.push(Waiting { waited_seconds: now.duration_since(at).as_secs_f64(), messages: left });
            left = left.saturating_sub(arrived);
        }
        groups.reverse();
        groups
    }

    fn push(&mut self, at: Instant, arrived: f64) {
        self.fraction += arrived;
        let count = self.fraction.floor();
        self.fraction -= count;
        if count >= 1.0 {
            self.curve.push_back((at, count as u64));
        }
    }

    /// Drops the arrivals that do not wait any more, and the oldest ones if there are too many steps.
    fn forget(&mut self, ready: u64) {
        let mut known: u64 = self.curve.iter().map(|(_, count)| count).sum();
        while let Some(&(_, count)) = self.curve.front() {
            let rest = known - count;
            if rest < ready && self.curve.len() <= CURVE_STEPS || self.curve.len() == 1 {
                break;
            }
            known = rest;
            self.curve.pop_front();
        }
    }
}

/// Whether two averages differ by more than chance would have it.
fn contradict(of_short: f64, of_long: f64, short_window: f64) -> bool {
    // The variance of an exponential average of a Poisson process is rate / (2 × window).
    let deviation = (of_long.max(of_short) / (2.0 * short_window)).sqrt();
    (of_long - of_short).abs() > super::knob("CON",2.2) * deviation
}

/// The shortest average is as long as tasks may wait: what comes and goes within that time is a matter of the backlog.
fn windows(wait_seconds: f64) -> [f64; WINDOWS.len()] {
    let w = [super::knob("W1",15.0), super::knob("W2",60.0), super::knob("W3",240.0)]; w.map(|window| window.max(wait_seconds))
}
