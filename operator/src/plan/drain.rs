//! Taking workers away without hurting a task: which ones leave, and how far each of them is.
//!
//! ```text
//!   serving ──drain──► draining ──mark──► drained ──shrink──► gone
//!      ▲                   │ resume          │ resume (only if the pod is not being deleted yet)
//!      └──serve── resuming ◄─────────────────┘
//! ```
//!
//! Where a worker is in this is a label on its pod, written before the worker is told anything: an operator that takes over reads the labels
//! and goes on. [`plan`] is one pure function of pods, ReplicaSets and the number wanted.
//!
//! # Guarantees
//! - No more workers are told to leave than there are too many of, for each ReplicaSet.
//! - A pod is marked only after its worker has said, since it was told to drain, that it consumes and runs nothing; or if it has no worker
//!   that runs at all; or if the user said that draining may end by force.
//! - The number of replicas is lowered only by pods that may go: those that are marked, and those that no node has.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How far a worker is in leaving or coming back: the value of the pod's label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum State {
    /// It consumes. It has no label.
    #[default]
    Serving,
    /// It is told to consume no more, and finishes its task.
    Draining,
    /// It consumes and runs nothing: it may be deleted.
    Drained,
    /// It is told to consume again.
    Resuming,
}

impl State {
    /// The value of the label, if there is one.
    pub const fn label(self) -> Option<&'static str> {
        match self {
            Self::Serving => None,
            Self::Draining => Some("draining"),
            Self::Drained => Some("drained"),
            Self::Resuming => Some("resuming"),
        }
    }

    /// Reads the label. A value that isn't ours protects nothing and means nothing.
    pub fn from_label(value: Option<&str>) -> Self {
        let known = [Self::Draining, Self::Drained, Self::Resuming];
        known.into_iter().find(|state| value.is_some() && state.label() == value).unwrap_or_default()
    }

    /// Whether the worker is on its way out.
    pub const fn is_leaving(self) -> bool {
        matches!(self, Self::Draining | Self::Drained)
    }
}

/// How far a pod has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// No node has it. It may be deleted at any time.
    Unscheduled,
    /// It starts: its worker may consume at any moment, but can't be reached yet.
    Starting,
    /// Something keeps its worker from running, such as an image that can't be pulled.
    Stuck,
    /// Its worker runs.
    Running,
}

/// What a worker does, by its own heartbeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// No task, since then.
    Idle {
        /// When its last task ended.
        since: Instant,
    },
    /// A task, since then.
    Busy {
        /// When it began.
        since: Instant,
    },
    /// It doesn't say.
    Silent,
}

/// A worker pod that isn't being deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// UID of its ReplicaSet.
    pub replica_set: String,
    /// Its label.
    pub state: State,
    /// For how long it has been draining; none if its worker wasn't told to.
    pub draining_for: Option<Duration>,
    /// How far it has come.
    pub stage: Stage,
    /// What its worker does.
    pub activity: Activity,
    /// Whether its worker has answered that it is as far as it was told to be: drained, or consuming again.
    pub confirmed: bool,
    /// Whether the API server has just refused its label: another one leaves in its place.
    pub refused: bool,
}

/// The number of pods that a ReplicaSet is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaSet {
    /// Its UID.
    pub uid: String,
    /// That number.
    pub replicas: u16,
}

/// What there is, and what is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// Pods that aren't being deleted.
    pub pods: &'a [Pod],
    /// The ReplicaSets of the Deployment.
    pub replica_sets: &'a [ReplicaSet],
    /// Replicas that the Deployment asks for.
    pub replicas: u16,
    /// Workers wanted; none if the number is somebody else's to set.
    pub wanted: Option<u16>,
    /// Whether workers can be told anything: the broker can be reached.
    pub can_tell: bool,
    /// After how long a worker is overdue.
    pub drain_timeout: Duration,
    /// Whether a worker that is overdue is given up, with its task.
    pub force: bool,
}

