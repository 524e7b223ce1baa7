//! A worker of one's own: functions that are tasks, under the names that callers use.
//!
//! `cargo run --example tasks -- --queues shop`, then from Python: `app.send_task("shop.price", (3,), queue="shop")`.

use std::process::ExitCode;

use soloist_worker::{Context, State, TaskError, task};

/// What all tasks share: a pool of connections, say.
struct Shop {
    cents_per_piece: u32,
}

#[task("shop.price")]
fn price(shop: State<Shop>, pieces: u32, #[default(0)] discount: u32) -> Result<u32, TaskError> {
    let full = pieces.checked_mul(shop.cents_per_piece);
    let full = full.ok_or_else(|| TaskError::new("OverflowError", "nobody can pay that"))?;
    Ok(full.saturating_sub(discount))
}

#[task("shop.greet", autoretry_for = ["TimeoutError"], retry_backoff = 2, max_retries = 5)]
async fn greet(context: Context, name: String) -> String {
    tracing::info!(name, retries = context.retries(), "greeting");
    format!("Hello {name}, this is {}", context.hostname())
}

fn main() -> ExitCode {
    soloist_worker::main(|worker| {
        worker.state(Shop { cents_per_piece: 250 }).register(price::task()).register(greet::task())
    })
}
