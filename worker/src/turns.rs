//! Sharing one worker among several queues.
//!
//! Each queue has a consumer, and each consumer may bring a message while a task of another queue runs. A message must
//! not wait behind a long task, though, when another worker could take it. So a worker with several queues stops
//! consuming from all of them once a task turns out to be long, and afterwards resumes one queue after the other, those
//! first that have waited longest, until one brings a message. A worker that holds several messages, whatever queues they
//! are of, does the same.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::prefetch::PATIENCE;

/// A task is long after this. Shorter ones are over sooner than a message could go to another worker and be run there.
const LONG: Duration = Duration::from_millis(100);

/// How long after resuming a queue its first message comes, if it has any.
const FIRST_MESSAGE: Duration = Duration::from_millis(5);

/// How long resuming a queue may take before the next is tried: it may not exist at present.
const RESUME: Duration = Duration::from_secs(1);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Stop consuming.
    Pause,
    /// Consume from one more queue.
    Resume,
}

/// What keeps the worker from other messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Busy {
    /// A task has been running since.
    Running(Instant),
    /// A message has been in hand since: it waits for its time, or its result for the store.
    Waiting(Instant),
}

/// Whose turn it is.
#[derive(Debug)]
pub(crate) struct Turns {
    /// Queues that are consumed from, the longest so first.
    active: Vec<String>,
    /// Queues that are not, the longest so first.
    paused: VecDeque<String>,
    resume_at: Option<Instant>,
}

impl Turns {
    /// All of these queues are consumed from.
    pub(crate) fn new(queues: impl IntoIterator<Item = String>) -> Self {
        Self { active: queues.into_iter().collect(), paused: VecDeque::new(), resume_at: None }
    }

    /// One more queue is consumed from.
    pub(crate) fn add(&mut self, queue: &str) {
        self.active.push(queue.to_owned());
    }

    /// A queue is not to be consumed from any more.
    pub(crate) fn remove(&mut self, queue: &str) {
        self.active.retain(|known| known != queue);
        self.paused.retain(|known| known != queue);
    }

    /// What is to be done next and when, for a worker that is busy or not and may hold several messages of one queue or
    /// not.
    pub(crate) fn next(&self, busy: Option<Busy>, holds_several: bool) -> Option<(Instant, Turn)> {
        let has_several = self.active.len() + self.paused.len() > 1;
        match busy {
            Some(_) if self.active.is_empty() => None,
            Some(Busy::Running(since)) if holds_several => Some((since + PATIENCE, Turn::Pause)),
            Some(Busy::Running(since) | Busy::Waiting(since)) if has_several || holds_several => {
                Some((since + LONG, Turn::Pause))
            }
            None if !self.paused.is_empty() => {
                Some((self.resume_at.unwrap_or_else(Instant::now), Turn::Resume))
            }
            _ => None,
        }
    }

    /// Whether all queues are consumed from.
    pub(crate) fn are_even(&self) -> bool {
        self.paused.is_empty()
    }

    /// All queues are paused now.
    pub(crate) fn pause(&mut self) {
        self.paused.extend(self.active.drain(..));
        self.resume_at = None;
    }

    /// The queue to resume at `now`.
    pub(crate) fn resume(&mut self, now: Instant) -> Option<String> {
        self.resume_at = Some(now + RESUME);
        let queue = self.paused.pop_front()?;
        self.active.push(queue.clone());
        Some(queue)
    }

    /// A queue is consumed from since `now`: unless a message of it comes first, the next may follow.
    pub(crate) fn consuming(&mut self, now: Instant) {
        self.resume_at = Some(now + FIRST_MESSAGE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(queues: &[&str]) -> Turns {
        Turns::new(queues.iter().map(|queue| (*queue).to_owned()))
    }

    #[test]
    fn a_single_queue_is_never_paused() {
        let turns = turns(&["red"]);
        assert_eq!(turns.next(Some(Busy::Running(Instant::now())), false), None);
        assert_eq!(turns.next(None, false), None);
    }

    #[test]
    fn several_queues_are_paused_once_a_task_is_long() {
        let now = Instant::now();
        let mut turns = turns(&["red", "blue"]);
        assert_eq!(turns.next(Some(Busy::Running(now)), false), Some((now + LONG, Turn::Pause)));
        turns.pause();
        assert_eq!(turns.next(Some(Busy::Running(now)), false), None);
    }

    #[test]
    fn a_worker_that_holds_several_messages_has_less_patience() {
        let now = Instant::now();
        let mut turns = turns(&["red"]);
        assert_eq!(turns.next(Some(Busy::Running(now)), true), Some((now + PATIENCE, Turn::Pause)));
        assert_eq!(turns.next(Some(Busy::Waiting(now)), true), Some((now + LONG, Turn::Pause)));
        turns.pause();
        assert_eq!(turns.next(Some(Busy::Running(now)), true), None);
        assert!(matches!(turns.next(None, true), Some((_, Turn::Resume))));
    }

    #[test]
    fn queues_are_resumed_in_turn_while_none_brings_a_message() {
        let now = Instant::now();
        let mut turns = turns(&["red", "blue"]);
        turns.pause();
        assert!(matches!(turns.next(None, false), Some((_, Turn::Resume))));
        assert_eq!(turns.resume(now).as_deref(), Some("red"));
        assert_eq!(turns.next(None, false), Some((now + RESUME, Turn::Resume)));
        turns.consuming(now);
        assert_eq!(turns.next(None, false), Some((now + FIRST_MESSAGE, Turn::Resume)));
        assert_eq!(turns.resume(now).as_deref(), Some("blue"));
        assert_eq!(turns.next(None, false), None);
    }

    #[test]
    fn a_queue_that_had_its_turn_goes_last() {
        let now = Instant::now();
        let mut turns = turns(&["red", "blue"]);
        turns.pause();
        assert_eq!(turns.resume(now).as_deref(), Some("red"));
        // Red has brought a long task.
        assert_eq!(turns.next(Some(Busy::Running(now)), false), Some((now + LONG, Turn::Pause)));
        turns.pause();
        assert_eq!(turns.resume(now).as_deref(), Some("blue"));
    }
}
