//! celery-exporter, as it comes, turns what our worker says into metrics.

use std::{
    collections::HashMap,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::json;

use crate::support::{Broker, Message, Vhost, env, free_address, http, unique, within, worker};

/// Each scrape makes it ask all workers, for a second or two.
const SCRAPES: Duration = Duration::from_secs(60);

struct Exporter {
    child: Child,
    address: String,
}

impl Exporter {
    /// Starts it for a virtual host, and returns once it answers.
    fn start(vhost: &Vhost) -> Self {
        let address = free_address();
        let (host, port) = address.split_once(':').unwrap();
        let child = Command::new(env("PYTHON_EXPORTER"))
            .args(["-c", "from src.cli import cli; cli()", "--broker-url", &vhost.amqp_url()])
            .args(["--host", host, "--port", port])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let exporter = Self { child, address };
        within(SCRAPES, "the exporter listens", || std::net::TcpStream::connect(&exporter.address).ok());
        exporter
    }

    /// Its metrics, each by its name and labels as printed.
    fn scrape(&self) -> HashMap<String, f64> {
        let (status, text) = http::get(&self.address, "/metrics");
        assert_eq!(status, 200, "{text}");
        let samples =
            text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        samples.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis, Celery and celery-exporter: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON_EXPORTER"]
async fn celery_exporter_counts_tasks_workers_and_messages() {
    let vhost = Vhost::create().await;
    let queue = unique("exporter");
    let exporter = Exporter::start(&vhost);
    let worker = worker(&queue).env("SOLOIST_BROKER", &vhost.amqp_url()).ready();
    let pod = worker.node.strip_prefix("celery@").unwrap();
    let up = format!("celery_worker_up{{hostname=\"{pod}\"}}");
    within(SCRAPES, "the worker is up", || (exporter.scrape().get(&up) == Some(&1.0)).then_some(()));

    let broker = Broker::at(&vhost.amqp_url()).await;
    let (added, failed, running, waiting) = (unique("id"), unique("id"), unique("id"), unique("id"));
    broker.publish(&queue, Message::call(&added, "tasks.add", &json!([1, 2]))).await;
    broker.publish(&queue, Message::call(&failed, "tasks.fail", &json!(["boom"]))).await;
    broker.publish(&queue, Message::call(&running, "tasks.sleep", &json!([12]))).await;
    worker.wait_until_running(&running);
    broker.publish(&queue, Message::call(&waiting, "tasks.add", &json!([1, 2]))).await;

    let of = |metric: &str, task: &str, more: &str| {
        format!("celery_task_{metric}{{{more}hostname=\"{pod}\",name=\"{task}\",queue_name=\"celery\"}}")
    };
    let queue_label = format!("{{queue_name=\"{queue}\"}}");
    let expected = [
        (of("received_total", "tasks.sleep", ""), 1.0),
        (of("started_total", "tasks.sleep", ""), 1.0),
        (of("succeeded_total", "tasks.add", ""), 1.0),
        (of("runtime_count", "tasks.add", ""), 1.0),
        (of("failed_total", "tasks.fail", "exception=\"RuntimeError\","), 1.0),
        (format!("celery_worker_tasks_active{{hostname=\"{pod}\"}}"), 1.0),
        (format!("celery_queue_length{queue_label}"), 1.0),
        (format!("celery_active_consumer_count{queue_label}"), 1.0),
        (format!("celery_active_worker_count{queue_label}"), 1.0),
        (format!("celery_active_process_count{queue_label}"), 1.0),
        (up.clone(), 1.0),
    ];
    within(SCRAPES, "the metrics are as they should be", || {
        let seen = exporter.scrape();
        let different: Vec<_> =
            expected.iter().filter(|(name, value)| seen.get(name) != Some(value)).collect();
        println!("not yet: {different:?}");
        different.is_empty().then_some(())
    });

    // It is told to go, says so, and is up no more.
    worker.signal("TERM");
    within(SCRAPES, "the worker is down", || (exporter.scrape().get(&up) == Some(&0.0)).then_some(()));
}
