//! What happens to the task in hand when the worker goes.

use serde_json::json;

use crate::support::{Broker, Call, Celery, Message, stored, unique, worker};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn sigterm_lets_the_task_finish_and_leaves_the_rest_in_the_queue() {
    let queue = unique("term");
    let broker = Broker::connect().await;
    let mut worker = worker(&queue).ready();
    let (first, second) = (unique("id"), unique("id"));
    broker.publish(&queue, Message::call(&first, "tasks.sleep", &json!([2]))).await;
    worker.wait_until_running(&first);
    worker.signal("TERM");
    worker.wait_for("not ready", |entry| entry["reason"].as_str().unwrap().starts_with("draining"));
    let (status, reason) = worker.get("/readyz");
    assert_eq!(status, 503);
    assert!(reason.starts_with("draining"), "{reason}");
    assert_eq!(worker.get("/livez").0, 200);
    broker.publish(&queue, Message::call(&second, "tasks.add", &json!([1, 2]))).await;
    assert_eq!(worker.wait().code(), Some(0));
    assert_eq!(stored(&first).unwrap().0["result"], json!(2.0));
    assert!(stored(&second).is_none());
    broker.wait_for_counts(&queue, 1, 0).await;
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn an_idle_worker_leaves_at_once() {
    let queue = unique("idle");
    let broker = Broker::connect().await;
    let mut worker = worker(&queue).ready();
    let asked = std::time::Instant::now();
    worker.signal("INT");
    assert_eq!(worker.wait().code(), Some(0));
    assert!(asked.elapsed().as_secs_f64() < 5.0, "took {:?}", asked.elapsed());
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_second_signal_gives_the_task_back() {
    let queue = unique("cold");
    let broker = Broker::connect().await;
    let mut worker = worker(&queue).ready();
    let id = unique("id");
    broker.publish(&queue, Message::call(&id, "tasks.sleep", &json!([60]))).await;
    worker.wait_until_running(&id);
    worker.signal("TERM");
    worker.wait_for("not ready", |_| true);
    worker.signal("TERM");
    assert_eq!(worker.wait().code(), Some(1));
    assert!(stored(&id).is_none());
    broker.wait_for_counts(&queue, 1, 0).await;
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_task_of_a_killed_worker_is_run_by_another() {
    let queue = unique("kill");
    let broker = Broker::connect().await;
    let mut first = worker(&queue).ready();
    let id = unique("id");
    let call = Call::new("tasks.sleep", json!([3])).options(json!({"task_id": id}));
    let client = Celery::with_redis(&queue).call_meanwhile([call]);
    first.wait_until_running(&id);
    let second = worker(&queue).ready();
    first.signal("KILL");
    assert_eq!(first.wait().code(), None);
    let received = second.wait_for("task received", |entry| entry["id"] == id.as_str());
    assert_eq!(received["redelivered"], json!(true));
    assert_eq!(client.join().unwrap()[0]["value"], json!(3.0), "the client has its result all the same");
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn without_redis_a_message_that_comes_back_is_run_behind_the_others_at_once() {
    let queue = unique("back");
    let broker = Broker::connect().await;
    let start = || worker(&queue).env("SOLOIST_RESULTS", "rpc://").ready();
    let mut first = start();
    let (again, other) = (unique("id"), unique("id"));
    broker.publish(&queue, Message::call(&again, "tasks.sleep", &json!([0.5]))).await;
    first.wait_until_running(&again);
    broker.publish(&queue, Message::call(&other, "tasks.sleep", &json!([0.1]))).await;
    first.signal("KILL");
    first.wait();
    let second = start();
    let put_off =
        second.wait_for("to be run later: it waits in the broker", |entry| entry["id"] == again.as_str());
    assert_eq!(put_off["wait"], json!("0ns"));
    second.wait_for("task succeeded", |entry| entry["id"] == other.as_str());
    second.wait_for("task succeeded", |entry| entry["id"] == again.as_str());
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}

/// A quorum queue has a limit of its own, and counts what was given back in other headers with each version of RabbitMQ.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn without_redis_what_a_quorum_queue_counts_is_run_at_once() {
    let queue = unique("counted");
    let broker = Broker::connect().await;
    broker.declare_quorum(&queue).await;
    let id = unique("id");
    broker.publish(&queue, Message::call(&id, "tasks.add", &json!([1, 2]))).await;
    broker.give_back(&queue).await;
    let worker = worker(&queue).env("SOLOIST_RESULTS", "rpc://").ready();
    let received = worker.wait_for("task received", |entry| entry["id"] == id.as_str());
    assert_eq!(received["redelivered"], json!(true));
    worker.wait_for("task succeeded", |entry| entry["id"] == id.as_str());
    let put_off =
        worker.log().into_iter().find(|entry| entry["message"] == "to be run later: it waits in the broker");
    assert_eq!(put_off, None);
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}
