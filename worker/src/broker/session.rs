//! One connection that tasks come in on: consumers, deliveries, acknowledgements.

use std::{collections::BTreeMap, ops::Deref, sync::Arc, time::Duration};

use celery_client::{BrokerAddress, amqp::short, connect, queue};
use celery_protocol::Request;
use futures_util::{StreamExt, future::join_all};
use lapin::{
    Channel, Connection, Consumer, ExchangeKind,
    message::Delivery,
    options::{
        BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions,
    },
    types::FieldTable,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{ANSWER_TIMEOUT, Acks, BrokerError, answer, bounded};
use crate::{
    backoff::{self, Backoff},
    done::Done,
    health::Health,
    queues::{Binding, Queue},
    settle::Disposition,
};

/// What a session needs to know.
#[derive(Clone, Debug)]
pub(crate) struct SessionOptions {
    pub(crate) address: BrokerAddress,
    /// Name of the connection on the broker.
    pub(crate) name: String,
    /// Whether a queue that does not exist is made, as Celery would make it.
    pub(crate) create_missing_queues: bool,
}

/// A message, and the queue that it came out of.
#[derive(Debug)]
pub(crate) struct Arrival {
    delivery: Delivery,
    pub(crate) queue: Arc<str>,
    acks: Arc<Acks>,
}

impl Arrival {
    /// Tells the broker what became of the message, and of the call in it, if it is one.
    pub(crate) fn settle(&self, disposition: Disposition, call: Option<&Arc<Request>>) {
        self.acks.settle(self.delivery_tag, disposition, call.cloned());
    }

    /// Whether the broker can still be told what became of the message: otherwise it delivers it again.
    pub(crate) fn is_ours(&self) -> bool {
        self.acks.is_open()
    }

    /// Acknowledges the message now, while it is still being worked on; false if that can't be done.
    pub(crate) async fn acknowledge(&self) -> bool {
        self.acks.acknowledge(self.delivery_tag).await
    }
}

impl Deref for Arrival {
    type Target = Delivery;

    fn deref(&self) -> &Delivery {
        &self.delivery
    }
}

/// A message to acknowledge, on whatever thread, as soon as its task has succeeded.
#[derive(Debug)]
pub(crate) struct Receipt {
    arrival: Arc<Arrival>,
    call: Arc<Request>,
}

impl Receipt {
    pub(crate) fn new(arrival: &Arc<Arrival>, call: &Arc<Request>) -> Self {
        Self { arrival: Arc::clone(arrival), call: Arc::clone(call) }
    }

    /// Tells the broker that the message is done with, unless it was told something else before.
    pub(crate) fn acknowledge(&self) {
        self.arrival.settle(Disposition::Ack, Some(&self.call));
    }
}

/// What comes in on a session.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A message.
    Delivery(Box<Arrival>),
    /// A queue is consumed from now. The first of its messages, if there are any, follow at once.
    Consuming,
    /// The broker has done what it was asked to, or has refused or not answered in time. From consumers that were to end, nothing follows.
    Answered {
        /// What consumers that begin from now on may have unacknowledged, if that has changed.
        prefetch: Option<u16>,
    },
    /// The connection or its channel has failed: nothing follows, and what isn't acknowledged is delivered again.
    Lost(String),
}

/// An open connection and its consumers. What the broker is asked for is not waited for here, as the worker has other things to see to
/// meanwhile: its answer comes in like messages do. Dropping it closes both; the broker takes back what isn't acknowledged.
#[derive(Debug)]
pub(crate) struct Session {
    connection: Arc<Connection>,
    channel: Channel,
    options: SessionOptions,
    health: Arc<Health>,
    /// Messages that each consumer may have unacknowledged.
    prefetch: u16,
    acks: Arc<Acks>,
    feeds: BTreeMap<String, FeedHandle>,
    /// Requests that the broker has not answered yet.
    asked: usize,
    sender: mpsc::UnboundedSender<Incoming>,
    incoming: mpsc::UnboundedReceiver<Incoming>,
}

