//! The broker, the queue or the result store goes away, and comes back.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Broker, Call, Celery, Message, Proxy, Vhost, control, env, eventually, occupy, runs_somewhere, stored,
    unique, within, worker,
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_task_outlives_the_connection_it_came_on_and_is_not_run_twice() {
    let queue = unique("dropped");
    let broker = Broker::connect().await;
    let (proxy, through) = Proxy::of_broker(&env("AMQP_URL"), true);
    let worker = worker(&queue).env("SOLOIST_BROKER", &through).ready();
    let id = unique("id");
    broker.publish(&queue, Message::call(&id, "tasks.sleep", &json!([8]))).await;
    worker.wait_until_running(&id);
    proxy.down();
    worker.wait_for("the task runs on without the connection; its message will be delivered again", |_| true);
    let (status, reason) = worker.get("/readyz");
    assert_eq!(status, 503, "{reason}");
    proxy.up();
    worker.wait_for("not acknowledged: the broker will deliver the message again", |_| true);
    assert_eq!(stored(&id).unwrap().0["status"], "SUCCESS");
    worker.wait_for("done already, before the connection was lost", |entry| entry["id"] == id.as_str());
    assert_eq!(worker.metric("soloist_task_started_total{task=\"tasks.sleep\"}"), Some(1.0));
    broker.wait_for_counts(&queue, 0, 0).await;
    let after = Celery::with_redis(&queue).call_one(Call::new("tasks.add", json!([1, 2])));
    assert_eq!(after["value"], json!(3));
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ and Redis: AMQP_URL, MANAGEMENT_URL, REDIS_URL"]
async fn a_task_that_outlives_its_connection_is_remembered_also_if_another_message_was_waiting() {
    let (red, blue, id) = (unique("red"), unique("blue"), unique("id"));
    let broker = Broker::connect().await;
    let (proxy, through) = Proxy::of_broker(&env("AMQP_URL"), true);
    let worker = worker(&format!("{red},{blue}")).env("SOLOIST_BROKER", &through).ready();
    broker.publish(&red, Message::call(&id, "tasks.sleep", &json!([1.5]))).await;
    broker.publish(&blue, Message::call(&unique("id"), "tasks.add", &json!([1, 2]))).await;
    worker.wait_for("task received", |entry| entry["id"] == id.as_str());
    // Before the task is known to be long: then it would go back at once.
    proxy.down();
    worker.wait_for("not acknowledged: the broker will deliver the message again", |_| true);
    proxy.up();
    worker.wait_for("done already, before the connection was lost", |entry| entry["id"] == id.as_str());
    assert_eq!(worker.metric("soloist_task_started_total{task=\"tasks.sleep\"}"), Some(1.0));
    for queue in [red, blue] {
        broker.wait_for_counts(&queue, 0, 0).await;
        broker.remove(&queue);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ and Redis: AMQP_URL, MANAGEMENT_URL, REDIS_URL"]
async fn a_connection_that_is_lost_now_and_then_is_soon_replaced_each_time() {
    let queue = unique("often");
    let broker = Broker::connect().await;
    let (proxy, through) = Proxy::of_broker(&env("AMQP_URL"), true);
    let worker = worker(&queue).env("SOLOIST_BROKER", &through).ready();
    let logged = |message: &str| worker.log().into_iter().filter(|entry| entry["message"] == message).count();
    for losses in 1..=5 {
        proxy.down();
        proxy.up();
        eventually("it is ready again", || (logged("ready") == 1 + losses).then_some(()));
    }
    let last = worker.log().into_iter().rfind(|entry| entry["message"] == "no connection to the broker");
    let wait = last.unwrap()["retry_in"].as_str().unwrap().to_owned();
    let milliseconds: f64 = wait.strip_suffix("ms").expect(&wait).parse().unwrap();
    assert!(milliseconds <= 200.0, "{wait}");
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ and Redis: AMQP_URL, MANAGEMENT_URL, REDIS_URL"]
async fn what_comes_after_a_consumer_should_have_ended_is_given_back() {
    let queue = unique("late");
    let broker = Broker::connect().await;
    let (proxy, through) = Proxy::of_broker(&env("AMQP_URL"), true);
    let mut worker = worker(&queue).env("SOLOIST_BROKER", &through).ready();
    let early = unique("id");
    broker.publish(&queue, Message::call(&early, "tasks.early", &json!([120]))).await;
    worker.wait_until_running(&early);
    broker.wait_for_counts(&queue, 0, 0).await;
    proxy.silence(true);
    broker.publish(&queue, Message::call(&unique("id"), "tasks.add", &json!([1, 2]))).await;
    worker.signal("TERM");
    within(Duration::from_secs(20), "the worker has waited for its consumer's end", || {
        let is_late = |entry: &Value| entry["message"] == "can't stop consuming in good order";
        worker.log().iter().any(is_late).then_some(())
    });
    proxy.silence(false);
    broker.wait_for_counts(&queue, 1, 0).await;
    assert!(worker.is_running());
    drop(worker);
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ and Redis: AMQP_URL, MANAGEMENT_URL, REDIS_URL"]
async fn what_waits_for_redis_before_it_begins_does_not_begin_once_its_connection_is_lost() {
    let (queue, id) = (unique("undecided"), unique("id"));
    let broker = Broker::connect().await;
    broker.declare(&queue).await;
    broker.publish(&queue, Message::call(&id, "tasks.add", &json!([1, 2]))).await;
    broker.give_back(&queue).await;
    let (proxy, through) = Proxy::of_broker(&env("AMQP_URL"), true);
    let (redis, results) = redis_proxy(false);
    let worker = worker(&queue).env("SOLOIST_BROKER", &through).env("SOLOIST_RESULTS", &results).spawn();
    worker.wait_for("can't store the result", |entry| entry["id"] == "connect");
    proxy.down();
    worker.wait_for("the task runs on without the connection; its message will be delivered again", |_| true);
    redis.up();
    proxy.up();
    worker.wait_for("task succeeded", |entry| entry["id"] == id.as_str());
    broker.wait_for_counts(&queue, 0, 0).await;
    let is_of_the_lost = |entry: &Value| entry["message"] == "done already, before the connection was lost";
    assert!(!worker.log().iter().any(is_of_the_lost));
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ and Redis: AMQP_URL, MANAGEMENT_URL, REDIS_URL"]
async fn a_task_whose_start_cannot_be_stored_runs_to_its_end_which_is_all_that_is_stored() {
    let (queue, id) = (unique("untold"), unique("id"));
    let broker = Broker::connect().await;
    let (redis, results) = redis_proxy(false);
    let worker = worker(&queue).env("SOLOIST_RESULTS", &results).env("SOLOIST_TRACK_STARTED", "true").spawn();
    broker.declare(&queue).await;
    broker.publish(&queue, Message::call(&id, "tasks.sleep", &json!([0.5]))).await;
    for message in ["can't store that the task was started", "can't store the result"] {
        worker.wait_for(message, |entry| entry["id"] == id.as_str());
    }
    redis.up();
    let (first, _) = eventually("the end is stored", || stored(&id));
    broker.wait_for_counts(&queue, 0, 0).await;
    let (last, _) = stored(&id).unwrap();
    assert_eq!((&first["status"], &last["status"]), (&json!("SUCCESS"), &json!("SUCCESS")));
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ and Redis: AMQP_URL, MANAGEMENT_URL, REDIS_URL"]
async fn a_task_is_watched_over_while_the_broker_answers_nothing() {
    let (queue, id) = (unique("silent"), unique("id"));
    let broker = Broker::connect().await;
    let (proxy, through) = Proxy::of_broker(&env("AMQP_URL"), true);
    let mut worker = worker(&queue).env("SOLOIST_BROKER", &through).ready();
    let call = Message::call(&id, "tasks.sleep", &json!([60])).header("timelimit", json!([4, null]));
    broker.publish(&queue, call).await;
    worker.wait_until_running(&id);
    proxy.silence(true);
    worker.signal("TERM");
    // Both are due while the worker waits to hear that its consumer has ended.
    let moment = Duration::from_secs(4);
    within(moment, "others are told that the task runs here", || runs_somewhere(&id).then_some(()));
    within(moment, "its time limit is enforced", || stored(&id));
    proxy.silence(false);
    assert_eq!(worker.wait().code(), Some(0));
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ and Redis: AMQP_URL, MANAGEMENT_URL, REDIS_URL"]
async fn a_task_whose_sequel_cannot_be_sent_yet_is_not_run_by_another_worker() {
    let (queue, id) = (unique("sequel"), unique("id"));
    let broker = Broker::connect().await;
    let (proxy, through) = Proxy::of_broker(&env("AMQP_URL"), true);
    let worker = worker(&queue).env("SOLOIST_BROKER", &through).ready();
    let mut call = Message::call(&id, "tasks.sleep", &json!([1]));
    let next =
        json!({"task": "tasks.add", "args": [1, 2], "immutable": true, "options": {"task_id": unique("id")}});
    call.body = json!([[1], {}, {"chain": [next]}]).to_string().into_bytes();
    broker.publish(&queue, call).await;
    worker.wait_until_running(&id);
    proxy.down();
    worker.wait_for("can't send the task that follows", |_| true);
    eventually("others are told that the worker is not done with it", || runs_somewhere(&id).then_some(()));
    proxy.up();
    worker.wait_for("task succeeded", |entry| entry["task"] == "tasks.add");
    assert_eq!(worker.metric("soloist_task_started_total{task=\"tasks.sleep\"}"), Some(1.0));
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn what_waits_for_redis_before_it_begins_is_given_back_by_a_worker_that_stops() {
    let (queue, id) = (unique("undecided"), unique("id"));
    let broker = Broker::connect().await;
    broker.declare(&queue).await;
    broker.publish(&queue, Message::call(&id, "tasks.add", &json!([1, 2]))).await;
    broker.give_back(&queue).await;
    let mut worker = worker(&queue).env("SOLOIST_RESULTS", "redis://127.0.0.1:1/0").spawn();
    worker.wait_for("can't store the result", |entry| entry["id"] == "connect");
    worker.signal("TERM");
    assert_eq!(worker.wait().code(), Some(0));
    broker.wait_for_counts(&queue, 1, 0).await;
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_result_that_can_never_be_stored_is_logged_and_holds_up_nothing() {
    let queue = unique("occupied");
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let id = unique("id");
    occupy(&format!("celery-task-meta-{id}"));
    broker.publish(&queue, Message::call(&id, "tasks.add", &json!([1, 2]))).await;
    let entry = worker.wait_for("the result can't be stored, and is lost", |_| true);
    assert_eq!(entry["id"], id.as_str());
    assert!(entry["problem"].as_str().unwrap().contains("WRONGTYPE"), "{entry}");
    worker.wait_for("task succeeded", |entry| entry["id"] == id.as_str());
    broker.wait_for_counts(&queue, 0, 0).await;
    let after = Celery::with_redis(&queue).call_one(Call::new("tasks.add", json!([1, 2])));
    assert_eq!(after["value"], json!(3));
    assert_eq!(worker.metric("soloist_worker_result_store_retries_total"), Some(0.0));
    broker.remove(&queue);
}

/// RabbitMQ's consumer timeout looks the same to a worker.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_task_that_outlives_its_connection_is_not_run_by_another_worker_either() {
    let queue = unique("elsewhere");
    let broker = Broker::connect().await;
    let (proxy, through) = Proxy::of_broker(&env("AMQP_URL"), true);
    let first = worker(&queue).env("SOLOIST_BROKER", &through).ready();
    let id = unique("id");
    broker.publish(&queue, Message::call(&id, "tasks.sleep", &json!([7]))).await;
    first.wait_until_running(&id);
    let second = worker(&queue).ready();
    // Others are told of a run after two seconds.
    std::thread::sleep(Duration::from_secs(3));
    proxy.down();
    second.wait_for("to be run later: it waits in the broker", |entry| entry["id"] == id.as_str());
    proxy.up();
    first.wait_for("task succeeded", |entry| entry["id"] == id.as_str());
    within(Duration::from_secs(30), "the message is acknowledged", || {
        let is_recognized = |message: &str| message.starts_with("done already");
        let log = [first.log(), second.log()].concat();
        log.iter().any(|entry| entry["message"].as_str().is_some_and(is_recognized)).then_some(())
    });
    assert_eq!(second.metric("soloist_task_started_total{task=\"tasks.sleep\"}"), Some(0.0));
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ and Redis: AMQP_URL, MANAGEMENT_URL, REDIS_URL"]
async fn a_task_that_runs_elsewhere_is_waited_for_where_no_delay_queues_may_be_declared() {
    let (vhost, queue, id) = (Vhost::create().await, unique("undelayed"), unique("id"));
    let broker = Broker::at(&vhost.amqp_url()).await;
    vhost.permit_configuring("^(?!celery_delayed).*$");
    let (proxy, through) = Proxy::of_broker(&vhost.amqp_url(), true);
    let first = worker(&queue).env("SOLOIST_BROKER", &through).ready();
    broker.publish(&queue, Message::call(&id, "tasks.sleep", &json!([7]))).await;
    first.wait_until_running(&id);
    let second = worker(&queue).env("SOLOIST_BROKER", &vhost.amqp_url()).ready();
    // Others are told of a run after two seconds.
    std::thread::sleep(Duration::from_secs(3));
    proxy.down();
    second.wait_for("no delay queues for a task that is to be run later", |entry| entry["id"] == id.as_str());
    second.wait_for("done already, by another worker", |entry| entry["id"] == id.as_str());
    assert_eq!(stored(&id).unwrap().0["status"], "SUCCESS");
    assert_eq!(second.metric("soloist_task_started_total{task=\"tasks.sleep\"}"), Some(0.0));
    broker.wait_for_counts(&queue, 0, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_broker_that_is_away_is_waited_for() {
    let queue = unique("away");
    let broker = Broker::connect().await;
    let (proxy, through) = Proxy::of_broker(&env("AMQP_URL"), false);
    let mut worker = worker(&queue).env("SOLOIST_BROKER", &through).spawn();
    worker.wait_for("no connection to the broker", |_| true);
    let (status, reason) = worker.get("/readyz");
    assert!(status == 503 && reason.contains("connect to amqp://"), "{status} {reason}");
    assert_eq!(worker.get("/livez").0, 200);

    proxy.up();
    worker.wait_for("ready", |_| true);
    proxy.down();
    worker.wait_for("not ready", |_| true);
    let id = unique("id");
    broker.publish(&queue, Message::call(&id, "tasks.add", &json!([1, 2]))).await;
    proxy.up();
    eventually("the task is run", || stored(&id));
    eventually("it is ready again", || (worker.get("/readyz").0 == 200).then_some(()));
    let ping = [("ping", json!({}))];
    eventually("it answers", || control(&worker.node, &ping).remove(0).0.get("ok").cloned());
    worker.signal("TERM");
    assert_eq!(worker.wait().code(), Some(0));
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_result_that_cannot_be_stored_keeps_its_message_unacknowledged() {
    let queue = unique("store");
    let broker = Broker::connect().await;
    let (proxy, results) = redis_proxy(true);
    let worker = worker(&queue).env("SOLOIST_RESULTS", &results).ready();
    let id = unique("id");
    broker.publish(&queue, Message::call(&id, "tasks.sleep", &json!([1]))).await;
    worker.wait_until_running(&id);
    proxy.down();
    worker.wait_for("can't store the result", |_| true);
    let (status, reason) = worker.get("/readyz");
    assert!(status == 503 && reason.contains("redis"), "{status} {reason}");
    broker.wait_for_counts(&queue, 0, 1).await;
    proxy.up();
    eventually("the result is stored", || stored(&id));
    broker.wait_for_counts(&queue, 0, 0).await;
    assert_eq!(worker.get("/readyz").0, 200);
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_missing_queue_is_waited_for_if_it_must_not_be_made() {
    let queue = unique("missing");
    let broker = Broker::connect().await;
    let worker = worker(&queue).env("SOLOIST_CREATE_MISSING_QUEUES", "false").spawn();
    worker.wait_for("not consuming", |_| true);
    let (status, reason) = worker.get("/readyz");
    assert_eq!((status, reason), (503, format!("queue `{queue}` does not exist")));
    broker.declare(&queue).await;
    worker.wait_for("ready", |_| true);

    // Deleted while it is consumed from, as by an administrator.
    broker.remove(&queue);
    worker.wait_for("not ready", |_| true);
    broker.declare(&queue).await;
    eventually("it is ready again", || (worker.get("/readyz").0 == 200).then_some(()));
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_busy_worker_keeps_its_connection() {
    let queue = unique("busy");
    let broker = Broker::connect().await;
    // Five seconds: the broker gives up a connection that is silent for about twice that.
    let address = format!("{}?heartbeat=5", env("AMQP_URL"));
    let worker = worker(&queue).env("SOLOIST_BROKER", &address).ready();
    let id = unique("id");
    broker.publish(&queue, Message::call(&id, "tasks.sleep", &json!([16]))).await;
    within(Duration::from_secs(60), "the result is stored", || stored(&id));
    broker.wait_for_counts(&queue, 0, 0).await;
    assert_eq!(worker.metric("soloist_worker_broker_connects_total"), Some(1.0));
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ and Redis: AMQP_URL, MANAGEMENT_URL, REDIS_URL"]
async fn a_chord_whose_claim_expired_while_redis_was_away_is_claimed_again() {
    let (queue, group, body_id) = (unique("claim"), unique("group"), unique("body"));
    let broker = Broker::connect().await;
    let (proxy, results) = redis_proxy(true);
    let worker = worker(&queue).env("SOLOIST_RESULTS", &results).ready();
    let body = json!({
        "task": "tasks.add", "args": [1, 2], "kwargs": {}, "immutable": true, "chord_size": 1, "options": {"task_id": body_id, "queue": queue},
    });
    let mut message = Message::call(&format!("{group}-0"), "tasks.add", &json!([1, 2]))
        .header("group", json!(group))
        .header("group_index", json!(0));
    message.body = json!([[1, 2], {}, {"chord": body}]).to_string().into_bytes();
    proxy.silence_at("ZRANGE");
    broker.publish(&queue, message).await;
    eventually("the chord is claimed", || proxy.is_silent().then_some(()));
    let mut direct = redis::Client::open(env("REDIS_URL")).unwrap().get_connection().unwrap();
    redis::cmd("DEL").arg(format!("celery-taskset-meta-{group}.c")).exec(&mut direct).unwrap();
    proxy.silence(false);
    worker.wait_for("the claim of a chord has expired", |_| true);
    let (meta, _) = eventually("the body is called", || stored(&body_id));
    assert_eq!(meta["result"], json!(3));
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}

/// A proxy for Redis, that is up or not, and the URL of Redis behind it.
fn redis_proxy(up: bool) -> (Proxy, String) {
    let redis = env("REDIS_URL");
    let (target, database) =
        redis.strip_prefix("redis://").unwrap().split_once('/').unwrap_or((&redis[8..], "0"));
    let proxy = Proxy::start(target.to_owned(), up);
    let url = format!("redis://{}/{database}", proxy.address);
    (proxy, url)
}
