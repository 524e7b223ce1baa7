//! Messages that are not due yet: they wait in the broker.

use std::time::{Duration, Instant};

use celery_protocol::{date, delay};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::support::{
    Broker, Call, Celery, Message, Vhost, WorkerProcess, control, delays, eventually, stored, unique, worker,
};

/// A call that is due in some seconds.
fn due_in(seconds: f64, id: &str) -> Message {
    let eta = Timestamp::now() + Duration::from_secs_f64(seconds);
    Message::call(id, "tasks.add", &json!([1, 2])).header("eta", json!(date::format(eta)))
}

/// How many seconds late (or, below zero, early) the task of an outcome was done.
fn lateness(worker: &WorkerProcess, due: &Value, outcome: &Value) -> f64 {
    let moment = |text: &Value| date::parse(text.as_str().unwrap()).unwrap();
    let done = worker.wait_for("task succeeded", |entry| entry["id"] == outcome["id"]);
    moment(&done["timestamp"]).duration_since(moment(due)).as_secs_f64()
}

fn status(id: &str) -> Option<String> {
    stored(id).map(|(meta, _)| meta["status"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn delayed_tasks_keep_no_worker_from_another_task() {
    let queue = unique("delays");
    let broker = Broker::connect().await;
    let worker = worker(&queue).env("SOLOIST_MAX_PREFETCH", "1").ready();
    let add = || Call::new("tasks.add", json!([1, 2]));
    let delayed = |n| add().options(json!({"eta_in": [4.0 + f64::from(n) / 10.0, "utc"]}));
    let mut outcomes = Celery::with_redis(&queue).call((0..10).map(delayed).chain([add()]));
    let at_once = outcomes.pop().unwrap();
    assert!(lateness(&worker, &outcomes[0]["due"], &at_once) < 0.0, "it was run before the others were due");
    for outcome in &outcomes {
        assert_eq!(outcome["value"], 3, "{outcome}");
        let late = lateness(&worker, &outcome["due"], outcome);
        assert!((0.0..2.0).contains(&late), "{late} s late: {outcome}");
    }
    assert_eq!(worker.metric("soloist_task_started_total{task=\"tasks.add\"}"), Some(11.0));
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_delayed_task_outlives_its_worker() {
    let queue = unique("outlives");
    let broker = Broker::connect().await;
    let first = worker(&queue).ready();
    let id = unique("id");
    let call = Call::new("tasks.add", json!([1, 2])).options(json!({"task_id": id, "eta_in": [5, "utc"]}));
    let client = Celery::with_redis(&queue).call_meanwhile([call]);
    first.wait_for("to be run later: it waits in the broker", |entry| entry["id"] == id);
    drop(first);
    let second = worker(&queue).ready();
    let outcome = client.join().unwrap().remove(0);
    assert_eq!(outcome["value"], 3, "{outcome}");
    assert!(lateness(&second, &outcome["due"], &outcome) >= 0.0);
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn delayed_tasks_are_shown_and_can_be_revoked_and_expire() {
    let queue = unique("scheduled");
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let (revoked, expired) = (unique("id"), unique("id"));
    broker.publish(&queue, due_in(8.0, &revoked)).await;
    let expires = date::format(Timestamp::now() + Duration::from_secs(5));
    broker.publish(&queue, due_in(8.0, &expired).header("expires", json!(expires))).await;
    for id in [&revoked, &expired] {
        worker.wait_for("to be run later: it waits in the broker", |entry| entry["id"] == **id);
    }
    let replies = control(
        &worker.node,
        &[
            ("scheduled", json!({})),
            ("query_task", json!({"ids": [revoked]})),
            ("revoke", json!({"task_id": revoked})),
        ],
    );
    let scheduled: Vec<_> =
        replies[0].0.as_array().unwrap().iter().map(|entry| entry["request"]["id"].clone()).collect();
    assert_eq!(scheduled, [json!(revoked), json!(expired)]);
    assert_eq!(replies[1].0[&revoked][0], "scheduled");
    for (id, reason) in [(&revoked, "revoked"), (&expired, "expired")] {
        let (meta, _) = eventually("its end is stored", || stored(id));
        assert_eq!((&meta["status"], &meta["result"]["exc_message"]), (&json!("REVOKED"), &json!([reason])));
    }
    eventually("both have come back", || {
        (worker.metric("soloist_task_revoked_total{task=\"tasks.add\"}") == Some(2.0)).then_some(())
    });
    assert_eq!(worker.metric("soloist_task_started_total{task=\"tasks.add\"}"), Some(0.0));
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_revoked_call_is_known_at_once_and_after_a_restart() {
    let queue = unique("revoked");
    let broker = Broker::connect().await;
    let first = worker(&queue).ready();
    let (delayed, unseen) = (unique("id"), unique("id"));
    broker.publish(&queue, due_in(6.0, &delayed)).await;
    first.wait_for("to be run later: it waits in the broker", |entry| entry["id"] == delayed);
    control(&first.node, &[("revoke", json!({"task_id": [delayed, unseen]}))]);
    for id in [&delayed, &unseen] {
        eventually("it is stored", || (status(id).as_deref() == Some("REVOKED")).then_some(()));
    }
    drop(first);
    let second = worker(&queue).ready();
    second.wait_for("task revoked", |entry| entry["id"] == delayed);
    assert_eq!(second.metric("soloist_task_started_total{task=\"tasks.add\"}"), Some(0.0));
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn names_that_end_alike_get_their_own_messages() {
    let red = unique("red");
    let dark_red = format!("dark.{red}");
    let broker = Broker::connect().await;
    let (of_red, of_dark_red) = (worker(&red).ready(), worker(&dark_red).ready());
    let ids = [unique("id"), unique("id")];
    broker.publish(&red, due_in(1.5, &ids[0])).await;
    broker.publish(&dark_red, due_in(1.5, &ids[1])).await;
    for id in &ids {
        eventually("it is run", || (status(id).as_deref() == Some("SUCCESS")).then_some(()));
    }
    for worker in [of_red, of_dark_red] {
        assert_eq!(worker.metric("soloist_task_started_total{task=\"tasks.add\"}"), Some(1.0));
    }
    broker.remove(&red);
    broker.remove(&dark_red);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_name_that_is_too_long_for_the_delay_queues_has_its_messages_held() {
    let queue = format!("{}-{}", unique("long"), "x".repeat(180));
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let [due, retried] = [(); 2].map(|()| unique("id"));
    broker.publish(&queue, due_in(1.0, &due)).await;
    broker.publish(&queue, Message::call(&retried, "tasks.flaky", &json!([1, 1]))).await;
    for id in [&due, &retried] {
        eventually("it is run", || (status(id).as_deref() == Some("SUCCESS")).then_some(()));
    }
    let received = worker.log().into_iter().filter(|entry| entry["message"] == "task received").count();
    assert_eq!(received, 3);
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn countdowns_of_a_celery_client_are_kept() {
    let queue = unique("countdown");
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let add = |options: Value| Call::new("tasks.add", json!([1, 2])).options(options);
    let ways = ["utc", "naive", "offset", "text with Z", "text with offset"];
    let etas = ways.map(|way| add(json!({"eta_in": [2, way]})));
    let countdowns = || {
        [json!({"countdown": 3}), json!({"countdown": 0.1}), json!({"countdown": 1, "expires": 60})].map(add)
    };
    // An app with a time zone of its own sends its countdowns with that.
    let settings = json!({"timezone": "Asia/Kolkata"});
    let elsewhere = Celery::with_redis(&queue).settings(settings).call_meanwhile(countdowns());
    let mut outcomes = Celery::with_redis(&queue).call(etas.into_iter().chain(countdowns()));
    outcomes.extend(elsewhere.join().unwrap());
    for outcome in outcomes {
        assert_eq!(outcome["value"], 3, "{outcome}");
        let late = lateness(&worker, &outcome["due"], &outcome);
        assert!((0.0..3.0).contains(&late), "{late} s late: {outcome}");
    }
    let expired = Celery::with_redis(&queue).call_one(add(json!({"expires": -60})));
    let told = (&expired["state"], &expired["error"], &expired["message"]);
    assert_eq!(told, (&json!("REVOKED"), &json!("TaskRevokedError"), &json!("expired")));
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn celery_and_we_declare_the_same_delay_queues() {
    let queue = unique("declared");
    for celery_is_first in [true, false] {
        let vhost = Vhost::create().await;
        let url = vhost.amqp_url();
        let connection = celery_client::connect(&url.parse().unwrap(), "test").await.unwrap();
        if celery_is_first {
            assert_eq!(delays(&url, &queue, "declare"), "declared");
        }
        celery_client::delays::declare(&connection).await.unwrap();
        if !celery_is_first {
            assert_eq!(delays(&url, &queue, "declare"), "declared");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn delay_queues_that_are_half_made_are_made_to_their_end() {
    let (vhost, queue) = (Vhost::create().await, unique("half"));
    let url = vhost.amqp_url();
    let broker = Broker::at(&url).await;
    broker.declare(&queue).await;
    let connection = celery_client::connect(&url.parse().unwrap(), "test").await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    // All that there was when Celery was killed.
    let entry = delay::entry_exchange();
    let durable = lapin::options::ExchangeDeclareOptions { durable: true, ..Default::default() };
    let topic = lapin::ExchangeKind::Topic;
    channel.exchange_declare(entry.as_str().into(), topic, durable, Default::default()).await.unwrap();
    celery_client::delays::declare(&connection).await.unwrap();
    celery_client::delays::bind(&connection, &queue).await.unwrap();
    let key = delay::routing_key(1, &queue).unwrap();
    let (options, properties) = Default::default();
    channel.basic_publish(entry.into(), key.into(), options, b"late", properties).await.unwrap();
    broker.wait_for_counts(&queue, 1, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn what_celery_delays_in_the_broker_arrives_and_is_retried() {
    let (vhost, queue) = (Vhost::create().await, unique("native"));
    let url = vhost.amqp_url();
    let connection = celery_client::connect(&url.parse().unwrap(), "test").await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let durable = lapin::options::QueueDeclareOptions { durable: true, ..Default::default() };
    let arguments = celery_client::amqp::table(json!({"x-queue-type": "quorum"}).as_object().unwrap());
    channel.queue_declare(queue.as_str().into(), durable, arguments).await.unwrap();
    // The operator's part.
    celery_client::delays::declare(&connection).await.unwrap();
    celery_client::delays::bind(&connection, &queue).await.unwrap();
    let worker = worker(&queue).env("SOLOIST_BROKER", &url).ready();
    let begun = Instant::now();
    assert_eq!(delays(&url, &queue, "send"), json!({"tenant": "a"}));
    assert!(begun.elapsed() >= Duration::from_secs(3), "a countdown of 2 s, then of 1 s");
    let received = worker.log().into_iter().filter(|entry| entry["message"] == "task received").count();
    assert!(received <= 3, "twice, and once more if it came a moment early");
}
