//! How many workers a TaskQueue is to have: one pure function, [`decide`].
//!
//! # Guarantees
//! - The number is within `min..=max`, unless it was set by hand or the TaskQueue may not run at all.
//! - Scale-out happens at once and in one step, and counts workers that are still starting.
//! - Scale-in happens only when every queue was read just now *and* every worker said what it runs. Not knowing is never zero.
//! - Scale-in goes only down to the greatest number that was needed within the stabilization window, and never below the
//!   number of running tasks.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::api::v1alpha1::TaskQueueSpec;

/// Messages that wait for a worker, over all queues of a TaskQueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backlog {
    /// Every queue was read just now.
    Fresh {
        /// Messages ready.
        ready: u64,
    },
    /// Some queues were read just now, others were not.
    Partial {
        /// Messages ready in the queues that were read.
        ready: u64,
    },
    /// No queue was read just now, but all were once.
    Stale {
        /// Messages ready when they were last read.
        ready: u64,
    },
    /// Nothing is known.
    Unknown,
}

impl Backlog {
    /// Messages ready as last read, for status and metrics; absent if never read.
    pub fn last_known(self) -> Option<u64> {
        match self {
            Self::Fresh { ready } | Self::Partial { ready } | Self::Stale { ready } => Some(ready),
            Self::Unknown => None,
        }
    }
}

/// Tasks that run on the workers that count (those whose pods are about to go do not).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Tasks that workers say they run.
    pub tasks: u32,
    /// Workers that have started but do not say what they run: each may run a task or not.
    pub silent_workers: u32,
}

/// What is known about a TaskQueue at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Messages that wait.
    pub backlog: Backlog,
    /// Tasks that run.
    pub running: Running,
    /// Workers asked for so far, those included that are still starting; none if there is no Deployment yet.
    pub replicas: Option<u16>,
}

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Fewest workers.
    pub min: u16,
    /// Most workers.
    pub max: u16,
    /// Tasks for one worker.
    pub tasks_per_worker: NonZeroU32,
    /// How long a number that was wanted once is kept before workers are taken away.
    pub stabilization: Duration,
    /// Hold the number where it is.
    pub paused: bool,
    /// A number set by hand.
    pub manual: Option<u16>,
    /// The queues belong to another TaskQueue, so that nothing may run.
    pub claimed: bool,
}

impl Policy {
    /// The policy that a spec states, `claimed` if another TaskQueue holds one of its queues.
    pub fn new(spec: &TaskQueueSpec, claimed: bool) -> Self {
        let scaling = &spec.scaling;
        Self {
            min: scaling.min_replicas,
            // The API server refuses min above max; should a resource have come around it, min gives way.
            max: scaling.max_replicas.max(1),
            tasks_per_worker: scaling.tasks_per_worker.and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN),
            stabilization: Duration::from_secs(scaling.scale_down.stabilization_seconds.into()),
            paused: scaling.paused,
            manual: spec.replicas,
            claimed,
        }
    }

    fn clamp(&self, replicas: u64) -> u16 {
        let bounded = replicas.max(self.min.into()).min(self.max.into());
        u16::try_from(bounded).unwrap_or(self.max)
    }
}

/// What a decision rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecisionReason {
    /// The backlog and the running tasks.
    Backlog,
    /// No task waits or runs.
    Idle,
    /// Fewer workers would do now, but more were wanted a short while ago.
    Stabilizing,
    /// Fewer workers would do, but more than that run a task.
    TasksRunning,
    /// Fewer workers would do, but some do not say whether they run a task.
    WorkersSilent,
    /// The backlog isn't known: nothing changes.
    BacklogUnknown,
    /// The user said pause.
    Paused,
    /// The user set the number.
    Manual,
    /// Another TaskQueue has the queue.
    QueueClaimed,
}

impl DecisionReason {
    /// All reasons.
    pub const ALL: &[Self] = &[
        Self::Backlog,
        Self::Idle,
        Self::Stabilizing,
        Self::TasksRunning,
        Self::WorkersSilent,
        Self::BacklogUnknown,
        Self::Paused,
        Self::Manual,
        Self::QueueClaimed,
    ];

