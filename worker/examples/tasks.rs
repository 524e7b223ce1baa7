//! A worker of one's own: two functions, registered under the names that callers use.
//!
//! `cargo run --example tasks -- --queues shop`, then from Python: `app.send_task("shop.price", (3, 250), queue="shop")`.

use std::process::ExitCode;

use soloist_worker::{Context, Task, TaskError};

fn price(pieces: u32, cents: u32) -> Result<u32, TaskError> {
    pieces.checked_mul(cents).ok_or_else(|| TaskError::new("OverflowError", "nobody can pay that"))
}

async fn greet(context: Context, name: String) -> String {
    tracing::info!(name, "greeting");
    format!("Hello {name}, this is {}", context.hostname())
}

fn main() -> ExitCode {
    soloist_worker::main(|worker| {
        worker
            .register(Task::new("shop.price", price).parameters(["pieces", "cents"]))
            .register(Task::new("shop.greet", greet).parameters(["name"]))
    })
}
