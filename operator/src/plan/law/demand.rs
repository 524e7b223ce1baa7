//! How many workers the load and the backlog need.

use super::rates::Waiting;
use super::Workers;

/// How well arriving tasks are to be served.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Standard {
    /// Part of the tasks that may wait longer than allowed.
    pub(super) late: f64,
    /// A spare worker that is needed less often than once in this many seconds is not worth its price.
    pub(super) needed_within_seconds: f64,
}

/// The fewest workers that serve random arrivals to a standard, a task waiting `wait_seconds` not being late (Erlang's delay formula).
///
/// Workers that would be needed too rarely are left out: without one, a task waits until it has started, as rarely. Gives up at `limit`.
pub(super) fn for_load(
    arrival_rate: f64,
    service_seconds: f64,
    wait_seconds: f64,
    standard: Standard,
    limit: u32,
) -> u32 {
    let load = arrival_rate * service_seconds;
    if load >= f64::from(limit) {
        return limit;
    }
    // Part of the arrivals that find the first `workers` busy, if they did not wait (Erlang's loss formula, by its recursion).
    let mut lost = 1.0;
    for workers in 0..limit {
        let servers = f64::from(workers);
        if workers > 0 {
            lost = load * lost / (servers + load * lost);
        }
        if servers > load {
            let delayed = servers * lost / (servers - load * (1.0 - lost));
            let late = delayed * (-(servers - load) * wait_seconds / service_seconds).exp();
            if late <= standard.late {
                return workers;
            }
        }
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

    /// Tasks that can start within `seconds`. A busy worker starts one each time it ends one; a new one starts one at once.
    fn starts(&self, seconds: f64) -> f64 {
        let fresh: f64 = self
            .starting
            .iter()
            .take_while(|until| **until <= seconds)
            .map(|until| 1.0 + (seconds - until) / self.service_seconds)
            .sum();
        self.consuming * seconds / self.service_seconds + fresh
    }
}

/// What is asked of the workers: every waiting message to start in time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backpressure {
    /// How long a message may wait.
    pub(super) wait_seconds: f64,
    /// How long a worker takes that is asked for now, until it takes its first task.
    pub(super) answer_seconds: f64,
}

impl Backpressure {
    /// The fewest workers with which every message starts in time, as far as more workers can still help.
    pub(super) fn workers(&self, waiting: &[Waiting], capacity: &Capacity) -> u32 {
        // A worker is asked for only if it then has work for as long as it takes to start: later than allowed if it must be.
        let soonest = 2.0 * self.answer_seconds;
        let service = capacity.service_seconds;
        let mut needed: f64 = 0.0;
        for group in waiting {
            let seconds = (self.wait_seconds - group.waited_seconds).max(soonest);
            let messages = group.messages as f64;
            let missing = messages - capacity.starts(seconds);
            needed = needed.max(if missing > 0.0 {
                capacity.workers() + missing / (1.0 + (seconds - self.answer_seconds) / service)
            } else {
                let left = (self.wait_seconds - group.waited_seconds).max(1.0);
                (messages * service / left).min(capacity.workers())
            });
        }
        needed.ceil() as u32
    }
}
