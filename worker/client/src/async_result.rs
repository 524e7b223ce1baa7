//! A result that may not be there yet.

use crate::canvas_result::CanvasResult;
use crate::celery::{Celery, Results};
use crate::control::ControlError;
use crate::results::{Awaited, RedisResults, Reply, StoreError, Subscriptions, Update, decode};
use celery_protocol::result::task_key;
use celery_protocol::{Exception, State, TaskMeta};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::de::DeserializeOwned;
use std::fmt;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Pause before an unreachable store is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Why there is no value.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// The client was made without a result store, or over RPC was asked for what RPC doesn't have.
    #[error("no result store to look in")]
    NoResultStore,
    /// The task was sent with its result to be ignored.
    #[error("task `{0}` was sent with its result to be ignored")]
    Ignored(String),
    /// The task did not end in time; it may yet.
    #[error("task `{task_id}` has not ended after {waited:?}")]
    Timeout {
        /// Id of the task.
        task_id: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The task raised an exception, or was revoked.
    #[error(transparent)]
    Task(#[from] Box<TaskError>),
    /// The value isn't of the type that was asked for.
    #[error("the result of task `{task_id}` has another type")]
    Type {
        /// Id of the task.
        task_id: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The connection that the result would have come over was lost, and the result with it.
    #[error("the connection that the result of task `{0}` was to come over is lost")]
    Lost(String),
    /// The result store can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How a task failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("task `{task_id}` ended as {state}: {exception}")]
pub struct TaskError {
    /// Id of the task.
    pub task_id: String,
    /// Failure or revoked.
    pub state: State,
    /// The exception, as the worker stored it.
    pub exception: Exception,
    /// Its traceback.
    pub traceback: Option<String>,
}

/// A task that was sent, and what becomes of it.
pub struct AsyncResult {
    celery: Celery,
    task_id: String,
    source: Source,
    parent: Option<Box<CanvasResult>>,
}

enum Source {
    Ignored,
    /// Wherever the client's results are.
    Store,
    Rpc(Awaited),
}

impl AsyncResult {
    /// Over RPC this has to be made before the task is sent: the answer may be faster than the confirm.
    pub(crate) fn new(celery: &Celery, task_id: String, parent: Option<Box<CanvasResult>>) -> Self {
        let source = match &celery.0.results {
            Results::Rpc(replies) => Source::Rpc(replies.awaited(&task_id)),
            Results::None | Results::Redis { .. } => Source::Store,
        };
        Self { celery: celery.clone(), task_id, source, parent }
    }

    /// Of a task that leaves no result.
    pub(crate) fn ignored(celery: &Celery, task_id: String, parent: Option<Box<CanvasResult>>) -> Self {
        Self { celery: celery.clone(), task_id, source: Source::Ignored, parent }
    }

    fn has_ended_badly(&self, meta: TaskMeta) -> TaskError {
        let unexplained = || Exception::new("builtins", "Exception", Vec::new());
        let exception = meta.exception().unwrap_or_else(unexplained);
        let TaskMeta { status: state, traceback, .. } = meta;
        TaskError { task_id: self.task_id.clone(), state, exception, traceback }
    }

    /// Whether the task was sent so that it leaves no result.
    pub(crate) fn is_ignored(&self) -> bool {
        matches!(self.source, Source::Ignored)
    }

    /// Id of the task.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.task_id
    }

    /// What came before it in its chain: the step, or the group that it is the chord's body of. Known of canvases that
    /// this client has sent.
    #[must_use]
    pub fn parent(&self) -> Option<&CanvasResult> {
        self.parent.as_deref()
    }

    /// Waits until the task has ended, and returns the value that it returned.
    ///
    /// # Errors
    /// When the task failed or was revoked, when it hasn't ended in time, when the value is of another type, or when
    /// there is no way to know.
    ///
    /// # Cancel safety
    /// Nothing is lost when the wait is given up: it can be taken up again.
    pub async fn get<T: DeserializeOwned>(&self, timeout: Duration) -> Result<T, ResultError> {
        let ended = tokio::select! {
            biased;
            ended = self.wait(timeout) => ended,
            error = revoked_ancestor(self.parent()) => return Err(error),
        };
        let meta = match ended {
            Err(late @ ResultError::Timeout { .. }) => return Err(self.bad_ancestor().await.unwrap_or(late)),
            ended => ended?,
        };
        if meta.status == State::Success {
            return meta
                .result_as()
                .map_err(|source| ResultError::Type { task_id: self.task_id.clone(), source });
        }
        Err(ResultError::Task(Box::new(self.has_ended_badly(meta))))
    }

    /// The end of what came before it, if that is why it never was begun.
    async fn bad_ancestor(&self) -> Option<ResultError> {
        let mut ancestor = self.parent();
        while let Some(result) = ancestor {
            for task in result.tasks() {
                if let Ok(Some(meta)) = task.meta().await
                    && meta.status.is_final()
                    && meta.status != State::Success
                {
                    return Some(ResultError::Task(Box::new(task.has_ended_badly(meta))));
                }
            }
            ancestor = result.parent();
        }
        None
    }

    /// Waits until the task has ended, however that was.
    ///
    /// # Errors
    /// When it hasn't ended in time, or there is no way to know.
    ///
    /// # Cancel safety
    /// As of [`get`](Self::get).
    pub async fn wait(&self, timeout: Duration) -> Result<TaskMeta, ResultError> {
        let mut outage = None;
        let ended = async {
            match &self.source {
                Source::Ignored => Err(ResultError::Ignored(self.task_id.clone())),
                Source::Rpc(awaited) => self.wait_for_reply(awaited).await,
                Source::Store => match &self.celery.0.results {
                    Results::Redis { store, subscriptions } => {
                        self.wait_in_redis(store, subscriptions, &mut outage).await
                    }
                    Results::None | Results::Rpc(_) => Err(ResultError::NoResultStore),
                },
            }
        };
        // A timeout beyond what a clock can say is none.
        let Some(deadline) = Instant::now().checked_add(timeout) else { return ended.await };
        match timeout_at(deadline, ended).await {
            Ok(ended) => ended,
            Err(_) => Err(match outage {
                Some(error) => ResultError::Store(error),
                None => ResultError::Timeout { task_id: self.task_id.clone(), waited: timeout },
            }),
        }
    }

    /// Waits through outages of Redis; the latest that has not passed is left in `outage`.
    async fn wait_in_redis(
        &self,
        store: &RedisResults,
        subscriptions: &Subscriptions,
        outage: &mut Option<StoreError>,
    ) -> Result<TaskMeta, ResultError> {
        let mut watched = subscriptions.watch(task_key(&self.task_id));
        while let Some(update) = watched.updates.recv().await {
            let meta = match update {
                Update::Subscribed => loop {
                    match store.get(&self.task_id).await {
                        Err(error) if error.is_unreachable() => *outage = Some(error),
                        answer => break answer?,
                    }
                    tokio::time::sleep(ASK_AGAIN_AFTER).await;
                },
                Update::Stored(text) => Some(decode(&self.task_id, &text)?),
            };
            *outage = None;
            if let Some(meta) = meta.filter(|meta| meta.status.is_final()) {
                return Ok(meta);
            }
        }
        Err(ResultError::Lost(self.task_id.clone()))
    }

    async fn wait_for_reply(&self, awaited: &Awaited) -> Result<TaskMeta, ResultError> {
        let mut latest = awaited.latest.clone();
        let is_last = |reply: &Reply| match reply {
            Reply::None => false,
            Reply::Meta(meta) => meta.status.is_final(),
            Reply::Lost => true,
        };
        match latest.wait_for(is_last).await.as_deref() {
            Ok(Reply::Meta(meta)) => Ok(TaskMeta::clone(meta)),
            _ => Err(ResultError::Lost(self.task_id.clone())),
        }
    }

    /// What is known of the task now; none when that is nothing.
    ///
    /// # Errors
    /// When there is no way to know.
    pub async fn meta(&self) -> Result<Option<TaskMeta>, ResultError> {
        match &self.source {
            Source::Ignored => Err(ResultError::Ignored(self.task_id.clone())),
            Source::Store => Ok(self.celery.store()?.get(&self.task_id).await?),
            Source::Rpc(awaited) => match &*awaited.latest.borrow() {
                Reply::None => Ok(None),
                Reply::Meta(meta) => Ok(Some(TaskMeta::clone(meta))),
                Reply::Lost => Err(ResultError::Lost(self.task_id.clone())),
            },
        }
    }

    /// Where the task is in its life: pending while nothing is known of it.
    ///
    /// # Errors
    /// When there is no way to know.
    pub async fn state(&self) -> Result<State, ResultError> {
        Ok(self.meta().await?.map_or(State::Pending, |meta| meta.status))
    }

    /// Whether the task has ended.
    ///
    /// # Errors
    /// When there is no way to know.
    pub async fn ready(&self) -> Result<bool, ResultError> {
        Ok(self.state().await?.is_final())
    }

    /// The calls that this one was followed by: its callbacks, the next step of its chain.
    ///
    /// None are known before the task has ended.
    ///
    /// # Errors
    /// When there is no way to know.
    pub async fn children(&self) -> Result<Vec<CanvasResult>, ResultError> {
        let children = self.meta().await?.and_then(|meta| meta.children).unwrap_or_default();
        Ok(children.into_iter().map(|child| CanvasResult::new(&self.celery, child)).collect())
    }

    /// Tells all workers not to run the task if it hasn't begun, without waiting for their answers. To end one that runs,
    /// see [`Control::terminate`](crate::Control::terminate).
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn revoke(&self) -> Result<(), ControlError> {
        self.celery.control().revoke_silently(&[&self.task_id]).await
    }

    /// Deletes the result, which the store would otherwise keep for a day.
    ///
    /// # Errors
    /// When the store can't be reached.
    pub async fn forget(self) -> Result<(), ResultError> {
        match &self.source {
            Source::Store => Ok(self.celery.store()?.forget(&self.task_id).await?),
            // Dropping it is all it takes.
            Source::Ignored | Source::Rpc(_) => Ok(()),
        }
    }
}

/// Waits until a step of a chain was revoked, if that ever is: it leaves no word for the steps after it.
///
/// A revoked member of a chord's header does, in the chord's body.
pub(crate) async fn revoked_ancestor(mut parent: Option<&CanvasResult>) -> ResultError {
    let mut steps = FuturesUnordered::new();
    while let Some(result) = parent {
        if let CanvasResult::Task(step) = result {
            steps.push(async move { (step, step.wait(Duration::MAX).await) });
        }
        parent = result.parent();
    }
    while let Some((step, ended)) = steps.next().await {
        if let Ok(meta) = ended
            && meta.status == State::Revoked
        {
            return ResultError::Task(Box::new(step.has_ended_badly(meta)));
        }
    }
    std::future::pending().await
}

impl fmt::Debug for AsyncResult {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AsyncResult").field("task_id", &self.task_id).finish_non_exhaustive()
    }
}
