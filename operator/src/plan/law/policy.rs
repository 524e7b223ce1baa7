//! What the user wants.

use std::num::NonZeroU32;
use std::time::Duration;

/// What the number of workers is to achieve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// No task waits longer than this many seconds for a worker.
    MaxWaitSeconds(f64),
    /// One worker for so many tasks that wait or run.
    TasksPerWorker(NonZeroU32),
}

/// Workers to have at least when the backlog has not been known for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// How long not to know.
    pub after: Duration,
    /// Workers to have then, at least.
    pub replicas: u16,
}

/// What the user wants, as it holds now (a schedule's floor or ceiling, a budget, are already in `min` and `max`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// Fewest workers.
    pub min: u16,
    /// Most workers.
    pub max: u16,
    /// What the number is to achieve.
    pub goal: Goal,
    /// How long a number that was wanted once is kept before workers are taken away; if not given, the law chooses.
    pub stabilization: Option<Duration>,
    /// What to do when nothing was known for long.
    pub fallback: Option<Fallback>,
}

impl Policy {
    /// `replicas` within the bounds; where they contradict each other, `max` counts.
    pub fn bounded(&self, replicas: u32) -> u16 {
        let bounded = replicas.max(self.min.into()).min(self.max.into());
        u16::try_from(bounded).unwrap_or(self.max)
    }

    /// How long a task may wait; 0 if the user did not say.
    pub(super) fn wait_seconds(&self) -> f64 {
        match self.goal {
            Goal::MaxWaitSeconds(wait) => wait,
            Goal::TasksPerWorker(_) => 0.0,
        }
    }
}
