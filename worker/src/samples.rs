//! Sample tasks, for first steps, demos and tests.

mod trials;

use std::{thread, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Context, Task, TaskError, WorkerBuilder};

/// Above this the plain recursion takes minutes: fib(50) is about 40 billion calls.
const FIB_MAX: u64 = 50;

/// Longest sleep that is accepted: one day.
const SLEEP_MAX_SECONDS: f64 = 86_400.0;

/// The tasks of the stock worker: `tasks.fib`, `tasks.add`, `tasks.multiply`, `tasks.sleep`, `tasks.fail`, `tasks.panic`, and some
/// that retry, reject and so on.
#[must_use]
pub fn sample_tasks(worker: WorkerBuilder) -> WorkerBuilder {
    trials::register(worker)
        .register(Task::new("tasks.fib", fib).parameters(["n"]))
        .register(Task::new("tasks.add", |x: Number, y: Number| x.add(y)).parameters(["x", "y"]))
        .register(Task::new("tasks.multiply", |x: Number, y: Number| x.multiply(y)).parameters(["x", "y"]))
        .register(Task::new("tasks.sleep", sleep).parameters(["seconds"]))
        .register(Task::new("tasks.fail", fail).parameters(["message"]))
        .register(Task::new("tasks.panic", panic).parameters(["message"]))
}

/// The n-th Fibonacci number by plain recursion: a task that burns CPU for as long as one likes.
fn fib(n: i64) -> Result<u64, TaskError> {
    match u64::try_from(n) {
        Ok(n @ 0..=FIB_MAX) => Ok(recurse(n)),
        _ => Err(TaskError::new("ValueError", format!("n must be in 0 to {FIB_MAX}, not {n}"))),
    }
}

fn recurse(n: u64) -> u64 {
    if n < 2 { n } else { recurse(n - 1) + recurse(n - 2) }
}

/// Sleeps, unless it is asked to stop before, and returns the seconds asked for.
fn sleep(context: Context, seconds: f64) -> Result<f64, TaskError> {
    if !(0.0..=SLEEP_MAX_SECONDS).contains(&seconds) {
        return Err(TaskError::new(
            "ValueError",
            format!("seconds must be in 0 to {SLEEP_MAX_SECONDS}, not {seconds}"),
        ));
    }
    const STEP: Duration = Duration::from_millis(50);
    let mut left = Duration::from_secs_f64(seconds);
    while !left.is_zero() {
        context.check()?;
        let step = left.min(STEP);
        thread::sleep(step);
        left -= step;
    }
    Ok(seconds)
}

/// Fails with the message.
fn fail(message: Option<String>) -> Result<(), TaskError> {
    Err(TaskError::new("RuntimeError", message.unwrap_or_else(|| "failed as asked".to_owned())))
}

/// Panics with the message.
fn panic(message: Option<String>) {
    panic!("{}", message.unwrap_or_else(|| "panicked as asked".to_owned()));
}

/// A number as Python has them: whole numbers stay whole.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged, expecting = "a number")]
enum Number {
    Whole(i64),
    Float(f64),
}

impl Number {
    fn add(self, other: Self) -> Result<Self, TaskError> {
        self.combine(other, i64::checked_add, |x, y| x + y)
    }

    fn multiply(self, other: Self) -> Result<Self, TaskError> {
        self.combine(other, i64::checked_mul, |x, y| x * y)
    }

    fn combine(
        self,
        other: Self,
        whole: fn(i64, i64) -> Option<i64>,
        float: fn(f64, f64) -> f64,
    ) -> Result<Self, TaskError> {
        match (self, other) {
            (Self::Whole(x), Self::Whole(y)) => whole(x, y)
                .map(Self::Whole)
                .ok_or_else(|| TaskError::new("OverflowError", "the result does not fit into 64 bits")),
            _ => Ok(Self::Float(float(self.to_float(), other.to_float()))),
        }
    }

    fn to_float(self) -> f64 {
        match self {
            // Above 2^53 this rounds, as it does in Python.
            #[expect(clippy::cast_precision_loss, reason = "rounds as Python does")]
            Self::Whole(number) => number as f64,
            Self::Float(number) => number,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fib_counts_from_zero_and_refuses_what_is_out_of_range() {
        let numbers: Vec<_> = (0..8).map(|n| fib(n).unwrap()).collect();
        assert_eq!(numbers, [0, 1, 1, 2, 3, 5, 8, 13]);
        assert_eq!(fib(-1).unwrap_err().to_string(), "ValueError: n must be in 0 to 50, not -1");
        assert!(fib(51).is_err());
    }

    #[test]
    fn arithmetic_is_pythons() {
        let number = |text: &str| serde_json::from_str::<Number>(text).unwrap();
        let product =
            |x: &str, y: &str| serde_json::to_string(&number(x).multiply(number(y)).unwrap()).unwrap();
        assert_eq!(product("2", "2"), "4");
        assert_eq!(product("2.5", "2"), "5.0");
        assert_eq!(product("-3", "0.5"), "-1.5");
        assert_eq!(number("1").add(number("2")).unwrap(), Number::Whole(3));
        let error = Number::Whole(i64::MAX).add(Number::Whole(1)).unwrap_err();
        assert_eq!(error.to_string(), "OverflowError: the result does not fit into 64 bits");
    }
}
