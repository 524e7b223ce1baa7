//! The controller: watches TaskQueues and what belongs to them, and reconciles each one when something has changed.
//!
//! Start reading at `reconcile`. What makes it run is in [`watch`].

mod apply;
mod context;
mod deletion;
mod drain;
mod events;
mod fence;
mod named;
mod observe;
mod pods;
mod replica_sets;
mod secrets;
mod update_status;
pub mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::Resource as _;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use tracing::Instrument as _;

use self::apply::{Applied, apply};
use self::context::{Context, Guarded, Memory, guarded_reference, reference};
use self::deletion::{Progress, end, is_ending};
use self::events::{News, publish};
use self::observe::{Observed, observe};
use self::update_status::update_status;
use crate::api::v1alpha1::{ScalingMode, TaskQueue};
use crate::metrics::Outcome;
use crate::plan::autoscaler::{self, Decision, Policy};
use crate::plan::changes::{Changes, applied_hash, changes, scale};
use crate::plan::deployment::deployment;
use crate::plan::law::{self, Observation};
use crate::plan::reason::Reason;
use crate::plan::status::{BrokerState, Problem, Workers};
use crate::plan::workers::{starting_ends_in, workers};

/// A TaskQueue is looked at this often even if nothing seems to have changed.
const RESYNC: Duration = Duration::from_secs(300);

/// A TaskQueue with a problem that shows in no watch (a Secret, another TaskQueue, a refusal) is looked at this often.
const RECHECK: Duration = Duration::from_secs(5);

/// What was decided on too little is decided again after this long.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Brings a TaskQueue and the world in line: observe, plan, apply, tell.
async fn reconcile(guarded: &Guarded, context: &Context) -> Result<Action, Error> {
    let task_queue = match &guarded.0 {
        Ok(task_queue) => task_queue,
        Err(invalid) => {
            deletion::release_invalid(guarded, context).await?;
            return Ok(report_invalid(guarded, &invalid.error, context).await);
        }
    };
    deletion::keep_finalizer(task_queue, context).await?;
    if task_queue.metadata.deletion_timestamp.is_some() && !is_ending(task_queue) {
        context.forget(&reference(task_queue));
        return Ok(Action::await_change());
    }
    let mut memory = context.recall(task_queue);
    let result = async {
        let observed = observe(task_queue, &mut memory, context).await?;
        let mut draining = drain::Workers::new(task_queue, &observed, context);
        let decision = decide(task_queue, &observed, draining.counting(task_queue), &mut memory);
        let drained = draining.drain(task_queue, decision.ask_for, &observed, &mut memory, context).await;
        let plan = plan(task_queue, &observed, decision, drained.replicas, &mut memory);
        let applied = apply(task_queue, &observed, &plan.changes, &plan.decision, &mut memory, context).await;
        // Of what is about to go no conditions are told.
        if is_ending(task_queue) {
            applied?;
            return Ok(match end(task_queue, &observed, &mut memory, context).await? {
                Progress::Underway => Action::requeue(RECHECK),
                Progress::Gone => Action::await_change(),
            });
        }
        let workers = plan.workers_with(applied.as_ref().ok());
        let put_off = update_status(
            task_queue,
            &observed,
            &workers,
            plan.running,
            &plan.decision,
            &mut memory,
            context,
        )
        .await?;
        let applied = applied?;
        if let Some(error) = drained.error {
            return Err(error);
        }
        let applied = if drained.is_outdated { Applied::Outdated } else { applied };
        let put_off = put_off.into_iter().chain(drained.put_off).min();
        Ok(next_look(&observed, &workers, &plan.decision, &applied, put_off))
    }
    .await;
    context.remember(task_queue, memory);
    result
}

/// What is to be done about a TaskQueue.
struct Plan {
    decision: Decision,
    changes: Changes,
    workers: Workers,
    /// Tasks that run, those of leaving workers included.
    running: Option<u32>,
}

impl Plan {
    /// The state of the workers with the first problem there is: what was refused, what keeps things from being written, what the
    /// pods say.
    fn workers_with(&self, applied: Option<&Applied>) -> Workers {
        let refused = match applied {
            Some(Applied::Refused(problem)) => Some(problem.clone()),
            _ => None,
        };
        let problem =
            refused.or_else(|| self.changes.problem.clone()).or_else(|| self.workers.problem.clone());
        Workers { problem, ..self.workers.clone() }
    }
}

