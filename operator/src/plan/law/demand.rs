//! How many workers the load and the backlog need.

use super::Workers;
use super::rates::Waiting;

/// Time that is left, in seconds, to a message that may wait no longer.
const SOON_SECONDS: f64 = 1.0;

/// How well arriving tasks are to be served.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Standard {
    /// Part of the tasks that may wait longer than `wait_seconds`.
    pub(super) late: f64,
    /// How long a task may wait for one of the workers.
    pub(super) wait_seconds: f64,
    /// A worker that is needed less often than once in this many seconds is not worth its price.
    pub(super) needed_within_seconds: f64,
}

/// The fewest workers that serve random arrivals to a standard, by Erlang's formulas. Gives up at `limit`.
pub(super) fn for_load(arrival_rate: f64, service_seconds: f64, standard: Standard, limit: u32) -> u32 {
    let load = arrival_rate * service_seconds;
    if load >= f64::from(limit) {
        return limit;
    }
    // Part of the arrivals that find the first `workers` busy, if none of them waited (Erlang's loss formula, by its recursion).
    let mut lost = 1.0;
    for workers in 0..limit {
        let servers = f64::from(workers);
        if workers > 0 {
            lost = load * lost / (servers + load * lost);
        }
        if servers > load {
            // The same if they all wait (Erlang's delay formula), and how many of these wait too long.
            let delayed = servers * lost / (servers - load * (1.0 - lost));
            let late = delayed * (-(servers - load) * standard.wait_seconds / service_seconds).exp();
            if late <= standard.late {
                return workers;
            }
        }
        // Without one more worker, so many tasks wait until one has started.
        if arrival_rate * lost * standard.needed_within_seconds < 1.0 {
            return workers;
        }
    }
    limit
}

/// What the workers that there are can start within a time.
#[derive(Clone, Debug)]
pub(super) struct Capacity {
    consuming: f64,
    /// Seconds until each starting worker takes its first task, most likely, ascending.
    starting: Vec<f64>,
    service_seconds: f64,
}

impl Capacity {
    /// The capacity of these workers.
    pub(super) fn new(workers: &Workers, service_seconds: f64, startup_seconds: f64) -> Self {
        let mut starting: Vec<f64> =
            workers.starting.iter().map(|age| (startup_seconds - age.as_secs_f64()).max(0.0)).collect();
        starting.sort_by(f64::total_cmp);
        Self { consuming: workers.consuming.into(), starting, service_seconds }
    }

    fn workers(&self) -> f64 {
        self.consuming + self.starting.len() as f64
    }

    /// Tasks that most likely start within `seconds`: a busy worker starts one each time it ends one. That is a matter of chance, so one
    /// standard deviation is left out: of few workers, it may well be none that ends a task.
    fn starts(&self, seconds: f64) -> f64 {
        let ends = self.consuming * seconds / self.service_seconds;
        (ends - ends.sqrt()).max(0.0) + self.fresh(seconds)
    }

    /// Those of them that workers take which are still starting, the first one of each at once.
    fn fresh(&self, seconds: f64) -> f64 {
        let in_time = self.starting.iter().take_while(|until| **until <= seconds);
        in_time.map(|until| 1.0 + (seconds - until) / self.service_seconds).sum()
    }
}

/// What is asked of the workers: every waiting message to start in time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backpressure {
    /// How long a message may wait.
    pub(super) wait_seconds: f64,
    /// How long a worker that is asked for now takes until it takes its first task.
    pub(super) answer_seconds: f64,
}

impl Backpressure {
    /// The fewest workers with which every message starts in time, or as soon as is worth the price.
    pub(super) fn workers(&self, waiting: &[Waiting], capacity: &Capacity) -> u32 {
        let needed = waiting.iter().map(|group| self.needed(group, capacity)).fold(0.0, f64::max);
        needed.ceil() as u32
    }

    fn needed(&self, group: &Waiting, capacity: &Capacity) -> f64 {
        let messages = group.messages as f64;
        let service = capacity.service_seconds;
        let left = self.wait_seconds - group.waited_seconds;
        // A worker is added only if it then has work for as long as it takes to start, even if messages are late by that.
        let horizon = left.max(2.0 * self.answer_seconds);
        // What should have started in the meantime didn't: the workers that there are take longer than they are thought to.
        let overdue = left < -horizon;
        let missing = messages - if overdue { capacity.fresh(horizon) } else { capacity.starts(horizon) };
        if missing > 0.0 {
            return capacity.workers() + missing / (1.0 + (horizon - self.answer_seconds) / service);
        }
        // Enough are there: how many of them must stay. All of them, as soon as a message is late.
        (messages * service / left.max(SOON_SECONDS)).min(capacity.workers())
    }
}

#[cfg(test)]
mod tests;
