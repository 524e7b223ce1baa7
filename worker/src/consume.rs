//! The worker's main loop: connect, consume, work on what comes in, connect again when the connection is lost.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, info, warn};

use crate::{
    backoff::{self, Backoff},
    broker::{Arrival, Incoming, Session, SessionOptions},
    prefetch::Prefetch,
    queues::{Queue, Queues},
    settle::Disposition,
    stop::Urgency,
    task::{CancelHandle, Cancellation},
    turns::{Busy, Turn, Turns},
    work::Work,
};

/// How the worker has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// After finishing the task that it was running.
    Warm,
    /// At once: the message of a task that it was running went back to its queue.
    Cold,
}

/// Consumes from `queues` until told to stop.
///
/// No consumer has more than `most_in_hand` messages unacknowledged.
pub(crate) async fn run(
    work: &Work,
    options: &SessionOptions,
    queues: &Queues,
    most_in_hand: u16,
) -> Stopped {
    let stop = &work.stop;
    let mut prefetch = Prefetch::new(most_in_hand);
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
    while !stop.is_requested() {
        let opened = tokio::select! {
            opened = Session::open(options.clone(), Arc::clone(&work.health), Arc::clone(&work.done)) => opened,
            () = stop.requested() => break,
        };
        let problem = match opened {
            Ok(mut session) => {
                work.health.connected();
                work.metrics.connects.inc();
                match serve(work, &mut session, queues, &mut prefetch).await {
                    Ended::Stopped(stopped) => {
                        session.close().await;
                        return stopped;
                    }
                    Ended::Lost { problem, was_consuming } => {
                        if was_consuming {
                            backoff.reset();
                        }
                        problem
                    }
                }
            }
            Err(error) => error.describe(),
        };
        let wait = backoff.next(backoff::random());
        warn!(problem, retry_in = ?wait, "no connection to the broker");
        work.health.disconnected(problem);
        tokio::select! {
            () = sleep(wait) => {}
            () = stop.requested() => break,
        }
    }
    Stopped::Warm
}

/// Why a session was left.
enum Ended {
    Stopped(Stopped),
    Lost { problem: String, was_consuming: bool },
}

/// A message in hand.
struct InHand {
    arrival: Arc<Arrival>,
    cancel: Arc<CancelHandle>,
    recall: Arc<Notify>,
    since: Instant,
}

/// Work on a message; gives its key, and how long its task ran, if it did.
type Working<'a> = Pin<Box<dyn Future<Output = (u64, Option<Duration>)> + 'a>>;

/// The messages in hand, in the order in which they came.
struct Hand<'a> {
    work: &'a Work,
    messages: BTreeMap<u64, InHand>,
    working: FuturesUnordered<Working<'a>>,
    next_key: u64,
    /// Messages that aren't worked on before all others are done with.
    waiting: VecDeque<Box<Arrival>>,
}

impl<'a> Hand<'a> {
    fn new(work: &'a Work) -> Self {
        Self {
            work,
            messages: BTreeMap::new(),
            working: FuturesUnordered::new(),
            next_key: 0,
            waiting: VecDeque::new(),
        }
    }

    /// Begins with what waits: all of it if the worker holds several messages at a time, else the next if there is nothing else in hand.
    /// What came from queues that aren't consumed from any more is to be given back.
    fn begin(&mut self, session: &Session) {
        while session.prefetch() > 1 || self.messages.is_empty() {
            let next = self.waiting.pop_front_if(|arrival| session.consumes(&arrival.queue));
            let Some(arrival) = next else { return };
            self.take(arrival);
        }
    }

    fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    fn take(&mut self, arrival: Box<Arrival>) {
        let message = InHand {
            arrival: arrival.into(),
            cancel: Arc::new(CancelHandle::new()),
            recall: Arc::default(),
            since: Instant::now(),
        };
        let (work, key) = (self.work, self.next_key);
        let InHand { arrival, cancel, recall, .. } = &message;
        let (arrival, cancel, recall) = (Arc::clone(arrival), Arc::clone(cancel), Arc::clone(recall));
        self.working.push(Box::pin(async move { (key, work.process(&arrival, &cancel, &recall).await) }));
        self.messages.insert(key, message);
        self.next_key += 1;
    }

    /// Waits until the worker is done with one more message, for ever if there is none; gives how long its task ran.
    async fn done(&mut self) -> Option<Duration> {
        match self.working.next().await {
            Some((key, runtime)) => {
                self.messages.remove(&key);
                runtime
            }
            None => std::future::pending().await,
        }
    }

    /// What keeps the worker from other messages.
    fn busy(&self) -> Option<Busy> {
        let oldest = self.messages.first_key_value()?.1.since;
        Some(match self.work.executor.busy_since() {
            Some(since) => Busy::Running(since.into()),
            None => Busy::Waiting(oldest),
        })
    }

    /// The message that keeps the worker from others although nothing runs: it waits for its time, or its result for the store.
    fn blocking(&self) -> Option<&Arrival> {
        let (_, oldest) = self.messages.first_key_value()?;
        self.work.executor.busy_since().is_none().then_some(&oldest.arrival)
    }

    /// Gives back those messages that the worker hasn't begun with.
    fn give_back(&mut self, is_meant: impl Fn(&Arrival) -> bool) {
        self.waiting.retain(|arrival| {
            let goes = is_meant(arrival);
            if goes {
                arrival.settle(Disposition::Requeue, None);
            }
            !goes
        });
        for message in self.messages.values().filter(|message| is_meant(&message.arrival)) {
            message.recall.notify_one();
        }
    }

