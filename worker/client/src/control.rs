//! Remote control: asking workers, and telling them what to do.

mod commands;

pub use commands::FoundTask;

use crate::amqp::{basic_properties, short};
use crate::celery::Celery;
use crate::publisher::PublishError;
use celery_protocol::control::{self, Command, ReplyTo};
use celery_protocol::{Map, Message, Properties, content};
use futures_util::StreamExt;
use jiff::Timestamp;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer, ExchangeKind};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

/// How long is waited for answers, as Celery does.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait, far beyond sense and far within what a clock can say.
const TIMEOUT_MAX: Duration = Duration::from_secs(86_400);

/// What workers answer, by node name.
pub type Answers<T> = BTreeMap<String, Result<T, NodeError>>;

/// Why workers can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The broker can't be reached.
    #[error(transparent)]
    Connect(#[from] PublishError),
    /// The broker refuses, or the connection was lost.
    #[error("send the command `{method}` to workers")]
    Broker {
        /// The command.
        method: String,
        /// Why.
        source: lapin::Error,
    },
}

/// Why one worker has no answer.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// It can't do what it was told, and says why.
    #[error("{0}")]
    Refused(String),
    /// Its answer isn't what was expected.
    #[error("an answer that can't be read")]
    Unreadable(#[from] serde_json::Error),
}

/// Remote control of workers: all of them, or some.
///
/// Without a destination it isn't known how many workers there are, so that each question takes the whole timeout. With
/// one it ends when all have answered.
///
/// ```no_run
/// # async fn example(celery: celery_client::Celery) -> Result<(), Box<dyn std::error::Error>> {
/// for (node, tasks) in celery.control().active().await? {
///     println!("{node}: {} running", tasks?.len());
/// }
/// celery.control().to(["celery@emails-worker-0"]).cancel_consumer("emails").await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Control {
    celery: Celery,
    destination: Option<Vec<String>>,
    pattern: Option<String>,
    timeout: Duration,
}

impl Control {
    pub(crate) fn new(celery: Celery) -> Self {
        Self { celery, destination: None, pattern: None, timeout: TIMEOUT }
    }

    /// Only workers with these node names.
    pub fn to<S: Into<String>>(self, nodes: impl IntoIterator<Item = S>) -> Self {
        Self { destination: Some(nodes.into_iter().map(Into::into).collect()), ..self }
    }

    /// Only workers whose node names match a shell pattern: `celery@emails-*`.
    pub fn matching(self, pattern: impl Into<String>) -> Self {
        Self { pattern: Some(pattern.into()), ..self }
    }

