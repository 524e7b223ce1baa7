//! Tasks that are ended: by time limits, or by somebody's command; and tasks that are held back.

use celery_protocol::date;
use serde_json::{Value, json};

use crate::support::{Broker, Call, Celery, EventWatch, control, eventually, unique, worker};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_task_that_heeds_is_ended_by_its_limits() {
    let queue = unique("heeds");
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let events = EventWatch::start(&worker.node);
    let outcomes = Celery::with_redis(&queue).call([
        Call::new("tasks.sleep", json!([60])).options(json!({"soft_time_limit": 0.5, "time_limit": 30})),
        Call::new("tasks.sleep", json!([60])).options(json!({"time_limit": 0.5})),
    ]);
    assert_eq!(outcomes[0]["error"], "SoftTimeLimitExceeded");
    assert_eq!(outcomes[1]["error"], "TimeLimitExceeded");
    assert!(outcomes[1]["message"].as_str().unwrap().contains("0.5"), "{}", outcomes[1]);
    for (outcome, told) in outcomes.iter().zip(["SoftTimeLimitExceeded(", "TimeLimitExceeded(0.5"]) {
        let failed = events.wait_for("task-failed", |event| event["uuid"] == outcome["id"]);
        assert!(failed["exception"].as_str().unwrap().starts_with(told), "{failed}");
    }
    assert!(worker.log().iter().all(|entry| entry["message"] != "starting anew"));
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_task_that_heeds_nothing_is_ended_with_its_process() {
    let queue = unique("stuck");
    let broker = Broker::connect().await;
    let mut worker = worker(&queue).ready();
    let pid = worker.pid();
    let outcomes = Celery::with_redis(&queue).call([
        Call::new("tasks.fib", json!([50])).options(json!({"time_limit": 0.5})),
        Call::new("tasks.add", json!([1, 2])),
    ]);
    assert_eq!(outcomes[0]["error"], "TimeLimitExceeded");
    assert_eq!(outcomes[1]["value"], json!(3), "the worker goes on");
    assert_eq!(worker.log().iter().filter(|entry| entry["message"] == "starting").count(), 2);
    assert!(worker.is_running() && worker.pid() == pid, "the container would not restart");
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn celery_revokes_what_runs_what_waits_and_what_is_stamped() {
    let queue = unique("revoke");
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let events = EventWatch::start(&worker.node);
    let [delayed, running, waiting, stamped] = [(); 4].map(|()| unique("id"));
    let calls = [
        Call::new("tasks.add", json!([1, 2])).options(json!({"task_id": delayed, "countdown": 5})),
        Call::new("tasks.sleep", json!([60])).options(json!({"task_id": running})),
        Call::new("tasks.add", json!([1, 2])).options(json!({"task_id": waiting})),
        Call::new("tasks.add", json!([1, 2]))
            .options(json!({"task_id": stamped, "stamped_headers": ["tenant"], "tenant": ["a", "b"]})),
    ];
    let client = Celery::with_redis(&queue).call_meanwhile(calls);
    worker.wait_for("to be run later: it waits in the broker", |entry| entry["id"] == delayed);
    worker.wait_until_running(&running);
    let replies = control(
        &worker.node,
        &[
            ("revoke", json!({"task_id": delayed})),
            ("revoke", json!({"task_id": [waiting]})),
            ("revoke_by_stamped_headers", json!({"headers": {"tenant": ["b"]}})),
            ("revoke", json!({"task_id": running, "terminate": true, "signal": "SIGKILL"})),
        ],
    );
    assert_eq!(replies[3].0, json!({"ok": format!("terminate: {running}")}));
    let outcomes = client.join().unwrap();
    for (outcome, reason) in outcomes.iter().zip(["revoked", "terminated", "revoked", "revoked"]) {
        let told = (&outcome["state"], &outcome["error"], &outcome["message"]);
        assert_eq!(told, (&json!("REVOKED"), &json!("TaskRevokedError"), &json!(reason)), "{outcome}");
        let event = events.wait_for("task-revoked", |event| event["uuid"] == outcome["id"]);
        let is_terminated = reason == "terminated";
        let signal = if is_terminated { json!(9) } else { Value::Null };
        assert_eq!(
            (&event["terminated"], &event["expired"], &event["signum"]),
            (&json!(is_terminated), &json!(false), &signal)
        );
    }
    assert_eq!(worker.metric("soloist_task_started_total{task=\"tasks.add\"}"), Some(0.0));
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_rate_limit_spreads_the_starts() {
    let queue = unique("rate");
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let order = [("rate_limit", json!({"task_name": "tasks.add", "rate_limit": "2/s"}))];
    eventually("the worker is told", || control(&worker.node, &order).remove(0).0.get("ok").cloned());
    let outcomes = Celery::with_redis(&queue).call((0..6).map(|n| Call::new("tasks.add", json!([n, n]))));
    let mut ends: Vec<_> = outcomes
        .iter()
        .map(|outcome| {
            let done = worker.wait_for("task succeeded", |entry| entry["id"] == outcome["id"]);
            date::parse(done["timestamp"].as_str().unwrap()).unwrap()
        })
        .collect();
    ends.sort();
    let spread = ends[5].duration_since(ends[0]).as_secs_f64();
    // Half a second between two starts; the first may be logged a moment late.
    assert!(spread > 2.4, "all within {spread} s");
    broker.remove(&queue);
}
