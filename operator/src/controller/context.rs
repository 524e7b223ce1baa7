//! What all reconciliations share, and what is remembered from one to the next.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use celery_client::BrokerAddress;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::core::DeserializeGuard;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, Resource as _, ResourceExt as _};
use tokio::sync::watch;

use super::Error;
use super::drain::RefusedLabels;
use super::named::Named;
use super::pods::Pods;
use super::replica_sets::ReplicaSets;
use super::secrets::{SecretName, Secrets};
use super::update_status::Pace;
use crate::api::v1alpha1::{TaskQueue, TaskQueueStatus};
use crate::broker::Hub;
use crate::metrics::Metrics;
use crate::plan::autoscaler::History;
use crate::plan::claims::shared_queue;
use crate::plan::drain::ReplicaSet;
use crate::plan::metadata::OPERATOR;
use crate::plan::status::{Problem, Protection, Told};
use crate::plan::topology::{Topology, names};
use crate::plan::workers::WorkerPod;

/// A TaskQueue, or what is wrong with it: one that can't be read must not stop the watch of all others.
pub(super) type Guarded = DeserializeGuard<TaskQueue>;

/// First wait before a failed reconciliation is tried again; it doubles from attempt to attempt.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// Longest wait before a failed reconciliation is tried again.
const RETRY_AT_MOST: Duration = Duration::from_secs(300);

/// The same where it is the API server that is in trouble: all is to be well soon after that is over.
const RETRY_TROUBLE_AT_MOST: Duration = Duration::from_secs(15);

/// What all reconciliations share.
pub(super) struct Context {
    pub(super) client: Client,
    pub(super) hub: Hub,
    pub(super) metrics: Arc<Metrics>,
    pub(super) recorder: Recorder,
    pub(super) secrets: Secrets,
    /// Whether the API server protects workers that aren't drained.
    pub(super) protection: watch::Sender<Protection>,
    scopes: OnceLock<Vec<Stores>>,
    /// Whether the watches have shown everything once. Before that nothing may be decided: a Deployment that wasn't shown yet
    /// would look like one that isn't there.
    synchronized: watch::Sender<bool>,
    memories: Mutex<HashMap<ObjectRef<TaskQueue>, Memory>>,
    /// Where the broker of each TaskQueue is or was last known to be.
    addresses: Mutex<HashMap<ObjectRef<TaskQueue>, BrokerAddress>>,
    /// The TaskQueues by the queues that they name.
    named: Named,
}

/// What is known from the watches of one namespace, or of all of them.
pub(super) struct Stores {
    pub(super) task_queues: Store<Guarded>,
    pub(super) deployments: Store<Deployment>,
    pub(super) replica_sets: Arc<ReplicaSets>,
    pub(super) pods: Arc<Pods>,
}

/// What is remembered of a TaskQueue.
pub(super) struct Memory {
    /// Since when something is remembered.
    pub(super) since: Instant,
    /// The TaskQueue; another one of the same name begins anew.
    uid: Option<String>,
    /// What was wanted.
    pub(super) history: History,
    /// The Deployment as the API server returned it, until the watch shows it too.
    pub(super) written: Option<(Arc<Deployment>, Instant)>,
    /// The generation of the TaskQueue and the version of its Deployment in which that one is as wanted.
    pub(super) as_wanted: Option<(Option<i64>, Option<String>)>,
    /// The hash that was applied and the generation that came of it, if the result still differs from what was wanted.
    pub(super) known_drift: Option<(String, Option<i64>)>,
    /// What the API server refused: the hash of the Deployment, why, and when.
    pub(super) refused: Option<(String, Problem, Instant)>,
    /// The status that was written last, and when.
    pub(super) status: Option<(TaskQueueStatus, Instant)>,
    /// How often its numbers are written.
    pub(super) pace: Pace,
    /// What was told by events.
    pub(super) told: Option<Told>,
    /// Since when a deletion waits for the queues to be gone.
    pub(super) waiting_for_removal: Option<Instant>,
    /// Names of the pods that were there to stay, or to leave in good order.
    pub(super) staying: HashSet<String>,
    /// Workers that users were told of because they take too long to drain.
    pub(super) overdue: HashSet<String>,
    /// Workers whose labels the API server refuses.
    pub(super) refused_labels: RefusedLabels,
    /// Failed attempts in a row.
    attempts: u32,
    /// When the next attempt is due, and for which generation the last one failed.
    retry: Option<(Instant, Option<i64>)>,
}

impl Memory {
    fn new(uid: Option<String>) -> Self {
        Self {
            since: Instant::now(),
            uid,
            history: History::default(),
            written: None,
            as_wanted: None,
            known_drift: None,
            refused: None,
            status: None,
            pace: Pace::default(),
            told: None,
            waiting_for_removal: None,
            staying: HashSet::new(),
            overdue: HashSet::new(),
            refused_labels: RefusedLabels::default(),
            attempts: 0,
            retry: None,
        }
    }
}

