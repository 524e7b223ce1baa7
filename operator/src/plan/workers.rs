//! What the worker pods say: how many are ready, what they run, and what keeps them from running.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;

use super::deployment::{QUEUES_VARIABLE, WORKER_CONTAINER};
use super::drain::{Stage, State};
use super::images::{Image, difference, is_rolling_out};
use super::law;
use super::metadata::{DRAINING_SINCE_ANNOTATION, RESUMING_SINCE_ANNOTATION, STATE_LABEL, node_name};
use super::reason::Reason;
use super::status::{Problem, Workers};

/// A worker that runs but isn't ready counts as starting for this long. One that reaches its broker needs a few seconds.
const STARTING_AT_MOST: Duration = Duration::from_secs(60);

/// Longest message of a container that is repeated, in characters: a registry's, with the image's name in it thrice and the cause at its
/// end, has 400.
const SAID_AT_MOST: usize = 600;

/// A worker pod, as far as the operator looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerPod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The version of it that this was read from.
    pub resource_version: String,
    /// UID of its ReplicaSet.
    pub replica_set: Option<String>,
    /// How far its worker is in leaving.
    pub state: State,
    /// Since when its worker is draining.
    pub draining_since: Option<Timestamp>,
    /// Since when its worker is to consume again.
    pub resuming_since: Option<Timestamp>,
    /// How far it has come.
    pub stage: Stage,
    /// Whether its worker waits for its first start.
    pub never_ran: bool,
    /// Whether it is deleted by an eviction, a preemption or the like.
    pub disrupted: bool,
    /// The queues that its worker was started with.
    pub queues: Vec<String>,
    /// Node name of its worker in Celery's events.
    pub node: String,
    /// The image that its worker runs, if that is known.
    pub image: Option<Image>,
    /// Whether it consumes.
    pub ready: bool,
    /// Whether its worker has started, and so may run a task: also one that isn't ready any more because the broker is gone.
    pub started: bool,
    /// Whether it was ever seen consuming.
    pub came_up: bool,
    /// How long ago it was made.
    pub age: Duration,
    /// Since when its worker runs without being ready, or waits for volumes and network to be made first.
    pub not_ready_since: Option<Timestamp>,
    /// Whether it is about to go.
    pub terminating: bool,
    /// What keeps it from running.
    pub problem: Option<Problem>,
}

