//! Being told to stop: Ctrl-C, or the polite signal that a CI sends before it kills.

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

/// The code that a shell gives a program that Ctrl-C ended.
pub const EXIT_CODE: u8 = 130;

/// Ends when the user or the system asks us to stop. From the first call on, neither signal ends the program any more.
///
/// # Errors
/// If signals can't be listened to.
pub async fn requested() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen to Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
