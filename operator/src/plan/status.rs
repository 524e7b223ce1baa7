//! The conditions of a TaskQueue: what works and what does not, and why.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::autoscaler::{Decision, DecisionReason};
use super::claims::Claim;
use super::law;
use super::reason::Reason;
use super::topology::Topology;

/// Something that doesn't work: its word, and a sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The word.
    pub reason: Reason,
    /// The sentence. Never with credentials.
    pub message: String,
}

/// The connection to a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerState {
    /// Not connected yet.
    Connecting,
    /// Connected.
    Connected,
    /// Not connected, and why.
    Failed(Problem),
}

/// The declaration of the queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueState {
    /// Nothing can be declared without a connection.
    WaitingForBroker,
    /// Being declared.
    Declaring,
    /// Declared.
    Declared(Policies),
    /// Not declared, and why.
    Failed(Problem),
}

/// The policies of the queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Policies {
    /// Being set.
    Pending,
    /// In force, or not needed.
    Applied,
    /// Not in force, and why.
    NotApplied(String),
}

/// The worker pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workers {
    /// Pods that exist and are not about to go.
    pub pods: u16,
    /// Those of them that are ready.
    pub ready: u16,
    /// What differs where those of one version of the pod template run different images.
    pub images_differ: Option<String>,
    /// Whether they are of different versions of the pod template.
    pub is_rolling_out: bool,
    /// What keeps workers from running, if anything does.
    pub problem: Option<Problem>,
}

/// Whether the API server refuses to delete workers that aren't drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// It does.
    Guaranteed,
    /// The policy that makes it so isn't there.
    Missing,
    /// The operator may not look whether the policy is there.
    Unknown,
}

/// Everything that the conditions speak of.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// What is wanted on the broker.
    pub topology: &'a Topology,
    /// The connection to the broker, or what is wrong with its Secret.
    pub broker: &'a BrokerState,
    /// The queues.
    pub queues: &'a QueueState,
    /// The older TaskQueue that has one of the queues.
    pub claim: Option<&'a Claim>,
    /// The workers.
    pub workers: &'a Workers,
    /// The number of workers.
    pub decision: &'a Decision,
    /// What keeps Kubernetes from deleting a worker with a task.
    pub protection: Protection,
}

/// A condition before it is merged with the one of before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stated {
    /// Type of the condition.
    pub type_: &'static str,
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// The word.
    pub reason: Reason,
    /// The sentence.
    pub message: String,
}

impl Stated {
    fn new(type_: &'static str, status: &'static str, reason: Reason, message: impl Into<String>) -> Self {
        Self { type_, status, reason, message: message.into() }
    }

    /// Whether somebody should look at this: everything that isn't as it should be, but for what the user asked for.
    pub fn is_warning(&self) -> bool {
        is_wrong(self.status, self.reason.as_str())
    }
}

/// The summary.
pub const READY: &str = "Ready";
/// The connection to the broker.
pub const BROKER_REACHABLE: &str = "BrokerReachable";
/// The queues on the broker.
pub const QUEUES_DECLARED: &str = "QueuesDeclared";
/// The worker pods.
pub const WORKERS_AVAILABLE: &str = "WorkersAvailable";
/// The autoscaler.
pub const SCALING_ACTIVE: &str = "ScalingActive";

/// What keeps Kubernetes from deleting a worker with a task.
pub const SCALE_IN_PROTECTION: &str = "ScaleInProtection";

/// The types of all conditions.
pub const CONDITIONS: [&str; 6] =
    [READY, BROKER_REACHABLE, QUEUES_DECLARED, WORKERS_AVAILABLE, SCALING_ACTIVE, SCALE_IN_PROTECTION];

/// The status of a condition that nothing is known about.
pub const UNKNOWN: &str = "Unknown";
/// The status of a condition that holds.
pub const TRUE: &str = "True";
/// The status of a condition that doesn't.
pub const FALSE: &str = "False";

/// What there is to say: the summary first.
pub fn conditions(facts: &Facts<'_>) -> Vec<Stated> {
    let parts = [
        broker_reachable(facts.broker),
        queues_declared(facts),
        workers_available(facts.workers, facts.decision),
        scaling_active(facts),
        scale_in_protection(facts.protection),
    ];
    let mut conditions = vec![ready(&parts)];
    conditions.extend(parts);
    conditions
}

