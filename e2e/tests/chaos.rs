//! A short run of `cargo chaos`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

#[tokio::test]
#[ignore = "needs RabbitMQ's and Redis's programs, and Celery: PYTHON"]
async fn nothing_is_lost_when_workers_and_servers_are_killed() -> Result<()> {
    let python = std::env::var_os("PYTHON").context("PYTHON must name a Python with Celery")?;
    let mut chaos = Command::new(env!("CARGO_BIN_EXE_chaos"));
    // With the backlog that is its default: as many tasks as once took all workers down when they restarted.
    chaos.args(["--kills", "6", "--python"]).arg(python).kill_on_drop(true);
    let ended = tokio::time::timeout(Duration::from_secs(400), chaos.output()).await??;
    let (said, log) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    ensure!(ended.status.success(), "{said}{log}");
    println!("{said}");
    Ok(())
}
