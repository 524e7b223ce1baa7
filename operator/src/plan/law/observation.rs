//! What is known about a TaskQueue at one moment.

use std::time::Duration;

use super::super::autoscaler::Backlog;
use super::Reason;

/// Tasks that run on the workers of a TaskQueue, those of workers that are being drained included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tasks {
    /// Tasks that workers say they run.
    pub running: u32,
    /// For how long the longest of them has been running.
    pub longest_running: Duration,
    /// Tasks that workers have finished, ever: only its growth matters.
    pub finished: u64,
    /// Workers that are ready but do not say what they run.
    pub silent_workers: u32,
}

/// The workers that are to take tasks: those being drained do not count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workers {
    /// Workers asked for so far.
    pub asked_for: u16,
    /// Workers that take tasks now.
    pub consuming: u16,
    /// Ages of the pods that do not take tasks yet.
    pub starting: Vec<Duration>,
    /// Consumers that the broker counts, on the queue with the fewest; absent if it was not asked.
    pub attached: Option<u32>,
    /// Start-up times (pod created to first consume) of workers that came up since the previous observation.
    pub started: Vec<Duration>,
}

/// What is known about a TaskQueue at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Messages that wait.
    pub backlog: Backlog,
    /// Tasks that run.
    pub tasks: Tasks,
    /// Workers that run them.
    pub workers: Workers,
}

impl Observation {
    /// Why there may be more tasks than it seems, if so.
    pub(super) fn doubt(&self) -> Option<Reason> {
        let Workers { attached, consuming, .. } = self.workers;
        if !matches!(self.backlog, Backlog::Fresh { .. }) {
            Some(Reason::BacklogUnknown)
        } else if self.tasks.silent_workers > 0 {
            Some(Reason::WorkersSilent)
        } else if attached.is_some_and(|attached| attached < consuming.into()) {
            // A broker that has just restarted, or a quorum queue without a leader, which answers 0 messages and 0 consumers.
            Some(Reason::WorkersDetached)
        } else {
            None
        }
    }
}