    /// The word, as it stands in the status and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Backlog => "Backlog",
            Self::Idle => "Idle",
            Self::Stabilizing => "Stabilizing",
            Self::TasksRunning => "TasksRunning",
            Self::WorkersSilent => "WorkersSilent",
            Self::BacklogUnknown => "BacklogUnknown",
            Self::Paused => "Paused",
            Self::Manual => "Manual",
            Self::QueueClaimed => "QueueClaimed",
        }
    }
}

impl fmt::Display for DecisionReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A number of workers, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Workers to ask for.
    pub replicas: u16,
    /// What the number rests on.
    pub reason: DecisionReason,
    /// The decision as a sentence, for the status.
    pub sentence: String,
    /// What is needed now, without regard to the past; to be recorded in the [`History`].
    pub wanted: u16,
    /// When to decide again even if nothing is observed until then.
    pub recheck_after: Option<Duration>,
}

impl Decision {
    /// A number that needs no second look, and that is what is needed now.
    fn fixed(replicas: u16, reason: DecisionReason, sentence: String) -> Self {
        Self { replicas, reason, sentence, wanted: replicas, recheck_after: None }
    }
}

/// What was wanted in the past, as far as the stabilization window needs it.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The number wanted now.
    current: Option<u16>,
    /// Numbers wanted until a moment, latest last, and ever smaller: a number that a later, greater one outlived can't be a maximum.
    past: VecDeque<(Instant, u16)>,
}

impl History {
    /// Notes what is wanted from `now` on.
    pub fn record(&mut self, now: Instant, wanted: u16, stabilization: Duration) {
        if let Some(previous) = self.current.filter(|previous| *previous > wanted) {
            while self.past.back().is_some_and(|(_, past)| *past <= previous) {
                self.past.pop_back();
            }
            self.past.push_back((now, previous));
        } else {
            while self.past.back().is_some_and(|(_, past)| *past <= wanted) {
                self.past.pop_back();
            }
        }
        while self.past.front().is_some_and(|(until, _)| now.duration_since(*until) > stabilization) {
            self.past.pop_front();
        }
        self.current = Some(wanted);
    }

    /// The greatest number wanted within the window before `now`, and how long it still counts.
    fn greatest(&self, now: Instant, stabilization: Duration) -> Option<(u16, Duration)> {
        // Every past number is greater than all later ones, so the first that is still within the window is the greatest.
        self.past
            .iter()
            .map(|(until, wanted)| (*wanted, stabilization.saturating_sub(now.duration_since(*until))))
            .chain(self.current.map(|wanted| (wanted, stabilization)))
            .find(|(_, left)| !left.is_zero())
    }

    /// What is wanted now, if anything was recorded yet.
    pub fn current(&self) -> Option<u16> {
        self.current
    }
}

/// Decides how many workers there are to be.
pub fn decide(observation: &Observation, history: &History, policy: &Policy, now: Instant) -> Decision {
    let asked_for = observation.replicas.unwrap_or(policy.min);
    if policy.claimed {
        let sentence = "0: a queue belongs to an older TaskQueue".to_owned();
        return Decision::fixed(0, DecisionReason::QueueClaimed, sentence);
    }
    if let Some(manual) = policy.manual {
        let sentence = format!("{manual} = spec.replicas, set by hand");
        return Decision::fixed(manual, DecisionReason::Manual, sentence);
    }
    // `maxReplicas` may have been lowered, which holds whatever is known.
    let hold = |reason, why| {
        let replicas = policy.clamp(asked_for.into());
        Decision::fixed(replicas, reason, format!("{replicas}: held, {why}"))
    };
    if policy.paused {
        return hold(DecisionReason::Paused, "spec.scaling.paused is set");
    }
    let (ready, all_queues_read) = match observation.backlog {
        Backlog::Fresh { ready } => (ready, true),
        Backlog::Partial { ready } => (ready, false),
        Backlog::Stale { .. } | Backlog::Unknown => {
            return hold(DecisionReason::BacklogUnknown, "the backlog is not known");
        }
    };
    let demand = Demand::new(ready, observation.running.tasks, policy);
    if demand.wanted() >= asked_for {
        demand.met()
    } else if all_queues_read {
        fewer(&demand, asked_for, observation.running.silent_workers, history, now)
    } else {
        hold(DecisionReason::BacklogUnknown, "some queues could not be read")
    }
}

