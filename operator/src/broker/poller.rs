//! Reads the length of every queue, every second: passive declares, pipelined over one channel. Dead letter queues, on which no decision
//! rests, have their turn every five seconds: they are half of all queues.
//!
//! This asks the queue process itself, so the number is fresh, and needs no management plugin. The price: a missing queue closes
//! the channel and fails whatever was asked after it, and one that hangs holds up the channel. Answers come in the order of
//! the questions, so the first one unanswered is always the culprit; it is set aside, and the rest is asked again. What was set aside is
//! asked on a channel of its own, while the others are read as ever.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use celery_client::amqp::short;
use celery_client::queue::reply_code;
use futures_util::StreamExt as _;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::connection::{Failure, Lost, answered};
use super::reading::{Answer, SETTLE};
use super::state::{Shared, Which};
use crate::metrics::Metrics;

/// Time between two readings of all queues.
const PERIOD: Duration = Duration::from_secs(1);

/// Dead letter queues are read with every so many readings of the others.
const DEAD_LETTERS_EVERY: u32 = 5;

/// Questions under way at a time. More than this gains nothing (measured: 47,000 queues a second with 1,000 under way).
const WINDOW: usize = 500;

/// Longest wait for the next answer. A queue whose leader is gone is answered after 250 ms at the latest.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Channels that may be lost in one reading of all queues; what is left then is read the next time.
const MAX_INTERRUPTIONS: usize = 50;

/// Queues that were set aside and are asked at a time.
const MAX_TRIALS: usize = 20;

/// Longest wait for one of them; another one has its turn then.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads queues until the connection is lost.
pub(super) async fn run(connection: &Connection, shared: &Shared, metrics: &Metrics) -> Lost {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut poller = Poller { connection, channel: None, suspects: Suspects::default(), silences: 0 };
    let mut trials = FuturesUnordered::new();
    let mut growing = false;
    let mut rounds = 0_u32;
    loop {
        let which = tokio::select! {
            biased;
            Some(trial) = trials.next() => {
                match poller.tried(trial, shared, metrics) {
                    Ok(lengths) if lengths.is_empty() => {}
                    Ok(lengths) => growing = shared.read(lengths, Instant::now()),
                    Err(lost) => return lost,
                }
                continue;
            }
            _ = ticks.tick() => {
                rounds = rounds.wrapping_add(1);
                if rounds % DEAD_LETTERS_EVERY == 1 { Which::All } else { Which::Consumed }
            }
            () = sleep(SETTLE), if growing => Which::Growing,
        };
        let queues = shared.queues_to_read(which);
        let all = which != Which::Growing;
        if all && !poller.suspects.waiting.is_empty() {
            let wanted = shared.queues_to_read(Which::All);
            let turn = poller.suspects.turn(&wanted, MAX_TRIALS - trials.len());
            trials.extend(turn.into_iter().map(|queue| ask_alone(connection, queue)));
        }
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
    suspects: Suspects,
    /// How often in a row no queue at all has answered.
    silences: u32,
}

/// Queues that didn't answer or were refused.
#[derive(Debug, Default)]
struct Suspects {
    all: HashSet<String>,
    /// Those that aren't being asked just now, in turn.
    waiting: VecDeque<String>,
}

impl Suspects {
    fn add(&mut self, queue: String) {
        if self.all.insert(queue.clone()) {
            self.waiting.push_back(queue);
        }
    }

    /// Those whose turn it is to be asked. Of those that aren't `wanted` any more (in order) nothing is kept.
    fn turn(&mut self, wanted: &[String], at_most: usize) -> Vec<String> {
        let mut turn = Vec::new();
        while turn.len() < at_most
            && let Some(queue) = self.waiting.pop_front()
        {
            if wanted.binary_search(&queue).is_ok() {
                turn.push(queue);
            } else {
                self.all.remove(&queue);
            }
        }
        turn
    }

    /// One that was asked gave no answer.
    fn asked_in_vain(&mut self, queue: String) {
        self.waiting.push_back(queue);
    }

    /// One that was asked is well again, or is not there.
    fn clear(&mut self, queue: &str) {
        self.all.remove(queue);
    }
}

/// Why reading a row of queues ended before its end.
enum Interruption {
    /// The broker refused a question.
    Refused(lapin::Error),
    /// No answer.
    Silence,
}

type Lengths = Vec<Answer>;

/// A queue that was asked alone, and what came of it.
type Trial = (String, Result<(Lengths, Option<Interruption>), Lost>);

impl Poller<'_> {
    /// Reads these queues: name, messages ready and time to the answer of each one that could be read.
    async fn read(
        &mut self,
        queues: Vec<String>,
        shared: &Shared,
        metrics: &Metrics,
    ) -> Result<Lengths, Lost> {
        let mut lengths = Vec::with_capacity(queues.len());
        let mut rest: Vec<String> =
            queues.into_iter().filter(|queue| !self.suspects.all.contains(queue)).collect();
        let mut interruptions = 0;
        while !rest.is_empty() && interruptions < MAX_INTERRUPTIONS {
            let channel = self.channel().await?;
            let row = &rest[..rest.len().min(WINDOW)];
            let (read, interruption) = read_row(&channel, row, ANSWER_TIMEOUT).await;
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
            self.set_aside(culprit, interruption, shared, metrics)?;
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

    fn set_aside(
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
                    self.suspects.add(queue);
                }
                Ok(())
            }
            Interruption::Silence => {
                metrics.broker_errors.with_label_values(&["QueueSilent"]).inc();
                tracing::warn!(queue, "queue doesn't answer");
                self.suspects.add(queue);
                self.silences += 1;
                // One queue may hang; if nothing answers, the connection does.
                if self.silences > 2 { Err(Lost(format!("no answer in {ANSWER_TIMEOUT:?}"))) } else { Ok(()) }
            }
        }
    }

    /// Takes in what came of asking a queue alone.
    fn tried(&mut self, (queue, read): Trial, shared: &Shared, metrics: &Metrics) -> Result<Lengths, Lost> {
        let (lengths, interruption) = read?;
        match interruption {
            None => {
                tracing::info!(queue, "queue answers again");
                self.suspects.clear(&queue);
            }
            Some(Interruption::Refused(error)) if reply_code(&error) == Some(404) => {
                self.suspects.clear(&queue);
                self.set_aside(queue, Interruption::Refused(error), shared, metrics)?;
            }
            Some(_) => self.suspects.asked_in_vain(queue),
        }
        Ok(lengths)
    }
}

