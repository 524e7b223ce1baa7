//! Publishing with confirms: many messages on their way at once, each known to have arrived or not.

use crate::amqp::short;
use crate::broker::BrokerAddress;
use crate::connect::{ConnectError, connect};
use crate::delays;
use crate::queue::{self, QueueError, reply_code};
use crate::results::Replies;
use crate::retry_policy::RetryPolicy;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::FuturesOrdered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc, oneshot};

/// Messages published and not yet confirmed. More gain nothing: RabbitMQ confirms in batches far smaller.
const UNCONFIRMED: usize = 1000;

/// Why a message is not in its queue, or isn't known to be.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The queue can't be declared.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// No queue of this name.
    #[error("no queue takes messages for `{routing_key}`")]
    Unroutable {
        /// The queue's name, or the routing key.
        routing_key: String,
    },
    /// The queue refused: it is full and set to refuse what is beyond its limit.
    #[error("queue `{routing_key}` refused the message, it may be full")]
    Refused {
        /// The queue's name, or the routing key.
        routing_key: String,
    },
    /// The connection was lost before the message was confirmed. It may have arrived.
    #[error("publish to `{routing_key}`")]
    Lost {
        /// The queue's name, or the routing key.
        routing_key: String,
        /// Why.
        source: lapin::Error,
    },
    /// The connection was closed while the message waited to be published.
    #[error("publish to `{routing_key}`: the connection was closed")]
    Closed {
        /// The queue's name, or the routing key.
        routing_key: String,
    },
}

impl PublishError {
    /// A fixed word for logs and metric labels.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Connect(error) => error.category(),
            Self::Queue(error) => error.category(),
            Self::Unroutable { .. } => "unroutable",
            Self::Refused { .. } => "refused",
            Self::Lost { .. } | Self::Closed { .. } => "connection_lost",
        }
    }

    /// Whether another connection may do better.
    #[must_use]
    pub fn is_worth_a_retry(&self) -> bool {
        match self {
            Self::Connect(error) => error.category() != "access_refused",
            Self::Queue(QueueError::Declare { source, .. }) | Self::Lost { source, .. } => {
                // Whatever the broker explained, it will explain again.
                reply_code(source).is_none_or(|code| code == 320)
            }
            Self::Closed { .. } => true,
            Self::Queue(_) | Self::Unroutable { .. } | Self::Refused { .. } => false,
        }
    }
}

/// A message and where it goes.
pub(crate) struct Outgoing {
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Vec<u8>,
}

/// Publishes over one connection, which is made anew when it was lost.
pub(crate) struct Publisher {
    address: BrokerAddress,
    name: String,
    creates_queues: bool,
    confirms: bool,
    retry: RetryPolicy,
    replies: Option<Arc<Replies>>,
    link: Mutex<Option<Link>>,
}

/// A connection, and the task that publishes over it. The task ends with the last clone of the link.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) connection: Arc<Connection>,
    publishing: mpsc::Sender<Publish>,
    declared: Arc<Mutex<HashSet<String>>>,
    /// Queues that the delay queues lead to.
    delayed: Arc<Mutex<HashSet<String>>>,
    /// The queue that answers over RPC come to, if that is how results come.
    pub(crate) reply_to: Option<String>,
}

struct Publish {
    outgoing: Outgoing,
    done: oneshot::Sender<Result<(), PublishError>>,
}

impl Publisher {
    pub(crate) fn new(
        address: BrokerAddress,
        name: String,
        creates_queues: bool,
        confirms: bool,
        retry: RetryPolicy,
        replies: Option<Arc<Replies>>,
    ) -> Self {
        Self { address, name, creates_queues, confirms, retry, replies, link: Mutex::new(None) }
    }

    /// The connection, made now if there is none.
    pub(crate) async fn link(&self) -> Result<Link, PublishError> {
        let mut current = self.link.lock().await;
        if let Some(link) = current.as_ref().filter(|link| link.is_open()) {
            return Ok(link.clone());
        }
        *current = None;
        let link = Link::open(&self.address, &self.name, self.confirms, self.replies.as_ref()).await?;
        Ok(current.insert(link).clone())
    }

    /// Publishes what `message` makes for a link, and waits until the broker has it.
    ///
    /// After a lost connection it is published again, as Celery does, so that a message whose confirm was lost arrives
    /// twice under the same task id. The queue that it is for is made if it is missing and that is wanted; for a `delayed`
    /// message the delay queues are made too.
    pub(crate) async fn publish(
        &self,
        queue: Option<&str>,
        delayed: bool,
        message: impl Fn(&Link) -> Outgoing,
    ) -> Result<(), PublishError> {
        let mut delays = self.retry.delays();
        loop {
            let attempt = async {
                let link = self.link().await?;
                if let Some(queue) = queue.filter(|_| self.creates_queues) {
                    link.declare(queue).await?;
                }
                if let Some(queue) = queue.filter(|_| delayed) {
                    link.declare_delays(queue).await?;
                }
                link.publish(message(&link)).await
            };
            let error = match attempt.await {
                Err(error) if error.is_worth_a_retry() => error,
                settled => return settled,
            };
            let Some(delay) = delays.next() else { return Err(error) };
            tracing::warn!(error = &error as &dyn std::error::Error, ?delay, "publish again");
            tokio::time::sleep(delay).await;
        }
    }

    /// Closes the connection, if there is one.
    pub(crate) async fn close(&self) {
        if let Some(link) = self.link.lock().await.take() {
            // Best effort: closing tells the broker that nothing went wrong, and no more.
            let _ = link.connection.close(200, short("bye")).await;
        }
    }
}

