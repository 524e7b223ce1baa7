//! The worker's main loop: connect, consume, work on one message at a time, connect again when the connection is lost.

use std::{collections::VecDeque, future::Future, pin::Pin, sync::Arc, time::Duration};

use lapin::{Acker, message::Delivery};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::{
    backoff::{self, Backoff},
    broker::{Incoming, Session, SessionOptions},
    stop::{Stop, Urgency},
    task::CancelHandle,
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
pub(crate) async fn run(
    work: Arc<Work>,
    options: SessionOptions,
    queues: Vec<String>,
    stop: Stop,
) -> Stopped {
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
                for queue in &queues {
                    session.consume(queue);
                }
                match serve(&work, &mut session, &queues, &stop).await {
                    Ended::Drained => {
                        session.close().await;
                        return Stopped::Warm;
                    }
                    Ended::Cold => {
                        session.close().await;
                        return Stopped::Cold;
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
            () = tokio::time::sleep(wait) => {}
            () = stop.requested() => break,
        }
    }
    Stopped::Warm
}

/// Why a session was left.
enum Ended {
    Drained,
    Cold,
    Lost { problem: String, was_consuming: bool },
}

/// The message that is being worked on.
struct InHand<'a> {
    work: Pin<Box<dyn Future<Output = ()> + 'a>>,
    acker: Acker,
    cancel: CancelHandle,
    since: Instant,
}

impl<'a> InHand<'a> {
    fn begin(work: &'a Work, delivery: Box<Delivery>, stop: &'a Stop) -> Self {
        let (cancel, cancelled) = CancelHandle::new();
        let acker = delivery.acker.clone();
        let work = Box::pin(async move { work.process(&delivery, cancelled, stop).await });
        Self { work, acker, cancel, since: Instant::now() }
    }
}

async fn serve(work: &Work, session: &mut Session, queues: &[String], stop: &Stop) -> Ended {
    let mut in_hand: Option<InHand<'_>> = None;
    let mut waiting = VecDeque::new();
    let mut turns = Turns::new(queues);
    let mut lost: Option<(String, bool)> = None;
    let mut draining = false;
    loop {
        if in_hand.is_none() {
            if let Some((problem, was_consuming)) = lost {
                return Ended::Lost { problem, was_consuming };
            }
            if draining {
                return Ended::Drained;
            }
            in_hand = waiting.pop_front().map(|delivery| InHand::begin(work, delivery, stop));
        }
        let turn = turns.next(in_hand.as_ref().map(|in_hand| in_hand.since));
        tokio::select! {
            biased;
            () = stop.requested(), if !draining => {
                draining = true;
                work.health.draining();
                release(session, &mut waiting).await;
            }
            () = stop.wait_for(Urgency::Cold), if draining => {
                if let Some(InHand { acker, cancel, .. }) = in_hand {
                    cancel.cancel();
                    give_back(&acker).await;
                }
                return Ended::Cold;
            }
            () = finish(&mut in_hand) => in_hand = None,
            incoming = session.next(), if lost.is_none() && !draining => match incoming {
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
            turn = due(turn), if lost.is_none() && !draining => match turn {
                Turn::Pause => {
                    release(session, &mut waiting).await;
                    turns.pause();
                }
                Turn::Resume => {
                    if let Some(queue) = turns.resume(Instant::now()) {
                        session.consume(&queue);
                    }
                }
            },
        }
    }
}

/// Stops consuming, and gives back what isn't being worked on.
async fn release(session: &mut Session, waiting: &mut VecDeque<Box<Delivery>>) {
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