    /// How long answers are waited for; a second unless set, a day at most.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: timeout.min(TIMEOUT_MAX), ..self }
    }

    /// Sends any command, and returns what each worker answered in time, as it is.
    ///
    /// # Errors
    /// When the broker can't be reached or refuses.
    pub async fn call(&self, method: &str, arguments: Map) -> Result<BTreeMap<String, Value>, ControlError> {
        let refused = |source| ControlError::Broker { method: method.to_owned(), source };
        let channel = self.channel(method).await?;
        let (mut replies, reply_to) = open_mailbox(&channel).await.map_err(refused)?;
        let ticket = Uuid::new_v4().to_string();
        let command =
            Command { ticket: Some(ticket), reply_to: Some(reply_to), ..self.command(method, arguments) };
        self.publish(&channel, &command).await.map_err(refused)?;
        let mut answers = BTreeMap::new();
        let deadline = Instant::now() + self.timeout;
        while !self.is_complete(&answers) {
            let Ok(delivery) = timeout_at(deadline, replies.next()).await else { break };
            let Some(delivery) = delivery.transpose().map_err(refused)? else { break };
            match control::decode_reply(&delivery.data) {
                Ok(reply) => answers.extend(reply),
                Err(error) => tracing::warn!(%error, "a reply to remote control can't be read"),
            }
        }
        // Best effort: the queue goes away with the channel or soon after.
        let _ = channel.close(200, short("done")).await;
        Ok(answers)
    }

    /// Sends any command without waiting for answers; returns once the broker has it.
    ///
    /// # Errors
    /// When the broker can't be reached or refuses.
    pub async fn cast(&self, method: &str, arguments: Map) -> Result<(), ControlError> {
        let refused = |source| ControlError::Broker { method: method.to_owned(), source };
        let channel = self.channel(method).await?;
        self.publish(&channel, &self.command(method, arguments)).await.map_err(refused)?;
        let _ = channel.close(200, short("done")).await;
        Ok(())
    }

    /// Sends a command, and reads each answer as a type; `{"error": …}` is a refusal.
    async fn ask<T: DeserializeOwned>(
        &self,
        method: &str,
        arguments: Map,
    ) -> Result<Answers<T>, ControlError> {
        let read = |answer: Value| match answer.get("error") {
            Some(Value::String(error)) => Err(NodeError::Refused(error.clone())),
            Some(error) => Err(NodeError::Refused(error.to_string())),
            None => serde_json::from_value(answer).map_err(NodeError::from),
        };
        let answers = self.call(method, arguments).await?;
        Ok(answers.into_iter().map(|(node, answer)| (node, read(answer))).collect())
    }

    fn command(&self, method: &str, arguments: Map) -> Command {
        Command {
            method: method.to_owned(),
            arguments,
            destination: self.destination.clone(),
            matcher: self.pattern.is_some().then(|| "glob".to_owned()),
            pattern: self.pattern.clone(),
            ..Command::default()
        }
    }

    fn is_complete(&self, answers: &BTreeMap<String, Value>) -> bool {
        let Some(nodes) = self.destination.as_deref().filter(|nodes| !nodes.is_empty()) else { return false };
        nodes.iter().all(|node| answers.contains_key(node))
    }

    /// A channel with confirms, on which the exchange for commands is known to be there.
    async fn channel(&self, method: &str) -> Result<Channel, ControlError> {
        let link = self.celery.0.publisher.link().await?;
        let open = async {
            let channel = link.connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            declare(&channel, control::EXCHANGE, ExchangeKind::Fanout).await?;
            Ok(channel)
        };
        open.await.map_err(|source| ControlError::Broker { method: method.to_owned(), source })
    }

    async fn publish(&self, channel: &Channel, command: &Command) -> lapin::Result<()> {
        // Seconds since 1970 as Celery's clients write them; workers don't look at it.
        let expires = (Timestamp::now() + self.timeout).as_second();
        let message = Message {
            headers: Map::from_iter([("clock".to_owned(), 1.into()), ("expires".to_owned(), expires.into())]),
            properties: Properties {
                content_type: Some(content::JSON.to_owned()),
                content_encoding: Some(content::UTF_8.to_owned()),
                delivery_mode: Some(2),
                priority: Some(0),
                ..Properties::default()
            },
            body: command.encode(),
        };
        let (exchange, options) = (control::EXCHANGE.into(), BasicPublishOptions::default());
        let properties = basic_properties(&message);
        channel.basic_publish(exchange, short(""), options, &message.body, properties).await?.await?;
        Ok(())
    }
}

/// A queue for the answers to one command, gone with its channel.
async fn open_mailbox(channel: &Channel) -> lapin::Result<(Consumer, ReplyTo)> {
    declare(channel, control::REPLY_EXCHANGE, ExchangeKind::Direct).await?;
    let routing_key = Uuid::new_v4().to_string();
    let queue = short(&control::reply_queue(&routing_key));
    let own = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-expires".into(), AMQPValue::LongInt(control::QUEUE_EXPIRES_MS));
    arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(control::QUEUE_MESSAGE_TTL_MS));
    channel.queue_declare(queue.clone(), own, arguments).await?;
    let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
    channel
        .queue_bind(queue.clone(), control::REPLY_EXCHANGE.into(), short(&routing_key), bind, none.clone())
        .await?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let replies = channel.basic_consume(queue, short(""), options, none).await?;
    Ok((replies, ReplyTo { exchange: control::REPLY_EXCHANGE.to_owned(), routing_key }))
}

/// The exchanges of remote control are transient.
async fn declare(channel: &Channel, exchange: &'static str, kind: ExchangeKind) -> lapin::Result<()> {
    channel
        .exchange_declare(exchange.into(), kind, ExchangeDeclareOptions::default(), FieldTable::default())
        .await
}
