//! `cargo sim`: how many workers would there have been, how long would tasks have waited, and what would it have cost?
//!
//! The operator's own control law, KEDA with its HorizontalPodAutoscaler, and simpler autoscalers get the same tasks in the same world:
//! a discrete-event simulation, the same on every machine for the same seeds. `docs/scaling.md` shows its results.
//!
//! ```text
//! load (or trace) -> engine: queue, workers, broker <-> soloist (production `decide`) | keda | baselines
//!                      -> report, comparison, plot
//! ```

mod baselines;
mod comparison;
mod engine;
mod faults;
mod keda;
mod load;
mod plot;
mod random;
mod report;
mod soloist;
mod suite;
mod task_queue;
mod trace;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use jiff::Timestamp;
use serde_json::json;
use soloist_operator::plan::law::{Goal, Policy};

use crate::comparison::{Comparison, Row, row};
use crate::engine::Outcome;
use crate::keda::Settings;
use crate::plot::{Curve, Price};
use crate::random::Duration;
use crate::report::Summary;
use crate::soloist::Log;
use crate::suite::{Contender, Scenario};

/// Simulates Soloist's autoscaler and others on the same loads, and compares waits, costs, changes and killed tasks.
///
/// Without options it runs all loads and all faults, and its exit code says whether every goal was met. The last line printed is JSON.
#[derive(Parser)]
#[command(name = "cargo sim", bin_name = "cargo sim", version)]
struct Arguments {
    /// Runs of each load, with other random numbers each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// How long tasks may wait; 5 s if nothing is said
    #[arg(long, conflicts_with = "task_queue")]
    max_wait_seconds: Option<f64>,
    /// Only the load of this name; loads with faults, too, can be named
    #[arg(long)]
    load: Option<String>,
    /// A recorded load: CSV with the columns time (seconds) and, optionally, count and seconds (what the task took)
    #[arg(long, conflicts_with = "load")]
    trace: Option<PathBuf>,
    /// What tasks take on average, in seconds, if the trace doesn't say
    #[arg(long, default_value_t = 1.0, requires = "trace")]
    service_seconds: f64,
    /// A TaskQueue (YAML) to take spec.scaling from
    #[arg(long)]
    task_queue: Option<PathBuf>,
    /// When the load begins, for the TaskQueue's schedules, such as 2026-11-23T07:00:00Z. A trace whose times are Unix times says it
    /// itself
    #[arg(long, requires = "task_queue")]
    begins: Option<Timestamp>,
    /// Print each change of the number of workers, with its reason (first seed)
    #[arg(long)]
    decisions: bool,
    /// Where to draw the curves
    #[arg(long, default_value = "target/sim")]
    pictures: PathBuf,
}

