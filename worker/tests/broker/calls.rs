//! Celery clients call tasks and get their results.

use serde_json::json;

use crate::support::{Broker, Call, Celery, Message, env, eventually, stored, unique, worker};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn celery_gets_results_through_redis() {
    let queue = unique("redis");
    let broker = Broker::connect().await;
    let _worker = worker(&queue).ready();
    let outcomes = Celery::with_redis(&queue).call([
        Call::new("tasks.add", json!([1, 2])),
        Call::new("tasks.add", json!([1])).kwargs(json!({"y": 2})),
        Call::new("tasks.multiply", json!([2.5, 2])),
        Call::new("tasks.fib", json!([20])),
    ]);
    let values: Vec<_> = outcomes.iter().map(|outcome| outcome["value"].clone()).collect();
    assert_eq!(values, [json!(3), json!(3), json!(5.0), json!(6765)]);
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn celery_gets_results_over_rpc() {
    let queue = unique("rpc");
    let broker = Broker::connect().await;
    let worker = worker(&queue).env("SOLOIST_RESULTS", "rpc://").ready();
    let outcomes = Celery::with_rpc(&queue)
        .call([Call::new("tasks.add", json!([1, 2])), Call::new("tasks.fail", json!(["boom"]))]);
    assert_eq!(outcomes[0]["value"], json!(3));
    assert_eq!((&outcomes[1]["error"], &outcomes[1]["message"]), (&json!("RuntimeError"), &json!("boom")));
    assert!(worker.refusals().is_empty(), "{:?}", worker.refusals());
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_result_is_stored_as_celery_stores_it() {
    let queue = unique("meta");
    let broker = Broker::connect().await;
    let _worker = worker(&queue).ready();
    let id = Celery::with_redis(&queue).call_one(Call::new("tasks.add", json!([1, 2])))["id"].clone();
    let (mut meta, ttl) = stored(id.as_str().unwrap()).unwrap();
    assert!((86_390..=86_400).contains(&ttl), "{ttl}");
    let date_done = meta["date_done"].take();
    assert!(date_done.as_str().unwrap().ends_with("+00:00"), "{date_done}");
    let expected = json!({"status": "SUCCESS", "result": 3, "traceback": null, "children": [], "date_done": null, "task_id": id});
    assert_eq!(meta, expected);
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn that_a_task_was_started_is_stored_where_that_is_wanted() {
    let queue = unique("started");
    let broker = Broker::connect().await;
    let stores =
        [(env("REDIS_URL"), Celery::with_redis(&queue)), ("rpc://".to_owned(), Celery::with_rpc(&queue))];
    for (store, client) in stores {
        let worker = worker(&queue).env("SOLOIST_RESULTS", &store).env("SOLOIST_TRACK_STARTED", "true");
        let worker = worker.ready();
        let outcome = client.call_one(Call::new("tasks.sleep", json!([1])).watched());
        let started = json!(["STARTED", {"pid": worker.pid(), "hostname": worker.node}]);
        assert!(outcome["seen"].as_array().unwrap().contains(&started), "{store}: {outcome}");
        assert_eq!((&outcome["state"], &outcome["value"]), (&json!("SUCCESS"), &json!(1.0)));
    }
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn an_ignored_result_is_not_stored() {
    let queue = unique("ignored");
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let id = unique("id");
    let message = Message::call(&id, "tasks.add", &json!([1, 2])).header("ignore_result", json!(true));
    broker.publish(&queue, message).await;
    worker.wait_for("task succeeded", |entry| entry["id"] == id.as_str());
    assert!(stored(&id).is_none());
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn failures_are_raised_by_the_client_and_the_worker_lives() {
    let queue = unique("failures");
    let broker = Broker::connect().await;
    let mut worker = worker(&queue).ready();
    let outcomes = Celery::with_redis(&queue).call([
        Call::new("tasks.fail", json!(["boom"])),
        Call::new("tasks.panic", json!(["ouch"])),
        Call::new("tasks.fib", json!(["ten"])),
        Call::new("tasks.fib", json!([])),
        Call::new("tasks.fib", json!([-1])),
        Call::new("tasks.add", json!([1, 2, 3])),
        Call::new("tasks.add", json!([1, 2])).kwargs(json!({"z": 3})),
        Call::new("tasks.nope", json!([])),
        Call::new("tasks.add", json!([1, 2])),
    ]);
    let told: Vec<_> = outcomes
        .iter()
        .map(|outcome| {
            format!("{} {} {}", outcome["state"], outcome["error"], outcome["message"]).replace('"', "")
        })
        .collect();
    assert_eq!(
        told,
        [
            "FAILURE RuntimeError boom",
            "FAILURE Panic ouch",
            "FAILURE TypeError tasks.fib() can't take argument 'n': invalid type: string \\ten\\, expected i64",
            "FAILURE TypeError tasks.fib() missing 1 required positional argument: 'n'",
            "FAILURE ValueError n must be in 0 to 50, not -1",
            "FAILURE TypeError tasks.add() takes 2 positional arguments but 3 were given",
            "FAILURE TypeError tasks.add() got an unexpected keyword argument 'z'",
            "FAILURE NotRegistered 'tasks.nope'",
            "SUCCESS null null",
        ]
    );
    let traceback = outcomes[1]["traceback"].as_str().unwrap();
    assert!(traceback.contains("samples.rs:"), "{traceback}");
    assert_eq!(outcomes[0]["traceback"], "RuntimeError: boom");
    // What Python has no class for is one of Celery's own.
    assert_eq!(
        (&outcomes[0]["module"], &outcomes[1]["module"]),
        (&json!("builtins"), &json!("celery.exceptions"))
    );
    broker.wait_for_counts(&queue, 0, 0).await;
    assert!(worker.is_running());
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_message_is_unacknowledged_until_its_result_is_stored() {
    let queue = unique("late");
    let broker = Broker::connect().await;
    let start_worker = || worker(&queue);
    let worker = start_worker().ready();
    let id = unique("id");
    broker.publish(&queue, Message::call(&id, "tasks.sleep", &json!([8]))).await;
    broker.publish(&queue, Message::call(&unique("id"), "tasks.add", &json!([1, 2]))).await;
    worker.wait_until_running(&id);
    // One is being worked on; the other waits in the queue, where another worker can take it.
    broker.wait_for_counts(&queue, 1, 1).await;
    let another = start_worker().ready();
    eventually("the other is run by another", || {
        (another.metric("soloist_task_succeeded_total{task=\"tasks.add\"}") == Some(1.0)).then_some(())
    });
    assert_eq!(another.metric("soloist_task_started_total{task=\"tasks.sleep\"}"), Some(0.0));
    assert!(stored(&id).is_none());
    eventually("the result is stored", || stored(&id));
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_task_is_not_run_before_its_eta() {
    let queue = unique("eta");
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let begun = std::time::Instant::now();
    let outcome = Celery::with_redis(&queue)
        .call_one(Call::new("tasks.add", json!([1, 2])).options(json!({"countdown": 2})));
    assert_eq!(outcome["value"], json!(3));
    assert!(begun.elapsed().as_secs_f64() > 1.9);
    assert_eq!(worker.metric("soloist_task_started_total{task=\"tasks.add\"}"), Some(1.0));
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_long_task_of_one_queue_does_not_hold_messages_of_another() {
    let (red, blue) = (unique("red"), unique("blue"));
    let broker = Broker::connect().await;
    let worker = worker(&format!("{red},{blue}")).ready();
    let (long, short) = (unique("id"), unique("id"));
    broker.publish(&red, Message::call(&long, "tasks.sleep", &json!([6]))).await;
    worker.wait_until_running(&long);
    broker.publish(&blue, Message::call(&short, "tasks.add", &json!([1, 2]))).await;
    // Ready, not unacknowledged: another worker could take it.
    broker.wait_for_counts(&blue, 1, 0).await;
    assert_eq!(worker.get("/readyz").0, 200);
    eventually("the other queue's task is run afterwards", || stored(&short));
    for queue in [red, blue] {
        broker.wait_for_counts(&queue, 0, 0).await;
        broker.remove(&queue);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn queues_with_a_backlog_take_turns() {
    let (red, blue) = (unique("red"), unique("blue"));
    let broker = Broker::connect().await;
    for queue in [&red, &blue] {
        broker.declare(queue).await;
        for number in 0..4 {
            let id = format!("{queue}-{number}");
            broker.publish(queue, Message::call(&id, "tasks.sleep", &json!([0.3]))).await;
        }
    }
    let worker = worker(&format!("{red},{blue}")).ready();
    eventually("all tasks are run", || {
        (worker.metric("soloist_task_succeeded_total{task=\"tasks.sleep\"}") == Some(8.0)).then_some(())
    });
    let received = worker.log().into_iter().filter(|entry| entry["message"] == "task received");
    let colours: Vec<_> = received.map(|entry| entry["id"].as_str().unwrap().starts_with(&red)).collect();
    assert_eq!(colours.len(), 8, "each message was delivered once");
    let changes = colours.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(changes >= 5, "red: {colours:?}");
    for queue in [red, blue] {
        broker.remove(&queue);
    }
}
