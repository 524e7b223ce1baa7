//! Which TaskQueues name which queue, so that one has to be compared with its rivals only, not with all that there are.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kube::ResourceExt as _;

use crate::api::v1alpha1::TaskQueue;
use crate::plan::topology::Topology;

/// A queue, and namespace and name of a TaskQueue.
type Entry = (String, String, String);

/// The TaskQueues by the queues that they name.
#[derive(Default)]
pub(super) struct Named(Mutex<BTreeSet<Entry>>);

impl Named {
    fn entries(&self) -> MutexGuard<'_, BTreeSet<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a TaskQueue. Queues that it named before stay until [`retain`](Self::retain).
    pub(super) fn add(&self, task_queue: &TaskQueue) {
        let (namespace, name) = (task_queue.namespace().unwrap_or_default(), task_queue.name_any());
        let topology = Topology::new(task_queue);
        let entry = |queue: &str| (queue.to_owned(), namespace.clone(), name.clone());
        self.entries().extend(topology.all_names().map(entry));
    }

    /// Namespace and name of those that name a queue of this topology, or did so a moment ago, in order.
    pub(super) fn of(&self, topology: &Topology) -> BTreeSet<(String, String)> {
        let entries = self.entries();
        let of_queue = |queue: &str| {
            let first = (queue.to_owned(), String::new(), String::new());
            let named = entries.range(first..).take_while(move |(named, ..)| named.as_str() == queue);
            named.map(|(_, namespace, name)| (namespace.clone(), name.clone())).collect::<Vec<_>>()
        };
        topology.all_names().flat_map(of_queue).collect()
    }

    /// Forgets the queues that TaskQueues don't name any more, as `names` says by namespace, name and queue.
    pub(super) fn retain(&self, names: impl Fn(&str, &str, &str) -> bool) {
        self.entries().retain(|(queue, namespace, name)| names(namespace, name, queue));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn task_queue(name: &str, queues: &[&str]) -> TaskQueue {
        let queues: Vec<_> = queues.iter().map(|name| json!({"name": name})).collect();
        serde_json::from_value(json!({
            "apiVersion": "soloist.dev/v1alpha1",
            "kind": "TaskQueue",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "broker": {"secretRef": {"name": "rabbitmq"}},
                "queues": queues,
                "worker": {"image": "w"},
                "scaling": {"maxReplicas": 5},
            },
        }))
        .unwrap()
    }

    fn of(named: &Named, task_queue: &TaskQueue) -> Vec<String> {
        named.of(&Topology::new(task_queue)).into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn those_that_share_a_queue_or_its_dead_letters_are_found() {
        let named = Named::default();
        let all = [
            task_queue("one", &["red", "blue"]),
            task_queue("two", &["blue", "green"]),
            task_queue("dead", &["green.dead"]),
            task_queue("red", &[]),
        ];
        all.iter().for_each(|task_queue| named.add(task_queue));
        let found = all.each_ref().map(|task_queue| of(&named, task_queue));
        assert_eq!(found[0], ["one", "red", "two"]);
        assert_eq!(found[1], ["dead", "one", "two"]);
        assert_eq!(found[2], ["dead", "two"]);
        assert_eq!(found[3], ["one", "red"]);
    }

    #[test]
    fn names_that_are_given_up_are_forgotten() {
        let named = Named::default();
        let (one, two) = (task_queue("one", &["red"]), task_queue("two", &["red"]));
        named.add(&one);
        named.add(&two);
        named.retain(|_, name, queue| name == "one" && queue == "red");
        assert_eq!(of(&named, &two), ["one"]);
    }
}