impl Context {
    pub(super) fn new(
        client: Client,
        hub: Hub,
        metrics: Arc<Metrics>,
        instance: String,
        namespaced: bool,
    ) -> Self {
        let reporter = Reporter { controller: OPERATOR.to_owned(), instance: Some(instance) };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            secrets: Secrets::new(client.clone(), namespaced),
            addresses: Mutex::default(),
            named: Named::default(),
            protection: watch::Sender::new(Protection::Unknown),
            scopes: OnceLock::new(),
            synchronized: watch::Sender::new(false),
            memories: Mutex::default(),
            client,
            hub,
            metrics,
        }
    }

    /// States where the watches keep what they see. To be called once, before the first reconciliation.
    pub(super) fn set_scopes(&self, scopes: Vec<Stores>) {
        // A second call would be a mistake in `run`, and changes nothing.
        let _ = self.scopes.set(scopes);
    }

    pub(super) fn scopes(&self) -> &[Stores] {
        self.scopes.get().map(Vec::as_slice).unwrap_or_default()
    }

    /// Waits until the watches have shown everything once, and lets the reconciliations begin.
    pub(super) async fn synchronize(&self) {
        for scope in self.scopes() {
            // An error means that the watch has ended, which it does only when the operator stops.
            let _ = scope.task_queues.wait_until_ready().await;
            let _ = scope.deployments.wait_until_ready().await;
            scope.replica_sets.wait_until_ready().await;
            scope.pods.wait_until_ready().await;
        }
        self.synchronized.send_replace(true);
    }

    /// Waits until [`synchronize`](Self::synchronize) is done.
    pub(super) async fn synchronized(&self) {
        // The sender lives as long as this context.
        let _ = self.synchronized.subscribe().wait_for(|synchronized| *synchronized).await;
    }

    /// How long workers took to start that came up since this was asked last.
    pub(super) fn started(&self, task_queue: &ObjectRef<TaskQueue>) -> Vec<Duration> {
        self.scopes().iter().flat_map(|scope| scope.pods.take_started(task_queue)).collect()
    }

    /// The worker pods of a TaskQueue.
    pub(super) fn pods(&self, task_queue: &ObjectRef<TaskQueue>) -> Vec<WorkerPod> {
        self.scopes().iter().flat_map(|scope| scope.pods.of(task_queue)).collect()
    }

    /// The ReplicaSets of a TaskQueue's Deployment.
    pub(super) fn replica_sets(&self, task_queue: &ObjectRef<TaskQueue>) -> Vec<ReplicaSet> {
        self.scopes().iter().flat_map(|scope| scope.replica_sets.of(task_queue)).collect()
    }

    /// Takes in a pod as the API server has just returned it.
    pub(super) fn update_pod(&self, pod: &Pod) {
        for scope in self.scopes() {
            scope.pods.update(pod);
        }
    }

    /// All TaskQueues, those that can't be read included.
    pub(super) fn task_queues(&self) -> Vec<Arc<Guarded>> {
        self.scopes().iter().flat_map(|scope| scope.task_queues.state()).collect()
    }

    fn task_queue(&self, namespace: &str, name: &str) -> Option<Arc<Guarded>> {
        let reference = ObjectRef::new(name).within(namespace);
        self.scopes().iter().find_map(|scope| scope.task_queues.get(&reference))
    }

    /// Notes which queues a TaskQueue names, as the watch shows it.
    pub(super) fn note_names(&self, task_queue: &Guarded) {
        if let Ok(task_queue) = &task_queue.0 {
            self.named.add(task_queue);
        }
    }

    /// The TaskQueues that name a queue of this topology, or did so a moment ago.
    pub(super) fn namesakes(&self, topology: &Topology) -> Vec<Arc<Guarded>> {
        let named = self.named.of(topology);
        named.iter().filter_map(|(namespace, name)| self.task_queue(namespace, name)).collect()
    }

    /// The Deployment of that name as the watch shows it.
    pub(super) fn deployment(&self, namespace: &str, name: &str) -> Option<Arc<Deployment>> {
        let reference = ObjectRef::new(name).within(namespace);
        self.scopes().iter().find_map(|scope| scope.deployments.get(&reference))
    }

    fn memories(&self) -> MutexGuard<'_, HashMap<ObjectRef<TaskQueue>, Memory>> {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is remembered of a TaskQueue. It is to be given back with [`remember`](Self::remember): a TaskQueue is never reconciled
    /// twice at a time.
    pub(super) fn recall(&self, task_queue: &TaskQueue) -> Memory {
        let memory = self.memories().remove(&reference(task_queue));
        memory
            .filter(|memory| memory.uid == task_queue.metadata.uid)
            .unwrap_or_else(|| Memory::new(task_queue.metadata.uid.clone()))
    }

    pub(super) fn remember(&self, task_queue: &TaskQueue, memory: Memory) {
        self.memories().insert(reference(task_queue), memory);
    }

    /// Notes a success: the next failure is the first again.
    pub(super) fn succeeded(&self, task_queue: &ObjectRef<TaskQueue>) {
        if let Some(memory) = self.memories().get_mut(task_queue) {
            memory.attempts = 0;
            memory.retry = None;
        }
    }

    /// Notes a failure. Returns how long to wait before the next attempt.
    pub(super) fn failed(&self, task_queue: &Guarded, error: &Error) -> Duration {
        let at_most = if error.is_trouble() { RETRY_TROUBLE_AT_MOST } else { RETRY_AT_MOST };
        match self.memories().get_mut(&guarded_reference(task_queue)) {
            Some(memory) => {
                let wait = retry_after(memory.attempts, at_most);
                memory.attempts = memory.attempts.saturating_add(1);
                memory.retry = Some((Instant::now() + wait, task_queue.meta().generation));
                wait
            }
            None => RETRY_FIRST,
        }
    }

    /// How long the last failure still forbids another attempt. Brokers and pods ask for one every second, which an API server in
    /// trouble can't use; a spec that was changed is tried at once.
    pub(super) fn backing_off(&self, task_queue: &Guarded) -> Option<Duration> {
        let memories = self.memories();
        let (due, generation) = memories.get(&guarded_reference(task_queue))?.retry?;
        let wait = due.checked_duration_since(Instant::now())?;
        (generation == task_queue.meta().generation && !wait.is_zero()).then_some(wait)
    }

    /// Forgets a TaskQueue that is gone: its connection, its series, its past.
    pub(super) fn forget(&self, task_queue: &ObjectRef<TaskQueue>) {
        self.hub.unsubscribe(task_queue);
        self.metrics.forget(task_queue.namespace.as_deref().unwrap_or_default(), &task_queue.name);
        self.memories().remove(task_queue);
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).remove(task_queue);
    }

    /// Forgets all that are gone without anybody having seen them go.
    pub(super) fn forget_gone(&self) {
        let there: HashSet<ObjectRef<TaskQueue>> =
            self.task_queues().iter().map(|task_queue| guarded_reference(task_queue)).collect();
        let gone: Vec<_> =
            self.memories().keys().filter(|task_queue| !there.contains(*task_queue)).cloned().collect();
        for task_queue in gone {
            self.forget(&task_queue);
        }
        self.named.retain(|namespace, name, queue| {
            let named = self.task_queue(namespace, name);
            named.is_some_and(|named| named.0.as_ref().is_ok_and(|task_queue| names(task_queue, queue)))
        });
    }

    /// The other TaskQueues that name a queue of this one: what it may do decides what they may do.
    pub(super) fn rivals(&self, task_queue: &Guarded) -> Vec<ObjectRef<TaskQueue>> {
        // Before all are known, each of them will be looked at anyway.
        let Ok(task_queue) = &task_queue.0 else { return Vec::new() };
        if !*self.synchronized.borrow() {
            return Vec::new();
        }
        let queues = Topology::new(task_queue);
        let others = self.namesakes(&queues);
        let others = others.iter().filter_map(|other| other.0.as_ref().ok());
        others
            .filter(|other| other.metadata.uid != task_queue.metadata.uid)
            .filter(|other| shared_queue(&queues, other).is_some())
            .map(reference)
            .collect()
    }

    /// The Secrets that TaskQueues name.
    pub(super) fn secrets_in_use(&self) -> HashSet<SecretName> {
        let task_queues = self.task_queues();
        task_queues.iter().filter_map(|guarded| guarded.0.as_ref().ok()).flat_map(secrets_of).collect()
    }

    /// Notes where the broker of a TaskQueue is, or gives what was noted last if that isn't known now.
    pub(super) fn last_address(
        &self,
        task_queue: &ObjectRef<TaskQueue>,
        address: Option<BrokerAddress>,
    ) -> Option<BrokerAddress> {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        last_known(&mut addresses, task_queue, address)
    }
}

