//! `cargo demo`: Soloist doing what it is for, from nothing, on a real cluster.
//!
//! ```text
//! start ── helm install, kubectl apply ── Celery posts ── queues drain ── Celery fetches ── scale to zero ── picture
//! ```

mod live;
mod load;
mod plot;
mod series;
mod stage;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use e2e::cluster::Cluster;
use e2e::replicas::{Replicas, unix_now};
use e2e::stage::Stage;
use e2e::{interrupt, paths, progress::Progress, testing};
use serde::Serialize;

use crate::live::{Live, READY, REPLICAS, RUNNING, by_queue};
use crate::load::Load;
use crate::plot::Curve;
use crate::series::Prometheus;

/// Shows Soloist at work: installs it on a real Kubernetes cluster, lets real Celery post Fibonacci tasks to three
/// queues, shows the workers come and go, and checks every result.
///
/// The last line printed is JSON. The exit code is 0 only if every result was right and both scale-out and scale-in
/// were seen.
#[derive(Parser)]
#[command(name = "cargo demo", bin_name = "cargo demo", version)]
struct Arguments {
    /// How many tasks to post
    #[arg(long, default_value_t = 3000, value_parser = clap::value_parser!(u32).range(30..=10_000_000))]
    tasks: u32,
    /// How many threads post them
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// Leave everything running at the end
    #[arg(long)]
    keep: bool,
    /// Use the cluster of this kubeconfig instead of starting one. It must have the images (`cargo cluster images` builds
    /// them), and AMQP_URL, MANAGEMENT_URL, REDIS_URL and PROMETHEUS_URL must name servers that its pods and this machine
    /// reach under the same addresses; that Prometheus must scrape the operator
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Where to write the picture
    #[arg(long, default_value = "target/demo/scale-out.svg")]
    picture: PathBuf,
}

/// The TaskQueues of the demo and the queues they consume.
const QUEUES: [&str; 3] = ["red", "green", "blue"];

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(arguments))
}

async fn run(arguments: Arguments) -> Result<ExitCode> {
    let progress = Progress::new();
    let kubeconfig = arguments.kubeconfig.clone();
    let mut stage = None;
    let played = tokio::select! {
        played = perform(&arguments, &progress, &mut stage, kubeconfig) => played,
        interrupted = interrupt::requested() => interrupted.and_then(|()| Err(anyhow!("interrupted"))),
    };
    match stage {
        Some(Stage::Own { .. }) if arguments.keep => progress.say(
            "left running. Look around: eval \"$(cargo cluster env)\"; kubectl -n demo get taskqueues; end it: cargo cluster down",
        ),
        Some(_) if arguments.keep => progress.say("left running: kubectl -n demo get taskqueues"),
        Some(stage) => stage.clear(&progress).await?,
        None => {}
    }
    println!("{}", serde_json::to_string(&played?)?);
    Ok(ExitCode::SUCCESS)
}

/// Sets the stage, plays, and takes the demo's namespace away again.
async fn perform(
    arguments: &Arguments,
    progress: &Progress,
    stage: &mut Option<Stage>,
    kubeconfig: Option<PathBuf>,
) -> Result<Outcome> {
    let python = Stage::prepare(progress, kubeconfig.as_deref()).await?;
    let cluster = stage.insert(Stage::find(kubeconfig)?).set(progress).await?;
    let (tasks, threads, keep) = (arguments.tasks, arguments.threads, arguments.keep);
    let (picture, progress) = (arguments.picture.clone(), progress.clone());
    let inside = cluster.clone();
    cluster
        .namespace()
        .run(move || async move {
            let load = Load::new(&inside, python, tasks, threads)?;
            let outcome = play(&inside, &progress, &load, &picture).await;
            if outcome.is_err() {
                testing::dump_state(stage::NAMESPACE).await;
            }
            if !keep {
                stage::clear(&inside.client().await?).await?;
            }
            outcome
        })
        .await
}

