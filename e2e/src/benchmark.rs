//! What the benchmarks on a cluster share: a stage of their own, and figures of what they saw.

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use serde::Serialize;

use crate::cluster::Cluster;
use crate::interrupt;
use crate::progress::Progress;
use crate::stage::Stage;

/// Starts this checkout's cluster with Soloist on it (unless it runs), runs a benchmark inside of the cluster's network,
/// takes away what was started, and prints the outcome as the last line. If it is to be `attached`, it runs on the
/// cluster that is up, with the Soloist that is on it, and leaves both.
///
/// # Errors
/// If the stage can't be set or no cluster is up, and those of the benchmark.
pub async fn run<T, F, Running>(progress: &Progress, attached: bool, benchmark: F) -> Result<ExitCode>
where
    T: Serialize + Verdict + Send + 'static,
    F: FnOnce() -> Running + Send + 'static,
    Running: Future<Output = Result<T>>,
{
    if attached {
        return conclude(&Cluster::find()?.namespace().run(benchmark).await?);
    }
    let mut stage = None;
    let outcome = tokio::select! {
        outcome = perform(progress, &mut stage, benchmark) => outcome,
        interrupted = interrupt::requested() => interrupted.and_then(|()| Err(anyhow!("interrupted"))),
    };
    if let Some(stage) = stage {
        stage.clear(progress).await?;
    }
    conclude(&outcome?)
}

/// Prints the outcome.
fn conclude<T: Serialize + Verdict>(outcome: &T) -> Result<ExitCode> {
    println!("{}", serde_json::to_string(outcome)?);
    Ok(if outcome.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn perform<T, F, Running>(progress: &Progress, stage: &mut Option<Stage>, benchmark: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Running + Send + 'static,
    Running: Future<Output = Result<T>>,
{
    Stage::prepare(progress, None).await?;
    let cluster = stage.insert(Stage::find(None)?).set(progress).await?;
    cluster.namespace().run(benchmark).await
}

/// Whether a benchmark reached what it is to reach: the exit code says so.
pub trait Verdict {
    /// Whether every figure is within its limit.
    fn is_good(&self) -> bool;
}

/// The value that the part `quantile` (0 to 1) of `samples` does not exceed: the nearest rank. Of no samples there is
/// none.
pub fn quantile(samples: &[f64], quantile: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (quantile * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).map(|value| rounded(*value))
}

/// To three digits after the point.
pub fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_samples() {
        let samples: Vec<f64> = (1..=50).rev().map(f64::from).collect();
        assert_eq!(quantile(&samples, 0.5), Some(25.0));
        assert_eq!(quantile(&samples, 0.99), Some(50.0));
        assert_eq!(quantile(&samples, 0.0), Some(1.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
