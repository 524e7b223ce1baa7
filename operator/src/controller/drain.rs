//! The effects of the [plan](crate::plan::drain) to take workers away: labels on their pods, orders to their workers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Resource as _, ResourceExt as _};
use serde_json::{Value, json};

use super::Error;
use super::apply::{RETRY_REFUSED, refusal};
use super::context::{Context, Memory, reference};
use super::events::{News, publish};
use super::observe::Observed;
use crate::api::v1alpha1::{OnDrainTimeout, TaskQueue};
use crate::broker::{Order, OrderKind};
use crate::metrics::Quantity;
use crate::plan::changes::replicas;
use crate::plan::drain::{self, Activity, Plan, ReplicaSet, Situation, Stage, State, Step, plan};
use crate::plan::metadata::{
    DELETION_COST_ANNOTATION, DRAINING_SINCE_ANNOTATION, OPERATOR, RESUMING_SINCE_ANNOTATION, STATE_LABEL,
};
use crate::plan::reason::Reason;
use crate::plan::status::BrokerState;
use crate::plan::workers::WorkerPod;

/// Patches under way at a time.
const CONCURRENCY: usize = 16;

/// The lowest deletion cost there is: of two workers that may both go, the drained one goes.
const LOWEST_COST: &str = "-2147483648";

/// What draining came to.
pub(super) struct Drained {
    /// Replicas that the Deployment is to ask for.
    pub(super) replicas: u16,
    /// A label could not be written because there is something newer.
    pub(super) is_outdated: bool,
    /// Why a label could not be written that may be written the next time.
    pub(super) error: Option<Error>,
    /// When a label that was refused is tried again.
    pub(super) put_off: Option<Duration>,
}

/// Pods whose labels the API server refuses, by name, and when it did last. They stay as they are: whether the others leave, and how many
/// there are to be, doesn't depend on them.
#[derive(Default)]
pub(super) struct RefusedLabels(HashMap<String, Instant>);

impl RefusedLabels {
    /// Notes that it was refused. Returns whether that is news.
    fn note(&mut self, pod: &str, now: Instant) -> bool {
        self.0.insert(pod.to_owned(), now).is_none()
    }

    /// Whether it was refused a moment ago, so that it isn't worth trying again.
    fn is_recent(&self, pod: &str, now: Instant) -> bool {
        self.0.get(pod).is_some_and(|at| now.duration_since(*at) < RETRY_REFUSED)
    }

    /// Forgets the pods that are gone.
    fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.0.retain(|pod, _| is_there(pod));
    }

    /// The wait until one of them may be tried again.
    fn put_off(&self, now: Instant) -> Option<Duration> {
        let left = self.0.values().filter_map(|at| RETRY_REFUSED.checked_sub(now.duration_since(*at)));
        left.filter(|left| !left.is_zero()).min()
    }
}

/// The pods of a TaskQueue as the plan sees them.
pub(super) struct Workers {
    pods: Vec<drain::Pod>,
    replica_sets: Vec<ReplicaSet>,
    replicas: u16,
    can_tell: bool,
}

impl Workers {
    /// Puts together what is known of the pods, and states again what their workers are told.
    pub(super) fn new(task_queue: &TaskQueue, observed: &Observed, context: &Context) -> Self {
        let orders = orders(&observed.pods, |pod| pod.state);
        let obeyed = context.hub.order(&reference(task_queue), orders, Instant::now());
        let now = Timestamp::now();
        let pods = observed.pods.iter().filter(|pod| !pod.terminating);
        Self {
            pods: pods.filter_map(|pod| candidate(pod, &observed.activity, &obeyed, now)).collect(),
            replica_sets: context.replica_sets(&reference(task_queue)),
            replicas: observed.deployment.as_deref().map(replicas).unwrap_or_default(),
            can_tell: observed.broker == BrokerState::Connected,
        }
    }

