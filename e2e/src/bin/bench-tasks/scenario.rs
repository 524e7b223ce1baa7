//! Producers that post Fibonacci tasks to three queues, and one worker that serves them.

use std::time::Duration;

use anyhow::Result;
use e2e::command;
use tokio::process::Command;

use crate::Stand;
use crate::contender::{Contender, Worker};
use crate::enqueue::number;
use crate::line::Subject;
use crate::queue::Queue;

/// A million tasks at the rate of a slow day.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Celery gets this part of the tasks.
const SHARE_OF_CELERY: u64 = 5;

const CONTENDERS: [Contender; 3] = [
    Contender { worker: Worker::Soloist, in_hand: 64 },
    Contender { worker: Worker::CelerySolo, in_hand: 4 },
    Contender { worker: Worker::CeleryPrefork, in_hand: 8 },
];

/// Each worker once with each number of runs; Soloist alone with a million tasks, once.
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
        for _ in 0..runs {
            figures.push(run(stand, contender, tasks).await?);
        }
        let subject =
            Subject { bench: "scenario", worker: worker.name(), queue: "classic", results: "redis", in_hand };
        let median = subject.print(format!("tasks/s, {tasks} tasks"), &figures)?;
        step.done(format!("{median} tasks/s"));
    }
    Ok(())
}

async fn run(stand: &Stand, contender: Contender, tasks: u64) -> Result<f64> {
    let mut queues = Vec::new();
    for _ in 0..3 {
        queues.push(Queue::create(&stand.amqp_url, "classic").await?);
    }
    let names = queues.iter().map(|queue| queue.name.as_str()).collect::<Vec<_>>().join(",");
    let mut process = contender.start(stand, &names, "classic", "redis")?;
    let mut produce = Command::new(&stand.programs.load);
    produce.args(["produce", "--broker", &stand.amqp_url, "--results", &stand.redis_url]);
    produce.args(["--queues", &names, "--tasks", &tasks.to_string(), "--producers", "10"]);
    let rate = number(&command::output(&mut produce, PATIENCE).await?)?;
    process.kill().await?;
    for queue in queues {
        queue.delete().await?;
    }
    Ok(rate)
}
