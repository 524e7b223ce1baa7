//! Why a number is what it is: for status, metrics and the person on call.

use std::fmt;

use serde::Serialize;

use super::{Goal, Policy};

/// What a decision rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Reason {
    /// What waits needs that many to start in time.
    Backlog,
    /// What arrives needs that many.
    Load,
    /// Nothing waits or runs, and little is expected.
    Idle,
    /// The lower bound.
    Floor,
    /// The upper bound.
    Ceiling,
    /// The number is so nearly right that a change would be noise.
    Steady,
    /// Fewer would do now, but more were wanted a short while ago.
    Stabilizing,
    /// The backlog isn't known, at least of some queues: not fewer.
    BacklogUnknown,
    /// Some workers do not say what they run: not fewer.
    WorkersSilent,
    /// Some workers aren't attached to the broker, as after its restart: not fewer.
    WorkersDetached,
    /// The backlog has not been known for long.
    Fallback,
}

impl Reason {
    /// All reasons.
    pub const ALL: &[Self] = &[
        Self::Backlog,
        Self::Load,
        Self::Idle,
        Self::Floor,
        Self::Ceiling,
        Self::Steady,
        Self::Stabilizing,
        Self::BacklogUnknown,
        Self::WorkersSilent,
        Self::WorkersDetached,
        Self::Fallback,
    ];