    /// Workers that count: those that the Deployment asks for and that aren't on their way out.
    pub(super) fn counting(&self, task_queue: &TaskQueue) -> u16 {
        drain::counting(&self.situation(task_queue, None))
    }

    fn situation(&self, task_queue: &TaskQueue, wanted: Option<u16>) -> Situation<'_> {
        Situation {
            pods: &self.pods,
            replica_sets: &self.replica_sets,
            replicas: self.replicas,
            wanted,
            can_tell: self.can_tell,
            drain_timeout: Duration::from_secs(task_queue.spec.worker.drain_timeout_seconds().into()),
            force: task_queue.spec.scaling.scale_down.on_drain_timeout == OnDrainTimeout::Force,
        }
    }

    /// Takes the next step with each worker, so that there will be `wanted` of them.
    pub(super) async fn drain(
        &mut self,
        task_queue: &TaskQueue,
        wanted: Option<u16>,
        observed: &Observed,
        memory: &mut Memory,
        context: &Context,
    ) -> Drained {
        count_interrupted(self, observed, memory, context);
        let refused = &mut memory.refused_labels;
        refused.retain(|name| self.pods.iter().any(|pod| pod.name == name));
        let now = Instant::now();
        self.pods.iter_mut().for_each(|pod| pod.refused = refused.is_recent(&pod.name, now));
        let Plan { steps, overdue } = plan(&self.situation(task_queue, wanted));
        tell_overdue(task_queue, overdue, memory, context).await;
        let mut drained = Drained { replicas: 0, is_outdated: false, error: None, put_off: None };
        let pods = Api::namespaced(context.client.clone(), &task_queue.namespace().unwrap_or_default());
        let mut taking = Vec::new();
        let mut failed = HashSet::new();
        for pod in &observed.pods {
            if memory.refused_labels.is_recent(&pod.name, Instant::now()) {
                failed.insert(pod.name.as_str());
            } else if let Some(step) = steps.get(&pod.name).copied() {
                let labelling = label(&pods, pod, step, context);
                taking.push(async move { (pod, step, labelling.await) }.boxed());
            }
        }
        let mut taken = stream::iter(taking).buffer_unordered(CONCURRENCY);
        while let Some((pod, step, result)) = taken.next().await {
            match result {
                Ok(Labelled::Done) => {
                    tracing::info!(pod = pod.name, state = ?step.state(), forced = step == Step::Force, "worker");
                    self.taken(&pod.name, step, context);
                    memory.refused_labels.retain(|refused| refused != pod.name);
                }
                Ok(Labelled::Outdated) => {
                    drained.is_outdated = true;
                    failed.insert(pod.name.as_str());
                }
                Err(error) => {
                    failed.insert(pod.name.as_str());
                    match refusal(error) {
                        Ok(problem) => {
                            if memory.refused_labels.note(&pod.name, Instant::now()) {
                                tracing::warn!(pod = pod.name, error = problem.message, "label refused");
                            }
                        }
                        Err(source) => {
                            drained.error = Some(Error::LabelPod { name: pod.name.clone(), source });
                        }
                    }
                }
            }
        }
        drained.put_off = memory.refused_labels.put_off(Instant::now());
        let state = |pod: &WorkerPod| match steps.get(&pod.name) {
            Some(step) if !failed.contains(pod.name.as_str()) => step.state(),
            _ => pod.state,
        };
        context.hub.order(&reference(task_queue), orders(&observed.pods, state), Instant::now());
        drained.replicas = drain::replicas(&self.situation(task_queue, wanted));
        let leaving = self.pods.iter().filter(|pod| pod.state.is_leaving()).count();
        let (namespace, name) = (task_queue.namespace().unwrap_or_default(), task_queue.name_any());
        context.metrics.set(&namespace, &name, &[(Quantity::ReplicasLeaving, Some(leaving as f64))]);
        drained
    }

    /// Notes a step that was taken.
    fn taken(&mut self, name: &str, step: Step, context: &Context) {
        let Some(pod) = self.pods.iter_mut().find(|pod| pod.name == name) else { return };
        match step {
            Step::Mark if pod.state == State::Draining => {
                context.metrics.drain_duration.observe(pod.draining_for.unwrap_or_default().as_secs_f64());
            }
            Step::Force if !matches!(pod.activity, Activity::Idle { .. }) => {
                context.metrics.interrupted_tasks.inc();
            }
            _ => {}
        }
        pod.state = step.state();
    }
}

