//! The attribute `#[task]` of `soloist-worker`, which re-exports it and documents it.

mod task;

use proc_macro::TokenStream;

/// Makes a function a task: `#[task("shop.price")] fn price(…)` can be registered as `price::task()`.
///
/// The names of the parameters are those that callers may use as keywords. A parameter with `#[default(…)]` may be left out.
/// What follows the name are settings of `Task`, by the names of its methods.
///
/// ```ignore
/// use soloist_worker::{Context, TaskError, task};
///
/// #[task("shop.fetch", autoretry_for = ["TimeoutError"], retry_backoff = 2, max_retries = 5)]
/// async fn fetch(context: Context, url: String, #[default(30)] timeout: u64) -> Result<usize, TaskError> {
///     tracing::info!(retries = context.retries(), url, timeout, "fetching");
///     Ok(url.len())
/// }
///
/// fn main() -> std::process::ExitCode {
///     soloist_worker::main(|worker| worker.register(fetch::task()))
/// }
/// ```
///
/// The function itself stays as it is, and can be called as ever.
#[proc_macro_attribute]
pub fn task(arguments: TokenStream, function: TokenStream) -> TokenStream {
    task::expand(arguments.into(), function.into()).unwrap_or_else(|error| error.to_compile_error()).into()
}
