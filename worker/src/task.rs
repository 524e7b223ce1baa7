//! Tasks: the functions a worker runs, and how a call's arguments reach them.

mod args;
mod builtin;
mod cancel;
mod context;
mod error;
mod function;
mod registry;

use std::{borrow::Cow, fmt, future::Future, pin::Pin, sync::Arc};

use serde_json::value::RawValue;

pub use self::{
    args::{Args, Binder, Parameter},
    cancel::Cancellation,
    context::{Context, DeliveryInfo},
    error::TaskError,
    function::{IntoTaskFunction, Output},
};
pub(crate) use self::{cancel::CancelHandle, context::Facts, error::PanicReport, registry::Registry};

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
}

impl Task {
    /// A task called `name` that runs `function`: a plain `fn` or an `async fn`, returning a value or a `Result`.
    ///
    /// See [`Parameter`] for what its parameters may be.
    pub fn new<M>(name: impl Into<Cow<'static, str>>, function: impl IntoTaskFunction<M>) -> Self {
        Self {
            name: name.into(),
            parameters: Vec::new(),
            function: function.into_task_function(),
            ignore_result: false,
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
