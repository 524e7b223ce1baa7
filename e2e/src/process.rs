//! The cluster's programs as processes: each is started apart from the harness and outlives it, so each must be known
//! again later, for certain, before anything is done to it.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use serde::{Deserialize, Serialize};

use crate::netns::Namespace;
use crate::{paths, wait};

/// In the environment of everything we start, and of what that starts: the name of the cluster.
const MARK: &str = "SOLOIST_CLUSTER_PROCESS";

/// A process that we started. The time of its start tells it from a later one that was given the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Its number.
    pub(crate) pid: i32,
    /// When it started, in clock ticks since the machine did.
    pub(crate) started: u64,
}

impl Process {
    /// The process with this number, if there is one that isn't a zombie.
    pub(crate) fn find(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The program's name comes second, in parentheses, and may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let (state, started) = (fields.first()?, fields.get(19)?);
        (!matches!(*state, "Z" | "X")).then_some(Self { pid, started: started.parse().ok()? })
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&self) -> bool {
        // Collects it if it was our own child; otherwise there is nothing to collect, and that is no fault.
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
        }
        Self::find(self.pid).as_ref() == Some(self)
    }

    /// Sends a signal to exactly this process; nothing happens if it is gone.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        // A file descriptor holds on to one process: once its start is checked, its number can't be given to another.
        let Ok(handle) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        if !self.is_alive() {
            return Ok(());
        }
        match rustix::process::pidfd_send_signal(handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("send {signal:?} to process {}", self.pid)),
        }
    }

    /// Waits until it is gone.
    pub(crate) async fn gone(&self, what: &str, within: Duration) -> Result<()> {
        let what = format!("{what} (process {}) to end", self.pid);
        wait::until(&what, within, || async { Ok((!self.is_alive()).then_some(())) }).await
    }

    /// Whether it was started with this variable, written as `NAME=value`.
    pub(crate) fn has_variable(&self, variable: &str) -> bool {
        let environment = std::fs::read(format!("/proc/{}/environ", self.pid)).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|found| found == variable.as_bytes())
    }

    fn control_groups(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).unwrap_or_default()
    }
}

/// A program about to be started in the cluster's network.
pub(crate) struct Launch {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(String, OsString)>,
    mounts: Mounts,
}

enum Mounts {
    Machine,
    Own,
    Of(i32),
}

impl Launch {
    pub(crate) fn new(name: &str, program: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            mounts: Mounts::Machine,
        }
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Gives it a mount namespace of its own: what it mounts vanishes with it.
    pub(crate) fn with_own_mounts(mut self) -> Self {
        self.mounts = Mounts::Own;
        self
    }

    /// Puts it into the mount namespace of another process.
    pub(crate) fn with_mounts_of(mut self, other: &Process) -> Self {
        self.mounts = Mounts::Of(other.pid);
        self
    }

    /// Starts it: as a session of its own, with its output in its log file and nothing of the caller's environment.
    pub(crate) fn start(self, namespace: &Namespace) -> Result<Process> {
        let log = log_file(&self.name);
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {}", log.display()))?;
        // Neither setsid nor nsenter nor unshare forks here: the program keeps the number of the process we spawn.
        let mut command = Command::new("setsid");
        command.arg("nsenter").arg(format!("--net={}", namespace.path().display()));
        if let Mounts::Of(pid) = self.mounts {
            command.arg(format!("--mount=/proc/{pid}/ns/mnt"));
        }
        command.arg("--");
        if let Mounts::Own = self.mounts {
            command.args(["unshare", "--mount", "--propagation", "private", "--"]);
        }
        command
            .arg(&self.program)
            .args(&self.arguments)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", paths::cluster())
            .env("LANG", "C.UTF-8")
            .env(MARK, namespace.name())
            .envs(self.environment)
            .current_dir(paths::cluster())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = command.spawn().with_context(|| format!("start {}", self.name))?;
        let pid = i32::try_from(child.id()).context("a process number is positive and small")?;
        match Process::find(pid) {
            Some(process) => Ok(process),
            None => bail!("{} ended at once: {}", self.name, paths::tail(&log, 10)),
        }
    }
}

/// Where a program's output goes.
pub(crate) fn log_file(name: &str) -> PathBuf {
    paths::logs().join(format!("{name}.log"))
}

/// Every process of this machine.
pub(crate) fn of_the_machine() -> impl Iterator<Item = Process> {
    let numbers = std::fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| {
        let name = entry.ok()?.file_name();
        name.to_str()?.parse::<i32>().ok()
    });
    numbers.filter_map(Process::find)
}

/// Every process of the cluster: the recorded ones, what they started (by its environment), and what runs in pods (by
/// its control group). Never the caller.
pub(crate) fn all(namespace: &Namespace, recorded: impl IntoIterator<Item = Process>) -> Vec<Process> {
    let mut found: Vec<Process> = recorded.into_iter().filter(Process::is_alive).collect();
    let mark = format!("{MARK}={}", namespace.name());
    let group = format!(":/{}/", namespace.name());
    let own = std::process::id();
    for process in of_the_machine() {
        let ours = || {
            namespace.holds(process.pid) && process.has_variable(&mark)
                || process.control_groups().contains(&group)
        };
        if process.pid.cast_unsigned() != own && !found.contains(&process) && ours() {
            found.push(process);
        }
    }
    found
}

/// Kills every process of the cluster and waits until each is gone.
///
/// # Errors
/// If one is left after `within`.
pub(crate) async fn kill_all(
    namespace: &Namespace,
    recorded: impl IntoIterator<Item = Process>,
    within: Duration,
) -> Result<usize> {
    let recorded: Vec<Process> = recorded.into_iter().collect();
    let mut killed = Vec::new();
    wait::until("every process of the cluster to end", within, || {
        // Looked for again each time: one of them may have started another meanwhile.
        let left = all(namespace, recorded.iter().cloned());
        let failures: Vec<_> = left.iter().filter_map(|process| process.signal(Signal::KILL).err()).collect();
        for process in &left {
            if !killed.contains(process) {
                killed.push(process.clone());
            }
        }
        async move {
            match failures.into_iter().next() {
                Some(error) => Err(error),
                None => Ok(left.is_empty().then_some(())),
            }
        }
    })
    .await?;
    Ok(killed.len())
}

/// Whether a path is short enough for a socket to lie there: the kernel takes 107 bytes.
pub(crate) fn fits_socket(path: &Path) -> bool {
    path.as_os_str().len() <= 107
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_given_to_another_process_is_not_taken_for_ours() {
        let own = Process::find(std::process::id().cast_signed()).unwrap();
        assert!(own.is_alive());
        let earlier = Process { pid: own.pid, started: own.started - 1 };
        assert!(!earlier.is_alive());
        // Would end this very test if it were sent.
        earlier.signal(Signal::KILL).unwrap();
    }

    #[test]
    fn a_process_that_ended_is_gone_although_nobody_collected_it() {
        let mut child = Command::new("true").stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id().cast_signed();
        let started = std::time::Instant::now();
        while Process::find(pid).is_some() {
            assert!(started.elapsed() < Duration::from_secs(10));
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