impl Link {
    async fn open(
        address: &BrokerAddress,
        name: &str,
        confirms: bool,
        replies: Option<&Arc<Replies>>,
    ) -> Result<Self, PublishError> {
        let connection = connect(address, name).await?;
        let refused =
            |source| PublishError::Connect(ConnectError::Refused { address: address.to_string(), source });
        let channel = connection.create_channel().await.map_err(refused)?;
        if confirms {
            channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(refused)?;
        }
        let reply_to = match replies {
            Some(replies) => Some(replies.listen(&connection).await.map_err(refused)?),
            None => None,
        };
        let (publishing, requests) = mpsc::channel(UNCONFIRMED);
        tokio::spawn(publish_all(channel, requests));
        Ok(Self {
            connection: Arc::new(connection),
            publishing,
            declared: Arc::default(),
            delayed: Arc::default(),
            reply_to,
        })
    }

    fn is_open(&self) -> bool {
        self.connection.status().connected() && !self.publishing.is_closed()
    }

    /// Makes sure of a queue once for each connection.
    async fn declare(&self, queue: &str) -> Result<(), QueueError> {
        let mut declared = self.declared.lock().await;
        if !declared.contains(queue) {
            queue::declare_default(&self.connection, queue).await?;
            declared.insert(queue.to_owned());
        }
        Ok(())
    }

    /// Makes sure of the delay queues, and that they lead to a queue, once for each connection.
    async fn declare_delays(&self, queue: &str) -> Result<(), QueueError> {
        let mut delayed = self.delayed.lock().await;
        if delayed.is_empty() {
            delays::declare(&self.connection).await?;
        }
        if !delayed.contains(queue) {
            delays::bind(&self.connection, queue).await?;
            delayed.insert(queue.to_owned());
        }
        Ok(())
    }

    async fn publish(&self, outgoing: Outgoing) -> Result<(), PublishError> {
        let routing_key = outgoing.routing_key.clone();
        let closed = || PublishError::Closed { routing_key: routing_key.clone() };
        let (done, settled) = oneshot::channel();
        self.publishing.send(Publish { outgoing, done }).await.map_err(|_| closed())?;
        let result = settled.await.map_err(|_| closed())?;
        if matches!(result, Err(PublishError::Unroutable { .. })) {
            // Deleted since it was declared: the next message finds out.
            self.declared.lock().await.remove(&routing_key);
        }
        result
    }
}

/// A message on its way: its label, its destination, and whom to tell.
struct Settled {
    label: Option<String>,
    routing_key: String,
    confirmation: lapin::Result<Confirmation>,
    done: oneshot::Sender<Result<(), PublishError>>,
}

/// Publishes in order on one channel and tells each sender how it went.
///
/// All in one task: lapin numbers a message before it queues its frames, so that two publishing tasks could be told each
/// other's outcome.
async fn publish_all(channel: Channel, mut requests: mpsc::Receiver<Publish>) {
    let mut unconfirmed: FuturesOrdered<BoxFuture<'static, Settled>> = FuturesOrdered::new();
    let mut returned = Returned::default();
    loop {
        tokio::select! {
            // Confirms first: they also drive the messages that were just taken in.
            biased;
            Some(settled) = unconfirmed.next() => returned.settle(settled),
            request = requests.recv(), if unconfirmed.len() < UNCONFIRMED => match request {
                Some(request) => unconfirmed.push_back(publish_one(channel.clone(), request).boxed()),
                None if unconfirmed.is_empty() => return,
                None => {
                    while let Some(settled) = unconfirmed.next().await {
                        returned.settle(settled);
                    }
                    return;
                }
            },
        }
        if !channel.status().connected() && unconfirmed.is_empty() {
            // Senders that wait are told by their dropped requests.
            return;
        }
    }
}

async fn publish_one(channel: Channel, Publish { outgoing, done }: Publish) -> Settled {
    let label = outgoing.properties.correlation_id().as_ref().map(|label| label.as_str().to_owned());
    let (exchange, key) = (short(&outgoing.exchange), short(&outgoing.routing_key));
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let published = channel.basic_publish(exchange, key, options, &outgoing.body, outgoing.properties).await;
    let confirmation = match published {
        Ok(confirm) => confirm.await,
        Err(error) => Err(error),
    };
    Settled { label, routing_key: outgoing.routing_key, confirmation, done }
}

/// Labels of messages that came back.
///
/// When RabbitMQ confirms several messages at once, lapin hands a returned one to any of them, so that the label on it
/// says whose it is.
#[derive(Default)]
struct Returned(HashSet<String>);

impl Returned {
    fn settle(&mut self, settled: Settled) {
        let Settled { label, routing_key, confirmation, done } = settled;
        let result = match confirmation {
            Err(source) => Err(PublishError::Lost { routing_key, source }),
            Ok(Confirmation::Nack(_)) => Err(PublishError::Refused { routing_key }),
            Ok(Confirmation::NotRequested) => Ok(()),
            Ok(Confirmation::Ack(None)) if self.0.is_empty() => Ok(()),
            Ok(Confirmation::Ack(message)) => {
                let of_message =
                    message.as_ref().and_then(|message| message.properties.correlation_id().as_ref());
                if let Some(of_message) = of_message {
                    self.0.insert(of_message.as_str().to_owned());
                }
                let came_back = match &label {
                    Some(label) => self.0.remove(label),
                    None => message.is_some(),
                };
                if came_back { Err(PublishError::Unroutable { routing_key }) } else { Ok(()) }
            }
        };
        // Nobody waits any more: the sender was cancelled.
        let _ = done.send(result);
    }
}
