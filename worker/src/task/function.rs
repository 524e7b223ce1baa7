//! Turning plain and `async` Rust functions into tasks.

use std::{future::Future, pin::Pin, sync::Arc};

use celery_protocol::json;
use serde::Serialize;

use super::{Binder, Context, Parameter, Task, TaskError, TaskFunction, TaskResult};

/// What a task function may return: a value that serde can serialize, or a `Result` with such a value.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be the result of a task",
    note = "a task returns a type that implements `serde::Serialize`, or `Result<T, E>` with such a `T` and an `E` that implements `std::error::Error`"
)]
pub trait Output<M> {
    /// The result as JSON.
    ///
    /// # Errors
    /// The function's own error, or a value that JSON can't express.
    fn into_task_result(self) -> TaskResult;
}

/// Marks functions that return a plain value.
#[derive(Debug)]
pub struct Infallible;

/// Marks functions that return a `Result`.
#[derive(Debug)]
pub struct Fallible;

impl<T: Serialize> Output<Infallible> for T {
    fn into_task_result(self) -> TaskResult {
        json::to_raw(&self)
            .map_err(|source| TaskError::new("EncodeError", format!("encode the result as JSON: {source}")))
    }
}

impl<T: Serialize, E: Into<TaskError>> Output<Fallible> for Result<T, E> {
    fn into_task_result(self) -> TaskResult {
        self.map_err(Into::into).and_then(Output::<Infallible>::into_task_result)
    }
}

/// A function that can be registered as a task: `fn` or `async fn`, with up to eight parameters.
///
/// `M` tells apart the kinds of functions; it is always inferred.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be a task",
    note = "a task is a function (plain or async) whose parameters implement `Parameter` and whose result implements `Output`"
)]
pub trait IntoTaskFunction<M> {
    /// Wraps the function so that it takes its arguments from a call.
    fn into_task_function(self) -> TaskFunction;
}

/// Marks plain functions.
#[derive(Debug)]
pub struct Blocking;

/// Marks `async` functions.
#[derive(Debug)]
pub struct Async;

macro_rules! implement_for_functions_of {
    ($($parameter:ident),*) => {
        impl<F, R, M, $($parameter),*> IntoTaskFunction<(Blocking, M, $($parameter,)*)> for F
        where
            F: Fn($($parameter),*) -> R + Send + Sync + 'static,
            R: Output<M>,
            $($parameter: Parameter,)*
        {
            #[allow(unused_mut, reason = "a function without parameters binds nothing")]
            #[allow(non_snake_case, reason = "parameters are called like their types")]
            fn into_task_function(self) -> TaskFunction {
                TaskFunction::Blocking(Arc::new(move |context: &Context, task: &Task| {
                    let mut binder = Binder::new(context, task)?;
                    let ($($parameter,)*) = ($($parameter::bind(&mut binder)?,)*);
                    binder.finish()?;
                    self($($parameter),*).into_task_result()
                }))
            }
        }

        impl<F, Fut, R, M, $($parameter),*> IntoTaskFunction<(Async, M, $($parameter,)*)> for F
        where
            F: Fn($($parameter),*) -> Fut + Send + Sync + 'static,
            Fut: Future<Output = R> + Send + 'static,
            R: Output<M>,
            $($parameter: Parameter,)*
        {
            #[allow(unused_mut, reason = "a function without parameters binds nothing")]
            #[allow(non_snake_case, reason = "parameters are called like their types")]
            fn into_task_function(self) -> TaskFunction {
                let start = move |context: &Context, task: &Task| -> Result<Fut, TaskError> {
                    let mut binder = Binder::new(context, task)?;
                    let ($($parameter,)*) = ($($parameter::bind(&mut binder)?,)*);
                    binder.finish()?;
                    Ok(self($($parameter),*))
                };
                TaskFunction::Async(Arc::new(move |context: &Context, task: &Task| {
                    let started = start(context, task);
                    Box::pin(async move { started?.await.into_task_result() })
                        as Pin<Box<dyn Future<Output = TaskResult> + Send>>
                }))
            }
        }
    };
}

implement_for_functions_of!();
implement_for_functions_of!(A);
implement_for_functions_of!(A, B);
implement_for_functions_of!(A, B, C);
implement_for_functions_of!(A, B, C, D);
implement_for_functions_of!(A, B, C, D, E);
implement_for_functions_of!(A, B, C, D, E, G);
implement_for_functions_of!(A, B, C, D, E, G, H);
implement_for_functions_of!(A, B, C, D, E, G, H, I);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_that_json_has_no_number_for_is_an_error() {
        let error = vec![1.0, f64::INFINITY].into_task_result().unwrap_err();
        assert_eq!(error.to_string(), "EncodeError: encode the result as JSON: JSON has no number for inf");
        assert_eq!(Option::<f64>::None.into_task_result().unwrap().get(), "null");
    }
}
