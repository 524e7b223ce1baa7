//! What came of the runs, in numbers.

use serde::Serialize;

use crate::engine::Outcome;

/// The runs of one autoscaler on one load, over all seeds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) p50_wait_seconds: f64,
    pub(crate) p95_wait_seconds: f64,
    pub(crate) p99_wait_seconds: f64,
    pub(crate) max_wait_seconds: f64,
    /// Of one run, on average.
    pub(crate) worker_seconds: f64,
    pub(crate) changes_per_hour: f64,
    /// Of all runs.
    pub(crate) killed: u32,
}

impl Summary {
    pub(crate) fn of(outcomes: &[Outcome]) -> Self {
        let mut waits: Vec<f64> = outcomes.iter().flat_map(|outcome| outcome.waits.iter().copied()).collect();
        waits.sort_by(f64::total_cmp);
        let sum = |number: fn(&Outcome) -> f64| outcomes.iter().map(number).sum::<f64>();
        let runs = outcomes.len().max(1) as f64;
        let rounded = |number: f64, digits: i32| {
            let scale = 10_f64.powi(digits);
            (number * scale).round() / scale
        };
        let wait = |part| rounded(percentile(&waits, part), 2);
        Self {
            p50_wait_seconds: wait(0.5),
            p95_wait_seconds: wait(0.95),
            p99_wait_seconds: wait(0.99),
            max_wait_seconds: wait(1.0),
            worker_seconds: rounded(sum(|outcome| outcome.worker_seconds) / runs, 0),
            changes_per_hour: rounded(
                sum(|outcome| outcome.changes.into()) * 3600.0 / sum(|outcome| outcome.seconds),
                1,
            ),
            killed: outcomes.iter().map(|outcome| outcome.killed).sum(),
        }
    }
}

/// The value that this part of the sorted values does not exceed (nearest rank).
fn percentile(sorted: &[f64], part: f64) -> f64 {
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
}

/// The head of a table of summaries, its first column being `name`.
pub(crate) fn head(name: &str) -> String {
    format!(
        "{name:<28} {:>8} {:>8} {:>8} {:>8} {:>14} {:>10} {:>7}",
        "wait p50", "p95", "p99", "max s", "worker-seconds", "changes/h", "killed"
    )
}

/// A line of such a table.
pub(crate) fn line(name: &str, summary: &Summary) -> String {
    let Summary { p50_wait_seconds, p95_wait_seconds, p99_wait_seconds, max_wait_seconds, .. } = summary;
    let Summary { worker_seconds, changes_per_hour, killed, .. } = summary;
    format!(
        "{name:<28} {p50_wait_seconds:>8.2} {p95_wait_seconds:>8.2} {p99_wait_seconds:>8.2} {max_wait_seconds:>8.2} {worker_seconds:>14.0} {changes_per_hour:>10.1} {killed:>7}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!([0.5, 0.95, 0.99, 1.0].map(|part| percentile(&values, part)), [10.0, 19.0, 20.0, 20.0]);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn waits_are_pooled_and_costs_averaged() {
        let outcome = |waits: &[f64], worker_seconds, changes| Outcome {
            waits: waits.to_vec(),
            worker_seconds,
            changes,
            killed: 1,
            lowered_in_doubt: 0,
            seconds: 1800.0,
            samples: Vec::new(),
        };
        let summary = Summary::of(&[outcome(&[1.0, 2.0], 100.0, 3), outcome(&[9.0], 300.0, 5)]);
        assert_eq!((summary.p50_wait_seconds, summary.max_wait_seconds), (2.0, 9.0));
        assert_eq!((summary.worker_seconds, summary.changes_per_hour, summary.killed), (200.0, 8.0, 2));
    }
}
