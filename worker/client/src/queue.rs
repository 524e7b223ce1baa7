//! Queues as Celery declares them.

use crate::amqp::short;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ErrorKind, ExchangeKind};

/// What stood in the way of a queue.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The queue doesn't exist.
    #[error("queue `{queue}` does not exist")]
    Missing {
        /// Name of the queue.
        queue: String,
    },
    /// The queue exists with other settings, or belongs to another connection.
    #[error("queue `{queue}` exists, but not as it was declared")]
    Mismatch {
        /// Name of the queue.
        queue: String,
        /// What the broker says.
        source: lapin::Error,
    },
    /// Anything else.
    #[error("declare queue `{queue}`")]
    Declare {
        /// Name of the queue.
        queue: String,
        /// Why.
        source: lapin::Error,
    },
}

impl QueueError {
    pub(crate) fn new(queue: &str, source: lapin::Error) -> Self {
        let queue = queue.to_owned();
        match reply_code(&source) {
            Some(404) => Self::Missing { queue },
            // 405 is an exclusive queue of someone else's, 406 other settings.
            Some(405 | 406) => Self::Mismatch { queue, source },
            _ => Self::Declare { queue, source },
        }
    }

    /// A fixed word for logs, metric labels and reasons.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "queue_missing",
            Self::Mismatch { .. } => "queue_mismatch",
            Self::Declare { .. } => "queue_declare",
        }
    }
}

/// AMQP's reply code of an error that the broker sent.
#[must_use]
pub fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// What the broker says of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueCounts {
    /// Messages that wait, not those that are being worked on.
    pub ready: u32,
    /// Consumers.
    pub consumers: u32,
}

/// Asks for a queue without making it.
///
/// Uses a channel of its own, because RabbitMQ closes the channel on which a missing queue was asked for.
///
/// # Errors
/// [`QueueError::Missing`] when it isn't there.
pub async fn inspect(connection: &Connection, queue: &str) -> Result<QueueCounts, QueueError> {
    let failed = |source| QueueError::new(queue, source);
    let channel = connection.create_channel().await.map_err(failed)?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared =
        channel.queue_declare(short(queue), options, FieldTable::default()).await.map_err(failed)?;
    let counts = QueueCounts { ready: declared.message_count(), consumers: declared.consumer_count() };
    // Best effort: the channel goes away with the connection anyway.
    let _ = channel.close(200, short("done")).await;
    Ok(counts)
}

/// Makes sure of a queue as Celery does by default: a durable classic queue, bound to a durable direct exchange of its
/// own name.
///
/// A queue that is there is taken as it is: whoever made it may have given it other settings, which a second
/// declaration would have to repeat exactly.
///
/// # Errors
/// When the broker refuses.
pub async fn declare_default(connection: &Connection, queue: &str) -> Result<(), QueueError> {
    match inspect(connection, queue).await {
        Ok(_) => return Ok(()),
        Err(QueueError::Missing { .. }) => {}
        Err(error) => return Err(error),
    }
    let failed = |source| QueueError::new(queue, source);
    let channel = connection.create_channel().await.map_err(failed)?;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel
        .exchange_declare(short(queue), ExchangeKind::Direct, durable, FieldTable::default())
        .await
        .map_err(failed)?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(short(queue), durable, FieldTable::default()).await.map_err(failed)?;
    channel
        .queue_bind(
            short(queue),
            short(queue),
            short(queue),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .map_err(failed)?;
    let _ = channel.close(200, short("done")).await;
    Ok(())
}

/// Deletes all messages that wait in a queue, and tells how many there were. Those that are being worked on stay.
///
/// # Errors
/// [`QueueError::Missing`] when it isn't there.
pub async fn purge(connection: &Connection, queue: &str) -> Result<u32, QueueError> {
    let failed = |source| QueueError::new(queue, source);
    let channel = connection.create_channel().await.map_err(failed)?;
    let count = channel.queue_purge(short(queue), QueuePurgeOptions::default()).await.map_err(failed)?;
    let _ = channel.close(200, short("done")).await;
    Ok(count)
}