/// Decides when fewer workers than asked for would do: how many of them may go now.
fn fewer(
    demand: &Demand<'_>,
    asked_for: u16,
    silent_workers: u32,
    history: &History,
    now: Instant,
) -> Decision {
    let policy = demand.policy;
    let asked_for = policy.clamp(asked_for.into());
    // A worker that runs a task is needed, whatever the arithmetic says.
    let busy = policy.clamp(demand.running).min(asked_for);
    let needed_now = demand.wanted().max(busy);
    let (needed, left) = history.greatest(now, policy.stabilization).unwrap_or((needed_now, Duration::ZERO));
    let needed = policy.clamp(needed.into()).min(asked_for);
    let decision = |replicas: u16, reason, why: String, recheck_after| Decision {
        replicas,
        reason,
        sentence: format!("{replicas}: {demand}, {why}"),
        wanted: needed_now,
        recheck_after,
    };
    if silent_workers > 0 && needed < asked_for {
        let why = format!("held because {silent_workers} workers do not say what they run");
        return decision(asked_for, DecisionReason::WorkersSilent, why, None);
    }
    if needed > needed_now {
        let seconds = policy.stabilization.as_secs();
        let why = format!("but {needed} were needed within the last {seconds} s");
        return if asked_for - needed < least_step_down(asked_for) {
            let why = format!("{why}, and a step down takes away a quarter at least");
            decision(asked_for, DecisionReason::Stabilizing, why, Some(left))
        } else {
            decision(needed, DecisionReason::Stabilizing, why, Some(left))
        };
    }
    if busy > demand.wanted() {
        let why = format!("but {} workers run a task", demand.running);
        return decision(busy, DecisionReason::TasksRunning, why, None);
    }
    demand.met()
}

/// The fewest workers that a step down takes away while more steps will follow: a need that falls steadily would otherwise mean a
/// change every second. The last step takes whatever is left.
fn least_step_down(replicas: u16) -> u16 {
    replicas.div_ceil(4)
}

/// How many workers the tasks ask for, with the arithmetic in words.
struct Demand<'a> {
    ready: u64,
    running: u64,
    /// Workers for that many tasks, before the bounds.
    workers: u64,
    policy: &'a Policy,
}

impl<'a> Demand<'a> {
    fn new(ready: u64, running: u32, policy: &'a Policy) -> Self {
        let running = u64::from(running);
        let workers = ready.saturating_add(running).div_ceil(policy.tasks_per_worker.get().into());
        Self { ready, running, workers, policy }
    }

    /// Workers within the bounds.
    fn wanted(&self) -> u16 {
        self.policy.clamp(self.workers)
    }

    /// The decision for exactly as many workers as wanted.
    fn met(&self) -> Decision {
        let wanted = self.wanted();
        let reason = if self.workers == 0 { DecisionReason::Idle } else { DecisionReason::Backlog };
        let sentence = if u64::from(wanted) == self.workers {
            format!("{wanted} = {}", self.expression())
        } else {
            format!("{wanted}: {self}")
        };
        Decision::fixed(wanted, reason, sentence)
    }

    fn expression(&self) -> String {
        format!("ceil(({} ready + {} running) / {})", self.ready, self.running, self.policy.tasks_per_worker)
    }
}

impl fmt::Display for Demand<'_> {
    /// `ceil((980 ready + 0 running) / 10) = 98, capped by maxReplicas 50`
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} = {}", self.expression(), self.workers)?;
        let Policy { min, max, .. } = self.policy;
        if self.workers > u64::from(*max) {
            write!(formatter, ", capped by maxReplicas {max}")
        } else if self.workers < u64::from(*min) {
            write!(formatter, ", raised to minReplicas {min}")
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