impl WorkerPod {
    /// Reads a pod; nothing if it has ended for good and only its record is left.
    pub fn new(pod: &Pod) -> Option<Self> {
        let status = pod.status.as_ref();
        if matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed")) {
            return None;
        }
        let condition = |type_: &str| {
            let conditions = status.and_then(|status| status.conditions.as_ref());
            conditions.into_iter().flatten().find(|condition| condition.type_ == type_)
        };
        let unschedulable = condition("PodScheduled").filter(|scheduled| {
            scheduled.status == "False" && scheduled.reason.as_deref() == Some("Unschedulable")
        });
        let containers = status.into_iter().flat_map(|status| {
            let init = status.init_container_statuses.iter().flatten();
            init.chain(status.container_statuses.iter().flatten())
        });
        let worker = status
            .and_then(|status| status.container_statuses.as_ref())
            .and_then(|containers| containers.iter().find(|container| container.name == WORKER_CONTAINER));
        let started = worker.is_some_and(|worker| worker.started == Some(true));
        let problem = match unschedulable {
            Some(scheduled) => Some(Problem {
                reason: Reason::Unschedulable,
                message: scheduled.message.clone().unwrap_or_else(|| "no node has room".to_owned()),
            }),
            None => {
                containers.into_iter().find_map(|container| container_problem(&pod.name_any(), container))
            }
        };
        let ready = condition("Ready");
        let runs_since = worker
            .and_then(|worker| worker.state.as_ref()?.running.as_ref()?.started_at.as_ref())
            .map(|started| started.0);
        // One that was ready for a while is not ready since then, not since its start.
        let changed = ready.and_then(|ready| Some(ready.last_transition_time.as_ref()?.0));
        let ready = ready.is_some_and(|ready| ready.status == "True");
        let runs =
            worker.is_some_and(|worker| worker.state.as_ref().is_some_and(|state| state.running.is_some()));
        let is_scheduled = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let stage = match problem {
            _ if !is_scheduled => Stage::Unscheduled,
            Some(_) if !runs => Stage::Stuck,
            _ if started => Stage::Running,
            _ => Stage::Starting,
        };
        let never_ran = worker.is_some_and(|worker| {
            let state = |state: &Option<ContainerState>| state.clone().unwrap_or_default();
            worker.restart_count == 0
                && state(&worker.state).waiting.is_some()
                && state(&worker.last_state) == ContainerState::default()
        });
        // False until volumes and network are there, and only then images are pulled, which may take its time.
        let unmade_since = condition("PodReadyToStartContainers")
            .filter(|prepared| prepared.status == "False" && never_ran && is_scheduled)
            .and_then(|prepared| Some(prepared.last_transition_time.as_ref()?.0));
        let since = |annotation: &str| pod.annotations().get(annotation)?.parse().ok();
        Some(Self {
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            resource_version: pod.resource_version().unwrap_or_default(),
            replica_set: pod
                .owner_references()
                .iter()
                .find(|owner| owner.controller == Some(true) && owner.kind == "ReplicaSet")
                .map(|owner| owner.uid.clone()),
            state: State::from_label(pod.labels().get(STATE_LABEL).map(String::as_str)),
            draining_since: since(DRAINING_SINCE_ANNOTATION),
            resuming_since: since(RESUMING_SINCE_ANNOTATION),
            stage,
            never_ran,
            disrupted: condition("DisruptionTarget").is_some_and(|disrupted| disrupted.status == "True"),
            queues: queues(pod),
            node: node_name(&pod.name_any()),
            image: worker.and_then(|worker| Image::new(&worker.image_id)),
            ready,
            started,
            came_up: ready,
            age: Duration::ZERO,
            not_ready_since: runs_since
                .filter(|_| !ready)
                .map(|started| changed.unwrap_or(started).max(started))
                .or(unmade_since),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            problem,
        })
    }
}

impl WorkerPod {
    /// Whether its container should have been made by now, as when a volume of it names a Secret that isn't there: nothing in its status
    /// tells that from one that is about to be made.
    pub fn hangs(&self) -> bool {
        self.stage == Stage::Starting && self.never_ran && self.age >= STARTING_AT_MOST
    }

    /// Whether it can't have taken a task yet: workers say that they are there before they do.
    fn is_starting(&self) -> bool {
        !self.came_up && self.age < STARTING_AT_MOST
    }

    /// Since when it should be ready and isn't: it runs, and takes tasks or is to take them again.
    fn missing_since(&self) -> Option<Timestamp> {
        match self.state {
            State::Serving => self.not_ready_since,
            State::Resuming => {
                self.not_ready_since.map(|since| self.resuming_since.unwrap_or(since).max(since))
            }
            State::Draining | State::Drained => None,
        }
    }
}

/// The queues that a worker is told to consume when it starts.
fn queues(pod: &Pod) -> Vec<String> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let worker = containers.into_iter().find(|container| container.name == WORKER_CONTAINER);
    let mut variables = worker.into_iter().flat_map(|worker| worker.env.iter().flatten());
    let queues = variables.find(|variable| variable.name == QUEUES_VARIABLE);
    let names = queues.and_then(|variable| variable.value.as_deref()).unwrap_or_default();
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn container_problem(pod: &str, container: &ContainerStatus) -> Option<Problem> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let said = shortened(waiting.message.as_deref().unwrap_or_default());
    let name = &container.name;
    let (reason, message) = match waiting.reason.as_deref()? {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "RegistryUnavailable"
        | "ImageInspectError" => (
            Reason::ImagePullFailed,
            format!("image `{}` of container `{name}` can't be pulled: {said}", container.image),
        ),
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            (Reason::ContainerNotCreated, format!("container `{name}` can't be created: {said}"))
        }
        "CrashLoopBackOff" => {
            let last = last_end(pod, container).unwrap_or_default();
            (Reason::CrashLooping, format!("container `{name}` stops again and again{last}"))
        }
        _ => return None,
    };
    Some(Problem { reason, message })
}

