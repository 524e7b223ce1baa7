//! Telling the broker what became of messages: many with one frame, where they allow it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use celery_protocol::Request;
use futures_util::FutureExt;
use lapin::{
    Acker,
    options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions},
};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};
use tracing::{debug, warn};

use super::{ANSWER_TIMEOUT, answer};
use crate::{done::Done, settle::Disposition};

/// How long an acknowledgement may wait for others while there is more in hand. If the worker dies meanwhile, so many
/// tasks more are run a second time.
const DELAY: Duration = Duration::from_millis(2);

/// Acknowledgements that go out at once, whether or not more would follow.
const BATCH: usize = 16;

/// The deliveries of one channel, and which of them the broker has still to be told of.
///
/// Never on another channel: delivery tags of one mean something else on the next.
#[derive(Debug)]
pub(crate) struct Acks {
    open: Mutex<Open>,
    /// Where calls are noted that the broker could not be told of.
    done: Arc<Done>,
}

#[derive(Debug, Default)]
struct Open {
    /// Tag of the first slot. All lower ones are done with.
    first: u64,
    /// One slot for each tag: they are consecutive, but don't arrive in order when there is more than one consumer.
    slots: VecDeque<Slot>,
    in_hand: usize,
    settled: usize,
    settled_since: Option<Instant>,
    sending: JoinSet<()>,
}

#[derive(Debug)]
enum Slot {
    Unknown,
    InHand,
    Settled(Box<Settled>),
    Gone,
}

/// A message that is done with, and the call in it.
#[derive(Debug)]
struct Settled {
    acker: Acker,
    call: Option<Arc<Request>>,
}

impl Acks {
    pub(crate) fn new(done: Arc<Done>) -> Self {
        // The broker counts from one.
        Self { open: Mutex::new(Open { first: 1, ..Open::default() }), done }
    }

    /// A message has arrived.
    pub(crate) fn arrived(&self, tag: u64) {
        let mut open = self.open();
        if let Some(slot) = open.slot(tag) {
            *slot = Slot::InHand;
            open.in_hand += 1;
        }
    }

    /// The worker is done with a message: tells the broker, at once or soon.
    pub(crate) fn settle(
        &self,
        tag: u64,
        acker: &Acker,
        disposition: Disposition,
        call: Option<Arc<Request>>,
    ) {
        let mut open = self.open();
        // Otherwise the broker has been told already.
        let Some(slot @ Slot::InHand) = open.slot(tag) else { return };
        let settled = Settled { acker: acker.clone(), call };
        if disposition == Disposition::Ack {
            *slot = Slot::Settled(Box::new(settled));
            open.settled += 1;
            open.settled_since.get_or_insert_with(Instant::now);
        } else {
            *slot = Slot::Gone;
            self.tell(&mut open, vec![settled], disposition);
        }
        open.in_hand -= 1;
        if open.in_hand == 0 || open.settled >= BATCH {
            self.flush_all(&mut open);
        }
    }

    /// Acknowledges a message by itself, and waits until that has left for the broker; false if it can't be sent.
    pub(crate) async fn acknowledge(&self, tag: u64, acker: &Acker) -> bool {
        {
            let mut open = self.open();
            let Some(slot @ Slot::InHand) = open.slot(tag) else { return false };
            *slot = Slot::Gone;
            open.in_hand -= 1;
        }
        answer("acknowledge", acker.ack(BasicAckOptions::default())).await.unwrap_or(false)
    }

    /// When [`Acks::flush`] is due, if it is.
    pub(crate) fn flush_at(&self) -> Option<Instant> {
        self.open().settled_since.map(|since| since + DELAY)
    }

    /// Sends what is waiting to be sent.
    pub(crate) fn flush(&self) {
        self.flush_all(&mut self.open());
    }

    /// Waits until all that was sent has left for the broker.
    pub(crate) async fn sent(&self) {
        let mut sending = std::mem::take(&mut self.open().sending);
        if timeout(ANSWER_TIMEOUT, async { while sending.join_next().await.is_some() {} }).await.is_err() {
            warn!("the last acknowledgements could not be sent");
        }
    }

    fn flush_all(&self, open: &mut Open) {
        open.settled_since = None;
        open.settled = 0;
        let batch = open.take_lowest();
        if !batch.is_empty() {
            self.tell(open, batch, Disposition::Ack);
        }
        for settled in open.take_others() {
            self.tell(open, vec![settled], Disposition::Ack);
        }
    }

    /// Tells the broker about a message, or acknowledges it together with all before it.
    fn tell(&self, open: &mut Open, batch: Vec<Settled>, disposition: Disposition) {
        let done = Arc::clone(&self.done);
        let mut telling = Box::pin(async move {
            let Some(Settled { acker, .. }) = batch.last() else { return };
            let is_told = match disposition {
                Disposition::Ack => {
                    answer("acknowledge", acker.ack(BasicAckOptions { multiple: batch.len() > 1 })).await
                }
                Disposition::Reject => {
                    answer("reject", acker.reject(BasicRejectOptions { requeue: false })).await
                }
                Disposition::Requeue => {
                    let requeue = BasicNackOptions { multiple: false, requeue: true };
                    answer("give a message back", acker.nack(requeue)).await
                }
                Disposition::Nothing => return,
            };
            let is_told = is_told.unwrap_or_else(|error| {
                debug!(error = error.describe(), "the broker can't be told");
                false
            });
            match (is_told, disposition) {
                (true, Disposition::Requeue) => debug!("gave a message back to its queue"),
                (true, _) => {}
                (false, Disposition::Requeue) => {
                    warn!("the broker takes a message back when the connection ends");
                }
                (false, _) => {
                    for Settled { call, .. } in &batch {
                        let id = call.as_ref().map(|call| &call.id);
                        warn!(id, "not acknowledged: the broker will deliver the message again");
                        if let Some(call) = call {
                            done.remember(call);
                        }
                    }
                }
            }
        });
        // Polled once, it is on its way; the rest is to know how that went.
        if telling.as_mut().now_or_never().is_none() {
            while open.sending.try_join_next().is_some() {}
            open.sending.spawn(telling);
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        // Each change is complete by itself, so a panic elsewhere leaves nothing half done.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn slot(&mut self, tag: u64) -> Option<&mut Slot> {
        let index = usize::try_from(tag.checked_sub(self.first)?).ok()?;
        while self.slots.len() <= index {
            self.slots.push_back(Slot::Unknown);
        }
        self.slots.get_mut(index)
    }

    /// Takes out what can be acknowledged together: all up to the first message that isn't done with.
    fn take_lowest(&mut self) -> Vec<Settled> {
        let mut batch = Vec::new();
        while let Some(Slot::Settled(_) | Slot::Gone) = self.slots.front() {
            self.first += 1;
            if let Some(Slot::Settled(settled)) = self.slots.pop_front() {
                batch.push(*settled);
            }
        }
        batch
    }

    /// Takes out what is done with beyond that.
    fn take_others(&mut self) -> Vec<Settled> {
        let is_settled = |slot: &&mut Slot| matches!(slot, Slot::Settled(_));
        let slots = self.slots.iter_mut().filter(is_settled);
        slots
            .filter_map(|slot| match std::mem::replace(slot, Slot::Gone) {
                Slot::Settled(settled) => Some(*settled),
                _ => None,
            })
            .collect()
    }
}
