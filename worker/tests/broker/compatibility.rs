//! Forms that messages may have, and ways that they may come.

use std::time::Duration;

use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};

use crate::support::{
    Broker, Call, Celery, Message, PythonWorker, Vhost, client, control, env, eventually, example, routes,
    stored, unique, values_that_change, worker,
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
        "lang",
    ];
    let queue = unique("headers");
    let broker = Broker::connect().await;
    let _worker = worker(&queue).ready();
    let add = || Call::new("tasks.add", json!([1, 2]));
    let all_null: Value = OPTIONAL.iter().map(|name| ((*name).to_owned(), Value::Null)).collect();
    let all_present = json!({
        "shadow": "shown", "eta": "2020-01-01T00:00:00+00:00", "expires": 3600, "group_id": "g",
        "group_index": 3, "retries": 1, "time_limit": 60, "soft_time_limit": 50.5, "root_id": "root", "parent_id": "parent",
        "argsrepr": "(one, two)", "kwargsrepr": "{}", "ignore_result": false, "replaced_task_nesting": 1,
        "stamped_headers": ["tenant"], "tenant": ["a", 1], "compression": "zlib", "headers": {"own": {"a": [1, null]}},
    });
    let mut calls = vec![
        add().headers_left_out(&OPTIONAL),
        add().headers_set(all_null),
        add().headers_set(json!({"compression": null})),
        add().options(all_present),
    ];
    for name in OPTIONAL {
        calls.push(add().headers_left_out(&[name]));
        calls.push(add().headers_set(json!({name: null})));
    }
    for (number, outcome) in Celery::with_redis(&queue).call(calls).into_iter().enumerate() {
        assert_eq!(outcome["value"], 3, "call {number}: {outcome}");
    }
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn messages_of_protocol_1_are_run() {
    let queue = unique("old");
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let old = |calls: Vec<Call>| Celery::with_redis(&queue).settings(json!({"task_protocol": 1})).call(calls);
    let (both, linked) = (unique("id"), unique("linked"));
    let link = json!({
        "task": "tasks.add", "args": [10], "kwargs": {}, "options": {"queue": queue, "task_id": linked},
        "subtask_type": null, "immutable": false,
    });
    let outcomes = old(vec![
        Call::new("tasks.add", json!([1])).kwargs(json!({"y": 2})),
        Call::new("tasks.add", json!([1, 2])).options(json!({"countdown": 1, "expires": 60, "link": link})),
        // Both protocols: the name and the id are in the headers too.
        Call::new("tasks.add", json!([1, 2]))
            .options(json!({"task_id": both, "headers": {"task": "tasks.add", "id": both}})),
        Call::new("tasks.sleep", json!([60])).options(json!({"time_limit": 0.5})),
        Call::new("tasks.flaky", json!([1, 0])),
        Call::new("tasks.nope", json!([])),
        Call::sent(&linked),
    ]);
    let values: Vec<_> = outcomes.iter().map(|outcome| &outcome["value"]).collect();
    assert_eq!(values[..3], [&json!(3), &json!(3), &json!(3)], "{outcomes:#?}");
    assert_eq!(
        (&outcomes[3]["error"], values[4]),
        (&json!("TimeLimitExceeded"), &json!({})),
        "{outcomes:#?}"
    );
    assert_eq!((&outcomes[5]["error"], values[6]), (&json!("NotRegistered"), &json!(13)), "{outcomes:#?}");
    // The fewest of fields, as Celery has never sent them.
    let minimal = unique("id");
    let mut message = Message::call(&minimal, "tasks.add", &json!([]));
    message.headers = json!({});
    message.body =
        json!({"task": "tasks.add", "id": minimal, "args": [1, 2], "kwargs": {}}).to_string().into_bytes();
    broker.publish(&queue, message).await;
    worker.wait_for("task succeeded", |entry| entry["id"] == minimal.as_str());
    broker.wait_for_counts(&queue, 0, 0).await;
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
    python.wait_for("mingle: sync with ");
    let revoked = |node: &str, id: &str| {
        let known = control(node, &[("revoked", json!({}))]).remove(0).0;
        known.as_array().is_some_and(|known| known.iter().any(|known| known == id)).then_some(())
    };
    eventually("the Python worker knows what was revoked at ours", || revoked(&python.node, &ours));
    control(&python.node, &[("revoke", json!({"task_id": theirs}))]);
    let second = worker(&queues[1]).ready();
    eventually("ours knows what was revoked at the Python worker", || revoked(&second.node, &theirs));
    for queue in queues.iter().chain([&python.queue]) {
        broker.remove(queue);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn celerys_worker_runs_what_we_send_and_the_least_that_may_be_sent() {
    let broker = Broker::connect().await;
    let python = PythonWorker::start();
    let client = client().await;
    let [least, ours] = [(); 2].map(|()| unique("id"));
    broker.publish(&python.queue, Message::call(&least, "py.add", &json!([1, 2]))).await;
    let call = celery_client::Signature::new("py.add").arg(3).arg(4).queue(&*python.queue).task_id(&*ours);
    let result = client.send(&call).await.unwrap();
    assert_eq!(result.get::<i64>(Duration::from_secs(20)).await.unwrap(), 7);
    for id in [&least, &ours] {
        python.wait_for(&format!("Task py.add[{id}] received"));
        python.wait_for(&format!("Task py.add[{id}] succeeded"));
        assert_eq!(stored(id).unwrap().0["status"], "SUCCESS");
    }
    broker.remove(&python.queue);
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

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn applications_with_tasks_of_like_names_stay_apart() {
    let (stock, bank) = (unique("stock"), unique("bank"));
    let broker = Broker::connect().await;
    let _stock = worker(&stock).ready();
    let _bank = example("positions", &bank).env("POSITIONS", &env("REDIS_URL")).ready();
    let at = |queue: &str| json!({"queue": queue});
    let outcomes = Celery::with_redis(&stock).call([
        Call::new("tasks.add", json!([1, 2])).options(at(&stock)),
        Call::new("positions.add", json!([1, 2.5])).options(at(&bank)),
        Call::new("positions.add", json!([1, 2])).options(at(&stock)),
        Call::new("add", json!([1, 2])).options(at(&stock)),
    ]);
    assert_eq!((&outcomes[0]["value"], &outcomes[1]["value"]), (&json!(3), &json!(3.5)));
    assert_eq!(
        (&outcomes[2]["error"], &outcomes[3]["error"]),
        (&json!("NotRegistered"), &json!("NotRegistered"))
    );
    for queue in [stock, bank] {
        broker.remove(&queue);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn clients_of_two_brokers_in_one_process_do_not_mix() {
    const THREADS: i64 = 4;
    const CALLS: i64 = 25;
    let queue = unique("brokers");
    let (vhost, broker) = (Vhost::create().await, Broker::connect().await);
    let urls = [env("AMQP_URL"), vhost.amqp_url()];
    let workers = urls.each_ref().map(|url| worker(&queue).env("SOLOIST_BROKER", url).ready());
    let client = |url: &str| {
        let settings = celery_client::Celery::builder(url.parse().unwrap()).default_queue(&*queue);
        celery_client::blocking::Celery::connect(settings.results(env("REDIS_URL").parse().unwrap())).unwrap()
    };
    let call = |celery: celery_client::blocking::Celery, task: &'static str| {
        for n in 0..CALLS {
            let result: i64 =
                celery.send_task(task, &(n, 10), &()).unwrap().get(Duration::from_secs(20)).unwrap();
            assert_eq!(result, if task == "tasks.add" { n + 10 } else { n * 10 });
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let clients = urls.each_ref().map(|url| client(url));
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    for (client, task) in clients.iter().zip(["tasks.add", "tasks.multiply"]) {
                        scope.spawn(move || call(client.clone(), task));
                    }
                }
            });
        });
    });
    let done = |index: usize, task: &str| {
        workers[index].metric(&format!("soloist_task_succeeded_total{{task=\"{task}\"}}"))
    };
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let all = Some((THREADS * CALLS) as f64);
    eventually("all are counted", || {
        (done(0, "tasks.add") == all && done(1, "tasks.multiply") == all).then_some(())
    });
    assert_eq!((done(0, "tasks.multiply"), done(1, "tasks.add")), (Some(0.0), Some(0.0)));
    broker.remove(&queue);
}
