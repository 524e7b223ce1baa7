//! Soloist on the command line: calls tasks, asks and tells workers, looks after queues, runs a worker.
//!
//! ```text
//!   args (clap) -> call, canvas, result, inspect, control, queues, events -> celery-client -> RabbitMQ, Redis
//!                        |-> output: tables for people, JSON for programs
//!                        `-> failure: what went wrong, the remedy, the exit code
//! ```

mod args;
mod call;
mod control;
mod events;
mod expression;
mod failure;
mod inspect;
mod output;
mod queues;
mod result;
mod wait;

use args::{Cli, Command};
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    // TLS needs it, and it can't fail before anybody else has done so.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ended = match Cli::read().command {
        Command::Worker(options) => return options.run(soloist_worker::sample_tasks),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::definition(), "soloist", &mut script);
            output::line(&String::from_utf8_lossy(&script))
        }
        command => run(command),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.exit_code()
        }
    }
}

/// Runs a command that talks to the broker.
#[tokio::main(flavor = "current_thread")]
async fn run(command: Command) -> Result<(), Failure> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SOLOIST_LOG")
        .unwrap_or_else(|_| "error,lapin=off".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match command {
        Command::Call(call) => call.run().await,
        Command::Group(canvas) => canvas.run(call::Kind::Group).await,
        Command::Chain(canvas) => canvas.run(call::Kind::Chain).await,
        Command::Chord(chord) => chord.run().await,
        Command::Result(result) => result.run().await,
        Command::Inspect(inspect) => inspect.run().await,
        Command::Control(control) => control.run().await,
        Command::Purge(purge) => purge.run().await,
        Command::Move(move_) => move_.run().await,
        Command::Events(events) => events.run().await,
        Command::Worker(_) | Command::Completion { .. } => unreachable!("these talk to no broker from here"),
    }
}