/// Everything between an installed operator and the last line.
async fn play(cluster: &Cluster, progress: &Progress, load: &Load, picture: &Path) -> Result<Outcome> {
    stage::apply(cluster, progress).await?;
    let tasks = load.tasks;
    let prometheus = Prometheus::new(&cluster.prometheus.url());
    let replicas = Replicas::watch(cluster.client().await?, stage::NAMESPACE);
    let started = Instant::now();
    let start = unix_now();

    let mut live = Live::start(progress.clone(), Prometheus::new(&cluster.prometheus.url()), started);

    // A task takes tens of milliseconds at most; the rest is room for a busy machine.
    let patience = Duration::from_secs(180) + Duration::from_millis(60) * tasks;
    progress.say(format!("Celery posts {tasks} tasks from {} threads", load.threads));
    let published = load.publish(patience).await?;
    ensure!(published.published == tasks, "only {} of {tasks} tasks were published", published.published);
    let per_queue: Vec<_> =
        published.queues.iter().map(|(queue, count)| format!("{queue} {count}")).collect();
    progress.say(format!("posted in {:.1} s: {}", published.last - published.first, per_queue.join(", ")));
    live.until("the queues to drain", patience, |quiet| quiet.drained).await?;
    let drained = started.elapsed();

    let step = progress.step("fetch every result by its id");
    let fetched = load.fetch(patience).await?;
    step.done(format!("{} of {tasks} correct", fetched.correct));
    ensure!(
        fetched.correct == tasks,
        "{} results were wrong and {} missing, of {tasks}",
        fetched.wrong,
        fetched.missing
    );

    progress.say("waiting for the scale to zero");
    live.until("the workers to go to zero", Duration::from_secs(180), |quiet| quiet.at_rest).await?;
    let end = unix_now();

    let curves = draw(&prometheus, start, end, picture).await?;
    println!("\n{curves}");
    progress.say(format!("picture: {}", picture.display()));

    let peaks = peak_replicas(&prometheus, start, end).await?;
    for queue in QUEUES {
        let peak = peaks.get(queue).copied().unwrap_or_default();
        ensure!(peak >= 2, "no scale-out was seen in Prometheus for {queue}: at most {peak} workers");
    }
    let burst_to_patch = first_scale_out(&replicas, published.first)?;
    Ok(Outcome {
        demo: "ok",
        tasks,
        correct: fetched.correct,
        peak_replicas: peaks,
        seconds: rounded(drained.as_secs_f64()),
        burst_to_patch_seconds: rounded(burst_to_patch),
    })
}

/// The last line, for programs.
#[derive(Serialize)]
struct Outcome {
    demo: &'static str,
    tasks: u32,
    correct: u32,
    peak_replicas: BTreeMap<String, u64>,
    /// From the first task posted to the last one done.
    seconds: f64,
    /// From the first task posted to the moment at which the last of the three Deployments was told to have workers.
    burst_to_patch_seconds: f64,
}

async fn draw(prometheus: &Prometheus, start: f64, end: f64, picture: &Path) -> Result<String> {
    let backlog = prometheus.range(&format!("max by (taskqueue) ({READY} + {RUNNING})"), start, end).await?;
    let replicas = prometheus.range(&by_queue(REPLICAS), start, end).await?;
    let curves = |series: BTreeMap<String, series::Series>| -> Vec<Curve> {
        series.into_iter().map(|(queue, samples)| Curve { queue, samples }).collect()
    };
    let (backlog, replicas) = (curves(backlog), curves(replicas));
    let picture = paths::repository().join(picture);
    if let Some(folder) = picture.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    plot::draw(&picture, &backlog, &replicas)?;

    let mut text = String::new();
    for (what, unit, curves) in [("backlog", "messages", &backlog), ("workers", "pods", &replicas)] {
        for curve in curves {
            let peak = curve.samples.iter().map(|s| s.1).fold(0.0, f64::max);
            let line = plot::sparkline(&curve.samples, 60);
            text.push_str(&format!("{what} {:>5} ▕{line}▏ {peak:.0} {unit} at most\n", curve.queue));
        }
    }
    Ok(text)
}

async fn peak_replicas(prometheus: &Prometheus, start: f64, end: f64) -> Result<BTreeMap<String, u64>> {
    let replicas = prometheus.range(&by_queue(REPLICAS), start, end).await?;
    let peak = |samples: series::Series| samples.iter().map(|s| s.1).fold(0.0, f64::max) as u64;
    Ok(replicas.into_iter().map(|(queue, samples)| (queue, peak(samples))).collect())
}

/// Seconds from `since` to the moment at which the last of the Deployments was first told to have workers.
fn first_scale_out(replicas: &Replicas, since: f64) -> Result<f64> {
    let mut longest = 0.0_f64;
    for queue in QUEUES {
        let changes = replicas.changes(queue, since);
        let first = changes.iter().find(|change| change.replicas > 0);
        longest = longest.max(first.with_context(|| format!("{queue} was never scaled out"))?.at - since);
    }
    Ok(longest)
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 100.0).round() / 100.0
}
