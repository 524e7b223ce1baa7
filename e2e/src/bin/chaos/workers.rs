//! The workers, and what their logs tell.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use e2e::servers::Servers;
use rustix::process::{Pid, Signal};
use serde::Serialize;
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
            .env("SOLOIST_LOG", "info,soloist_worker::executor=debug")
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

    /// What became of each call, by what the logs say.
    ///
    /// The thread that runs a task writes a line before and after it, into a file, and goes on when that has happened: no kill takes
    /// a line back or writes it twice, be it the worker's, RabbitMQ's or Redis's.
    pub(crate) fn calls(&self) -> Result<HashMap<String, Call>> {
        let mut all: HashMap<String, Call> = HashMap::new();
        for number in 0..self.running.len() {
            let log = self.log(number);
            let lines =
                BufReader::new(File::open(&log).with_context(|| format!("open {}", log.display()))?).lines();
            // The last line of a worker that was killed may have no end, and the next worker's first follow it.
            for entry in
                lines.map_while(Result::ok).filter_map(|line| serde_json::from_str::<Value>(&line).ok())
            {
                let (Some(id), Some(message), Some(time)) =
                    (entry["id"].as_str(), entry["message"].as_str(), entry["timestamp"].as_str())
                else {
                    continue;
                };
                let call = all.entry(id.to_owned()).or_default();
                match message {
                    "task received" if entry["redelivered"] == false => call.sent += 1,
                    // A copy comes for it, that nobody had before either.
                    "to be run later: it waits in the broker" => call.put_off += 1,
                    "the task begins" => call.begun.push(time.to_owned()),
                    "the task has ended" if entry["succeeded"] == true => call.ended += 1,
                    "task succeeded" => call.stored.push(time.to_owned()),
                    _ => {}
                }
            }
        }
        Ok(all)
    }
}

/// What became of a call. Times are as in the logs: texts that sort as the times do.
#[derive(Debug, Default)]
pub(crate) struct Call {
    /// How many messages it came in that nobody had before. More than one means that it was sent more than once.
    sent: usize,
    /// How many of these were to replace another.
    put_off: usize,
    /// When it was begun.
    begun: Vec<String>,
    /// How often the task came to its end.
    ended: usize,
    /// When a worker was done with it, its result being stored.
    stored: Vec<String>,
}

/// What was done beyond the first time.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Again {
    /// Tasks begun.
    begun: usize,
    /// Tasks that came to their end. The others that were begun again had been cut off in the middle, and so without any effect of
    /// their last step.
    ended: usize,
    /// Tasks begun although their result was stored, and the worker that did so had gone on.
    pub(crate) stored: usize,
    /// Calls sent: what sent them was run again, or did not learn that it had.
    sent: usize,
}

impl Again {
    pub(crate) fn of<'a>(calls: impl Iterator<Item = &'a Call>) -> Self {
        let mut again = Self::default();
        for call in calls {
            let is_stored = |begun: &&String| call.stored.iter().any(|stored| stored < *begun);
            again.begun += call.begun.len().saturating_sub(1);
            again.ended += call.ended.saturating_sub(1);
            again.stored += call.begun.iter().filter(is_stored).count();
            again.sent += call.sent.saturating_sub(call.put_off + 1);
        }
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_off_had_ended_or_was_stored_before_it_began_again_is_told_apart() {
        let call = |begun: &[&str], ended, stored: &[&str]| Call {
            begun: begun.iter().map(|&time| time.to_owned()).collect(),
            ended,
            stored: stored.iter().map(|&time| time.to_owned()).collect(),
            ..Call::default()
        };
        let again = |call: Call| {
            let Again { begun, ended, stored, sent: _ } = Again::of([&call].into_iter());
            [begun, ended, stored]
        };
        assert_eq!(again(call(&["1"], 1, &["2"])), [0, 0, 0]);
        assert_eq!(again(call(&["1", "4"], 1, &["5"])), [1, 0, 0], "cut off");
        assert_eq!(again(call(&["1", "4"], 2, &["5"])), [1, 1, 0], "ended");
        // Of two workers' logs, the later's may be read first.
        assert_eq!(again(call(&["4", "1"], 2, &["5", "2"])), [1, 1, 1], "stored");
    }
}
