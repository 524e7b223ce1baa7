//! Waiting for results in Redis: one connection subscribed to all that are awaited, and no polling.

use super::address::RedisAddress;
use super::redis::client;
use futures_util::StreamExt;
use redis::aio::{PubSubSink, PubSubStream};
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// How often a quiet connection is asked whether it is still there, and how long it may take to answer.
const PING_EVERY: Duration = Duration::from_secs(15);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Waits between attempts to connect again: doubled each time, up to the second.
const RETRY_FROM: Duration = Duration::from_millis(50);
const RETRY_UP_TO: Duration = Duration::from_secs(2);
/// Keys asked for in one command.
const BATCH: usize = 500;

/// What a waiter is told of its key.
#[derive(Clone, Debug)]
pub(crate) enum Update {
    /// From now on nothing is missed: what was stored before has to be looked up once.
    Subscribed,
    /// Something was stored.
    Stored(Vec<u8>),
}

enum Request {
    Watch { key: String, updates: mpsc::UnboundedSender<Update> },
    Unwatch { key: String },
}

/// The subscribed connection, made when the first waiter comes. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Subscriptions {
    requests: mpsc::UnboundedSender<Request>,
}

/// Updates of one key until it is dropped.
pub(crate) struct Watched {
    key: String,
    requests: mpsc::UnboundedSender<Request>,
    pub(crate) updates: mpsc::UnboundedReceiver<Update>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.updates.close();
        let _ = self.requests.send(Request::Unwatch { key: std::mem::take(&mut self.key) });
    }
}

impl Subscriptions {
    /// Starts the task that holds the connection; it ends with the last clone.
    pub(crate) fn new(address: RedisAddress) -> Self {
        let (requests, receiver) = mpsc::unbounded_channel();
        tokio::spawn(Task { address, requests: receiver, waiting: HashMap::new() }.run());
        Self { requests }
    }

    /// Watches a key. The first update says that nothing is missed from there on.
    pub(crate) fn watch(&self, key: String) -> Watched {
        let (updates, receiver) = mpsc::unbounded_channel();
        let request = Request::Watch { key: key.clone(), updates };
        // The task lives as long as this sender.
        let _ = self.requests.send(request);
        Watched { key, requests: self.requests.clone(), updates: receiver }
    }
}

type Waiters = Vec<mpsc::UnboundedSender<Update>>;

struct Task {
    address: RedisAddress,
    requests: mpsc::UnboundedReceiver<Request>,
    waiting: HashMap<String, Waiters>,
}

/// Why the connection is given up.
enum End {
    /// Nobody can ever wait again.
    Unused,
    /// It has to be made anew.
    Broken(redis::RedisError),
}

impl From<redis::RedisError> for End {
    fn from(error: redis::RedisError) -> Self {
        Self::Broken(error)
    }
}

impl Task {
    async fn run(mut self) {
        let mut delay = RETRY_FROM;
        loop {
            // No waiter, no connection.
            while self.waiting.is_empty() {
                let Some(request) = self.requests.recv().await else { return };
                self.take(request);
            }
            let connected_at = Instant::now();
            match self.serve().await {
                Err(End::Unused) | Ok(()) => return,
                Err(End::Broken(error)) => {
                    tracing::warn!(%error, "subscription to results in redis lost, connecting again");
                }
            }
            if connected_at.elapsed() > RETRY_UP_TO {
                delay = RETRY_FROM;
            }
            tokio::time::sleep(delay).await;
            delay = RETRY_UP_TO.min(delay * 2);
        }
    }

    /// Connects, subscribes to all that is awaited, and passes on what is stored until the connection breaks.
    async fn serve(&mut self) -> Result<(), End> {
        let (mut sink, mut stream) =
            within(async { client(&self.address)?.get_async_pubsub().await }).await?.split();
        let all: Vec<String> = self.waiting.keys().cloned().collect();
        self.subscribe(&mut sink, &all).await?;
        let mut requests = Vec::new();
        loop {
            tokio::select! {
                count = self.requests.recv_many(&mut requests, BATCH) => {
                    if count == 0 {
                        return Err(End::Unused);
                    }
                    self.change(&mut sink, requests.drain(..)).await?;
                }
                stored = next(&mut stream) => self.stored(stored?),
                () = tokio::time::sleep(PING_EVERY) => within(sink.ping::<()>()).await?,
            }
        }
    }

    async fn change(
        &mut self,
        sink: &mut PubSubSink,
        requests: impl Iterator<Item = Request>,
    ) -> Result<(), End> {
        let mut added = Vec::new();
        let mut removed = Vec::new();
        for request in requests {
            match &request {
                Request::Watch { key, .. } => added.push(key.clone()),
                Request::Unwatch { key } => removed.push(key.clone()),
            }
            self.take(request);
        }
        // Gone again already, or still watched by another waiter.
        added.retain(|key| self.waiting.contains_key(key));
        removed.retain(|key| !self.waiting.contains_key(key));
        self.subscribe(sink, &added).await?;
        for keys in removed.chunks(BATCH) {
            within(sink.unsubscribe(keys)).await?;
        }
        Ok(())
    }

    async fn subscribe(&mut self, sink: &mut PubSubSink, keys: &[String]) -> Result<(), End> {
        for keys in keys.chunks(BATCH) {
            within(sink.subscribe(keys)).await?;
            for key in keys {
                self.tell(key, &Update::Subscribed);
            }
        }
        Ok(())
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::Watch { key, updates } => self.waiting.entry(key).or_default().push(updates),
            Request::Unwatch { key } => {
                if let Some(waiters) = self.waiting.get_mut(&key) {
                    waiters.retain(|waiter| !waiter.is_closed());
                    if waiters.is_empty() {
                        self.waiting.remove(&key);
                    }
                }
            }
        }
    }

    fn stored(&self, message: redis::Msg) {
        self.tell(message.get_channel_name(), &Update::Stored(message.get_payload_bytes().to_vec()));
    }

    fn tell(&self, key: &str, update: &Update) {
        for waiter in self.waiting.get(key).into_iter().flatten() {
            let _ = waiter.send(update.clone());
        }
    }
}

async fn next(stream: &mut PubSubStream) -> Result<redis::Msg, End> {
    let closed = || std::io::Error::from(std::io::ErrorKind::ConnectionReset).into();
    stream.next().await.ok_or_else(|| End::Broken(closed()))
}

async fn within<T>(answer: impl Future<Output = redis::RedisResult<T>>) -> Result<T, End> {
    match timeout(ANSWER_WITHIN, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(End::Broken(std::io::Error::from(std::io::ErrorKind::TimedOut).into())),
    }
}
