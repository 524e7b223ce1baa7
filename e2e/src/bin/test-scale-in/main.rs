//! `cargo test-scale-in`: scale-in never takes a worker away that has a task.

mod operator;
mod race;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use e2e::benchmark::{self, Verdict};
use e2e::progress::Progress;
use e2e::scale_in::{Figures, Kind, TASK_QUEUE, Trial, interrupted_by_installed};
use e2e::soloist::Test;
use e2e::wait;
use serde::Serialize;
use serde_json::json;
use tokio::time::sleep;

use crate::operator::Operator;

/// Makes all workers of a TaskQueue busy and takes them away, by each of the ways there are; kills the operator again and
/// again while it does so, and RabbitMQ once.
///
/// The last line printed is JSON. The exit code is 0 only if the API server let the ReplicaSet controller delete no
/// worker that had not drained, no task was lost, and each was begun once.
#[derive(Parser)]
#[command(name = "cargo test-scale-in", bin_name = "cargo test-scale-in")]
struct Arguments {
    /// How many workers
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(2..=200))]
    workers: u16,
    /// Whose workers
    #[arg(long, value_enum, default_value_t = Kind::Soloist)]
    kind: Kind,
    /// Seconds of the shortest task
    #[arg(long, default_value_t = 5.0)]
    min_seconds: f64,
    /// Seconds of the longest task
    #[arg(long, default_value_t = 60.0)]
    max_seconds: f64,
    /// How often the operator is killed
    #[arg(long, default_value_t = 20)]
    kills: u32,
    /// The ways to take workers away; all if not given
    #[arg(long, value_enum)]
    way: Vec<Way>,
    /// Instead: so many times, a worker's mark is removed while its ReplicaSet deletes a pod
    #[arg(long, value_name = "TRIES")]
    race: Option<u32>,
    /// On the cluster that is up, with the Soloist that is installed there
    #[arg(long)]
    attached: bool,
}

/// A way to take workers away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    /// The autoscaler, as tasks end
    Autoscaler,
    /// `spec.replicas`, or `kubectl scale taskqueue`
    Replicas,
    /// `kubectl scale deployment`, with scaling off
    Deployment,
    /// A new pod template
    Rollout,
    /// `spec.replicas`, with RabbitMQ killed and started again meanwhile
    Broker,
    /// `spec.replicas` up and down, with the operator killed again and again
    Kills,
}

#[derive(Serialize)]
struct Outcome {
    test: &'static str,
    workers: u16,
    #[serde(flatten)]
    figures: Figures,
    /// Tasks that the operator says were interrupted.
    interrupted_tasks: f64,
    operator_kills: u32,
}

