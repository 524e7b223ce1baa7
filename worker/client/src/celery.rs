//! The client: its settings, and what it hands out.

use crate::async_result::{AsyncResult, ResultError};
use crate::broker::BrokerAddress;
use crate::canvas_result::{CanvasResult, GroupResult};
use crate::control::Control;
use crate::events::{Events, EventsError};
use crate::publisher::{PublishError, Publisher};
use crate::results::{RedisResults, Replies, ResultStoreAddress, StoreError, Subscriptions};
use crate::retry_policy::RetryPolicy;
use crate::routes::Routes;
use celery_protocol::TaskMeta;
use celery_protocol::signature::Route;
use std::sync::Arc;

/// Celery's own name for the queue of tasks that name none.
const DEFAULT_QUEUE: &str = "celery";

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
pub struct Celery(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) publisher: Publisher,
    pub(crate) results: Results,
    pub(crate) default_queue: String,
    pub(crate) routes: Routes,
    pub(crate) delays_in_broker: bool,
    pub(crate) origin: String,
}

/// Where this client's results come from.
pub(crate) enum Results {
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
    confirms: bool,
    routes: Routes,
    delays_in_broker: bool,
    retry: RetryPolicy,
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

    /// Whether sending waits until the broker says that it has the message. Yes unless set. Without, as Celery has it by
    /// default, sending is faster, and a message is lost without a word when its queue is missing or full, or the broker
    /// goes down at that moment.
    pub fn confirms(self, confirms: bool) -> Self {
        Self { confirms, ..self }
    }

    /// Where tasks go whose names match a shell pattern such as `reports.*`, unless the call says so itself: Celery's
    /// `task_routes`. A name without wildcards wins over patterns; of those, the first that matches.
    ///
    /// Steps of canvases take their route along, as the workers that go on with them don't know it.
    pub fn route(mut self, pattern: &str, route: Route) -> Self {
        self.routes.add(pattern, route);
        self
    }

    /// Whether tasks with an `eta` or a `countdown` wait in RabbitMQ's delay queues rather than in a worker. No unless
    /// set.
    ///
    /// Celery does so when it is configured with quorum queues, whose Python workers can't hold a task and take another
    /// at the same time. Soloist's workers put a task into the delay queues by themselves. The delay queues are declared, and
    /// the task's queue is bound to them, where that hasn't been done yet.
    pub fn delay_in_broker(self, delay: bool) -> Self {
        Self { delays_in_broker: delay, ..self }
    }

    /// How often a message is published again when the connection is lost.
    pub fn retry_policy(self, policy: RetryPolicy) -> Self {
        Self { retry: policy, ..self }
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
        let publisher =
            Publisher::new(self.broker, self.name, self.creates_queues, self.confirms, self.retry, replies);
        publisher.link().await?;
        Ok(Celery(Arc::new(Inner {
            publisher,
            results,
            default_queue: self.default_queue,
            routes: self.routes,
            delays_in_broker: self.delays_in_broker,
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
            confirms: true,
            routes: Routes::default(),
            delays_in_broker: false,
            retry: RetryPolicy::default(),
        }
    }

    /// The result of a task that was sent earlier, by any client.
    ///
    /// Over RPC only those are ever known that this client has sent and not dropped the result of.
    #[must_use]
    pub fn result(&self, task_id: impl Into<String>) -> AsyncResult {
        AsyncResult::new(self, task_id.into(), None)
    }

    /// The results of a group that was [saved](GroupResult::save), by any client; none if there is no such group.
    ///
    /// # Errors
    /// When the results aren't in Redis, or it can't be reached.
    pub async fn saved_group(&self, group_id: &str) -> Result<Option<GroupResult>, ResultError> {
        let handle = self.store()?.saved_group(group_id).await?;
        Ok(handle.and_then(|handle| match CanvasResult::new(self, handle) {
            CanvasResult::Group(group) => Some(group),
            CanvasResult::Task(_) => None,
        }))
    }

    /// States and results of many tasks at once, in the order of their ids; none for a task that nothing is known of.
    ///
    /// # Errors
    /// When there is no result store to look them up in, or it can't be reached.
    pub async fn results<S: AsRef<str>>(&self, task_ids: &[S]) -> Result<Vec<Option<TaskMeta>>, ResultError> {
        Ok(self.store()?.get_many(task_ids).await?)
    }

    /// Remote control of all workers, or with [`Control::to`] of some.
    pub fn control(&self) -> Control {
        Control::new(self.clone())
    }

    /// What workers tell of themselves and their tasks, from now on.
    ///
    /// # Errors
    /// When the broker can't be reached or refuses.
    pub async fn events(&self) -> Result<Events, EventsError> {
        Events::listen(&self.0.publisher.link().await?.connection).await
    }

    /// Closes the connection to the broker.
    pub async fn close(&self) {
        self.0.publisher.close().await;
    }

    /// Redis, if that is where results are.
    pub(crate) fn store(&self) -> Result<&RedisResults, ResultError> {
        match &self.0.results {
            Results::Redis { store, .. } => Ok(store),
            Results::None | Results::Rpc(_) => Err(ResultError::NoResultStore),
        }
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
