//! The controller: watches TaskQueues and what belongs to them, and reconciles each one when something has changed.

mod apply;
mod context;
mod events;
mod observe;
mod pods;
mod secrets;
mod update_status;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{join_all, ready};
use futures_util::stream::{self, Stream};
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::controller::Action;
use kube::runtime::predicates;
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{Config, Predicate as _, WatchStreamExt as _, applier};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tracing::Instrument as _;

use self::apply::{Applied, apply};
use self::context::{Context, Guarded, Stores, guarded_reference, reference};
use self::events::{News, publish};
use self::observe::{Observed, observe};
use self::pods::Pods;
use self::update_status::update_status;
use crate::api::v1alpha1::TaskQueue;
use crate::broker::Hub;
use crate::metrics::{Metrics, Outcome};
use crate::plan::autoscaler::{self, Decision, Observation, Policy};
use crate::plan::changes::{Changes, applied_hash, changes, replicas, trim};
use crate::plan::deployment::deployment;
use crate::plan::metadata::TASK_QUEUE_LABEL;
use crate::plan::reason::Reason;
use crate::plan::status::{BrokerState, Problem, Workers};
use crate::plan::workers::{running, workers};

/// Reconciliations that may run at a time in one watch scope. They wait for the API server only, never for a broker.
const CONCURRENCY: u16 = 8;

/// A TaskQueue is looked at this often even if nothing seems to have changed.
const RESYNC: Duration = Duration::from_secs(300);

/// A TaskQueue with a problem that shows in no watch (a Secret, another TaskQueue, a refusal) is looked at this often.
const RECHECK: Duration = Duration::from_secs(5);

/// What was decided on too little is decided again after this long.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Time between two rounds of reading Secrets again and forgetting what is gone.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

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
            Self::Scale { .. } => "scale",
            Self::WriteStatus { .. } => "write_status",
        }
    }
}

/// What the controller is told from outside.
pub struct Settings {
    /// Namespaces to watch; all if empty.
    pub namespaces: Vec<String>,
    /// Name of this instance, for events and broker connections.
    pub instance: String,
}

/// A controller that is set up but doesn't watch yet.
pub struct Operator {
    context: Arc<Context>,
    scopes: Vec<Scope>,
}

/// One namespace, or all of them.
struct Scope {
    namespace: Option<String>,
    triggers: tokio::sync::mpsc::UnboundedReceiver<ObjectRef<TaskQueue>>,
}

impl Operator {
    /// Sets up a controller.
    pub fn new(client: Client, settings: Settings, metrics: Arc<Metrics>) -> Self {
        let mut senders: HashMap<Option<String>, UnboundedSender<ObjectRef<TaskQueue>>> = HashMap::new();
        let mut scopes = Vec::new();
        let namespaces: HashSet<Option<String>> = if settings.namespaces.is_empty() {
            HashSet::from([None])
        } else {
            settings.namespaces.into_iter().map(Some).collect()
        };
        for namespace in namespaces {
            let (sender, triggers) = unbounded_channel();
            senders.insert(namespace.clone(), sender);
            scopes.push(Scope { namespace, triggers });
        }
        let trigger = move |task_queue: ObjectRef<TaskQueue>| {
            if let Some(sender) = senders.get(&None).or_else(|| senders.get(&task_queue.namespace)) {
                // Nobody listens any more when the operator is about to stop.
                let _ = sender.send(task_queue);
            }
        };
        metrics.set_max_concurrent_reconciles(CONCURRENCY);
        let connection_name = format!("{} {}", crate::plan::metadata::OPERATOR, settings.instance);
        let hub = Hub::new(connection_name, Arc::new(trigger), Arc::clone(&metrics));
        let context = Arc::new(Context::new(client, hub, metrics, settings.instance));
        Self { context, scopes }
    }

