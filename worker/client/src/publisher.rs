//! Publishing with confirms: many messages on their way at once, each known to have arrived or not.
//!
//! What few messages need (a connection, a queue, a channel of their own) is boxed: the state of each message on its way would be
//! several times as large.

use crate::amqp::short;
use crate::broker::BrokerAddress;
use crate::connect::{ConnectError, connect};
use crate::delays;
use crate::queue::{self, QueueError, reply_code};
use crate::results::Replies;
use crate::retry_policy::RetryPolicy;
use celery_protocol::request::ATTEMPTS_HEADER;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::FuturesUnordered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::protocol::AMQPErrorKind;
use lapin::types::{AMQPValue, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ErrorKind};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

/// Messages published and not yet confirmed. More gain nothing: RabbitMQ confirms in batches far smaller.
const UNCONFIRMED: usize = 1000;

/// Messages that are published on a channel of their own, at once. RabbitMQ allows 2,047 channels for each connection.
const ALONE: usize = 16;

/// How long the binding that delayed messages come through is taken to be there. It goes with its queue, unseen:
/// messages that are due then wait in the last delay queue until the queue is bound again.
const BOUND: Duration = Duration::from_secs(5);

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
    /// The connection or its channel was closed, not because of this message, before it was confirmed. It may have
    /// arrived.
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

    /// Whether the channel was closed because of one of the messages on it, which may have been another.
    fn may_be_of_another(&self) -> bool {
        let Self::Lost { source, .. } = self else { return false };
        matches!(source.kind(), ErrorKind::ProtocolError(error) if matches!(error.kind(), AMQPErrorKind::Soft(_)))
    }

    /// Whether another connection may do better.
    #[must_use]
    pub fn is_worth_a_retry(&self) -> bool {
        match self {
            Self::Connect(error) => error.category() != "access_refused",
            Self::Queue(QueueError::Declare { source, .. }) | Self::Lost { source, .. } => {
                // Whatever the broker explained, it will explain again, unless it says that something is wrong with itself: it
                // closes its connections (320), has too little of something (506) or an error within (541).
                reply_code(source).is_none_or(|code| matches!(code, 320 | 506 | 541))
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
    link: Mutex<Option<Arc<Link>>>,
    alone: Semaphore,
}

/// A connection, and a channel to publish on.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) connection: Arc<Connection>,
    publishing: Publishing,
    declared: Arc<Mutex<HashSet<String>>>,
    /// Queues that the delay queues lead to, and when that was last made sure of.
    delayed: Arc<Mutex<HashMap<String, Instant>>>,
    /// The queue that answers over RPC come to, if that is how results come.
    pub(crate) reply_to: Option<String>,
}

/// How messages get on a channel.
#[derive(Clone)]
enum Publishing {
    /// By way of the task that waits for the confirms. It ends with the last clone of this.
    Confirmed(mpsc::Sender<Publish>),
    /// Straight: there is nothing to wait for.
    Unconfirmed(Channel),
}

impl Publishing {
    /// Opens a channel, and starts the task that publishes on it if there are to be confirms.
    async fn open(connection: &Connection, confirms: bool) -> lapin::Result<Self> {
        let channel = connection.create_channel().await?;
        if !confirms {
            return Ok(Self::Unconfirmed(channel));
        }
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let (publishing, requests) = mpsc::channel(UNCONFIRMED);
        tokio::spawn(publish_all(channel, requests));
        Ok(Self::Confirmed(publishing))
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Confirmed(publishing) => publishing.is_closed(),
            Self::Unconfirmed(channel) => !channel.status().connected(),
        }
    }
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
        let (link, alone) = (Mutex::new(None), Semaphore::new(ALONE));
        Self { address, name, creates_queues, confirms, retry, replies, link, alone }
    }

    /// The connection, made now if there is none.
    pub(crate) async fn link(&self) -> Result<Arc<Link>, PublishError> {
        let mut current = self.link.lock().await;
        if let Some(link) = current.as_mut().filter(|link| link.connection.status().connected()) {
            if !link.publishing.is_closed() {
                return Ok(Arc::clone(link));
            }
            // A new channel is enough: queues for answers last as long as the connection.
            if let Ok(publishing) = Box::pin(Publishing::open(&link.connection, self.confirms)).await {
                *link = Arc::new(Link { publishing, ..Link::clone(link) });
                return Ok(Arc::clone(link));
            }
        }
        *current = None;
        let opening = Link::open(&self.address, &self.name, self.confirms, self.replies.as_ref());
        let link = Box::pin(opening).await?;
        Ok(Arc::clone(current.insert(link.into())))
    }

    /// Publishes what `message` makes for a link, and waits until the broker has it.
    ///
    /// After a lost connection it is published again, as Celery does, so that a message whose confirm was lost arrives
    /// twice under the same task id; the second says so in [`ATTEMPTS_HEADER`]. The queue that it is for is made if it is
    /// missing and that is wanted; for a `delayed` message the delay queues are made too.
    ///
    /// RabbitMQ closes the channel because of some messages (too large, for one), and does not say which: each that was on
    /// its way is then published on a channel of its own.
    pub(crate) async fn publish(
        &self,
        queue: Option<&str>,
        delayed: bool,
        message: impl Fn(&Link) -> Outgoing,
    ) -> Result<(), PublishError> {
        let mut delays = self.retry.delays();
        let mut may_have_arrived = false;
        loop {
            let attempt = async {
                let link = self.link().await?;
                if let Some(queue) = queue.filter(|_| self.creates_queues) {
                    link.declare(queue).await?;
                }
                if let Some(queue) = queue.filter(|_| delayed) {
                    Box::pin(self.declare_delays(&link, queue)).await?;
                }
                let outgoing = message(&link);
                match link.publish(if may_have_arrived { sent_again(outgoing) } else { outgoing }).await {
                    Err(error) if error.may_be_of_another() => {
                        // Nobody closes it, so that this always gives a permit.
                        let _permit = self.alone.acquire().await;
                        Box::pin(link.publish_alone(sent_again(message(&link)))).await
                    }
                    published => published,
                }
            };
            let error = match attempt.await {
                Err(error) if error.is_worth_a_retry() => error,
                settled => return settled,
            };
            let Some(delay) = delays.next() else { return Err(error) };
            may_have_arrived |= matches!(error, PublishError::Lost { .. } | PublishError::Closed { .. });
            tracing::warn!(error = &error as &dyn std::error::Error, ?delay, "publish again");
            tokio::time::sleep(delay).await;
        }
    }

    /// Makes sure that delayed messages come to a queue, which is made if it was deleted since and that is wanted.
    async fn declare_delays(&self, link: &Link, queue: &str) -> Result<(), QueueError> {
        match link.declare_delays(queue).await {
            Err(QueueError::Missing { .. }) => {}
            settled => return settled,
        }
        link.forget(queue).await;
        if self.creates_queues {
            link.declare(queue).await?;
        }
        link.declare_delays(queue).await
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
        let publishing = Publishing::open(&connection, confirms).await.map_err(refused)?;
        let reply_to = match replies {
            Some(replies) => Some(replies.listen(&connection).await.map_err(refused)?),
            None => None,
        };
        Ok(Self {
            connection: Arc::new(connection),
            publishing,
            declared: Arc::default(),
            delayed: Arc::default(),
            reply_to,
        })
    }

    /// Makes sure of a queue once for each connection.
    async fn declare(&self, queue: &str) -> Result<(), QueueError> {
        let mut declared = self.declared.lock().await;
        if !declared.contains(queue) {
            Box::pin(queue::declare_default(&self.connection, queue)).await?;
            declared.insert(queue.to_owned());
        }
        Ok(())
    }

    /// Makes sure of the delay queues once for each connection, and now and then that they lead to a queue.
    async fn declare_delays(&self, queue: &str) -> Result<(), QueueError> {
        let mut delayed = self.delayed.lock().await;
        if delayed.is_empty() {
            delays::declare(&self.connection).await?;
        }
        if delayed.get(queue).is_none_or(|bound| bound.elapsed() >= BOUND) {
            delays::bind(&self.connection, queue).await?;
            delayed.insert(queue.to_owned(), Instant::now());
        }
        Ok(())
    }

    /// After a queue, or what delays its messages, turned out to be missing: makes sure of all that again.
    async fn forget(&self, queue: &str) {
        self.declared.lock().await.remove(queue);
        self.delayed.lock().await.clear();
    }

    /// Publishes on a channel of its own: what the broker says there is about this message and no other.
    async fn publish_alone(&self, outgoing: Outgoing) -> Result<(), PublishError> {
        let failed = |source| PublishError::Lost { routing_key: outgoing.routing_key.clone(), source };
        let publishing = Publishing::open(&self.connection, true).await.map_err(failed)?;
        Self { publishing, ..self.clone() }.publish(outgoing).await
    }

    async fn publish(&self, outgoing: Outgoing) -> Result<(), PublishError> {
        match &self.publishing {
            Publishing::Confirmed(publishing) => self.publish_confirmed(publishing, outgoing).await,
            Publishing::Unconfirmed(channel) => publish_unconfirmed(channel, outgoing).await,
        }
    }

    async fn publish_confirmed(
        &self,
        publishing: &mpsc::Sender<Publish>,
        outgoing: Outgoing,
    ) -> Result<(), PublishError> {
        let routing_key = outgoing.routing_key.clone();
        let closed = || PublishError::Closed { routing_key: routing_key.clone() };
        let (done, settled) = oneshot::channel();
        publishing.send(Publish { outgoing, done }).await.map_err(|_| closed())?;
        let result = settled.await.map_err(|_| closed())?;
        if matches!(result, Err(PublishError::Unroutable { .. })) {
            // Deleted since it was declared: the next message finds out.
            self.declared.lock().await.remove(&routing_key);
        }
        result
    }
}

