//! The scenario of the demo, without Kubernetes: producers that post Fibonacci tasks and want each result.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use celery_client::{AsyncResult, BrokerAddress, Celery, ResultStoreAddress};
use celery_protocol::Signature;
use clap::Args;
use futures_util::{StreamExt, stream};

use crate::{Outcome, send_on_threads};

/// Tasks that a producer has sent and not seen the result of.
const OUTSTANDING: usize = 100;

/// Longest wait for a single result: a whole backlog may lie before it.
const PATIENCE: Duration = Duration::from_secs(600);

/// Sends `tasks.fib(n)`.
#[derive(Args)]
pub(crate) struct Produce {
    #[arg(long)]
    broker: BrokerAddress,
    #[arg(long)]
    results: ResultStoreAddress,
    /// Queues, each used by turns
    #[arg(long, value_delimiter = ',')]
    queues: Vec<String>,
    #[arg(long)]
    tasks: u64,
    #[arg(long, default_value_t = 10)]
    producers: u64,
    /// Argument of each task
    #[arg(long, default_value_t = 10)]
    fib: u64,
    /// Write the ids of the tasks there, one a line
    #[arg(long)]
    ids: Option<PathBuf>,
}

impl Produce {
    pub(crate) fn run(self) -> Outcome<f64> {
        let next = AtomicU64::new(0);
        send_on_threads(self.producers, self.tasks, self.ids.as_deref(), async || self.produce(&next).await)
    }

    /// Sends as long as tasks are left, and gives back their ids.
    async fn produce(&self, next: &AtomicU64) -> Outcome<Vec<String>> {
        let celery = Celery::builder(self.broker.clone()).results(self.results.clone()).connect().await?;
        let mine = std::iter::from_fn(|| {
            Some(next.fetch_add(1, Ordering::Relaxed)).filter(|number| *number < self.tasks)
        });
        let calls = mine.map(|number| {
            let queue = &self.queues[usize::try_from(number).unwrap_or_default() % self.queues.len()];
            self.call(&celery, queue)
        });
        let mut done = stream::iter(calls).buffer_unordered(OUTSTANDING);
        let mut ids = Vec::new();
        while let Some(id) = done.next().await {
            ids.push(id?);
        }
        celery.close().await;
        Ok(ids)
    }

    /// Gives the id of a call whose result was right.
    async fn call(&self, celery: &Celery, queue: &str) -> Outcome<String> {
        let signature = Signature::new("tasks.fib").with_args(&(self.fib,))?.queue(queue);
        let result: AsyncResult = celery.send(&signature).await?;
        let value: u64 = result.get(PATIENCE).await?;
        let expected = fibonacci(self.fib);
        if value == expected {
            Ok(result.id().to_owned())
        } else {
            Err(format!("fib({}) is not {value}", self.fib).into())
        }
    }
}

fn fibonacci(n: u64) -> u64 {
    (0..n).fold((0, 1), |(a, b), _| (b, a + b)).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fibonacci_begins_with_zero() {
        assert_eq!((0..8).map(fibonacci).collect::<Vec<_>>(), [0, 1, 1, 2, 3, 5, 8, 13]);
    }
}
