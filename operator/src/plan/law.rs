//! The control law: how many workers a TaskQueue needs so that no task waits longer than the user allows.
//!
//! [`decide`] is a pure function of what was observed, what was learned, what the user wants, and the time. The simulator
//! (`cargo sim`) runs this very function; `docs/scaling.md` explains it for the person on call, ADR 0007 why it is as it is.
//!
//! ```text
//! rates ─────── arrivals: change of what waits and runs + what finished          ┐
//! service_time  seconds that workers were busy / tasks that they finished        ├─ demand ── hold ── decision
//! startup ───── 95th percentile of pod created -> first consume                  ┘  (want)    (when fewer)
//! ```
//!
//! # Guarantees
//! - The number is within `min..=max`.
//! - More workers come at once and in one step; workers that are still starting count.
//! - Fewer only if every queue was read just now, every worker said what it runs and the workers are attached to the broker. What is not
//!   known is never zero.
//! - Fewer only down to the greatest number wanted within the window, at most once in a window, and by a tenth at least.
//! - Which workers go, and that none of them is interrupted, is not decided here: the number speaks of workers that take tasks.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::autoscaler::Backlog;

mod demand;
mod hold;
mod rates;
mod service_time;
mod startup;

use demand::{Backpressure, Capacity, Standard};
use hold::Wanted;
use rates::Arrivals;
use service_time::ServiceTime;
use startup::StartUp;

/// Time from a change on the broker to the first pod of an answer being created: the observation interval and two calls.
const REACTION_SECONDS: f64 = 1.0;

/// With fewer workers than this standard asks for, workers are added.
fn least() -> Standard { Standard { late: knob("L1",0.05), needed_within_seconds: knob("K1",150.0) } }
/// With more workers than this standard asks for, workers are taken away.
fn most() -> Standard { Standard { late: knob("L2",0.02), needed_within_seconds: knob("K2",330.0) } }

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
    /// Consumers that the broker counts on the queue with the fewest.
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

/// What the number of workers is to achieve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Goal {
    /// No task waits longer than this many seconds for a worker.
    MaxWaitSeconds(f64),
    /// One worker for so many tasks that wait or run.
    TasksPerWorker(u32),
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

/// Workers to have at least when the backlog has not been known for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// How long not to know.
    pub after: Duration,
    /// Workers to have then, at least.
    pub replicas: u16,
}

/// What a decision rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Reason {
    /// What waits needs that many to start within the wait.
    Backlog,
    /// The load needs that many to keep up with it.
    Load,
    /// Nothing waits or runs, and little is expected.
    Idle,
    /// `min`.
    Floor,
    /// `max`.
    Ceiling,
    /// The number is right, or so nearly that a change would be noise.
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
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Every quantity that led to a decision, for status and metrics.
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
    /// Seconds over which the rate is an average: shorter after a change of the load.
    pub arrival_rate_window_seconds: f64,
    /// What a task takes, in seconds.
    pub service_seconds: f64,
    /// What a worker takes to start, in seconds: the 95th percentile.
    pub startup_seconds: f64,
    /// Workers that the arriving tasks keep busy on average (arrival rate × service time), in Erlangs.
    pub offered_load: f64,
    /// Workers needed so that arriving tasks find one in time.
    pub load_workers: u32,
    /// Workers needed so that what waits now starts in time.
    pub backlog_workers: u32,
    /// Workers that could have something to do: the greatest number that makes sense.
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

/// What was learned so far. A new one knows nothing and assumes usual values.
#[derive(Clone, Debug, Default)]
pub struct History {
    arrivals: Arrivals,
    service_time: ServiceTime,
    startup: StartUp,
    wanted: Wanted,
    known_at: Option<Instant>,
}

impl History {
    /// Takes in an observation, as far as it is certain.
    fn learn(&mut self, observation: &Observation, policy: &Policy, now: Instant) {
        let workers = &observation.workers;
        self.startup.observe(workers.started.iter().map(Duration::as_secs_f64), workers.starting.is_empty());
        let tasks = &observation.tasks;
        if tasks.silent_workers > 0 {
            return;
        }
        self.service_time.observe(tasks, now);
        if let Backlog::Fresh { ready } = observation.backlog {
            self.arrivals.observe(ready, tasks, wait_seconds(policy), now);
            self.known_at = Some(now);
        } else {
            self.known_at.get_or_insert(now);
        }
    }
}

