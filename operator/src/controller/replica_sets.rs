//! The ReplicaSets of each TaskQueue's Deployment, kept from a watch: how many pods each is to have.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::apps::v1::ReplicaSet;
use kube::ResourceExt as _;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::Event;
use tokio::sync::watch;

use crate::api::v1alpha1::TaskQueue;
use crate::plan::drain;
use crate::plan::metadata::TASK_QUEUE_LABEL;

type Key = ObjectRef<TaskQueue>;

/// ReplicaSets by TaskQueue.
#[derive(Default)]
pub(super) struct ReplicaSets {
    index: Mutex<Index>,
    listed_once: watch::Sender<bool>,
}

#[derive(Default)]
struct Index {
    task_queues: HashMap<Key, Vec<drain::ReplicaSet>>,
    /// What was seen since the watch began to list everything anew.
    listed: HashMap<Key, Vec<drain::ReplicaSet>>,
}

impl ReplicaSets {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the watch has shown all once.
    pub(super) async fn wait_until_ready(&self) {
        // The sender lives as long as this.
        let _ = self.listed_once.subscribe().wait_for(|listed| *listed).await;
    }

    /// The ReplicaSets of a TaskQueue.
    pub(super) fn of(&self, task_queue: &Key) -> Vec<drain::ReplicaSet> {
        self.index().task_queues.get(task_queue).cloned().unwrap_or_default()
    }

    /// Takes in an event of the watch. Returns the TaskQueues for which something has changed.
    pub(super) fn take_in(&self, event: &Event<ReplicaSet>) -> Vec<Key> {
        let mut index = self.index();
        match event {
            Event::Init => {
                index.listed.clear();
                Vec::new()
            }
            Event::InitApply(replica_set) => {
                if let Some((key, known)) = read(replica_set) {
                    index.listed.entry(key).or_default().push(known);
                }
                Vec::new()
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut index.listed);
                let before = std::mem::replace(&mut index.task_queues, listed);
                self.listed_once.send_replace(true);
                before.into_keys().chain(index.task_queues.keys().cloned()).collect()
            }
            Event::Apply(replica_set) => {
                let Some((key, known)) = read(replica_set) else { return Vec::new() };
                let of = index.task_queues.entry(key.clone()).or_default();
                match of.iter_mut().find(|before| before.uid == known.uid) {
                    Some(before) if *before == known => return Vec::new(),
                    Some(before) => *before = known,
                    None => of.push(known),
                }
                vec![key]
            }
            Event::Delete(replica_set) => {
                let Some((key, gone)) = read(replica_set) else { return Vec::new() };
                if let Some(of) = index.task_queues.get_mut(&key) {
                    of.retain(|known| known.uid != gone.uid);
                    if of.is_empty() {
                        index.task_queues.remove(&key);
                    }
                }
                vec![key]
            }
        }
    }
}

fn read(replica_set: &ReplicaSet) -> Option<(Key, drain::ReplicaSet)> {
    let name = replica_set.labels().get(TASK_QUEUE_LABEL)?;
    let replicas = replica_set.spec.as_ref().and_then(|spec| spec.replicas);
    let known = drain::ReplicaSet {
        uid: replica_set.uid()?,
        // Kubernetes' own default.
        replicas: u16::try_from(replicas.unwrap_or(1)).unwrap_or_default(),
    };
    Some((ObjectRef::new(name).within(&replica_set.namespace()?), known))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn replica_set(uid: &str, replicas: u16) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": uid, "uid": uid, "namespace": "default", "labels": {TASK_QUEUE_LABEL: "red"}},
            "spec": {"replicas": replicas, "selector": {}},
        }))
        .unwrap()
    }

    fn red() -> Key {
        ObjectRef::new("red").within("default")
    }

    #[test]
    fn only_a_changed_number_is_told() {
        let all = ReplicaSets::default();
        assert_eq!(all.take_in(&Event::Apply(replica_set("a", 3))), [red()]);
        assert_eq!(all.take_in(&Event::Apply(replica_set("a", 3))), []);
        assert_eq!(all.take_in(&Event::Apply(replica_set("a", 2))), [red()]);
        assert_eq!(all.of(&red()), [drain::ReplicaSet { uid: "a".into(), replicas: 2 }]);
        assert_eq!(all.take_in(&Event::Delete(replica_set("a", 2))), [red()]);
        assert_eq!(all.of(&red()), []);
    }

    #[test]
    fn what_is_listed_anew_replaces_what_was_known() {
        let all = ReplicaSets::default();
        all.take_in(&Event::Apply(replica_set("a", 3)));
        all.take_in(&Event::Init);
        all.take_in(&Event::InitApply(replica_set("b", 1)));
        assert_eq!(all.of(&red())[0].uid, "a");
        all.take_in(&Event::InitDone);
        assert_eq!(all.of(&red())[0].uid, "b");
    }
}
