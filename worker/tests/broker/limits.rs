//! Tasks that are ended: by time limits, or by somebody's command; and tasks that are held back.

use serde_json::json;

use crate::support::{Broker, Call, Celery, Message, control, eventually, stored, unique, worker};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_task_that_heeds_is_ended_by_its_limits() {
    let queue = unique("heeds");
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let outcomes = Celery::with_redis(&queue).call([
        Call::new("tasks.sleep", json!([60])).options(json!({"soft_time_limit": 0.5, "time_limit": 30})),
        Call::new("tasks.sleep", json!([60])).options(json!({"time_limit": 0.5})),
    ]);
    assert_eq!(outcomes[0]["error"], "SoftTimeLimitExceeded");
    assert_eq!(outcomes[1]["error"], "TimeLimitExceeded");
    assert!(outcomes[1]["message"].as_str().unwrap().contains("0.5"), "{}", outcomes[1]);
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
async fn a_running_task_is_terminated_by_command() {
    let queue = unique("terminate");
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let id = unique("id");
    broker.publish(&queue, Message::call(&id, "tasks.sleep", &json!([60]))).await;
    worker.wait_until_running(&id);
    let reply =
        control(&worker.node, &[("revoke", json!({"task_id": id, "terminate": true, "signal": "SIGKILL"}))]);
    assert_eq!(reply[0].0, json!({"ok": format!("terminate: {id}")}));
    let (meta, _) = eventually("the end is stored", || stored(&id));
    assert_eq!(
        (&meta["status"], &meta["result"]["exc_message"]),
        (&json!("REVOKED"), &json!(["terminated"]))
    );
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_rate_limit_spreads_the_starts() {
    let queue = unique("rate");
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    control(&worker.node, &[("rate_limit", json!({"task_name": "tasks.add", "rate_limit": "2/s"}))]);
    let begun = std::time::Instant::now();
    for number in 0..6 {
        let id = format!("{queue}-{number}");
        broker.publish(&queue, Message::call(&id, "tasks.add", &json!([1, 2]))).await;
    }
    eventually("all are run", || {
        (worker.metric("soloist_task_succeeded_total{task=\"tasks.add\"}") == Some(6.0)).then_some(())
    });
    assert!(begun.elapsed().as_secs_f64() >= 2.4, "took {:?}", begun.elapsed());
    broker.remove(&queue);
}