fn candidate(
    pod: &WorkerPod,
    activity: &HashMap<String, Activity>,
    obeyed: &HashSet<String>,
    now: Timestamp,
) -> Option<drain::Pod> {
    // The clock of the one that wrote it may be ahead of ours.
    let draining_for =
        pod.draining_since.map(|since| Duration::try_from(now.duration_since(since)).unwrap_or_default());
    let activity = activity.get(&pod.node).copied().unwrap_or(Activity::Silent);
    // A node that is cut off tells nothing of a container that it has made; the worker in it does.
    let hangs = pod.hangs() && activity == Activity::Silent;
    Some(drain::Pod {
        name: pod.name.clone(),
        replica_set: pod.replica_set.clone()?,
        state: pod.state,
        draining_for,
        stage: if hangs { Stage::Stuck } else { pod.stage },
        activity,
        // One that serves is to be ready, which its probe says a moment later.
        confirmed: obeyed.contains(&pod.node) && (pod.state != State::Resuming || pod.ready),
        refused: false,
    })
}

/// What workers are told, by their labels.
fn orders(pods: &[WorkerPod], state: impl Fn(&WorkerPod) -> State) -> BTreeMap<String, Order> {
    let order = |pod: &WorkerPod| {
        let kind = match state(pod) {
            State::Serving => return None,
            State::Draining | State::Drained => OrderKind::Drain,
            State::Resuming => OrderKind::Resume,
        };
        Some((pod.node.clone(), Order { kind, queues: pod.queues.clone() }))
    };
    pods.iter().filter(|pod| !pod.terminating).filter_map(order).collect()
}

/// What writing a label came to.
enum Labelled {
    Done,
    /// There is a newer version of the pod, or none any more, or it is about to go.
    Outdated,
}

/// Writes the label of a step, if the pod is still as it was seen.
async fn label(
    pods: &Api<Pod>,
    pod: &WorkerPod,
    step: Step,
    context: &Context,
) -> Result<Labelled, kube::Error> {
    let parameters = PatchParams { field_manager: Some(OPERATOR.to_owned()), ..PatchParams::default() };
    match pods.patch(&pod.name, &parameters, &Patch::Merge(patch(pod, step, Timestamp::now()))).await {
        Ok(written) => {
            let is_going = written.metadata.deletion_timestamp.is_some();
            // The watch will show it later. What it shows until then is older, and not taken in.
            context.update_pod(&written);
            Ok(if is_going { Labelled::Outdated } else { Labelled::Done })
        }
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {
            Ok(Labelled::Outdated)
        }
        Err(error) => Err(error),
    }
}

/// The label and what goes with it, with what must not have changed since.
fn patch(pod: &WorkerPod, step: Step, now: Timestamp) -> Value {
    let state = step.state();
    let draining_since = match (state, pod.draining_since) {
        (State::Draining | State::Drained, Some(since)) if pod.state == State::Draining => Some(since),
        (State::Draining, _) => Some(now),
        _ => None,
    };
    let resuming_since = (state == State::Resuming).then_some(now);
    json!({"metadata": {
        "uid": pod.uid,
        "resourceVersion": pod.resource_version,
        "labels": {STATE_LABEL: state.label()},
        "annotations": {
            DRAINING_SINCE_ANNOTATION: draining_since.map(|since| since.to_string()),
            RESUMING_SINCE_ANNOTATION: resuming_since.map(|since| since.to_string()),
            DELETION_COST_ANNOTATION: (state == State::Drained).then_some(LOWEST_COST),
        },
    }})
}

