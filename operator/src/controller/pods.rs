//! The worker pods of each TaskQueue, kept from a watch: a few words a pod instead of the whole object.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::Event;
use tokio::sync::watch;

use crate::api::v1alpha1::TaskQueue;
use crate::plan::drain::State;
use crate::plan::metadata::TASK_QUEUE_LABEL;
use crate::plan::workers::WorkerPod;

type Key = ObjectRef<TaskQueue>;

/// The API server tells the time of creation in whole seconds. A pod that seems no older than this was made just now.
const JUST_NOW: Duration = Duration::from_secs(2);

/// Start-up times that are kept for the next decision.
const MOST_STARTED: usize = 64;

/// Worker pods by TaskQueue and name.
#[derive(Default)]
pub(super) struct Pods {
    index: Mutex<Index>,
    listed_once: watch::Sender<bool>,
}

#[derive(Default)]
struct Index {
    task_queues: HashMap<Key, BTreeMap<String, Known>>,
    /// How long workers took to start, until that is asked for.
    started: HashMap<Key, Vec<Duration>>,
    /// What was seen since the watch began to list everything anew.
    listed: Option<HashSet<(Key, String)>>,
}

/// A pod, its version, and since when it is there, by our own clock.
struct Known {
    pod: WorkerPod,
    version: String,
    born: Instant,
    /// Whether it has been seen since it was made, and has never been told to leave.
    watched: bool,
}

impl Pods {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the watch has shown all pods once.
    pub(super) async fn wait_until_ready(&self) {
        // The sender lives as long as this.
        let _ = self.listed_once.subscribe().wait_for(|listed| *listed).await;
    }

    /// The worker pods of a TaskQueue.
    pub(super) fn of(&self, task_queue: &Key) -> Vec<WorkerPod> {
        let index = self.index();
        let aged = |known: &Known| WorkerPod {
            age: known.born.elapsed(),
            resource_version: known.version.clone(),
            ..known.pod.clone()
        };
        index.task_queues.get(task_queue).map(|pods| pods.values().map(aged).collect()).unwrap_or_default()
    }

    /// Takes in what the API server has just returned, if the pod is known: the watch will show it later.
    pub(super) fn update(&self, pod: &Pod) {
        let Some(key) = task_queue_of(pod) else { return };
        let mut index = self.index();
        let is_known = |pods: &BTreeMap<String, Known>| pods.contains_key(&pod.name_any());
        if index.task_queues.get(&key).is_some_and(is_known) {
            index.set(key, pod.name_any(), WorkerPod::new(pod).map(|known| (known, age(pod))));
        }
    }

    /// How long the workers of a TaskQueue took to start that came up since this was asked last.
    pub(super) fn take_started(&self, task_queue: &Key) -> Vec<Duration> {
        self.index().started.remove(task_queue).unwrap_or_default()
    }

    /// Takes in an event of the watch. Returns the TaskQueues for which something has changed.
    pub(super) fn take_in(&self, event: &Event<Pod>) -> Vec<Key> {
        let mut index = self.index();
        match event {
            Event::Init => {
                index.listed = Some(HashSet::new());
                Vec::new()
            }
            Event::InitApply(pod) => {
                let Some(key) = task_queue_of(pod) else { return Vec::new() };
                if let Some(listed) = &mut index.listed {
                    listed.insert((key.clone(), pod.name_any()));
                }
                index.set(key, pod.name_any(), WorkerPod::new(pod).map(|known| (known, age(pod))))
            }
            Event::InitDone => {
                self.listed_once.send_replace(true);
                index.forget_unlisted()
            }
            Event::Apply(pod) => {
                let Some(key) = task_queue_of(pod) else { return Vec::new() };
                index.set(key, pod.name_any(), WorkerPod::new(pod).map(|known| (known, age(pod))))
            }
            Event::Delete(pod) => {
                let Some(key) = task_queue_of(pod) else { return Vec::new() };
                index.set(key, pod.name_any(), None)
            }
        }
    }
}

impl Index {
    /// Takes in a pod with its age, or that it is gone.
    fn set(&mut self, key: Key, name: String, pod: Option<(WorkerPod, Duration)>) -> Vec<Key> {
        let pods = self.task_queues.entry(key.clone()).or_default();
        if let (Some(before), Some((pod, _))) = (pods.get(&name), &pod)
            && before.pod.uid == pod.uid
            && number(&before.version) > number(&pod.resource_version)
        {
            // What was written is known already, and the watch lags behind.
            return Vec::new();
        }
        let before = pods.remove(&name);
        let Some((mut pod, age)) = pod else {
            if pods.is_empty() {
                self.task_queues.remove(&key);
                self.started.remove(&key);
            }
            return if before.is_some() { vec![key] } else { Vec::new() };
        };
        let now = Instant::now();
        let born = before.as_ref().map_or_else(|| now.checked_sub(age).unwrap_or(now), |before| before.born);
        // Of a pod that a list shows it isn't known what it did before: it may be an old one that is cut off, or drained.
        let watched = before.as_ref().map_or(self.listed.is_none(), |before| before.watched);
        let watched = watched && pod.state == State::Serving;
        let was_starting = before.as_ref().is_some_and(|before| !before.pod.came_up);
        if watched && was_starting && pod.came_up && !pod.terminating {
            let started = self.started.entry(key.clone()).or_default();
            started.push(now.duration_since(born));
            started.truncate(MOST_STARTED);
        }
        pod.came_up |= before.as_ref().is_some_and(|before| before.pod.came_up);
        // A version that changes nothing here is no news.
        let version = std::mem::take(&mut pod.resource_version);
        let changed = before.is_none_or(|before| before.pod != pod);
        pods.insert(name, Known { pod, version, born, watched });
        if changed { vec![key] } else { Vec::new() }
    }

