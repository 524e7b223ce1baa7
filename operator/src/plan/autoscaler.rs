//! How many workers a TaskQueue is to have: one pure function, [`decide`].
//!
//! The control law ([`super::law`]) says how many are needed; what the user has ordered (a number set by hand, a pause, a mode) comes
//! before that. Which workers go, and when, is not decided here.
//!
//! # Guarantees
//! Those of the law, for as long as the user has ordered nothing else. Tasks that run are no floor: [`super::drain`] sees to it that each
//! is finished.

use std::fmt;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::ResourceExt as _;

use super::law::{self, Fallback, Goal, Observation, Terms};
use super::metadata::PAUSED_ANNOTATION;
use super::schedule::Bounds;
use crate::api::v1alpha1::{ScalingMode, TaskQueue};

/// Time between two decisions while there is something to do, and while there is not. News of the broker and of pods come in between.
const WHILE_ACTIVE: Duration = Duration::from_secs(1);
const WHILE_IDLE: Duration = Duration::from_secs(5);

/// How long a task may wait for a worker, in seconds, if the user says neither that nor how many tasks there are for one worker. A worker
/// starts in less, so no idle ones are kept, and a person who waits for a task has not yet gone away.
pub const DEFAULT_WAIT_SECONDS: u32 = 30;

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

/// What the user wants, as it holds now.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// What the number of workers is to achieve, and its bounds.
    pub law: law::Policy,
    /// What to do about it.
    pub mode: ScalingMode,
    /// Hold the number where it is.
    pub paused: Option<Pause>,
    /// A number set by hand.
    pub manual: Option<u16>,
    /// The queues belong to another TaskQueue, so that nothing may run.
    pub claimed: bool,
    /// A schedule that can't be read, and why.
    pub problem: Option<String>,
}

impl Policy {
    /// The policy that a TaskQueue states for a time, `claimed` if another TaskQueue holds one of its queues.
    pub fn new(task_queue: &TaskQueue, claimed: bool, now: Timestamp) -> Self {
        let scaling = &task_queue.spec.scaling;
        let Bounds { min, max, problem } = Bounds::at(now, scaling);
        let goal = match (scaling.max_wait_seconds, scaling.tasks_per_worker.and_then(NonZeroU32::new)) {
            (None, Some(tasks)) => Goal::TasksPerWorker(tasks),
            (wait, _) => Goal::MaxWaitSeconds(wait.unwrap_or(DEFAULT_WAIT_SECONDS).into()),
        };
        let stabilization = scaling.scale_down.stabilization_seconds;
        let fallback = scaling.fallback.as_ref().map(|fallback| Fallback {
            after: Duration::from_secs(fallback.after_seconds.into()),
            replicas: fallback.replicas,
        });
        Self {
            law: law::Policy {
                min,
                // The API server refuses min above max; should a resource have come around it, min gives way.
                max: max.max(1),
                goal,
                stabilization: stabilization.map(|seconds| Duration::from_secs(seconds.into())),
                fallback,
            },
            mode: scaling.mode,
            paused: Pause::of(task_queue),
            manual: task_queue.spec.replicas,
            claimed,
            problem,
        }
    }
}

/// Where the user said that the number of workers is to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pause {
    /// In the spec.
    Spec,
    /// By the annotation.
    Annotation,
}

impl Pause {
    /// Whether a TaskQueue is paused, and by what. Who sets the annotation means it: only `false` is as good as nothing.
    fn of(task_queue: &TaskQueue) -> Option<Self> {
        let annotation = task_queue.annotations().get(PAUSED_ANNOTATION);
        match task_queue.spec.scaling.paused {
            true => Some(Self::Spec),
            false => annotation.filter(|value| *value != "false").map(|_| Self::Annotation),
        }
    }

    /// What is to be said of it.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Spec => "spec.scaling.paused is set",
            Self::Annotation => "the annotation soloist.dev/paused is set",
        }
    }
}

/// What a decision rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecisionReason {
    /// What the control law found.
    Law(law::Reason),
    /// The user said pause.
    Paused(Pause),
    /// The user set the number.
    Manual,
    /// Another TaskQueue has the queue.
    QueueClaimed,
    /// The user wants to know the number, and somebody else to set it.
    Recommended,
    /// The user wants somebody else to set the number.
    Off,
}

impl DecisionReason {
    /// The word, as it stands in the status and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Law(reason) => reason.as_str(),
            Self::Paused(_) => "Paused",
            Self::Manual => "Manual",
            Self::QueueClaimed => "QueueClaimed",
            Self::Recommended => "Recommended",
            Self::Off => "Off",
        }
    }
}