/// Counts the tasks on workers that scale-in has just taken away though they weren't drained.
fn count_interrupted(workers: &Workers, observed: &Observed, memory: &mut Memory, context: &Context) {
    for pod in observed.pods.iter().filter(|pod| pod.terminating && memory.staying.contains(&pod.name)) {
        let busy = matches!(observed.activity.get(&pod.node), Some(Activity::Busy { .. }));
        let allowed = pod.state == State::Drained || pod.disrupted;
        if busy && !allowed && is_scale_in(pod, &workers.pods, &workers.replica_sets, &memory.staying) {
            tracing::warn!(pod = pod.name, "scale-in has taken away a worker with a task");
            context.metrics.interrupted_tasks.inc();
        }
    }
    memory.staying = workers.pods.iter().map(|pod| pod.name.clone()).collect();
}

/// Whether there were too many with a pod that goes: then it was scale-in, and not somebody who deleted a pod, which is made anew. What has
/// come since all were `staying` may be in its place, and doesn't count.
fn is_scale_in(
    pod: &WorkerPod,
    pods: &[drain::Pod],
    replica_sets: &[ReplicaSet],
    staying: &HashSet<String>,
) -> bool {
    let Some(set) = replica_sets.iter().find(|set| Some(&set.uid) == pod.replica_set.as_ref()) else {
        return false;
    };
    let left = pods.iter().filter(|left| left.replica_set == set.uid && staying.contains(&left.name));
    left.count() >= usize::from(set.replicas)
}

