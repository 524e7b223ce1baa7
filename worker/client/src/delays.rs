//! Celery's delay queues on the broker; see [`celery_protocol::delay`] for how they work.

use crate::amqp::short;
use crate::queue::{QueueError, reply_code};
use celery_protocol::delay;
use lapin::options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind};

/// Makes the exchanges and queues that delayed messages wait in, those that are missing.
///
/// They are there for all of a virtual host; a quick look tells whether that was done before.
///
/// # Errors
/// When the broker refuses: they exist with other settings, or the user may not make them.
pub async fn declare(connection: &Connection) -> Result<(), QueueError> {
    if exists(connection).await? {
        return Ok(());
    }
    let failed = |source| QueueError::new(&delay::entry_exchange(), source);
    let channel = connection.create_channel().await.map_err(failed)?;
    declare_exchange(&channel, delay::DELIVERY_EXCHANGE).await.map_err(failed)?;
    // From the last level to the first, so that whoever finds the first finds all of them.
    let levels: Vec<_> = delay::levels().collect();
    for level in levels.iter().rev() {
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
        declare_exchange(&channel, &level.name).await.map_err(failed)?;
        let (name, none) = (short(&level.name), FieldTable::default());
        let bind = QueueBindOptions::default();
        channel
            .queue_bind(name.clone(), name.clone(), short(&level.queue_key), bind, none.clone())
            .await
            .map_err(failed)?;
        let bind = ExchangeBindOptions::default();
        channel
            .exchange_bind(short(&level.next_exchange), name, short(&level.next_key), bind, none)
            .await
            .map_err(failed)?;
    }
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

/// Whether the first exchange is there, on a channel that RabbitMQ closes if it is not.
async fn exists(connection: &Connection) -> Result<bool, QueueError> {
    let entry = delay::entry_exchange();
    let failed = |source| QueueError::new(&entry, source);
    let channel = connection.create_channel().await.map_err(failed)?;
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let declared =
        channel.exchange_declare(short(&entry), ExchangeKind::Topic, passive, FieldTable::default()).await;
    match declared {
        Ok(()) => {
            let _ = channel.close(200, short("done")).await;
            Ok(true)
        }
        Err(error) if reply_code(&error) == Some(404) => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

async fn declare_exchange(channel: &Channel, name: &str) -> lapin::Result<()> {
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(short(name), ExchangeKind::Topic, durable, FieldTable::default()).await
}
