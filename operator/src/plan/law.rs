//! The control law: how many workers a TaskQueue needs so that no task waits longer than its user allows.
//!
//! [`decide`] is a pure function of what was observed, what was learned, what the user wants, and the time. The simulator
//! (`cargo sim`) runs this very function. `docs/scaling.md` explains it for the person on call.
//!
//! ```text
//! rates         change of what waits and runs + what was finished  -> arrivals ┐
//! service_time  seconds that workers were busy / tasks finished                ├-> demand -> hold -> number
//! startup       pod created -> first consume, 95th percentile                  ┘   wanted    noise, windows
//! ```
//!
//! # Guarantees
//! - The number is within `min..=max`.
//! - More workers come at once and in one step; workers that are still starting count.
//! - Fewer only if every queue was read just now, every worker said what it runs, and the workers are attached to the broker. What is
//!   not known is never zero.
//! - Fewer only down to the greatest number wanted within the window, and once in a window at most. A new history has a full window
//!   before it.
//! - Nothing goes to zero while a task waits or runs.
//!
//! Which workers go, and that none of them is interrupted, is not decided here: the number speaks of workers that take tasks.

use std::time::{Duration, Instant};

use super::autoscaler::Backlog;

mod demand;
mod explanation;
mod hold;
mod observation;
mod policy;
mod rates;
mod service_time;
mod startup;

pub use explanation::{Decision, Reason, Terms};
pub use observation::{Observation, Tasks, Workers};
pub use policy::{Fallback, Goal, Policy};

use demand::{Backpressure, Capacity, Standard};
use hold::Wanted;
use rates::Arrivals;
use service_time::ServiceTime;
use startup::StartUp;

/// Time from a change on the broker to the first pod of the answer being created: the observation interval and two calls.
const REACTION_SECONDS: f64 = 1.0;
/// Seconds within which a spare worker must be expected to be needed to be worth keeping. Half of that if a new one would come in time.
/// Simulated: at 300, a queue with a task every two minutes costs about what KEDA's `cooldownPeriod` of 300 seconds makes it cost.
const KEEP_SECONDS: f64 = 300.0;
/// Readings that fail for no longer than this are made up for by the next one.
const SHORT_DOUBT: Duration = Duration::from_secs(5);
/// Workers are added with fewer than serve to this standard: at most this part of the tasks waits too long.
const LATE_AT_MOST: f64 = 0.05;
/// Workers are taken away with more than serve to this standard. What is between needs no change.
const LATE_AT_LEAST: f64 = 0.03;

/// A change by a smaller part of the workers is noise, as long as it isn't wanted for long. Simulated: with half of it there are a third
/// more changes, for the same waits at nearly the same cost.
const STEP: f64 = 0.3;
/// The same where a new worker comes in time: there are no spare ones then that make up for what is too few.
const STEP_IN_TIME: f64 = 0.15;

/// What was learned so far. A new one knows nothing and assumes usual values.
#[derive(Clone, Debug, Default)]
pub struct History {
    arrivals: Arrivals,
    service_time: ServiceTime,
    startup: StartUp,
    wanted: Wanted,
    /// When the backlog was last known; at first, since when it is not.
    known_at: Option<Instant>,
    /// When all was last certain; at first, since when it is not.
    certain_at: Option<Instant>,
}

impl History {
    /// Takes in an observation, as far as it is certain.
    fn learn(&mut self, observation: &Observation, now: Instant) {
        let Observation { backlog, tasks, workers } = observation;
        self.startup.observe(workers.started.iter().map(Duration::as_secs_f64), workers.starting.is_empty());
        let known_at = self.known_at.get_or_insert(now);
        if let Backlog::Fresh { .. } = backlog {
            *known_at = now;
        }
        let certain_at = self.certain_at.get_or_insert(now);
        if observation.doubt().is_none() {
            *certain_at = now;
        }
        if tasks.silent_workers > 0 {
            return;
        }
        self.service_time.observe(tasks, now);
        if let Backlog::Fresh { ready } = *backlog {
            self.arrivals.observe(ready, tasks, now);
        }
    }

