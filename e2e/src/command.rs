//! Running another program to its end, in bounded time.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::paths;

/// Runs a program and gives back what it printed; nothing it prints is shown.
///
/// # Errors
/// If it can't be started, takes longer than `within` or ends with another code than 0; the message holds the end of its
/// standard error.
pub async fn output(command: &mut Command, within: Duration) -> Result<String> {
    let name = describe(command);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(within, command.output())
        .await
        .map_err(|_| anyhow!("`{name}` took longer than {within:?}"))?
        .with_context(|| format!("run `{name}`"))?;
    if !ended.status.success() {
        let stderr = String::from_utf8_lossy(&ended.stderr);
        bail!("`{name}` failed ({}): {}", ended.status, last_lines(&stderr, 10));
    }
    Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
}

/// Runs a program, handing each line of its standard error to `line` as it comes.
///
/// # Errors
/// As [`output`].
pub async fn watch(command: &mut Command, within: Duration, mut line: impl FnMut(&str)) -> Result<()> {
    let name = describe(command);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("run `{name}`"))?;
    let mut lines = BufReader::new(child.stderr.take().expect("standard error is piped")).lines();
    let mut said = String::new();
    let run = async {
        while let Some(next) = lines.next_line().await? {
            line(next.trim());
            said.push_str(&next);
            said.push('\n');
        }
        child.wait().await
    };
    let status = tokio::time::timeout(within, run)
        .await
        .map_err(|_| anyhow!("`{name}` took longer than {within:?}"))?
        .with_context(|| format!("run `{name}`"))?;
    if !status.success() {
        bail!("`{name}` failed ({status}): {}", last_lines(&said, 30));
    }
    Ok(())
}

/// Where a program lies, looking along PATH (without our own wrappers) and the folders of system programs that a
/// user's PATH may lack.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|folder| *folder != paths::bin())
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn describe(command: &Command) -> String {
    let command = command.as_std();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
