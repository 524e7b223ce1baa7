//! Why a task failed, in the shape Celery's clients know.

use std::{any::Any, cell::RefCell, error::Error, fmt, panic};

use celery_protocol::{Exception, Signature};

use serde_json::Value;

use super::Retry;

/// Python module given for error types of Rust crates, before their own path. No Python module of that name can
/// exist, so clients make an exception class of the same name instead of looking for one.
const RUST_MODULE: &str = "rust";

/// Exceptions that every Python client knows; errors of these names are raised as those classes.
const PYTHON_BUILTINS: [&str; 40] = [
    "ArithmeticError",
    "AssertionError",
    "AttributeError",
    "BlockingIOError",
    "BrokenPipeError",
    "BufferError",
    "ChildProcessError",
    "ConnectionAbortedError",
    "ConnectionError",
    "ConnectionRefusedError",
    "ConnectionResetError",
    "EOFError",
    "Exception",
    "FileExistsError",
    "FileNotFoundError",
    "FloatingPointError",
    "IndexError",
    "InterruptedError",
    "IsADirectoryError",
    "KeyError",
    "LookupError",
    "MemoryError",
    "NameError",
    "NotADirectoryError",
    "NotImplementedError",
    "OSError",
    "OverflowError",
    "PermissionError",
    "ProcessLookupError",
    "RecursionError",
    "ReferenceError",
    "RuntimeError",
    "StopIteration",
    "SystemError",
    "TimeoutError",
    "TypeError",
    "UnboundLocalError",
    "ValueError",
    "Warning",
    "ZeroDivisionError",
];

/// Why a task failed: an exception type, the module it belongs to, and a message.
///
/// Every `std::error::Error` converts into one with `?`: its type's name becomes the exception type, its chain of
/// causes the traceback. A type that Python knows is raised as such by Python clients:
///
/// ```
/// use soloist_worker::TaskError;
///
/// fn half(n: i64) -> Result<i64, TaskError> {
///     if n % 2 != 0 {
///         return Err(TaskError::new("ValueError", format!("{n} is odd")));
///     }
///     Ok(n / 2)
/// }
/// let error = half(3).unwrap_err();
/// assert_eq!(error.to_string(), "ValueError: 3 is odd");
/// assert_eq!(error.exception().exc_module.as_deref(), Some("builtins"));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TaskError {
    exception: Box<Exception>,
    traceback: Option<String>,
    wish: Option<Box<Wish>>,
}

/// What a task wants instead of failing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Wish {
    /// To be run again.
    Retry(Retry),
    /// That nothing is said of its end.
    Ignore,
    /// That its message is refused.
    Reject { requeue: bool },
    /// That another call takes its place.
    Replace(Signature),
    /// That a canvas is sent, whose handle is its result.
    Send(Signature),
}

impl TaskError {
    /// An error that clients see as `exc_type` with one argument, the message.
    ///
    /// A builtin exception of Python ("ValueError") is raised as that by Python clients; any other type as a class of
    /// that name made on the spot.
    pub fn new(exc_type: impl Into<String>, message: impl Into<String>) -> Self {
        let exc_type = exc_type.into();
        let exc_module = if PYTHON_BUILTINS.contains(&exc_type.as_str()) { "builtins" } else { RUST_MODULE };
        Self::from_exception(Exception::new(exc_module, &exc_type, vec![Value::String(message.into())]))
    }

    /// An error that clients see as exactly this exception.
    pub fn from_exception(exception: Exception) -> Self {
        Self { exception: Box::new(exception), traceback: None, wish: None }
    }

    /// Ends the task without a result: whatever state it has set stays, nothing follows it, monitors aren't told. Celery's
    /// `Ignore`.
    pub fn ignore() -> Self {
        Self::wishing(Exception::new("celery.exceptions", "Ignore", Vec::new()), Wish::Ignore)
    }

    /// Refuses the message: with `requeue` it goes back to its queue, otherwise it becomes a dead letter and the call fails.
    /// Celery's `Reject`. Only for tasks that acknowledge late, as they do by default.
    ///
    /// A message that goes back again and again is given up in the end, see
    /// [`WorkerBuilder::delivery_limit`](crate::WorkerBuilder::delivery_limit).
    pub fn reject(reason: impl Into<String>, requeue: bool) -> Self {
        Self::wishing(Exception::reject(reason, requeue), Wish::Reject { requeue })
    }