fn ready(parts: &[Stated]) -> Stated {
    // The autoscaler may rest because the user said so; where it rests for want of knowledge, another condition has the cause.
    // Without the policy of the API server workers drain all the same.
    let parts = || parts.iter().filter(|part| ![SCALING_ACTIVE, SCALE_IN_PROTECTION].contains(&part.type_));
    let with = |status: &str| parts().find(|part| part.status == status);
    match with(FALSE).or_else(|| with(UNKNOWN)) {
        Some(part) => Stated { type_: READY, ..part.clone() },
        None => Stated::new(
            READY,
            TRUE,
            Reason::Ready,
            "the broker is reachable, the queues are declared and workers run as needed",
        ),
    }
}

fn broker_reachable(broker: &BrokerState) -> Stated {
    let stated = |status, reason, message: &str| Stated::new(BROKER_REACHABLE, status, reason, message);
    match broker {
        BrokerState::Connecting => stated(UNKNOWN, Reason::Connecting, "connecting to the broker"),
        BrokerState::Connected => stated(TRUE, Reason::Connected, "connected to the broker"),
        BrokerState::Failed(problem) => stated(FALSE, problem.reason, &problem.message),
    }
}

fn queues_declared(facts: &Facts<'_>) -> Stated {
    let stated = |status, reason, message: String| Stated::new(QUEUES_DECLARED, status, reason, message);
    if let Some(Claim { queue, holder }) = facts.claim {
        let message = format!(
            "queue `{queue}` on this broker belongs to the older TaskQueue {holder}: use another queue; until then nothing runs"
        );
        return stated(FALSE, Reason::QueueClaimed, message);
    }
    match facts.queues {
        QueueState::WaitingForBroker => {
            stated(UNKNOWN, Reason::WaitingForBroker, "the broker can't be asked".to_owned())
        }
        QueueState::Declaring => stated(UNKNOWN, Reason::Declaring, "declaring the queues".to_owned()),
        QueueState::Failed(problem) => stated(FALSE, problem.reason, problem.message.clone()),
        QueueState::Declared(policies) => {
            let names: Vec<_> = facts.topology.all_names().collect();
            let declared = format!("declared: {}", names.join(", "));
            match policies {
                Policies::NotApplied(problem) => stated(
                    TRUE,
                    Reason::PoliciesNotApplied,
                    format!("{declared}; but dead letters and limits are not in force: {problem}"),
                ),
                Policies::Pending => {
                    let message = format!("{declared}; dead letters and limits are being set");
                    stated(TRUE, Reason::Declared, message)
                }
                Policies::Applied => stated(TRUE, Reason::Declared, declared),
            }
        }
    }
}

fn workers_available(workers: &Workers, decision: &Decision) -> Stated {
    let stated = |status, reason, message: &str| Stated::new(WORKERS_AVAILABLE, status, reason, message);
    if let Some(problem) = &workers.problem {
        return stated(FALSE, problem.reason, &problem.message);
    }
    if let Some(difference) = &workers.images_differ {
        // They work, and take their tasks: only somebody who knows the images can say whether it matters.
        return stated(TRUE, Reason::ImagesDiffer, difference);
    }
    if decision.ask_for.unwrap_or(workers.pods) == 0 {
        stated(TRUE, Reason::Idle, "no worker is needed now")
    } else if workers.is_rolling_out {
        stated(
            TRUE,
            Reason::RollingOut,
            "workers of different versions are there until the old ones have done their tasks",
        )
    } else if workers.ready < decision.ask_for.unwrap_or(workers.pods) {
        // The numbers are in the status; in here they would change the condition with every pod.
        stated(TRUE, Reason::WorkersStarting, "workers are starting")
    } else {
        stated(TRUE, Reason::WorkersReady, "as many workers as wanted are ready")
    }
}

fn scaling_active(facts: &Facts<'_>) -> Stated {
    let stated = |status, reason, message: &str| Stated::new(SCALING_ACTIVE, status, reason, message);
    match facts.decision.reason {
        DecisionReason::Paused(pause) => stated(FALSE, Reason::Paused, pause.sentence()),
        DecisionReason::Manual => stated(FALSE, Reason::ManualReplicas, "spec.replicas is set"),
        DecisionReason::QueueClaimed => {
            stated(FALSE, Reason::QueueClaimed, "another TaskQueue has one of the queues")
        }
        DecisionReason::Recommended => {
            stated(FALSE, Reason::Recommending, "spec.scaling.mode is Recommend: see status.decision")
        }
        DecisionReason::Off => stated(FALSE, Reason::ScalingOff, "spec.scaling.mode is Off"),
        DecisionReason::Law(law::Reason::BacklogUnknown) => stated(
            UNKNOWN,
            Reason::BacklogUnknown,
            "the length of the queues is not known: the number of workers is held",
        ),
        DecisionReason::Law(law::Reason::Fallback) => stated(
            UNKNOWN,
            Reason::Fallback,
            "the length of the queues has not been known for long: spec.scaling.fallback is in force",
        ),
        DecisionReason::Law(law::Reason::WorkersSilent) => stated(
            UNKNOWN,
            Reason::WorkersSilent,
            "some workers do not say what they run: none is taken away",
        ),
        DecisionReason::Law(law::Reason::WorkersDetached) => stated(
            UNKNOWN,
            Reason::WorkersDetached,
            "some workers are not attached to the broker: none is taken away",
        ),
        DecisionReason::Law(_) => match &facts.decision.problem {
            Some(problem) => stated(TRUE, Reason::ScheduleInvalid, problem),
            None => stated(TRUE, Reason::Active, "the number of workers follows the backlog"),
        },
    }
}