/// Short enough for the autoscalers to differ: a worker takes about that long to start.
const DEFAULT_WAIT_SECONDS: f64 = 5.0;

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    ensure!(
        arguments.max_wait_seconds.is_none_or(|wait| wait >= 0.0 && wait.is_finite()),
        "--max-wait-seconds must not be negative"
    );
    ensure!(
        arguments.service_seconds > 0.0 && arguments.service_seconds.is_finite(),
        "--service-seconds must be greater than 0"
    );
    std::fs::create_dir_all(&arguments.pictures)
        .with_context(|| format!("create {}", arguments.pictures.display()))?;
    let whole = arguments.load.is_none() && arguments.trace.is_none() && arguments.task_queue.is_none();
    let scenarios = scenarios(&arguments)?;
    let mut comparisons = Vec::new();
    let mut max_wait_seconds = None;
    for scenario in scenarios {
        let (policy, scenario) = prepare(&arguments, scenario)?;
        if let Goal::MaxWaitSeconds(wait) = policy.goal {
            max_wait_seconds = Some(wait);
        }
        let comparison = Comparison::of(&scenario, policy, arguments.seeds);
        comparison.print(&scenario.about);
        if whole {
            comparison.print_verdict();
        }
        draw(&arguments.pictures, &scenario, &comparison.rows)?;
        if arguments.decisions {
            decisions(&scenario, policy);
        }
        comparisons.push(comparison);
    }
    let mut lowered_in_doubt = 0;
    if whole {
        lowered_in_doubt = faults(&arguments)?;
        prices(&arguments)?;
    }
    println!("\npictures in {}", arguments.pictures.display());
    let met = comparisons.iter().all(Comparison::met) && lowered_in_doubt == 0;
    println!(
        "{}",
        json!({
            "sim": "autoscalers",
            "seeds": arguments.seeds,
            "max_wait_seconds": max_wait_seconds,
            "goals_met": met,
            "lowered_in_doubt": lowered_in_doubt,
            "loads": comparisons,
        })
    );
    Ok(if met || !whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn scenarios(arguments: &Arguments) -> Result<Vec<Scenario>> {
    if let Some(path) = &arguments.trace {
        let csv = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let service = Duration::Exponential(arguments.service_seconds);
        return Ok(vec![Scenario::recorded("trace", &path.display().to_string(), &csv, service)?]);
    }
    let mut scenarios = suite::scenarios()?;
    if let Some(name) = &arguments.load {
        scenarios.extend(suite::faults());
        let names: Vec<_> = scenarios.iter().map(|scenario| scenario.name.clone()).collect();
        scenarios.retain(|scenario| scenario.name == *name);
        ensure!(!scenarios.is_empty(), "there is no load `{name}`, only {}", names.join(", "));
    }
    Ok(scenarios)
}

/// The policy on a load, and the load with what the TaskQueue says about it, if there is one.
fn prepare(arguments: &Arguments, scenario: Scenario) -> Result<(Policy, Scenario)> {
    let Some(path) = &arguments.task_queue else {
        let goal = Goal::MaxWaitSeconds(arguments.max_wait_seconds.unwrap_or(DEFAULT_WAIT_SECONDS));
        return Ok((suite::policy(goal, scenario.max), scenario));
    };
    let yaml = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let begins = arguments.begins.unwrap_or(scenario.begins);
    let (policy, schedules) =
        task_queue::policy(&yaml, begins).with_context(|| format!("read {}", path.display()))?;
    Ok((policy, Scenario { max: policy.max, schedules: Some(schedules), ..scenario }))
}

/// Each change of the first seed, with its reason.
fn decisions(scenario: &Scenario, policy: Policy) {
    let log = Log::default();
    suite::run(scenario, Contender::Soloist(policy), 0, log.clone());
    println!("  decisions:");
    for (at, decision) in log.borrow().iter() {
        println!("  {at:>8.1} s  {:<16} {}", decision.reason.as_str(), decision.sentence);
    }
}

/// Soloist while its observations fail; returns how often it took workers away without knowing.
fn faults(arguments: &Arguments) -> Result<u32> {
    println!("\nSoloist, when observations fail during the load `step`");
    println!("{} {:>9}", report::head("  "), "in doubt");
    let mut lowered = 0;
    for scenario in std::iter::once(suite::step()).chain(suite::faults()) {
        let (policy, scenario) = prepare(arguments, scenario)?;
        let outcomes: Vec<Outcome> = (0..arguments.seeds)
            .map(|seed| suite::run(&scenario, Contender::Soloist(policy), seed, Log::default()))
            .collect();
        let in_doubt: u32 = outcomes.iter().map(|outcome| outcome.lowered_in_doubt).sum();
        println!(
            "{} {in_doubt:>9}  {}",
            report::line(&format!("  {}", scenario.name), &Summary::of(&outcomes)),
            scenario.about
        );
        lowered += in_doubt;
    }
    Ok(lowered)
}

/// What a shorter wait costs, and what the same money gets from KEDA.
fn prices(arguments: &Arguments) -> Result<()> {
    let scenario = suite::diurnal();
    println!("\nWhat a shorter wait costs, with the load `diurnal`");
    println!("{}", report::head("  "));
    let price = |name: &str, setting: f64, contender| {
        let name = format!("{name} {setting}");
        let Row { summary, first, .. } = row(&name, &scenario, contender, arguments.seeds);
        println!("{}", report::line(&format!("  {name}"), &summary));
        Price { setting, workers: summary.worker_seconds / first.seconds, p95_wait: summary.p95_wait_seconds }
    };
    let soloist = [5.0, 7.0, 10.0, 15.0, 30.0, 60.0, 120.0].map(|wait| {
        let policy = suite::policy(Goal::MaxWaitSeconds(wait), scenario.max);
        price("Soloist, maxWaitSeconds", wait, Contender::Soloist(policy))
    });
    let values = [1.0, 2.0, 5.0, 10.0, 20.0];
    let default = values.map(|value| {
        price("KEDA default, value", value, Contender::Keda(Settings::default_timing(value, scenario.max)))
    });
    let tuned = values.map(|value| {
        price("KEDA tuned, value", value, Contender::Keda(Settings::tuned(value, scenario.max)))
    });
    let sets = [
        ("Soloist, by maxWaitSeconds", plot::SOLOIST, soloist.into()),
        ("KEDA default, by value", plot::KEDA, default.into()),
        ("KEDA tuned, by value", plot::TUNED, tuned.into()),
    ];
    plot::prices(&arguments.pictures.join("price.svg"), &sets)
}

fn draw(directory: &Path, scenario: &Scenario, rows: &[Row]) -> Result<()> {
    let curve = |index: usize, name, color| Curve { name, color, samples: &rows[index].first.samples };
    let curves = [
        curve(2, "KEDA default", plot::KEDA),
        curve(3, "KEDA tuned", plot::TUNED),
        curve(0, "Soloist", plot::SOLOIST),
    ];
    // Of what comes again and again, two times are enough to see.
    let to = match scenario.shape {
        load::Shape::Bursts { every, .. } => 2.0 * every,
        _ => scenario.seconds,
    };
    plot::timeline(&directory.join(format!("{}.svg", scenario.name)), (0.0, to), &curves)
}