    /// Ends the task by putting another call, or a canvas, in its place: that has the task's id, and everything that was to
    /// follow the task follows it. Celery's `Task.replace`.
    ///
    /// ```
    /// use soloist_worker::{Context, Signature, TaskError};
    ///
    /// fn route(parcels: u32) -> Result<(), TaskError> {
    ///     let task = if parcels > 10 { "shop.send_truck" } else { "shop.send_bike" };
    ///     Err(TaskError::replace(Signature::new(task).arg(parcels)))
    /// }
    /// ```
    pub fn replace(signature: Signature) -> Self {
        Self::wishing(Exception::new("celery.exceptions", "Ignore", Vec::new()), Wish::Replace(signature))
    }

    /// Has a canvas sent, whose handle is the task's result.
    pub(super) fn send(signature: Signature) -> Self {
        Self::wishing(Exception::new("celery.exceptions", "Ignore", Vec::new()), Wish::Send(signature))
    }

    pub(super) fn wishing(exception: Exception, wish: Wish) -> Self {
        Self { wish: Some(Box::new(wish)), ..Self::from_exception(exception) }
    }

    /// The Python module that `exc_type` belongs to.
    #[must_use]
    pub fn in_module(mut self, exc_module: impl Into<String>) -> Self {
        self.exception.exc_module = Some(exc_module.into());
        self
    }

    /// Text shown as the traceback.
    #[must_use]
    pub fn with_traceback(mut self, traceback: impl Into<String>) -> Self {
        self.traceback = Some(traceback.into());
        self
    }

    /// An error whose type was erased, as from `anyhow`: it is called `RuntimeError`.
    pub fn from_boxed(error: Box<dyn Error + Send + Sync>) -> Self {
        Self::new("RuntimeError", error.to_string()).with_traceback(causes("RuntimeError", &*error))
    }

    /// The exception that clients see.
    pub fn exception(&self) -> &Exception {
        &self.exception
    }

    /// Where it happened, as text.
    pub fn traceback(&self) -> Option<&str> {
        self.traceback.as_deref()
    }

    /// What the task wants instead of failing, if anything.
    pub(crate) fn wish(&self) -> Option<&Wish> {
        self.wish.as_deref()
    }

    /// The retry that the task asks for, or else the error itself.
    pub(super) fn into_retry(mut self) -> Result<Retry, Self> {
        match self.wish.take().map(|wish| *wish) {
            Some(Wish::Retry(retry)) => Ok(retry),
            wish => Err(Self { wish: wish.map(Box::new), ..self }),
        }
    }
}

impl From<Retry> for TaskError {
    fn from(retry: Retry) -> Self {
        let exception = Exception::new("celery.exceptions", "Retry", Vec::new());
        Self::wishing(exception, Wish::Retry(retry))
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.exception.fmt(f)
    }
}

impl<E: Error> From<E> for TaskError {
    fn from(error: E) -> Self {
        let (module, name) = python_path(std::any::type_name::<E>());
        Self::new(name.clone(), error.to_string()).in_module(module).with_traceback(causes(&name, &error))
    }
}

/// Module and class for a Rust type path: `shop::errors::OutOfStock` is `rust.shop.errors` and `OutOfStock`.
fn python_path(type_name: &str) -> (String, String) {
    let path = type_name.split('<').next().unwrap_or(type_name);
    let mut parts: Vec<_> = path.split("::").filter(|part| is_identifier(part)).collect();
    let name = parts.pop().unwrap_or("RuntimeError").to_owned();
    let module = std::iter::once(RUST_MODULE).chain(parts).collect::<Vec<_>>().join(".");
    (module, name)
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && text.chars().all(|rest| rest.is_ascii_alphanumeric() || rest == '_')
}

