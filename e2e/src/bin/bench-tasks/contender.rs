//! Who is measured: worker programs, started with their output thrown away.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result};
use tokio::process::{Child, Command};

use crate::Stand;

/// A worker, as it is to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contender {
    pub(crate) worker: Worker,
    /// Most messages that it may hold.
    pub(crate) in_hand: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Worker {
    Soloist,
    CelerySolo,
    CeleryPrefork,
    LapinLoop,
}

impl Worker {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Soloist => "soloist",
            Self::CelerySolo => "celery-solo",
            Self::CeleryPrefork => "celery-prefork",
            Self::LapinLoop => "lapin-loop",
        }
    }

    pub(crate) fn is_celery(self) -> bool {
        matches!(self, Self::CelerySolo | Self::CeleryPrefork)
    }
}

impl Contender {
    /// Starts it on these queues. It is killed when dropped. Both kinds of workers log warnings only.
    pub(crate) fn start(self, stand: &Stand, queues: &str, kind: &str, results: &str) -> Result<Child> {
        let broker = &stand.amqp_url;
        let backend = match results {
            "redis" => Some(stand.redis_url.as_str()),
            "rpc" => Some("rpc://"),
            _ => None,
        };
        let in_hand = self.in_hand.to_string();
        let mut command = match self.worker {
            Worker::Soloist => {
                let mut command = Command::new(&stand.programs.worker);
                command.args(["--broker", broker, "--queues", queues]);
                command.args(["--http-address", "127.0.0.1:0", "--log", "warn", "--max-prefetch", &in_hand]);
                command.args(backend.into_iter().flat_map(|backend| ["--results", backend]));
                command
            }
            Worker::LapinLoop => {
                let ack_every = (self.in_hand / 2).max(1).to_string();
                let mut command = Command::new(&stand.programs.load);
                command.args(["drain", "--broker", broker, "--queue", queues]);
                command.args(["--in-hand", &in_hand, "--ack-every", &ack_every]);
                command
            }
            Worker::CelerySolo | Worker::CeleryPrefork => {
                let (pool, concurrency) = match self.worker {
                    Worker::CelerySolo => ("solo", 1),
                    _ => ("prefork", 2),
                };
                let mut command = celery(stand, queues, kind, backend);
                command.args(["-m", "celery", "-A", "celery_app", "worker", "-l", "WARNING", "-P", pool]);
                command.args(["-c", &concurrency.to_string(), "-n", "bench-tasks"]);
                command.env("PREFETCH", (self.in_hand / concurrency).to_string());
                if self.in_hand == 1 {
                    command.env("ACKS_LATE", "1");
                }
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        command.spawn().with_context(|| format!("start {}", self.worker.name()))
    }
}

/// Python, with what the Celery app is told by its environment.
pub(crate) fn celery(stand: &Stand, queues: &str, kind: &str, backend: Option<&str>) -> Command {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/bin/bench-tasks");
    let mut command = Command::new(&stand.python);
    command
        .current_dir(folder)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("BROKER", &stand.amqp_url)
        .env("QUEUES", queues);
    if let Some(backend) = backend {
        command.env("BACKEND", backend);
    }
    if kind == "quorum" {
        command.env("QUORUM", "1");
    }
    command
}
