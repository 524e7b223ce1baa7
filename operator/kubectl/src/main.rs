//! `kubectl soloist`: how TaskQueues are, why they have so many workers, and what is wrong with them.
//!
//! ```text
//!   args (clap) ─► cluster (kubeconfig) ─► gather ─► snapshot ─► doctor (pure) ─► findings
//!                                           ├─► status, why: the status of TaskQueues, in tables and sentences
//!                                           └─► pause, resume, drain: the only ones that write
//! ```

mod args;
mod cluster;
mod doctor;
mod drain;
mod failure;
mod gather;
mod output;
mod pause;
mod snapshot;
mod status;
mod why;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use soloist_terminal::{Failure, line};

use crate::args::{Cli, Command, Which};
use crate::cluster::Cluster;
use crate::gather::Scope;

fn main() -> ExitCode {
    // TLS needs it, and it can't fail before anybody else has done so.
    drop(rustls::crypto::ring::default_provider().install_default());
    let cli = Cli::parse();
    let ended = match &cli.command {
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "kubectl-soloist", &mut script);
            line(&String::from_utf8_lossy(&script)).map(|()| ExitCode::SUCCESS)
        }
        _ => run(&cli),
    };
    ended.unwrap_or_else(|failure| {
        eprintln!("error: {failure}");
        failure.exit_code()
    })
}

/// Runs a command that talks to the API server.
#[tokio::main(flavor = "current_thread")]
async fn run(cli: &Cli) -> Result<ExitCode, Failure> {
    let cluster = Cluster::new(&cli.target).await?;
    match &cli.command {
        Command::Status(which) => status::run(&cluster, scope(which, &cluster), which.output).await?,
        Command::Doctor(which) => return doctor::run(&cluster, scope(which, &cluster), which.output).await,
        Command::Why(one) => why::run(&cluster, &one.name, one.output).await?,
        Command::Pause(one) => pause::pause(&cluster, &one.name).await?,
        Command::Resume(one) => pause::resume(&cluster, &one.name).await?,
        Command::Drain(drain) => drain::run(&cluster, drain).await?,
        Command::Completion { .. } => unreachable!("it needs no API server"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The TaskQueues that are meant.
fn scope<'a>(which: &'a Which, cluster: &'a Cluster) -> Scope<'a> {
    match &which.name {
        Some(name) => Scope::One(&cluster.namespace, name),
        None if which.all_namespaces => Scope::All,
        None => Scope::Namespace(&cluster.namespace),
    }
}