#[derive(Debug)]
struct FeedHandle {
    queue: Queue,
    stop: oneshot::Sender<()>,
    feed: JoinHandle<()>,
}

impl FeedHandle {
    async fn end(self) {
        // A feed that has ended by itself needs no telling.
        let _ = self.stop.send(());
        if timeout(2 * ANSWER_TIMEOUT, self.feed).await.is_err() {
            warn!("a consumer did not end in time");
        }
    }
}

impl Session {
    /// Connects. Nothing is consumed yet.
    pub(crate) async fn open(
        options: SessionOptions,
        health: Arc<Health>,
        done: Arc<Done>,
    ) -> Result<Self, BrokerError> {
        let connection = connect(&options.address, &options.name).await?;
        let channel = answer("open a channel", connection.create_channel()).await?;
        limit(&channel, 1).await?;
        let (sender, incoming) = mpsc::unbounded_channel();
        Ok(Self {
            connection: Arc::new(connection),
            acks: Arc::new(Acks::new(channel.clone(), done)),
            channel,
            options,
            health,
            prefetch: 1,
            feeds: BTreeMap::new(),
            asked: 0,
            sender,
            incoming,
        })
    }

    /// Messages that each consumer may have unacknowledged.
    pub(crate) fn prefetch(&self) -> u16 {
        self.prefetch
    }

    /// Acknowledgements of what came in on this session.
    pub(crate) fn acks(&self) -> &Arc<Acks> {
        &self.acks
    }

    /// Whether there are requests that the broker has not answered yet.
    pub(crate) fn is_asking(&self) -> bool {
        self.asked > 0
    }

    /// Asks the broker for something. Its answer comes out of [`Session::next`].
    fn ask(&mut self, request: impl Future<Output = Option<u16>> + Send + 'static) {
        self.asked += 1;
        let sender = self.sender.clone();
        tokio::spawn(async move {
            // If the session is gone, nobody needs to know.
            let _ = sender.send(Incoming::Answered { prefetch: request.await });
        });
    }

    /// Replaces all consumers by ones that may have so many messages unacknowledged, as soon as the broker allows it: the limit of a
    /// consumer is that of its beginning.
    pub(crate) fn limit(&mut self, prefetch: u16) {
        let channel = self.channel.clone();
        self.ask(async move {
            let limited = limit(&channel, prefetch).await;
            if let Err(error) = &limited {
                warn!(error = error.describe(), "can't change the prefetch");
            }
            limited.is_ok().then_some(prefetch)
        });
    }

    /// Whether there is a consumer of this queue that is not to end.
    pub(crate) fn consumes(&self, queue: &str) -> bool {
        self.feeds.contains_key(queue)
    }

    /// Consumes from `queue`, from now on or as soon as it exists.
    pub(crate) fn consume(&mut self, queue: &Queue) {
        if !self.consumes(&queue.name) {
            self.feed(queue, None);
        }
    }

    fn feed(&mut self, queue: &Queue, replaced: Option<FeedHandle>) {
        let (stop, stopped) = oneshot::channel();
        let feed = Feed {
            queue: queue.clone(),
            tag: format!("soloist-{}", uuid::Uuid::new_v4().simple()),
            connection: Arc::clone(&self.connection),
            channel: self.channel.clone(),
            create_missing: self.options.create_missing_queues,
            health: Arc::clone(&self.health),
            sender: self.sender.clone(),
            acks: Arc::clone(&self.acks),
            name: queue.name.as_str().into(),
        };
        let feed = tokio::spawn(feed.run(stopped, replaced));
        self.feeds.insert(queue.name.clone(), FeedHandle { queue: queue.clone(), stop, feed });
    }

