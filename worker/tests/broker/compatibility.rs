//! Forms that messages may have, and ways that they may come.

use std::time::Duration;

use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};

use crate::support::{
    Broker, Call, Celery, Message, PythonWorker, control, env, eventually, routes, stored, unique,
    values_that_change, worker,
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn headers_may_be_missing_or_null() {
    const OPTIONAL: [&str; 17] = [
        "shadow",
        "eta",
        "expires",
        "group",
        "group_index",
        "retries",
        "timelimit",
        "root_id",
        "parent_id",
        "argsrepr",
        "kwargsrepr",
        "origin",
        "ignore_result",
        "replaced_task_nesting",
        "stamped_headers",
        "stamps",
        "compression",
    ];
    let queue = unique("headers");
    let broker = Broker::connect().await;
    let _worker = worker(&queue).ready();
    let minimal = unique("id");
    let mut message = Message::call(&minimal, "tasks.add", &json!([1, 2]));
    message.headers.as_object_mut().unwrap().remove("lang");
    broker.publish(&queue, message).await;
    let nulls = unique("id");
    let message = Message::call(&nulls, "tasks.add", &json!([1, 2]));
    broker
        .publish(&queue, OPTIONAL.iter().fold(message, |message, name| message.header(name, Value::Null)))
        .await;
    let mut ids = vec![minimal, nulls];
    for name in OPTIONAL {
        let id = unique("id");
        broker
            .publish(&queue, Message::call(&id, "tasks.add", &json!([1, 2])).header(name, Value::Null))
            .await;
        ids.push(id);
    }
    for id in ids {
        let (meta, _) = eventually("it is run", || stored(&id));
        assert_eq!(meta["result"], 3, "{meta}");
    }
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn messages_of_protocol_1_are_run() {
    let queue = unique("old");
    let broker = Broker::connect().await;
    let _worker = worker(&queue).ready();
    let (old, minimal, hybrid) = (unique("id"), unique("id"), unique("id"));
    let mut message = Message::call(&old, "tasks.add", &json!([]));
    message.headers = json!({});
    message.body = json!({
        "task": "tasks.add", "id": old, "args": [1], "kwargs": {"y": 2}, "retries": 0, "eta": null, "expires": null,
        "utc": true, "callbacks": null, "errbacks": null, "timelimit": [null, null], "taskset": null, "chord": null,
    })
    .to_string()
    .into_bytes();
    broker.publish(&queue, message).await;
    for (id, headers) in [(&minimal, json!({})), (&hybrid, json!({"task": "tasks.add", "id": hybrid}))] {
        let mut message = Message::call(id, "tasks.add", &json!([]));
        message.headers = headers;
        message.body =
            json!({"task": "tasks.add", "id": id, "args": [1, 2], "kwargs": {}}).to_string().into_bytes();
        broker.publish(&queue, message).await;
    }
    for id in [old, minimal, hybrid] {
        let (meta, _) = eventually("it is run", || stored(&id));
        assert_eq!(meta["result"], 3, "{meta}");
    }
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn compressed_bodies_are_read_and_pythons_values_come_back_as_they_went() {
    let queue = unique("values");
    let broker = Broker::connect().await;
    let _worker = worker(&queue).ready();
    let add = |codec: &str| Call::new("tasks.add", json!([1, 2])).options(json!({"compression": codec}));
    for read in Celery::with_redis(&queue).call(["gzip", "bzip2", "xz"].map(add)) {
        assert_eq!(read["value"], 3, "{read}");
    }
    assert_eq!(values_that_change(&queue), Vec::<String>::new());
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn an_eta_is_understood_in_each_of_its_forms() {
    let queue = unique("eta");
    let broker = Broker::connect().await;
    let _worker = worker(&queue).ready();
    let due = Timestamp::now() + Duration::from_secs(2);
    let ahead = due + 2.hours();
    let forms = [
        due.strftime("%Y-%m-%dT%H:%M:%S%.6f").to_string(),
        due.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        due.strftime("%Y-%m-%d %H:%M:%S%.6f+00:00").to_string(),
        ahead.strftime("%Y-%m-%dT%H:%M:%S%.6f+02:00").to_string(),
        ahead.strftime("%Y-%m-%dT%H:%M:%S%.6f+0200").to_string(),
    ];
    let ids: Vec<_> = forms.iter().map(|_| unique("id")).collect();
    for (id, form) in ids.iter().zip(&forms) {
        broker
            .publish(&queue, Message::call(id, "tasks.add", &json!([1, 2])).header("eta", json!(form)))
            .await;
    }
    for (id, form) in ids.iter().zip(&forms) {
        let (meta, _) = eventually("it is run", || stored(id));
        let done: Timestamp = meta["date_done"].as_str().unwrap().parse().unwrap();
        let late = done.duration_since(due).as_secs_f64();
        assert!((0.0..5.0).contains(&late), "{form}: {late} s late");
    }
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn messages_come_by_priority_topic_to_one_worker_or_to_all() {
    let name = unique("routes");
    let broker = Broker::connect().await;
    let node = format!("celery@{name}");
    let direct = format!("{node}.dq2");
    let everybody = |number: usize| format!("{name}-everybody-{number}");
    let hearers = [worker(&format!("{name}-0")).ready(), worker(&format!("{name}-1")).ready()];
    for (number, worker) in hearers.iter().enumerate() {
        let arguments = json!({
            "queue": everybody(number), "exchange": format!("{name}-everybody"), "exchange_type": "fanout",
        });
        eventually("it is told to hear what goes to everybody", || {
            control(&worker.node, &[("add_consumer", arguments.clone())]).remove(0).0.get("ok").cloned()
        });
        eventually("it hears what goes to everybody", || {
            (broker.queue(&everybody(number))["consumers"] == 1).then_some(())
        });
    }
    let ids: [String; 6] = std::array::from_fn(|_| unique("id"));
    routes(&name, &node, &ids);
    let [low, high, middle, topic, to_one, to_all] = &ids;
    for worker in &hearers {
        worker.wait_for("task succeeded", |entry| entry["id"] == to_all.as_str());
    }
    // Its queues were made by Celery's client.
    let one = worker(&format!("{name}-topic,{direct}")).node(&node).ready();
    for id in [topic, to_one] {
        one.wait_for("task succeeded", |entry| entry["id"] == id.as_str());
    }

    let by_priority = worker(&format!("{name}-priority")).ready();
    for id in [low, high, middle] {
        by_priority.wait_for("task succeeded", |entry| entry["id"] == id.as_str());
    }
    let log = by_priority.log();
    let order: Vec<_> =
        log.iter().filter(|entry| entry["message"] == "task received").map(|entry| &entry["id"]).collect();
    assert_eq!(order, [high, middle, low]);
    for queue in ["topic", "0", "1", "priority", "everybody", "everybody-0", "everybody-1"] {
        broker.remove(&format!("{name}-{queue}"));
    }
    broker.remove(&direct);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn workers_in_rust_and_in_python_share_what_is_revoked() {
    let queues = [unique("first"), unique("second")];
    let broker = Broker::connect().await;
    let first = worker(&queues[0]).ready();
    let (ours, theirs) = (unique("id"), unique("id"));
    eventually("it is told", || {
        control(&first.node, &[("revoke", json!({"task_id": ours}))]).remove(0).0.get("ok").cloned()
    });
    let python = PythonWorker::start();
    let revoked = |node: &str, id: &str| {
        let known = control(node, &[("revoked", json!({}))]).remove(0).0;
        known.as_array().is_some_and(|known| known.iter().any(|known| known == id)).then_some(())
    };
    let python_node = format!("{}@python", python.queue);
    eventually("the Python worker knows what was revoked at ours", || revoked(&python_node, &ours));
    control(&python_node, &[("revoke", json!({"task_id": theirs}))]);
    let second = worker(&queues[1]).ready();
    eventually("ours knows what was revoked at the Python worker", || revoked(&second.node, &theirs));
    for queue in queues.iter().chain([&python.queue]) {
        broker.remove(queue);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_worker_says_at_its_start_what_it_is_and_no_password() {
    let queue = unique("banner");
    let broker = Broker::connect().await;
    let worker = worker(&queue).env("SOLOIST_APP", "shop").ready();
    let banner = worker.wait_for("starting", |_| true);
    let said = |key: &str| banner[key].as_str().unwrap_or_default();
    assert_eq!(
        (said("version"), said("app"), said("node")),
        (env!("CARGO_PKG_VERSION"), "shop", worker.node.as_str())
    );
    assert_eq!((said("pool"), said("queues"), &banner["concurrency"]), ("solo", queue.as_str(), &json!(1)));
    assert!(said("tasks").contains("tasks.multiply") && said("results").starts_with("redis://"), "{banner}");
    let address: celery_client::BrokerAddress = env("AMQP_URL").parse().unwrap();
    assert!(said("broker").contains(&address.host), "{banner}");
    assert!(!said("broker").contains(&format!(":{}@", address.password)), "{banner}");
    broker.remove(&queue);
}
