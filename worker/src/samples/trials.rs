//! Sample tasks that don't simply succeed or fail: for trying out what a worker does then.

use std::{process, thread, time::Duration};

use crate::{Context, Signature, Task, TaskError, WorkerBuilder};

pub(super) fn register(worker: WorkerBuilder) -> WorkerBuilder {
    let unsteady = Task::new("tasks.unsteady", unsteady).parameters(["failures"]);
    worker
        .register(Task::new("tasks.flaky", flaky).parameters(["failures", "countdown", "max_retries"]))
        .register(unsteady.autoretry_for(["ConnectionError"]).retry_backoff(1).retry_jitter(false))
        .register(Task::new("tasks.ignore", || -> Result<(), TaskError> { Err(TaskError::ignore()) }))
        .register(Task::new("tasks.reject", reject).parameters(["requeue", "seconds"]))
        .register(Task::new("tasks.early", early).parameters(["seconds"]).acks_late(false))
        .register(Task::new("tasks.replace", replace).parameters(["signature"]))
        .register(Task::new("tasks.grow", grow).parameters(["value", "members", "instead"]))
        .register(Task::new("tasks.die", die).parameters(["seconds"]))
}

/// Asks to be retried until it was so often, and returns the headers of the last message.
fn flaky(
    context: Context,
    failures: u32,
    countdown: Option<f64>,
    max_retries: Option<u32>,
) -> Result<serde_json::Value, TaskError> {
    if context.retries() >= failures {
        let of_caller = context.headers().iter().filter(|(name, _)| !name.starts_with("x-"));
        return Ok(of_caller.map(|(name, value)| (name.clone(), value.clone())).collect());
    }
    let problem = TaskError::new("ValueError", format!("failure {}", context.retries() + 1));
    let mut retry = context.retry().cause(problem);
    if let Some(countdown) = countdown {
        retry = retry.countdown(Duration::try_from_secs_f64(countdown)?);
    }
    if let Some(max_retries) = max_retries {
        retry = retry.max_retries(max_retries);
    }
    Err(retry.into())
}

/// Fails so often with an error that is retried, and returns the number of retries.
fn unsteady(context: Context, failures: u32) -> Result<u32, TaskError> {
    if context.retries() < failures {
        return Err(TaskError::new("ConnectionError", "nobody answers"));
    }
    Ok(context.retries())
}

/// Rejects its message after some seconds; if that goes back to its queue, only the first time.
fn reject(context: Context, requeue: bool, seconds: Option<f64>) -> Result<&'static str, TaskError> {
    if requeue && context.delivery_info().redelivered {
        return Ok("delivered again");
    }
    thread::sleep(Duration::try_from_secs_f64(seconds.unwrap_or_default())?);
    Err(TaskError::reject("not now", requeue))
}

/// Sleeps; its message is acknowledged when it begins.
fn early(seconds: f64) -> Result<f64, TaskError> {
    thread::sleep(Duration::try_from_secs_f64(seconds)?);
    Ok(seconds)
}

/// Is replaced by what it is called with.
fn replace(signature: Signature) -> Result<(), TaskError> {
    Err(TaskError::replace(signature))
}

/// Adds members to its chord, and returns a value for itself, or is replaced.
fn grow(
    context: Context,
    value: i64,
    members: Vec<Signature>,
    instead: Option<Signature>,
) -> Result<i64, TaskError> {
    members.into_iter().try_for_each(|member| context.add_to_chord(member))?;
    instead.map_or(Ok(value), |signature| Err(TaskError::replace(signature)))
}

/// Takes the whole worker with it, after some seconds.
fn die(seconds: Option<f64>) -> Result<(), TaskError> {
    thread::sleep(Duration::try_from_secs_f64(seconds.unwrap_or_default())?);
    process::abort()
}
