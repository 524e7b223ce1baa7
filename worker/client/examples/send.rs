//! Sends a task and prints its result.
//!
//! ```sh
//! cargo run -p celery-client --example send -- --queue red tasks.fib 20
//! ```
//!
//! The broker and the result store are those of `AMQP_URL` and `REDIS_URL`, or else on this machine.

use anyhow::Context;
use celery_client::{Celery, Signature};
use serde_json::Value;
use std::time::Duration;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    // Only needed for addresses with TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut args = std::env::args().skip(1).peekable();
    let mut queue = "celery".to_owned();
    if args.next_if(|arg| arg == "--queue").is_some() {
        queue = args.next().context("--queue needs a name")?;
    }
    let task = args.next().context("usage: send [--queue NAME] TASK [ARGUMENT...]")?;
    // Each argument is JSON, or else a text.
    let arguments: Vec<Value> =
        args.map(|arg| serde_json::from_str(&arg).unwrap_or(Value::String(arg))).collect();

    let celery = Celery::builder(address("AMQP_URL", "amqp://guest:guest@localhost").parse()?)
        .results(address("REDIS_URL", "redis://localhost").parse()?)
        .connect()
        .await?;
    let call = Signature::new(task).with_args(&arguments)?.queue(queue).expires(Duration::from_secs(600));
    let result = celery.send(&call).await?;
    eprintln!("sent {}", result.id());
    let value: Value = result.get(Duration::from_secs(60)).await?;
    println!("{value}");
    celery.close().await;
    Ok(())
}

fn address(variable: &str, default: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| default.to_owned())
}
