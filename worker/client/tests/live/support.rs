//! A real Python worker, and clients of it.

use celery_client::{Celery, ResultStoreAddress};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

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
        Self::start_with(results, "solo", false)
    }

    /// With another pool than solo, or on a quorum queue.
    pub(crate) fn start_with(results: &str, pool: &str, quorum: bool) -> Self {
        let queue = unique("client-test");
        let process = Command::new(setting("PYTHON"))
            .args([
                "-m",
                "celery",
                "-A",
                "app",
                "worker",
                "--concurrency=2",
                &format!("--pool={pool}"),
                "--without-mingle",
                "--without-gossip",
            ])
            .args(["-l", "critical", "-n", &format!("{queue}@test")])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/live/python"))
            .env("AMQP_URL", setting("AMQP_URL"))
            .env("RESULTS", results)
            .env("QUEUE", &queue)
            .env("QUORUM", if quorum { "1" } else { "" })
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
    /// Name that it is known by in remote control.
    pub(crate) fn node(&self) -> String {
        format!("{}@test", self.queue)
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn has_exited(&mut self) {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while self.process.try_wait().expect("ask for the process").is_none() {
            assert!(std::time::Instant::now() < deadline, "the worker did not stop");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

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

/// Runs a Python program that knows the app, and returns what it prints.
pub(crate) fn python(queue: &str, results: &str, program: &str) -> String {
    let output = Command::new(setting("PYTHON"))
        .args(["-c", program])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/live/python"))
        .env("AMQP_URL", setting("AMQP_URL"))
        .env("RESULTS", results)
        .env("QUEUE", queue)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("run Python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
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

/// A way to a server that can be cut.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    is_open: watch::Sender<bool>,
}

impl Proxy {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (is_open, state) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut state = state.clone();
                tokio::spawn(async move {
                    if !*state.borrow_and_update() {
                        return;
                    }
                    let Ok(mut server) = TcpStream::connect(server).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = state.wait_for(|is_open| !is_open) => {}
                    }
                });
            }
        });
        Self { port, is_open }
    }

    /// Drops all connections, and those made in the meantime.
    pub(crate) async fn cut_for(&self, time: Duration) {
        self.is_open.send_replace(false);
        tokio::time::sleep(time).await;
        self.is_open.send_replace(true);
    }
}
