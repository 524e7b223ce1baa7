//! Every autoscaler on one load, and whether Soloist is as much better as it is meant to be.

use serde::Serialize;
use soloist_operator::plan::law::{Goal, Policy};

use crate::engine::Outcome;
use crate::keda::Settings;
use crate::report::{self, Summary};
use crate::soloist::Log;
use crate::suite::{self, Contender, ONE_TASK, Scenario};

/// One autoscaler's results.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) autoscaler: String,
    #[serde(flatten)]
    pub(crate) summary: Summary,
    /// The run of the first seed, for curves.
    #[serde(skip)]
    pub(crate) first: Outcome,
}

/// All results on one load. The first row is Soloist.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) scenario: String,
    pub(crate) rows: Vec<Row>,
    pub(crate) goals: Vec<Met>,
    /// What Soloist costs more than KEDA tuned by hand, in percent.
    pub(crate) premium_percent: f64,
}

/// A goal, and whether it was met.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Met {
    pub(crate) goal: &'static str,
    pub(crate) met: bool,
}

const SOLOIST: &str = "Soloist";
const KEDA: &str = "KEDA default";
/// With its value, which follows the tasks.
const TUNED: &str = "KEDA tuned, value";

/// Runs an autoscaler on a load with the seeds `0..seeds`.
pub(crate) fn row(name: &str, scenario: &Scenario, contender: Contender, seeds: u64) -> Row {
    let outcomes: Vec<_> =
        (0..seeds).map(|seed| suite::run(scenario, contender, seed, Log::default())).collect();
    let summary = Summary::of(&outcomes);
    Row { autoscaler: name.to_owned(), summary, first: outcomes.into_iter().next().unwrap_or_default() }
}

/// Messages for one pod that somebody sets who knows how long his tasks take and how long they may wait.
fn tuned_value(wait_seconds: f64, service_seconds: f64) -> f64 {
    (wait_seconds / service_seconds).floor().max(1.0)
}

impl Comparison {
    /// Runs all autoscalers on a load.
    pub(crate) fn of(scenario: &Scenario, policy: Policy, seeds: u64) -> Self {
        let max = scenario.max;
        let wait = if let Goal::MaxWaitSeconds(wait) = policy.goal { wait } else { 0.0 };
        let value = tuned_value(wait, scenario.mean_service());
        let run = |name: &str, contender| row(name, scenario, contender, seeds);
        let mut rows = vec![
            run(SOLOIST, Contender::Soloist(policy)),
            run("Soloist, tasksPerWorker 1", Contender::Soloist(Policy { goal: ONE_TASK, ..policy })),
            run(KEDA, Contender::Keda(Settings::default_timing(1.0, max))),
            run(&format!("{TUNED} {value}"), Contender::Keda(Settings::tuned(value, max))),
        ];
        if value > 1.0 {
            rows.push(run(&format!("{TUNED} 1"), Contender::Keda(Settings::tuned(1.0, max))));
        }
        rows.push(run("ceil(backlog / 1)", Contender::Proportional(1.0)));
        let workers = rows[0].summary.worker_seconds / rows[0].first.seconds;
        let fixed = (workers.round() as u16).max(1);
        rows.push(run(&format!("fixed: {fixed}, as expensive"), Contender::Fixed(fixed)));
        Self::judged(&scenario.name, rows)
    }

    fn judged(scenario: &str, rows: Vec<Row>) -> Self {
        let of = |name: &'static str| {
            rows.iter().filter(move |row| row.autoscaler.starts_with(name)).map(|row| &row.summary)
        };
        let first = |name| of(name).next().expect("each comparison has all the rows that are judged");
        let (soloist, keda, tuned) = (first(SOLOIST), first(KEDA), first(TUNED));
        let beaten = of(TUNED).all(|tuned| soloist.p95_wait_seconds < tuned.p95_wait_seconds);
        let met = |goal, met| Met { goal, met };
        let goals = vec![
            met("p95 wait at most half of KEDA's", soloist.p95_wait_seconds * 2.0 <= keda.p95_wait_seconds),
            met("no more worker-seconds than KEDA", soloist.worker_seconds <= keda.worker_seconds),
            met("no more changes than KEDA", soloist.changes_per_hour <= keda.changes_per_hour),
            met("p95 wait below tuned KEDA's", beaten),
            met("no task killed", soloist.killed == 0),
        ];
        let premium = soloist.worker_seconds / tuned.worker_seconds - 1.0;
        let scenario = scenario.to_owned();
        Self { scenario, goals, premium_percent: (premium * 1000.0).round() / 10.0, rows }
    }

    /// Whether all goals were met.
    pub(crate) fn met(&self) -> bool {
        self.goals.iter().all(|goal| goal.met)
    }

    /// Prints the table.
    pub(crate) fn print(&self, about: &str) {
        println!("\n{}: {about}", self.scenario);
        println!("{}", report::head("  "));
        for row in &self.rows {
            println!("{}", report::line(&format!("  {}", row.autoscaler), &row.summary));
        }
        println!("  {:+.0} % worker-seconds against KEDA tuned by hand", self.premium_percent);
    }

    /// Prints which goals were met.
    pub(crate) fn print_verdict(&self) {
        let missed: Vec<_> = self.goals.iter().filter(|goal| !goal.met).map(|goal| goal.goal).collect();
        let verdict =
            if missed.is_empty() { "all met".to_owned() } else { format!("MISSED: {}", missed.join("; ")) };
        println!("  goals: {verdict}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(soloist: (f64, f64, f64, u32), tuned_p95: [f64; 2]) -> Vec<bool> {
        let row = |name: &str, (p95, worker_seconds, changes_per_hour, killed): (f64, f64, f64, u32)| Row {
            autoscaler: name.to_owned(),
            summary: Summary {
                p50_wait_seconds: 0.0,
                p95_wait_seconds: p95,
                p99_wait_seconds: p95,
                max_wait_seconds: p95,
                worker_seconds,
                changes_per_hour,
                killed,
            },
            first: Outcome::default(),
        };
        let rows = vec![
            row("Soloist", soloist),
            row("Soloist, tasksPerWorker 1", (9.0, 9.0, 9.0, 9)),
            row("KEDA default", (10.0, 1000.0, 20.0, 0)),
            row("KEDA tuned, value 2", (tuned_p95[0], 500.0, 50.0, 0)),
            row("KEDA tuned, value 1", (tuned_p95[1], 600.0, 50.0, 0)),
        ];
        Comparison::judged("load", rows).goals.into_iter().map(|goal| goal.met).collect()
    }

    #[test]
    fn goals_are_met_at_their_limits() {
        assert_eq!(judged((5.0, 1000.0, 20.0, 0), [5.1, 5.2]), [true; 5]);
    }

    #[test]
    fn each_goal_is_missed_on_its_own() {
        for (missed, soloist, tuned) in [
            (0, (5.1, 1000.0, 20.0, 0), [6.0, 6.0]),
            (1, (5.0, 1001.0, 20.0, 0), [6.0, 6.0]),
            (2, (5.0, 1000.0, 20.1, 0), [6.0, 6.0]),
            (3, (5.0, 1000.0, 20.0, 0), [6.0, 5.0]),
            (4, (5.0, 1000.0, 20.0, 1), [6.0, 6.0]),
        ] {
            let expected: Vec<bool> = (0..5).map(|goal| goal != missed).collect();
            assert_eq!(judged(soloist, tuned), expected);
        }
    }
}
