//! Declares what TaskQueues need on the broker: queues, dead letter queues, exchanges and bindings.
//!
//! Declaring what is there already changes nothing, so everything is simply declared again now and then; that is how a binding or a
//! dead letter queue that somebody deleted comes back. Nothing is deleted but what goes with its TaskQueue, see [`super::removals`].

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

use celery_client::amqp::short;
use celery_client::delays;
use celery_client::queue::reply_code;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Channel, Connection, ErrorKind, ExchangeKind};
use tokio::time::{sleep, timeout};

use super::connection::{Failure, Lost, answered, answered_within};
use super::state::{Declaration, Due, Shared};
use crate::api::v1alpha1::{ExchangeType, QueueType};
use crate::metrics::Metrics;
use crate::plan::reason::Reason;
use crate::plan::status::Problem;
use crate::plan::topology::{Argument, Binding, Queue, Topology};

/// What stands is declared again after this long.
const REPEAT: Duration = Duration::from_secs(60);

/// What failed is tried again after this long; a user waits in front of the condition.
const RETRY: Duration = Duration::from_secs(10);

/// TaskQueues declared at once. More of them gain nothing (measured), and hold up longer what comes after.
const AT_A_TIME: usize = 100;

/// Longest wait for the delay queues: 28 quorum queues, once in a virtual host, which takes a few seconds.
const DELAYS: Duration = Duration::from_secs(60);

/// Longest wait for the answer to one declaration. Where queues and policies are written in a hundred virtual hosts at once, RabbitMQ was seen
/// to take more than five seconds; on a new connection all would begin anew. That a broker is silent, the readings notice.
const DECLARED: Duration = Duration::from_secs(60);

/// TaskQueues declared over one channel. Lapin remembers every binding that was ever made over a channel, those that are made again each
/// minute too, until it is closed.
const PER_CHANNEL: usize = 1000;

/// Longest wait before something that was put off comes due.
const PAUSE: Duration = Duration::from_secs(1);

/// Declares until the connection is lost.
pub(super) async fn run(connection: &Connection, shared: &Shared, metrics: &Metrics) -> Lost {
    let mut declarer = Declarer { connection, channel: None, delays: None };
    let mut declared = 0;
    loop {
        // In one row with the declarations, so that nothing is declared again that was just deleted.
        if let Some((task_queue, removal)) = shared.due_removal() {
            match declarer.remove(&removal).await {
                Ok(removed) => shared.removed(&task_queue, &removal, removed),
                Err(lost) => return lost,
            }
            continue;
        }
        let all_due = shared.due_declarations(Instant::now(), AT_A_TIME);
        if all_due.is_empty() {
            tokio::select! {
                () = shared.declarations.notified() => {}
                () = sleep(PAUSE) => {}
            }
            continue;
        }
        declared += all_due.len();
        if declared > PER_CHANNEL {
            declarer.channel = None;
            declared = all_due.len();
        }
        // All at once, as nearly always nothing is refused. If something is, one after the other, to see what.
        let all_stand = match declarer.declare_at_once(&all_due).await {
            Ok(all_stand) => all_stand,
            Err(lost) => return lost,
        };
        declarer.declare_delays(&all_due).await;
        if all_stand {
            let stands = |due| (due, Declaration::Done, after(REPEAT));
            shared.declared(all_due.into_iter().map(stands).collect(), Instant::now());
            continue;
        }
        for due in all_due {
            let (declaration, wait) = match declarer.declare(&due.topology).await {
                Ok(()) => (Declaration::Done, REPEAT),
                Err(Undeclared::Lost(lost)) => return lost,
                Err(Undeclared::Problem(problem)) => {
                    metrics.broker_errors.with_label_values(&[problem.reason.as_str()]).inc();
                    // The condition says it, once.
                    tracing::debug!(
                        task_queue = %due.task_queue, reason = %problem.reason, error = %problem.message, "declaring queues failed"
                    );
                    (Declaration::Failed(problem), RETRY)
                }
            };
            shared.declared(vec![(due, declaration, after(wait))], Instant::now());
        }
    }
}

/// The time after about such a wait: spread out, so that the declarations of many TaskQueues don't come due in one moment for ever.
fn after(wait: Duration) -> Instant {
    Instant::now() + wait.mul_f64(0.75 + fastrand::f64() / 2.0)
}

