//! The last step of a reconciliation: tells the user, by status, events and metrics.

use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Resource as _, ResourceExt as _};
use serde_json::json;

use super::Error;
use super::context::{Context, Memory};
use super::events::{News, publish};
use super::observe::Observed;
use crate::api::v1alpha1::{DecisionStatus, TaskQueue, TaskQueueStatus};
use crate::metrics::Quantity;
use crate::plan::autoscaler::{Backlog, Decision};
use crate::plan::metadata::{OPERATOR, selector_text};
use crate::plan::status::{Facts, SCALE_IN_PROTECTION, Stated, Told, UNKNOWN, Workers, conditions, merged};

/// Numbers alone are written this often when they begin to change, and ever less often while they go on: they change with every task.
const NUMBERS_FIRST_EVERY: Duration = Duration::from_secs(2);
const NUMBERS_AT_LEAST_EVERY: Duration = Duration::from_secs(30);

/// How long the first status that this operator writes of a TaskQueue can wait for what isn't known yet.
const BEGIN_WITHIN: Duration = Duration::from_secs(5);

/// Writes the status if it has changed. Returns when it is to be looked at again, if a change of numbers was put off.
pub(super) async fn update_status(
    task_queue: &TaskQueue,
    observed: &Observed,
    workers: &Workers,
    running: Option<u32>,
    decision: &Decision,
    memory: &mut Memory,
    context: &Context,
) -> Result<Option<Duration>, Error> {
    let stated = conditions(&Facts {
        topology: &observed.topology,
        broker: &observed.broker,
        queues: &observed.queues,
        claim: observed.claim.as_ref(),
        workers,
        decision,
        protection: *context.protection.borrow(),
    });
    set_metrics(task_queue, observed, workers, running, decision, context);
    let namespace = task_queue.namespace().unwrap_or_default();
    context.metrics.set_conditions(&namespace, &task_queue.name_any(), &stated);

    let before = match &memory.status {
        Some((status, _)) => status.clone(),
        None => task_queue.status.clone().unwrap_or_default(),
    };
    let now = Time(seconds(Timestamp::now()));
    let generation = task_queue.metadata.generation;
    let after = TaskQueueStatus {
        observed_generation: generation,
        conditions: merged(&before.conditions, &stated, generation, &now),
        replicas: workers.pods,
        ready_replicas: workers.ready,
        desired_replicas: decision.replicas,
        selector: selector_text(&task_queue.name_any()),
        ready: observed.backlog.last_known(),
        running,
        broker: observed.broker_address.clone(),
        decision: Some(decision_status(decision)),
    };
    if after == before {
        return Ok(None);
    }
    if memory.status.is_none()
        && can_wait(&stated, before.observed_generation == generation)
        && let Some(wait) = BEGIN_WITHIN.checked_sub(memory.since.elapsed())
    {
        return Ok(Some(wait));
    }
    if let Some((_, written_at)) = &memory.status
        && only_numbers_differ(&before, &after)
        && let Some(wait) = memory.pace.put_off(written_at.elapsed())
    {
        return Ok(Some(wait));
    }
    memory.pace.written(only_numbers_differ(&before, &after));
    write(task_queue, &after, context).await?;
    memory.status = Some((after, Instant::now()));
    let told = memory.told.get_or_insert_with(|| Told::new(&before.conditions));
    for stated in told.news(&stated) {
        let warning = stated.is_warning();
        let (condition, reason, detail) = (stated.type_, stated.reason, &stated.message);
        if warning {
            tracing::warn!(condition, %reason, detail, "condition has changed");
        } else {
            tracing::info!(condition, %reason, detail, "condition has changed");
        }
        let action = stated.type_.to_owned();
        publish(
            &task_queue.object_ref(&()),
            context,
            News { warning, reason: stated.reason, action, note: &stated.message },
        )
        .await;
    }
    Ok(None)
}

/// Whether a first status can wait, because something is not known that soon will be. An operator that takes over leaves what the one before
/// it wrote, which is as good. Of a new TaskQueue nothing is told until there is a problem or all is known: each word in between would be a
/// write, for less than a second.
fn can_wait(stated: &[Stated], takes_over: bool) -> bool {
    // Whether workers are protected may stay unknown.
    let counts = |stated: &&Stated| takes_over || stated.type_ != SCALE_IN_PROTECTION;
    let mut counting = stated.iter().filter(counts);
    let is_wrong = !takes_over && counting.clone().any(Stated::is_warning);
    !is_wrong && counting.any(|stated| stated.status == UNKNOWN)
}

