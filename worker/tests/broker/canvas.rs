//! Chains, callbacks, groups and chords over workers in Rust and in Python, sent by a Celery client.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    Broker, Message, PythonWorker, WorkerProcess, canvas, chord_keys, control, env, eventually, occupy,
    recorded, stored, unique, worker,
};

/// One worker in Rust and one in Python, each on its queue.
struct Pair {
    broker: Broker,
    rust: WorkerProcess,
    queue: String,
    python: PythonWorker,
    key: String,
}

impl Pair {
    async fn start() -> Self {
        let queue = unique("canvas");
        let broker = Broker::connect().await;
        let rust = worker(&queue);
        let python = PythonWorker::start();
        let rust = rust.env("SOLOIST_DEFAULT_QUEUE", &python.queue).ready();
        Self { broker, rust, queue, python, key: unique("record") }
    }

    fn run(&self, all: &[&str]) -> Vec<Value> {
        canvas(&env("REDIS_URL"), &self.queue, &self.python.queue, &self.key, all)
    }

    fn values(&self, all: &[&str]) -> Vec<Value> {
        let outcomes = self.run(all);
        let value = |(outcome, canvas): (&Value, &&str)| match outcome.get("value") {
            Some(value) => value.clone(),
            None => panic!("{canvas}: {outcome}"),
        };
        outcomes.iter().zip(all).map(value).collect()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.broker.remove(&self.queue);
        self.broker.remove(&self.python.queue);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn chains_run_to_their_end() {
    let pair = Pair::start().await;
    let values = pair.values(&[
        "rust('multiply', 4, 5) | rust('multiply', 2)",
        "add.s(1, 2) | rust('multiply', 10) | add.s(4) | rust('add', 1)",
        "rust('add', 1, 1) | rust('add', 5, 5).set(immutable=True) | rust('add', 1)",
        "rust('add', 1, 1) | (rust('add', 1) | add.s(1)) | rust('add', 1)",
    ]);
    assert_eq!(values, [json!(40), json!(35), json!(11), json!(5)]);
    // A step without a queue: known to the worker, so it goes to where the first came from.
    let outcome =
        &pair.run(&["rust('add', 1, 1) | signature('tasks.add', args=(2,), app=app) | add.s(3)"])[0];
    assert_eq!((&outcome["value"], &outcome["parents"]), (&json!(7), &json!(["SUCCESS", "SUCCESS"])));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn what_follows_knows_its_parent_and_the_first_of_all() {
    let pair = Pair::start().await;
    let outcomes = pair.run(&[
        "rust('add', 1, 1) | seen.s()",
        "rust('add', 1, 1) | rust('add', 2) | seen.s()",
        "seen.s() | rust('add', 1, 1).set(immutable=True) | seen.s()",
        "rust('add', 1, 1).set(root_id='of another', parent_id='too') | seen.s()",
    ]);
    for (outcome, value) in outcomes.iter().zip([2, 4, 2]) {
        let before = outcome["parent_ids"].as_array().unwrap();
        let expected = json!({"parent": before.first(), "root": before.last(), "value": [value]});
        assert_eq!(outcome["value"], expected, "{outcome}");
    }
    let last = &outcomes[3];
    assert_eq!(
        (&last["value"]["root"], &last["value"]["parent"]),
        (&json!("of another"), &last["parent_ids"][0])
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_failure_ends_a_chain_at_each_step() {
    let pair = Pair::start().await;
    let outcomes = pair.run(&[
        "rust('fail', 'one') | rust('add', 1) | add.s(1)",
        "rust('add', 1, 1) | rust('add', 'x') | add.s(1)",
        "rust('add', 1, 1) | add.s(1) | rust('fail', 'last').set(immutable=True)",
        "rust('unknown') | add.s(1)",
        "rust('fail', 'three') | group(add.s(1), rust('add', 2)) | xsum.s()",
    ]);
    let own: Vec<_> = outcomes.iter().map(|outcome| outcome["own"].as_str().unwrap()).collect();
    assert_eq!(own[0], "RuntimeError: one", "{outcomes:#?}");
    assert!(own[1].starts_with("TypeError: "), "{own:?}");
    assert_eq!(own[2], "RuntimeError: last");
    assert_eq!(own[3], "NotRegistered: 'tasks.unknown'");
    assert_eq!(own[4], "RuntimeError: three");
    assert_eq!(outcomes[0]["parents"], json!(["FAILURE", "FAILURE"]));
    assert_eq!(outcomes[1]["parents"], json!(["FAILURE", "SUCCESS"]));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn callbacks_and_errbacks_are_called() {
    let pair = Pair::start().await;
    let outcomes = pair.run(&[
        "rust('add', 1, 1, link=[record.s(key)])",
        "rust('add', 2, 2, link=[record.s(key), record.s(key)])",
        "rust('add', 3, 3, link=[add.s(1) | rust('add', 1) | record.s(key)])",
        "rust('add', 4, 4, link=[group(add.s(1), rust('add', 2)) | xsum.s() | record.s(key)])",
        "rust('fail', 'no', link=[record.s(key)], link_error=[record.s(key)])",
    ]);
    let mut expected = vec!["2".to_owned(), "4".into(), "8".into(), "19".into()];
    expected.push(outcomes[4]["id"].as_str().unwrap().to_owned());
    expected.sort();
    // The two equal callbacks of the second are one, as in Celery.
    let found = eventually("all are called", || {
        let mut found = recorded(&pair.key);
        found.sort();
        found.dedup();
        (found.len() == expected.len()).then_some(found)
    });
    assert_eq!(found, expected);
    let children = |index: usize| outcomes[index]["children"].as_array().unwrap().len();
    assert_eq!((children(0), children(2), children(4)), (1, 1, 0));

    // An errback in Rust of a task that failed in Python: it is given the id, and fails with that.
    let errback = unique("errback");
    let canvas = format!("fail.s('no').set(link_error=[rust('fail', task_id='{errback}')])");
    let outcome = pair.run(&[&canvas]).remove(0);
    let (meta, _) = eventually("the errback is called", || stored(&errback));
    assert_eq!(meta["result"]["exc_message"], json!([outcome["id"]]));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn groups_give_ordered_results() {
    let pair = Pair::start().await;
    let outcomes = pair.run(&[
        "group(rust('add', n, n) if n % 2 else add.s(n, n) for n in range(6))",
        "group(rust('multiply', a, b) | rust('multiply', 2) for a, b in [(4, 5), (4, 9), (7, 9)])",
        "rust('add', 1, 1) | group(rust('add', 1), add.s(2), rust('add', 3))",
        "rust('add', 1, 1) | group(rust('add', 1) | add.s(2), add.s(2) | rust('add', 3))",
    ]);
    let expected = [json!([0, 2, 4, 6, 8, 10]), json!([40, 72, 126]), json!([3, 4, 5]), json!([5, 7])];
    for (outcome, expected) in outcomes.iter().zip(expected) {
        assert_eq!(outcome["value"], expected, "{outcome}");
        for member in outcome["members"].as_array().unwrap() {
            assert_eq!(stored(member.as_str().unwrap()).unwrap().0["group_id"], outcome["id"], "{outcome}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn chords_call_their_body_once() {
    let pair = Pair::start().await;
    // The sleeper finishes last: once the Rust worker has the last part, once (with a slow start) Python.
    let outcomes = pair.run(&[
        "chord([add.s(1, 1), rust('add', 2, 2), rust('sleep', 1)], same.s() | record.s(key))",
        "chord([rust('add', 1, 1), rust('add', 2, 2), add.signature((3, 3), countdown=2)], same.s() | record.s(key))",
        "chord([rust('add', n, n) for n in range(20)], same.s() | record.s(key))",
        "chord([rust('add', 5, 5)], same.s() | record.s(key))",
    ]);
    let twenty: Vec<_> = (0..20).map(|n| 2 * n).collect();
    let values = [json!([2, 4, 1.0]), json!([2, 4, 6]), json!(twenty), json!([10])];
    for (index, (outcome, value)) in outcomes.iter().zip(values).enumerate() {
        assert_eq!(outcome["value"], value, "{outcome}");
        // What was counted is gone, and the chord marked as done. Celery 5.6, where it was last, knows neither mark nor `.d`.
        let group = outcome["parent_ids"].as_array().unwrap().last().unwrap().as_str().unwrap();
        eventually("the chord's keys are gone", || match chord_keys(group) {
            (keys, Some(claim)) => (keys.is_empty() && claim == "done").then_some(()),
            (keys, None) => (index == 1 && keys.iter().all(|key| key == ".d")).then_some(()),
        });
    }
    assert_eq!(recorded(&pair.key).len(), 4, "each body ran once: {:?}", recorded(&pair.key));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn chords_nest_and_continue() {
    let pair = Pair::start().await;
    let values = pair.values(&[
        // in the middle of a chain
        "rust('add', 1, 1) | group(rust('add', 1), add.s(2)) | xsum.s() | rust('multiply', 10)",
        "rust('add', 1, 1) | chord([rust('add', 1), add.s(2)], xsum.s()) | rust('multiply', 10)",
        // two after each other
        "group(rust('add', 1, 1), rust('add', 2, 2)) | xsum.s() | group(rust('add', 1), add.s(2)) | xsum.s()",
        // body is a chain, a group, a chord
        "chord([rust('add', 1, 1), add.s(2, 2)], xsum.s() | rust('add', 1))",
        "chord([rust('add', 1, 1), add.s(2, 2)], group(xsum.s(), same.s()))",
        "chord([rust('add', 1, 1), rust('add', 2, 2)], chord([xsum.s(), xsum.s()], same.s()))",
        // members are chains, chords, groups
        "chord([rust('add', 1, 1) | rust('add', 1), add.s(2, 2) | rust('add', 1)], same.s())",
        "chord([chord([rust('add', 1, 1), add.s(2, 2)], xsum.s()), rust('add', 3, 3)], same.s())",
        "chord([rust('add', 1, 1) | group(rust('add', 1), add.s(2)), rust('add', 3, 3)], same.s())",
        "rust('add', 1, 1) | chord([rust('add', 1) | group(rust('add', 1), add.s(2)), rust('add', 3)], same.s())",
    ]);
    let expected = [
        json!(70),
        json!(70),
        json!(15),
        json!(7),
        json!([6, [2, 4]]),
        json!([6, 6]),
        json!([3, 5]),
        json!([6, 6]),
        json!([[3, 4], 6]),
        json!([[4, 5], 5]),
    ];
    assert_eq!(values, expected);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_chord_with_a_failing_member_fails_its_body() {
    let pair = Pair::start().await;
    let outcomes = pair.run(&[
        "chord([rust('add', 1, 1), rust('fail', 'no')], record.s(key))",
        "chord([fail.s(), rust('sleep', 1)], record.s(key).on_error(record.s(key))) | add.s(1)",
        "chord([rust('fail', 'deep') | rust('add', 1), add.s(1, 1)], record.s(key))",
        "chord([chord([rust('fail', 'inner'), rust('add', 1, 1)], xsum.s()), rust('add', 3, 3)], record.s(key))",
        "chord([rust('unknown'), rust('add', 1, 1)], record.s(key))",
    ]);
    for outcome in &outcomes {
        let own = outcome["own"].as_str().unwrap();
        assert!(own.starts_with("ChordError: Dependency ") && own.contains(" raised "), "{outcome}");
        assert_eq!(outcome["state"], "FAILURE");
    }
    assert!(outcomes[0]["own"].as_str().unwrap().ends_with("raised RuntimeError('no')"), "{}", outcomes[0]);
    // A member that is revoked.
    let revoked = unique("revoked");
    let order = [("revoke", json!({"task_id": revoked}))];
    eventually("the worker is told", || control(&pair.rust.node, &order).remove(0).0.get("ok").cloned());
    let canvas = format!("chord([rust('add', 1, 1, task_id='{revoked}'), rust('add', 1, 1)], record.s(key))");
    let outcome = pair.run(&[&canvas]).remove(0);
    let own = format!("ChordError: Dependency {revoked} raised TaskRevokedError('revoked')");
    assert_eq!((&outcome["own"], &outcome["state"]), (&json!(own), &json!("FAILURE")));
    // The body's errback only.
    let ran = eventually("the errback is called", || Some(recorded(&pair.key)).filter(|ran| !ran.is_empty()));
    assert_eq!(ran.len(), 1, "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn items_are_mapped_in_one_run_or_in_chunks() {
    let pair = Pair::start().await;
    let values = pair.values(&[
        "app.signature(xstarmap(rust('add'), [(1, 2), (3, 4)])).set(queue=queue)",
        "app.signature(xmap(rust('fib'), [5, 6])).set(queue=queue)",
        "chunks(rust('add'), [(n, n) for n in range(5)], 2, app=app).group().set(queue=queue)",
        "rust('add', 1, 1) | app.signature(xstarmap(rust('add'), [(1, 2)])).set(queue=queue)",
        "signature('celery.accumulate', args=(1, 2), app=app, options={'queue': queue})",
    ]);
    let expected = [json!([3, 7]), json!([5, 8]), json!([[0, 2], [4, 6], [8]]), json!([3]), json!([1, 2])];
    assert_eq!(values, expected);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_member_that_is_delivered_twice_is_counted_once() {
    let pair = Pair::start().await;
    let (group, body_id) = (unique("group"), unique("body"));
    let body = json!({
        "task": "py.record", "args": [], "kwargs": {"key": pair.key}, "subtask_type": null, "immutable": false,
        "options": {"task_id": body_id, "queue": pair.python.queue},
    });
    let mut redis = redis::Client::open(env("REDIS_URL")).unwrap().get_connection().unwrap();
    let size_key = format!("celery-taskset-meta-{group}.s");
    redis::cmd("SET").arg(&size_key).arg(2).arg("EX").arg(600).exec(&mut redis).unwrap();
    let member = |index: i64| {
        let id = format!("{group}-{index}");
        let mut message = Message::call(&id, "tasks.add", &json!([index, index]))
            .header("group", json!(group))
            .header("group_index", json!(index));
        message.body = json!([[index, index], {}, {"chord": body}]).to_string().into_bytes();
        message
    };
    for index in [0, 0, 1, 1, 0] {
        pair.broker.publish(&pair.queue, member(index)).await;
    }
    eventually("the body is called", || stored(&body_id));
    eventually("all messages are done with", || {
        (pair.rust.metric("soloist_task_succeeded_total{task=\"tasks.add\"}") == Some(5.0)).then_some(())
    });
    assert_eq!(recorded(&pair.key), ["[0, 2]"]);
    assert_eq!(chord_keys(&group), (vec![], Some("done".to_owned())));
}

/// Its worker was killed just before it told the chord.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_member_that_comes_back_after_its_success_was_stored_is_counted_and_not_run_again() {
    let queue = unique("stored");
    let broker = Broker::connect().await;
    broker.declare(&queue).await;
    let (group, id, body_id) = (unique("group"), Uuid::new_v4().to_string(), unique("body"));
    let mut redis = redis::Client::open(env("REDIS_URL")).unwrap().get_connection().unwrap();
    redis::cmd("SETEX")
        .arg(format!("celery-taskset-meta-{group}.s"))
        .arg(600)
        .arg(1)
        .exec(&mut redis)
        .unwrap();
    store_success(&id, 7);
    let body = json!({
        "task": "celery.accumulate", "args": [], "kwargs": {"index": 0}, "subtask_type": null, "immutable": false,
        "options": {"task_id": body_id, "queue": queue},
    });
    let mut message = Message::call(&id, "tasks.add", &json!([1, 1])).header("group", json!(group));
    message.body = json!([[1, 1], {}, {"chord": body}]).to_string().into_bytes();
    broker.publish(&queue, message).await;
    broker.give_back(&queue).await;
    let worker = worker(&queue).ready();
    let (meta, _) = eventually("the body is called", || stored(&body_id));
    assert_eq!(meta["result"], json!([7]));
    worker.wait_for("done already: its result is stored", |entry| entry["id"] == id.as_str());
    assert_eq!(worker.metric("soloist_task_started_total{task=\"tasks.add\"}"), Some(0.0));
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}

/// A worker of Celery's stores the success also if the broker was killed before it had the next step.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_step_that_comes_back_after_its_success_was_stored_sends_the_next_one_and_is_not_run_again() {
    let queue = unique("stored");
    let broker = Broker::connect().await;
    broker.declare(&queue).await;
    let (id, next_id) = (Uuid::new_v4().to_string(), unique("next"));
    store_success(&id, 7);
    let next = json!({
        "task": "tasks.add", "args": [1], "kwargs": {}, "subtask_type": null, "immutable": false,
        "options": {"task_id": next_id, "queue": queue},
    });
    let mut message = Message::call(&id, "tasks.add", &json!([1, 1]));
    message.body = json!([[1, 1], {}, {"chain": [next]}]).to_string().into_bytes();
    broker.publish(&queue, message).await;
    broker.give_back(&queue).await;
    let worker = worker(&queue).ready();
    let (meta, _) = eventually("the next step is run", || stored(&next_id));
    assert_eq!(meta["result"], json!(8));
    assert_eq!(
        worker.metric("soloist_task_started_total{task=\"tasks.add\"}"),
        Some(1.0),
        "the next step alone"
    );
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}

/// Leaves a result as if the call of this id had been run.
fn store_success(id: &str, result: i64) {
    let mut redis = redis::Client::open(env("REDIS_URL")).unwrap().get_connection().unwrap();
    let meta = json!({
        "status": "SUCCESS", "result": result, "traceback": null, "children": [], "task_id": id,
        "date_done": "2026-11-21T00:00:00+00:00",
    });
    let key = format!("celery-task-meta-{id}");
    redis::cmd("SETEX").arg(key).arg(600).arg(meta.to_string()).exec(&mut redis).unwrap();
}

/// What is stored under its id may be of an earlier call.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_call_with_a_chosen_id_that_comes_back_is_run_although_there_is_a_result() {
    let queue = unique("daily");
    let broker = Broker::connect().await;
    broker.declare(&queue).await;
    let id = unique("report");
    store_success(&id, 7);
    broker.publish(&queue, Message::call(&id, "tasks.add", &json!([1, 1]))).await;
    broker.give_back(&queue).await;
    let worker = worker(&queue).ready();
    eventually("it is run", || {
        (worker.metric("soloist_task_succeeded_total{task=\"tasks.add\"}") == Some(1.0)).then_some(())
    });
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}

/// Whoever gets it looks whether it is done already.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn what_a_task_that_came_back_sends_says_that_it_may_have_been_sent_before() {
    let queue = unique("twice");
    let broker = Broker::connect().await;
    broker.declare(&queue).await;
    let next_id = unique("next");
    let next = json!({
        // Its result is the headers that it came with.
        "task": "tasks.flaky", "args": [0], "kwargs": {}, "subtask_type": null, "immutable": true,
        "options": {"task_id": next_id, "queue": queue},
    });
    let mut message = Message::call(&Uuid::new_v4().to_string(), "tasks.add", &json!([1, 1]));
    message.body = json!([[1, 1], {}, {"chain": [next]}]).to_string().into_bytes();
    broker.publish(&queue, message).await;
    broker.give_back(&queue).await;
    let _worker = worker(&queue).ready();
    let (meta, _) = eventually("the next step is run", || stored(&next_id));
    assert_eq!(meta["result"], json!({"soloist-attempts": 0, "soloist-sequel": true}));
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn what_can_not_be_sent_fails_the_task_that_it_follows() {
    let queue = unique("unsent");
    let broker = Broker::connect().await;
    broker.declare(&queue).await;
    let worker = worker(&queue).env("SOLOIST_CREATE_MISSING_QUEUES", "false").ready();
    let key = unique("record");
    let outcomes = canvas(
        &env("REDIS_URL"),
        &queue,
        &queue,
        &key,
        &[
            "rust('add', 1, 1) | rust('add', 1).set(queue='nowhere-at-all')",
            "rust('add', 1, 1) | signature({'task': 'celery.loop', 'args': [], 'kwargs': {}, 'options': {}, \
             'subtask_type': None, 'immutable': False}).set(serializer='yaml')",
        ],
    );
    let own = |index: usize| outcomes[index]["own"].as_str().unwrap();
    assert_eq!(
        own(0),
        "OperationalError: `tasks.add`, which follows, can't be sent: no queue takes messages for `nowhere-at-all`"
    );
    assert!(own(1).starts_with("ValueError: `celery.loop`, which follows, can't be sent: "), "{}", own(1));

    let call = |task: &str, options: Value| json!({"task": task, "args": [1], "kwargs": {}, "subtask_type": null, "immutable": true, "options": options});
    let embed = json!({
        "callbacks": [call("tasks.sleep", json!({}))],
        "errbacks": [call("tasks.flaky", json!({}))],
        "chain": [call("tasks.add", json!({"queue": "nowhere-at-all"}))],
    });
    let mut message = Message::call(&unique("id"), "tasks.add", &json!([1, 1]));
    message.body = json!([[1, 1], {}, embed]).to_string().into_bytes();
    broker.publish(&queue, message).await;
    let received = |task: &str| worker.wait_for("task received", |entry| entry["task"] == task)["id"].clone();
    assert_ne!(received("tasks.sleep"), received("tasks.flaky"));
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn chains_answer_over_rpc_and_chords_fail_clearly() {
    let queue = unique("rpc");
    let broker = Broker::connect().await;
    let worker = worker(&queue).env("SOLOIST_RESULTS", "rpc://").ready();
    let outcomes = canvas(
        "rpc://",
        &queue,
        &queue,
        "",
        &[
            "rust('multiply', 4, 5) | rust('multiply', 2)",
            "rust('fail', 'no') | rust('add', 1)",
            "rust('add', 1, 1) | group(rust('add', 1), rust('add', 2))",
        ],
    );
    assert_eq!(outcomes[0]["value"], 40, "{outcomes:?}");
    assert_eq!(outcomes[1]["own"], "RuntimeError: no", "{outcomes:?}");
    assert_eq!(outcomes[2]["value"], json!([3, 4]), "{outcomes:?}");
    // Python's client refuses to begin a chord over RPC, but another may not.
    let id = unique("id");
    let body = json!({"task": "tasks.fib", "args": [], "kwargs": {}, "options": {}});
    let header = json!([{"task": "tasks.add", "args": [1], "kwargs": {}, "options": {}}]);
    let chord = json!({
        "task": "celery.chord", "args": [], "options": {}, "subtask_type": "chord", "immutable": false,
        "kwargs": {"kwargs": {}, "header": header, "body": body},
    });
    let mut message = Message::call(&id, "tasks.add", &json!([1, 2]));
    message.body = json!([[1, 2], {}, {"chain": [chord]}]).to_string().into_bytes();
    broker.publish(&queue, message).await;
    let failed = worker.wait_for("task failed", |entry| entry["id"] == id.as_str());
    assert!(
        failed["exception"].as_str().unwrap().starts_with("NotImplementedError: a chord follows"),
        "{failed}"
    );
    assert!(worker.refusals().is_empty(), "{:?}", worker.refusals());
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_call_that_is_refused_fails_what_was_to_follow() {
    let queue = unique("refused");
    let broker = Broker::connect().await;
    let _worker = worker(&queue).ready();
    let (id, next_id) = (unique("id"), unique("next"));
    let next = json!({"task": "tasks.add", "args": [], "kwargs": {}, "options": {"task_id": next_id}});
    let mut message = Message::call(&id, "tasks.add", &json!([1, 2])).header("eta", json!("soon"));
    message.body = json!([[1, 2], {}, {"chain": [next]}]).to_string().into_bytes();
    broker.publish(&queue, message).await;
    for id in [&id, &next_id] {
        let (meta, _) = eventually("the failure is stored", || stored(id));
        assert_eq!(
            (&meta["status"], &meta["result"]["exc_type"]),
            (&json!("FAILURE"), &json!("InvalidTaskError"))
        );
    }
    broker.remove(&queue);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_chord_whose_parts_cannot_be_counted_fails_its_body_once() {
    let pair = Pair::start().await;
    let (group, body_id) = (unique("group"), unique("body"));
    occupy(&format!("celery-taskset-meta-{group}.j"));
    let errback = json!({
        "task": "py.record", "args": [], "kwargs": {"key": pair.key}, "options": {"queue": pair.python.queue},
    });
    let body = json!({
        "task": "tasks.add", "args": [], "kwargs": {},
        "options": {"task_id": body_id, "group_id": group, "link_error": [errback]},
    });
    for index in 0..3 {
        let id = unique("member");
        let mut message = Message::call(&id, "tasks.add", &json!([1, index]))
            .header("group", json!(group))
            .header("group_index", json!(index));
        message.body = json!([[1, index], {}, {"chord": body}]).to_string().into_bytes();
        pair.broker.publish(&pair.queue, message).await;
    }
    let (meta, _) = eventually("the body has failed", || stored(&body_id));
    assert_eq!((&meta["status"], &meta["result"]["exc_type"]), (&json!("FAILURE"), &json!("ChordError")));
    assert!(meta["result"]["exc_message"][0].as_str().unwrap().contains("WRONGTYPE"), "{meta}");
    pair.broker.wait_for_counts(&pair.queue, 0, 0).await;
    eventually("its errback is called", || (!recorded(&pair.key).is_empty()).then_some(()));
    pair.broker.wait_for_counts(&pair.python.queue, 0, 0).await;
    assert_eq!(recorded(&pair.key), [body_id]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_chord_follows_a_call_whose_worker_was_lost() {
    let mut pair = Pair::start().await;
    let id = unique("id");
    let add = |n: i64| json!({"task": "tasks.add", "args": [n], "kwargs": {}, "options": {}});
    let body = json!({"task": "py.record", "args": [], "kwargs": {"key": pair.key}, "options": {}});
    let chord = json!({
        "task": "celery.chord", "args": [], "options": {}, "subtask_type": "chord", "immutable": false,
        "kwargs": {"kwargs": {}, "header": [add(1), add(2)], "body": body},
    });
    let mut message = Message::call(&id, "tasks.sleep", &json!([2]));
    message.body = json!([[2], {}, {"chain": [chord]}]).to_string().into_bytes();
    pair.broker.publish(&pair.queue, message).await;
    pair.rust.wait_until_running(&id);
    pair.rust.signal("KILL");
    pair.rust = worker(&pair.queue).env("SOLOIST_DEFAULT_QUEUE", &pair.python.queue).ready();
    eventually("the body is called", || (!recorded(&pair.key).is_empty()).then_some(()));
    pair.broker.wait_for_counts(&pair.queue, 0, 0).await;
    pair.broker.wait_for_counts(&pair.python.queue, 0, 0).await;
    assert_eq!(recorded(&pair.key), ["[3.0, 4.0]"]);
    let (meta, _) = stored(&id).unwrap();
    assert_eq!((&meta["status"], meta["children"].as_array().unwrap().len()), (&json!("SUCCESS"), 1));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_task_is_replaced_and_what_was_to_follow_follows() {
    let pair = Pair::start().await;
    let values = pair.values(&[
        "rust('replace', add.s(3, 4)) | rust('add', 1)",
        "rust('replace', group([add.s(1, 2), rust('add', 3, 4)])) | xsum.s()",
        "chord([rust('replace', add.s(1, 1) | rust('add', 1)), rust('add', 1, 2)], xsum.s())",
        "rust('replace', rust('replace', add.s(1, 2) | add.s(3)))",
        "replace.s(rust('add', 1, 2)) | rust('add', 10)",
    ]);
    assert_eq!(values, [json!(8), json!(10), json!(6), json!(6), json!(13)]);
    let outcomes = pair.run(&["rust('replace', fail.s()) | rust('add', 1)"]);
    assert_eq!((&outcomes[0]["error"], &outcomes[0]["message"]), (&json!("ValueError"), &json!("boom")));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_member_adds_members_to_its_chord() {
    let pair = Pair::start().await;
    let values = pair.values(&[
        "chord([rust('grow', 1, [rust('add', 2, 3), add.s(4, 5)]), rust('add', 10, 20)], xsum.s())",
        "chord([rust('grow', 1, [rust('add', 2, 3)], add.s(4, 5)), rust('add', 10, 20)], xsum.s())",
    ]);
    assert_eq!(values, [json!(45), json!(44)]);
    let outcomes = pair.run(&["rust('grow', 1, [add.s(1, 1)])"]);
    assert_eq!(outcomes[0]["message"], "this task is no member of a chord");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn chunks_are_a_step_like_any_other() {
    let pair = Pair::start().await;
    let values = pair.values(&["rust('add', 1, 1) | chunks(rust('add'), [(1, 2), (3, 4), (5, 6)], 2)"]);
    let members = values[0][1].as_array().unwrap();
    let results: Vec<_> = members
        .iter()
        .map(|member| {
            let id = member[0][0].as_str().unwrap();
            eventually("a part is done", || stored(id)).0["result"].clone()
        })
        .collect();
    assert_eq!(results, [json!([3, 7]), json!([11])]);
}