/// The message, saying that it may have arrived before: who gets it looks whether it is done already.
fn sent_again(mut outgoing: Outgoing) -> Outgoing {
    let mut headers = outgoing.properties.headers().clone().unwrap_or_default();
    if !headers.contains_key(ATTEMPTS_HEADER) {
        headers.insert(ATTEMPTS_HEADER.into(), AMQPValue::LongInt(0));
    }
    outgoing.properties = outgoing.properties.with_headers(headers);
    outgoing
}

/// Publishes, and waits until the message has left for the broker.
async fn publish_unconfirmed(channel: &Channel, outgoing: Outgoing) -> Result<(), PublishError> {
    let (exchange, key) = (short(&outgoing.exchange), short(&outgoing.routing_key));
    let options = BasicPublishOptions::default();
    match channel.basic_publish(exchange, key, options, &outgoing.body, outgoing.properties).await {
        Ok(_) => Ok(()),
        Err(source) => Err(not_published(source, &outgoing.exchange, outgoing.routing_key)),
    }
}

/// What tells a message from others when it comes back: its label and its destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Identity {
    label: Option<ShortString>,
    exchange: ShortString,
    routing_key: ShortString,
}

/// A message that is no longer on its way, and whom to tell.
struct Settled {
    message: Identity,
    confirmation: lapin::Result<Confirmation>,
    done: oneshot::Sender<Result<(), PublishError>>,
}

