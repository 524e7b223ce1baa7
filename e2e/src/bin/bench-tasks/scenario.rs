//! Producers that post Fibonacci tasks to three queues, and one worker that serves them.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use e2e::{command, paths};
use tokio::process::Command;

use crate::Stand;
use crate::contender::{Contender, Worker};
use crate::enqueue::number;
use crate::line::Subject;
use crate::queue::Queue;

/// A million tasks at the rate of a slow day.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What each task gives: that of 10, unless `load produce` is told another argument.
const FIBONACCI_OF_10: &str = "55";

/// Celery gets this part of the tasks.
const SHARE_OF_CELERY: u64 = 5;

const CONTENDERS: [Contender; 3] = [
    Contender { worker: Worker::Soloist, in_hand: 64 },
    Contender { worker: Worker::CelerySolo, in_hand: 4 },
    Contender { worker: Worker::CeleryPrefork, in_hand: 8 },
];

/// Each worker once with each number of runs; Soloist alone with a million tasks, once, whose results are read once more.
pub(crate) async fn all(stand: &Stand, million: bool) -> Result<()> {
    for contender in CONTENDERS {
        let Contender { worker, in_hand } = contender;
        let (tasks, runs) = match (million, worker.is_celery()) {
            (true, true) => continue,
            (true, false) => (1_000_000, 1),
            (false, true) => (stand.tasks / SHARE_OF_CELERY, stand.runs),
            (false, false) => (stand.tasks, stand.runs),
        };
        let step = stand.progress.step(format!("scenario {}", worker.name()));
        let mut figures = Vec::new();
        let ids = million.then(|| paths::cache().join("bench-tasks.ids"));
        let before = if million { used_mb(stand).await? } else { 0.0 };
        for _ in 0..runs {
            figures.push(run(stand, contender, tasks, ids.as_deref()).await?);
        }
        let subject =
            Subject { bench: "scenario", worker: worker.name(), queue: "classic", results: "redis", in_hand };
        let median = subject.print(format!("tasks/s, {tasks} tasks"), &figures)?;
        if let Some(ids) = ids {
            let subject = Subject { bench: "fetch", ..subject };
            subject.print("MB more in Redis", &[used_mb(stand).await? - before])?;
            step.note("reading all results");
            let mut fetch = stand.load_fetch(&ids, FIBONACCI_OF_10);
            let rate = number(&command::output(&mut fetch, PATIENCE).await?)?;
            subject.print(format!("results/s, {tasks} results"), &[rate])?;
            std::fs::remove_file(&ids)?;
        }
        step.done(format!("{median} tasks/s"));
    }
    Ok(())
}

/// What Redis holds.
async fn used_mb(stand: &Stand) -> Result<f64> {
    let mut redis = redis::Client::open(stand.redis_url.as_str())?.get_multiplexed_async_connection().await?;
    let memory: redis::InfoDict = redis::cmd("INFO").arg("memory").query_async(&mut redis).await?;
    let bytes: f64 = memory.get("used_memory").context("Redis says how much memory it uses")?;
    Ok(bytes / 1e6)
}

async fn run(stand: &Stand, contender: Contender, tasks: u64, ids: Option<&Path>) -> Result<f64> {
    let mut queues = Vec::new();
    for _ in 0..3 {
        queues.push(Queue::create(&stand.amqp_url, "classic").await?);
    }
    let names = queues.iter().map(|queue| queue.name.as_str()).collect::<Vec<_>>().join(",");
    let mut process = contender.start(stand, &names, "classic", "redis")?;
    let mut produce = Command::new(&stand.programs.load);
    produce.args(["produce", "--broker", &stand.amqp_url, "--results", &stand.redis_url]);
    produce.args(["--queues", &names, "--tasks", &tasks.to_string(), "--producers", "10"]);
    if let Some(ids) = ids {
        produce.arg("--ids").arg(ids);
    }
    let rate = number(&command::output(&mut produce, PATIENCE).await?)?;
    process.kill().await?;
    for queue in queues {
        queue.delete().await?;
    }
    Ok(rate)
}
