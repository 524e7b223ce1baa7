//! Celery's own receiver hears what the worker does.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Broker, EventWatch, Message, unique, within, worker};

/// Two heartbeats: who reads them takes a worker for gone after that.
const LONGEST_GAP: f64 = 4.0;
/// Burns a processor for clearly longer than that.
const FIB: u32 = 46;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_workers_life_is_told_in_events() {
    let queue = unique("events");
    let broker = Broker::connect().await;
    let node = format!("celery@{}", unique("events"));
    let watch = EventWatch::start(&node);
    let mut worker = worker(&queue).node(&node).ready();
    let online = watch.wait_for("worker-online", |_| true);
    assert_eq!(
        (&online["freq"], &online["active"], &online["sw_ident"]),
        (&json!(2.0), &json!(0), &json!("soloist"))
    );
    assert_eq!(online["pid"], json!(worker.pid()));
    assert_eq!(online["loadavg"].as_array().unwrap().len(), 3);

    let (sleep, fail, expired) = (unique("id"), unique("id"), unique("id"));
    broker.publish(&queue, Message::call(&sleep, "tasks.sleep", &json!([6]))).await;
    let of = |id: &str| {
        let id = id.to_owned();
        move |event: &Value| event["uuid"] == id.as_str()
    };
    let received = watch.wait_for("task-received", of(&sleep));
    assert_eq!((&received["name"], &received["args"]), (&json!("tasks.sleep"), &json!("(6,)")));
    let started = watch.wait_for("task-started", of(&sleep));
    let busy = watch.wait_for("worker-heartbeat", |event| event["active"] == 1);
    assert_eq!(busy["processed"], json!(1));
    let delay = busy["timestamp"].as_f64().unwrap() - started["timestamp"].as_f64().unwrap();
    // Less than the two seconds between heartbeats, which would tell it by chance.
    assert!(delay < 1.9, "busy is told {delay} s after the start");
    let succeeded = watch.wait_for("task-succeeded", of(&sleep));
    assert_eq!(succeeded["result"], "6.0");
    assert!(succeeded["runtime"].as_f64().unwrap() >= 6.0);
    watch.wait_for("worker-heartbeat", |event| event["active"] == 0 && event["processed"] == 1);

    broker.publish(&queue, Message::call(&fail, "tasks.fail", &json!(["boom"]))).await;
    let failed = watch.wait_for("task-failed", of(&fail));
    assert_eq!(failed["exception"], "RuntimeError('boom')");
    let message =
        Message::call(&expired, "tasks.add", &json!([])).header("expires", json!("2020-01-01T00:00:00"));
    broker.publish(&queue, message).await;
    let revoked = watch.wait_for("task-revoked", of(&expired));
    assert_eq!((&revoked["expired"], &revoked["terminated"]), (&json!(true), &json!(false)));

    worker.signal("TERM");
    watch.wait_for("worker-offline", |_| true);
    assert_eq!(worker.wait().code(), Some(0));
    let clocks: Vec<_> = watch.events().iter().filter_map(|event| event["clock"].as_u64()).collect();
    assert!(clocks.is_sorted(), "the logical clock went back: {clocks:?}");
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_task_that_burns_cpu_holds_up_neither_heartbeats_nor_probes() {
    let queue = unique("burn");
    let broker = Broker::connect().await;
    let node = format!("celery@{}", unique("burn"));
    let watch = EventWatch::start(&node);
    let worker = worker(&queue).node(&node).ready();
    let id = unique("id");
    broker.publish(&queue, Message::call(&id, "tasks.fib", &json!([FIB]))).await;
    let started = watch.wait_for("task-started", |event| event["uuid"] == id.as_str());
    let mut slowest = Duration::ZERO;
    let ended = within(Duration::from_secs(120), "the task ends", || {
        let asked = Instant::now();
        assert_eq!(worker.get("/livez").0, 200);
        slowest = slowest.max(asked.elapsed());
        watch.events().into_iter().find(|event| event["type"] == "task-succeeded")
    });
    let time = |event: &Value| event["timestamp"].as_f64().unwrap();
    let length = time(&ended) - time(&started);
    println!("task {length:.1} s, slowest /livez {slowest:?}");
    assert!(length > LONGEST_GAP + 1.0, "the task is too short to tell: {length} s");
    assert!(slowest.as_secs_f64() < 2.0, "/livez took {slowest:?} during a task of {length} s");
    let beats: Vec<_> = watch
        .events()
        .iter()
        .filter(|event| event["type"] == "worker-heartbeat")
        .map(time)
        .filter(|beat| (time(&started)..time(&ended)).contains(beat))
        .collect();
    let gaps = [&[time(&started)], beats.as_slice(), &[time(&ended)]].concat();
    let longest = gaps.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    assert!(longest < LONGEST_GAP, "no heartbeat for {longest} s: {beats:?}");
    broker.remove(&queue);
}