    /// Gives back all messages, also those whose tasks are running: they are run again.
    fn abandon(self) {
        for InHand { arrival, cancel, .. } in self.messages.values() {
            cancel.ask(Cancellation::Shutdown);
            arrival.settle(Disposition::Requeue, None);
        }
    }
}

async fn serve(work: &Work, session: &mut Session, queues: &Queues, prefetch: &mut Prefetch) -> Ended {
    let stop = &work.stop;
    let mut desired = queues.subscribe();
    let mut wanted = desired.borrow_and_update().clone();
    let mut consumed = wanted.clone();
    queues.hold(&consumed);
    work.health.keep(&consumed);
    for queue in &consumed {
        session.consume(queue);
    }
    let mut turns = Turns::new(consumed.iter().map(|queue| queue.name.clone()));
    let mut hand = Hand::new(work);
    let mut lost: Option<String> = None;
    let mut was_consuming = false;
    let mut draining = false;
    loop {
        hand.begin(session);
        work.activity.set_prefetch(session.prefetch());
        if hand.is_empty() {
            if let Some(problem) = lost {
                // What could not be acknowledged is remembered, the last of it too.
                session.acks().flush();
                return Ended::Lost { problem, was_consuming };
            }
            if draining && !session.is_asking() {
                return Ended::Stopped(Stopped::Warm);
            }
        }
        let busy = hand.busy();
        let turn = turns.next(busy, session.prefetch() > 1);
        let flush_at = session.acks().flush_at();
        let is_open = lost.is_none() && !draining;
        // Consuming again from a queue that is being left would bring messages among those that are to be given back.
        let is_free = is_open && !session.is_asking();
        tokio::select! {
            biased;
            () = stop.requested(), if !draining => {
                draining = true;
                work.health.draining();
                session.cancel(|_| true);
            }
            () = stop.wait_for(Urgency::Cold), if draining => {
                hand.abandon();
                return Ended::Stopped(Stopped::Cold);
            }
            runtime = hand.done() => {
                let mut ended = Some(runtime);
                while let Some(runtime) = ended {
                    runtime.into_iter().for_each(|runtime| prefetch.ran(runtime));
                    ended = hand.done().now_or_never();
                }
                let level = prefetch.level(session.prefetch());
                if is_free && turns.are_even() && level != session.prefetch() {
                    debug!(level, "holding another number of messages");
                    session.limit(level);
                }
            }
            incoming = session.next(), if lost.is_none() => {
                let mut next = Some(incoming);
                while let Some(incoming) = next {
                    match incoming {
                        Incoming::Delivery(delivery) => {
                            if delivery.redelivered {
                                prefetch.redelivered();
                            }
                            if session.is_asking() || session.consumes(&delivery.queue) {
                                hand.waiting.push_back(delivery);
                            } else {
                                // Its consumer did not end in time.
                                delivery.settle(Disposition::Requeue, None);
                            }
                        }
                        Incoming::Consuming => {
                            was_consuming = true;
                            turns.consuming(Instant::now());
                        }
                        Incoming::Answered { .. } if session.is_asking() => {}
                        Incoming::Answered { .. } => {
                            // It would come back at once.
                            let spared = hand.blocking().filter(|arrival| !draining && is_of(&wanted, arrival));
                            let spared = spared.map(|arrival| arrival.delivery_tag);
                            hand.give_back(|arrival| {
                                !session.consumes(&arrival.queue) && spared != Some(arrival.delivery_tag)
                            });
                            if is_open && wanted != consumed {
                                for queue in consumed.iter().filter(|queue| !wanted.contains(queue)) {
                                    turns.remove(&queue.name);
                                    info!(queue = queue.name, "no longer consuming");
                                }
                                for queue in wanted.iter().filter(|queue| !consumed.contains(queue)) {
                                    turns.add(&queue.name);
                                    session.consume(queue);
                                }
                                consumed.clone_from(&wanted);
                                queues.hold(&consumed);
                                work.health.keep(&consumed);
                            }
                        }
                        // No other connection is wanted any more.
                        Incoming::Lost(_) if draining => {}
                        Incoming::Lost(problem) => {
                            if !hand.is_empty() {
                                info!("the task runs on without the connection; its message will be delivered again");
                            }
                            // What waits came over the lost channel: it isn't ours any more.
                            hand.give_back(|_| true);
                            let acks = Arc::clone(session.acks());
                            tokio::spawn(async move { acks.sent().await });
                            work.health.disconnected(problem.clone());
                            lost = Some(problem);
                            break;
                        }
                    }
                    next = session.try_next();
                }
            }
            turn = due(turn), if is_free => match turn {
                Turn::Pause => {
                    session.cancel(|_| true);
                    turns.pause();
                    if session.prefetch() > 1 {
                        prefetch.fell();
                        session.limit(1);
                    }
                }
                Turn::Resume => {
                    let next = turns.resume(Instant::now());
                    if let Some(queue) = consumed.iter().find(|queue| Some(&queue.name) == next.as_ref()) {
                        session.consume(queue);
                    }
                }
            },
            () = at(flush_at) => session.acks().flush(),
            Ok(()) = desired.changed(), if is_free => {
                wanted = desired.borrow_and_update().clone();
                session.cancel(|queue| !wanted.contains(queue));
            }
        }
    }
}

fn is_of(queues: &[Queue], arrival: &Arrival) -> bool {
    queues.iter().any(|queue| *queue.name == *arrival.queue)
}

async fn due(turn: Option<(Instant, Turn)>) -> Turn {
    match turn {
        Some((at, turn)) => {
            sleep_until(at).await;
            turn
        }
        None => std::future::pending().await,
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
