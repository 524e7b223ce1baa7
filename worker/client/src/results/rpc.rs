//! Results over RPC: each one a message to the caller's own queue.

use super::store::{ReplyAddress, StoreError};
use crate::amqp::short;
use celery_protocol::{TaskMeta, content};
use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel, Confirmation, ErrorKind};

/// Sends results to the queues of those who called.
#[derive(Clone)]
pub struct RpcResults {
    channel: Channel,
}

impl RpcResults {
    /// Publishes on a channel of the broker's. With confirms on, a result counts as stored when it is confirmed.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Self { channel }
    }

    /// Sends a state and its result to the caller; false when the call named no queue to reply to.
    ///
    /// The caller's queue is never declared here: its settings differ between versions of Celery. That it may be gone
    /// is normal, and no error.
    ///
    /// # Errors
    /// When the broker can't be reached, or takes no messages of that size, or the queue is full.
    pub async fn store(&self, meta: &TaskMeta, reply: ReplyAddress<'_>) -> Result<bool, StoreError> {
        let Some(queue) = reply.queue.filter(|queue| !queue.is_empty()) else { return Ok(false) };
        let body = meta.encode();
        let failed = |source| {
            let queue = queue.to_owned();
            match is_too_large(&source, body.len()) {
                true => StoreError::TooLarge { queue, bytes: body.len(), source },
                false => StoreError::Rpc { queue, source },
            }
        };
        let properties = BasicProperties::default()
            .with_content_type(short(content::JSON))
            .with_content_encoding(short(content::UTF_8))
            .with_delivery_mode(1)
            .with_correlation_id(short(reply.correlation_id));
        let options = BasicPublishOptions::default();
        let sent = self.channel.basic_publish(short(""), short(queue), options, &body, properties).await;
        match sent.map_err(failed)?.await.map_err(failed)? {
            Confirmation::Nack(_) => Err(StoreError::Refused { queue: queue.to_owned() }),
            Confirmation::Ack(_) | Confirmation::NotRequested => Ok(true),
        }
    }
}

/// Whether the channel was closed because of a message of this size: all that was on its way there is told of it.
fn is_too_large(error: &lapin::Error, bytes: usize) -> bool {
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    error.get_message().as_str().contains(&format!("message size {bytes} is larger"))
}

impl std::fmt::Debug for RpcResults {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RpcResults").field("channel", &self.channel.id()).finish()
    }
}
