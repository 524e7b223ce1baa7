//! The client: sends tasks, and hands out what their results can be had from.

use crate::amqp;
use crate::async_result::{AsyncResult, ResultError, Source};
use crate::broker::BrokerAddress;
use crate::publisher::{Outgoing, PublishError, Publisher};
use crate::results::{RedisResults, Replies, ResultStoreAddress, StoreError, Subscriptions};
use celery_protocol::json::JsonError;
use celery_protocol::signature::SignatureError;
use celery_protocol::{Request, Signature, TaskMeta};
use jiff::Timestamp;
use serde::Serialize;
use std::sync::Arc;
use uuid::Uuid;

/// Celery's own name for the queue of tasks that name none.
const DEFAULT_QUEUE: &str = "celery";

/// Why a task was not sent, or isn't known to be.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The arguments have no JSON form.
    #[error("arguments of `{task}`")]
    Arguments {
        /// Name of the task.
        task: String,
        /// Why.
        source: JsonError,
    },
    /// The signature can't be sent.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The message did not get into a queue.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The broker can't be used.
    #[error(transparent)]
    Broker(#[from] PublishError),
    /// The result store can't be used.
    #[error(transparent)]
    Results(#[from] StoreError),
}

/// A Celery client. Cheap to clone; clones share the connections.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use celery_client::Celery;
/// use std::time::Duration;
///
/// let celery = Celery::builder("amqp://guest:guest@localhost".parse()?)
///     .results("redis://localhost".parse()?)
///     .connect()
///     .await?;
/// let result = celery.send_task("tasks.add", &(1, 2), &()).await?;
/// let sum: i64 = result.get(Duration::from_secs(10)).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Celery(Arc<Inner>);

struct Inner {
    publisher: Publisher,
    results: Results,
    default_queue: String,
    origin: String,
}

/// Where this client's results come from.
enum Results {
    None,
    Redis { store: RedisResults, subscriptions: Subscriptions },
    Rpc(Arc<Replies>),
}

/// Settings of a client before it connects.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    broker: BrokerAddress,
    results: Option<ResultStoreAddress>,
    default_queue: String,
    name: String,
    creates_queues: bool,
}

impl Builder {
    /// Where workers leave their results. Without, results can't be asked for.
    pub fn results(self, address: ResultStoreAddress) -> Self {
        Self { results: Some(address), ..self }
    }

    /// The queue for tasks that name none; `celery` unless set.
    pub fn default_queue(self, queue: impl Into<String>) -> Self {
        Self { default_queue: queue.into(), ..self }
    }

    /// Name of the connection in RabbitMQ's management.
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Whether a missing queue is made, as Celery does, so that tasks sent before the first worker starts are kept.
    /// Yes unless set; where queues are someone else's to make, a missing one is better an error.
    pub fn create_missing_queues(self, create: bool) -> Self {
        Self { creates_queues: create, ..self }
    }

    /// Connects to the broker and the result store.
    ///
    /// Lost connections are made anew by whatever needs them next.
    ///
    /// # Errors
    /// When either can't be reached or refuses.
    pub async fn connect(self) -> Result<Celery, SetupError> {
        let results = match &self.results {
            None => Results::None,
            Some(ResultStoreAddress::Redis(address)) => Results::Redis {
                store: RedisResults::connect(address).await?,
                subscriptions: Subscriptions::new(address.clone()),
            },
            Some(ResultStoreAddress::Rpc) => Results::Rpc(Arc::default()),
        };
        let replies = match &results {
            Results::Rpc(replies) => Some(Arc::clone(replies)),
            _ => None,
        };
        let publisher = Publisher::new(self.broker, self.name, self.creates_queues, replies);
        publisher.link().await?;
        Ok(Celery(Arc::new(Inner {
            publisher,
            results,
            default_queue: self.default_queue,
            origin: origin(),
        })))
    }
}

impl Celery {
    /// Settings for a client of this broker.
    pub fn builder(broker: BrokerAddress) -> Builder {
        Builder {
            broker,
            results: None,
            default_queue: DEFAULT_QUEUE.to_owned(),
            name: "celery-client".to_owned(),
            creates_queues: true,
        }
    }

