//! Which calls this worker has in hand, for those who ask over remote control.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use celery_protocol::Request;
use jiff::Timestamp;
use tokio::sync::watch;

use crate::task::DeliveryInfo;

/// How far a call has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Received, not started.
    Reserved,
    /// Waiting for its time.
    Scheduled,
    /// Running.
    Active { since: Timestamp },
}

/// A call in hand.
#[derive(Debug)]
pub(crate) struct Tracked {
    pub(crate) request: Arc<Request>,
    pub(crate) delivery_info: DeliveryInfo,
    pub(crate) stage: Stage,
    /// The signal that somebody wants it ended with.
    terminate: watch::Sender<Option<i32>>,
}

impl Tracked {
    /// A call at some stage that nobody can end.
    pub(crate) fn new(request: Arc<Request>, delivery_info: DeliveryInfo, stage: Stage) -> Self {
        Self { request, delivery_info, stage, terminate: watch::Sender::new(None) }
    }
}

#[derive(Debug, Default)]
struct Calls {
    next_key: u64,
    in_hand: BTreeMap<u64, Tracked>,
    begun: BTreeMap<String, u64>,
}

/// All calls in hand.
#[derive(Debug, Default)]
pub(crate) struct Tracker(Mutex<Calls>);

/// Keeps one call in the [`Tracker`] until it is dropped.
#[derive(Debug)]
pub(crate) struct Tracking {
    tracker: Arc<Tracker>,
    key: u64,
    terminate: watch::Receiver<Option<i32>>,
}

impl Tracker {
    /// Keeps track of a call that has just been received.
    pub(crate) fn track(self: &Arc<Self>, request: Arc<Request>, delivery_info: DeliveryInfo) -> Tracking {
        let (sender, terminate) = watch::channel(None);
        let mut calls = self.calls();
        let key = calls.next_key;
        calls.next_key += 1;
        let tracked = Tracked { request, delivery_info, stage: Stage::Reserved, terminate: sender };
        calls.in_hand.insert(key, tracked);
        Tracking { tracker: Arc::clone(self), key, terminate }
    }

    /// What `show` makes of the calls in hand, oldest first.
    pub(crate) fn show<T>(&self, show: impl FnMut(&Tracked) -> Option<T>) -> Vec<T> {
        self.calls().in_hand.values().filter_map(show).collect()
    }

    /// Has the running call of this id ended with a signal; false if no such call runs here.
    pub(crate) fn terminate(&self, is_meant: impl Fn(&Request) -> bool, signum: i32) -> Vec<String> {
        let calls = self.calls();
        let running = calls
            .in_hand
            .values()
            .filter(|tracked| matches!(tracked.stage, Stage::Active { .. }) && is_meant(&tracked.request));
        running
            .map(|tracked| {
                tracked.terminate.send_replace(Some(signum));
                tracked.request.id.clone()
            })
            .collect()
    }

    /// How many calls of each task have begun since the start.
    pub(crate) fn begun(&self) -> BTreeMap<String, u64> {
        self.calls().begun.clone()
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        // Each change is complete by itself, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tracking {
    /// The call waits for its time, or no longer does.
    pub(crate) fn wait(&self, is_scheduled: bool) {
        self.set(if is_scheduled { Stage::Scheduled } else { Stage::Reserved });
    }

    /// The call has begun.
    pub(crate) fn begin(&self, since: Timestamp) {
        self.set(Stage::Active { since });
        let mut calls = self.tracker.calls();
        if let Some(task) = calls.in_hand.get(&self.key).map(|tracked| tracked.request.task.clone()) {
            *calls.begun.entry(task).or_default() += 1;
        }
    }

    /// The signals that the call is to be ended with.
    pub(crate) fn terminate(&self) -> watch::Receiver<Option<i32>> {
        self.terminate.clone()
    }

    fn set(&self, stage: Stage) {
        if let Some(tracked) = self.tracker.calls().in_hand.get_mut(&self.key) {
            tracked.stage = stage;
        }
    }
}

impl Drop for Tracking {
    fn drop(&mut self) {
        self.tracker.calls().in_hand.remove(&self.key);
    }
}