impl Verdict for Outcome {
    fn is_good(&self) -> bool {
        self.figures.are_good() && self.interrupted_tasks == 0.0
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let progress = Progress::new();
    let inside = progress.clone();
    let attached = arguments.attached;
    if let Some(tries) = arguments.race {
        let race = move || async move {
            let test = Test::new("scale-in-race").await?;
            test.run(Duration::from_secs(3600), race::race(&test, &inside, tries)).await
        };
        return benchmark::run(&progress, attached, race).await;
    }
    let trial = move || async move {
        let test = Test::new("scale-in").await?;
        test.run(Duration::from_secs(2 * 3600), trial(&test, &inside, &arguments)).await
    };
    benchmark::run(&progress, attached, trial).await
}

async fn trial(test: &Test, progress: &Progress, arguments: &Arguments) -> Result<Outcome> {
    let seconds = (arguments.min_seconds, arguments.max_seconds);
    let trial = Trial::new(test, arguments.workers, arguments.kind, seconds).await?;
    let ways = if arguments.way.is_empty() { Way::value_variants() } else { &arguments.way };
    let (mut interrupted_tasks, mut operator_kills) = (0.0, 0);
    for way in ways {
        progress.say(format!("{way:?}: {} workers get busy", arguments.workers));
        // More than they can do at once: a worker that goes on consuming would show. The autoscaler would keep them for that.
        trial.make_busy(if *way == Way::Autoscaler { 1 } else { 2 }).await?;
        progress.say(format!("{way:?}: they are to go"));
        let before = interrupted_by_installed(test).await?;
        interrupted_tasks += take_away(*way, &trial, arguments).await?;
        trial.finish().await?;
        let after = interrupted_by_installed(test).await?;
        if *way == Way::Kills {
            operator_kills += arguments.kills;
            // Those that were sent away and came back count anew.
            interrupted_tasks += after;
        } else {
            interrupted_tasks += after - before;
        }
        progress.say(format!("{way:?}: {:?}, {interrupted_tasks} interrupted", trial.figures().await?));
    }
    let figures = trial.figures().await?;
    Ok(Outcome { test: "scale_in", workers: arguments.workers, figures, interrupted_tasks, operator_kills })
}

/// Takes all workers away. How many tasks operators that were killed meanwhile say were interrupted.
async fn take_away(way: Way, trial: &Trial<'_>, arguments: &Arguments) -> Result<f64> {
    match way {
        Way::Autoscaler => trial.scale(None).await?,
        Way::Replicas => trial.scale(Some(0)).await?,
        Way::Deployment => trial.scale_deployment(0).await?,
        Way::Rollout => {
            let rollout = format!("{:x}", fastrand::u32(..));
            let env = json!([{"name": "ROLLOUT", "value": rollout}]);
            trial.change(json!({"spec": {"worker": {"env": env}}})).await?;
            rolled_out(trial, &rollout, arguments).await?;
            trial.scale(Some(0)).await?;
        }
        Way::Broker => {
            trial.scale(Some(0)).await?;
            sleep(Duration::from_secs_f64(arguments.min_seconds)).await;
            trial.excuse();
            trial.test.cluster.rabbitmq.kill().await?;
            trial.test.cluster.rabbitmq.start().await?;
        }
        Way::Kills => return with_kills(trial, arguments).await,
    }
    trial.until_gone().await?;
    Ok(0.0)
}

/// Puts an operator that can be killed in the place of the installed one, scales up and down, and kills it at random moments meanwhile. The
/// installed one goes on with what the last one left.
async fn with_kills(trial: &Trial<'_>, arguments: &Arguments) -> Result<f64> {
    operator::send_installed_away(trial.test).await?;
    let interrupted = kills(trial, arguments).await;
    operator::bring_installed_back(trial.test).await?;
    trial.until_gone().await?;
    interrupted
}

async fn kills(trial: &Trial<'_>, arguments: &Arguments) -> Result<f64> {
    let mut operator = Operator::start(trial.test).await?;
    // Over the time of the longest task, so that it is killed at each step of some worker's way out.
    let longest_wait = 2.0 * arguments.max_seconds / f64::from(arguments.kills.max(1));
    for kill in 0..arguments.kills {
        // Mostly down; now and then back, so that it is killed while workers are told to go on, too.
        let wanted = if kill % 4 == 3 { arguments.workers / 2 } else { 0 };
        trial.scale(Some(wanted)).await?;
        sleep(Duration::from_secs_f64(fastrand::f64() * longest_wait)).await;
        operator.restart(trial.test).await?;
    }
    trial.scale(Some(0)).await?;
    operator.interrupted_tasks().await
}

/// Waits until the Deployment has new pods only, those with this value in a variable.
async fn rolled_out(trial: &Trial<'_>, value: &str, arguments: &Arguments) -> Result<()> {
    let within =
        Duration::from_secs_f64(120.0 + 4.0 * f64::from(arguments.workers) + 2.0 * arguments.max_seconds);
    wait::until("the rollout", within, || async {
        let deployment = trial.test.deployment(TASK_QUEUE).await?;
        let generation = deployment.metadata.generation;
        let template = deployment.spec.and_then(|spec| spec.template.spec).context("no template")?;
        let mut variables = template.containers.iter().flat_map(|container| container.env.iter().flatten());
        let is_new = variables.any(|variable| variable.value.as_deref() == Some(value));
        let status = deployment.status.context("no status")?;
        let wanted = i32::from(arguments.workers);
        let is_done = is_new
            && status.observed_generation == generation
            && status.updated_replicas == Some(wanted)
            && status.replicas == Some(wanted)
            && status.available_replicas == Some(wanted);
        Ok(is_done.then_some(()))
    })
    .await
}
