//! The first step of a reconciliation: everything known about a TaskQueue, as one value.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use celery_client::{AddressError, BrokerAddress, ResultStoreAddress};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use kube::runtime::reflector::ObjectRef;

use super::Error;
use super::context::{Context, Memory, broker_secret, reference, results_secret};
use super::deletion::{is_ending, workers_are_gone};
use super::secrets::{Fields, REREAD_AFTER, SecretName};
use crate::api::v1alpha1::TaskQueue;
use crate::broker::Removed;
use crate::plan::autoscaler::Backlog;
use crate::plan::changes::resource_version;
use crate::plan::claims::{Claim, claim, holds, is_claimed, shared_queue};
use crate::plan::drain::Activity;
use crate::plan::law;
use crate::plan::metadata::deployment_name;
use crate::plan::reason::Reason;
use crate::plan::status::{BrokerState, Problem, QueueState};
use crate::plan::topology::Topology;
use crate::plan::workers::{WorkerPod, capacity, tasks};

/// How old a Secret may be when the broker refuses what was in it.
const REREAD_WHEN_REFUSED: Duration = Duration::from_secs(4);

/// How long the watch may lag behind what was written. After that it is believed: what was written is gone again.
const WATCH_LAG: Duration = Duration::from_secs(10);

/// RabbitMQ takes no smaller frames. What the operator sends and reads is short, and it may have connections to many virtual hosts.
const FRAME_BYTES: u32 = 8 << 10;

/// What is known about a TaskQueue at one moment.
pub(super) struct Observed {
    pub(super) topology: Arc<Topology>,
    pub(super) broker: BrokerState,
    /// The broker's address without credentials.
    pub(super) broker_address: Option<String>,
    pub(super) queues: QueueState,
    pub(super) backlog: Backlog,
    pub(super) backlog_changed_at: Option<Instant>,
    /// Tasks that run, those of leaving workers included.
    pub(super) tasks: law::Tasks,
    /// What each worker does, by its node name; absent for those that don't say.
    pub(super) activity: HashMap<String, Activity>,
    /// The workers that are to take tasks.
    pub(super) workers: law::Workers,
    pub(super) claim: Option<Claim>,
    pub(super) pods: Vec<WorkerPod>,
    pub(super) deployment: Option<Arc<Deployment>>,
    /// What is wrong with the Secret of the result store.
    pub(super) results_problem: Option<Problem>,
    /// What became of the queues that were to go with the TaskQueue.
    pub(super) removed: Option<Removed>,
}

/// Looks at the broker, the Secrets, the Deployment and the pods. Apart from Secrets that are due, nothing is asked over the network:
/// the watches and the broker connection know already.
pub(super) async fn observe(
    task_queue: &TaskQueue,
    memory: &mut Memory,
    context: &Context,
) -> Result<Observed, Error> {
    let key = reference(task_queue);
    let pods = context.pods(&key);
    let topology = Arc::new(Topology::new(task_queue));
    let mut observed = Observed {
        broker: BrokerState::Connecting,
        broker_address: None,
        queues: QueueState::WaitingForBroker,
        backlog: Backlog::Unknown,
        backlog_changed_at: None,
        tasks: tasks(&pods, &HashMap::new()),
        workers: law::Workers { started: context.started(&key), ..capacity(&pods) },
        activity: HashMap::new(),
        claim: None,
        deployment: deployment(task_queue, memory, context),
        results_problem: results_problem(task_queue, context).await?,
        removed: None,
        pods,
        topology,
    };
    let address = broker_address(task_queue, context).await?;
    let last_address = context.last_address(&key, address.as_ref().ok().cloned());
    observed.claim =
        older_claim(task_queue, &observed.topology, last_address.as_ref(), memory, context).await;
    let ending = is_ending(task_queue);
    let address = match (address, last_address) {
        (Ok(address), _) => address,
        // A Secret that goes at the same time, with the whole namespace perhaps, has said where the queues are.
        (Err(_), Some(address)) if ending => address,
        (Err(problem), _) => {
            context.hub.unsubscribe(&key);
            observed.broker = BrokerState::Failed(problem);
            return Ok(observed);
        }
    };
    observed.broker_address = Some(address.to_string());
    let topology = if observed.claim.is_some() {
        // Declaring a queue is the business of the TaskQueue that has it.
        Arc::default()
    } else if ending && workers_are_gone(&observed, task_queue, Timestamp::now()) {
        // What is to go must not be declared again.
        Arc::default()
    } else {
        Arc::clone(&observed.topology)
    };
    let nodes = observed.pods.iter().map(|pod| pod.node.clone()).collect();
    context.hub.subscribe(&key, &address, &topology, nodes);
    if let Some(view) = context.hub.view(&key, Instant::now()) {
        observed.broker = view.broker;
        observed.queues = view.queues;
        observed.backlog = view.backlog;
        observed.backlog_changed_at = view.backlog_changed_at;
        observed.tasks = law::Tasks {
            longest_running: view.longest_running,
            finished: view.finished,
            ..tasks(&observed.pods, &view.active)
        };
        observed.activity = view.activity;
        observed.workers.attached = view.attached;
        observed.removed = view.removed;
    }
    Ok(observed)
}

/// The Deployment: as it was written last, until the watch shows that or something newer.
fn deployment(task_queue: &TaskQueue, memory: &mut Memory, context: &Context) -> Option<Arc<Deployment>> {
    let namespace = task_queue.namespace().unwrap_or_default();
    let shown = context.deployment(&namespace, &deployment_name(&task_queue.name_any()));
    if let Some((written, at)) = &memory.written {
        let caught_up = shown.as_ref().is_some_and(|shown| {
            version(shown) >= version(written) || shown.metadata.uid != written.metadata.uid
        });
        if !caught_up && at.elapsed() < WATCH_LAG {
            return Some(Arc::clone(written));
        }
        memory.written = None;
    }
    shown
}

