//! The load of `cargo bench-tasks`: a bare lapin loop to compare the worker with, and our client at work.
//!
//! A program of its own, built for release together with the worker, while the harness that runs it is not.

mod drain;
mod enqueue;
mod fetch;
mod produce;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

// As the worker has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Whatever goes wrong ends the program.
type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Puts load on RabbitMQ and Redis for benchmarks. What was measured is printed as one number.
#[derive(Parser)]
#[command(name = "load")]
enum Command {
    /// Takes messages off a queue and does nothing with them: the least that a worker could do
    Drain(drain::Drain),
    /// Sends tasks that do next to nothing, and prints how many a second
    Enqueue(enqueue::Enqueue),
    /// Reads results by their ids, and prints how many a second
    Fetch(fetch::Fetch),
    /// Sends Fibonacci tasks to several queues from several threads, waits for the results and prints how many tasks were done a second
    Produce(produce::Produce),
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sender {
    /// Our client.
    Client,
    /// lapin alone.
    Lapin,
}

fn main() -> ExitCode {
    // An error means that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let done = match Command::parse() {
        Command::Drain(drain) => drain.run(),
        Command::Enqueue(enqueue) => enqueue.run().map(|rate| println!("{rate:.1}")),
        Command::Fetch(fetch) => fetch.run().map(|rate| println!("{rate:.1}")),
        Command::Produce(produce) => produce.run().map(|rate| println!("{rate:.1}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A runtime on the calling thread alone, as the worker has it.
fn on_this_thread<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
