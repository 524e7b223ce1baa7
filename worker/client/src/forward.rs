//! Sending what a worker sends: messages that exist already, and single calls.

use crate::amqp;
use crate::async_result::AsyncResult;
use crate::celery::Celery;
use crate::publisher::{Outgoing, PublishError};
use crate::send::SendError;
use celery_protocol::{Message, Signature, delay};

impl Celery {
    /// Sends a single task as it is, and returns once the broker has it: also `celery.chunks`, which [`send`](Self::send) makes
    /// a group of.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn send_call(&self, call: &Signature) -> Result<AsyncResult, SendError> {
        self.send_one(call).await
    }

    /// Publishes a message as it is to a queue, and returns once the broker has it; with a delay of some seconds, by way of
    /// Celery's delay queues, which are made if they are missing.
    ///
    /// A queue whose name the delay queues can't lead to ([`delay::queue_key`]) gets the message at once.
    ///
    /// # Errors
    /// When the broker can't be reached after some attempts, or the queue doesn't exist or refuses. After a lost connection
    /// the message may arrive twice.
    pub async fn forward(&self, queue: &str, message: &Message, seconds: u32) -> Result<(), PublishError> {
        let delayed = Some(seconds)
            .filter(|seconds| *seconds > 0 && delay::queue_key(queue).is_some())
            .and_then(|seconds| delay::routing_key(seconds, queue));
        let is_delayed = delayed.is_some();
        let (exchange, routing_key) = match delayed {
            Some(routing_key) => (delay::entry_exchange(), routing_key),
            None => (String::new(), queue.to_owned()),
        };
        let outgoing = |_: &_| Outgoing {
            exchange: exchange.clone(),
            routing_key: routing_key.clone(),
            properties: amqp::basic_properties(message),
            body: message.body.clone(),
        };
        // The queue is where the message came from: it isn't made anew if somebody has deleted it.
        let declared = Some(queue).filter(|_| is_delayed);
        self.0.publisher.publish(declared, is_delayed, outgoing).await
    }
}