    /// Sets the gauges that grow with time; to be called before each scrape.
    pub fn metrics_refresher(&self) -> impl Fn() + Send + Sync + 'static {
        let context = Arc::clone(&self.context);
        move || context.hub.refresh_metrics()
    }

    /// Watches and reconciles until `stop` turns true; reconciliations under way are finished then. `synced` is called when all watches
    /// have shown what there is.
    pub async fn run(self, stop: watch::Receiver<bool>, synced: impl FnOnce()) {
        let context = self.context;
        let mut stores = Vec::new();
        let mut controllers = Vec::new();
        for scope in self.scopes {
            let (kept, controller) = scope.controller(&context, &stop);
            stores.push(kept);
            controllers.push(controller);
        }
        context.set_scopes(stores);
        let running = join_all(controllers.into_iter().map(|controller| controller.for_each(|_| ready(()))));
        let accompany = async {
            context.synchronize().await;
            tracing::info!(task_queues = context.task_queues().len(), "watching");
            synced();
            keep_house(&context).await
        };
        tokio::select! {
            _ = running => {}
            () = accompany => {}
        }
    }
}

impl Scope {
    /// The stores and the running controller of a scope.
    fn controller(
        self,
        context: &Arc<Context>,
        stop: &watch::Receiver<bool>,
    ) -> (Stores, impl Stream<Item = ()> + use<>) {
        let client = &context.client;
        let (task_queues, task_queue_writer) = reflector::store();
        let (deployments, deployment_writer) = reflector::store();
        let ours = watcher::Config::default().labels(TASK_QUEUE_LABEL);

        let (forgetting, looking) = (Arc::clone(context), Arc::clone(context));
        let task_queue_events = watcher(self.api::<Guarded>(client), watcher::Config::default())
            .default_backoff()
            .modify(|task_queue| task_queue.managed_fields_mut().clear())
            .reflect(task_queue_writer)
            .inspect_ok(move |event| {
                if let Event::Delete(gone) = event {
                    tracing::info!(task_queue = %guarded_reference(gone), "TaskQueue is gone");
                    forgetting.forget(&guarded_reference(gone));
                }
            })
            .applied_objects()
            // A status that was written is no reason to reconcile.
            .predicate_filter(predicates::generation.combine(predicates::labels), Default::default())
            .map_ok(move |task_queue| {
                let rivals = looking.rivals(&task_queue);
                stream::iter(rivals).chain(stream::iter([guarded_reference(&task_queue)])).map(Ok)
            })
            .try_flatten();

        let deployment_events = watcher(self.api::<Deployment>(client), ours.clone())
            .default_backoff()
            .modify(trim)
            .reflect(deployment_writer)
            .touched_objects()
            .try_filter_map(|deployment| ready(Ok(owner(&deployment))));

        let pods = Arc::new(Pods::default());
        let taking = Arc::clone(&pods);
        let pod_events = watcher(self.api::<Pod>(client), ours)
            .default_backoff()
            .map_ok(move |event| stream::iter(taking.take_in(&event)).map(Ok))
            .try_flatten();

        let mut triggers = self.triggers;
        let broker_events = stream::poll_fn(move |task| triggers.poll_recv(task)).map(Ok);

        let noting = Arc::clone(context);
        let queue = stream::select(
            stream::select(task_queue_events, broker_events),
            stream::select(deployment_events, pod_events),
        )
        .inspect_err(|error: &watcher::Error| tracing::warn!(%error, "watch interrupted"))
        .map_ok(move |task_queue: ObjectRef<TaskQueue>| {
            noting.metrics.enqueued(&key(&task_queue));
            let namespace = task_queue.namespace.unwrap_or_default();
            ObjectRef::<Guarded>::new(&task_queue.name).within(&namespace)
        })
        .take_until(stopped(stop.clone()));

        let controller = applier(
            |guarded, context| measured_reconcile(guarded, context).boxed(),
            on_error,
            Arc::clone(context),
            task_queues.clone(),
            queue,
            Config::default().concurrency(CONCURRENCY),
        )
        .map(|_| ());
        (Stores { task_queues, deployments, pods }, controller)
    }

    fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        }
    }
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // The sender goes only with the process.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn owner(deployment: &Deployment) -> Option<ObjectRef<TaskQueue>> {
    let name = deployment.labels().get(TASK_QUEUE_LABEL)?;
    Some(ObjectRef::new(name).within(&deployment.namespace()?))
}

/// The key of a TaskQueue in the metrics of the work queue.
fn key(task_queue: &ObjectRef<TaskQueue>) -> String {
    format!("{}/{}", task_queue.namespace.as_deref().unwrap_or_default(), task_queue.name)
}

/// Reads Secrets again and forgets what is gone, for ever.
async fn keep_house(context: &Context) {
    let mut rounds = tokio::time::interval(HOUSEKEEPING);
    loop {
        rounds.tick().await;
        context.forget_gone();
        let in_use = context.secrets_in_use();
        let names = in_use.keys().cloned().collect();
        for secret in context.secrets.refresh(&names).await {
            for task_queue in in_use.get(&secret).into_iter().flatten() {
                context.hub.trigger(task_queue);
            }
        }
    }
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

fn on_error(guarded: Arc<Guarded>, _: &Error, context: Arc<Context>) -> Action {
    Action::requeue(context.failed(&guarded))
}

/// Brings a TaskQueue and the world in line: observe, plan, apply, tell.
async fn reconcile(guarded: &Guarded, context: &Context) -> Result<Action, Error> {
    let task_queue = match &guarded.0 {
        Ok(task_queue) => task_queue,
        Err(invalid) => return Ok(report_invalid(guarded, &invalid.error, context).await),
    };
    if task_queue.metadata.deletion_timestamp.is_some() {
        context.forget(&reference(task_queue));
        return Ok(Action::await_change());
    }
    let mut memory = context.recall(task_queue);
    let result = async {
        let observed = observe(task_queue, &mut memory, context).await?;
        let plan = plan(task_queue, &observed, &mut memory, Instant::now());
        let applied = apply(task_queue, &observed, &plan.changes, &plan.decision, &mut memory, context).await;
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
        Ok(next_look(&observed, &workers, &plan.decision, &applied?, put_off))
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

/// The second step of a reconciliation: decides, from what was observed and what was wanted before.
fn plan(task_queue: &TaskQueue, observed: &Observed, memory: &mut context::Memory, now: Instant) -> Plan {
    let (running, all_running) = running(&observed.pods, &observed.active);
    let observation = Observation {
        backlog: observed.backlog,
        running,
        replicas: observed.deployment.as_ref().map(replicas),
    };
    let policy = Policy::new(&task_queue.spec, observed.claim.is_some());
    if memory.history.current().is_none() {
        // What a former leader asked for was wanted until now, as far as is known.
        memory.history.record(now, observation.replicas.unwrap_or(policy.min), policy.stabilization);
    }
    let decision = autoscaler::decide(&observation, &memory.history, &policy, now);
    memory.history.record(now, decision.wanted, policy.stabilization);

    let wanted = task_queue
        .spec
        .worker
        .template()
        .map(|template| deployment(task_queue, &observed.topology, template))
        .map_err(|error| Problem {
            reason: Reason::TemplateInvalid,
            message: format!("spec.worker.template: {error}"),
        });
    let drift_is_known = match (&wanted, &memory.known_drift, &observed.deployment) {
        (Ok(wanted), Some((hash, generation)), Some(live)) => {
            applied_hash(wanted) == Some(hash) && live.metadata.generation == *generation
        }
        _ => false,
    };
    let mut workers = workers(&observed.pods, observed.deployment.as_ref());
    workers.problem = observed.results_problem.clone().or(workers.problem);
    Plan {
        changes: changes(task_queue, wanted, observed.deployment.as_ref(), &decision, drift_is_known),
        decision,
        workers,
        running: all_running,
    }
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
    let waits = [decision.recheck_after, put_off, recheck.then_some(RECHECK), Some(RESYNC)];
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
