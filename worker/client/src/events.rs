//! Reading events: what workers tell of themselves and their tasks.

use crate::amqp::short;
use celery_protocol::event::{self, Event};
use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer, ExchangeKind};
use std::collections::VecDeque;
use uuid::Uuid;

/// `x-expires` of the queue in milliseconds, as Celery's readers have it.
const QUEUE_EXPIRES_MS: i32 = 60_000;
/// `x-message-ttl` of the queue in milliseconds: a reader that is slower than that misses events.
const QUEUE_MESSAGE_TTL_MS: i32 = 5_000;

/// Why there are no events.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// The broker can't be reached.
    #[error(transparent)]
    Connect(#[from] crate::PublishError),
    /// The broker refuses, or the connection was lost.
    #[error("read events")]
    Broker(#[from] lapin::Error),
    /// The connection was closed.
    #[error("read events: the connection was closed")]
    Closed,
}

/// Events as they come in. Those from before it was made are not in it.
pub struct Events {
    consumer: Consumer,
    // Closed when it is dropped, and the queue goes away with it.
    _channel: Channel,
    pending: VecDeque<Event>,
}

impl Events {
    pub(crate) async fn listen(connection: &Connection) -> Result<Self, EventsError> {
        let channel = connection.create_channel().await?;
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        channel
            .exchange_declare(event::EXCHANGE.into(), ExchangeKind::Topic, durable, FieldTable::default())
            .await?;
        let queue = short(&format!("{}.{}", event::EXCHANGE, Uuid::new_v4()));
        let own =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-expires".into(), AMQPValue::LongInt(QUEUE_EXPIRES_MS));
        arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(QUEUE_MESSAGE_TTL_MS));
        channel.queue_declare(queue.clone(), own, arguments).await?;
        let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
        channel.queue_bind(queue.clone(), event::EXCHANGE.into(), "#".into(), bind, none.clone()).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumer = channel.basic_consume(queue, short(""), options, none).await?;
        Ok(Self { consumer, _channel: channel, pending: VecDeque::new() })
    }

    /// The next event. What can't be read as one is logged and left out.
    ///
    /// # Errors
    /// When the connection is lost; then a new reader is needed.
    ///
    /// # Cancel safety
    /// No event is lost when the wait is given up.
    pub async fn next(&mut self) -> Result<Event, EventsError> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            let delivery = self.consumer.next().await.ok_or(EventsError::Closed)??;
            match Event::decode(&delivery.data) {
                Ok(events) => self.pending.extend(events),
                Err(error) => tracing::warn!(%error, "a message among the events is none"),
            }
        }
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Events").finish_non_exhaustive()
    }
}
