//! Waiting for results, with a progress bar on a terminal.

use celery_client::{AsyncResult, CanvasResult, ResultError};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use std::time::Duration;

/// A bar on standard error; nothing where that is no terminal.
pub(crate) fn bar(length: usize, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(length as u64);
    let template = "{msg} {wide_bar} {pos}/{len} {per_sec} {eta}";
    // The default if the template had a mistake, which a look at it excludes.
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(what);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Waits for a canvas's value. The bar counts all its tasks that are known to the client.
pub(crate) async fn wait(result: &CanvasResult, timeout: Duration) -> Result<Value, ResultError> {
    let mut tasks = Vec::new();
    let mut part = Some(result);
    while let Some(result) = part {
        tasks.extend(result.tasks());
        part = result.parent();
    }
    let value = result.get(timeout);
    match tasks.as_slice() {
        [] | [_] => value.await,
        tasks => tokio::select! {
            biased;
            value = value => value,
            () = watch(tasks, timeout) => unreachable!("watching never ends"),
        },
    }
}

async fn watch(tasks: &[&AsyncResult], timeout: Duration) {
    let bar = bar(tasks.len(), "tasks");
    let mut ending: FuturesUnordered<_> = tasks.iter().map(|task| task.wait(timeout)).collect();
    while let Some(ended) = ending.next().await {
        if ended.is_ok() {
            bar.inc(1);
        }
    }
    std::future::pending().await
}