/// Tells once of each worker that takes longer than the drain timeout.
async fn tell_overdue(task_queue: &TaskQueue, overdue: Vec<String>, memory: &mut Memory, context: &Context) {
    for name in overdue.iter().filter(|name| !memory.overdue.contains(*name)) {
        context.metrics.drain_timeouts.inc();
        let seconds = task_queue.spec.worker.drain_timeout_seconds();
        let what_becomes_of_it = match task_queue.spec.scaling.scale_down.on_drain_timeout {
            OnDrainTimeout::Wait => {
                "It stays until then; spec.scaling.scaleDown.onDrainTimeout: Force gives such workers up"
            }
            OnDrainTimeout::Force => {
                "It is given up, as spec.scaling.scaleDown.onDrainTimeout says: its pod is deleted, and what it has not done within its \
                 grace period another worker does"
            }
        };
        let note = format!(
            "worker {name} was told to take no more tasks over {seconds} s ago and is not done: its task may hang, or it does not \
             answer. {what_becomes_of_it}"
        );
        tracing::warn!(pod = name, seconds, "worker is not drained in time");
        let news =
            News { warning: true, reason: Reason::DrainTimeout, action: "Drain".to_owned(), note: &note };
        publish(&task_queue.object_ref(&()), context, news).await;
    }
    memory.overdue = overdue.into_iter().collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(state: State) -> WorkerPod {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "a", "uid": "1", "resourceVersion": "7"},
        }))
        .unwrap();
        WorkerPod { state, ..WorkerPod::new(&pod).unwrap() }
    }

    #[test]
    fn a_label_is_written_on_what_was_seen_only() {
        let now = Timestamp::UNIX_EPOCH;
        let patch = patch(&pod(State::Serving), Step::Drain, now);
        let metadata = &patch["metadata"];
        assert_eq!((&metadata["uid"], &metadata["resourceVersion"]), (&json!("1"), &json!("7")));
        assert_eq!(metadata["labels"], json!({"soloist.dev/state": "draining"}));
        assert_eq!(metadata["annotations"]["soloist.dev/draining-since"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn a_mark_makes_a_pod_the_first_to_go_and_a_resumed_one_has_nothing_left_of_it() {
        let now = Timestamp::UNIX_EPOCH;
        let marked = patch(&pod(State::Draining), Step::Mark, now);
        assert_eq!(marked["metadata"]["labels"], json!({"soloist.dev/state": "drained"}));
        let cost = "controller.kubernetes.io/pod-deletion-cost";
        assert_eq!(marked["metadata"]["annotations"][cost], "-2147483648");
        let resumed = patch(&pod(State::Drained), Step::Resume, now);
        assert_eq!(resumed["metadata"]["annotations"][cost], Value::Null);
        assert_eq!(resumed["metadata"]["annotations"]["soloist.dev/resuming-since"], "1970-01-01T00:00:00Z");
        assert_eq!(
            patch(&pod(State::Resuming), Step::Serve, now)["metadata"]["labels"][STATE_LABEL],
            Value::Null
        );
    }

    #[test]
    fn a_label_that_is_refused_is_told_once_and_tried_again_after_a_while() {
        let now = Instant::now();
        let mut refused = RefusedLabels::default();
        assert_eq!(refused.put_off(now), None);
        assert!(!refused.is_recent("a", now));
        assert!(refused.note("a", now));
        assert!(refused.is_recent("a", now) && !refused.is_recent("b", now));
        let later = now + RETRY_REFUSED;
        assert_eq!(refused.put_off(later), None);
        assert_eq!(refused.put_off(now), Some(RETRY_REFUSED));
        assert!(!refused.is_recent("a", later));
        assert!(!refused.note("a", later), "it was told before");
        assert!(refused.is_recent("a", later));
        refused.retain(|pod| pod != "a");
        assert!(!refused.is_recent("a", later));
    }

    #[test]
    fn a_worker_has_resumed_when_it_is_ready_too() {
        let obeyed = HashSet::from([pod(State::Resuming).node]);
        let confirmed = |state, ready| {
            let pod = WorkerPod { ready, replica_set: Some("new".to_owned()), ..pod(state) };
            candidate(&pod, &HashMap::new(), &obeyed, Timestamp::UNIX_EPOCH).unwrap().confirmed
        };
        assert!(!confirmed(State::Resuming, false));
        assert!(confirmed(State::Resuming, true));
        assert!(confirmed(State::Draining, false));
    }

    #[test]
    fn what_somebody_deletes_and_what_is_made_in_its_place_is_no_scale_in() {
        let set = |replicas| [ReplicaSet { uid: "set".to_owned(), replicas }];
        let gone = WorkerPod { replica_set: Some("set".to_owned()), ..pod(State::Serving) };
        let left = ["b", "c"].map(|name| {
            let left = WorkerPod { name: name.to_owned(), ..gone.clone() };
            candidate(&left, &HashMap::new(), &HashSet::new(), Timestamp::UNIX_EPOCH).unwrap()
        });
        let before = |names: &[&str]| names.iter().copied().map(str::to_owned).collect();
        assert!(!is_scale_in(&gone, &left[..1], &set(2), &before(&["a", "b"])), "nothing in its place yet");
        assert!(
            !is_scale_in(&gone, &left, &set(2), &before(&["a", "b"])),
            "another one in its place already"
        );
        assert!(is_scale_in(&gone, &left, &set(2), &before(&["a", "b", "c"])));
        assert!(is_scale_in(&gone, &[], &set(0), &before(&["a"])));
        assert!(!is_scale_in(&gone, &[], &[], &before(&["a"])), "its ReplicaSet is deleted");
    }

    #[test]
    fn workers_are_told_what_their_labels_say() {
        let told =
            |state| orders(&[pod(state)], |pod| pod.state).into_values().next().map(|order| order.kind);
        assert_eq!(told(State::Serving), None);
        assert_eq!(told(State::Draining), Some(OrderKind::Drain));
        assert_eq!(told(State::Drained), Some(OrderKind::Drain));
        assert_eq!(told(State::Resuming), Some(OrderKind::Resume));
    }
}
