//! `cargo test-wrong-data`: what the operator can't see or sees wrongly never makes it lower the number of workers.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use e2e::benchmark::{self, Verdict};
use e2e::debian;
use e2e::progress::Progress;
use e2e::soloist::Test;
use e2e::wrong_data::{self, Fault, WORKERS};
use serde::Serialize;

/// Takes away, one after the other, what the operator knows a TaskQueue's load by, while that load is there, and watches
/// the number of workers. Each time it shows afterwards that the operator would have lowered that number: it does,
/// once it can see that nothing is left.
///
/// The last line printed is JSON. The exit code is 0 only if no fault lowered the number.
#[derive(Parser)]
#[command(name = "cargo test-wrong-data", bin_name = "cargo test-wrong-data")]
struct Arguments {
    /// What is to go wrong; all if not given
    #[arg(long, value_enum)]
    fault: Vec<Fault>,
    /// Seconds that each lasts
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(5..=600))]
    seconds: u64,
    /// On the cluster that is up, with the Soloist that is installed there
    #[arg(long)]
    attached: bool,
}

#[derive(Serialize)]
struct Outcome {
    test: &'static str,
    workers: i32,
    faults: Vec<Fault>,
    seconds_each: u64,
    /// Faults in which the number of workers was lowered.
    lowered: Vec<Fault>,
}

impl Verdict for Outcome {
    fn is_good(&self) -> bool {
        self.lowered.is_empty()
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let progress = Progress::new();
    debian::ensure_faketime(&progress).await?;
    let inside = progress.clone();
    benchmark::run(&progress, arguments.attached, move || async move {
        let test = Test::new("wrong-data").await?;
        test.run(Duration::from_secs(3600), faults(&test, &inside, &arguments)).await
    })
    .await
}

async fn faults(test: &Test, progress: &Progress, arguments: &Arguments) -> Result<Outcome> {
    wrong_data::prepare(test).await?;
    let faults = if arguments.fault.is_empty() { Fault::value_variants() } else { &arguments.fault };
    let mut lowered = Vec::new();
    for fault in faults {
        let lowest = wrong_data::trial(test, *fault, arguments.seconds).await?;
        progress.say(format!("{fault:?}: {} workers at least; {}", lowest.workers, lowest.said));
        if lowest.workers < WORKERS {
            lowered.push(*fault);
        }
    }
    let faults = faults.to_vec();
    Ok(Outcome { test: "wrong_data", workers: WORKERS, faults, seconds_each: arguments.seconds, lowered })
}