    fn forget_unlisted(&mut self) -> Vec<Key> {
        let Some(listed) = self.listed.take() else { return Vec::new() };
        let mut changed = Vec::new();
        self.task_queues.retain(|key, pods| {
            let before = pods.len();
            pods.retain(|name, _| listed.contains(&(key.clone(), name.clone())));
            if pods.len() != before {
                changed.push(key.clone());
            }
            !pods.is_empty()
        });
        changed
    }
}

/// A resource version as a number, by which versions can be compared.
fn number(version: &str) -> Option<u64> {
    version.parse().ok()
}

/// The age of a pod that is seen for the first time.
fn age(pod: &Pod) -> Duration {
    let created = pod.metadata.creation_timestamp.as_ref();
    let age = created.map(|created| Timestamp::now().duration_since(created.0)).unwrap_or_default();
    Duration::try_from(age).ok().filter(|age| *age > JUST_NOW).unwrap_or_default()
}

fn task_queue_of(pod: &Pod) -> Option<Key> {
    let name = pod.labels().get(TASK_QUEUE_LABEL)?;
    Some(ObjectRef::new(name).within(&pod.namespace()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str) -> Pod {
        with_readiness(name, "False")
    }

    fn with_readiness(name: &str, ready: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default", "labels": {TASK_QUEUE_LABEL: "red"}},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    fn red() -> Key {
        ObjectRef::new("red").within("default")
    }

    #[test]
    fn changes_are_told_once() {
        let pods = Pods::default();
        assert_eq!(pods.take_in(&Event::Apply(pod("a"))), [red()]);
        assert_eq!(pods.take_in(&Event::Apply(pod("a"))), []);
        assert_eq!(pods.of(&red()).len(), 1);
        assert_eq!(pods.take_in(&Event::Delete(pod("a"))), [red()]);
        assert_eq!(pods.of(&red()).len(), 0);
    }

    #[test]
    fn the_time_to_start_is_told_once() {
        let pods = Pods::default();
        for readiness in ["False", "True", "False", "True"] {
            pods.take_in(&Event::Apply(with_readiness("a", readiness)));
        }
        pods.take_in(&Event::Apply(with_readiness("b", "False")));
        assert_eq!(pods.take_started(&red()).len(), 1);
        assert_eq!(pods.take_started(&red()).len(), 0);
        assert_eq!(pods.of(&red()).iter().map(|pod| pod.came_up).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn a_worker_that_ran_before_we_came_tells_no_time_to_start() {
        let pods = Pods::default();
        pods.take_in(&Event::InitApply(with_readiness("a", "True")));
        assert_eq!(pods.take_started(&red()).len(), 0);
        pods.take_in(&Event::Apply(with_readiness("a", "False")));
        assert!(pods.of(&red())[0].came_up, "it is cut off, not starting");
    }

    #[test]
    fn a_worker_that_was_cut_off_before_we_came_tells_no_time_to_start() {
        let pods = Pods::default();
        pods.take_in(&Event::Init);
        pods.take_in(&Event::InitApply(with_readiness("a", "False")));
        pods.take_in(&Event::InitDone);
        pods.take_in(&Event::Apply(with_readiness("a", "True")));
        assert_eq!(pods.take_started(&red()).len(), 0);
    }

    #[test]
    fn a_pod_that_is_old_when_it_is_seen_first_is_old() {
        let pods = Pods::default();
        let mut old = pod("a");
        let created = Timestamp::now() - jiff::SignedDuration::from_secs(100);
        old.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(created));
        pods.take_in(&Event::InitApply(old));
        pods.take_in(&Event::InitApply(pod("b")));
        let ages: Vec<_> = pods.of(&red()).iter().map(|pod| pod.age.as_secs()).collect();
        assert_eq!(ages, [100, 0]);
    }

    #[test]
    fn pods_that_went_while_nobody_watched_are_forgotten() {
        let pods = Pods::default();
        pods.take_in(&Event::Apply(pod("a")));
        pods.take_in(&Event::Apply(pod("b")));
        pods.take_in(&Event::Init);
        pods.take_in(&Event::InitApply(pod("b")));
        assert_eq!(pods.take_in(&Event::InitDone), [red()]);
        assert_eq!(pods.of(&red()).len(), 1);
    }
}
