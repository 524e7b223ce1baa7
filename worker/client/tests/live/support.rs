//! A real Python worker, and clients of it.

use celery_client::{Celery, ResultStoreAddress};
use std::process::{Child, Command, Stdio};

/// A setting that a test can't do without.
pub(crate) fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("set {name}"))
}

/// A name that nobody else uses.
pub(crate) fn unique(prefix: &str) -> String {
    format!("{prefix}-{}", uuid::Uuid::new_v4())
}

/// A Python worker on a queue of its own, stopped when it is dropped.
pub(crate) struct PythonWorker {
    pub(crate) queue: String,
    process: Child,
}

impl PythonWorker {
    pub(crate) fn start(results: &str) -> Self {
        let queue = unique("client-test");
        let process = Command::new(setting("PYTHON"))
            .args([
                "-m",
                "celery",
                "-A",
                "app",
                "worker",
                "--pool=solo",
                "--without-mingle",
                "--without-gossip",
            ])
            .args(["-l", "critical", "-n", &format!("{queue}@test")])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/live/python"))
            .env("AMQP_URL", setting("AMQP_URL"))
            .env("RESULTS", results)
            .env("QUEUE", &queue)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONWARNINGS", "ignore")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("start a Python worker");
        Self { queue, process }
    }
}

impl PythonWorker {
    /// Stops the worker and deletes its queue.
    pub(crate) async fn stop(self) {
        let queue = self.queue.clone();
        drop(self);
        delete(&queue).await;
    }
}

impl Drop for PythonWorker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A client whose tasks go to a queue.
pub(crate) async fn client(queue: &str, results: Option<&str>) -> Celery {
    let mut builder = Celery::builder(setting("AMQP_URL").parse().expect("AMQP_URL")).default_queue(queue);
    if let Some(results) = results {
        builder = builder.results(results.parse::<ResultStoreAddress>().expect("result store"));
    }
    builder.connect().await.expect("connect")
}

/// Deletes a queue, and the exchange of its name that Celery declares with it.
pub(crate) async fn delete(queue: &str) {
    let connection = celery_client::connect(&setting("AMQP_URL").parse().expect("AMQP_URL"), "cleanup").await;
    let channel = connection.expect("connect").create_channel().await.expect("channel");
    let _ = channel.queue_delete(queue.into(), Default::default()).await;
    let _ = channel.exchange_delete(queue.into(), Default::default()).await;
}
