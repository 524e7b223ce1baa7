//! What is missing or wrong on the broker's side, and what becomes of it.

use serde_json::{Value, json};

use super::*;
use crate::broker::heartbeats::take_in;
use crate::plan::reason::Reason;

const NODE: &str = "celery@red-1";

/// A broker with two TaskQueues: `red` has the queues red and green and the worker red-1, `blue` the queue blue.
struct World {
    shared: Shared,
    now: Instant,
}

impl World {
    /// Connected, and every queue read.
    fn new() -> Self {
        let mut world = Self { shared: Shared::new(Arc::new(|_| {}), Arc::default()), now: Instant::now() };
        for (name, queues) in [("red", json!([{"name": "red"}, {"name": "green"}])), ("blue", json!([]))] {
            let task_queue = serde_json::from_value(json!({
                "apiVersion": "soloist.dev/v1alpha1",
                "kind": "TaskQueue",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {
                    "broker": {"secretRef": {"name": "rabbitmq"}},
                    "queues": queues,
                    "worker": {"image": "w"},
                    "scaling": {"maxReplicas": 5},
                },
            }));
            let topology = Arc::new(Topology::new(&task_queue.unwrap()));
            world.shared.subscribe(&key(name), &topology, vec![format!("celery@{name}-1")]);
        }
        world.shared.connected(world.now);
        world.read(&[("red", 0, 2), ("green", 0, 3), ("blue", 0, 2)]);
        world.read(&[("red", 0, 2), ("green", 0, 3), ("blue", 0, 2)]);
        world
    }

    /// A second later, these queues answer with messages and consumers.
    fn read(&mut self, answers: &[(&str, u64, u32)]) {
        self.now += Duration::from_secs(1);
        let answer = |(queue, ready, consumers): &(&str, u64, u32)| Answer {
            queue: (*queue).to_owned(),
            ready: *ready,
            consumers: *consumers,
            took: Duration::from_millis(1),
            at: self.now,
        };
        self.shared.read(answers.iter().map(answer).collect(), self.now);
    }

    fn view(&self, task_queue: &str) -> View {
        self.shared.view(&key(task_queue), self.now).unwrap()
    }

    /// A worker says this of itself, `counts` being part of its heartbeat.
    fn heartbeat(&self, counts: Value) {
        let mut event = json!({"type": "worker-heartbeat", "hostname": NODE, "timestamp": 0.0, "freq": 2.0});
        event.as_object_mut().unwrap().extend(counts.as_object().unwrap().clone());
        take_in(event.to_string().as_bytes(), &self.shared);
    }
}

fn key(name: &str) -> ObjectRef<TaskQueue> {
    ObjectRef::new(name).within("default")
}

#[test]
fn a_queue_that_cannot_be_read_concerns_its_task_queue_only() {
    let mut world = World::new();
    for _ in 0..10 {
        world.read(&[("red", 0, 2), ("blue", 0, 2)]);
    }
    assert_eq!(world.view("red").backlog, Backlog::Partial { ready: 0 });
    assert_eq!(world.view("blue").backlog, Backlog::Fresh { ready: 0 });
}

#[test]
fn queues_of_which_nothing_is_heard_are_not_empty() {
    let mut world = World::new();
    world.now += STALE_AFTER;
    assert_eq!(world.view("blue").backlog, Backlog::Stale { ready: 0 });
}

#[test]
fn an_answer_that_was_held_up_by_others_is_as_old_as_it_is() {
    let mut world = World::new();
    let (queue, at) = ("blue".to_owned(), world.now);
    world.now += STALE_AFTER;
    let held_up = Answer { queue, ready: 0, consumers: 2, took: Duration::from_millis(1), at };
    world.shared.read(vec![held_up], world.now);
    assert_eq!(world.view("blue").backlog, Backlog::Stale { ready: 0 });
}

#[test]
fn consumers_are_those_of_the_queue_with_the_fewest() {
    let mut world = World::new();
    assert_eq!((world.view("red").attached, world.view("blue").attached), (Some(2), Some(2)));
    world.read(&[("green", 0, 1)]);
    assert_eq!(world.view("red").attached, Some(1));
}

#[test]
fn a_worker_of_several_queues_that_has_a_task_needs_no_consumer() {
    let mut world = World::new();
    world.heartbeat(json!({"active": 1, "processed": 1}));
    world.read(&[("red", 0, 1), ("green", 0, 1), ("blue", 0, 1)]);
    assert_eq!((world.view("red").attached, world.view("blue").attached), (Some(2), Some(1)));
}

#[test]
fn a_broker_that_was_restarted_shows_who_is_not_back_yet() {
    let mut world = World::new();
    let problem = Problem { reason: Reason::ConnectionLost, message: String::new() };
    world.shared.disconnected(problem, world.now);
    assert_eq!(world.view("blue").attached, None);
    assert_eq!(world.view("blue").backlog, Backlog::Stale { ready: 0 });
    world.shared.connected(world.now);
    world.read(&[("blue", 0, 0)]);
    assert_eq!(
        (world.view("blue").attached, world.view("blue").backlog),
        (Some(0), Backlog::Fresh { ready: 0 })
    );
    world.read(&[("blue", 0, 2)]);
    assert_eq!(world.view("blue").attached, Some(2));
}

#[test]
fn what_time_it_is_elsewhere_does_not_matter() {
    let world = World::new();
    for timestamp in [4e9, 0.0, -1.0] {
        world.heartbeat(json!({"timestamp": timestamp, "active": 1, "processed": 7}));
        assert_eq!(world.view("red").active.get(NODE), Some(&1));
    }
}

#[test]
fn a_worker_that_leaves_out_a_count_is_silent() {
    for counts in [json!({"active": 0}), json!({"processed": 7}), json!({})] {
        let world = World::new();
        world.heartbeat(counts);
        assert_eq!(world.view("red").active.get(NODE), None);
    }
}

#[test]
fn finished_tasks_are_told_with_the_reading_that_follows() {
    let mut world = World::new();
    world.heartbeat(json!({"active": 1, "processed": 7}));
    world.heartbeat(json!({"active": 1, "processed": 9}));
    assert_eq!(world.view("red").finished, 0);
    world.read(&[("red", 0, 2)]);
    assert_eq!(world.view("red").finished, 2);
}
