//! Telling the broker what became of messages: many with one frame, where they allow it.

use std::{
    collections::VecDeque,
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use celery_protocol::Request;
use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use lapin::{
    Channel,
    options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions},
};
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::ANSWER_TIMEOUT;
use crate::{done::Done, settle::Disposition};

/// How long an acknowledgement may wait for others while there is more in hand. If the worker dies meanwhile, so many
/// tasks more are run a second time.
const DELAY: Duration = Duration::from_millis(2);

/// When to look, at the latest, at how sending an acknowledgement went.
const LOOK: Duration = Duration::from_secs(1);

/// Acknowledgements that go out at once, whether or not more would follow.
const BATCH: usize = 16;

/// The deliveries of one channel, and which of them the broker has still to be told of.
///
/// Never on another channel: delivery tags of one mean something else on the next.
pub(crate) struct Acks {
    channel: Channel,
    open: Mutex<Open>,
    /// Where calls are noted that the broker could not be told of.
    done: Arc<Done>,
}

impl fmt::Debug for Acks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Acks").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Open {
    /// Tag of the first slot. All lower ones are done with.
    first: u64,
    /// One slot for each tag: they are consecutive, but don't arrive in order when there is more than one consumer.
    slots: VecDeque<Slot>,
    in_hand: usize,
    settled: usize,
    settled_since: Option<Instant>,
    /// What is on its way to the broker. Nobody is woken when it has left, which would cost as much as sending it: the next
    /// flush looks.
    sending: Vec<BoxFuture<'static, ()>>,
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
    tag: u64,
    call: Option<Arc<Request>>,
}

impl Acks {
    pub(crate) fn new(channel: Channel, done: Arc<Done>) -> Self {
        // The broker counts from one.
        Self { channel, open: Mutex::new(Open { first: 1, ..Open::default() }), done }
    }

    /// Whether anything can still be told.
    pub(crate) fn is_open(&self) -> bool {
        self.channel.status().connected()
    }

    /// A message has arrived.
    pub(crate) fn arrived(&self, tag: u64) {
        let mut open = self.open();
        if let Some(slot) = open.slot(tag) {
            *slot = Slot::InHand;
            open.in_hand += 1;
        }
    }

    /// The worker is done with a message: tells the broker, at once or soon. May be called on any thread; what comes second
    /// for the same message is ignored.
    pub(crate) fn settle(&self, tag: u64, disposition: Disposition, call: Option<Arc<Request>>) {
        let mut open = self.open();
        // Otherwise the broker has been told already.
        let Some(slot @ Slot::InHand) = open.slot(tag) else { return };
        let settled = Settled { tag, call };
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
    pub(crate) async fn acknowledge(&self, tag: u64) -> bool {
        let mut telling = pin!(self.channel.basic_ack(tag, BasicAckOptions::default()));
        let told = {
            let mut open = self.open();
            let Some(slot @ Slot::InHand) = open.slot(tag) else { return false };
            *slot = Slot::Gone;
            open.in_hand -= 1;
            // Polled once, it is on its way before an acknowledgement of all up to a later tag, which may come at once.
            telling.as_mut().now_or_never()
        };
        // Only the connection's end ends this: one that left after it was given up would lose a call that was never run.
        match told {
            Some(told) => told.is_ok(),
            None => telling.await.is_ok(),
        }
    }

    /// When [`Acks::flush`] is due, if it is.
    pub(crate) fn flush_at(&self) -> Option<Instant> {
        let open = self.open();
        let look = || (!open.sending.is_empty()).then(|| Instant::now() + LOOK);
        open.settled_since.map(|since| since + DELAY).or_else(look)
    }

    /// Sends what is waiting to be sent, and looks at what was.
    pub(crate) fn flush(&self) {
        self.flush_all(&mut self.open());
    }

    /// Sends what is waiting to be sent, and waits until all has left for the broker, or can't any more.
    pub(crate) async fn sent(&self) {
        let sending = {
            let mut open = self.open();
            self.flush_all(&mut open);
            std::mem::take(&mut open.sending)
        };
        if timeout(ANSWER_TIMEOUT, join_all(sending)).await.is_err() {
            warn!("the last acknowledgements could not be sent");
        }
    }

    fn flush_all(&self, open: &mut Open) {
        open.sending.retain_mut(|telling| telling.now_or_never().is_none());
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
        let Some(&Settled { tag, .. }) = batch.last() else { return };
        let (channel, done) = (self.channel.clone(), Arc::clone(&self.done));
        let mut telling = Box::pin(async move {
            let told = match disposition {
                Disposition::Ack => {
                    channel.basic_ack(tag, BasicAckOptions { multiple: batch.len() > 1 }).await
                }
                Disposition::Reject => channel.basic_reject(tag, BasicRejectOptions { requeue: false }).await,
                Disposition::Requeue => {
                    channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await
                }
                Disposition::Nothing => return,
            };
            match (told, disposition) {
                (Ok(()), Disposition::Requeue) => debug!("gave a message back to its queue"),
                (Ok(()), _) => {}
                (Err(error), Disposition::Requeue) => {
                    warn!(%error, "the broker takes a message back when the connection ends");
                }
                (Err(error), _) => {
                    for Settled { call, .. } in &batch {
                        let id = call.as_ref().map(|call| &call.id);
                        warn!(id, %error, "not acknowledged: the broker will deliver the message again");
                        if let Some(call) = call {
                            done.remember(call, disposition);
                        }
                    }
                }
            }
        });
        // Polled once, it is on its way; the rest is to know how that went.
        if telling.as_mut().now_or_never().is_none() {
            open.sending.push(telling);
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