/// How often numbers are written.
#[derive(Debug)]
pub(super) struct Pace {
    every: Duration,
    /// Whether numbers that have changed wait for being written.
    waits: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self { every: NUMBERS_FIRST_EVERY, waits: false }
    }
}

impl Pace {
    /// How long numbers that have changed must wait, if the last ones were written so long ago.
    fn put_off(&mut self, since_written: Duration) -> Option<Duration> {
        let wait = self.every.checked_sub(since_written).filter(|wait| !wait.is_zero());
        self.waits |= wait.is_some();
        wait
    }

    /// Notes that the status was written, nothing but numbers being new in it.
    fn written(&mut self, only_numbers: bool) {
        *self = match self.waits && only_numbers {
            // They have changed all the time.
            true => Self { every: (2 * self.every).min(NUMBERS_AT_LEAST_EVERY), waits: false },
            false => Self::default(),
        };
    }
}

async fn write(task_queue: &TaskQueue, status: &TaskQueueStatus, context: &Context) -> Result<(), Error> {
    let name = task_queue.name_any();
    let api: Api<TaskQueue> =
        Api::namespaced(context.client.clone(), &task_queue.namespace().unwrap_or_default());
    let patch = json!({
        "apiVersion": "soloist.dev/v1alpha1",
        "kind": "TaskQueue",
        "metadata": {"name": name, "uid": task_queue.metadata.uid},
        "status": status,
    });
    let parameters = PatchParams::apply(OPERATOR).force();
    match api.patch_status(&name, &parameters, &Patch::Apply(&patch)).await {
        Ok(_) => Ok(()),
        // It is gone, or another one of its name is there, which has a status of its own.
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        Err(source) => Err(Error::WriteStatus { name, source }),
    }
}

fn decision_status(decision: &Decision) -> DecisionStatus {
    let terms = &decision.terms;
    let (min_replicas, max_replicas) = decision.bounds;
    DecisionStatus {
        replicas: decision.replicas,
        reason: decision.reason.as_str().to_owned(),
        message: decision.sentence.clone(),
        ready: terms.ready,
        running: terms.running,
        oldest_wait_seconds: terms.oldest_wait_seconds,
        arrival_rate: terms.arrival_rate,
        arrival_rate_window_seconds: terms.arrival_rate_window_seconds,
        service_seconds: terms.service_seconds,
        startup_seconds: terms.startup_seconds,
        offered_load: terms.offered_load,
        load_workers: terms.load_workers,
        backlog_workers: terms.backlog_workers,
        useful_workers: terms.useful_workers,
        wanted: terms.wanted,
        wanted_within_window: terms.wanted_within_window,
        window_seconds: terms.window_seconds,
        min_replicas,
        max_replicas,
    }
}

fn only_numbers_differ(before: &TaskQueueStatus, after: &TaskQueueStatus) -> bool {
    before.conditions == after.conditions
        && before.observed_generation == after.observed_generation
        && before.desired_replicas == after.desired_replicas
        && before.broker == after.broker
}

fn set_metrics(
    task_queue: &TaskQueue,
    observed: &Observed,
    workers: &Workers,
    running: Option<u32>,
    decision: &Decision,
    context: &Context,
) {
    let metrics = &context.metrics;
    let (namespace, name) = (task_queue.namespace().unwrap_or_default(), task_queue.name_any());
    let is_fresh = matches!(observed.backlog, Backlog::Fresh { .. });
    #[expect(clippy::cast_precision_loss, reason = "a float is what Prometheus has")]
    let ready = observed.backlog.last_known().map(|ready| ready as f64);
    let quantities = [
        (Quantity::MessagesReady, ready),
        (Quantity::RunningTasks, running.map(f64::from)),
        (Quantity::Replicas, Some(workers.pods.into())),
        (Quantity::ReplicasDesired, Some(decision.replicas.into())),
        (Quantity::ReplicasMin, Some(decision.bounds.0.into())),
        (Quantity::ReplicasMax, Some(decision.bounds.1.into())),
        (Quantity::OldestWait, is_fresh.then_some(decision.terms.oldest_wait_seconds)),
    ];
    metrics.set(&namespace, &name, &quantities);
    metrics.set_decision(&namespace, &name, &decision.terms);
    for started in &observed.workers.started {
        metrics.startup.observe(started.as_secs_f64());
    }
}

