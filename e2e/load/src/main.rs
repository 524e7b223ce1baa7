//! The load of `cargo bench-tasks`: a bare lapin loop to compare the worker with, and our client at work.
//!
//! A program of its own, built for release together with the worker, while the harness that runs it is not.

mod drain;
mod enqueue;
mod fetch;
mod produce;

use std::{path::Path, process::ExitCode, thread, time::Instant};

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

/// Has so many tasks sent by so many threads at once, writes their ids to the file, one a line, and gives how many were sent a second.
fn send_on_threads(
    threads: u64,
    tasks: u64,
    ids: Option<&Path>,
    send: impl AsyncFn() -> Outcome<Vec<String>> + Sync,
) -> Outcome<f64> {
    let begun = Instant::now();
    let sent = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(|| on_this_thread(send()))).collect();
        let joined = threads.into_iter().map(|thread| thread.join().map_err(|_| "a thread panicked")?);
        joined.collect::<Outcome<Vec<_>>>()
    })?
    .concat();
    let seconds = begun.elapsed().as_secs_f64();
    if let Some(file) = ids {
        std::fs::write(file, sent.join("\n"))?;
    }
    Ok(tasks as f64 / seconds)
}

/// A runtime on the calling thread alone, as the worker has it.
fn on_this_thread<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