fn last_end(pod: &str, container: &ContainerStatus) -> Option<String> {
    let Some(ContainerState { terminated: Some(end), .. }) = &container.last_state else { return None };
    let reason = end.reason.as_deref().unwrap_or("unknown reason");
    let more = match (reason, &end.message) {
        // The container runtime's words, as there is no log; those of the program itself may have secrets.
        ("StartError" | "ContainerCannotRun", Some(said)) => format!(": {}", shortened(said)),
        _ => format!("; `kubectl logs {pod} --previous` says why"),
    };
    Some(format!(": exit code {}, {reason}{more}", end.exit_code))
}

/// A message in a length that people read. Its end goes, and what it began with stays.
fn shortened(said: &str) -> String {
    match said.char_indices().nth(SAID_AT_MOST) {
        Some((end, _)) => format!("{}…", &said[..end]),
        None => said.to_owned(),
    }
}

/// What runs on the pods, given what their workers said lately.
pub fn tasks(pods: &[WorkerPod], active: &HashMap<String, u32>) -> law::Tasks {
    let mut tasks = law::Tasks::default();
    for pod in pods {
        match active.get(&pod.node) {
            Some(running) => tasks.running += running,
            // One that leaves may be of Celery's solo pool, which says nothing during a task.
            None if pod.started && !pod.terminating && !pod.state.is_leaving() && !pod.is_starting() => {
                tasks.silent_workers += 1;
            }
            None => {}
        }
    }
    tasks
}

/// The workers that are to take tasks. One that took tasks and isn't ready now still counts: the broker may be to blame.
pub fn capacity(pods: &[WorkerPod]) -> law::Workers {
    let staying = || pods.iter().filter(|pod| !pod.terminating && !pod.state.is_leaving());
    law::Workers {
        consuming: count(staying().filter(|pod| pod.came_up).count()),
        starting: staying().filter(|pod| !pod.came_up).map(|pod| pod.age).collect(),
        ..law::Workers::default()
    }
}

fn count(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

/// The state of the workers at a time, for conditions and status.
pub fn workers(pods: &[WorkerPod], deployment: Option<&Deployment>, now: Timestamp) -> Workers {
    let staying = || pods.iter().filter(|pod| !pod.terminating);
    // A quota shows in the Deployment, everything else in the pods.
    let problem = deployment
        .and_then(creation_problem)
        .or_else(|| staying().find_map(|pod| pod.problem.clone()))
        .or_else(|| staying().find_map(|pod| readiness_problem(pod, now)))
        .or_else(|| deployment.and_then(progress_problem));
    Workers {
        pods: count(staying().count()),
        ready: count(staying().filter(|pod| pod.ready).count()),
        images_differ: difference(pods),
        is_rolling_out: is_rolling_out(pods),
        problem,
    }
}

/// When the first worker that runs without being ready will no longer count as starting, from now; nothing if there is none.
pub fn starting_ends_in(pods: &[WorkerPod], now: Timestamp) -> Option<Duration> {
    let starting = pods.iter().filter(|pod| !pod.terminating).filter_map(WorkerPod::missing_since);
    starting
        .filter_map(|since| STARTING_AT_MOST.checked_sub(elapsed(since, now)))
        .filter(|left| !left.is_zero())
        .min()
}

/// The time between two moments; none if the node's clock is ahead of ours.
fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

fn readiness_problem(pod: &WorkerPod, now: Timestamp) -> Option<Problem> {
    if elapsed(pod.missing_since()?, now) < STARTING_AT_MOST {
        return None;
    }
    let name = pod.node.split_once('@').map_or(pod.node.as_str(), |(_, name)| name);
    let seconds = STARTING_AT_MOST.as_secs();
    let (reason, message) = if pod.never_ran {
        (
            Reason::ContainerNotCreated,
            format!(
                "worker `{name}` has a node for over {seconds} seconds, and its volumes or network can't be made there: a Secret or \
                 ConfigMap that it mounts may be missing. The events say which: `kubectl describe pod {name}`"
            ),
        )
    } else {
        (
            Reason::WorkersNotReady,
            format!(
                "worker `{name}` has been running for over {seconds} seconds without being ready: `kubectl logs {name}` and its /readyz \
                 (port 8080) say what it waits for"
            ),
        )
    };
    Some(Problem { reason, message })
}

fn creation_problem(deployment: &Deployment) -> Option<Problem> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let failure = conditions
        .iter()
        .find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")
        // That pods can't be deleted is how workers are kept until they are drained.
        .filter(|condition| condition.reason.as_deref() != Some("FailedDelete"))?;
    let message = failure.message.clone().unwrap_or_default();
    let reason = if message.contains("exceeded quota") { Reason::QuotaExceeded } else { Reason::PodsRefused };
    Some(Problem { reason, message })
}