    /// Sends a task by name: positional arguments from a tuple, keyword arguments from a map or struct, `()` for none.
    ///
    /// # Errors
    /// As [`send`](Self::send), and when an argument has no JSON form.
    pub async fn send_task(
        &self,
        task: &str,
        args: &(impl Serialize + ?Sized),
        kwargs: &(impl Serialize + ?Sized),
    ) -> Result<AsyncResult, SendError> {
        let failed = |source| SendError::Arguments { task: task.to_owned(), source };
        let signature =
            Signature::new(task).with_args(args).and_then(|signature| signature.with_kwargs(kwargs));
        self.send(&signature.map_err(failed)?).await
    }

    /// Sends a task with all its options, and returns once the broker has it.
    ///
    /// Many may be sent at once, from one task or several: they share the connection, and none waits for another.
    ///
    /// # Errors
    /// When an option doesn't have its type, the broker can't be reached after some attempts, or the queue doesn't exist
    /// or refuses. After a lost connection a message may arrive twice, under the same id.
    pub async fn send(&self, signature: &Signature) -> Result<AsyncResult, SendError> {
        let now = Timestamp::now();
        let mut request = signature.to_request(|| Uuid::new_v4().to_string(), now)?;
        request.origin.get_or_insert_with(|| self.0.origin.clone());
        let route = signature.route();
        let queue = route.queue.clone().unwrap_or_else(|| self.0.default_queue.clone());
        // Like Celery: the queue's name is the key of the default exchange, unless exchange and key are both given.
        let (exchange, key, declared) = match (route.exchange, route.routing_key) {
            (Some(exchange), Some(key)) => (exchange, key, None),
            _ => (String::new(), queue.clone(), Some(queue.as_str())),
        };
        // Before it is sent: the answer may be faster than the confirm.
        let source = self.source(&request);
        let message = |link: &crate::publisher::Link| {
            let message = match (&request.reply_to, &link.reply_to) {
                (None, Some(reply_to)) => {
                    Request { reply_to: Some(reply_to.clone()), ..request.clone() }.encode(now)
                }
                _ => request.encode(now),
            };
            Outgoing {
                exchange: exchange.clone(),
                routing_key: key.clone(),
                properties: amqp::basic_properties(&message),
                body: message.body,
            }
        };
        self.0.publisher.publish(declared, message).await?;
        Ok(AsyncResult::new(request.id, source))
    }

    /// The result of a task that was sent earlier, by any client.
    ///
    /// Over RPC only those are ever known that this client has sent and not dropped the result of.
    #[must_use]
    pub fn result(&self, task_id: impl Into<String>) -> AsyncResult {
        let task_id = task_id.into();
        let source = match &self.0.results {
            Results::None => Source::None,
            Results::Redis { store, subscriptions } => {
                Source::Redis { store: store.clone(), subscriptions: subscriptions.clone() }
            }
            Results::Rpc(replies) => Source::Rpc(replies.awaited(&task_id)),
        };
        AsyncResult::new(task_id, source)
    }

    /// States and results of many tasks at once, in the order of their ids; none for a task that nothing is known of.
    ///
    /// # Errors
    /// When there is no result store to look them up in, or it can't be reached.
    pub async fn results<S: AsRef<str>>(&self, task_ids: &[S]) -> Result<Vec<Option<TaskMeta>>, ResultError> {
        match &self.0.results {
            Results::Redis { store, .. } => Ok(store.get_many(task_ids).await?),
            Results::None | Results::Rpc(_) => Err(ResultError::NoResultStore),
        }
    }

    /// Closes the connection to the broker.
    pub async fn close(&self) {
        self.0.publisher.close().await;
    }

    fn source(&self, request: &Request) -> Source {
        if request.ignore_result == Some(true) {
            return Source::Ignored;
        }
        self.result(request.id.as_str()).into_source()
    }
}

impl std::fmt::Debug for Celery {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Celery").field("default_queue", &self.0.default_queue).finish_non_exhaustive()
    }
}

/// Who sends, in Celery's form: `gen<pid>@<host>`.
fn origin() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    format!("gen{}@{}", std::process::id(), if host.is_empty() { "localhost" } else { host })
}
