//! Celery's remote control talks to the worker.

use std::{
    collections::{BTreeSet, HashMap},
    mem::discriminant,
};

use serde_json::{Value, json};

use crate::support::{
    Broker, Call, Celery, Message, PythonWorker, celery, control, eventually, inspect, stored, unique, worker,
};

/// Celery's `inspect` commands that need no arguments.
const INSPECTIONS: [&str; 11] = [
    "ping",
    "stats",
    "active",
    "reserved",
    "scheduled",
    "registered",
    "active_queues",
    "revoked",
    "conf",
    "report",
    "clock",
];

/// What a worker that works is to answer within, seen from a Celery client.
const AT_ONCE: f64 = 0.05;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_busy_worker_answers_every_inspection_at_once() {
    let queue = unique("inspect");
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let id = unique("id");
    // Takes minutes.
    broker.publish(&queue, Message::call(&id, "tasks.fib", &json!([50]))).await;
    worker.wait_until_running(&id);
    let median_of_a_round = || {
        let replies = control(&worker.node, &INSPECTIONS.map(|method| (method, json!({}))));
        for (method, (reply, seconds)) in INSPECTIONS.iter().zip(&replies) {
            assert!(!reply.is_null() && reply.get("error").is_none(), "{method}: {reply}");
            assert!(*seconds < 2.0, "{method} took {seconds} s");
        }
        let reply = |method: &str| &replies[INSPECTIONS.iter().position(|known| *known == method).unwrap()].0;
        assert_eq!((&reply("active")[0]["id"], &reply("active")[0]["args"]), (&json!(id), &json!([50])));
        assert_eq!(reply("active_queues")[0]["name"], json!(queue));
        assert_eq!(reply("stats")["total"], json!({"tasks.fib": 1}));
        assert_eq!(reply("stats")["pid"], json!(worker.pid()));
        assert!(reply("registered").as_array().unwrap().contains(&json!("tasks.add")));
        let mut latencies: Vec<_> = replies.iter().map(|(_, seconds)| *seconds).collect();
        latencies.sort_by(f64::total_cmp);
        latencies[latencies.len() / 2]
    };
    // On a busy machine some replies, or whole rounds, may be late through no fault of the worker.
    let mut medians = Vec::new();
    while medians.len() < 5 && medians.iter().all(|median| *median > AT_ONCE) {
        medians.push(median_of_a_round());
    }
    println!("medians of {} replies each while busy, in seconds: {medians:?}", INSPECTIONS.len());
    assert!(medians.last().is_some_and(|median| *median <= AT_ONCE), "{medians:?}");
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_busy_workers_answers_on_the_command_line_have_the_shape_of_celerys() {
    let queue = unique("shapes");
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let python = PythonWorker::start();
    let (ours, theirs, running) = (unique("id"), unique("id"), unique("id"));
    let delayed = |task: &str, queue: &str, id: &str| {
        let options =
            json!({"queue": queue, "task_id": id, "countdown": 600, "shadow": "shown", "priority": 3});
        Call::new(task, json!([1])).kwargs(json!({"y": 2})).options(options).not_waited_for()
    };
    let endless = Call::new("tasks.fib", json!([50])).options(json!({"task_id": running})).not_waited_for();
    Celery::with_redis(&queue).call([
        delayed("tasks.add", &queue, &ours),
        delayed("py.add", &python.queue, &theirs),
        endless,
    ]);
    worker.wait_for("to be run later: it waits in the broker", |entry| entry["id"] == ours);
    worker.wait_until_running(&running);
    let ask = |node: &str, id: &str| {
        let mut commands: Vec<_> = INSPECTIONS.map(|command| vec![command]).into();
        commands.push(vec!["query_task", id]);
        let answers = inspect(node, &commands);
        commands.iter().map(|command| command[0].to_owned()).zip(answers).collect::<HashMap<_, _>>()
    };
    let (mine, celerys) = (ask(&worker.node, &ours), ask(&python.node, &theirs));
    for (command, (mine, seconds)) in &mine {
        assert!(*seconds < 2.0, "{command} took {seconds} s");
        let celerys = match command.as_str() {
            // Celery's worker doesn't answer while it works: that a task is shown there as in its schedule is known.
            "active" => &json!([celerys["scheduled"].0[0]["request"]]),
            command => &celerys[command].0,
        };
        match command.as_str() {
            "conf" => assert!(mine.is_object() && celerys.is_object()),
            "query_task" => has_shape(command, &mine[&ours], &celerys[&theirs]),
            _ => has_shape(command, mine, celerys),
        }
    }
    broker.remove(&queue);
    broker.remove(&python.queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn celerys_command_line_finds_the_worker() {
    let queue = unique("cli");
    let broker = Broker::connect().await;
    let mut worker = worker(&queue).ready();
    let status = eventually("the worker is online", || {
        let status = celery(&["status"]);
        status.contains(&worker.node).then_some(status)
    });
    assert!(status.contains(&format!("{}: OK", worker.node)), "{status}");
    let registered = celery(&["inspect", "registered", "-d", &worker.node]);
    assert!(registered.contains("* tasks.multiply"), "{registered}");
    let revoked = celery(&["control", "-d", &worker.node, "revoke", "some-id"]);
    assert!(revoked.contains("tasks {'some-id'} flagged as revoked"), "{revoked}");
    celery(&["control", "-d", &worker.node, "shutdown"]);
    assert_eq!(worker.wait().code(), Some(0));
    broker.remove(&queue);
}

/// Checks that a value has the keys that Celery's has, and the same kinds of values where neither is null, at every depth.
#[track_caller]
fn has_shape(place: &str, ours: &Value, celerys: &Value) {
    match (ours, celerys) {
        // Counts by the names of tasks, and the arguments of a call.
        (Value::Object(_), Value::Object(_)) if place == "stats.total" || place.ends_with(".kwargs") => {}
        (Value::Object(fields), Value::Object(celerys)) => {
            let keys = |fields: &serde_json::Map<_, _>| fields.keys().cloned().collect::<BTreeSet<String>>();
            assert_eq!(keys(fields), keys(celerys), "{place}");
            for (key, value) in fields {
                has_shape(&format!("{place}.{key}"), value, &celerys[key]);
            }
        }
        (Value::Array(items), Value::Array(celerys)) => {
            assert_eq!(items.is_empty(), celerys.is_empty(), "{place}");
            for (item, celerys) in items.iter().zip(celerys) {
                has_shape(&format!("{place}[]"), item, celerys);
            }
        }
        (Value::Null, _) | (_, Value::Null) => {}
        _ => assert_eq!(discriminant(ours), discriminant(celerys), "{place}: {ours} {celerys}"),
    }
}

/// The pool of one process is the only difference: Celery's own solo worker can't resize it either, and says so less clearly.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn each_order_is_answered_as_celerys_solo_worker_answers_it() {
    let (queue, added) = (unique("orders"), unique("added"));
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let python = PythonWorker::start();
    let orders = |task: &str| {
        let limit = |task: &str, rate: Value| ("rate_limit", json!({"task_name": task, "rate_limit": rate}));
        let times = |task: &str| ("time_limit", json!({"task_name": task, "soft": 30, "hard": 60.5}));
        [
            // Ours are on from the beginning.
            ("enable_events", json!({})),
            ("enable_events", json!({})),
            ("disable_events", json!({})),
            ("disable_events", json!({})),
            ("add_consumer", json!({"queue": added})),
            ("cancel_consumer", json!({"queue": added})),
            ("revoke", json!({"task_id": "a"})),
            ("revoke", json!({"task_id": ["a"]})),
            ("revoke", json!({"task_id": ["a"], "terminate": true, "signal": "KILL"})),
            ("terminate", json!({"task_id": ["a"], "signal": "TERM"})),
            ("revoke_by_stamped_headers", json!({"headers": ["tenant=a"]})),
            ("revoke_by_stamped_headers", json!({"headers": {"tenant": ["a"]}})),
            limit(task, json!("10/m")),
            limit(task, json!("0")),
            limit(task, json!(0)),
            limit("nobody.knows", json!("10/m")),
            times(task),
            times("nobody.knows"),
            ("heartbeat", json!({})),
            ("query_task", json!({"ids": ["a"]})),
            ("pool_restart", json!({})),
            ("autoscale", json!({"max": 3, "min": 1})),
            ("make_coffee", json!({})),
            ("ping", json!({})),
        ]
    };
    let answers = |node: &str, orders: &[(&str, Value)]| -> Vec<Value> {
        control(node, orders).into_iter().map(|(answer, _)| answer).collect()
    };
    let ours = answers(&worker.node, &orders("tasks.add"));
    let theirs = answers(&python.node, &orders("py.add"));
    for ((order, ours), theirs) in orders("-").iter().zip(&ours).zip(&theirs).skip(1) {
        assert_eq!(ours, theirs, "{order:?}");
    }
    for answer in answers(&worker.node, &["pool_grow", "pool_shrink"].map(|order| (order, json!({"n": 1})))) {
        assert_eq!(answer["error"], "solo pool cannot be resized; scale replicas instead");
    }
    for queue in [queue, added] {
        broker.remove(&queue);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn consumers_are_added_and_cancelled_on_the_broker() {
    let (first, second) = (unique("first"), unique("second"));
    let broker = Broker::connect().await;
    let worker = worker(&first).ready();
    let consumers = |queue: &str, wanted: u64| {
        eventually(&format!("{queue} has {wanted} consumers"), || {
            (broker.queue(queue)["consumers"].as_u64().unwrap_or(0) == wanted).then_some(())
        });
    };
    consumers(&first, 1);
    control(&worker.node, &[("add_consumer", json!({"queue": second}))]);
    consumers(&second, 1);
    broker.publish(&second, Message::call("added", "tasks.add", &json!([1, 2]))).await;
    worker.wait_for("task succeeded", |entry| entry["id"] == "added");
    control(&worker.node, &[("cancel_consumer", json!({"queue": first}))]);
    consumers(&first, 0);
    assert_eq!(worker.get("/readyz").0, 200);
    let queues = control(&worker.node, &[("active_queues", json!({}))]).remove(0).0;
    assert_eq!((queues.as_array().unwrap().len(), &queues[0]["name"]), (1, &json!(second)));
    for queue in [first, second] {
        broker.remove(&queue);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_revoked_call_is_not_run() {
    let queue = unique("revoke");
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let (running, waiting, held) = (unique("id"), unique("id"), unique("id"));
    broker.publish(&queue, Message::call(&running, "tasks.sleep", &json!([2]))).await;
    broker.publish(&queue, Message::call(&waiting, "tasks.add", &json!([1, 2]))).await;
    let eta = json!("2100-01-01T00:00:00+00:00");
    broker.publish(&queue, Message::call(&held, "tasks.add", &json!([1, 2])).header("eta", eta)).await;
    worker.wait_until_running(&running);
    control(&worker.node, &[("revoke", json!({"task_id": waiting}))]);
    let (meta, _) = eventually("the revocation is stored", || stored(&waiting));
    assert_eq!((&meta["status"], &meta["result"]["exc_message"]), (&json!("REVOKED"), &json!(["revoked"])));

    // One that waits for its time already is told at once.
    let scheduled = eventually("it is scheduled", || {
        let scheduled = control(&worker.node, &[("scheduled", json!({}))]).remove(0).0;
        scheduled.get(0).cloned()
    });
    assert_eq!(scheduled["request"]["id"], json!(held));
    control(&worker.node, &[("revoke", json!({"task_id": [held]}))]);
    eventually("the revocation is stored", || stored(&held));
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn workers_greet_each_other_and_share_what_is_revoked() {
    let (first_queue, second_queue) = (unique("first"), unique("second"));
    let broker = Broker::connect().await;
    let first = worker(&first_queue).ready();
    let id = unique("id");
    control(&first.node, &[("revoke", json!({"task_id": id}))]);
    let second = worker(&second_queue).ready();
    let met = second.wait_for("met the neighbours", |_| true);
    assert!(met["names"].as_str().unwrap().contains(&first.node), "{met}");
    let revoked = control(&second.node, &[("revoked", json!({}))]).remove(0).0;
    assert!(revoked.as_array().unwrap().contains(&Value::String(id)), "{revoked}");
    for queue in [first_queue, second_queue] {
        broker.remove(&queue);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn of_two_workers_with_one_name_the_second_waits_for_it() {
    let queue = unique("twins");
    let broker = Broker::connect().await;
    let node = format!("celery@{}", unique("twin"));
    let mut first = worker(&queue).node(&node).ready();
    eventually("the first has its mailbox", || {
        let answered = control(&node, &[("ping", json!({}))]).remove(0).0;
        (!answered.is_null()).then_some(())
    });
    let second = worker(&queue).node(&node).ready();
    second.wait_for("remote control is interrupted", |entry| {
        entry["problem"].as_str().unwrap().contains("RESOURCE_LOCKED")
    });
    first.signal("TERM");
    assert_eq!(first.wait().code(), Some(0));
    eventually("the second answers", || {
        let pid = &control(&node, &[("stats", json!({}))]).remove(0).0["pid"];
        (*pid == json!(second.pid())).then_some(())
    });
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_celery_worker_of_the_same_name_is_waited_for() {
    let queue = unique("twins");
    let broker = Broker::connect().await;
    let python = PythonWorker::start();
    let node = python.node.clone();
    let worker = worker(&queue).node(&node).ready();
    worker.wait_for("remote control is interrupted", |entry| {
        entry["problem"].as_str().unwrap().contains("RESOURCE_LOCKED")
    });
    let registered = || control(&node, &[("registered", json!({}))]).remove(0).0.to_string();
    assert!(registered().contains("py.add"));
    broker.remove(&python.queue);
    drop(python);
    eventually("ours answers", || registered().contains("tasks.add").then_some(()));
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_worker_without_queues_is_drained_when_its_task_is_done_and_a_restart_does_not_change_that() {
    let queue = unique("drained");
    let broker = Broker::connect().await;
    let directory = std::env::temp_dir().join(&queue);
    std::fs::create_dir(&directory).unwrap();
    let started =
        || worker(&queue).env("SOLOIST_STATE_DIR", directory.to_str().unwrap()).env("SOLOIST_LOG", "debug");
    let first = started().ready();
    let (running, waiting) = (unique("id"), unique("id"));
    broker.publish(&queue, Message::call(&running, "tasks.sleep", &json!([8]))).await;
    first.wait_until_running(&running);
    let ask = |node: &str, command: &[(&str, Value)]| -> Vec<Value> {
        control(node, command).into_iter().map(|(reply, _)| reply).collect()
    };
    let questions = ["active_queues", "active", "reserved", "scheduled"].map(|method| (method, json!({})));
    ask(&first.node, &[("cancel_consumer", json!({"queue": queue}))]);
    broker.publish(&queue, Message::call(&waiting, "tasks.add", &json!([1, 2]))).await;
    let consuming = |node: &str, wanted: usize| {
        eventually("the worker consumes or not", || {
            let answers = ask(node, &questions);
            (answers[0].as_array().unwrap().len() == wanted).then_some(answers)
        })
    };
    assert_eq!(consuming(&first.node, 0)[1][0]["id"], json!(running), "the task goes on");
    eventually("its task is done", || (ask(&first.node, &questions) == vec![json!([]); 4]).then_some(()));
    assert!(stored(&running).is_some(), "its result was stored before");
    assert_eq!(first.get("/readyz").0, 503);
    broker.wait_for_counts(&queue, 1, 0).await;
    drop(first);

    let second = started().spawn();
    second.wait_for("listening to remote control", |_| true);
    assert_eq!(consuming(&second.node, 0).len(), 4);
    broker.wait_for_counts(&queue, 1, 0).await;
    ask(&second.node, &[("add_consumer", json!({"queue": queue}))]);
    second.wait_for("task succeeded", |entry| entry["id"] == waiting);
    assert_eq!(second.get("/readyz").0, 200);
    std::fs::remove_dir_all(&directory).unwrap();
    broker.remove(&queue);
}
