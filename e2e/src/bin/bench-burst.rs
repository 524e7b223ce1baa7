//! `cargo bench-burst`: how quickly bursts become workers.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use celery_client::Celery;
use clap::Parser;
use e2e::benchmark::{self, Verdict, quantile};
use e2e::progress::Progress;
use e2e::replicas::{Replicas, unix_now};
use e2e::soloist::{self, Test};
use e2e::wait;
use futures_util::future::try_join_all;
use serde::Serialize;

/// Measures the time from the last message of a burst to the moment at which the Deployment is told to have the workers
/// for it, again and again: by turns from no worker and from five.
///
/// The last line printed is JSON. The exit code is 0 only if each burst took one patch, to the right number, and 99 %
/// of them at most 2 seconds.
#[derive(Parser)]
#[command(name = "cargo bench-burst", bin_name = "cargo bench-burst")]
struct Arguments {
    /// How many bursts
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(2..=1000))]
    bursts: u32,
    /// How many workers a burst is to become; it has ten messages for each
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i32).range(6..=100))]
    workers: i32,
    /// With pods for a node that doesn't exist, so that a burst takes some seconds and not a minute: the decision and the patch come
    /// before the first pod in any case
    #[arg(long)]
    no_node: bool,
    /// On the cluster that is up, with the Soloist that is installed there
    #[arg(long)]
    attached: bool,
}

/// The TaskQueues, with the workers that each has before a burst.
const TASK_QUEUES: [(&str, i32); 2] = [("from-zero", 0), ("from-five", 5)];
const TASKS_PER_WORKER: i32 = 10;
/// Long enough for the burst to be there still when the operator looks.
const TASK_SECONDS: f64 = 2.0;
const LIMIT: f64 = 2.0;
/// Pods have to start and to end, a hundred at most, on what cores there are.
const CALM: Duration = Duration::from_secs(300);

#[derive(Serialize)]
struct Outcome {
    bench: &'static str,
    bursts: u32,
    workers: i32,
    no_node: bool,
    /// The most that a burst took.
    patches_per_burst: usize,
    p50_seconds: f64,
    p99_seconds: f64,
    max_seconds: f64,
}

impl Verdict for Outcome {
    fn is_good(&self) -> bool {
        self.patches_per_burst == 1 && self.p99_seconds <= LIMIT
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let progress = Progress::new();
    let inside = progress.clone();
    benchmark::run(&progress, arguments.attached, move || async move {
        let test = Test::new("bench-burst").await?;
        let within = CALM * arguments.bursts;
        test.run(within, bursts(&test, &inside, &arguments)).await
    })
    .await
}

async fn bursts(test: &Test, progress: &Progress, arguments: &Arguments) -> Result<Outcome> {
    let workers = arguments.workers;
    for (name, floor) in TASK_QUEUES {
        let scaling = format!(
            "{{minReplicas: {floor}, maxReplicas: {workers}, tasksPerWorker: {TASKS_PER_WORKER}, \
             scaleDown: {{stabilizationSeconds: 2}}}}"
        );
        let task_queue = soloist::task_queue(name, &scaling);
        let task_queue = if arguments.no_node { soloist::on_no_node(&task_queue) } else { task_queue };
        test.namespace.apply(&task_queue).await?;
        test.condition(name, "QueuesDeclared", "True", "Declared").await?;
    }
    let replicas = Replicas::watch(test.client.clone(), &test.namespace.name);
    let celery = test.celery().await?;
    let (mut seconds, mut patches) = (Vec::new(), 0);
    for number in 1..=arguments.bursts {
        let (name, floor) = TASK_QUEUES[number as usize % TASK_QUEUES.len()];
        calm(test, name, floor, arguments.no_node).await?;
        let burst = burst(test, &celery, &replicas, name, workers).await?;
        progress.say(format!("burst {number:3} {name}: {:.2} s, {} patches", burst.seconds, burst.patches));
        seconds.push(burst.seconds);
        patches = patches.max(burst.patches);
    }
    let figure = |part| quantile(&seconds, part).context("no burst");
    Ok(Outcome {
        bench: "burst",
        bursts: arguments.bursts,
        workers,
        no_node: arguments.no_node,
        patches_per_burst: patches,
        p50_seconds: figure(0.5)?,
        p99_seconds: figure(0.99)?,
        max_seconds: figure(1.0)?,
    })
}

/// Waits until both TaskQueues are as they are between bursts.
async fn calm(test: &Test, next: &str, floor: i32, no_node: bool) -> Result<()> {
    wait::until(&format!("{next} to be back at {floor} workers"), CALM, || async {
        for (name, floor) in TASK_QUEUES {
            let (pods, replicas) = (test.pods(name).await?, test.replicas(name).await?);
            let ready = pods.iter().filter(|pod| soloist::is_ready(pod)).count();
            let (pods, floor) = (pods.len(), usize::try_from(floor)?);
            ensure!(
                pods == floor && (ready == floor || no_node),
                "{name} has {replicas} replicas, {pods} pods, {ready} ready"
            );
        }
        Ok(Some(()))
    })
    .await
}

struct Burst {
    /// From the last message's confirm to the patch.
    seconds: f64,
    patches: usize,
}

async fn burst(test: &Test, celery: &Celery, replicas: &Replicas, name: &str, workers: i32) -> Result<Burst> {
    let started = unix_now();
    let messages = workers * TASKS_PER_WORKER;
    try_join_all((0..messages).map(|_| soloist::send(celery, name, "tasks.sleep", (TASK_SECONDS,)))).await?;
    let published = unix_now();
    let reached = wait::until(&format!("{name} to be told to have {workers} workers"), CALM, || async {
        Ok(replicas.changes(name, started).into_iter().find(|change| change.replicas >= workers))
    })
    .await?;
    // The burst is over once it has its workers.
    test.cluster.rabbitmq.purge(&test.namespace.name, name).await?;
    let patches = replicas.changes(name, started).iter().filter(|change| change.at <= reached.at).count();
    Ok(Burst { seconds: (reached.at - published).max(0.0), patches })
}