fn version(deployment: &Deployment) -> Option<u64> {
    resource_version(deployment)
}

async fn broker_address(
    task_queue: &TaskQueue,
    context: &Context,
) -> Result<Result<BrokerAddress, Problem>, Error> {
    let secret = broker_secret(task_queue);
    let max_age =
        if is_refused(&reference(task_queue), context) { REREAD_WHEN_REFUSED } else { REREAD_AFTER };
    let fields = read(&secret, max_age, context).await?;
    Ok(fields.and_then(|fields| address(&secret, &fields)))
}

async fn read(
    secret: &SecretName,
    max_age: Duration,
    context: &Context,
) -> Result<Result<Fields, Problem>, Error> {
    let read = context.secrets.get(secret, max_age).await;
    read.map_err(|source| Error::ReadSecret { name: secret.name.clone(), source })
}

fn address(secret: &SecretName, fields: &Fields) -> Result<BrokerAddress, Problem> {
    let keys = fields.iter().map(|(key, value)| (key, &value.0));
    let mut address = BrokerAddress::from_fields(keys).map_err(|error| {
        let reason = match error {
            AddressError::Scheme { .. } => Reason::BrokerNotSupported,
            _ => Reason::SecretInvalid,
        };
        Problem { reason, message: format!("Secret `{}`: {error}", secret.name) }
    })?;
    address.frame_bytes = FRAME_BYTES;
    Ok(address)
}

async fn results_problem(task_queue: &TaskQueue, context: &Context) -> Result<Option<Problem>, Error> {
    let Some(secret) = results_secret(task_queue) else { return Ok(None) };
    let fields = match read(&secret, REREAD_AFTER, context).await? {
        Ok(fields) => fields,
        Err(problem) => return Ok(Some(problem)),
    };
    let keys = fields.iter().map(|(key, value)| (key, &value.0));
    let invalid = ResultStoreAddress::from_fields(keys).err();
    Ok(invalid.map(|error| Problem {
        reason: Reason::SecretInvalid,
        message: format!("Secret `{}` of spec.results: {error}", secret.name),
    }))
}

/// The claim of an older TaskQueue on one of these queues, if it is on the same broker. A broker whose address can't be read is where it
/// was last: its workers still are.
async fn older_claim(
    task_queue: &TaskQueue,
    topology: &Topology,
    address: Option<&BrokerAddress>,
    memory: &Memory,
    context: &Context,
) -> Option<Claim> {
    let status = memory.status.as_ref().map(|(status, _)| status).or(task_queue.status.as_ref());
    let was_claimed = status.is_some_and(|status| is_claimed(&status.conditions));
    for guarded in context.namesakes(topology) {
        let Ok(other) = &guarded.0 else { continue };
        let Some(claim) = claim(task_queue, topology, other) else { continue };
        let secret = broker_secret(other);
        let read = match context.secrets.get(&secret, REREAD_AFTER).await {
            Ok(Ok(fields)) => self::address(&secret, &fields).ok(),
            _ => None,
        };
        let theirs = context.last_address(&reference(other), read);
        let same = same_broker(task_queue, address, theirs.as_ref(), context);
        if holds(same, was_claimed, is_locked_out(other, context)) {
            return Some(claim);
        }
    }
    None
}

/// Whether two addresses lead to the same broker, as far as is known.
fn same_broker(
    task_queue: &TaskQueue,
    ours: Option<&BrokerAddress>,
    theirs: Option<&BrokerAddress>,
    context: &Context,
) -> Option<bool> {
    context.hub.is_same_broker(ours?, theirs?, &reference(task_queue))
}

/// Whether the broker refuses a TaskQueue, and no worker of it is there that may have been let in before.
fn is_locked_out(task_queue: &TaskQueue, context: &Context) -> bool {
    let key = reference(task_queue);
    context.pods(&key).is_empty() && is_refused(&key, context)
}

fn is_refused(task_queue: &ObjectRef<TaskQueue>, context: &Context) -> bool {
    context.hub.view(task_queue, Instant::now()).is_some_and(|view| {
        matches!(
            view.broker,
            BrokerState::Failed(Problem { reason: Reason::AuthFailed | Reason::VhostRefused, .. })
        )
    })
}

/// The other TaskQueues that use a queue of this one on the same broker, by `namespace/name`, and what they use. Those that are about to
/// go don't count.
pub(super) fn rivals_on_broker(
    task_queue: &TaskQueue,
    topology: &Topology,
    context: &Context,
) -> Vec<(String, Topology)> {
    let ours = context.last_address(&reference(task_queue), None);
    let mut rivals = Vec::new();
    for guarded in context.namesakes(topology) {
        let Ok(other) = &guarded.0 else { continue };
        let stays =
            other.metadata.deletion_timestamp.is_none() && other.metadata.uid != task_queue.metadata.uid;
        if !stays || shared_queue(topology, other).is_none() {
            continue;
        }
        let theirs = context.last_address(&reference(other), None);
        // What isn't known may be the same.
        if same_broker(task_queue, ours.as_ref(), theirs.as_ref(), context) != Some(false) {
            let name = format!("{}/{}", other.namespace().unwrap_or_default(), other.name_any());
            rivals.push((name, Topology::new(other)));
        }
    }
    rivals
}
