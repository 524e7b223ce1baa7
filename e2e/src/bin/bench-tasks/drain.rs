//! How fast workers empty a queue that was filled before.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::Stand;
use crate::contender::{Contender, Worker};
use crate::line::Subject;
use crate::queue::Queue;
use crate::usage::cpu_seconds;

/// Longest wait for a worker's first task: Celery's prefork worker takes seconds to start.
const START: Duration = Duration::from_secs(60);

/// A run is cut off after this: Celery would take up to a minute for all tasks.
const CUT_OFF: Duration = Duration::from_secs(5);

/// One message in hand; what is best for short tasks; and for Celery its default.
const CONTENDERS: [Contender; 7] = [
    Contender { worker: Worker::Soloist, in_hand: 1 },
    Contender { worker: Worker::Soloist, in_hand: 64 },
    Contender { worker: Worker::LapinLoop, in_hand: 1 },
    Contender { worker: Worker::LapinLoop, in_hand: 100 },
    Contender { worker: Worker::CelerySolo, in_hand: 1 },
    Contender { worker: Worker::CelerySolo, in_hand: 4 },
    Contender { worker: Worker::CeleryPrefork, in_hand: 8 },
];

/// Tasks a second, and CPU seconds for a thousand.
struct Rates {
    tasks: f64,
    cpu: f64,
}

/// Every contender on every kind of queue, without results and with them.
pub(crate) async fn all(stand: &Stand) -> Result<()> {
    for kind in ["classic", "quorum"] {
        for results in ["none", "redis"] {
            for contender in CONTENDERS {
                // The bare loop has no results.
                if contender.worker != Worker::LapinLoop || results == "none" {
                    contest(stand, contender, kind, results).await?;
                }
            }
        }
    }
    Ok(())
}

/// Soloist and Celery's solo worker, each with its defaults.
pub(crate) async fn quick(stand: &Stand) -> Result<()> {
    let soloist = contest(stand, CONTENDERS[1], "classic", "none").await?;
    let celery = contest(stand, CONTENDERS[5], "classic", "none").await?;
    ensure!(soloist > celery, "Soloist does {soloist} tasks a second, Celery's solo worker {celery}");
    Ok(())
}

async fn contest(
    stand: &Stand,
    contender: Contender,
    kind: &'static str,
    results: &'static str,
) -> Result<f64> {
    let Contender { worker, in_hand } = contender;
    let step = stand.progress.step(format!("drain {} {kind} {results} {in_hand}", worker.name()));
    let (mut tasks, mut cpu) = (Vec::new(), Vec::new());
    for number in 1..=stand.runs {
        step.note(format!("run {number} of {}", stand.runs));
        let rates = run(stand, contender, kind, results).await?;
        tasks.push(rates.tasks);
        cpu.push(rates.cpu);
    }
    let subject = Subject { bench: "drain", worker: worker.name(), queue: kind, results, in_hand };
    let median = subject.print("tasks/s", &tasks)?;
    subject.print("CPU seconds/1000 tasks", &cpu)?;
    step.done(format!("{median} tasks/s"));
    Ok(median)
}

async fn run(stand: &Stand, contender: Contender, kind: &str, results: &str) -> Result<Rates> {
    let queue = Queue::create(&stand.amqp_url, kind).await?;
    stand.fill(&queue.name, stand.tasks, None).await?;
    let mut process = contender.start(stand, &queue.name, kind, results)?;
    let pid = process.id().context("the worker has ended at once")?;
    let drained = queue.drained(START, CUT_OFF).await?;
    // What it took to start is in it, too, which is little for all but Celery.
    let cpu = cpu_seconds(pid)?;
    process.kill().await?;
    queue.delete().await?;
    Ok(Rates { tasks: drained.tasks as f64 / drained.seconds, cpu: cpu / (drained.tasks as f64 / 1000.0) })
}