    /// Whether so much is unknown that it can't have been too much: then a full window of knowledge comes before workers are taken away.
    /// A reading that fails now and then doesn't count, or one in twenty would keep all workers for ever.
    fn is_long_in_doubt(&self, now: Instant) -> bool {
        self.certain_at.is_some_and(|at| now.duration_since(at) > SHORT_DOUBT)
    }
}

/// Decides how many workers there are to be. The history that is returned goes into the next decision.
pub fn decide(
    observation: &Observation,
    mut history: History,
    policy: &Policy,
    now: Instant,
) -> (Decision, History) {
    // Whoever decided before had a reason for the number that there is.
    let begins = history.certain_at.is_none();
    history.learn(observation, now);
    let terms = weigh(observation, &history, policy, now);
    let window = policy.stabilization.unwrap_or_else(|| hold::window(&terms));
    let held = policy.bounded(observation.workers.asked_for.into());
    let unsure = begins || history.is_long_in_doubt(now);
    let wanted = if unsure { terms.wanted.max(held.into()) } else { terms.wanted };
    history.wanted.record(now, wanted, held.into(), window);
    let wanted_within_window = history.wanted.greatest(now, window);
    let terms = Terms { wanted_within_window, window_seconds: window.as_secs_f64(), ..terms };

    let (replicas, reason) = choose(observation, &history, policy, &terms, now);
    if replicas != observation.workers.asked_for {
        history.wanted.changed(now);
    }
    (Decision::new(replicas, reason, terms, policy), history)
}

/// What is wanted at this moment, without regard to the past or to bounds.
fn weigh(observation: &Observation, history: &History, policy: &Policy, now: Instant) -> Terms {
    let ready = observation.backlog.last_known();
    let running = observation.tasks.running;
    let service_seconds = history.service_time.seconds(observation.tasks.longest_running);
    let arrivals = history.arrivals.rate(policy.wait_seconds(), now);
    let waiting = history.arrivals.waiting(ready.unwrap_or(0), now);
    let terms = Terms {
        ready,
        running,
        oldest_wait_seconds: waiting.first().map_or(0.0, |group| group.waited_seconds),
        arrival_rate: arrivals.rate,
        arrival_rate_window_seconds: arrivals.window_seconds,
        service_seconds,
        startup_seconds: history.startup.seconds(),
        offered_load: arrivals.rate * service_seconds,
        ..Terms::default()
    };
    let in_system = ready.unwrap_or(0).saturating_add(running.into());
    match policy.goal {
        Goal::TasksPerWorker(tasks) => {
            let wanted = whole(in_system.div_ceil(tasks.get().into()));
            Terms { backlog_workers: wanted, useful_workers: whole(in_system), wanted, ..terms }
        }
        Goal::MaxWaitSeconds(wait_seconds) => {
            let answer_seconds = answer_seconds(&terms);
            let load_workers = for_load(&terms, wait_seconds, observation.workers.asked_for, policy);
            let capacity = Capacity::new(&observation.workers, service_seconds, terms.startup_seconds);
            let backlog_workers = Backpressure { wait_seconds, answer_seconds }.workers(&waiting, &capacity);
            let spare = (f64::from(load_workers) - terms.offered_load).max(0.0);
            let expected = (terms.arrival_rate * answer_seconds + spare).ceil();
            let useful_workers = whole(in_system.saturating_add(expected as u64));
            let wanted = load_workers.max(backlog_workers).min(useful_workers);
            // A task that waits needs a worker. One that runs keeps the last one, so that nothing goes to zero under it.
            let keeps =
                ready.is_some_and(|ready| ready > 0) || (running > 0 && observation.workers.asked_for > 0);
            let wanted = wanted.max(u32::from(keeps));
            Terms { load_workers, backlog_workers, useful_workers, wanted, ..terms }
        }
    }
}

/// How long a worker that is asked for now takes until it takes its first task, in seconds.
fn answer_seconds(terms: &Terms) -> f64 {
    terms.startup_seconds + REACTION_SECONDS
}