/// Conditions have whole seconds, as the API server would make of them anyway.
fn seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::plan::autoscaler::DecisionReason;
    use crate::plan::law::Terms;
    use crate::plan::reason::Reason;
    use crate::plan::status::{BROKER_REACHABLE, FALSE, QUEUES_DECLARED, TRUE};

    #[test]
    fn status_and_metrics_have_every_quantity_of_a_decision() {
        let terms = Terms {
            ready: Some(1),
            running: 2,
            oldest_wait_seconds: 3.5,
            arrival_rate: 4.5,
            arrival_rate_window_seconds: 5.5,
            service_seconds: 6.5,
            startup_seconds: 7.5,
            offered_load: 8.5,
            load_workers: 9,
            backlog_workers: 10,
            useful_workers: 11,
            wanted: 12,
            wanted_within_window: 13,
            window_seconds: 14.5,
        };
        let decision = Decision { terms: terms.clone(), ..Decision::of(3, DecisionReason::Off) };
        let status = json!(decision_status(&decision));
        let metrics = BTreeMap::from(terms.quantities());
        for (name, value) in json!(terms).as_object().unwrap() {
            assert_eq!(status.get(name), Some(value), "{name} in the status");
            // These two have metrics of their own.
            if !["ready", "running"].contains(&name.as_str()) {
                assert_eq!(metrics.get(name.as_str()).copied(), value.as_f64(), "{name} in metrics");
            }
        }
    }

    #[test]
    fn a_first_status_waits_for_what_is_unknown_but_not_with_a_problem() {
        let stated =
            |type_, status| Stated { type_, status, reason: Reason::Connecting, message: String::new() };
        let unknown = || stated(BROKER_REACHABLE, UNKNOWN);
        let (known, problem) = (stated(QUEUES_DECLARED, TRUE), stated(QUEUES_DECLARED, FALSE));
        for takes_over in [false, true] {
            assert!(can_wait(&[unknown(), known.clone()], takes_over));
            assert!(!can_wait(std::slice::from_ref(&known), takes_over));
            assert_eq!(can_wait(&[unknown(), problem.clone()], takes_over), takes_over);
            assert_eq!(
                can_wait(&[stated(SCALE_IN_PROTECTION, UNKNOWN), known.clone()], takes_over),
                takes_over
            );
        }
        assert!(can_wait(&[unknown(), stated(SCALE_IN_PROTECTION, FALSE)], false));
    }

    /// Seconds at which numbers are written that change at these seconds.
    fn written(changes: impl Iterator<Item = u64>) -> Vec<u64> {
        let (mut pace, mut written, mut waits) = (Pace::default(), vec![0], false);
        let changes: Vec<u64> = changes.collect();
        for second in 1..=changes.last().copied().unwrap_or_default() + 60 {
            waits |= changes.contains(&second);
            let since = Duration::from_secs(second - written.last().unwrap());
            if waits && pace.put_off(since).is_none() {
                pace.written(true);
                written.push(second);
                waits = false;
            }
        }
        written[1..].to_vec()
    }

    #[test]
    fn numbers_that_never_rest_are_written_ever_less_often() {
        assert_eq!(written(1..=200), [2, 6, 14, 30, 60, 90, 120, 150, 180, 210]);
    }

    #[test]
    fn numbers_that_change_after_a_rest_are_written_at_once() {
        assert_eq!(written([100, 101, 200, 300].into_iter()), [100, 102, 200, 300]);
    }

    #[test]
    fn numbers_at_rest_are_not_written() {
        assert_eq!(written([].into_iter()), [0; 0]);
    }

    #[test]
    fn news_sets_the_pace_anew() {
        let mut pace = Pace { every: NUMBERS_AT_LEAST_EVERY, waits: true };
        pace.written(false);
        assert_eq!(pace.every, NUMBERS_FIRST_EVERY);
    }
}