/// An error and its causes, one a line.
fn causes(name: &str, error: &dyn Error) -> String {
    let mut text = format!("{name}: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str("\ncaused by: ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

thread_local! {
    /// Whether this thread runs tasks, and what its last panic left.
    static LAST_PANIC: RefCell<Option<Option<PanicReport>>> = const { RefCell::new(None) };
}

/// Where a task panicked.
#[derive(Clone, Debug)]
pub(crate) struct PanicReport {
    location: String,
    backtrace: String,
}

impl PanicReport {
    /// Keeps the panics of this thread for [`PanicReport::into_error`] instead of printing them.
    pub(crate) fn record_on_this_thread() {
        LAST_PANIC.with_borrow_mut(|last| *last = Some(None));
    }

    /// Makes threads that asked for it record their panics; others keep the handler they had.
    pub(crate) fn install_hook() {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let recorded = LAST_PANIC.with_borrow_mut(|last| {
                last.as_mut().map(|last| {
                    *last = Some(PanicReport {
                        location: info
                            .location()
                            .map_or_else(|| "unknown location".into(), ToString::to_string),
                        backtrace: own_frames(&std::backtrace::Backtrace::force_capture().to_string()),
                    });
                })
            });
            if recorded.is_none() {
                others(info);
            }
        }));
    }

    /// The error for a panic caught on this thread with `payload`.
    pub(crate) fn into_error(payload: &(dyn Any + Send)) -> TaskError {
        let message = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "panicked with a value that isn't text".to_owned());
        let report = LAST_PANIC.with_borrow_mut(|last| last.as_mut().and_then(Option::take));
        let error = TaskError::new("Panic", message.clone());
        match report {
            Some(PanicReport { location, backtrace }) => {
                error.with_traceback(format!("Panic: {message}\nat {location}{backtrace}"))
            }
            None => error,
        }
    }
}

/// The frames between the panic and the code that called the task, each on a line of its own after a line break.
///
/// Nothing is left of a program without symbols.
fn own_frames(backtrace: &str) -> String {
    let raised = backtrace.split_once("__rust_end_short_backtrace").map_or(backtrace, |(_, rest)| rest);
    let mut frames = String::new();
    let lines = raised.lines().skip_while(|line| frame_symbol(line).is_none_or(|symbol| !is_own(symbol)));
    for line in lines {
        if frame_symbol(line).is_some_and(|symbol| symbol.contains("IntoTaskFunction")) {
            break;
        }
        frames.push('\n');
        frames.push_str(line);
    }
    frames
}

/// The symbol of a line such as `  15: shop::tasks::price`, as against `  at ./src/tasks.rs:61:5`.
fn frame_symbol(line: &str) -> Option<&str> {
    let (number, symbol) = line.split_once(": ")?;
    number.trim().parse::<u32>().ok().map(|_| symbol)
}

/// Whether a frame can be the task's own, rather than of the machinery that panics.
fn is_own(symbol: &str) -> bool {
    let machinery = ["std::", "core::", "__rust", "rust_begin_unwind", "<unknown>", "panic_display"];
    !machinery.iter().any(|name| symbol.starts_with(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_exception_after_the_rust_type() {
        let error = TaskError::from("x".parse::<i64>().unwrap_err());
        let expected = Exception::new(
            "rust.core.num.error",
            "ParseIntError",
            vec!["invalid digit found in string".into()],
        );
        assert_eq!(*error.exception(), expected);
        assert_eq!(error.traceback(), Some("ParseIntError: invalid digit found in string"));
    }

    #[test]
    fn lists_the_causes_in_the_traceback() {
        #[derive(Debug, thiserror::Error)]
        #[error("read the price")]
        struct Price(#[source] std::num::ParseIntError);

        let error = TaskError::from(Price("x".parse::<i64>().unwrap_err()));
        assert_eq!(
            error.traceback(),
            Some("Price: read the price\ncaused by: invalid digit found in string")
        );
    }

    #[test]
    fn takes_the_outer_type_of_a_generic_error() {
        assert_eq!(python_path("shop::Failed<alloc::string::String>"), ("rust.shop".into(), "Failed".into()));
        assert_eq!(python_path("&str"), ("rust".into(), "RuntimeError".into()));
    }

    #[test]
    fn shows_the_tasks_own_frames() {
        let backtrace = "   0: std::backtrace::Backtrace::force_capture\n   1: __rust_end_short_backtrace\n             \
                         at /rustc/std.rs:1:2\n   2: __rustc::rust_begin_unwind\n   3: core::panicking::panic_fmt\n   4: \
                         shop::price\n             at ./src/shop.rs:7:5\n   5: <F as \
                         soloist_worker::IntoTaskFunction<M>>::into_task_function\n   6: soloist_worker::executor::run";
        assert_eq!(own_frames(backtrace), "\n   4: shop::price\n             at ./src/shop.rs:7:5");
        assert_eq!(own_frames("   0: <unknown>\n   1: <unknown>"), "");
    }

    #[test]
    fn knows_pythons_own_exceptions() {
        let module = |name: &str| TaskError::new(name, "x").exception().exc_module.clone();
        assert_eq!(module("KeyError").as_deref(), Some("builtins"));
        assert_eq!(module("OutOfStock").as_deref(), Some("rust"));
    }
}
