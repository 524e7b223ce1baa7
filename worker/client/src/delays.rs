//! Celery's delay queues on the broker; see [`celery_protocol::delay`] for how they work.

use crate::amqp::short;
use crate::queue::{QueueError, reply_code};
use celery_protocol::delay::{self, Level};
use futures_util::future::try_join;
use lapin::options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind};

/// Makes the exchanges and queues that delayed messages wait in, those that are missing.
///
/// They are there for all of a virtual host; a quick look tells whether that was done before, and to its end.
///
/// # Errors
/// When the broker refuses: they exist with other settings, or the user may not make them.
pub async fn declare(connection: &Connection) -> Result<(), QueueError> {
    if exists(connection).await? {
        return Ok(());
    }
    let failed = |source| QueueError::new(&delay::entry_exchange(), source);
    let channel = connection.create_channel().await.map_err(failed)?;
    let mut before = None;
    for level in delay::levels() {
        let failed = |source| QueueError::new(&level.name, source);
        let text = |text: &str| AMQPValue::LongString(text.into());
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), text(delay::DEFAULT_QUEUE_TYPE));
        arguments.insert("x-overflow".into(), text("reject-publish"));
        let ttl = i64::try_from(level.message_ttl_ms).unwrap_or(i64::MAX);
        arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(ttl));
        arguments.insert("x-dead-letter-exchange".into(), text(&level.next_exchange));
        arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(short(&level.name), durable, arguments).await.map_err(failed)?;
        declare_exchange(&channel, &level.name, before.as_ref()).await.map_err(failed)?;
        let (name, bind) = (short(&level.name), QueueBindOptions::default());
        channel
            .queue_bind(name.clone(), name, short(&level.queue_key), bind, FieldTable::default())
            .await
            .map_err(failed)?;
        before = Some(level);
    }
    // Last, as in Celery, so that whoever finds it finds all of them.
    declare_exchange(&channel, delay::DELIVERY_EXCHANGE, before.as_ref()).await.map_err(failed)?;
    let _ = channel.close(200, short("done")).await;
    Ok(())
}

/// Lets delayed messages come to a queue. Does nothing for a queue whose name can't be told from others in a binding.
///
/// # Errors
/// When the queue or the exchange isn't there, or the broker refuses.
pub async fn bind(connection: &Connection, queue: &str) -> Result<(), QueueError> {
    let Some(key) = delay::queue_key(queue) else { return Ok(()) };
    let failed = |source| QueueError::new(queue, source);
    let channel = connection.create_channel().await.map_err(failed)?;
    let options = QueueBindOptions::default();
    channel
        .queue_bind(
            short(queue),
            delay::DELIVERY_EXCHANGE.into(),
            short(&key),
            options,
            FieldTable::default(),
        )
        .await
        .map_err(failed)?;
    let _ = channel.close(200, short("done")).await;
    Ok(())
}

/// Whether the first and the last exchange are there, on a channel that RabbitMQ closes if one is not.
async fn exists(connection: &Connection) -> Result<bool, QueueError> {
    let entry = delay::entry_exchange();
    let failed = |source| QueueError::new(&entry, source);
    let channel = connection.create_channel().await.map_err(failed)?;
    for name in [&*entry, delay::DELIVERY_EXCHANGE] {
        let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let none = FieldTable::default();
        match channel.exchange_declare(short(name), ExchangeKind::Topic, passive, none).await {
            Ok(()) => {}
            Err(error) if reply_code(&error) == Some(404) => return Ok(false),
            Err(error) => return Err(failed(error)),
        }
    }
    let _ = channel.close(200, short("done")).await;
    Ok(true)
}

/// Makes an exchange, and leads to it what doesn't wait at the level before. Both are asked for at once: whoever is killed leaves
/// both behind or none.
async fn declare_exchange(channel: &Channel, name: &str, before: Option<&Level>) -> lapin::Result<()> {
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declare = channel.exchange_declare(short(name), ExchangeKind::Topic, durable, FieldTable::default());
    let Some(before) = before else { return declare.await };
    let (source, key) = (short(&before.name), short(&before.next_key));
    let options = ExchangeBindOptions::default();
    let bind = channel.exchange_bind(short(name), source, key, options, FieldTable::default());
    try_join(declare, bind).await.map(drop)
}
