//! The worker pods of each TaskQueue, kept from a watch: a few words a pod instead of the whole object.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::Event;
use tokio::sync::watch;

use crate::api::v1alpha1::TaskQueue;
use crate::plan::metadata::TASK_QUEUE_LABEL;
use crate::plan::workers::WorkerPod;

type Key = ObjectRef<TaskQueue>;

/// Worker pods by TaskQueue and name.
#[derive(Default)]
pub(super) struct Pods {
    index: Mutex<Index>,
    listed_once: watch::Sender<bool>,
}

#[derive(Default)]
struct Index {
    task_queues: HashMap<Key, BTreeMap<String, WorkerPod>>,
    /// What was seen since the watch began to list everything anew.
    listed: Option<HashSet<(Key, String)>>,
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
        index.task_queues.get(task_queue).map(|pods| pods.values().cloned().collect()).unwrap_or_default()
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
                index.set(key, pod.name_any(), WorkerPod::new(pod))
            }
            Event::InitDone => {
                self.listed_once.send_replace(true);
                index.forget_unlisted()
            }
            Event::Apply(pod) => {
                let Some(key) = task_queue_of(pod) else { return Vec::new() };
                index.set(key, pod.name_any(), WorkerPod::new(pod))
            }
            Event::Delete(pod) => {
                let Some(key) = task_queue_of(pod) else { return Vec::new() };
                index.set(key, pod.name_any(), None)
            }
        }
    }
}

impl Index {
    fn set(&mut self, key: Key, name: String, pod: Option<WorkerPod>) -> Vec<Key> {
        let pods = self.task_queues.entry(key.clone()).or_default();
        let before = match pod.clone() {
            Some(pod) => pods.insert(name, pod),
            None => pods.remove(&name),
        };
        if pods.is_empty() {
            self.task_queues.remove(&key);
        }
        if before == pod { Vec::new() } else { vec![key] }
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

fn task_queue_of(pod: &Pod) -> Option<Key> {
    let name = pod.labels().get(TASK_QUEUE_LABEL)?;
    Some(ObjectRef::new(name).within(&pod.namespace()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default", "labels": {TASK_QUEUE_LABEL: "red"}},
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
