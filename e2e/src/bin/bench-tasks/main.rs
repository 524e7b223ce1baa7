//! `cargo bench-tasks`: how fast workers and clients are, Soloist's beside Celery's, on the same broker in the same run.
//!
//! ```text
//! programs (built for release), servers, Celery
//!     -> drain, enqueue, cold_start, memory, fetch, scenario  -> lines of JSON
//! ```

mod contender;
mod drain;
mod enqueue;
mod fetch;
mod line;
mod queue;
mod scenario;
mod start;
mod usage;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use e2e::images::{self, Programs};
use e2e::servers::{Servers, Settings};
use e2e::{interrupt, paths, progress::Progress, python};

/// Measures workers and clients: Soloist's, Celery's, and a bare loop around lapin that does nothing.
///
/// Each line on standard output is the outcome of one benchmark. The RabbitMQ and the Redis are those that AMQP_URL and REDIS_URL name, or
/// else are started for the run. Other load on the machine spoils the figures.
#[derive(Parser)]
#[command(name = "cargo bench-tasks", bin_name = "cargo bench-tasks")]
struct Arguments {
    /// Only these benchmarks
    #[arg(long, value_delimiter = ',')]
    only: Vec<Bench>,
    /// Tasks in a run; Celery gets as many as it does in 5 seconds
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(100..))]
    tasks: u64,
    /// Runs of each benchmark, of which the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// The scenario with a million tasks
    #[arg(long)]
    million: bool,
    /// A smoke test instead, for less than a minute, with programs that are built already: fails if Soloist isn't faster
    /// than Celery's solo worker
    #[arg(long)]
    quick: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Bench {
    Drain,
    Enqueue,
    ColdStart,
    Memory,
    Fetch,
    Scenario,
}

/// What every benchmark needs.
struct Stand {
    progress: Progress,
    programs: Programs,
    python: PathBuf,
    amqp_url: String,
    redis_url: String,
    /// None if others' are used.
    _servers: Option<Servers>,
    tasks: u64,
    runs: u32,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = tokio::select! {
        outcome = run(&arguments) => outcome,
        interrupted = interrupt::requested() => interrupted.and_then(|()| Err(anyhow::anyhow!("interrupted"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<()> {
    let progress = Progress::new();
    let programs = match arguments.quick {
        true => Programs::built()?,
        false => images::programs(&progress).await?,
    };
    let python = python::ensure(&progress, python::NEWEST).await?;
    let given = |name| std::env::var(name).ok();
    let (amqp_url, redis_url, servers) = match (given("AMQP_URL"), given("REDIS_URL")) {
        (Some(amqp_url), Some(redis_url)) => (amqp_url, redis_url, None),
        _ => {
            let step = progress.step("RabbitMQ and Redis");
            let servers = start_servers().await?;
            step.done("");
            (servers.amqp_url.clone(), servers.redis_url.clone(), Some(servers))
        }
    };
    let (tasks, runs) = if arguments.quick { (5_000, 1) } else { (arguments.tasks, arguments.runs) };
    let stand = Stand { progress, programs, python, amqp_url, redis_url, _servers: servers, tasks, runs };
    if arguments.quick {
        return drain::quick(&stand).await;
    }
    let is_wanted = |bench| arguments.only.is_empty() || arguments.only.contains(&bench);
    if is_wanted(Bench::Drain) {
        drain::all(&stand).await?;
    }
    if is_wanted(Bench::Enqueue) {
        enqueue::all(&stand).await?;
    }
    if is_wanted(Bench::ColdStart) {
        start::cold(&stand).await?;
    }
    if is_wanted(Bench::Memory) {
        start::memory(&stand).await?;
    }
    if is_wanted(Bench::Fetch) {
        fetch::all(&stand).await?;
    }
    if is_wanted(Bench::Scenario) {
        scenario::all(&stand, arguments.million).await?;
    }
    Ok(())
}

/// New ones, with nothing in them.
async fn start_servers() -> Result<Servers> {
    let folder = paths::cache().join("bench-tasks");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Servers::start(&folder, Settings { redis: &["--appendonly", "no", "--save", ""], erlang: "" }).await
}