/// Publishes in order on one channel and tells each sender how it went.
///
/// All in one task: lapin numbers a message before it queues its frames, so that two publishing tasks could be told each
/// other's outcome.
async fn publish_all(channel: Channel, mut requests: mpsc::Receiver<Publish>) {
    // Polls what is new in the order in which it was added.
    let mut unconfirmed: FuturesUnordered<BoxFuture<'static, Settled>> = FuturesUnordered::new();
    let mut returned = Returned::default();
    let mut closing = false;
    loop {
        tokio::select! {
            // Confirms first: they also drive the messages that were just taken in.
            biased;
            Some(settled) = unconfirmed.next() => {
                let mut batch = vec![settled];
                while let Some(Some(settled)) = unconfirmed.next().now_or_never() {
                    batch.push(settled);
                }
                returned.settle(batch, unconfirmed.is_empty());
            }
            request = requests.recv(), if !closing && unconfirmed.len() < UNCONFIRMED => match request {
                Some(request) => unconfirmed.push(publish_one(channel.clone(), request).boxed()),
                None => closing = true,
            },
            // Nothing is on its way, and nothing more comes.
            else => return,
        }
        if !channel.status().connected() && unconfirmed.is_empty() {
            // Senders that wait are told by their dropped requests.
            return;
        }
    }
}