    /// The word, as it stands in the status and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Backlog => "Backlog",
            Self::Load => "Load",
            Self::Idle => "Idle",
            Self::Floor => "Floor",
            Self::Ceiling => "Ceiling",
            Self::Steady => "Steady",
            Self::Stabilizing => "Stabilizing",
            Self::BacklogUnknown => "BacklogUnknown",
            Self::WorkersSilent => "WorkersSilent",
            Self::WorkersDetached => "WorkersDetached",
            Self::Fallback => "Fallback",
        }
    }

    /// What made the wanted number `replicas`.
    pub(super) fn of(replicas: u16, terms: &Terms, policy: &Policy) -> Self {
        if replicas == policy.max && terms.wanted > policy.max.into() {
            Self::Ceiling
        } else if replicas == policy.min && terms.wanted < policy.min.into() {
            Self::Floor
        } else if replicas == 0 {
            Self::Idle
        } else if terms.backlog_workers >= terms.load_workers && terms.backlog_workers > 0 {
            Self::Backlog
        } else {
            Self::Load
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Every quantity that led to a decision. In a [`Decision`] averages are rounded to two digits.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Terms {
    /// Messages that wait, as last known.
    pub ready: Option<u64>,
    /// Tasks that run.
    pub running: u32,
    /// How long the oldest waiting message has waited, in seconds.
    pub oldest_wait_seconds: f64,
    /// Tasks that arrive, a second.
    pub arrival_rate: f64,
    /// Seconds over which the rate is an average: fewer after a change of the load.
    pub arrival_rate_window_seconds: f64,
    /// What a task takes, in seconds.
    pub service_seconds: f64,
    /// What a worker takes to start, in seconds: the 95th percentile.
    pub startup_seconds: f64,
    /// Workers that the arriving tasks keep busy on average, in Erlangs: arrival rate × service time.
    pub offered_load: f64,
    /// Workers for what arrives: those there are, unless they are too few or too many.
    pub load_workers: u32,
    /// Workers needed so that what waits now starts in time.
    pub backlog_workers: u32,
    /// Workers that could have something to do: more make no sense.
    pub useful_workers: u32,
    /// Workers wanted, before bounds and windows.
    pub wanted: u32,
    /// The greatest number wanted within the window.
    pub wanted_within_window: u32,
    /// Seconds for which a number that was wanted is kept.
    pub window_seconds: f64,
}

/// A number of workers, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Workers to ask for.
    pub replicas: u16,
    /// What the number rests on.
    pub reason: Reason,
    /// The decision as a sentence.
    pub sentence: String,
    /// Every quantity that led to it.
    pub terms: Terms,
}

impl Terms {
    /// All quantities that are always there, with the names that they have in the status.
    pub fn quantities(&self) -> [(&'static str, f64); 12] {
        [
            ("oldestWaitSeconds", self.oldest_wait_seconds),
            ("arrivalRate", self.arrival_rate),
            ("arrivalRateWindowSeconds", self.arrival_rate_window_seconds),
            ("serviceSeconds", self.service_seconds),
            ("startupSeconds", self.startup_seconds),
            ("offeredLoad", self.offered_load),
            ("loadWorkers", self.load_workers.into()),
            ("backlogWorkers", self.backlog_workers.into()),
            ("usefulWorkers", self.useful_workers.into()),
            ("wanted", self.wanted.into()),
            ("wantedWithinWindow", self.wanted_within_window.into()),
            ("windowSeconds", self.window_seconds),
        ]
    }

    /// The same with two digits each, as they are told: what moves less than that is not worth telling.
    fn rounded(self) -> Self {
        Self {
            oldest_wait_seconds: two_digits(self.oldest_wait_seconds),
            arrival_rate: two_digits(self.arrival_rate),
            service_seconds: two_digits(self.service_seconds),
            startup_seconds: two_digits(self.startup_seconds),
            offered_load: two_digits(self.offered_load),
            window_seconds: two_digits(self.window_seconds),
            ..self
        }
    }
}

fn two_digits(number: f64) -> f64 {
    // By way of the text, as the quotient of two rounded numbers has more digits again.
    format!("{number:.1e}").parse().unwrap_or(number)
}

impl Decision {
    pub(super) fn new(replicas: u16, reason: Reason, terms: Terms, policy: &Policy) -> Self {
        let terms = terms.rounded();
        Self { replicas, reason, sentence: sentence(replicas, reason, &terms, policy), terms }
    }
}

/// What is needed, in words: `350 ready to start within 30 s, at 2.1 s a task and 6 s to start a worker`.
fn need(terms: &Terms, policy: &Policy) -> String {
    let Terms { running, service_seconds, startup_seconds, arrival_rate, offered_load, .. } = terms;
    let ready = terms.ready.unwrap_or(0);
    match policy.goal {
        Goal::TasksPerWorker(tasks) => format!("ceil(({ready} ready + {running} running) / {tasks})"),
        Goal::MaxWaitSeconds(wait)
            if terms.backlog_workers > 0 && terms.backlog_workers >= terms.load_workers =>
        {
            format!(
                "{ready} ready to start within {wait} s, at {service_seconds} s a task and {startup_seconds} s to start a worker"
            )
        }
        Goal::MaxWaitSeconds(wait) => format!(
            "{arrival_rate} tasks a second of {service_seconds} s keep {offered_load} workers busy, to wait at most {wait} s"
        ),
    }
}

fn sentence(replicas: u16, reason: Reason, terms: &Terms, policy: &Policy) -> String {
    let need = need(terms, policy);
    let Terms { wanted, wanted_within_window, window_seconds, .. } = terms;
    let Policy { min, max, .. } = policy;
    match reason {
        Reason::Backlog | Reason::Load => format!("{replicas}: {need}"),
        Reason::Idle => format!("{replicas}: nothing waits or runs"),
        Reason::Floor => format!("{replicas}: raised from {wanted} to the minimum {min}; {need}"),
        Reason::Ceiling => format!("{replicas}: {wanted} wanted, capped by the maximum {max}; {need}"),
        Reason::Steady => format!("{replicas}: kept, {wanted} wanted; {need}"),
        Reason::Stabilizing => format!(
            "{replicas}: {wanted} wanted, but {wanted_within_window} within the last {window_seconds} s; {need}"
        ),
        Reason::BacklogUnknown => format!("{replicas}: held, the backlog is not known"),
        Reason::WorkersSilent => format!("{replicas}: held, some workers do not say what they run"),
        Reason::WorkersDetached => format!("{replicas}: held, some workers are not attached to the broker"),
        Reason::Fallback => format!("{replicas}: fallback, the backlog has not been known for long"),
    }
}
