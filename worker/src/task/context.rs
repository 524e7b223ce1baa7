//! What a task can know about the call it serves.

use std::sync::{Arc, Mutex, PoisonError};

use celery_protocol::{Arguments, Exception, Map, Request, Signature};

use super::{Cancellation, Retry, States, TaskError, cancel::Cancelled};

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
/// use soloist_worker::{Context, Task, TaskError};
///
/// fn import(context: Context, paths: Vec<String>) -> Result<usize, TaskError> {
///     for path in &paths {
///         context.check()?;
///         tracing::info!(path, redelivered = context.delivery_info().redelivered, "importing");
///     }
///     Ok(paths.len())
/// }
/// let task = Task::new("shop.import", import).parameters(["paths"]);
/// ```
#[derive(Clone, Debug)]
pub struct Context {
    facts: Arc<Facts>,
    /// What the task wants to be members of its chord, too.
    additions: Arc<Mutex<Vec<Signature>>>,
}

/// The facts of a [`Context`].
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) request: Arc<Request>,
    pub(crate) hostname: Arc<str>,
    pub(crate) delivery_info: DeliveryInfo,
    pub(crate) span: tracing::Span,
    pub(crate) cancelled: Cancelled,
    pub(crate) states: Arc<States>,
}

impl Context {
    pub(crate) fn new(facts: Facts) -> Self {
        Self { facts: Arc::new(facts), additions: Arc::default() }
    }

    /// The same call with other arguments.
    pub(crate) fn with_arguments(&self, arguments: Arguments) -> Self {
        let request = Arc::new(Request { arguments, ..self.request().clone() });
        let facts = Arc::new(Facts { request, ..Facts::clone(&self.facts) });
        Self { facts, additions: Arc::clone(&self.additions) }
    }

    /// A call with the id `id1` and these arguments.
    #[cfg(test)]
    pub(crate) fn for_tests(arguments: celery_protocol::Arguments) -> Self {
        Self::new(Facts {
            request: Arc::new(Request::new("t.test", "id1", arguments)),
            hostname: "celery@test".into(),
            delivery_info: DeliveryInfo::default(),
            span: tracing::Span::none(),
            cancelled: super::CancelHandle::new().subscribe(),
            states: Arc::default(),
        })
    }

    /// The whole call, as its message says it.
    pub fn request(&self) -> &Request {
        &self.facts.request
    }

    /// Id of this call. A redelivered or retried call keeps its id.
    pub fn id(&self) -> &str {
        &self.request().id
    }

    /// Name of the task.
    pub fn task(&self) -> &str {
        &self.request().task
    }

    /// Asks for this call to be run again: return it as the error.
    pub fn retry(&self) -> Retry {
        Retry::default()
    }

    /// Makes another call a member of the chord that this one is a member of: the chord's body waits for it too. It is sent
    /// when this task has returned a value or is replaced, and not if it fails.
    ///
    /// # Errors
    /// A `ValueError` if this call is no member of a chord.
    pub fn add_to_chord(&self, member: Signature) -> Result<(), TaskError> {
        if self.request().embed.chord.is_none() {
            return Err(TaskError::new("ValueError", "this task is no member of a chord"));
        }
        self.additions.lock().unwrap_or_else(PoisonError::into_inner).push(member);
        Ok(())
    }

    /// What [`Context::add_to_chord`] was called with; it is forgotten then.
    pub(crate) fn take_additions(&self) -> Vec<Signature> {
        std::mem::take(&mut *self.additions.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How often this call was retried before.
    pub fn retries(&self) -> u32 {
        self.request().retries
    }

    /// Id of the first call of the workflow that this call belongs to; its own id if it stands alone.
    pub fn root_id(&self) -> &str {
        self.request().root()
    }

    /// Id of the call that made this one, if any.
    pub fn parent_id(&self) -> Option<&str> {
        self.request().parent_id.as_deref()
    }

    /// Headers that the caller added to the message.
    pub fn headers(&self) -> &Map {
        &self.request().headers
    }

    /// Name of this worker, such as `celery@media-worker-7d4f`.
    pub fn hostname(&self) -> &str {
        &self.facts.hostname
    }

    /// How the message reached this worker.
    pub fn delivery_info(&self) -> &DeliveryInfo {
        &self.facts.delivery_info
    }

    /// The span that the task's log lines belong to, with the call's id. It is entered already; threads that the task
    /// starts may enter it too.
    pub fn span(&self) -> &tracing::Span {
        &self.facts.span
    }

    /// Why the task is to stop, if it is. Long loops should look now and then: a plain function can't be stopped from
    /// outside, other than by restarting the whole worker.
    pub fn cancellation(&self) -> Option<Cancellation> {
        self.facts.cancelled.reason()
    }

    /// Whether the task is to stop, see [`Context::cancellation`].
    pub fn is_cancelled(&self) -> bool {
        self.cancellation().is_some()
    }

    /// Waits until the task is to stop.
    pub async fn cancelled(&self) {
        self.facts.cancelled.asked().await;
    }

    /// An error if the task is to stop, to leave it with `?`.
    ///
    /// # Errors
    /// Celery's `SoftTimeLimitExceeded` if that is the reason, `TaskRevokedError` otherwise.
    pub fn check(&self) -> Result<(), TaskError> {
        match self.cancellation() {
            None => Ok(()),
            Some(Cancellation::SoftTimeLimit) => {
                Err(TaskError::from_exception(Exception::soft_time_limit_exceeded()))
            }
            Some(_) => Err(TaskError::from_exception(Exception::task_revoked("terminated"))),
        }
    }

    pub(super) fn states(&self) -> &States {
        &self.facts.states
    }

    pub(crate) fn cancel_signal(&self) -> &Cancelled {
        &self.facts.cancelled
    }
}