/// Workers for what arrives: those there are, unless they are too few or too many.
fn for_load(terms: &Terms, wait_seconds: f64, asked_for: u16, policy: &Policy) -> u32 {
    let in_time = wait_seconds >= answer_seconds(terms);
    // The load may change at any time: what a new worker takes to come is kept in reserve. If it comes too late, there must be spare ones.
    let spend_seconds = (wait_seconds - answer_seconds(terms)).max(0.0);
    let keep_seconds = if in_time { KEEP_SECONDS / 2.0 } else { KEEP_SECONDS };
    let serve = |late, needed_within_seconds| {
        let standard = Standard { late, wait_seconds: spend_seconds, needed_within_seconds };
        demand::for_load(terms.arrival_rate, terms.service_seconds, standard, policy.max.into())
    };
    let least = serve(LATE_AT_MOST, keep_seconds / 2.0);
    // Of more than one, one more or less is no difference.
    let most = serve(LATE_AT_LEAST, keep_seconds).max(least + u32::from(least > 1));
    let asked_for = u32::from(asked_for);
    if asked_for < least { least.midpoint(most + 1) } else { asked_for.min(most) }
}

/// From what is wanted to what is asked for: bounds, doubt, noise, windows.
fn choose(
    observation: &Observation,
    history: &History,
    policy: &Policy,
    terms: &Terms,
    now: Instant,
) -> (u16, Reason) {
    let asked_for = observation.workers.asked_for;
    let held = policy.bounded(asked_for.into());
    if held < asked_for {
        return (held, Reason::Ceiling);
    }
    let readable = matches!(observation.backlog, Backlog::Fresh { .. } | Backlog::Partial { .. });
    let wanted = policy.bounded(terms.wanted);
    if held > asked_for {
        return if wanted > held && readable {
            (wanted, Reason::of(wanted, terms, policy))
        } else {
            (held, Reason::Floor)
        };
    }
    if wanted > held && readable {
        let noise = !is_due(terms, held, policy)
            && history.wanted.is_noise(held.into(), wanted.into(), step(terms, policy), now);
        return if noise { (held, Reason::Steady) } else { (wanted, Reason::of(wanted, terms, policy)) };
    }
    let doubt = observation.doubt();
    if doubt == Some(Reason::BacklogUnknown) {
        let unknown_for = history.known_at.map_or(Duration::ZERO, |at| now.duration_since(at));
        return match policy.fallback {
            Some(fallback) if unknown_for >= fallback.after => {
                (policy.bounded(fallback.replicas.into()).max(held), Reason::Fallback)
            }
            _ => (held, Reason::BacklogUnknown),
        };
    }
    if let Some(doubt) = doubt.filter(|_| history.is_long_in_doubt(now)) {
        return (held, doubt);
    }
    if wanted == held {
        return (held, Reason::of(held, terms, policy));
    }
    let window = Duration::from_secs_f64(terms.window_seconds);
    if policy.bounded(terms.wanted_within_window) >= held || !history.wanted.may_lower(now, window) {
        return (held, Reason::Stabilizing);
    }
    let lowered = policy.bounded(history.wanted.lowered(
        now,
        window,
        held.into(),
        policy.min.into(),
        step(terms, policy),
    ));
    match doubt {
        _ if lowered >= held => (held, Reason::Steady),
        Some(doubt) => (held, doubt),
        None if lowered > wanted => (lowered, Reason::Stabilizing),
        None => (lowered, Reason::of(lowered, terms, policy)),
    }
}

/// The smallest part of the workers by which their number is changed at once.
fn step(terms: &Terms, policy: &Policy) -> f64 {
    if policy.wait_seconds() >= answer_seconds(terms) { STEP_IN_TIME } else { STEP }
}

/// Whether more workers than there are must start now, so that what waits starts in time.
fn is_due(terms: &Terms, held: u16, policy: &Policy) -> bool {
    terms.backlog_workers > held.into()
        && match policy.goal {
            Goal::TasksPerWorker(_) => true,
            Goal::MaxWaitSeconds(wait) => terms.oldest_wait_seconds + answer_seconds(terms) >= wait,
        }
}

fn whole(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