    /// Stops consuming from these queues. What the broker had sent already comes out of [`Session::next`] before its answer.
    pub(crate) fn cancel(&mut self, is_meant: impl Fn(&Queue) -> bool) {
        let feeds: Vec<_> = self.feeds.extract_if(.., |_, handle| is_meant(&handle.queue)).collect();
        self.ask(async move {
            join_all(feeds.into_iter().map(|(_, handle)| handle.end())).await;
            None
        });
    }

    /// The next thing to come in.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Incoming {
        // The session holds a sender itself, so the channel is never closed.
        match self.incoming.recv().await {
            Some(incoming) => self.note(incoming),
            None => std::future::pending().await,
        }
    }

    /// What has come in already.
    pub(crate) fn try_next(&mut self) -> Option<Incoming> {
        let incoming = self.incoming.try_recv().ok()?;
        Some(self.note(incoming))
    }

    fn note(&mut self, incoming: Incoming) -> Incoming {
        if let Incoming::Answered { prefetch } = incoming {
            self.asked -= 1;
            if let Some(prefetch) = prefetch {
                self.prefetch = prefetch;
                for (_, handle) in std::mem::take(&mut self.feeds) {
                    let queue = handle.queue.clone();
                    self.feed(&queue, Some(handle));
                }
            }
        }
        incoming
    }

    /// Closes the connection, after everything sent before has reached the broker.
    pub(crate) async fn close(self) {
        self.acks.sent().await;
        if let Err(error) = answer("close the connection", self.connection.close(200, "done".into())).await {
            warn!(error = %error.describe(), "the connection did not close in good order");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for handle in self.feeds.values() {
            handle.feed.abort();
        }
    }
}

/// Lets consumers that begin from now on have so many messages unacknowledged.
async fn limit(channel: &Channel, prefetch: u16) -> Result<(), BrokerError> {
    // Per consumer: quorum queues know no other kind of limit, and RabbitMQ 4.3 denies the other for all.
    answer("limit the prefetch", channel.basic_qos(prefetch, BasicQosOptions { global: false })).await
}

/// Brings one queue's messages into the session.
struct Feed {
    queue: Queue,
    tag: String,
    connection: Arc<Connection>,
    channel: Channel,
    create_missing: bool,
    health: Arc<Health>,
    sender: mpsc::UnboundedSender<Incoming>,
    acks: Arc<Acks>,
    name: Arc<str>,
}

impl Feed {
    /// Consumes until it is stopped or the channel is lost, and ends the feed that it replaces as soon as it has begun.
    async fn run(self, mut stopped: oneshot::Receiver<()>, mut replaced: Option<FeedHandle>) {
        let mut ending = None;
        self.consume(&mut stopped, || {
            if let Some(replaced) = replaced.take() {
                ending = Some(tokio::spawn(replaced.end()));
            }
        })
        .await;
        if let Some(replaced) = replaced {
            replaced.end().await;
        }
        if let Some(ending) = ending {
            // An error means that the runtime is going down.
            let _ = ending.await;
        }
    }

    async fn consume(&self, stopped: &mut oneshot::Receiver<()>, mut begun: impl FnMut()) {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
        loop {
            // Not to be interrupted: a consumer that the broker has and we don't know of would keep its messages for itself.
            let consumer = self.start().await;
            let problem = match consumer {
                Ok(consumer) => {
                    debug!(queue = self.queue.name, "consuming");
                    if stopped.is_empty() {
                        self.health.queue(&self.queue.name, None);
                    }
                    let _ = self.sender.send(Incoming::Consuming);
                    backoff.reset();
                    begun();
                    match self.forward(consumer, stopped).await {
                        Ended::Stopped => return,
                        Ended::Failed(error) => error.describe(),
                        Ended::Cancelled => {
                            format!("the broker stopped the consumer of queue `{}`", self.queue.name)
                        }
                    }
                }
                Err(error) => error.describe(),
            };
            if !self.channel.status().connected() {
                // Nobody is there to hear it if the session is gone.
                let _ = self.sender.send(Incoming::Lost(problem));
                return;
            }
            if !stopped.is_empty() {
                return;
            }
            self.health.queue(&self.queue.name, Some(problem.clone()));
            let wait = backoff.next(backoff::random());
            warn!(queue = self.queue.name, problem, retry_in = ?wait, "not consuming");
            tokio::select! {
                _ = &mut *stopped => return,
                () = sleep(wait) => {}
            }
        }
    }

