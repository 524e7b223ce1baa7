//! Celery's own receiver hears what the worker does.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    Broker, Call, Celery, EventDump, EventWatch, Message, control, eventually, unique, within, worker,
};

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
async fn celerys_event_dump_shows_how_each_task_ends() {
    let queue = unique("dump");
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let dump = EventDump::start(&worker.node);
    let revoked = unique("id");
    let order = [("revoke", json!({"task_id": revoked}))];
    eventually("the worker is told", || control(&worker.node, &order).remove(0).0.get("ok").cloned());
    let outcomes = Celery::with_redis(&queue).call([
        // First, to a worker that has nothing else to do: the broker itself drops what has expired if it has to wait.
        Call::new("tasks.add", json!([1, 2])).options(json!({"expires": -60})),
        Call::new("tasks.add", json!([1, 2])),
        Call::new("tasks.fail", json!(["boom"])),
        Call::new("tasks.flaky", json!([1, 0])),
        Call::new("tasks.reject", json!([true])),
        Call::new("tasks.add", json!([1, 2])).options(json!({"task_id": revoked})),
        Call::new("tasks.nope", json!([])),
    ]);
    const COMMON: &[&str] = &["clock", "pid", "utcoffset"];
    let shown = |what: &str, words: &str, fields: &[&str]| {
        let line = eventually(&format!("{what} {words}"), || dump.line(&worker.node, what, words));
        for field in fields.iter().chain(COMMON) {
            assert!(line.contains(&format!("{field}=")), "{field}: {line}");
        }
        line
    };
    let named = |index: usize| format!("({})", outcomes[index]["id"].as_str().unwrap());
    for (index, task) in [(1, "tasks.add"), (2, "tasks.fail"), (3, "tasks.flaky"), (4, "tasks.reject")] {
        let id = named(index);
        let received = shown("task received", &id, &["eta", "expires", "parent_id", "retries", "root_id"]);
        assert!(received.contains(task) && received.contains(" args=["), "{received}");
        shown("task started", &id, &[]);
    }
    let succeeded = shown("task succeeded", &named(1), &["runtime"]);
    assert!(succeeded.contains("result=3,"), "{succeeded}");
    let failed = shown("task failed", &named(2), &["traceback"]);
    assert!(failed.contains("exception=RuntimeError('boom')"), "{failed}");
    shown("task retried", &named(3), &["exception", "traceback"]);
    shown("task succeeded", &named(3), &["result", "runtime"]);
    shown("task rejected", &named(4), &["requeue"]);
    shown("task revoked", "expired=True", &["signum", "terminated"]);
    shown("task revoked", "expired=False", &["signum", "terminated"]);
    shown("task failed", "exception=NotRegistered('tasks.nope')", &[]);
    shown("heartbeat", "active=", &["freq", "loadavg", "processed", "sw_ident", "sw_sys", "sw_ver"]);
    drop(worker);
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
