//! What makes reconciliations run: watches of TaskQueues, Deployments and pods, brokers that have news, and time.
//!
//! The watches keep what they see, so that a reconciliation need not ask the API server.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, ready};
use futures_util::stream::{self, Stream};
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::predicates;
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{Config, Predicate as _, WatchStreamExt as _, applier};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

use super::context::{Context, Guarded, Stores, concerned, guarded_reference};
use super::fence;
use super::pods::Pods;
use super::replica_sets::ReplicaSets;
use super::{key, measured_reconcile, on_error};
use crate::api::v1alpha1::TaskQueue;
use crate::broker::Hub;
use crate::metrics::Metrics;
use crate::plan::changes::trim;
use crate::plan::metadata::{OPERATOR, TASK_QUEUE_LABEL};

/// Reconciliations that may run at a time in one watch scope. They wait for the API server only, never for a broker.
const CONCURRENCY: u16 = 8;

/// Time between two rounds of reading Secrets again and forgetting what is gone.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

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
    watching: Client,
    scopes: Vec<Scope>,
}

/// One namespace, or all of them.
struct Scope {
    namespace: Option<String>,
    triggers: UnboundedReceiver<ObjectRef<TaskQueue>>,
}

impl Operator {
    /// Sets up a controller, with a client that limits how long it waits for answers, and one for watches, which doesn't.
    pub fn new(client: Client, watching: Client, settings: Settings, metrics: Arc<Metrics>) -> Self {
        let mut senders: HashMap<Option<String>, UnboundedSender<ObjectRef<TaskQueue>>> = HashMap::new();
        let mut scopes = Vec::new();
        let namespaced = !settings.namespaces.is_empty();
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
        let connection_name = format!("{} {}", OPERATOR, settings.instance);
        let hub = Hub::new(connection_name, Arc::new(trigger), Arc::clone(&metrics));
        let context = Arc::new(Context::new(client, hub, metrics, settings.instance, namespaced));
        Self { context, watching, scopes }
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
            let (kept, controller) = scope.controller(&self.watching, &context, &stop);
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
            () = fence::watch(&self.watching, &context.protection) => {}
            () = tell_of_protection(&context) => {}
        }
    }
}

impl Scope {
    /// The stores and the running controller of a scope.
    fn controller(
        self,
        client: &Client,
        context: &Arc<Context>,
        stop: &watch::Receiver<bool>,
    ) -> (Stores, impl Stream<Item = ()> + use<>) {
        let (task_queues, task_queue_writer) = reflector::store();
        let (deployments, deployment_writer) = reflector::store();
        let ours = watcher::Config::default().labels(TASK_QUEUE_LABEL);

        let (noting, looking) = (Arc::clone(context), Arc::clone(context));
        let task_queue_events = watcher(self.api::<Guarded>(client), watcher::Config::default())
            .default_backoff()
            .modify(|task_queue| task_queue.managed_fields_mut().clear())
            .reflect(task_queue_writer)
            .inspect_ok(move |event| match event {
                Event::Delete(gone) => {
                    tracing::info!(task_queue = %guarded_reference(gone), "TaskQueue is gone");
                    noting.forget(&guarded_reference(gone));
                }
                Event::Apply(task_queue) => noting.note_names(task_queue),
                // What was listed is in the store only now.
                Event::InitDone => {
                    noting.task_queues().iter().for_each(|task_queue| noting.note_names(task_queue))
                }
                Event::Init | Event::InitApply(_) => {}
            })
            .applied_objects()
            // A status that was written is no reason to reconcile.
            .predicate_filter(
                predicates::generation.combine(predicates::labels).combine(predicates::annotations),
                Default::default(),
            )
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

        let replica_sets = Arc::new(ReplicaSets::default());
        let taking = Arc::clone(&replica_sets);
        let replica_set_events = watcher(self.api::<ReplicaSet>(client), ours.clone())
            .default_backoff()
            .map_ok(move |event| stream::iter(taking.take_in(&event)).map(Ok))
            .try_flatten();

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
            stream::select(deployment_events, stream::select(replica_set_events, pod_events)),
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
        (Stores { task_queues, deployments, replica_sets, pods }, controller)
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

/// Has every TaskQueue say so when its workers are protected, or no longer.
async fn tell_of_protection(context: &Context) {
    let mut changes = context.protection.subscribe();
    // The sender lives as long as the context.
    while changes.changed().await.is_ok() {
        let protection = *changes.borrow_and_update();
        tracing::info!(?protection, "protection of workers by the API server");
        for task_queue in context.task_queues() {
            context.hub.trigger(&guarded_reference(&task_queue));
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

/// Reads Secrets again, tells of those that have changed, and forgets what is gone, for ever.
async fn keep_house(context: &Context) {
    let mut rounds = tokio::time::interval(HOUSEKEEPING);
    loop {
        tokio::select! {
            _ = rounds.tick() => {
                context.forget_gone();
                context.secrets.refresh(&context.secrets_in_use()).await;
            }
            () = context.secrets.news() => {}
        }
        let changed = context.secrets.take_changed();
        if changed.is_empty() {
            continue;
        }
        for task_queue in concerned(&context.task_queues(), &changed) {
            context.hub.trigger(&task_queue);
        }
    }
}