fn scale_in_protection(protection: Protection) -> Stated {
    let stated = |status, reason, message| Stated::new(SCALE_IN_PROTECTION, status, reason, message);
    match protection {
        Protection::Guaranteed => stated(
            TRUE,
            Reason::Guaranteed,
            "the API server refuses to let scale-in delete a worker that has not drained",
        ),
        Protection::Missing => stated(
            FALSE,
            Reason::BestEffort,
            "best effort: the ValidatingAdmissionPolicy soloist-scale-in or its binding is missing; workers drain before they go, but \
             Kubernetes may choose another one",
        ),
        Protection::Unknown => stated(
            UNKNOWN,
            Reason::BestEffort,
            "best effort, as far as is known: the operator could not look for the ValidatingAdmissionPolicy soloist-scale-in; workers \
             drain before they go",
        ),
    }
}

/// The conditions to write: the time of the last transition is kept where the status is as before.
pub fn merged(
    previous: &[Condition],
    stated: &[Stated],
    generation: Option<i64>,
    now: &Time,
) -> Vec<Condition> {
    let condition = |stated: &Stated| {
        let before =
            previous.iter().find(|before| before.type_ == stated.type_ && before.status == stated.status);
        Condition {
            type_: stated.type_.to_owned(),
            status: stated.status.to_owned(),
            reason: stated.reason.as_str().to_owned(),
            message: stated.message.clone(),
            observed_generation: generation,
            last_transition_time: before
                .map_or_else(|| now.clone(), |before| before.last_transition_time.clone()),
        }
    };
    stated.iter().map(condition).collect()
}

/// What users were told of by events, and have not been told the end of: conditions that went wrong, and rest that the user ordered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told(BTreeMap<String, String>);

impl Told {
    /// What was told before, as far as conditions that were written say: for an operator that takes over.
    pub fn new(conditions: &[Condition]) -> Self {
        let notable = conditions
            .iter()
            .filter(|condition| is_notable(&condition.type_, &condition.status, &condition.reason));
        Self(notable.map(|condition| (condition.type_.clone(), condition.reason.clone())).collect())
    }

    /// The conditions to tell of: what has begun to go wrong, what has stopped to, and what the user has switched. Ordinary work is no
    /// event, not knowing for a moment neither, and the summary only repeats another condition.
    pub fn news<'a>(&mut self, stated: &'a [Stated]) -> Vec<&'a Stated> {
        let mut is_news = |stated: &Stated| {
            let reason = stated.reason.as_str();
            if is_notable(stated.type_, stated.status, reason) {
                self.0.insert(stated.type_.to_owned(), reason.to_owned()).is_none_or(|told| told != reason)
            } else {
                stated.status == TRUE && self.0.remove(stated.type_).is_some()
            }
        };
        stated.iter().filter(|stated| is_news(stated)).collect()
    }
}

fn is_notable(type_: &str, status: &str, reason: &str) -> bool {
    match type_ {
        READY => false,
        // That it rests for any other cause is told by the condition that has the cause.
        SCALING_ACTIVE => is_switched(reason) || reason == Reason::ScheduleInvalid.as_str(),
        _ => is_wrong(status, reason),
    }
}

fn is_wrong(status: &str, reason: &str) -> bool {
    let half_right =
        [Reason::PoliciesNotApplied, Reason::ScheduleInvalid, Reason::ImagesDiffer].map(Reason::as_str);
    half_right.contains(&reason) || (status == FALSE && !is_switched(reason))
}

/// Whether the user has put the autoscaler to rest.
fn is_switched(reason: &str) -> bool {
    let switched = [Reason::Paused, Reason::ManualReplicas, Reason::Recommending, Reason::ScalingOff];
    switched.map(Reason::as_str).contains(&reason)
}

#[cfg(test)]
mod tests;
