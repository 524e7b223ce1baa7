//! Celery's own worker, as it is, obeys too.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::*;

const APP: &str = r#"
import os, time
from celery import Celery

app = Celery("drain", broker=os.environ["BROKER"])
app.conf.update(
    task_default_queue="jobs",
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)

@app.task(name="drain.sleep")
def sleep(seconds):
    time.sleep(seconds)
"#;

const NODE: &str = "celery@python";

/// A worker of Celery's solo pool, which answers nothing while a task runs. It ends with this.
struct Python {
    worker: Child,
    directory: PathBuf,
}

impl Python {
    fn start(broker: &BrokerAddress) -> Self {
        let directory = std::env::temp_dir().join(format!("soloist-drain-{:016x}", fastrand::u64(..)));
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("drain.py"), APP).unwrap();
        let python = std::env::var("PYTHON").expect("PYTHON says where a Python with Celery is");
        let worker = Command::new(python)
            .args(["-m", "celery", "-A", "drain", "worker", "--pool=solo", "-Q", "jobs", "-n", NODE])
            .current_dir(&directory)
            .env("BROKER", broker.to_uri())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { worker, directory }
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.worker.kill();
        let _ = self.worker.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl World {
    /// Messages ready and consumers of the queue `jobs`.
    async fn jobs(&self) -> (u32, u32) {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = self.channel.queue_declare("jobs".into(), passive, FieldTable::default()).await.unwrap();
        (queue.message_count(), queue.consumer_count())
    }

    async fn until_jobs(&self, expected: (u32, u32)) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.jobs().await;
            if seen == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{seen:?} instead of {expected:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn send(&self, id: &str, seconds: f64) {
        let text = |text: &str| AMQPValue::LongString(text.into());
        let mut headers = FieldTable::default();
        for (name, value) in [("lang", "rs"), ("task", "drain.sleep"), ("id", id)] {
            headers.insert(short(name), text(value));
        }
        let properties = BasicProperties::default()
            .with_headers(headers)
            .with_content_type(short("application/json"))
            .with_content_encoding(short("utf-8"));
        let body =
            json!([[seconds], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]);
        let options = BasicPublishOptions::default();
        let body = serde_json::to_vec(&body).unwrap();
        self.channel.basic_publish(short(""), short("jobs"), options, &body, properties).await.unwrap();
    }

    /// Gives an order until it is obeyed; how long that took.
    async fn obey(&self, task_queue: &ObjectRef<TaskQueue>, kind: OrderKind) -> Duration {
        let begun = Instant::now();
        loop {
            let orders = BTreeMap::from([(NODE.to_owned(), Order { kind, queues: vec!["jobs".to_owned()] })]);
            if self.hub.order(task_queue, orders, Instant::now()).contains(NODE) {
                return begun.elapsed();
            }
            assert!(begun.elapsed() < PATIENCE, "{kind:?} is not obeyed");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ and Celery: AMQP_URL, MANAGEMENT_URL, PYTHON"]
async fn a_worker_of_celerys_is_drained_when_its_task_is_done_and_resumes() {
    let mut world = World::new("celery").await;
    let jobs = world.subscribe("jobs", json!([{"name": "jobs", "deadLetter": {"enabled": false}}]));
    world.until_declared(&jobs).await;
    let python = Python::start(&world.address);
    world.until_jobs((0, 1)).await;

    world.send("first", 3.0).await;
    world.until_jobs((0, 1)).await;
    sleep(Duration::from_millis(500)).await;
    let took = world.obey(&jobs, OrderKind::Drain).await;
    assert!(took > Duration::from_secs(2), "the task ran on, and nothing was said before its end: {took:?}");
    assert_eq!(world.jobs().await, (0, 0), "its task is done, and it consumes no more");
    world.send("second", 0.1).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.jobs().await, (1, 0));

    world.obey(&jobs, OrderKind::Resume).await;
    world.until_jobs((0, 1)).await;
    let idle = world.obey(&jobs, OrderKind::Drain).await;
    println!("an idle worker of Celery's drained in {idle:?}");
    assert_eq!(world.jobs().await, (0, 0));
    drop(python);
    world.end().await;
}
