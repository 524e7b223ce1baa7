//! The stock worker as a process.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::Value;

use super::{env, eventually, http, unique};

/// How to start a worker.
pub(crate) struct Start {
    command: Command,
    node: String,
}

/// A running worker. Killed when dropped.
pub(crate) struct WorkerProcess {
    child: Child,
    log: Arc<Mutex<Vec<Value>>>,
    pub(crate) node: String,
}

/// A worker on `queue`, which it makes if it isn't there, with results in Redis.
pub(crate) fn worker(queue: &str) -> Start {
    program(Path::new(env!("CARGO_BIN_EXE_soloist-worker")), queue)
}

/// The same of one of the examples.
pub(crate) fn example(name: &str, queue: &str) -> Start {
    program(&example_file(name), queue)
}

/// The program of an example, which `cargo test` builds too.
pub(crate) fn example_file(name: &str) -> PathBuf {
    let stock = Path::new(env!("CARGO_BIN_EXE_soloist-worker"));
    let example = stock.with_file_name("examples").join(name);
    assert!(example.exists(), "build it first: cargo build -p soloist-worker --examples");
    example
}

fn program(file: &Path, queue: &str) -> Start {
    let node = format!("celery@{}", unique("worker"));
    let mut command = Command::new(file);
    command
        .args(["--queues", queue, "--http-address", "127.0.0.1:0"])
        .env("SOLOIST_BROKER", env("AMQP_URL"))
        .env("SOLOIST_RESULTS", env("REDIS_URL"))
        .env("SOLOIST_LOG_FORMAT", "json");
    Start { command, node: String::new() }.node(&node)
}

impl Start {
    /// Gives it a name of the test's choice.
    pub(crate) fn node(mut self, node: &str) -> Self {
        self.command.env("SOLOIST_NODE_NAME", node);
        Self { node: node.to_owned(), ..self }
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Starts it, without waiting for anything but its first line.
    pub(crate) fn spawn(mut self) -> WorkerProcess {
        let mut child = self.command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stderr.take().unwrap());
        let sink = Arc::clone(&log);
        thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let entry = serde_json::from_str(&line).unwrap_or(Value::String(line));
                sink.lock().unwrap().push(entry);
            }
        });
        WorkerProcess { child, log, node: self.node }
    }

    /// Starts it and waits until it consumes.
    pub(crate) fn ready(self) -> WorkerProcess {
        let worker = self.spawn();
        worker.wait_for("ready", |_| true);
        worker
    }
}

impl WorkerProcess {
    /// Waits for a log line with this message for which `check` holds.
    #[track_caller]
    pub(crate) fn wait_for(&self, message: &str, check: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("the worker logs `{message}`"), || {
            self.log().into_iter().find(|entry| entry["message"] == message && check(entry))
        })
    }

    /// Waits until the worker has begun with the task of this id.
    #[track_caller]
    pub(crate) fn wait_until_running(&self, id: &str) {
        self.wait_for("task received", |entry| entry["id"] == id);
        eventually("the task runs", || (self.metric("soloist_worker_busy") == Some(1.0)).then_some(()));
    }

    pub(crate) fn log(&self) -> Vec<Value> {
        self.log.lock().unwrap().clone()
    }

    /// What it has logged of a channel that the broker closed with 406: something is declared otherwise, or was acknowledged twice.
    pub(crate) fn refusals(&self) -> Vec<Value> {
        self.log().into_iter().filter(|entry| entry.to_string().contains("PRECONDITION_FAILED")).collect()
    }

    /// Status and body of one of its HTTP paths.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let line = self.wait_for("serving probes and metrics", |_| true);
        http::get(line["address"].as_str().unwrap(), path)
    }

    /// Value of a metric, given with its labels as it is printed.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics");
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let sent =
            Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        eventually("the worker exits", || self.child.try_wait().unwrap())
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            for entry in self.log() {
                eprintln!("{}: {entry}", self.node);
            }
        }
    }
}
