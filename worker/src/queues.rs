//! The queues that this worker consumes from: those of its start, and what remote control adds or cancels.

use tokio::sync::watch;

/// A queue to consume from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Queue {
    pub(crate) name: String,
    /// What it is to be bound to, besides what Celery binds each queue to.
    pub(crate) binding: Option<Binding>,
}

/// A binding of a queue to an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binding {
    pub(crate) exchange: String,
    pub(crate) exchange_type: String,
    pub(crate) routing_key: String,
}

impl Queue {
    /// A queue as Celery makes it by default.
    pub(crate) fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), binding: None }
    }
}

/// What the worker is to consume from, at any time. The main loop sees to it that it does.
#[derive(Debug)]
pub(crate) struct Queues(watch::Sender<Vec<Queue>>);

impl Queues {
    pub(crate) fn new(names: impl IntoIterator<Item = String>) -> Self {
        let mut queues: Vec<Queue> = Vec::new();
        for name in names {
            if !queues.iter().any(|queue| queue.name == name) {
                queues.push(Queue::named(name));
            }
        }
        Self(watch::Sender::new(queues))
    }

    /// Consumes from this queue too.
    pub(crate) fn add(&self, queue: Queue) {
        self.0.send_if_modified(|queues| {
            let is_new = queues.iter().all(|known| known.name != queue.name);
            if is_new {
                queues.push(queue);
            }
            is_new
        });
    }

    /// Consumes from this queue no longer.
    pub(crate) fn cancel(&self, name: &str) {
        self.0.send_if_modified(|queues| {
            let before = queues.len();
            queues.retain(|queue| queue.name != name);
            queues.len() != before
        });
    }

    pub(crate) fn list(&self) -> Vec<Queue> {
        self.0.borrow().clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Vec<Queue>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_consumed_from_once() {
        let queues = Queues::new(["red".to_owned(), "red".to_owned()]);
        queues.add(Queue::named("red"));
        queues.add(Queue::named("blue"));
        let names = || queues.list().into_iter().map(|queue| queue.name).collect::<Vec<_>>();
        assert_eq!(names(), ["red", "blue"]);
        queues.cancel("red");
        queues.cancel("green");
        assert_eq!(names(), ["blue"]);
    }
}
