//! Reads the length of every queue, every second: passive declares, pipelined over one channel.
//!
//! This asks the queue process itself, so the number is fresh, and needs no management plugin. The price: a missing queue closes
//! the channel and fails whatever was asked after it, and one that hangs holds up the channel. Answers come in the order of
//! the questions, so the first one unanswered is always the culprit; it is set aside, and the rest is asked again.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use celery_client::amqp::short;
use celery_client::queue::reply_code;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::connection::{Failure, Lost, answered};
use super::reading::{Answer, SETTLE};
use super::state::Shared;
use crate::metrics::Metrics;

/// Time between two readings of all queues.
const PERIOD: Duration = Duration::from_secs(1);

/// Questions under way at a time. More than this gains nothing (measured: 47,000 queues a second with 1,000 under way).
const WINDOW: usize = 500;

/// Longest wait for the next answer. A queue whose leader is gone is answered after 250 ms at the latest.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Channels that may be lost in one reading of all queues; what is left then is read the next time.
const MAX_INTERRUPTIONS: usize = 50;

/// Hanging queues that are tried again in one reading.
const MAX_SUSPECTS: usize = 4;

/// Reads queues until the connection is lost.
pub(super) async fn run(connection: &Connection, shared: &Shared, metrics: &Metrics) -> Lost {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut poller = Poller { connection, channel: None, suspects: HashSet::new(), silences: 0 };
    let mut growing = false;
    loop {
        let all = tokio::select! {
            biased;
            _ = ticks.tick() => true,
            () = sleep(SETTLE), if growing => false,
        };
        let queues = shared.queues_to_read(!all);
        let started = Instant::now();
        let lengths = match poller.read(queues, shared, metrics).await {
            Ok(lengths) => lengths,
            Err(lost) => return lost,
        };
        if all && !lengths.is_empty() {
            metrics.broker_poll_duration.observe(started.elapsed().as_secs_f64());
        }
        growing = shared.read(lengths, Instant::now());
    }
}

struct Poller<'a> {
    connection: &'a Connection,
    channel: Option<Channel>,
    /// Queues that didn't answer: they are asked one at a time, on a channel of their own.
    suspects: HashSet<String>,
    /// How often in a row no queue at all has answered.
    silences: u32,
}

/// Why reading a row of queues ended before its end.
enum Interruption {
    /// The broker refused a question.
    Refused(lapin::Error),
    /// No answer.
    Silence,
}

type Lengths = Vec<Answer>;

impl Poller<'_> {
    /// Reads these queues: name, messages ready and time to the answer of each one that could be read.
    async fn read(
        &mut self,
        queues: Vec<String>,
        shared: &Shared,
        metrics: &Metrics,
    ) -> Result<Lengths, Lost> {
        let mut lengths = Vec::with_capacity(queues.len());
        let suspects: Vec<String> = queues
            .iter()
            .filter(|queue| self.suspects.contains(*queue))
            .take(MAX_SUSPECTS)
            .cloned()
            .collect();
        let mut rest: Vec<String> =
            queues.into_iter().filter(|queue| !self.suspects.contains(queue)).collect();
        let mut interruptions = 0;
        while !rest.is_empty() && interruptions < MAX_INTERRUPTIONS {
            let channel = self.channel().await?;
            let row = &rest[..rest.len().min(WINDOW)];
            let (read, interruption) = read_row(&channel, row).await;
            let answers = read.len();
            lengths.extend(read);
            if answers > 0 {
                self.silences = 0;
            }
            let Some(interruption) = interruption else {
                rest.drain(..answers);
                continue;
            };
            interruptions += 1;
            self.channel = None;
            let culprit = rest.drain(..=answers).next_back().unwrap_or_default();
            self.set_aside(culprit, interruption, shared, metrics).await?;
        }
        for suspect in suspects {
            self.try_suspect(suspect, &mut lengths, shared, metrics).await?;
        }
        Ok(lengths)
    }

    async fn channel(&mut self) -> Result<Channel, Lost> {
        if let Some(channel) = self.channel.as_ref().filter(|channel| channel.status().connected()) {
            return Ok(channel.clone());
        }
        let channel = open(self.connection).await?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }

    async fn set_aside(
        &mut self,
        queue: String,
        interruption: Interruption,
        shared: &Shared,
        metrics: &Metrics,
    ) -> Result<(), Lost> {
        match interruption {
            Interruption::Refused(error) if !self.connection.status().connected() => Err(error.into()),
            Interruption::Refused(error) => {
                metrics.broker_errors.with_label_values(&["QueueNotReadable"]).inc();
                if reply_code(&error) == Some(404) {
                    tracing::info!(queue, "queue is missing: declaring it anew");
                    shared.missing(&queue);
                } else {
                    tracing::warn!(queue, %error, "queue can't be read");
                    self.suspects.insert(queue);
                }
                Ok(())
            }
            Interruption::Silence => {
                metrics.broker_errors.with_label_values(&["QueueSilent"]).inc();
                tracing::warn!(queue, "queue doesn't answer");
                self.suspects.insert(queue);
                self.silences += 1;
                // One queue may hang; if nothing answers, the connection does.
                if self.silences > 2 { Err(Lost(format!("no answer in {ANSWER_TIMEOUT:?}"))) } else { Ok(()) }
            }
        }
    }

    /// Asks for a queue that has hung or was refused, at nobody else's risk.
    async fn try_suspect(
        &mut self,
        queue: String,
        lengths: &mut Lengths,
        shared: &Shared,
        metrics: &Metrics,
    ) -> Result<(), Lost> {
        let channel = open(self.connection).await?;
        let (read, interruption) = read_row(&channel, std::slice::from_ref(&queue)).await;
        lengths.extend(read);
        match interruption {
            None => {
                tracing::info!(queue, "queue answers again");
                self.suspects.remove(&queue);
                Ok(())
            }
            Some(Interruption::Refused(error)) if reply_code(&error) == Some(404) => {
                self.suspects.remove(&queue);
                self.set_aside(queue, Interruption::Refused(error), shared, metrics).await
            }
            Some(_) => Ok(()),
        }
    }
}

/// Asks for the queues of a row; the answers up to the first one that is missing.
async fn read_row(channel: &Channel, row: &[String]) -> (Lengths, Option<Interruption>) {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let mut answers: FuturesOrdered<_> =
        row.iter().map(|queue| channel.queue_declare(short(queue), passive, FieldTable::default())).collect();
    let mut lengths = Vec::with_capacity(row.len());
    let mut last = Instant::now();
    for queue in row {
        match timeout(ANSWER_TIMEOUT, answers.next()).await {
            Ok(Some(Ok(answer))) => {
                let now = Instant::now();
                // Answers come one after the other, so the time since the one before is what this queue took.
                lengths.push(Answer {
                    queue: queue.clone(),
                    ready: answer.message_count().into(),
                    consumers: answer.consumer_count(),
                    took: now.duration_since(last),
                });
                last = now;
            }
            Ok(Some(Err(error))) => return (lengths, Some(Interruption::Refused(error))),
            Ok(None) | Err(_) => return (lengths, Some(Interruption::Silence)),
        }
    }
    (lengths, None)
}

async fn open(connection: &Connection) -> Result<Channel, Lost> {
    match answered(connection, "open a channel", connection.create_channel()).await {
        Ok(channel) => Ok(channel),
        Err(Failure::Lost(lost)) => Err(lost),
        Err(Failure::Refused(error)) => Err(error.into()),
    }
}