/// Decides how many workers there are to be. The history that is returned goes into the next decision.
pub fn decide(
    observation: &Observation,
    mut history: History,
    policy: &Policy,
    now: Instant,
) -> (Decision, History) {
    history.learn(observation, policy, now);
    let terms = weigh(observation, &history, policy, now);
    let asked_for = bounded(observation.workers.asked_for.into(), policy);
    let uncertain = doubt(observation);
    // What isn't known can't have been too much: a full window of knowledge comes before workers are taken away.
    let wanted = if uncertain.is_some() { terms.wanted.max(asked_for.into()) } else { terms.wanted };
    let window = window(policy, &terms);
    history.wanted.record(now, wanted, wanted > asked_for.into(), window);
    let greatest = history.wanted.greatest(now, window);
    let terms = Terms { wanted_within_window: greatest, window_seconds: window.as_secs_f64(), ..terms };

    let (replicas, reason) = choose(observation, &history, policy, &terms, uncertain, now);
    if replicas != observation.workers.asked_for {
        history.wanted.changed(now);
    }
    let sentence = sentence(replicas, reason, &terms, policy);
    (Decision { replicas, reason, sentence, terms }, history)
}

/// Why there may be more tasks than it seems, if so.
fn doubt(observation: &Observation) -> Option<Reason> {
    let workers = &observation.workers;
    match observation.backlog {
        Backlog::Fresh { .. } if observation.tasks.silent_workers > 0 => Some(Reason::WorkersSilent),
        Backlog::Fresh { .. } if workers.attached.is_some_and(|attached| attached < workers.consuming.into()) => {
            Some(Reason::WorkersDetached)
        }
        Backlog::Fresh { .. } => None,
        Backlog::Partial { .. } | Backlog::Stale { .. } | Backlog::Unknown => Some(Reason::BacklogUnknown),
    }
}

/// What is wanted at this moment, without regard to the past or to bounds.
fn weigh(observation: &Observation, history: &History, policy: &Policy, now: Instant) -> Terms {
    let ready = observation.backlog.last_known();
    let running = observation.tasks.running;
    let busy = ready.unwrap_or(0).saturating_add(running.into());
    let service_seconds = history.service_time.seconds(observation.tasks.longest_running);
    let startup_seconds = history.startup.seconds();
    let (arrival_rate, arrival_rate_window_seconds) = history.arrivals.rate(wait_seconds(policy), now);
    let offered_load = arrival_rate * service_seconds;
    let waiting = history.arrivals.waiting(ready.unwrap_or(0), now);
    let terms = Terms {
        ready,
        running,
        oldest_wait_seconds: waiting.first().map_or(0.0, |group| group.waited_seconds),
        arrival_rate,
        arrival_rate_window_seconds,
        service_seconds,
        startup_seconds,
        offered_load,
        ..Terms::default()
    };
    match policy.goal {
        Goal::TasksPerWorker(tasks) => {
            let wanted = whole(busy.div_ceil(u64::from(tasks.max(1))));
            Terms { backlog_workers: wanted, useful_workers: whole(busy), wanted, ..terms }
        }
        Goal::MaxWaitSeconds(wait) => {
            let answer_seconds = startup_seconds + REACTION_SECONDS;
            let spare_seconds = (wait - answer_seconds).max(0.0);
            let serve = |standard| {
                demand::for_load(arrival_rate, service_seconds, spare_seconds, standard, policy.max.into())
            };
            let (least, most) = (serve(least()), serve(most()));
            let asked_for = u32::from(observation.workers.asked_for);
            let load = if asked_for < least { (f64::from(least) + knob("MID",0.5)*f64::from(most-least)).ceil() as u32 } else { asked_for.min(most) };
            let capacity = Capacity::new(&observation.workers, service_seconds, startup_seconds);
            let backlog =
                Backpressure { wait_seconds: wait, answer_seconds }.workers(&waiting, &capacity);
            let spare = f64::from(load) - offered_load;
            let useful = (busy as f64 + arrival_rate * answer_seconds + spare.max(0.0)).ceil();
            let useful = if useful < f64::from(u32::MAX) { useful as u32 } else { u32::MAX };
            // A running task keeps one worker, so that nothing goes to zero under it.
            let wanted = load.max(backlog).min(useful).max(u32::from(busy > 0));
            Terms { load_workers: load, backlog_workers: backlog, useful_workers: useful, wanted, ..terms }
        }
    }
}

