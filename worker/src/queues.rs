//! The queues that this worker consumes from: those of its start, and what remote control adds or cancels.
//!
//! What was cancelled is remembered in a file, if there is a directory for it: a worker that was told to take no more tasks must not take
//! some because its container was started again.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use tokio::sync::watch;
use tracing::{info, warn};

/// Name of the file with the queues that were cancelled.
const CANCELLED: &str = "cancelled-queues.json";

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
pub(crate) struct Queues {
    wanted: watch::Sender<Vec<Queue>>,
    /// What the main loop consumes from, or may hold messages of.
    held: Mutex<Vec<Queue>>,
    cancelled: Mutex<BTreeSet<String>>,
    /// Where the cancelled ones are remembered.
    memory: Option<PathBuf>,
}

impl Queues {
    /// These queues, but for those that were cancelled before and are remembered in this directory.
    pub(crate) fn new(names: impl IntoIterator<Item = String>, directory: Option<PathBuf>) -> Self {
        let memory = directory.map(|directory| directory.join(CANCELLED));
        let cancelled = memory.as_deref().map(remembered).unwrap_or_default();
        let mut queues: Vec<Queue> = Vec::new();
        for name in names {
            if cancelled.contains(&name) {
                info!(queue = name, "not consuming: remote control has cancelled this queue");
            } else if !queues.iter().any(|queue| queue.name == name) {
                queues.push(Queue::named(name));
            }
        }
        Self {
            wanted: watch::Sender::new(queues),
            held: Mutex::default(),
            cancelled: Mutex::new(cancelled),
            memory,
        }
    }

    /// Consumes from this queue too.
    pub(crate) fn add(&self, queue: Queue) {
        self.remember(|cancelled| cancelled.remove(&queue.name));
        self.wanted.send_if_modified(|queues| {
            let is_new = queues.iter().all(|known| known.name != queue.name);
            if is_new {
                queues.push(queue);
            }
            is_new
        });
    }

    /// Consumes from this queue no longer.
    pub(crate) fn cancel(&self, name: &str) {
        self.remember(|cancelled| cancelled.insert(name.to_owned()));
        self.wanted.send_if_modified(|queues| {
            let before = queues.len();
            queues.retain(|queue| queue.name != name);
            queues.len() != before
        });
    }

    pub(crate) fn list(&self) -> Vec<Queue> {
        self.wanted.borrow().clone()
    }

    /// The queues to consume from, and those cancelled ones from which messages may still come.
    pub(crate) fn active(&self) -> Vec<Queue> {
        let mut queues = self.list();
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for queue in held.iter() {
            if !queues.contains(queue) {
                queues.push(queue.clone());
            }
        }
        queues
    }

    /// The main loop states that messages may come from these queues, and from no other.
    pub(crate) fn hold(&self, queues: &[Queue]) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = queues.to_vec();
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Vec<Queue>> {
        self.wanted.subscribe()
    }

    /// Changes what is remembered as cancelled.
    fn remember(&self, change: impl FnOnce(&mut BTreeSet<String>) -> bool) {
        let mut cancelled = self.cancelled.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(memory) = &self.memory else { return };
        if change(&mut cancelled)
            && let Err(error) = write(memory, &cancelled)
        {
            warn!(file = %memory.display(), %error, "can't remember the cancelled queues: a restart would consume from them");
        }
    }
}

/// Replaces the file as a whole, so that a crash leaves the old one or the new one.
fn write(file: &Path, cancelled: &BTreeSet<String>) -> io::Result<()> {
    let new = file.with_extension("new");
    let mut writer = File::create(&new)?;
    writer.write_all(&serde_json::to_vec(cancelled)?)?;
    writer.sync_all()?;
    fs::rename(new, file)
}

fn remembered(file: &Path) -> BTreeSet<String> {
    let read = fs::read(file).and_then(|text| Ok(serde_json::from_slice(&text)?));
    read.unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            warn!(file = %file.display(), %error, "can't read which queues were cancelled");
        }
        BTreeSet::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_consumed_from_once() {
        let queues = Queues::new(["red".to_owned(), "red".to_owned()], None);
        queues.add(Queue::named("red"));
        queues.add(Queue::named("blue"));
        let names = || queues.list().into_iter().map(|queue| queue.name).collect::<Vec<_>>();
        assert_eq!(names(), ["red", "blue"]);
        queues.cancel("red");
        queues.cancel("green");
        assert_eq!(names(), ["blue"]);
    }

    #[test]
    fn a_cancelled_queue_is_active_until_nothing_more_can_come_from_it() {
        let queues = Queues::new(["red".to_owned()], None);
        queues.hold(&queues.list());
        queues.cancel("red");
        assert_eq!(queues.active(), [Queue::named("red")]);
        queues.hold(&queues.list());
        assert_eq!(queues.active(), []);
    }

    #[test]
    fn cancelled_queues_stay_cancelled_after_a_restart() {
        let directory = std::env::temp_dir().join(format!("soloist-queues-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&directory).unwrap();
        let start = || Queues::new(["red".to_owned(), "blue".to_owned()], Some(directory.clone()));
        start().cancel("red");
        assert_eq!(start().list(), [Queue::named("blue")]);
        start().add(Queue::named("red"));
        assert_eq!(start().list(), [Queue::named("red"), Queue::named("blue")]);
        fs::remove_dir_all(&directory).unwrap();
    }
}
