//! Whether the worker can serve, for the probes of its pod.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tracing::info;

use crate::queues::Queue;

/// What readiness depends on. All parts must hold; the first that does not is the reason given.
#[derive(Debug, Default)]
struct Facts {
    draining: bool,
    /// Why there is no connection to the broker, if there is none.
    disconnected: Option<String>,
    /// The queues that are to be consumed from, and why they aren't.
    queues: BTreeMap<String, Option<String>>,
    /// Why results can't be stored, if they can't.
    not_storing: Option<String>,
}

impl Facts {
    fn problem(&self) -> Option<String> {
        if self.draining {
            return Some("draining: finishing the present task, taking no more".to_owned());
        }
        if self.queues.is_empty() {
            return Some("drained: remote control has cancelled all queues".to_owned());
        }
        let queue = || self.queues.values().flatten().next().cloned();
        self.disconnected.clone().or_else(queue).or_else(|| self.not_storing.clone())
    }
}

/// Shared state of the probes.
#[derive(Debug)]
pub(crate) struct Health(Mutex<Facts>);

impl Health {
    /// A worker that is about to consume from `queues`.
    pub(crate) fn new(queues: &[Queue]) -> Self {
        let waits = |queue: &Queue| (queue.name.clone(), Some(not_yet(&queue.name)));
        let queues = queues.iter().map(waits).collect();
        let disconnected = Some("connecting to the broker".to_owned());
        Self(Mutex::new(Facts { disconnected, queues, ..Facts::default() }))
    }

    /// There is a connection to the broker.
    pub(crate) fn connected(&self) {
        self.change(|facts| facts.disconnected = None);
    }

    /// There is no connection to the broker, so nothing is consumed.
    pub(crate) fn disconnected(&self, reason: String) {
        self.change(|facts| {
            facts.disconnected = Some(reason);
            for (queue, problem) in &mut facts.queues {
                *problem = Some(not_yet(queue));
            }
        });
    }

    /// The queue is consumed from, or it isn't because of a problem.
    pub(crate) fn queue(&self, queue: &str, problem: Option<String>) {
        self.change(|facts| facts.queues.insert(queue.to_owned(), problem));
    }

    /// No queues but these are to be consumed from any more.
    pub(crate) fn keep(&self, queues: &[Queue]) {
        self.change(|facts| facts.queues.retain(|name, _| queues.iter().any(|queue| queue.name == *name)));
    }

    /// Results can be stored, or can't for this reason.
    pub(crate) fn set_not_storing(&self, reason: Option<String>) {
        self.change(|facts| facts.not_storing = reason);
    }

    /// The worker is on its way out.
    pub(crate) fn draining(&self) {
        self.change(|facts| facts.draining = true);
    }

    /// Whether all queues are consumed from.
    pub(crate) fn is_consuming(&self) -> bool {
        let facts = self.facts();
        let all_queues = !facts.queues.is_empty() && facts.queues.values().all(Option::is_none);
        !facts.draining && facts.disconnected.is_none() && all_queues
    }

    /// Why the worker isn't ready; `None` if it is.
    pub(crate) fn problem(&self) -> Option<String> {
        self.facts().problem()
    }

    /// Changes the facts and logs whether that made the worker ready, or no longer so.
    fn change<T>(&self, change: impl FnOnce(&mut Facts) -> T) {
        let mut facts = self.facts();
        let was_ready = facts.problem().is_none();
        change(&mut facts);
        match facts.problem() {
            None if !was_ready => info!("ready"),
            Some(reason) if was_ready => info!(reason, "not ready"),
            _ => {}
        }
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        // Facts are replaced whole, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_yet(queue: &str) -> String {
    format!("not consuming from queue `{queue}` yet")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> Health {
        Health::new(&[Queue::named("red"), Queue::named("blue")])
    }

    #[test]
    fn is_ready_once_all_queues_are_consumed_from() {
        let health = health();
        assert_eq!(health.problem().as_deref(), Some("connecting to the broker"));
        health.connected();
        health.queue("red", None);
        assert_eq!(health.problem().as_deref(), Some("not consuming from queue `blue` yet"));
        assert!(!health.is_consuming());
        health.queue("blue", None);
        assert_eq!(health.problem(), None);
        assert!(health.is_consuming());
    }

    #[test]
    fn a_lost_connection_is_a_lost_consumer_too() {
        let health = health();
        health.connected();
        health.queue("red", None);
        health.queue("blue", None);
        health.disconnected("reset".into());
        assert_eq!(health.problem().as_deref(), Some("reset"));
        health.connected();
        assert!(!health.is_consuming());
    }

    #[test]
    fn a_store_that_is_down_makes_it_unready() {
        let health = Health::new(&[Queue::named("red")]);
        health.connected();
        health.queue("red", None);
        health.set_not_storing(Some("redis is down".into()));
        assert_eq!(health.problem().as_deref(), Some("redis is down"));
        health.set_not_storing(None);
        assert_eq!(health.problem(), None);
    }

    #[test]
    fn is_not_ready_once_all_queues_are_cancelled() {
        let health = Health::new(&[Queue::named("red")]);
        health.connected();
        health.queue("red", None);
        health.keep(&[]);
        assert!(health.problem().unwrap().starts_with("drained"));
        assert!(!health.is_consuming());
    }

    #[test]
    fn draining_is_the_reason_whatever_else_is_wrong() {
        let health = health();
        health.draining();
        assert!(health.problem().unwrap().starts_with("draining"));
    }
}