/// Decides how many workers there are to be, from what was observed and what was wanted before. `counting` are those that there are.
fn decide(task_queue: &TaskQueue, observed: &Observed, counting: u16, memory: &mut Memory) -> Decision {
    let mut policy = Policy::new(task_queue, observed.claim.is_some(), Timestamp::now());
    if is_ending(task_queue) {
        (policy.manual, policy.mode, policy.paused) = (Some(0), ScalingMode::Auto, None);
    }
    let asked_for = if observed.deployment.is_some() { counting } else { policy.law.min };
    let observation = Observation {
        backlog: observed.backlog,
        tasks: observed.tasks,
        workers: law::Workers { asked_for, ..observed.workers.clone() },
    };
    let (decision, history) =
        autoscaler::decide(&observation, std::mem::take(&mut memory.history), &policy, Instant::now());
    memory.history = history;
    decision
}

/// The second step of a reconciliation: what is to be written. `replicas` is what the Deployment is to ask for now, which is more than was
/// decided for as long as workers drain.
fn plan(
    task_queue: &TaskQueue,
    observed: &Observed,
    decision: Decision,
    replicas: u16,
    memory: &mut Memory,
) -> Plan {
    let now = Decision { ask_for: decision.ask_for.map(|_| replicas), ..decision.clone() };
    let mut changes = compare(task_queue, observed, &now, memory);
    if is_ending(task_queue) {
        // Its Deployment may be on its way out already, with the whole namespace: it is not to be made again.
        changes.apply = None;
        changes.scale = changes.scale.filter(|_| observed.deployment.is_some());
    }
    let mut workers = workers(&observed.pods, observed.deployment.as_deref(), Timestamp::now());
    workers.problem = observed.results_problem.clone().or(workers.problem);
    Plan {
        changes,
        decision,
        workers,
        running: (observed.tasks.silent_workers == 0).then_some(observed.tasks.running),
    }
}

/// Compares the Deployment that is wanted with the one that is there. As long as neither has changed, what was found before holds: to make
/// the one and to compare it with the other is most of what a reconciliation costs.
fn compare(task_queue: &TaskQueue, observed: &Observed, now: &Decision, memory: &mut Memory) -> Changes {
    let live = observed.deployment.as_deref();
    let versions = live.map(|live| (task_queue.metadata.generation, live.metadata.resource_version.clone()));
    if let Some(live) = live.filter(|_| memory.as_wanted == versions) {
        return Changes { scale: scale(live, now), ..Changes::default() };
    }
    let wanted = task_queue
        .spec
        .worker
        .template()
        .map(|template| deployment(task_queue, &observed.topology, template))
        .map_err(|error| Problem {
            reason: Reason::TemplateInvalid,
            message: format!("spec.worker.template: {error}"),
        });
    let drift_is_known = match (&wanted, &memory.known_drift, live) {
        (Ok(wanted), Some((hash, generation)), Some(live)) => {
            applied_hash(wanted) == Some(hash) && live.metadata.generation == *generation
        }
        _ => false,
    };
    let changes = changes(task_queue, wanted, live, now, drift_is_known);
    memory.as_wanted = versions.filter(|_| changes.apply.is_none() && changes.problem.is_none());
    changes
}

/// When to look again if nothing happens until then.
fn next_look(
    observed: &Observed,
    workers: &Workers,
    decision: &Decision,
    applied: &Applied,
    put_off: Option<Duration>,
) -> Action {
    if *applied == Applied::Outdated {
        return Action::requeue(LOOK_AGAIN);
    }
    let unwatched =
        [Reason::SecretNotFound, Reason::SecretForbidden, Reason::SecretInvalid, Reason::BrokerNotSupported];
    let refused = [Reason::AuthFailed, Reason::VhostRefused, Reason::NameConflict, Reason::DeploymentRefused];
    let has = |problem: &Problem| unwatched.contains(&problem.reason) || refused.contains(&problem.reason);
    let broker_problem = match &observed.broker {
        BrokerState::Failed(problem) => Some(problem),
        _ => None,
    };
    let recheck = observed.claim.is_some()
        || broker_problem.is_some_and(has)
        || workers.problem.as_ref().is_some_and(has);
    let starting = starting_ends_in(&observed.pods, Timestamp::now());
    let waits = [Some(decision.recheck_after), put_off, starting, recheck.then_some(RECHECK), Some(RESYNC)];
    Action::requeue(waits.into_iter().flatten().min().unwrap_or(RESYNC))
}