/// One thing to declare. Declaring it again does nothing.
enum Operation<'a> {
    Queue { name: &'a str, arguments: BTreeMap<&'static str, Argument> },
    Exchange(&'a Binding),
    Binding { queue: &'a str, binding: &'a Binding },
}

impl Operation<'_> {
    /// All that a queue needs, in the order in which it is to be declared.
    fn all(queue: &Queue) -> impl Iterator<Item = Operation<'_>> {
        // The dead letter queue first: a message that is rejected before it is there would be lost.
        let dead = queue.dead_letters.as_deref();
        let dead = dead.map(|name| Operation::Queue { name, arguments: queue.dead_letter_arguments() });
        let own = Operation::Queue { name: &queue.name, arguments: queue.arguments() };
        let bindings = queue.bindings.iter().flat_map(|binding| {
            [Operation::Exchange(binding), Operation::Binding { queue: &queue.name, binding }]
        });
        dead.into_iter().chain([own]).chain(bindings)
    }

    /// What it declares, for the user.
    fn what(&self) -> String {
        match self {
            Self::Queue { name, .. } => format!("queue `{name}`"),
            Self::Exchange(binding) => format!("exchange `{}`", binding.exchange),
            Self::Binding { queue, binding } => {
                format!("binding of queue `{queue}` to exchange `{}`", binding.exchange)
            }
        }
    }

    async fn run(&self, channel: &Channel) -> lapin::Result<()> {
        match self {
            Self::Queue { name, arguments } => {
                let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
                channel.queue_declare(short(name), durable, table(arguments)).await.map(drop)
            }
            Self::Exchange(Binding { exchange, exchange_type, .. }) => {
                let kind = match exchange_type {
                    ExchangeType::Direct => ExchangeKind::Direct,
                    ExchangeType::Topic => ExchangeKind::Topic,
                    ExchangeType::Fanout => ExchangeKind::Fanout,
                };
                let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
                channel.exchange_declare(short(exchange), kind, durable, FieldTable::default()).await
            }
            Self::Binding { queue, binding: Binding { exchange, routing_key, .. } } => {
                let (queue, exchange, key) = (short(queue), short(exchange), short(routing_key));
                channel
                    .queue_bind(queue, exchange, key, QueueBindOptions::default(), FieldTable::default())
                    .await
            }
        }
    }
}

/// Why something is not on the broker as it should be.
pub(super) enum Undeclared {
    /// The connection is of no more use.
    Lost(Lost),
    /// The broker refuses it.
    Problem(Problem),
}

/// Declares, and deletes, on a channel that is made anew when the broker has closed it.
pub(super) struct Declarer<'a> {
    connection: &'a Connection,
    channel: Option<Channel>,
    /// Whether the broker takes delay queues; absent if it wasn't asked on this connection.
    delays: Option<bool>,
}

