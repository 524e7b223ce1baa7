//! What a task can know about the call it serves.

use std::sync::Arc;

use celery_protocol::Map;
use tokio::sync::watch;

/// How a message reached the worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeliveryInfo {
    /// Exchange it was published to; empty for the default exchange.
    pub exchange: String,
    /// Routing key it was published with.
    pub routing_key: String,
    /// Priority, if the message has one.
    pub priority: Option<u8>,
    /// Whether the broker has delivered this message before, to this worker or another: it may have been run already.
    pub redelivered: bool,
}

/// The call that a task is serving. Take it as a parameter, anywhere among the others:
///
/// ```
/// use soloist_worker::{Context, Task};
///
/// fn import(context: Context, path: String) -> String {
///     tracing::info!(path, "importing");
///     format!("{path}, try {}", context.retries() + 1)
/// }
/// let task = Task::new("shop.import", import).parameters(["path"]);
/// ```
#[derive(Clone, Debug)]
pub struct Context {
    facts: Arc<Facts>,
}

/// The facts of a [`Context`].
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) id: String,
    pub(crate) task: String,
    pub(crate) retries: u32,
    pub(crate) root_id: String,
    pub(crate) parent_id: Option<String>,
    pub(crate) group: Option<String>,
    pub(crate) headers: Map,
    pub(crate) hostname: Arc<str>,
    pub(crate) delivery_info: DeliveryInfo,
    pub(crate) span: tracing::Span,
    pub(crate) cancelled: watch::Receiver<bool>,
}

/// Tells a running task that its result is no longer wanted.
#[derive(Debug)]
pub(crate) struct CancelHandle(watch::Sender<bool>);

impl CancelHandle {
    pub(crate) fn new() -> (Self, watch::Receiver<bool>) {
        let (sender, receiver) = watch::channel(false);
        (Self(sender), receiver)
    }

    pub(crate) fn cancel(&self) {
        self.0.send_replace(true);
    }
}

impl Context {
    pub(crate) fn new(facts: Facts) -> Self {
        Self { facts: Arc::new(facts) }
    }

    /// A call of nothing, with the id `id`.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self::new(Facts {
            id: "id".into(),
            task: "t.test".into(),
            retries: 0,
            root_id: "id".into(),
            parent_id: None,
            group: None,
            headers: Map::new(),
            hostname: "celery@test".into(),
            delivery_info: DeliveryInfo::default(),
            span: tracing::Span::none(),
            cancelled: CancelHandle::new().1,
        })
    }

    /// Id of this call. A redelivered or retried call keeps its id.
    pub fn id(&self) -> &str {
        &self.facts.id
    }

    /// Name of the task.
    pub fn task(&self) -> &str {
        &self.facts.task
    }

    /// How often this call was retried before.
    pub fn retries(&self) -> u32 {
        self.facts.retries
    }

    /// Id of the first call of the workflow that this call belongs to; its own id if it stands alone.
    pub fn root_id(&self) -> &str {
        &self.facts.root_id
    }

    /// Id of the call that made this one, if any.
    pub fn parent_id(&self) -> Option<&str> {
        self.facts.parent_id.as_deref()
    }

    /// Id of the group that this call belongs to, if any.
    pub fn group(&self) -> Option<&str> {
        self.facts.group.as_deref()
    }

    /// Headers that the caller added to the message.
    pub fn headers(&self) -> &Map {
        &self.facts.headers
    }

    /// Name of this worker, such as `celery@media-worker-7d4f`.
    pub fn hostname(&self) -> &str {
        &self.facts.hostname
    }

    /// How the message reached this worker.
    pub fn delivery_info(&self) -> &DeliveryInfo {
        &self.facts.delivery_info
    }

    /// The span that the task's log lines belong to. It is entered already; threads that the task starts may enter it too.
    pub fn span(&self) -> &tracing::Span {
        &self.facts.span
    }

    /// Whether the worker has to stop now, without waiting for this task. The call will be run again by another worker.
    ///
    /// Long loops should look at it now and then; whatever they return then is discarded.
    pub fn is_cancelled(&self) -> bool {
        *self.facts.cancelled.borrow()
    }

    /// Waits until [`Context::is_cancelled`] is true.
    pub async fn cancelled(&self) {
        let mut cancelled = self.facts.cancelled.clone();
        if cancelled.wait_for(|cancelled| *cancelled).await.is_err() {
            // The handle is gone: the call is over and nothing can cancel it any more.
            std::future::pending::<()>().await;
        }
    }
}