/// Tells of a TaskQueue that can't be read. There is nothing to be tried again: the next version of it comes with the watch.
async fn report_invalid(guarded: &Guarded, error: &str, context: &Context) -> Action {
    tracing::warn!(error, "TaskQueue can't be read");
    let news =
        News { warning: true, reason: Reason::ResourceInvalid, action: "Read".to_owned(), note: error };
    publish(&guarded.object_ref(&()), context, news).await;
    Action::await_change()
}

/// One reconciliation with everything around it: span, metrics, count of attempts.
async fn measured_reconcile(guarded: Arc<Guarded>, context: Arc<Context>) -> Result<Action, Error> {
    let task_queue = guarded_reference(&guarded);
    let key = key(&task_queue);
    let span = tracing::info_span!(
        "reconcile",
        namespace = task_queue.namespace,
        taskqueue = task_queue.name,
        reconcile_id = format!("{:016x}", fastrand::u64(..)),
    );
    context.synchronized().await;
    if let Some(wait) = context.backing_off(&guarded) {
        return Ok(Action::requeue(wait));
    }
    context.metrics.reconciling(&key);
    let result = async {
        let result = reconcile(&guarded, &context).await;
        if let Err(error) = &result {
            let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            tracing::warn!(category = error.category(), %error, cause, "reconciliation failed");
        }
        result
    }
    .instrument(span)
    .await;
    let outcome = match &result {
        Ok(action) if *action == Action::await_change() => Outcome::Success,
        Ok(_) => Outcome::RequeueAfter,
        Err(_) => Outcome::Error,
    };
    context.metrics.reconciled(&key, outcome);
    if result.is_ok() {
        context.succeeded(&task_queue);
    }
    result
}

fn on_error(guarded: Arc<Guarded>, error: &Error, context: Arc<Context>) -> Action {
    Action::requeue(context.failed(&guarded, error))
}

/// The key of a TaskQueue in the metrics of the work queue.
fn key(task_queue: &ObjectRef<TaskQueue>) -> String {
    format!("{}/{}", task_queue.namespace.as_deref().unwrap_or_default(), task_queue.name)
}

/// Why a reconciliation failed. It is tried again; what only the user can change isn't an error but a condition.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A Secret could not be read.
    #[error("read Secret `{name}`")]
    ReadSecret {
        /// Its name.
        name: String,
        /// Why.
        source: kube::Error,
    },
    /// The Deployment could not be applied.
    #[error("apply Deployment `{name}`")]
    ApplyDeployment {
        /// Its name.
        name: String,
        /// Why.
        source: kube::Error,
    },
    /// The finalizer could not be put on or taken off.
    #[error("set the finalizer of TaskQueue `{name}`")]
    SetFinalizer {
        /// Its name.
        name: String,
        /// Why.
        source: kube::Error,
    },
    /// A worker pod could not be labelled.
    #[error("label pod `{name}`")]
    LabelPod {
        /// Its name.
        name: String,
        /// Why.
        source: kube::Error,
    },
    /// The number of replicas could not be set.
    #[error("scale Deployment `{name}`")]
    Scale {
        /// Its name.
        name: String,
        /// Why.
        source: kube::Error,
    },
    /// The status could not be written.
    #[error("write the status of TaskQueue `{name}`")]
    WriteStatus {
        /// Its name.
        name: String,
        /// Why.
        source: kube::Error,
    },
}

impl Error {
    /// A fixed word for logs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::ReadSecret { .. } => "read_secret",
            Self::ApplyDeployment { .. } => "apply_deployment",
            Self::SetFinalizer { .. } => "set_finalizer",
            Self::LabelPod { .. } => "label_pod",
            Self::Scale { .. } => "scale",
            Self::WriteStatus { .. } => "write_status",
        }
    }

    /// Whether it is the API server that is in trouble (no answer, too many requests, an error of its own), not this TaskQueue.
    fn is_trouble(&self) -> bool {
        let (Self::ReadSecret { source, .. }
        | Self::ApplyDeployment { source, .. }
        | Self::SetFinalizer { source, .. }
        | Self::LabelPod { source, .. }
        | Self::Scale { source, .. }
        | Self::WriteStatus { source, .. }) = self;
        match source {
            kube::Error::Api(status) => status.code == 429 || status.code >= 500,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn an_api_server_in_trouble_is_told_from_a_refusal() {
        let refused = |code| {
            let status = Status { code, ..Status::failure("no", "No") };
            Error::Scale { name: "red-worker".into(), source: kube::Error::Api(Box::new(status)) }
        };
        assert!([429, 500, 503, 504].map(refused).iter().all(Error::is_trouble));
        assert!(![403, 404, 409, 422].map(refused).iter().any(Error::is_trouble));
    }
}
