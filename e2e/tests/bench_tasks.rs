//! The benchmark of workers, in short.

use std::process::Command;

use anyhow::{Result, ensure};

#[test]
#[ignore = "needs RabbitMQ, Redis and the images' programs: cargo e2e"]
fn the_worker_outpaces_celerys_solo_worker() -> Result<()> {
    let bench = Command::new(env!("CARGO_BIN_EXE_bench-tasks")).arg("--quick").output()?;
    let said = String::from_utf8_lossy(&bench.stderr);
    ensure!(bench.status.success(), "{said}");
    let lines = String::from_utf8(bench.stdout)?;
    for line in lines.lines() {
        let line: serde_json::Value = serde_json::from_str(line)?;
        ensure!(
            line["bench"] == "drain" && line["median"].as_f64().is_some_and(|median| median > 0.0),
            "{line}"
        );
    }
    ensure!(lines.lines().count() == 4, "tasks and CPU of two workers: {lines}");
    Ok(())
}
