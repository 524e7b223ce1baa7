//! Declares what TaskQueues need on the broker: queues, dead letter queues, exchanges and bindings.
//!
//! Declaring what is there already changes nothing, so everything is simply declared again now and then; that is how a binding or a
//! dead letter queue that somebody deleted comes back. Nothing is deleted but what goes with its TaskQueue, see [`super::removals`].

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

use celery_client::amqp::short;
use celery_client::queue::reply_code;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Channel, Connection, ErrorKind, ExchangeKind};
use tokio::time::sleep;

use super::connection::{Failure, Lost, answered};
use super::state::{Declaration, Shared};
use crate::api::v1alpha1::ExchangeType;
use crate::metrics::Metrics;
use crate::plan::reason::Reason;
use crate::plan::status::Problem;
use crate::plan::topology::{Argument, Binding, Queue, Topology};

/// What stands is declared again after this long.
const REPEAT: Duration = Duration::from_secs(60);

/// What failed is tried again after this long; a user waits in front of the condition.
const RETRY: Duration = Duration::from_secs(10);

/// Longest wait before something that was put off comes due.
const PAUSE: Duration = Duration::from_secs(1);

/// Declares until the connection is lost.
pub(super) async fn run(connection: &Connection, shared: &Shared, metrics: &Metrics) -> Lost {
    let mut declarer = Declarer { connection, channel: None };
    loop {
        // In one row with the declarations, so that nothing is declared again that was just deleted.
        if let Some((task_queue, removal)) = shared.due_removal() {
            match declarer.remove(&removal).await {
                Ok(removed) => shared.removed(&task_queue, &removal, removed),
                Err(lost) => return lost,
            }
            continue;
        }
        let Some(due) = shared.due_declaration(Instant::now()) else {
            tokio::select! {
                () = shared.declarations.notified() => {}
                () = sleep(PAUSE) => {}
            }
            continue;
        };
        let (declaration, again) = match declarer.declare(&due.topology).await {
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
        let now = Instant::now();
        // Spread out, so that the declarations of many TaskQueues don't come due in one moment for ever.
        let again = now + again.mul_f64(0.75 + fastrand::f64() / 2.0);
        shared.declared(&due, declaration, again, now);
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
}

impl Declarer<'_> {
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
        // The dead letter queue first: a message that is rejected before it is there would be lost.
        if let Some(dead_letters) = &queue.dead_letters {
            self.declare_one(dead_letters, &queue.dead_letter_arguments()).await?;
        }
        self.declare_one(&queue.name, &queue.arguments()).await?;
        for binding in &queue.bindings {
            self.bind(&queue.name, binding).await?;
        }
        Ok(())
    }

    pub(super) async fn declare_one(
        &mut self,
        name: &str,
        arguments: &BTreeMap<&'static str, Argument>,
    ) -> Result<(), Undeclared> {
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let channel = self.channel().await?;
        let declaring = channel.queue_declare(short(name), durable, table(arguments));
        self.settle("declare a queue", &format!("queue `{name}`"), declaring).await
    }

    async fn bind(&mut self, queue: &str, binding: &Binding) -> Result<(), Undeclared> {
        let Binding { exchange, exchange_type, routing_key } = binding;
        let channel = self.channel().await?;
        let kind = match exchange_type {
            ExchangeType::Direct => ExchangeKind::Direct,
            ExchangeType::Topic => ExchangeKind::Topic,
            ExchangeType::Fanout => ExchangeKind::Fanout,
        };
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declaring = channel.exchange_declare(short(exchange), kind, durable, FieldTable::default());
        self.settle("declare an exchange", &format!("exchange `{exchange}`"), declaring).await?;
        let binding = channel.queue_bind(
            short(queue),
            short(exchange),
            short(routing_key),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        let what = format!("binding of queue `{queue}` to exchange `{exchange}`");
        self.settle("bind a queue", &what, binding).await
    }

    /// What the broker answers, or the error with which it has closed the channel.
    pub(super) async fn answer<T>(
        &mut self,
        what: &str,
        operation: impl Future<Output = lapin::Result<T>>,
    ) -> Result<lapin::Result<T>, Undeclared> {
        match answered(self.connection, what, operation).await {
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

    async fn settle<T>(
        &mut self,
        operation: &str,
        what: &str,
        future: impl Future<Output = lapin::Result<T>>,
    ) -> Result<(), Undeclared> {
        let answer = self.answer(operation, future).await?;
        answer.map(drop).map_err(|error| Undeclared::Problem(problem(what, &error)))
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