async fn publish_one(channel: Channel, Publish { outgoing, done }: Publish) -> Settled {
    let message = Identity {
        label: outgoing.properties.correlation_id().clone(),
        exchange: short(&outgoing.exchange),
        routing_key: short(&outgoing.routing_key),
    };
    let (exchange, key) = (message.exchange.clone(), message.routing_key.clone());
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let published = channel.basic_publish(exchange, key, options, &outgoing.body, outgoing.properties).await;
    let confirmation = match published {
        Ok(confirm) => confirm.await,
        Err(error) => Err(error),
    };
    Settled { message, confirmation, done }
}

/// Messages that came back.
///
/// RabbitMQ returns a message before it confirms it, and lapin hands the oldest return that it has to whichever message it
/// takes for confirmed next. When RabbitMQ confirms several at once that is any of them, so that a return says itself
/// whose it is. By the time of a message's confirm its own return was handed out, with that confirm or an earlier one,
/// unless another's return came with it: then its own may be still to come.
#[derive(Default)]
struct Returned {
    /// Came back, and their own confirms are still to come.
    unclaimed: HashMap<Identity, usize>,
    /// Confirmed, together with a return of another message.
    held: Vec<(Identity, oneshot::Sender<Result<(), PublishError>>)>,
}

impl Returned {
    /// Tells senders how it went. `batch` is all that is settled so far; `is_last` when nothing else is on its way.
    fn settle(&mut self, batch: Vec<Settled>, is_last: bool) {
        for settled in &batch {
            if let Ok(Confirmation::Ack(Some(back)) | Confirmation::Nack(Some(back))) = &settled.confirmation
            {
                let message = Identity {
                    label: back.properties.correlation_id().clone(),
                    exchange: back.exchange.clone(),
                    routing_key: back.routing_key.clone(),
                };
                *self.unclaimed.entry(message).or_default() += 1;
            }
        }
        for (message, done) in std::mem::take(&mut self.held) {
            self.acknowledged(message, done, true);
        }
        for Settled { message, confirmation, done } in batch {
            let routing_key = message.routing_key.to_string();
            let result = match confirmation {
                Ok(Confirmation::Ack(back)) => {
                    self.acknowledged(message, done, back.is_some());
                    continue;
                }
                // Not on a channel with confirms.
                Ok(Confirmation::NotRequested) => Ok(()),
                Ok(Confirmation::Nack(_)) => {
                    self.claim(&message);
                    Err(PublishError::Refused { routing_key })
                }
                Err(source) => {
                    self.claim(&message);
                    Err(not_published(source, message.exchange.as_str(), routing_key))
                }
            };
            tell(done, result);
        }
        if is_last {
            self.unclaimed.clear();
        }
        // As many confirms as returns: none of the returns is still to come.
        if self.unclaimed.is_empty() {
            for (_, done) in self.held.drain(..) {
                tell(done, Ok(()));
            }
        }
    }

    fn acknowledged(
        &mut self,
        message: Identity,
        done: oneshot::Sender<Result<(), PublishError>>,
        may_come_back: bool,
    ) {
        if self.claim(&message) {
            tell(done, Err(PublishError::Unroutable { routing_key: message.routing_key.to_string() }));
        } else if may_come_back {
            self.held.push((message, done));
        } else {
            tell(done, Ok(()));
        }
    }

    /// Whether a message came back, which is told once for each time.
    fn claim(&mut self, message: &Identity) -> bool {
        let Some(count) = self.unclaimed.get_mut(message) else { return false };
        *count -= 1;
        if *count == 0 {
            self.unclaimed.remove(message);
        }
        true
    }
}

fn tell(done: oneshot::Sender<Result<(), PublishError>>, result: Result<(), PublishError>) {
    // An error means that nobody waits any more: the sender was cancelled.
    let _ = done.send(result);
}

/// What to tell the sender of a message that was not published because of `source`.
fn not_published(source: lapin::Error, exchange: &str, routing_key: String) -> PublishError {
    if is_of_another(&source, exchange) {
        PublishError::Closed { routing_key }
    } else {
        PublishError::Lost { routing_key, source }
    }
}

/// Whether the channel was closed because of an exchange that is missing or forbidden, and not the one given.
///
/// All messages that wait for a confirm are told of the same error.
fn is_of_another(error: &lapin::Error, exchange: &str) -> bool {
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    let named = if exchange.is_empty() { "amq.default" } else { exchange };
    matches!(error.get_id(), 403 | 404)
        && !error.get_message().as_str().contains(&format!("exchange '{named}'"))
}

#[cfg(test)]
mod tests;
