//! Calls that were done with but could not be acknowledged, because their connection was lost meanwhile.
//!
//! The broker delivers their messages again. If that is to this worker, it need not run the task a second time: it knows
//! that the result is stored. Other workers are told as far as they can be.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use celery_client::results::RunKey;
use celery_protocol::Request;
use tokio::sync::mpsc;

/// How many are remembered: several times what a worker holds when it loses a connection.
const REMEMBERED: usize = 256;

/// The calls that were done with, each by id and number of retries: a retry has the id of what it repeats.
#[derive(Debug)]
pub(crate) struct Done {
    calls: Mutex<VecDeque<(String, u32)>>,
    announce: mpsc::UnboundedSender<RunKey>,
}

impl Done {
    /// No calls yet. Those that are remembered also come out of the receiver.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<RunKey>) {
        let (announce, receiver) = mpsc::unbounded_channel();
        (Self { calls: Mutex::default(), announce }, receiver)
    }

    /// The call is done with, but its message will be delivered again.
    pub(crate) fn remember(&self, request: &Request) {
        let mut calls = self.calls();
        calls.push_back((request.id.clone(), request.retries));
        if calls.len() > REMEMBERED {
            calls.pop_front();
        }
        // Without a receiver there is nobody to tell.
        let _ = self.announce.send(RunKey::new(&request.id, request.retries));
    }

    /// Whether a message that is delivered again is of a call that is done with. It is forgotten then.
    pub(crate) fn recall(&self, request: &Request) -> bool {
        let mut calls = self.calls();
        let known = calls.iter().position(|(id, retries)| (id, *retries) == (&request.id, request.retries));
        known.and_then(|index| calls.remove(index)).is_some()
    }

    fn calls(&self) -> MutexGuard<'_, VecDeque<(String, u32)>> {
        // Calls are whole or not there, so a panic elsewhere leaves nothing that could mislead.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use celery_protocol::Arguments;

    use super::*;

    fn request(id: &str, retries: u32) -> Request {
        Request { retries, ..Request::new("t.add", id, Arguments::default()) }
    }

    #[test]
    fn a_call_is_recalled_once_and_a_retry_is_another() {
        let (done, _receiver) = Done::new();
        done.remember(&request("a", 0));
        assert!(!done.recall(&request("a", 1)) && !done.recall(&request("b", 0)));
        assert!(done.recall(&request("a", 0)));
        assert!(!done.recall(&request("a", 0)));
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let (done, _receiver) = Done::new();
        for retries in 0..=u32::try_from(REMEMBERED).unwrap() {
            done.remember(&request("a", retries));
        }
        assert!(!done.recall(&request("a", 0)) && done.recall(&request("a", 1)));
    }
}
