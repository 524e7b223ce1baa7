//! Calls that somebody has revoked before they were run.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use celery_protocol::{Map, Request, State, TaskMeta};
use jiff::Timestamp;
use serde_json::Value;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use crate::{
    health::Health,
    metrics::Metrics,
    results::Results,
    tracker::{Stage, Tracker},
};

/// How many ids are kept, and for how long: as many as Celery keeps.
const IDS_MAX: usize = 50_000;
const KEEP: Duration = Duration::from_secs(3 * 3600);

/// How many different stamps are kept.
const STAMPS_MAX: usize = 1000;

/// Revoked ids and stamps, the oldest forgotten first.
#[derive(Debug, Default)]
pub(crate) struct Revocations {
    ids: HashMap<String, Instant>,
    order: VecDeque<(Instant, String)>,
    stamps: VecDeque<(String, Value)>,
}

impl Revocations {
    /// Revokes the call of this id.
    pub(crate) fn add(&mut self, id: &str, now: Instant) {
        if self.ids.insert(id.to_owned(), now).is_none() {
            self.order.push_back((now, id.to_owned()));
        }
        while let Some((since, _)) = self.order.front()
            && (self.order.len() > IDS_MAX || now.duration_since(*since) > KEEP)
            && let Some((_, id)) = self.order.pop_front()
        {
            self.ids.remove(&id);
        }
    }

    /// Revokes calls that carry one of these stamps: values, or lists of them, by name.
    pub(crate) fn add_stamps(&mut self, stamps: &Map) {
        for (name, values) in stamps {
            for value in as_list(values) {
                self.stamps.push_back((name.clone(), value.clone()));
            }
        }
        while self.stamps.len() > STAMPS_MAX {
            self.stamps.pop_front();
        }
    }

    /// Whether the call is not to be run.
    pub(crate) fn contains(&self, request: &Request) -> bool {
        self.ids.contains_key(&request.id)
            || self.stamps.iter().any(|(name, value)| carries(request, name, value))
    }
}

/// Whether a call has a stamp of this name and value.
pub(crate) fn carries(request: &Request, name: &str, value: &Value) -> bool {
    let is_stamp = request.stamped_headers.as_ref().is_some_and(|names| names.iter().any(|own| own == name));
    is_stamp && request.stamps.get(name).is_some_and(|own| as_list(own).contains(value))
}

/// A list as it is, anything else as a list of one.
pub(crate) fn as_list(value: &Value) -> &[Value] {
    match value {
        Value::Array(values) => values,
        single => std::slice::from_ref(single),
    }
}

/// [`Revocations`] that can be shared and waited on.
#[derive(Debug)]
pub(crate) struct Revoked {
    revocations: Mutex<Revocations>,
    changed: Notify,
    commands: mpsc::UnboundedSender<Vec<String>>,
}

impl Revoked {
    /// Nothing is revoked yet. Ids that are, by a command to this worker, come out of the receiver.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Vec<String>>) {
        let (commands, receiver) = mpsc::unbounded_channel();
        (Self { revocations: Mutex::default(), changed: Notify::default(), commands }, receiver)
    }

    /// Somebody has revoked these calls.
    pub(crate) fn revoke(&self, ids: &[&str]) {
        let now = Instant::now();
        self.change(|revocations| ids.iter().for_each(|id| revocations.add(id, now)));
        // Without a receiver there is nowhere to store it.
        let _ = self.commands.send(ids.iter().map(|id| (*id).to_owned()).collect());
    }

    /// Changes what is revoked.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Revocations)) {
        change(&mut self.lock());
        self.changed.notify_waiters();
    }

    /// Whether the call is not to be run.
    pub(crate) fn contains(&self, request: &Request) -> bool {
        self.lock().contains(request)
    }

    /// All revoked ids, sorted.
    pub(crate) fn ids(&self) -> Vec<String> {
        let mut ids: Vec<_> = self.lock().ids.keys().cloned().collect();
        ids.sort_unstable();
        ids
    }

    /// Waits for a change.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Revocations> {
        // Ids are whole or not there, so a panic elsewhere leaves nothing that could mislead.
        self.revocations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stores of calls that they are revoked, as soon as somebody says so and as long as they have not begun: who waits for
/// them need not wait until a worker comes across their messages.
pub(crate) async fn store_at_once(
    mut commands: mpsc::UnboundedReceiver<Vec<String>>,
    tracker: Arc<Tracker>,
    results: Arc<Results>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
) {
    while let Some(mut ids) = commands.recv().await {
        let running =
            tracker.show(|call| matches!(call.stage, Stage::Active { .. }).then(|| call.request.id.clone()));
        ids.retain(|id| !running.contains(id));
        let Some(redis) = results.redis(&health, &metrics).await else { continue };
        for id in &ids {
            // Something else that is stored under the id stays as it is.
            let read = results.insist("read a result", || redis.get(id), &health, &metrics).await;
            let Ok(meta) = read else { continue };
            if meta.is_none_or(|meta| is_waiting(&meta.status)) {
                let revoked = TaskMeta::revoked(id, "revoked", Timestamp::now());
                // If that can't be: as above.
                let _ = results.insist("store a result", || redis.store(&revoked), &health, &metrics).await;
            }
        }
    }
}

/// Whether a call in this state has yet to begin, or begin again.
fn is_waiting(state: &State) -> bool {
    matches!(state, State::Pending | State::Received | State::Retry | State::Rejected)
}

#[cfg(test)]
mod tests {
    use celery_protocol::Arguments;
    use serde_json::json;

    use super::*;

    fn request(id: &str, stamps: Value) -> Request {
        let stamps = stamps.as_object().unwrap().clone();
        let stamped_headers = Some(stamps.keys().cloned().collect());
        Request { stamped_headers, stamps, ..Request::new("t.add", id, Arguments::default()) }
    }

    #[test]
    fn the_oldest_ids_are_forgotten_first() {
        let mut revocations = Revocations::default();
        let now = Instant::now();
        for number in 0..=IDS_MAX {
            revocations.add(&number.to_string(), now);
        }
        let contains = |revocations: &Revocations, id: &str| revocations.contains(&request(id, json!({})));
        assert!(!contains(&revocations, "0") && contains(&revocations, "1"));
        revocations.add("late", now + KEEP + Duration::from_secs(1));
        assert!(!contains(&revocations, "1") && contains(&revocations, "late"));
        assert_eq!(revocations.ids.len(), 1);
    }

    #[test]
    fn stamps_match_by_value_or_by_one_of_a_list() {
        let mut revocations = Revocations::default();
        revocations.add_stamps(json!({"tenant": ["a", "b"], "batch": 7}).as_object().unwrap());
        for (stamps, expected) in [
            (json!({"tenant": "a"}), true),
            (json!({"tenant": ["x", "b"]}), true),
            (json!({"tenant": "c"}), false),
            (json!({"batch": 7}), true),
            (json!({"other": "a"}), false),
        ] {
            assert_eq!(revocations.contains(&request("id", stamps.clone())), expected, "{stamps}");
        }
        let unnamed = Request { stamped_headers: None, ..request("id", json!({"tenant": "a"})) };
        assert!(!revocations.contains(&unnamed), "only what is listed as a stamp is one");
    }
}
