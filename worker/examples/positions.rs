//! Positions in a currency, valued at a closing price. Each task finds its position in a Redis that all workers share, so any
//! worker can run any of them. `positions.py` calls them.
//!
//! `POSITIONS=redis://localhost/1 cargo run --example positions -- --queues positions --results redis://localhost`

use std::{process::ExitCode, time::Duration};

use redis::Commands;
use serde::Deserialize;
use soloist_worker::{Context, Task, TaskError};

#[derive(Deserialize)]
struct Position {
    size: f64,
    price: f64,
}

/// Where positions are kept, as JSON under their names.
#[derive(Clone)]
struct Store(redis::Client);

impl Store {
    fn find(&self, name: &str) -> Result<Option<Position>, TaskError> {
        let text: Option<String> = self.0.get_connection()?.get(name)?;
        Ok(text.map(|text| serde_json::from_str(&text)).transpose()?)
    }

    fn initial_value(&self, name: &str) -> Result<Option<f64>, TaskError> {
        Ok(self.find(name)?.map(|position| position.size * position.price))
    }

    /// Nothing if there is no such price or position.
    fn value_at_close(&self, name: &str, close: Option<f64>) -> Result<Option<f64>, TaskError> {
        let Some(close) = close.filter(|close| *close > 0.0) else { return Ok(None) };
        Ok(self.find(name)?.map(|position| position.size * close))
    }

    fn pnl(&self, name: &str, close: Option<f64>) -> Result<Option<f64>, TaskError> {
        let (initial, value) = (self.initial_value(name)?, self.value_at_close(name, close)?);
        Ok(value.zip(initial).map(|(value, initial)| value - initial))
    }
}

/// Insists on the position: comes back for it, as often as the task may.
fn value_when_there(
    store: &Store,
    context: &Context,
    name: &str,
    close: Option<f64>,
) -> Result<Option<f64>, TaskError> {
    match store.value_at_close(name, close)? {
        None if close.is_some_and(|close| close > 0.0) => {
            let missing = TaskError::new("LookupError", format!("there is no position {name}"));
            Err(context.retry().cause(missing).into())
        }
        value => Ok(value),
    }
}

fn add(val1: Option<f64>, val2: Option<f64>) -> f64 {
    val1.unwrap_or(0.0) + val2.unwrap_or(0.0)
}

fn total(values: Vec<f64>) -> f64 {
    values.iter().sum()
}

fn main() -> ExitCode {
    let url = std::env::var("POSITIONS").unwrap_or_else(|_| "redis://localhost".to_owned());
    let store = match redis::Client::open(url) {
        Ok(client) => Store(client),
        Err(error) => {
            eprintln!("error: POSITIONS: {error}");
            return ExitCode::from(2);
        }
    };
    soloist_worker::main(|worker| {
        let (initial, at_close, when_there, pnl) = (store.clone(), store.clone(), store.clone(), store);
        worker
            .register(
                Task::new("positions.initial_value", move |name: String| initial.initial_value(&name))
                    .parameters(["name"]),
            )
            .register(
                Task::new("positions.value_at_close", move |name: String, close: Option<f64>| {
                    tracing::info!(close, "calculating the value");
                    at_close.value_at_close(&name, close)
                })
                .parameters(["name", "close"]),
            )
            .register(
                Task::new(
                    "positions.value_when_there",
                    move |context: Context, name: String, close: Option<f64>| {
                        value_when_there(&when_there, &context, &name, close)
                    },
                )
                .parameters(["name", "close"])
                .default_retry_delay(Duration::from_secs(1)),
            )
            .register(
                Task::new("positions.pnl", move |name: String, close: Option<f64>| pnl.pnl(&name, close))
                    .parameters(["name", "close"]),
            )
            .register(Task::new("positions.add", add).parameters(["val1", "val2"]))
            .register(Task::new("positions.total", total).parameters(["values"]))
    })
}
