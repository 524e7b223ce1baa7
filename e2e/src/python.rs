//! Python environments with the real Celery in them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use tokio::process::Command;

use crate::{command, paths, progress::Progress, state};

/// The newest Celery, and Flower.
pub const NEWEST: &str = "requirements.txt";
/// An older Celery.
pub const OLDER: &str = "celery-5.6.txt";
/// celery-exporter.
pub const EXPORTER: &str = "celery-exporter.txt";

/// Makes an environment, unless one with the same requirements is there, and gives back its `python`. The requirements are a
/// file in `e2e/python`.
///
/// # Errors
/// If Python is missing, or a package can't be had.
pub async fn ensure(progress: &Progress, requirements: &str) -> Result<PathBuf> {
    let requirements = paths::repository().join("e2e/python").join(requirements);
    let text = std::fs::read(&requirements).with_context(|| format!("read {}", requirements.display()))?;
    let digest: String = Sha256::digest(&text).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let folder = paths::cache().join("python").join(digest);
    let python = folder.join("bin/python");
    // Written last: an environment whose making was interrupted isn't taken for a complete one.
    let complete = folder.join("complete");
    let _lock = state::lock("python")?;
    if complete.exists() {
        return Ok(python);
    }
    let Some(system) = command::find("python3") else {
        bail!("Python is missing: install python3 and python3-venv")
    };
    let step = progress.step("python environment");
    let mut venv = Command::new(system);
    venv.args(["-m", "venv", "--clear"]).arg(&folder);
    command::output(&mut venv, Duration::from_secs(120)).await?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
        .arg(&requirements);
    command::output(&mut pip, Duration::from_secs(600)).await?;
    std::fs::write(&complete, "").with_context(|| format!("write {}", complete.display()))?;
    step.done("Celery");
    Ok(python)
}
