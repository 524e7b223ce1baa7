//! Calls that are run again: because their task asks for it, its settings do, or their worker has died.

use std::time::{Duration, Instant};

use celery_client::Signature;
use serde_json::{Value, json};

use crate::support::{
    Broker, Call, Celery, EventWatch, Message, PythonWorker, canvas, client, env, eventually, recorded,
    stored, unique, worker,
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_task_that_asks_for_it_is_run_again_under_the_same_id() {
    let queue = unique("retry");
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let events = EventWatch::start(&worker.node);
    let id = unique("id");
    let call = Message::call(&id, "tasks.flaky", &json!([2, 2]))
        .header("tenant", json!("a"))
        .header("timelimit", json!([60, null]));
    broker.publish(&queue, call).await;
    let (meta, _) = eventually("the retry is stored", || stored(&id));
    assert_eq!((&meta["status"], &meta["date_done"]), (&json!("RETRY"), &json!(null)));
    assert_eq!(meta["result"]["exc_message"], json!(["failure 1"]));
    // It waits in the broker, not here.
    broker.wait_for_counts(&queue, 0, 0).await;
    let done = || stored(&id).map(|(meta, _)| meta).filter(|meta| meta["status"] == "SUCCESS");
    let meta = eventually("it succeeds in the end", done);
    assert_eq!(
        meta["result"],
        json!({"tenant": "a"}),
        "the caller's headers are kept, and no others are added"
    );
    let retried: Vec<_> =
        events.events().into_iter().filter(|event| event["type"] == "task-retried").collect();
    assert_eq!(retried.len(), 2);
    assert_eq!(retried[1]["exception"], "ValueError('failure 2')");
    let received = worker.log().into_iter().filter(|entry| entry["message"] == "task received");
    let retries: Vec<_> = received.map(|entry| entry["retries"].clone()).collect();
    assert_eq!(retries, [0, 1, 2]);
    assert_eq!(worker.metric("soloist_task_retried_total{task=\"tasks.flaky\"}"), Some(2.0));
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn retries_come_to_an_end() {
    let queue = unique("retries");
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let begun = Instant::now();
    let outcomes = Celery::with_redis(&queue).call([
        Call::new("tasks.flaky", json!([9, 0, 2])),
        Call::new("tasks.flaky", json!([3, 0])),
        Call::new("tasks.unsteady", json!([2])),
        Call::new("tasks.flaky", json!([9, 0, 0])).options(json!({"retries": 7})),
        Call::new("tasks.flaky", json!([2, 0])).options(json!({"headers": {"tenant": "a"}})),
    ]);
    assert_eq!((&outcomes[0]["error"], &outcomes[0]["message"]), (&json!("ValueError"), &json!("failure 3")));
    assert_eq!(outcomes[1]["state"], "SUCCESS");
    assert_eq!(outcomes[2]["value"], json!(2));
    assert!(
        begun.elapsed() >= Duration::from_secs(3),
        "a backoff of 1 s, then of 2 s: {:?}",
        begun.elapsed()
    );
    assert_eq!(outcomes[3]["message"], "failure 8");
    assert_eq!(outcomes[4]["value"], json!({"tenant": "a"}));
    let log = worker.log();
    let runs =
        log.iter().filter(|entry| entry["message"] == "task received" && entry["id"] == outcomes[4]["id"]);
    assert_eq!(runs.map(|entry| &entry["retries"]).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(worker.metric("soloist_task_failed_total{task=\"tasks.flaky\"}"), Some(2.0));
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn what_follows_a_task_follows_its_last_run() {
    let queue = unique("retry-canvas");
    let broker = Broker::connect().await;
    let rust = worker(&queue);
    let python = PythonWorker::start();
    let _rust = rust.env("SOLOIST_DEFAULT_QUEUE", &python.queue).ready();
    let key = unique("record");
    let outcomes = canvas(
        &env("REDIS_URL"),
        &queue,
        &python.queue,
        &key,
        &[
            "rust('unsteady', 1) | rust('add', 10) | record.s(key)",
            "chord([rust('unsteady', 1), rust('add', 1, 2)], xsum.s())",
            "rust('add', 1, 0) | flaky.s()",
            "rust('flaky', 9, 0, 1).on_error(record.si('failed', key))",
        ],
    );
    assert_eq!((&outcomes[0]["value"], &outcomes[1]["value"]), (&json!(11), &json!(4)));
    assert_eq!(outcomes[2]["value"]["retries"], 1, "Python retries what we send");
    assert_eq!(outcomes[3]["error"], "ValueError");
    let words = eventually("the errback is called", || {
        let words = recorded(&key);
        (words.len() == 2).then_some(words)
    });
    assert_eq!(words, ["11", "failed"], "each once");
    broker.remove(&queue);
    broker.remove(&python.queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn python_retries_what_our_client_sends() {
    let broker = Broker::connect().await;
    let python = PythonWorker::start();
    let client = client().await;
    let call = Signature::new("py.flaky").arg(2).header("tenant", "a").queue(&python.queue);
    let result = client.send(&call).await.unwrap();
    let value: Value = result.get(Duration::from_secs(20)).await.unwrap();
    assert_eq!(value, json!({"retries": 2, "tenant": "a", "id": result.id()}));
    broker.remove(&python.queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_task_that_takes_its_worker_down_is_given_up() {
    let (classic, quorum) = (unique("poison"), unique("poison"));
    let broker = Broker::connect().await;
    broker.declare(&classic).await;
    broker.declare_quorum(&quorum).await;
    for queue in [&classic, &quorum] {
        let (deadly, harmless) = (unique("id"), unique("id"));
        broker.publish(queue, Message::call(&deadly, "tasks.die", &json!([]))).await;
        broker.publish(queue, Message::call(&harmless, "tasks.add", &json!([1, 2]))).await;
        let start = || worker(queue).env("SOLOIST_DELIVERY_LIMIT", "2").spawn();
        for _ in 0..3 {
            assert!(!start().wait().success());
        }
        let worker = start();
        let (meta, _) = eventually("it is given up", || stored(&deadly));
        assert_eq!(
            (&meta["status"], &meta["result"]["exc_type"]),
            (&json!("FAILURE"), &json!("WorkerLostError"))
        );
        eventually("the other is run", || stored(&harmless));
        broker.wait_for_counts(queue, 0, 0).await;
        drop(worker);
        broker.remove(queue);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ and Redis: AMQP_URL, MANAGEMENT_URL, REDIS_URL"]
async fn a_task_that_rejects_its_message_after_a_while_is_run_again_at_once() {
    let (queue, id) = (unique("reject"), unique("id"));
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    // Others are told of a run after two seconds.
    broker.publish(&queue, Message::call(&id, "tasks.reject", &json!([true, 2.5]))).await;
    worker.wait_for("task succeeded", |entry| entry["id"] == id.as_str());
    let is_put_off = |entry: &Value| entry["message"] == "to be run later: it waits in the broker";
    assert!(!worker.log().iter().any(is_put_off));
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn tasks_reject_ignore_and_acknowledge_early() {
    let queue = unique("reject");
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let events = EventWatch::start(&worker.node);
    let [rejected, requeued, ignored, early] = [(); 4].map(|()| unique("id"));
    let call = |task: &str, args: Value, id: &str| Call::new(task, args).options(json!({"task_id": id}));
    let outcomes = Celery::with_redis(&queue).call([
        call("tasks.reject", json!([false]), &rejected),
        call("tasks.reject", json!([true]), &requeued),
        call("tasks.ignore", json!([]), &ignored).not_waited_for(),
    ]);
    assert_eq!((&outcomes[0]["state"], &outcomes[0]["error"]), (&json!("FAILURE"), &json!("Reject")));
    assert_eq!(events.wait_for("task-rejected", |event| event["uuid"] == *rejected)["requeue"], false);
    assert_eq!(outcomes[1]["value"], "delivered again");
    assert_eq!(events.wait_for("task-rejected", |event| event["uuid"] == *requeued)["requeue"], true);
    broker.publish(&queue, Message::call(&early, "tasks.early", &json!([5]))).await;
    worker.wait_until_running(&early);
    broker.wait_for_counts(&queue, 0, 0).await;
    assert!(stored(&early).is_none(), "its message is gone before it ends");
    eventually("it ends", || stored(&early));
    assert!(stored(&ignored).is_none());
    assert_eq!(worker.metric("soloist_task_ignored_total{task=\"tasks.ignore\"}"), Some(1.0));
    broker.remove(&queue);
}
