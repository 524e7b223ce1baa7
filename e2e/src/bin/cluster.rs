//! `cargo cluster`: a real Kubernetes cluster on this machine, with RabbitMQ, Redis and Prometheus beside it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use e2e::cluster::{Cluster, Status};
use e2e::progress::Progress;
use e2e::{images, interrupt, paths};
use soloist_terminal::line;

/// A real Kubernetes cluster on this machine, with RabbitMQ, Redis and Prometheus beside it.
#[derive(Parser)]
#[command(name = "cargo cluster", bin_name = "cargo cluster")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts the cluster; builds and installs what is missing first
    Up,
    /// Stops the cluster and leaves nothing behind but logs
    Down,
    /// Says whether it is up, and which of its programs run; exit code 1 if not all do
    Status,
    /// Prints shell settings: eval "$(cargo cluster env)"
    Env,
    /// Builds the images of the operator and the worker and prints the paths of their tars
    Images,
    /// Loads images into the cluster: the given tars, or those of the operator and the worker as they are now
    Load {
        /// Images as `docker save` writes them
        tars: Vec<PathBuf>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let progress = Progress::new();
    match run(Arguments::parse().command, &progress).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command, progress: &Progress) -> Result<ExitCode> {
    match command {
        Command::Up => return up(progress).await,
        Command::Down => Cluster::down(progress).await?,
        Command::Status => return status(),
        Command::Env => print_environment(&Cluster::find()?)?,
        Command::Images => {
            for tar in images::ours(progress).await? {
                line(&tar.display().to_string())?;
            }
        }
        Command::Load { tars } => {
            let cluster = Cluster::find()?;
            let tars = if tars.is_empty() { images::ours(progress).await? } else { tars };
            cluster.load(&tars).await?;
            for tar in tars {
                line(&format!("loaded {}", tar.display()))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn up(progress: &Progress) -> Result<ExitCode> {
    let cluster = tokio::select! {
        up = Cluster::up(progress) => up?,
        interrupted = interrupt::requested() => {
            interrupted?;
            Cluster::down(progress).await?;
            return Ok(ExitCode::from(interrupt::EXIT_CODE));
        }
    };
    line(&format!(
        "\nThe cluster is up. It has a network of its own; tools that reach it are in {}.\n\n    \
             eval \"$(cargo cluster env)\"\n    \
             kubectl get pods -A        also helm, rabbitmqctl, redis-cli, promtool, ctr\n    \
             inside curl -s $PROMETHEUS_URL/-/ready     runs anything inside of its network\n    \
             cargo cluster load         builds our images and loads them\n    \
             cargo cluster down\n",
        paths::bin().display()
    ))?;
    print_environment(&cluster)?;
    Ok(ExitCode::SUCCESS)
}

fn status() -> Result<ExitCode> {
    let status = Status::observe()?;
    for (name, process, is_alive) in &status.programs {
        let state = if *is_alive { format!("process {process}") } else { "not running".to_owned() };
        line(&format!("{name:<26} {state}"))?;
    }
    line(if status.is_up { "the cluster is up" } else { "no cluster is up" })?;
    Ok(if status.is_up { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_environment(cluster: &Cluster) -> Result<()> {
    for (name, value) in cluster.environment() {
        line(&format!("export {name}='{value}'"))?;
    }
    Ok(line(&format!("export PATH='{}':\"$PATH\"", paths::bin().display()))?)
}