    /// Makes sure that the queue is there and consumes from it.
    async fn start(&self) -> Result<Consumer, BrokerError> {
        if self.create_missing {
            bounded("declare the queue", queue::declare_default(&self.connection, &self.queue.name)).await?;
        } else {
            bounded("look for the queue", queue::inspect(&self.connection, &self.queue.name)).await?;
        }
        if let Some(binding) = &self.queue.binding {
            self.bind(binding).await?;
        }
        let (queue, tag) = (short(&self.queue.name), short(&self.tag));
        let options = BasicConsumeOptions::default();
        answer("consume", self.channel.basic_consume(queue, tag, options, FieldTable::default())).await
    }

    async fn bind(&self, binding: &Binding) -> Result<(), BrokerError> {
        let channel = answer("open a channel", self.connection.create_channel()).await?;
        let kind = match binding.exchange_type.as_str() {
            "direct" => ExchangeKind::Direct,
            "fanout" => ExchangeKind::Fanout,
            "topic" => ExchangeKind::Topic,
            "headers" => ExchangeKind::Headers,
            other => ExchangeKind::Custom(other.to_owned()),
        };
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declare =
            channel.exchange_declare(short(&binding.exchange), kind, options, FieldTable::default());
        answer("declare the exchange", declare).await?;
        let bind = channel.queue_bind(
            short(&self.queue.name),
            short(&binding.exchange),
            short(&binding.routing_key),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        answer("bind the queue", bind).await?;
        answer("close a channel", channel.close(200, short("done"))).await
    }

    async fn forward(&self, mut consumer: Consumer, stopped: &mut oneshot::Receiver<()>) -> Ended {
        loop {
            tokio::select! {
                biased;
                _ = &mut *stopped => break,
                next = consumer.next() => match next {
                    Some(Ok(delivery)) => self.deliver(delivery),
                    Some(Err(source)) => return Ended::Failed(BrokerError::Refused { doing: "consume", source }),
                    None => return Ended::Cancelled,
                },
            }
        }
        let cancel = self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        if let Err(error) = answer("cancel the consumer", cancel).await {
            warn!(queue = self.queue.name, error = %error.describe(), "can't stop consuming in good order");
        } else {
            // The broker may have sent more before it heard of it; the stream ends after that.
            while let Ok(next) = timeout(ANSWER_TIMEOUT, consumer.next()).await {
                match next {
                    Some(Ok(delivery)) => self.deliver(delivery),
                    _ => return Ended::Stopped,
                }
            }
        }
        // Otherwise what is still to come would stay unacknowledged for as long as the channel is open.
        let acks = Arc::clone(&self.acks);
        tokio::spawn(async move {
            while let Some(Ok(delivery)) = consumer.next().await {
                acks.arrived(delivery.delivery_tag);
                acks.settle(delivery.delivery_tag, Disposition::Requeue, None);
            }
        });
        Ended::Stopped
    }

    fn deliver(&self, delivery: Delivery) {
        self.acks.arrived(delivery.delivery_tag);
        let (queue, acks) = (Arc::clone(&self.name), Arc::clone(&self.acks));
        // If the session is gone, so is its channel: the broker takes the message back.
        let _ = self.sender.send(Incoming::Delivery(Box::new(Arrival { delivery, queue, acks })));
    }
}

/// Why a consumer has ended.
enum Ended {
    Stopped,
    Cancelled,
    Failed(BrokerError),
}
