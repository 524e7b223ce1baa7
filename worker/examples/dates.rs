//! A task for Celery's beat: two days from now, as a date that Python gets as a `datetime`. `dates.py` has the schedule.
//!
//! `cargo run --example dates -- --queues dates --results redis://localhost`

use std::process::ExitCode;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use soloist_worker::{Task, TaskError};

/// In the form in which Celery's JSON has dates.
fn add_days(days: i64) -> Result<Value, TaskError> {
    let later = Timestamp::now().checked_add(SignedDuration::from_hours(24 * days))?;
    Ok(
        json!({"__type__": "datetime", "__value__": later.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string()}),
    )
}

fn main() -> ExitCode {
    soloist_worker::main(|worker| worker.register(Task::new("tasks.add_days", add_days).parameters(["days"])))
}