/// What is to be done with a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Label it draining; its worker is told because of the label.
    Drain,
    /// Label it drained.
    Mark,
    /// Label it drained though its worker hasn't said so for too long.
    Force,
    /// Label it resuming; its worker is told because of the label.
    Resume,
    /// Remove the label.
    Serve,
}

impl Step {
    /// The label afterwards.
    pub const fn state(self) -> State {
        match self {
            Self::Drain => State::Draining,
            Self::Mark | Self::Force => State::Drained,
            Self::Resume => State::Resuming,
            Self::Serve => State::Serving,
        }
    }
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Steps by pod.
    pub steps: BTreeMap<String, Step>,
    /// Workers that have been draining for longer than the drain timeout, those that are given up for it included.
    pub overdue: Vec<String>,
}

/// Decides what is to be done with the pods. How far the Deployment may then be scaled in says [`replicas`].
pub fn plan(situation: &Situation<'_>) -> Plan {
    let mut plan = Plan::default();
    for replica_set in situation.replica_sets {
        let pods: Vec<&Pod> = of(replica_set, situation.pods).collect();
        let surplus = surplus(situation, replica_set, &pods);
        let mut leaving: Vec<&Pod> = pods.iter().copied().filter(|pod| pod.state.is_leaving()).collect();
        if leaving.len() > surplus {
            leaving.sort_by_key(|pod| nearness(pod));
            for pod in leaving.drain(surplus..) {
                plan.steps.insert(pod.name.clone(), Step::Resume);
            }
        } else if situation.can_tell {
            let mut staying: Vec<&Pod> = pods
                .iter()
                .copied()
                .filter(|pod| !pod.state.is_leaving() && pod.stage != Stage::Unscheduled && !pod.refused)
                .collect();
            staying.sort_by_key(|pod| preference(pod));
            for pod in staying.into_iter().take(surplus - leaving.len()) {
                let step = if pod.stage == Stage::Stuck { Step::Mark } else { Step::Drain };
                plan.steps.insert(pod.name.clone(), step);
            }
        }
        for pod in leaving {
            if let Some(step) = progress(pod, situation) {
                plan.steps.insert(pod.name.clone(), step);
            }
        }
    }
    for pod in situation.pods {
        if pod.state == State::Resuming && pod.confirmed && !plan.steps.contains_key(&pod.name) {
            plan.steps.insert(pod.name.clone(), Step::Serve);
        }
        let is_overdue = pod.state == State::Draining && pod.draining_for > Some(situation.drain_timeout);
        if is_overdue && matches!(plan.steps.get(&pod.name), None | Some(Step::Force)) {
            plan.overdue.push(pod.name.clone());
        }
    }
    plan
}

/// How many replicas to ask for when so many are wanted, given the pods as they are labelled now: more at once, fewer only by pods that may
/// go. A rollout goes first: while two ReplicaSets have pods to keep, which of them would lose some isn't ours to say. Where none is wanted
/// there is no such question, and a rollout that gets nowhere holds nothing up: it ends at once when no pod stays.
pub fn replicas(situation: &Situation<'_>) -> u16 {
    let asked_for = situation.replicas;
    let Some(wanted) = situation.wanted else { return asked_for };
    if wanted >= asked_for {
        return wanted;
    }
    let Some(current) = current(situation.replica_sets) else {
        // No ReplicaSet keeps any pod.
        let keeps_any = situation.replica_sets.iter().any(|replica_set| replica_set.replicas > 0);
        let ends = wanted == 0 && !situation.pods.iter().any(stays);
        return if keeps_any && !ends { asked_for } else { wanted };
    };
    let staying = of(current, situation.pods).filter(|pod| stays(pod)).count();
    wanted.max(u16::try_from(staying).unwrap_or(u16::MAX)).min(asked_for)
}

