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

use crate::settle::Disposition;

/// How many are remembered: several times what a worker holds when it loses a connection.
const REMEMBERED: usize = 256;

/// The runs that were done with: a retry, and what replaces a call, has the id of that call.
#[derive(Debug)]
pub(crate) struct Done {
    runs: Mutex<VecDeque<(RunKey, Disposition)>>,
    announce: mpsc::UnboundedSender<RunKey>,
}

impl Done {
    /// No calls yet. Those that are remembered also come out of the receiver.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<RunKey>) {
        let (announce, receiver) = mpsc::unbounded_channel();
        (Self { runs: Mutex::default(), announce }, receiver)
    }

    /// The broker should have been told this of the call, but its message will be delivered again.
    pub(crate) fn remember(&self, request: &Request, disposition: Disposition) {
        let run = RunKey::of(request);
        if disposition == Disposition::Ack {
            // Without a receiver there is nobody to tell.
            let _ = self.announce.send(run.clone());
        }
        let mut runs = self.runs();
        runs.push_back((run, disposition));
        if runs.len() > REMEMBERED {
            runs.pop_front();
        }
    }

    /// What the broker is to be told of a message that is delivered again, if its call is done with. It is forgotten then.
    pub(crate) fn recall(&self, request: &Request) -> Option<Disposition> {
        let run = RunKey::of(request);
        let mut runs = self.runs();
        let known = runs.iter().position(|(known, _)| *known == run)?;
        runs.remove(known).map(|(_, disposition)| disposition)
    }

    fn runs(&self) -> MutexGuard<'_, VecDeque<(RunKey, Disposition)>> {
        // Runs are whole or not there, so a panic elsewhere leaves nothing that could mislead.
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn a_call_is_recalled_once_and_a_retry_and_what_replaces_it_are_others() {
        let (done, _receiver) = Done::new();
        done.remember(&request("a", 0), Disposition::Ack);
        let replacement = Request { replaced_task_nesting: 1, ..request("a", 0) };
        for other in [request("a", 1), request("b", 0), replacement] {
            assert_eq!(done.recall(&other), None);
        }
        assert_eq!(done.recall(&request("a", 0)), Some(Disposition::Ack));
        assert_eq!(done.recall(&request("a", 0)), None);
    }

    #[test]
    fn what_was_rejected_is_rejected_again_and_only_here() {
        let (done, mut receiver) = Done::new();
        done.remember(&request("a", 0), Disposition::Reject);
        done.remember(&request("b", 0), Disposition::Ack);
        assert_eq!(done.recall(&request("a", 0)), Some(Disposition::Reject));
        // Others would acknowledge it.
        assert_eq!(receiver.try_recv().unwrap(), RunKey::of(&request("b", 0)));
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let (done, _receiver) = Done::new();
        for retries in 0..=u32::try_from(REMEMBERED).unwrap() {
            done.remember(&request("a", retries), Disposition::Ack);
        }
        assert_eq!(done.recall(&request("a", 0)), None);
        assert!(done.recall(&request("a", 1)).is_some());
    }
}