/// Asks for a queue that has hung or was refused, at nobody else's risk.
async fn ask_alone(connection: &Connection, queue: String) -> Trial {
    let read = match open(connection).await {
        Ok(channel) => Ok(read_row(&channel, std::slice::from_ref(&queue), TRIAL_TIMEOUT).await),
        Err(lost) => Err(lost),
    };
    (queue, read)
}

/// Asks for the queues of a row; the answers up to the first one that doesn't come within `patience` after the one before.
async fn read_row(channel: &Channel, row: &[String], patience: Duration) -> (Lengths, Option<Interruption>) {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let mut answers: FuturesOrdered<_> =
        row.iter().map(|queue| channel.queue_declare(short(queue), passive, FieldTable::default())).collect();
    let mut lengths = Vec::with_capacity(row.len());
    let mut last = Instant::now();
    for queue in row {
        match timeout(patience, answers.next()).await {
            Ok(Some(Ok(answer))) => {
                let now = Instant::now();
                // Answers come one after the other, so the time since the one before is what this queue took.
                lengths.push(Answer {
                    queue: queue.clone(),
                    ready: answer.message_count().into(),
                    consumers: answer.consumer_count(),
                    took: now.duration_since(last),
                    at: now,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn queues_that_hang_have_their_turn_one_after_the_other() {
        let mut suspects = Suspects::default();
        names(&["a", "b", "c", "b"]).into_iter().for_each(|queue| suspects.add(queue));
        let wanted = names(&["a", "b", "c", "d"]);
        assert_eq!(suspects.turn(&wanted, 2), ["a", "b"]);
        suspects.asked_in_vain("a".to_owned());
        assert_eq!(suspects.turn(&wanted, 2), ["c", "a"], "b is being asked");
        suspects.clear("b");
        assert_eq!(suspects.turn(&wanted, 2), [""; 0]);
        assert_eq!(suspects.all.len(), 2);
    }

    #[test]
    fn a_queue_that_nobody_wants_to_know_of_is_not_asked() {
        let mut suspects = Suspects::default();
        names(&["a", "b"]).into_iter().for_each(|queue| suspects.add(queue));
        assert_eq!(suspects.turn(&names(&["b"]), 2), ["b"]);
        assert!(!suspects.all.contains("a"));
    }
}
