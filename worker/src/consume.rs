//! The worker's main loop: connect, consume, work on one message at a time, connect again when the connection is lost.

use std::{collections::VecDeque, future::Future, pin::Pin, sync::Arc, time::Duration};

use lapin::Acker;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use crate::{
    backoff::{self, Backoff},
    broker::{Arrival, Incoming, Session, SessionOptions},
    queues::{Queue, Queues},
    stop::Urgency,
    task::{CancelHandle, Cancellation},
    turns::{Turn, Turns},
    work::{Work, give_back},
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
pub(crate) async fn run(work: &Work, options: &SessionOptions, queues: &Queues) -> Stopped {
    let stop = &work.stop;
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
    while !stop.is_requested() {
        let opened = tokio::select! {
            opened = Session::open(options.clone(), Arc::clone(&work.health)) => opened,
            () = stop.requested() => break,
        };
        let problem = match opened {
            Ok(mut session) => {
                work.health.connected();
                work.metrics.connects.inc();
                match serve(work, &mut session, queues).await {
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

/// The message that is being worked on.
struct InHand<'a> {
    work: Pin<Box<dyn Future<Output = ()> + 'a>>,
    acker: Acker,
    cancel: Arc<CancelHandle>,
    since: Instant,
}

impl<'a> InHand<'a> {
    fn begin(work: &'a Work, delivery: Box<Arrival>) -> Self {
        let cancel = Arc::new(CancelHandle::new());
        let acker = delivery.acker.clone();
        let handle = Arc::clone(&cancel);
        let work = Box::pin(async move { work.process(&delivery, &handle).await });
        Self { work, acker, cancel, since: Instant::now() }
    }
}

async fn serve(work: &Work, session: &mut Session, queues: &Queues) -> Ended {
    let stop = &work.stop;
    let mut desired = queues.subscribe();
    let mut consumed = desired.borrow_and_update().clone();
    queues.hold(&consumed);
    for queue in &consumed {
        session.consume(queue);
    }
    let mut turns = Turns::new(consumed.iter().map(|queue| queue.name.clone()));
    let mut in_hand: Option<InHand<'_>> = None;
    let mut waiting = VecDeque::new();
    let mut lost: Option<(String, bool)> = None;
    let mut draining = false;
    loop {
        if in_hand.is_none() {
            if let Some((problem, was_consuming)) = lost {
                return Ended::Lost { problem, was_consuming };
            }
            if draining {
                return Ended::Stopped(Stopped::Warm);
            }
            in_hand = waiting.pop_front().map(|delivery| InHand::begin(work, delivery));
        }
        let turn = turns.next(in_hand.as_ref().map(|in_hand| in_hand.since));
        let is_open = lost.is_none() && !draining;
        tokio::select! {
            biased;
            () = stop.requested(), if !draining => {
                draining = true;
                work.health.draining();
                release(session, &mut waiting).await;
            }
            () = stop.wait_for(Urgency::Cold), if draining => {
                if let Some(InHand { acker, cancel, .. }) = in_hand {
                    cancel.ask(Cancellation::Shutdown);
                    give_back(&acker).await;
                }
                return Ended::Stopped(Stopped::Cold);
            }
            () = finish(&mut in_hand) => in_hand = None,
            incoming = session.next(), if is_open => match incoming {
                Incoming::Delivery(delivery) => waiting.push_back(delivery),
                Incoming::Consuming => turns.consuming(Instant::now()),
                Incoming::Lost(problem) => {
                    if in_hand.is_some() {
                        info!("the task runs on without the connection; its message will be delivered again");
                    }
                    // What waits came over the lost channel: it isn't ours any more.
                    waiting.clear();
                    let was_consuming = work.health.is_consuming();
                    work.health.disconnected(problem.clone());
                    lost = Some((problem, was_consuming));
                }
            },
            turn = due(turn), if is_open => match turn {
                Turn::Pause => {
                    release(session, &mut waiting).await;
                    turns.pause();
                }
                Turn::Resume => {
                    let next = turns.resume(Instant::now());
                    if let Some(queue) = consumed.iter().find(|queue| Some(&queue.name) == next.as_ref()) {
                        session.consume(queue);
                    }
                }
            },
            Ok(()) = desired.changed(), if is_open => {
                let wanted = desired.borrow_and_update().clone();
                for queue in consumed.iter().filter(|queue| !wanted.contains(queue)) {
                    turns.remove(&queue.name);
                    session.cancel(&queue.name).await;
                    work.health.forget(&queue.name);
                    info!(queue = queue.name, "no longer consuming");
                }
                give_back_cancelled(session, &mut waiting, &wanted).await;
                for queue in wanted.iter().filter(|queue| !consumed.contains(queue)) {
                    turns.add(&queue.name);
                    session.consume(queue);
                }
                consumed = wanted;
                queues.hold(&consumed);
            }
        }
    }
}

/// Stops consuming, and gives back what isn't being worked on.
async fn release(session: &mut Session, waiting: &mut VecDeque<Box<Arrival>>) {
    session.cancel_all().await;
    while let Some(incoming) = session.try_next() {
        if let Incoming::Delivery(delivery) = incoming {
            waiting.push_back(delivery);
        }
    }
    for delivery in waiting.drain(..) {
        give_back(&delivery.acker).await;
    }
}

/// Gives back what came from queues that aren't wanted any more, before or while they were cancelled.
async fn give_back_cancelled(session: &mut Session, waiting: &mut VecDeque<Box<Arrival>>, wanted: &[Queue]) {
    let mut others = Vec::new();
    while let Some(incoming) = session.try_next() {
        match incoming {
            Incoming::Delivery(delivery) => waiting.push_back(delivery),
            other => others.push(other),
        }
    }
    for other in others {
        session.put_back(other);
    }
    for delivery in std::mem::take(waiting) {
        if wanted.iter().any(|queue| *queue.name == *delivery.queue) {
            waiting.push_back(delivery);
        } else {
            give_back(&delivery.acker).await;
        }
    }
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

/// Waits for the message in hand to be done with, or for ever if there is none.
async fn finish(in_hand: &mut Option<InHand<'_>>) {
    match in_hand {
        Some(in_hand) => in_hand.work.as_mut().await,
        None => std::future::pending().await,
    }
}
