//! Results over RPC on the caller's side: one queue of the process's own, whose messages are told apart by their labels.

use crate::amqp::short;
use celery_protocol::TaskMeta;
use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, Consumer};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use uuid::Uuid;

/// What is known of a result that is awaited.
#[derive(Clone, Debug, Default)]
pub(crate) enum Reply {
    /// Nothing yet.
    #[default]
    None,
    /// The latest state.
    Meta(Arc<TaskMeta>),
    /// The connection that it would have come over is gone, and the queue with it.
    Lost,
}

/// Awaited results by task id.
#[derive(Debug, Default)]
pub(crate) struct Replies(Mutex<HashMap<String, watch::Sender<Reply>>>);

/// A place in [`Replies`], given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Awaited {
    id: String,
    replies: Arc<Replies>,
    pub(crate) latest: watch::Receiver<Reply>,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        let mut awaited = self.replies.lock();
        // Ours is one receiver; others of the same id may still wait.
        if awaited.get(&self.id).is_some_and(|sender| sender.receiver_count() <= 1) {
            awaited.remove(&self.id);
        }
    }
}

impl Replies {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, watch::Sender<Reply>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a task, which has to happen before it is sent.
    pub(crate) fn awaited(self: &Arc<Self>, id: &str) -> Awaited {
        let latest = self.lock().entry(id.to_owned()).or_default().subscribe();
        Awaited { id: id.to_owned(), replies: Arc::clone(self), latest }
    }

    /// Makes the queue on a connection, reads it for as long as the connection lasts, and returns its name.
    pub(crate) async fn listen(self: &Arc<Self>, connection: &Connection) -> lapin::Result<String> {
        let channel = connection.create_channel().await?;
        // A name for each connection: the broker may still hold the queue of one that was lost.
        let queue = Uuid::new_v4().to_string();
        let own =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(short(&queue), own, FieldTable::default()).await?;
        let options = BasicConsumeOptions { no_ack: true, exclusive: true, ..BasicConsumeOptions::default() };
        let consumer =
            channel.basic_consume(short(&queue), short("replies"), options, FieldTable::default()).await?;
        let replies = Arc::clone(self);
        tokio::spawn(async move {
            replies.read(consumer).await;
            drop(channel);
        });
        Ok(queue)
    }

    async fn read(&self, mut consumer: Consumer) {
        while let Some(delivery) = consumer.next().await {
            let delivery = match delivery {
                Ok(delivery) => delivery,
                Err(error) => {
                    tracing::warn!(%error, "results over RPC stopped");
                    break;
                }
            };
            match TaskMeta::decode(&delivery.data) {
                Ok(meta) => self.arrived(meta),
                Err(error) => tracing::warn!(%error, "a message to the reply queue is no result"),
            }
        }
        for sender in self.lock().values() {
            sender.send_if_modified(|reply| {
                let is_waiting = !matches!(reply, Reply::Meta(meta) if meta.status.is_final());
                if is_waiting {
                    *reply = Reply::Lost;
                }
                is_waiting
            });
        }
    }

    fn arrived(&self, meta: TaskMeta) {
        if let Some(sender) = self.lock().get(&meta.task_id) {
            sender.send_replace(Reply::Meta(Arc::new(meta)));
        }
    }
}
