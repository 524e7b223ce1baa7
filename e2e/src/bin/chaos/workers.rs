//! The workers, and what their logs tell.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use e2e::servers::Servers;
use rustix::process::{Pid, Signal};
use serde_json::Value;
use tokio::process::{Child, Command};

pub(crate) const QUEUE: &str = "chaos";

/// Worker processes, each started again when it ends, as Kubernetes would.
pub(crate) struct Workers {
    program: PathBuf,
    folder: PathBuf,
    amqp_url: String,
    redis_url: String,
    running: Vec<Child>,
    /// Ends that nobody asked for.
    pub(crate) crashes: usize,
}

impl Workers {
    pub(crate) fn start(program: &Path, folder: &Path, servers: &Servers, count: usize) -> Result<Self> {
        let mut workers = Self {
            program: program.to_owned(),
            folder: folder.to_owned(),
            amqp_url: servers.amqp_url.clone(),
            redis_url: servers.redis_url.clone(),
            running: Vec::new(),
            crashes: 0,
        };
        for number in 0..count {
            let worker = workers.spawn(number)?;
            workers.running.push(worker);
        }
        Ok(workers)
    }

    fn log(&self, number: usize) -> PathBuf {
        self.folder.join(format!("worker-{number}.log"))
    }

    fn spawn(&self, number: usize) -> Result<Child> {
        let log = File::options().create(true).append(true).open(self.log(number))?;
        Command::new(&self.program)
            .args(["--queues", QUEUE, "--default-queue", QUEUE, "--http-address", "127.0.0.1:0"])
            .args(["--node-name", &format!("celery@chaos-{number}")])
            .env("SOLOIST_BROKER", &self.amqp_url)
            .env("SOLOIST_RESULTS", &self.redis_url)
            .env("SOLOIST_LOG_FORMAT", "json")
            .stdin(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))
    }

    /// Kills one as the kernel does when memory runs out, and starts another in its place.
    pub(crate) async fn kill(&mut self, number: usize) -> Result<()> {
        let number = number % self.running.len();
        self.replace_ended()?;
        self.running[number].kill().await.context("kill a worker")?;
        self.running[number] = self.spawn(number)?;
        Ok(())
    }

    /// Starts those again that have ended by themselves, and counts them.
    pub(crate) fn replace_ended(&mut self) -> Result<()> {
        for number in 0..self.running.len() {
            if self.running[number].try_wait()?.is_some() {
                self.crashes += 1;
                self.running[number] = self.spawn(number)?;
            }
        }
        Ok(())
    }

    /// Restarts all of them at once, as a rollout does: each is asked to stop, and replaced when it has.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        self.replace_ended()?;
        for worker in &self.running {
            if let Some(pid) = worker.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
                rustix::process::kill_process(pid, Signal::TERM).context("ask a worker to stop")?;
            }
        }
        for number in 0..self.running.len() {
            if !self.running[number].wait().await?.success() {
                self.crashes += 1;
            }
            self.running[number] = self.spawn(number)?;
        }
        Ok(())
    }

    /// How often each call was begun, by what the logs say.
    pub(crate) fn runs(&self) -> Result<HashMap<String, Runs>> {
        let mut all: HashMap<String, Runs> = HashMap::new();
        for number in 0..self.running.len() {
            let log = self.log(number);
            let lines =
                BufReader::new(File::open(&log).with_context(|| format!("open {}", log.display()))?).lines();
            // The last line of a worker that was killed may have no end, and the next worker's first follow it.
            for entry in
                lines.map_while(Result::ok).filter_map(|line| serde_json::from_str::<Value>(&line).ok())
            {
                if entry["message"] != "task received" {
                    continue;
                }
                let Some(id) = entry["id"].as_str() else { continue };
                let runs = all.entry(id.to_owned()).or_default();
                match entry["redelivered"].as_bool() {
                    Some(true) => runs.of_redelivered += 1,
                    _ => runs.of_first_deliveries += 1,
                }
            }
        }
        Ok(all)
    }
}

/// How often a call was begun.
#[derive(Clone, Copy, Default)]
pub(crate) struct Runs {
    /// From messages that nobody had before. More than one means that the call was sent more than once.
    pub(crate) of_first_deliveries: usize,
    /// From messages that were given to somebody before, who did not acknowledge them.
    pub(crate) of_redelivered: usize,
}
