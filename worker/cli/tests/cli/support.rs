//! The program, workers for it, and queues that nobody else uses.

use lapin::Channel;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for anything that should take a moment; a Python worker takes seconds to start.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A setting that a test can't do without.
pub(crate) fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("set {name}"))
}

/// A name that nobody else uses.
pub(crate) fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let moment = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    format!("cli-test-{}-{moment}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The program, without settings.
pub(crate) fn bare() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_soloist"));
    for name in ["BROKER", "BROKER_DIR", "RESULTS", "RESULTS_DIR", "DEFAULT_QUEUE", "LOG"] {
        command.env_remove(format!("SOLOIST_{name}"));
    }
    command.stdin(Stdio::null());
    command
}

/// The program, with the broker that the tests have.
pub(crate) fn soloist(args: &[&str]) -> Command {
    let mut command = bare();
    command.args(args).env("SOLOIST_BROKER", setting("AMQP_URL"));
    command
}

/// The program, with the result store that the tests have, too.
pub(crate) fn with_results(args: &[&str]) -> Command {
    let mut command = soloist(args);
    command.env("SOLOIST_RESULTS", setting("REDIS_URL"));
    command
}

/// What the program has said, and its exit code.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim_end().to_owned();
        Self { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }
}

pub(crate) fn run(mut command: Command) -> Said {
    command.output().unwrap().into()
}

/// What it prints when all goes well.
#[track_caller]
pub(crate) fn out(command: Command) -> String {
    let said = run(command);
    assert_eq!(said.code, 0, "{said:?}");
    said.out
}

#[track_caller]
pub(crate) fn json(mut command: Command) -> Value {
    command.args(["-o", "json"]);
    serde_json::from_str(&out(command)).unwrap()
}

/// A worker on a queue of its own, killed when it is dropped.
pub(crate) struct Worker {
    pub(crate) queue: String,
    pub(crate) node: String,
    child: Child,
}

impl Worker {
    /// The one that `soloist worker` runs.
    pub(crate) fn soloist() -> Self {
        let queue = unique();
        let node = format!("celery@{queue}");
        let mut command = with_results(&["worker", "-Q", &queue, "-n", &node]);
        command.args(["--http-address", "127.0.0.1:0", "--log", "error"]);
        Self { child: command.spawn().unwrap(), queue, node }.ready()
    }

    /// Celery's own, with two threads, so that it answers while it works.
    pub(crate) fn python() -> Self {
        let queue = unique();
        let node = format!("celery@{queue}");
        let child = Command::new(setting("PYTHON"))
            .args(["-m", "celery", "-A", "app", "worker", "--pool=threads", "--concurrency=2", "-E"])
            .args(["--without-mingle", "--without-gossip", "-l", "critical", "-n", &node])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../client/tests/live/python"))
            .env("AMQP_URL", setting("AMQP_URL"))
            .env("RESULTS", setting("REDIS_URL"))
            .env("QUEUE", &queue)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONWARNINGS", "ignore")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, queue, node }.ready()
    }

    fn ready(self) -> Self {
        let deadline = Instant::now() + PATIENCE;
        while run(soloist(&["inspect", "ping", "-d", &self.node])).code != 0 {
            assert!(Instant::now() < deadline, "the worker did not start");
        }
        self
    }

    /// Waits until it has ended by itself.
    pub(crate) fn has_exited(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the worker did not stop");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let queue = self.queue.clone();
        on_broker(async |channel| {
            let _ = channel.queue_delete(queue.as_str().into(), Default::default()).await;
            let _ = channel.exchange_delete(queue.as_str().into(), Default::default()).await;
        });
    }
}

/// Does something on a channel to the broker.
pub(crate) fn on_broker<T>(work: impl AsyncFnOnce(Channel) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connection = celery_client::connect(&setting("AMQP_URL").parse().unwrap(), "test").await.unwrap();
        let done = work(connection.create_channel().await.unwrap()).await;
        let _ = connection.close(200, "done".into()).await;
        done
    })
}

/// A program that runs beside the test, killed when it is dropped.
pub(crate) struct Beside(Child);

impl Beside {
    pub(crate) fn start(mut command: Command) -> Self {
        Self(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    /// What it has printed up to the first line with all of these parts.
    pub(crate) fn until(mut self, parts: &[&str]) -> String {
        let mut text = String::new();
        for line in BufReader::new(self.0.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            text.push_str(&line);
            text.push('\n');
            if parts.iter().all(|part| line.contains(part)) {
                break;
            }
        }
        text
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