/// Workers that count, of those that the Deployment asks for: not those that are on their way out because fewer were wanted.
pub fn counting(situation: &Situation<'_>) -> u16 {
    let Some(current) = current(situation.replica_sets) else { return situation.replicas };
    let pods: Vec<&Pod> = of(current, situation.pods).collect();
    let leaving = pods.iter().filter(|pod| pod.state.is_leaving()).count();
    // What a ReplicaSet has too many of leaves in any case.
    let owed = pods.len().saturating_sub(current.replicas.min(situation.replicas).into());
    let by_decision = u16::try_from(leaving.saturating_sub(owed)).unwrap_or(u16::MAX);
    situation.replicas.saturating_sub(by_decision)
}

/// Whether a pod may not go yet.
fn stays(pod: &Pod) -> bool {
    pod.state != State::Drained && pod.stage != Stage::Unscheduled
}

fn of<'a>(replica_set: &'a ReplicaSet, pods: &'a [Pod]) -> impl Iterator<Item = &'a Pod> {
    pods.iter().filter(move |pod| pod.replica_set == replica_set.uid)
}

/// The ReplicaSet that has all pods to keep, if there is only one.
fn current(replica_sets: &[ReplicaSet]) -> Option<&ReplicaSet> {
    let mut keeping = replica_sets.iter().filter(|replica_set| replica_set.replicas > 0);
    let current = keeping.next()?;
    keeping.next().is_none().then_some(current)
}

/// How many scheduled pods of a ReplicaSet are to leave: those that it has too many of, and those that aren't wanted. Kubernetes takes
/// pods that no node has first.
fn surplus(situation: &Situation<'_>, replica_set: &ReplicaSet, pods: &[&Pod]) -> usize {
    let mut keep = replica_set.replicas;
    if situation.wanted == Some(0) {
        keep = 0;
    } else if current(situation.replica_sets) == Some(replica_set) {
        // The ReplicaSet follows its Deployment a moment later.
        keep = keep.min(situation.replicas).min(situation.wanted.unwrap_or(keep));
    }
    let unscheduled = pods.iter().filter(|pod| pod.stage == Stage::Unscheduled).count();
    pods.len().saturating_sub(keep.into()).saturating_sub(unscheduled)
}

/// The next step of a pod that leaves.
fn progress(pod: &Pod, situation: &Situation<'_>) -> Option<Step> {
    let is_busy = matches!(pod.activity, Activity::Busy { .. });
    let can_run = matches!(pod.stage, Stage::Starting | Stage::Running);
    match pod.state {
        State::Draining if pod.confirmed || pod.stage == Stage::Stuck => Some(Step::Mark),
        State::Draining if situation.force && pod.draining_for > Some(situation.drain_timeout) => {
            Some(Step::Force)
        }
        // It could not run when it was marked, and was told nothing. Now it can.
        State::Drained if pod.draining_for.is_none() && can_run => Some(Step::Drain),
        // It works again after all, as a worker that knows nothing of draining does when its container is restarted.
        State::Drained if is_busy && situation.can_tell && !situation.force => Some(Step::Drain),
        _ => None,
    }
}

/// Which leave first: those that do nothing yet, as Kubernetes would choose too; the longest idle; the longest busy, which are likely to be
/// done first; last those that don't say.
fn preference(pod: &Pod) -> (u8, Option<Instant>, &str) {
    let (rank, since) = match (pod.stage, pod.activity) {
        (Stage::Stuck | Stage::Unscheduled, _) => (0, None),
        (Stage::Starting, _) => (1, None),
        (Stage::Running, Activity::Idle { since }) => (2, Some(since)),
        (Stage::Running, Activity::Busy { since }) => (3, Some(since)),
        (Stage::Running, Activity::Silent) => (4, None),
    };
    (rank, since, &pod.name)
}

/// How near to its end a pod is that leaves; the farthest are told to stay.
fn nearness(pod: &Pod) -> (Reverse<bool>, Reverse<bool>, Reverse<Option<Duration>>, &str) {
    (Reverse(pod.state == State::Drained), Reverse(pod.confirmed), Reverse(pod.draining_for), &pod.name)
}

#[cfg(test)]
mod tests;