impl fmt::Display for DecisionReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A number of workers, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Workers that there are to be.
    pub replicas: u16,
    /// The number to ask for; absent if that is left to somebody else.
    pub ask_for: Option<u16>,
    /// What the number rests on.
    pub reason: DecisionReason,
    /// The decision as a sentence, for the status.
    pub sentence: String,
    /// Every quantity that the control law found.
    pub terms: Terms,
    /// The bounds that hold now.
    pub bounds: (u16, u16),
    /// What the user should correct.
    pub problem: Option<String>,
    /// When to decide again even if nothing is observed until then.
    pub recheck_after: Duration,
}

/// What was learned and wanted so far.
#[derive(Clone, Debug, Default)]
pub struct History {
    law: law::History,
    /// What was recommended last, while numbers are only recommended.
    recommended: Option<u16>,
}

/// Decides how many workers there are to be. The history that is returned goes into the next decision.
pub fn decide(
    observation: &Observation,
    history: History,
    policy: &Policy,
    now: Instant,
) -> (Decision, History) {
    let asked_for = observation.workers.asked_for;
    let mut observation = observation.clone();
    let recommends = policy.mode == ScalingMode::Recommend;
    if recommends {
        // A recommendation follows from the one before it, whatever others have made of that.
        observation.workers.asked_for = history.recommended.unwrap_or(asked_for);
    }
    let (needed, law) = law::decide(&observation, history.law, &policy.law, now);
    let history = History { law, recommended: recommends.then_some(needed.replicas) };
    let recheck_after =
        if is_idle(&observation, &needed, policy.law.min) { WHILE_IDLE } else { WHILE_ACTIVE };
    let decision = Decision {
        replicas: needed.replicas,
        ask_for: Some(needed.replicas),
        reason: DecisionReason::Law(needed.reason),
        sentence: needed.sentence,
        terms: needed.terms,
        bounds: (policy.law.min, policy.law.max),
        problem: policy.problem.clone(),
        recheck_after,
    };
    (ordered(decision, policy, asked_for), history)
}

/// What becomes of a decision by what the user has ordered.
fn ordered(decision: Decision, policy: &Policy, asked_for: u16) -> Decision {
    let otherwise = &decision.sentence;
    let fixed = |replicas, reason, sentence| Decision {
        replicas,
        ask_for: Some(replicas),
        reason,
        sentence,
        ..decision.clone()
    };
    if policy.claimed {
        let sentence = "0: a queue belongs to an older TaskQueue".to_owned();
        return fixed(0, DecisionReason::QueueClaimed, sentence);
    }
    match (policy.mode, policy.manual) {
        (ScalingMode::Recommend, manual) => Decision {
            ask_for: manual,
            reason: DecisionReason::Recommended,
            sentence: format!(
                "recommended, where {} are asked for: {otherwise}",
                manual.unwrap_or(asked_for)
            ),
            ..decision
        },
        (_, Some(manual)) => {
            let sentence = format!("{manual} = spec.replicas, set by hand; otherwise {otherwise}");
            fixed(manual, DecisionReason::Manual, sentence)
        }
        (ScalingMode::Off, None) => Decision {
            ask_for: None,
            ..fixed(
                asked_for,
                DecisionReason::Off,
                format!("{asked_for}: left alone, spec.scaling.mode is Off"),
            )
        },
        (ScalingMode::Auto, None) => match policy.paused {
            Some(pause) => {
                // `maxReplicas` may have been lowered, which holds whatever else.
                let held = policy.law.bounded(asked_for.into());
                let sentence = format!("{held}: held, {}; otherwise {otherwise}", pause.sentence());
                fixed(held, DecisionReason::Paused(pause), sentence)
            }
            None => decision,
        },
    }
}

/// Whether nothing happens, and nothing is about to.
fn is_idle(observation: &Observation, decision: &law::Decision, min: u16) -> bool {
    observation.backlog == Backlog::Fresh { ready: 0 }
        && observation.tasks.running == 0
        && observation.tasks.silent_workers == 0
        && observation.workers.starting.is_empty()
        && u32::from(decision.replicas) <= decision.terms.wanted.max(min.into())
}

#[cfg(test)]
impl Decision {
    /// A decision for the tests of what rests on decisions.
    pub(crate) fn of(replicas: u16, reason: DecisionReason) -> Self {
        Self {
            replicas,
            ask_for: Some(replicas),
            reason,
            sentence: String::new(),
            terms: Terms::default(),
            bounds: (0, 50),
            problem: None,
            recheck_after: WHILE_ACTIVE,
        }
    }
}

#[cfg(test)]
mod tests;
