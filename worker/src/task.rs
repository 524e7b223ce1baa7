//! Tasks: the functions a worker runs, and how a call's arguments reach them.

mod args;
mod builtin;
mod cancel;
mod context;
mod error;
mod function;
mod registry;
mod retry;
mod state;

use std::{borrow::Cow, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use serde_json::value::RawValue;

pub use self::{
    args::{Args, Binder, Parameter},
    cancel::Cancellation,
    context::{Context, DeliveryInfo},
    error::TaskError,
    function::{IntoTaskFunction, Output},
    retry::Retry,
    state::State,
};
pub(crate) use self::{
    cancel::CancelHandle,
    context::Facts,
    error::{PanicReport, Wish},
    registry::Registry,
    retry::{PlannedRetry, RetryPolicy},
    state::States,
};

/// What running a task gives: its result as JSON text, or the error its callers will see.
pub type TaskResult = Result<Box<RawValue>, TaskError>;

type BlockingFunction = dyn Fn(&Context, &Task) -> TaskResult + Send + Sync;
type AsyncFunction =
    dyn Fn(&Context, &Task) -> Pin<Box<dyn Future<Output = TaskResult> + Send>> + Send + Sync;

/// A task's code, on the kind of thread it needs.
#[derive(Clone)]
pub enum TaskFunction {
    /// Runs on the task thread and may block it.
    Blocking(Arc<BlockingFunction>),
    /// Runs on the runtime that is kept for tasks.
    Async(Arc<AsyncFunction>),
}

/// A named function, as registered with a worker.
///
/// ```
/// use soloist_worker::Task;
///
/// fn multiply(a: f64, b: f64) -> f64 {
///     a * b
/// }
/// let task = Task::new("shop.multiply", multiply).parameters(["a", "b"]);
/// assert_eq!(task.name(), "shop.multiply");
/// ```
#[derive(Clone)]
pub struct Task {
    pub(crate) name: Cow<'static, str>,
    /// Parameter names, in order. Empty when the task takes positional arguments only.
    pub(crate) parameters: Vec<&'static str>,
    pub(crate) function: TaskFunction,
    pub(crate) ignore_result: bool,
    /// None leaves it to the worker.
    pub(crate) track_started: Option<bool>,
    pub(crate) retry: RetryPolicy,
    pub(crate) acks_late: bool,
    pub(crate) acks_on_failure_or_timeout: bool,
}

impl Task {
    /// A task called `name` that runs `function`: a plain `fn` or an `async fn`, returning a value or a `Result`.
    ///
    /// See [`Parameter`] for what its parameters may be.
    pub fn new<M>(name: impl Into<Cow<'static, str>>, function: impl IntoTaskFunction<M>) -> Self {
        Self::of(name.into(), function.into_task_function())
    }

    pub(crate) fn of(name: Cow<'static, str>, function: TaskFunction) -> Self {
        Self {
            name,
            parameters: Vec::new(),
            function,
            ignore_result: false,
            track_started: None,
            retry: RetryPolicy::default(),
            acks_late: true,
            acks_on_failure_or_timeout: true,
        }
    }

    /// Names the parameters in order (a [`Context`] isn't counted), so that callers may use keyword arguments.
    #[must_use]
    pub fn parameters<const N: usize>(mut self, names: [&'static str; N]) -> Self {
        self.parameters = names.to_vec();
        self
    }

    /// Stores no result of this task, unless the message asks for one.
    #[must_use]
    pub fn ignore_result(mut self) -> Self {
        self.ignore_result = true;
        self
    }

    /// Whether the state `STARTED` is stored when a call begins, with the process and the node that run it. Unless this is said, the
    /// [worker](crate::WorkerBuilder::track_started) says so for all its tasks.
    #[must_use]
    pub fn track_started(mut self, track: bool) -> Self {
        self.track_started = Some(track);
        self
    }

    /// How often a call is retried at most, 3 times unless set; `None` is without end.
    #[must_use]
    pub fn max_retries(mut self, retries: impl Into<Option<u32>>) -> Self {
        self.retry.max_retries = retries.into();
        self
    }

    /// How long a retry waits that doesn't say so itself: 3 minutes unless set.
    #[must_use]
    pub fn default_retry_delay(mut self, delay: Duration) -> Self {
        self.retry.default_delay = delay;
        self
    }

    /// Retries calls that fail with an error of one of these types, without the task asking for it. `Exception` stands
    /// for all. A type is named as callers see it: an error of a Rust type by the type's name.
    ///
    /// ```
    /// # use soloist_worker::{Task, TaskError};
    /// # fn fetch(url: String) -> Result<u64, TaskError> { Ok(url.len() as u64) }
    /// let task = Task::new("shop.fetch", fetch).autoretry_for(["TimeoutError", "ConnectionError"]).retry_backoff(2);
    /// ```
    #[must_use]
    pub fn autoretry_for(mut self, types: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.retry.autoretry_for = types.into_iter().map(Into::into).collect();
        self
    }

    /// Exceptions from [`Task::autoretry_for`].
    #[must_use]
    pub fn dont_autoretry_for(mut self, types: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.retry.dont_autoretry_for = types.into_iter().map(Into::into).collect();
        self
    }

    /// Lets automatic retries wait for longer each time: `factor` seconds before the first, twice as long before the
    /// second, and so on up to [`Task::retry_backoff_max`].
    #[must_use]
    pub fn retry_backoff(mut self, factor: u32) -> Self {
        self.retry.backoff = Some(factor);
        self
    }

    /// Longest wait of a backoff: 10 minutes unless set.
    #[must_use]
    pub fn retry_backoff_max(mut self, delay: Duration) -> Self {
        self.retry.backoff_max = delay;
        self
    }

    /// Whether a backoff waits for a random part of its time (the default), so that calls which failed together aren't
    /// retried together.
    #[must_use]
    pub fn retry_jitter(mut self, jitter: bool) -> Self {
        self.retry.jitter = jitter;
        self
    }

    /// Whether a message is acknowledged when its result is stored (the default), or already when the task begins. Then a
    /// call is run at most once: it is lost with its worker.
    #[must_use]
    pub fn acks_late(mut self, late: bool) -> Self {
        self.acks_late = late;
        self
    }

    /// Whether the message of a task that fails, or exceeds its time limit, is acknowledged (the default), or rejected, so
    /// that it becomes a dead letter. For tasks that acknowledge late.
    #[must_use]
    pub fn acks_on_failure_or_timeout(mut self, ack: bool) -> Self {
        self.acks_on_failure_or_timeout = ack;
        self
    }

    /// The name that callers use.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.function {
            TaskFunction::Blocking(_) => "blocking",
            TaskFunction::Async(_) => "async",
        };
        f.debug_struct("Task")
            .field("name", &self.name)
            .field("parameters", &self.parameters)
            .field("kind", &kind)
            .field("ignore_result", &self.ignore_result)
            .finish()
    }
}