impl Declarer<'_> {
    /// Declares many topologies without waiting for each answer. Returns whether the broker took all of it.
    async fn declare_at_once(&mut self, all: &[Due]) -> Result<bool, Lost> {
        let channel = match self.channel().await {
            Ok(channel) => channel,
            Err(Undeclared::Lost(lost)) => return Err(lost),
            Err(Undeclared::Problem(_)) => return Ok(false),
        };
        let operations: Vec<Operation<'_>> =
            all.iter().flat_map(|due| &due.topology.queues).flat_map(Operation::all).collect();
        let mut answers: FuturesOrdered<_> =
            operations.iter().map(|operation| operation.run(&channel)).collect();
        loop {
            let next = async { answers.next().await.transpose() };
            match self.answer("declare", next).await {
                Ok(Ok(Some(()))) => {}
                Ok(Ok(None)) => return Ok(true),
                Ok(Err(_)) | Err(Undeclared::Problem(_)) => return Ok(false),
                Err(Undeclared::Lost(lost)) => return Err(lost),
            }
        }
    }

    /// Lets messages with an `eta` come to quorum queues, where Celery's clients have them wait in the broker. Workers see to it too, but there
    /// may be none when the first such message is sent. A user who may not do it can do everything else.
    async fn declare_delays(&mut self, all: &[Due]) {
        let queues = all.iter().flat_map(|due| &due.topology.queues);
        let quorum: Vec<&Queue> = queues.filter(|queue| queue.queue_type == QueueType::Quorum).collect();
        if quorum.is_empty() {
            return;
        }
        if self.delays.is_none() {
            let declared = timeout(DELAYS, delays::declare(self.connection)).await;
            match &declared {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "messages with an eta can't wait in the broker"),
                Err(_) => tracing::warn!("messages with an eta can't wait in the broker: no answer"),
            }
            self.delays = Some(matches!(declared, Ok(Ok(()))));
        }
        if self.delays == Some(false) {
            return;
        }
        for queue in quorum {
            // Where the queue itself could not be declared, its condition says why.
            if let Ok(Err(error)) = timeout(DELAYS, delays::bind(self.connection, &queue.name)).await {
                tracing::debug!(queue = queue.name, %error, "bind a queue to the delay queues");
            }
        }
    }

    /// Declares all of a topology, as far as the broker lets us: one refusal doesn't keep the other queues from being declared.
    async fn declare(&mut self, topology: &Topology) -> Result<(), Undeclared> {
        let mut first = Ok(());
        for queue in &topology.queues {
            match self.declare_queue(queue).await {
                Err(Undeclared::Problem(problem)) if first.is_ok() => {
                    first = Err(Undeclared::Problem(problem))
                }
                Err(Undeclared::Lost(lost)) => return Err(Undeclared::Lost(lost)),
                _ => {}
            }
        }
        first
    }

    async fn declare_queue(&mut self, queue: &Queue) -> Result<(), Undeclared> {
        for operation in Operation::all(queue) {
            self.settle(&operation).await?;
        }
        Ok(())
    }

    /// Declares one queue.
    pub(super) async fn declare_one(
        &mut self,
        name: &str,
        arguments: BTreeMap<&'static str, Argument>,
    ) -> Result<(), Undeclared> {
        self.settle(&Operation::Queue { name, arguments }).await
    }

    async fn settle(&mut self, operation: &Operation<'_>) -> Result<(), Undeclared> {
        let channel = self.channel().await?;
        let answer = self.answer("declare", operation.run(&channel)).await?;
        answer.map_err(|error| Undeclared::Problem(problem(&operation.what(), &error)))
    }

    /// What the broker answers, or the error with which it has closed the channel.
    pub(super) async fn answer<T>(
        &mut self,
        what: &str,
        operation: impl Future<Output = lapin::Result<T>>,
    ) -> Result<lapin::Result<T>, Undeclared> {
        match answered_within(DECLARED, self.connection, what, operation).await {
            Ok(answer) => Ok(Ok(answer)),
            Err(Failure::Lost(lost)) => Err(Undeclared::Lost(lost)),
            Err(Failure::Refused(error)) => {
                self.channel = None;
                Ok(Err(error))
            }
        }
    }

    pub(super) async fn channel(&mut self) -> Result<Channel, Undeclared> {
        if let Some(channel) = self.channel.as_ref().filter(|channel| channel.status().connected()) {
            return Ok(channel.clone());
        }
        match answered(self.connection, "open a channel", self.connection.create_channel()).await {
            Ok(channel) => Ok(self.channel.insert(channel).clone()),
            Err(Failure::Lost(lost)) => Err(Undeclared::Lost(lost)),
            Err(Failure::Refused(error)) => Err(Undeclared::Lost(error.into())),
        }
    }
}

fn table(arguments: &BTreeMap<&'static str, Argument>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(LongString::from(text.as_bytes())),
            Argument::Integer(number) => AMQPValue::LongInt(*number),
        };
        table.insert(short(name), value);
    }
    table
}

pub(super) fn problem(what: &str, error: &lapin::Error) -> Problem {
    let said = match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        _ => error.to_string(),
    };
    match reply_code(error) {
        // 406: other settings; 405: another connection has it for itself.
        Some(405 | 406) => Problem {
            reason: Reason::QueueArgumentMismatch,
            message: format!(
                "{what} exists with other settings: {}. Use the same settings in spec.queues, or another name, or delete it on the broker \
                 once it is empty; it is not deleted for you",
                difference(&said)
            ),
        },
        _ => Problem { reason: Reason::DeclareFailed, message: format!("{what} can't be declared: {said}") },
    }
}

/// The part of RabbitMQ's message that says what differs.
fn difference(said: &str) -> &str {
    said.strip_prefix("PRECONDITION_FAILED - ")
        .or_else(|| said.strip_prefix("RESOURCE_LOCKED - "))
        .unwrap_or(said)
}