fn last_known<K: Clone + Eq + Hash, V: Clone>(
    known: &mut HashMap<K, V>,
    key: &K,
    now: Option<V>,
) -> Option<V> {
    match now {
        Some(value) => {
            known.insert(key.clone(), value.clone());
            Some(value)
        }
        None => known.get(key).cloned(),
    }
}

/// The TaskQueues that have to be looked at when Secrets have changed: those that name them, and those that name the same queues as one
/// of these, because where the broker of one is decides what the others may do.
pub(super) fn concerned(
    task_queues: &[Arc<Guarded>],
    changed: &HashSet<SecretName>,
) -> HashSet<ObjectRef<TaskQueue>> {
    let readable = || task_queues.iter().filter_map(|guarded| guarded.0.as_ref().ok());
    let users: Vec<&TaskQueue> =
        readable().filter(|user| secrets_of(user).any(|secret| changed.contains(&secret))).collect();
    let topologies: Vec<Topology> = users.iter().map(|user| Topology::new(user)).collect();
    let queues: HashSet<&str> = topologies.iter().flat_map(Topology::all_names).collect();
    let competes = |other: &&TaskQueue| Topology::new(other).all_names().any(|queue| queues.contains(queue));
    let rivals = readable().filter(competes);
    users.iter().copied().chain(rivals).map(reference).collect()
}