/// From what is wanted to what is asked for: bounds, noise, windows.
fn choose(
    observation: &Observation,
    history: &History,
    policy: &Policy,
    terms: &Terms,
    uncertain: Option<Reason>,
    now: Instant,
) -> (u16, Reason) {
    let asked_for = observation.workers.asked_for;
    let held = bounded(asked_for.into(), policy);
    if held != asked_for {
        return (held, if held > asked_for { Reason::Floor } else { Reason::Ceiling });
    }
    let wanted = bounded(terms.wanted, policy);
    if wanted > held && matches!(observation.backlog, Backlog::Fresh { .. } | Backlog::Partial { .. }) {
        return if history.wanted.is_noise(held.into(), wanted.into(), terms, now) {
            (held, Reason::Steady)
        } else {
            (wanted, cause(terms, policy, wanted))
        };
    }
    if let Some(reason) = uncertain {
        let unknown_for = history.known_at.map_or(Duration::ZERO, |at| now.duration_since(at));
        return match policy.fallback {
            Some(fallback) if reason == Reason::BacklogUnknown && unknown_for >= fallback.after => {
                (bounded(fallback.replicas.into(), policy).max(held), Reason::Fallback)
            }
            _ => (held, reason),
        };
    }
    if wanted >= held {
        return (held, Reason::Steady);
    }
    let window = Duration::from_secs_f64(terms.window_seconds);
    if bounded(terms.wanted_within_window, policy) >= held || !history.wanted.may_lower(now, window) {
        return (held, Reason::Stabilizing);
    }
    let lowered = bounded(history.wanted.lowered(now, window, held.into(), policy.min.into()), policy);
    if lowered < held { (lowered, cause(terms, policy, lowered)) } else { (held, Reason::Steady) }
}

/// What made a number what it is.
fn cause(terms: &Terms, policy: &Policy, replicas: u16) -> Reason {
    let wanted = terms.wanted;
    if wanted > policy.max.into() && replicas == policy.max {
        Reason::Ceiling
    } else if replicas == policy.min && wanted < policy.min.into() {
        Reason::Floor
    } else if replicas == 0 {
        Reason::Idle
    } else if terms.backlog_workers >= terms.load_workers && terms.backlog_workers > 0 {
        Reason::Backlog
    } else {
        Reason::Load
    }
}

/// How long a number that was wanted once is kept: long enough to have been worth starting the workers.
fn window(policy: &Policy, terms: &Terms) -> Duration {
    policy.stabilization.unwrap_or_else(|| {
        Duration::from_secs_f64(hold::window_seconds(terms.startup_seconds, terms.service_seconds))
    })
}

fn wait_seconds(policy: &Policy) -> f64 {
    match policy.goal {
        Goal::MaxWaitSeconds(wait) => wait,
        Goal::TasksPerWorker(_) => 0.0,
    }
}

fn bounded(replicas: u32, policy: &Policy) -> u16 {
    let bounded = replicas.max(policy.min.into()).min(policy.max.into());
    u16::try_from(bounded).unwrap_or(policy.max)
}

fn whole(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn sentence(replicas: u16, reason: Reason, terms: &Terms, policy: &Policy) -> String {
    let Terms { running, service_seconds, startup_seconds, arrival_rate, window_seconds, .. } = terms;
    let ready = terms.ready.unwrap_or(0);
    let Policy { min, max, .. } = policy;
    let needs = match policy.goal {
        Goal::TasksPerWorker(tasks) => format!("ceil(({ready} ready + {running} running) / {tasks})"),
        Goal::MaxWaitSeconds(wait) => match cause(terms, policy, replicas) {
            Reason::Backlog => format!(
                "{ready} ready are to start within {wait} s, a task takes {service_seconds:.1} s and a worker {startup_seconds:.0} s to start"
            ),
            _ => format!(
                "{arrival_rate:.2} tasks a second of {service_seconds:.1} s keep {:.1} workers busy, and may wait {wait} s",
                terms.offered_load
            ),
        },
    };
    let wanted = terms.wanted;
    match reason {
        Reason::Backlog | Reason::Load => format!("{replicas}: {needs}"),
        Reason::Idle => "0: nothing waits or runs".to_owned(),
        Reason::Floor => format!("{replicas}: raised to the minimum {min} ({needs}: {wanted})"),
        Reason::Ceiling => format!("{replicas}: capped by the maximum {max} ({needs}: {wanted})"),
        Reason::Steady => format!("{replicas}: kept, {wanted} wanted ({needs})"),
        Reason::Stabilizing => format!(
            "{replicas}: kept, {wanted} wanted ({needs}), but up to {} within the last {window_seconds:.0} s",
            terms.wanted_within_window
        ),
        Reason::BacklogUnknown => format!("{replicas}: held, the backlog is not known"),
        Reason::WorkersSilent => format!("{replicas}: held, some workers do not say what they run"),
        Reason::WorkersDetached => format!("{replicas}: held, some workers are not attached to the broker"),
        Reason::Fallback => format!("{replicas}: fallback, the backlog has not been known for long"),
    }
}

#[cfg(test)]
mod tests;

pub(crate) fn knob(name: &'static str, default: f64) -> f64 {
    use std::collections::HashMap; use std::sync::{OnceLock, Mutex};
    static M: OnceLock<Mutex<HashMap<&'static str, f64>>> = OnceLock::new();
    *M.get_or_init(Default::default).lock().unwrap().entry(name).or_insert_with(|| std::env::var(name).ok().map_or(default, |v| v.parse().unwrap()))
}
