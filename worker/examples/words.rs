//! A worker and the program that calls it in one file: what is sent and what is run can't differ in a name or a type. The price: after
//! each change of one of the two both are built and started anew, and where they are not started together, one is older for a while.
//!
//! `cargo run --example words -- --queues words --results redis://localhost` is the worker, and
//! `BROKER=amqp://localhost RESULTS=redis://localhost cargo run --example words -- count "to be or" "not to be"` calls it.

use std::{env, error::Error, process::ExitCode, time::Duration};

use celery_client::{Celery, Signature, blocking, group};
use soloist_worker::task;

/// Longest wait for the counts.
const PATIENCE: Duration = Duration::from_secs(20);

#[task("words.count")]
fn count(text: String) -> usize {
    text.split_whitespace().count()
}

/// Has the words of each text counted, as many at once as there are workers.
fn count_all(texts: impl Iterator<Item = String>) -> Result<usize, Box<dyn Error>> {
    let setting = |name| env::var(name).map_err(|error| format!("{name}: {error}"));
    let settings = Celery::builder(setting("BROKER")?.parse()?)
        .results(setting("RESULTS")?.parse()?)
        .default_queue(env::var("QUEUE").unwrap_or_else(|_| "words".to_owned()));
    let celery = blocking::Celery::connect(settings)?;
    let calls = texts.map(|text| Signature::new(count::task().name()).arg(text));
    let counts: Vec<usize> = celery.send_group(&group(calls))?.get(PATIENCE)?;
    Ok(counts.iter().sum())
}

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    if arguments.next().as_deref() != Some("count") {
        return soloist_worker::main(|worker| worker.register(count::task()));
    }
    match count_all(arguments) {
        Ok(words) => {
            println!("{words}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