fn retry_after(attempts: u32, at_most: Duration) -> Duration {
    let wait = RETRY_FIRST.saturating_mul(1 << attempts.min(16)).min(at_most);
    wait.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// The Secret that says where the broker is.
pub(super) fn broker_secret(task_queue: &TaskQueue) -> SecretName {
    SecretName {
        namespace: task_queue.namespace().unwrap_or_default(),
        name: task_queue.spec.broker.secret_ref.name.clone(),
    }
}

/// The Secret that says where results are stored.
pub(super) fn results_secret(task_queue: &TaskQueue) -> Option<SecretName> {
    let secret = task_queue.spec.results.as_ref()?.secret_ref.as_ref()?;
    Some(SecretName { namespace: task_queue.namespace().unwrap_or_default(), name: secret.name.clone() })
}

fn secrets_of(task_queue: &TaskQueue) -> impl Iterator<Item = SecretName> {
    std::iter::once(broker_secret(task_queue)).chain(results_secret(task_queue))
}

/// The key of a TaskQueue.
pub(super) fn reference(task_queue: &TaskQueue) -> ObjectRef<TaskQueue> {
    key_of(task_queue.meta())
}

/// The key of a TaskQueue that may be unreadable.
pub(super) fn guarded_reference(task_queue: &Guarded) -> ObjectRef<TaskQueue> {
    key_of(task_queue.meta())
}

fn key_of(metadata: &kube::core::ObjectMeta) -> ObjectRef<TaskQueue> {
    let name = metadata.name.as_deref().unwrap_or_default();
    ObjectRef::new(name).within(metadata.namespace.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_slow_down_to_five_minutes() {
        assert!(retry_after(0, RETRY_AT_MOST) <= RETRY_FIRST);
        assert!(retry_after(3, RETRY_AT_MOST) >= Duration::from_secs(4));
        assert!(retry_after(9, RETRY_AT_MOST) >= RETRY_AT_MOST / 2);
        for attempts in 0..100 {
            assert!(retry_after(attempts, RETRY_AT_MOST) <= RETRY_AT_MOST);
            assert!(retry_after(attempts, RETRY_TROUBLE_AT_MOST) <= RETRY_TROUBLE_AT_MOST);
        }
    }

    fn guarded(name: &str, secret: &str, queue: &str) -> Arc<Guarded> {
        let task_queue = serde_json::json!({
            "apiVersion": "soloist.dev/v1alpha1",
            "kind": "TaskQueue",
            "metadata": {"name": name, "namespace": "default", "uid": name},
            "spec": {
                "broker": {"secretRef": {"name": secret}},
                "queues": [{"name": queue}],
                "worker": {"image": "w"},
                "scaling": {"maxReplicas": 5},
            },
        });
        Arc::new(serde_json::from_value(task_queue).unwrap())
    }

    #[test]
    fn changed_secret_concerns_all_that_name_it_and_their_rivals() {
        let all = [
            guarded("one", "rabbitmq", "red"),
            guarded("two", "rabbitmq", "green"),
            guarded("rival", "other", "red"),
            guarded("stranger", "other", "blue"),
        ];
        let secret = SecretName { namespace: "default".to_owned(), name: "rabbitmq".to_owned() };
        let concerned = concerned(&all, &HashSet::from([secret]));
        let mut names: Vec<_> = concerned.into_iter().map(|task_queue| task_queue.name).collect();
        names.sort_unstable();
        assert_eq!(names, ["one", "rival", "two"]);
    }

    #[test]
    fn what_is_unknown_now_is_what_was_known_last() {
        let mut known = HashMap::new();
        assert_eq!(last_known(&mut known, &"one", None::<u8>), None);
        assert_eq!(last_known(&mut known, &"one", Some(1)), Some(1));
        assert_eq!(last_known(&mut known, &"one", None), Some(1));
    }
}