fn progress_problem(deployment: &Deployment) -> Option<Problem> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| {
        condition.type_ == "Progressing" && condition.reason.as_deref() == Some("ProgressDeadlineExceeded")
    })?;
    let message = "workers have been running for a while, but not all of them become ready".to_owned();
    Some(Problem { reason: Reason::WorkersNotReady, message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, status: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name}, "status": status})).unwrap()
    }

    fn ready_pod(name: &str) -> WorkerPod {
        let status = json!({
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{
                "name": "worker", "image": "i", "imageID": "", "ready": true, "started": true, "restartCount": 0,
                "state": {"running": {}},
            }],
        });
        WorkerPod::new(&pod(name, status)).unwrap()
    }

    fn waiting(reason: &str) -> Option<Reason> {
        let status = json!({"phase": "Pending", "containerStatuses": [{
            "name": "worker", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": reason, "message": "said"}},
        }]});
        WorkerPod::new(&pod("a", status)).unwrap().problem.map(|problem| problem.reason)
    }

    #[test]
    fn problems_are_named_by_their_cause() {
        assert_eq!(waiting("ErrImagePull"), Some(Reason::ImagePullFailed));
        assert_eq!(waiting("ImagePullBackOff"), Some(Reason::ImagePullFailed));
        assert_eq!(waiting("CrashLoopBackOff"), Some(Reason::CrashLooping));
        assert_eq!(waiting("CreateContainerConfigError"), Some(Reason::ContainerNotCreated));
        assert_eq!(waiting("ContainerCreating"), None);
    }

    #[test]
    fn a_container_that_is_not_made_in_time_hangs_and_one_that_ran_does_not() {
        let hangs = |restarts: i32, state: Value, last: Value, age| {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": "a"},
                "spec": {"nodeName": "n", "containers": []},
                "status": {"phase": "Pending", "containerStatuses": [{
                    "name": "worker", "image": "i", "imageID": "", "ready": false, "restartCount": restarts,
                    "state": state, "lastState": last,
                }]},
            }))
            .unwrap();
            WorkerPod { age, ..WorkerPod::new(&pod).unwrap() }.hangs()
        };
        let creating = || json!({"waiting": {"reason": "ContainerCreating"}});
        assert!(hangs(0, creating(), json!({}), STARTING_AT_MOST));
        assert!(hangs(0, json!({"waiting": {"reason": "PodInitializing"}}), json!({}), STARTING_AT_MOST));
        assert!(!hangs(0, creating(), json!({}), STARTING_AT_MOST / 2));
        assert!(!hangs(1, creating(), json!({}), STARTING_AT_MOST));
        assert!(!hangs(0, creating(), json!({"terminated": {"exitCode": 1}}), STARTING_AT_MOST));
        assert!(!hangs(0, json!({"running": {}}), json!({}), STARTING_AT_MOST));
    }

    #[test]
    fn a_pod_whose_volumes_cannot_be_made_is_a_problem_after_a_minute() {
        let problem = |prepared: &str| {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": "a"},
                "spec": {"nodeName": "n", "containers": []},
                "status": {
                    "phase": "Pending",
                    "conditions": [{"type": "PodReadyToStartContainers", "status": prepared, "lastTransitionTime": "1970-01-01T00:01:40Z"}],
                    "containerStatuses": [{"name": "worker", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                        "state": {"waiting": {"reason": "ContainerCreating"}}}],
                },
            }))
            .unwrap();
            let pod = WorkerPod::new(&pod).unwrap();
            (problem_at(&pod, 159), problem_at(&pod, 160))
        };
        assert_eq!(problem("False"), (None, Some(Reason::ContainerNotCreated)));
        assert_eq!(problem("True"), (None, None), "its image may be large");
    }

    #[test]
    fn what_kept_a_container_from_starting_is_repeated_and_what_a_program_said_is_not() {
        let ended = |reason: &str, message: &str| {
            let status = json!({"phase": "Running", "containerStatuses": [{
                "name": "worker", "image": "i", "imageID": "", "ready": false, "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 1, "reason": reason, "message": message}},
            }]});
            WorkerPod::new(&pod("a", status)).unwrap().problem.unwrap().message
        };
        assert!(ended("StartError", "exec: no such file").ends_with("StartError: exec: no such file"));
        let crashed = ended("Error", "a password");
        assert!(crashed.contains("kubectl logs a --previous") && !crashed.contains("password"), "{crashed}");
        assert_eq!(shortened(&"é".repeat(SAID_AT_MOST + 1)), "é".repeat(SAID_AT_MOST) + "…");
    }

    #[test]
    fn unschedulable_pod_is_a_problem() {
        let status = json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}]});
        let problem = WorkerPod::new(&pod("a", status)).unwrap().problem.unwrap();
        assert_eq!((problem.reason, problem.message.as_str()), (Reason::Unschedulable, "0/1 nodes"));
    }

    #[test]
    fn ended_pods_do_not_count() {
        assert_eq!(WorkerPod::new(&pod("a", json!({"phase": "Failed"}))), None);
    }

    #[test]
    fn worker_without_heartbeat_is_silent_not_idle() {
        let cut_off = WorkerPod { ready: false, came_up: false, age: STARTING_AT_MOST, ..ready_pod("c") };
        let pods = [ready_pod("a"), ready_pod("b"), cut_off];
        let tasks = tasks(&pods, &HashMap::from([("celery@a".to_owned(), 1)]));
        assert_eq!((tasks.running, tasks.silent_workers), (1, 2));
    }

    #[test]
    fn starting_workers_are_neither_silent_nor_busy() {
        let starting = WorkerPod { ready: false, came_up: false, ..ready_pod("a") };
        assert_eq!(tasks(&[starting], &HashMap::new()), law::Tasks::default());
    }

    #[test]
    fn workers_that_are_cut_off_are_not_starting() {
        let age = Duration::from_secs(5);
        let cut_off = WorkerPod { ready: false, ..ready_pod("a") };
        let starting = WorkerPod { ready: false, started: false, came_up: false, age, ..ready_pod("b") };
        let leaving = WorkerPod { terminating: true, ..ready_pod("c") };
        let workers = capacity(&[cut_off, starting, leaving]);
        assert_eq!((workers.consuming, workers.starting), (1, vec![age]));
    }

    #[test]
    fn tasks_of_leaving_workers_count_their_workers_do_not() {
        let pods = [WorkerPod { terminating: true, ..ready_pod("a") }, ready_pod("b")];
        let active = HashMap::from([("celery@a".to_owned(), 1), ("celery@b".to_owned(), 1)]);
        assert_eq!(tasks(&pods, &active).running, 2);
        assert_eq!(
            workers(&pods, None, Timestamp::UNIX_EPOCH),
            Workers { pods: 1, ready: 1, ..Workers::default() }
        );
    }

    /// A worker that runs since second 100 and whose readiness changed at a second.
    fn unready_pod(name: &str, changed_at: i64) -> WorkerPod {
        let time = |second| Timestamp::from_second(second).unwrap().to_string();
        let status = json!({
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": time(changed_at)}],
            "containerStatuses": [{
                "name": "worker", "image": "i", "imageID": "", "ready": false, "started": true, "restartCount": 0,
                "state": {"running": {"startedAt": time(100)}},
            }],
        });
        WorkerPod::new(&pod(name, status)).unwrap()
    }

    fn problem_at(pod: &WorkerPod, second: i64) -> Option<Reason> {
        let pods = [ready_pod("a"), pod.clone()];
        let problem = workers(&pods, None, Timestamp::from_second(second).unwrap()).problem;
        problem.map(|problem| problem.reason)
    }

    #[test]
    fn worker_that_does_not_become_ready_counts_as_starting_for_a_minute() {
        let pod = unready_pod("b", 95);
        assert_eq!(problem_at(&pod, 159), None);
        assert_eq!(problem_at(&pod, 160), Some(Reason::WorkersNotReady));
        assert_eq!(problem_at(&WorkerPod { terminating: true, ..pod }, 160), None);
    }

    #[test]
    fn worker_that_drains_need_not_be_ready() {
        for state in [State::Draining, State::Drained] {
            let pod = WorkerPod { state, ..unready_pod("b", 95) };
            assert_eq!(problem_at(&pod, 160), None);
            assert_eq!(starting_ends_in(&[pod], Timestamp::from_second(110).unwrap()), None);
        }
    }

    #[test]
    fn worker_that_resumes_gets_a_minute_from_then() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let pod = WorkerPod { state: State::Resuming, resuming_since: Some(at(500)), ..unready_pod("b", 95) };
        assert_eq!(problem_at(&pod, 559), None);
        assert_eq!(problem_at(&pod, 560), Some(Reason::WorkersNotReady));
        assert_eq!(starting_ends_in(std::slice::from_ref(&pod), at(550)), Some(Duration::from_secs(10)));
        let came_back = WorkerPod { not_ready_since: None, ..pod };
        assert_eq!(problem_at(&came_back, 560), None);
    }

    #[test]
    fn worker_that_was_ready_gets_a_minute_from_then() {
        let pod = unready_pod("b", 1000);
        assert_eq!(problem_at(&pod, 1059), None);
        assert_eq!(problem_at(&pod, 1060), Some(Reason::WorkersNotReady));
    }

    #[test]
    fn end_of_the_start_is_waited_for_once() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let pods = [ready_pod("a"), unready_pod("b", 95)];
        assert_eq!(starting_ends_in(&pods, at(110)), Some(Duration::from_secs(50)));
        assert_eq!(starting_ends_in(&pods, at(160)), None);
        assert_eq!(starting_ends_in(&pods[..1], at(110)), None);
    }

    #[test]
    fn quota_is_told_from_other_refusals() {
        let refused = |message: &str| {
            let deployment: Deployment = serde_json::from_value(json!({"status": {"conditions": [
                {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}]}}))
            .unwrap();
            workers(&[], Some(&deployment), Timestamp::UNIX_EPOCH).problem.unwrap().reason
        };
        assert_eq!(refused("pods \"a\" is forbidden: exceeded quota: small"), Reason::QuotaExceeded);
        assert_eq!(refused("pods \"a\" is forbidden: service account not found"), Reason::PodsRefused);
    }

    #[test]
    fn pods_that_cannot_be_deleted_yet_are_no_problem() {
        let deployment: Deployment = serde_json::from_value(json!({"status": {"conditions": [
            {"type": "ReplicaFailure", "status": "True", "reason": "FailedDelete", "message": "not drained"}]}}))
        .unwrap();
        assert_eq!(workers(&[], Some(&deployment), Timestamp::UNIX_EPOCH).problem, None);
    }
}
