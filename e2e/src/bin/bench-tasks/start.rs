//! How long a worker takes to its first result, and how much memory it has.

use std::time::Duration;

use anyhow::{Context, Result};
use celery_client::Celery;
use celery_client::Signature;
use tokio::time::{Instant, sleep};

use crate::Stand;
use crate::contender::{Contender, Worker};
use crate::line::Subject;
use crate::queue::Queue;
use crate::usage::resident_mb;

const START: Duration = Duration::from_secs(60);

/// How long a worker is left alone before its memory is looked at: by then it has said hello to the others.
const SETTLED: Duration = Duration::from_secs(3);

const CONTENDERS: [Contender; 3] = [
    Contender { worker: Worker::Soloist, in_hand: 64 },
    Contender { worker: Worker::CelerySolo, in_hand: 4 },
    Contender { worker: Worker::CeleryPrefork, in_hand: 8 },
];

/// From the start of the process to the answer to a call that was waiting.
pub(crate) async fn cold(stand: &Stand) -> Result<()> {
    for contender in CONTENDERS {
        let Contender { worker, in_hand } = contender;
        let step = stand.progress.step(format!("cold_start {}", worker.name()));
        let mut figures = Vec::new();
        for _ in 0..stand.runs.max(3) {
            let queue = Queue::create(&stand.amqp_url, "classic").await?;
            let celery =
                Celery::builder(stand.amqp_url.parse()?).results("rpc://".parse()?).connect().await?;
            let call = celery.send(&Signature::new("tasks.add").arg(1).arg(2).queue(&queue.name)).await?;
            let begun = Instant::now();
            let mut process = contender.start(stand, &queue.name, "classic", "rpc")?;
            let sum: i64 = call.get(START).await?;
            figures.push(begun.elapsed().as_secs_f64() * 1000.0);
            anyhow::ensure!(sum == 3, "1 + 2 is not {sum}");
            process.kill().await?;
            celery.close().await;
            queue.delete().await?;
        }
        let subject =
            Subject { bench: "cold_start", worker: worker.name(), queue: "classic", results: "rpc", in_hand };
        let median = subject.print("ms", &figures)?;
        step.done(format!("{median} ms"));
    }
    Ok(())
}

/// Before the first task, and after all of them.
pub(crate) async fn memory(stand: &Stand) -> Result<()> {
    for results in ["none", "redis"] {
        for contender in CONTENDERS {
            let Contender { worker, in_hand } = contender;
            let step = stand.progress.step(format!("memory {} {results}", worker.name()));
            let (mut idle, mut after) = (Vec::new(), Vec::new());
            let tasks = stand.tasks / if worker.is_celery() { 5 } else { 1 };
            for _ in 0..stand.runs {
                let queue = Queue::create(&stand.amqp_url, "classic").await?;
                let mut process = contender.start(stand, &queue.name, "classic", results)?;
                let pid = process.id().context("the worker has ended at once")?;
                stand.fill(&queue.name, 1, None).await?;
                queue.emptied(START).await?;
                sleep(SETTLED).await;
                idle.push(resident_mb(pid)?);
                stand.fill(&queue.name, tasks, None).await?;
                queue.emptied(START).await?;
                after.push(resident_mb(pid)?);
                process.kill().await?;
                queue.delete().await?;
            }
            let subject =
                Subject { bench: "memory", worker: worker.name(), queue: "classic", results, in_hand };
            subject.print("MB resident, idle", &idle)?;
            let median = subject.print(format!("MB resident, after {tasks} tasks"), &after)?;
            step.done(format!("{median} MB"));
        }
    }
    Ok(())
}
