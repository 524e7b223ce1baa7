//! How long a task takes: the time that workers were busy, divided by the tasks that they finished.
//!
//! That is Little's law, and holds for every distribution. Running tasks count from their start, so that tasks that take longer than
//! ever before show before the first of them is done. It needs the duration of no single task, so a lost event does no harm.

use std::time::{Duration, Instant};

use super::Tasks;

/// What a task takes as long as nothing is known, in seconds, and how many finished tasks that assumption weighs.
const PRIOR_SECONDS: f64 = 5.0;
const PRIOR_TASKS: f64 = 5.0;
/// Finished tasks after which about two thirds of what was learned before are forgotten: the estimate is then as good as 4 %.
const MEMORY_TASKS: f64 = 512.0;
/// A task that doesn't end raises the estimate to this multiple of what it has run, no higher.
const FORESIGHT: f64 = 2.0;
/// Shorter tasks than this, in seconds, are taken for as long as this: the count of running tasks does not see them.
const SHORTEST_SECONDS: f64 = 0.001;

/// Learns the service time.
#[derive(Clone, Debug)]
pub(super) struct ServiceTime {
    previous: Option<(Instant, Tasks)>,
    busy_seconds: f64,
    finished: f64,
    /// The quotient when a task was last finished.
    learned: f64,
}

impl Default for ServiceTime {
    fn default() -> Self {
        Self {
            previous: None,
            busy_seconds: PRIOR_SECONDS * PRIOR_TASKS,
            finished: PRIOR_TASKS,
            learned: PRIOR_SECONDS,
        }
    }
}

impl ServiceTime {
    /// Takes in what runs and what was finished.
    pub(super) fn observe(&mut self, tasks: &Tasks, now: Instant) {
        let Some((then, before)) = self.previous.replace((now, *tasks)) else { return };
        let elapsed = now.duration_since(then).as_secs_f64();
        let busy_seconds = elapsed * f64::from(before.running).midpoint(tasks.running.into());
        // A counter that starts again belongs to an observer that did.
        let done = tasks.finished.saturating_sub(before.finished) as f64;
        let kept = (-done / MEMORY_TASKS).exp();
        self.busy_seconds = self.busy_seconds * kept + busy_seconds;
        self.finished = self.finished * kept + done;
        if done > 0.0 {
            self.learned = (self.busy_seconds / self.finished).max(SHORTEST_SECONDS);
        }
    }

    /// What a task takes, in seconds.
    pub(super) fn seconds(&self, longest_running: Duration) -> f64 {
        let so_far = self.busy_seconds / self.finished;
        let foreseen = FORESIGHT * longest_running.as_secs_f64();
        so_far.min(foreseen).max(self.learned)
    }
}

#[cfg(test)]
mod tests;
