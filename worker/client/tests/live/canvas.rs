//! Canvases sent to a real Python worker, and what comes of them.

use crate::support::{PythonWorker, client, delete, python, setting, unique};
use celery_client::{
    CanvasResult, Celery, PublishError, ResultError, Route, SendError, Signature, State, chord, chunks,
    connect, group, map, queue, starmap,
};
use celery_protocol::canvas::chain;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A Python worker takes seconds to start.
const PATIENCE: Duration = Duration::from_secs(60);

fn add(x: i64) -> Signature {
    Signature::new("tk.add").arg(x)
}

fn sum() -> Signature {
    Signature::new("tk.sum")
}

async fn value(celery: &Celery, canvas: Signature) -> Value {
    celery.send_canvas(&canvas).await.unwrap().get(PATIENCE).await.unwrap()
}

async fn canvases_without_chords(celery: &Celery) {
    assert_eq!(value(celery, add(1).arg(2) | add(10) | add(100)).await, 113);
    // A step that takes no value, and a chain within a chain.
    let inner = chain([add(5).arg(5).immutable(), add(1)]);
    assert_eq!(value(celery, chain([add(1).arg(2), inner])).await, 11);
    assert_eq!(
        value(celery, group((0..20).map(|n| add(n).arg(n)))).await,
        json!((0..20).map(|n| 2 * n).collect::<Vec<_>>())
    );
    let chains = group([add(1).arg(1) | add(10), add(2).arg(2) | add(10)]);
    assert_eq!(value(celery, chains).await, json!([12, 14]));
    // The chain ends in a group.
    assert_eq!(value(celery, add(1).arg(1) | group([add(10), add(20)])).await, json!([12, 22]));
    assert_eq!(value(celery, map(&sum(), [json!([1, 2]), json!([3])])).await, json!([3, 3]));
    let pairs = || (0..5).map(|n| json!([n, n]));
    assert_eq!(value(celery, starmap(&Signature::new("tk.add"), pairs())).await, json!([0, 2, 4, 6, 8]));
    let chunks = chunks(&Signature::new("tk.add"), pairs(), 2);
    assert_eq!(value(celery, chunks).await, json!([[0, 2], [4, 6], [8]]));
    assert_eq!(value(celery, group([])).await, json!([]));
}

#[tokio::test]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, REDIS_URL, PYTHON"]
async fn canvases_of_any_kind_give_what_celery_gives() {
    let redis = setting("REDIS_URL");
    let worker = PythonWorker::start(&redis);
    let celery = &client(&worker.queue, Some(&redis)).await;
    canvases_without_chords(celery).await;

    let adds = || [add(1).arg(1), add(2).arg(2)];
    assert_eq!(value(celery, chord(adds(), sum())).await, 6);
    assert_eq!(value(celery, group(adds()) | sum() | add(100)).await, 106);
    assert_eq!(value(celery, chord([], sum())).await, 0);
    assert_eq!(value(celery, chord([add(1).arg(1)], sum())).await, 2);
    // In the middle of a chain; with a chain, a group and a chord as bodies; with chains and chords in the header.
    assert_eq!(value(celery, add(1).arg(1) | group([add(10), add(20)]) | sum() | add(1)).await, 35);
    assert_eq!(value(celery, chord(adds(), chain([sum(), add(1)]))).await, 7);
    assert_eq!(value(celery, chord(adds(), sum()) | group([add(1), add(2)])).await, json!([7, 8]));
    let nested = chord([add(1).arg(1), add(1).arg(1) | add(1), chord(adds(), sum())], sum());
    assert_eq!(value(celery, nested).await, 11);
    let doubled = group(adds()) | group([sum(), sum()]) | sum();
    assert_eq!(value(celery, doubled).await, 12);

    results_know_what_came_before_and_after(celery).await;
    failures_reach_who_waits(celery).await;
    a_group_waits_for_no_result_that_nobody_stores(celery).await;
    groups_are_saved_for_celery(celery, &worker, &redis).await;
    worker.stop().await;
}

async fn results_know_what_came_before_and_after(celery: &Celery) {
    let adds = [add(1).arg(1), add(2).arg(2)];
    let result = celery.send(&(add(1).arg(0) | group([add(1), add(2)]) | sum())).await.unwrap();
    assert_eq!(result.get::<i64>(PATIENCE).await.unwrap(), 5);
    let Some(CanvasResult::Group(header)) = result.parent() else { panic!("no group before the body") };
    assert_eq!(header.get::<i64>(PATIENCE).await.unwrap(), [2, 3]);
    assert!(header.ready().await.unwrap());
    let first = header.parent().unwrap();
    assert_eq!(first.get::<i64>(PATIENCE).await.unwrap(), 1);
    let CanvasResult::Task(first) = first else { panic!("not a task") };
    // Python's workers give the header for what follows; the body comes of it.
    let children = first.children().await.unwrap();
    assert_eq!(children.iter().map(CanvasResult::id).collect::<Vec<_>>(), [header.id()]);
    assert_eq!(children[0].get::<Vec<i64>>(PATIENCE).await.unwrap(), [2, 3]);

    let members = celery.send_group(&group(adds)).await.unwrap();
    assert_eq!(members.get::<i64>(PATIENCE).await.unwrap(), [2, 4]);
    assert_eq!((members.completed().await.unwrap(), members.members().len()), (2, 2));
    assert!(members.wait(PATIENCE).await.unwrap().iter().all(|meta| meta.status == State::Success));
    members.forget().await.unwrap();

    let callbacks = add(1).arg(1).link(add(10).task_id("linked-1")).link(add(20) | add(1));
    let linked = celery.send(&callbacks).await.unwrap();
    linked.get::<i64>(PATIENCE).await.unwrap();
    let children = linked.children().await.unwrap();
    let mut values = Vec::new();
    for child in &children {
        values.push(child.get::<Value>(PATIENCE).await.unwrap());
    }
    assert!(values == [json!(12), json!(23)] || values == [json!([12, 23])], "{values:?}");
    celery.result("linked-1").forget().await.unwrap();
}

async fn failures_reach_who_waits(celery: &Celery) {
    let fail = || Signature::new("tk.fail");
    let errback = Signature::new("tk.errback").task_id(unique("errback"));
    let errback_id = errback.text_option("task_id").unwrap().to_owned();
    // A fresh worker knows the task and calls it in its own process, so that it is asked to be sent.
    let result = celery.send(&(fail() | add(1) | add(2))).await.unwrap();
    let ResultError::Task(error) = result.get::<Value>(PATIENCE).await.unwrap_err() else {
        panic!("no failure")
    };
    assert_eq!(error.exception.repr(), "ValueError('boom', 3)");
    assert_eq!(error.task_id, result.id());

    let failing = celery.send(&fail().link_error(errback)).await.unwrap();
    failing.wait(PATIENCE).await.unwrap();
    let saw: String = celery.result(&*errback_id).get(PATIENCE).await.unwrap();
    assert_eq!(saw, format!("saw {}", failing.id()));
    celery.result(errback_id).forget().await.unwrap();

    let chord = celery.send(&chord([add(1).arg(1), fail()], sum())).await.unwrap();
    let ResultError::Task(error) = chord.get::<Value>(PATIENCE).await.unwrap_err() else {
        panic!("no failure")
    };
    assert_eq!(error.exception.exc_type, "ChordError");
    let group = celery.send_group(&group([add(1).arg(1), fail()])).await.unwrap();
    assert!(matches!(group.get::<Value>(PATIENCE).await, Err(ResultError::Task(_))));
    assert_eq!(group.completed().await.unwrap(), 2);

    revoked_steps_reach_who_waits(celery).await;
}

async fn revoked_steps_reach_who_waits(celery: &Celery) {
    // A step that was revoked leaves no word for those after it: whoever waits for them looks at it.
    let later = || add(1).arg(1).countdown(Duration::from_secs(2));
    let by_step = |error: ResultError| match error {
        ResultError::Task(error) => (error.state, error.task_id),
        error => panic!("{error}"),
    };
    let begun = Instant::now();
    let revoked = celery.send(&(later() | add(1) | add(2))).await.unwrap();
    let CanvasResult::Task(first) = revoked.parent().unwrap().parent().unwrap() else { panic!("not a task") };
    first.revoke().await.unwrap();
    let error = revoked.get::<Value>(Duration::MAX).await.unwrap_err();
    assert_eq!(by_step(error), (State::Revoked, first.id().to_owned()));

    let revoked = celery.send_group(&(later() | group([add(1), add(2)]))).await.unwrap();
    let CanvasResult::Task(first) = revoked.parent().unwrap() else { panic!("not a task") };
    first.revoke().await.unwrap();
    let error = revoked.get::<Value>(PATIENCE).await.unwrap_err();
    assert_eq!(by_step(error), (State::Revoked, first.id().to_owned()));
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
}

/// Members that leave no result are null, as in Celery, however they end.
async fn a_group_waits_for_no_result_that_nobody_stores(celery: &Celery) {
    let ignored = |signature: Signature| signature.ignore_result(true);
    let later = ignored(add(1).arg(1).countdown(Duration::from_secs(2)));
    let members = [ignored(add(1).arg(1)), add(1).arg(2), later, ignored(add(5).arg(5)) | ignored(add(1))];
    let results = celery.send_group(&group(members)).await.unwrap();
    let CanvasResult::Task(revoked) = &results.members()[2] else { panic!("not a task") };
    revoked.revoke().await.unwrap();
    assert_eq!(results.get::<Option<i64>>(PATIENCE).await.unwrap(), [None, Some(3), None, None]);
    assert_eq!(results.wait(PATIENCE).await.unwrap().len(), 1);
    assert!(results.ready().await.unwrap());
}

async fn groups_are_saved_for_celery(celery: &Celery, worker: &PythonWorker, redis: &str) {
    let result = celery.send_group(&group([add(1).arg(1), add(2).arg(2) | add(1)])).await.unwrap();
    result.save().await.unwrap();
    let program = format!(
        "from app import app; from celery.result import GroupResult; \
         print(GroupResult.restore({:?}, app=app).get(timeout=30))",
        result.id()
    );
    assert_eq!(python(&worker.queue, redis, &program), "[2, 5]");
    let program = "from app import *; from celery import group; \
                   result = group(add.s(3, 4), add.s(5, 6))(); result.save(); print(result.id)";
    let id = python(&worker.queue, redis, program);
    let restored = celery.saved_group(&id).await.unwrap().unwrap();
    assert_eq!(restored.get::<i64>(PATIENCE).await.unwrap(), [7, 11]);
    restored.forget().await.unwrap();
    assert!(celery.saved_group(&id).await.unwrap().is_none());
}

#[tokio::test]
#[ignore = "needs RabbitMQ and Celery: AMQP_URL, PYTHON"]
async fn over_rpc_each_step_answers_the_client_that_sent_the_chain() {
    let worker = PythonWorker::start("rpc://");
    let celery = client(&worker.queue, Some("rpc://")).await;
    canvases_without_chords(&celery).await;
    let result = celery.send(&(add(1).arg(1) | add(1))).await.unwrap();
    assert_eq!(result.get::<i64>(PATIENCE).await.unwrap(), 3);
    assert_eq!(result.parent().unwrap().get::<i64>(PATIENCE).await.unwrap(), 2);
    let refused = celery.send(&chord([add(1).arg(1)], sum())).await.unwrap_err();
    assert!(matches!(refused, SendError::NoChords), "{refused}");
    worker.stop().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, REDIS_URL, PYTHON"]
async fn tasks_wait_in_the_broker_for_a_worker_of_quorum_queues() {
    let redis = setting("REDIS_URL");
    let name = unique("client-test");
    let settings = Celery::builder(setting("AMQP_URL").parse().unwrap()).delay_in_broker(true);
    let celery = settings.default_queue(&*name).results(redis.parse().unwrap()).connect().await.unwrap();
    // Made by the client: nothing can be lost before a worker comes.
    let wait = Duration::from_millis(2500);
    celery.send(&add(1).arg(2).countdown(wait)).await.unwrap();
    let connection = connect(&setting("AMQP_URL").parse().unwrap(), "test").await.unwrap();
    assert_eq!(queue::inspect(&connection, &name).await.unwrap().ready, 0);
    let deadline = Instant::now() + Duration::from_secs(10);
    while queue::inspect(&connection, &name).await.unwrap().ready == 0 {
        assert!(Instant::now() < deadline, "the delayed message did not come");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    delete(&name).await;

    let version = python(&name, &redis, "import celery; print(celery.__version__)");
    if version.starts_with("5.3") || version.starts_with("5.4") {
        // Older workers can't consume from quorum queues at all.
        return;
    }
    let worker = PythonWorker::start_with(&redis, "solo", true);
    // As the worker will, or this client would make a classic queue of it.
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    let channel = connection.create_channel().await.unwrap();
    channel.queue_declare(worker.queue.as_str().into(), durable, quorum).await.unwrap();
    let now = add(1).arg(1).queue(&*worker.queue);
    celery.send(&now).await.unwrap().get::<i64>(PATIENCE).await.unwrap();
    let sent = Instant::now();
    let result = celery.send(&now.countdown(wait)).await.unwrap();
    assert_eq!(result.get::<i64>(PATIENCE).await.unwrap(), 2);
    assert!(sent.elapsed() >= wait && sent.elapsed() < wait * 3, "{:?}", sent.elapsed());
    worker.stop().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
async fn tasks_go_where_their_names_say() {
    let (red, blue) = (unique("red"), unique("blue"));
    let connection = connect(&setting("AMQP_URL").parse().unwrap(), "test").await.unwrap();
    let celery = Celery::builder(setting("AMQP_URL").parse().unwrap())
        .default_queue(&*red)
        .route("reports.*", Route::to_queue(&*blue))
        .connect()
        .await
        .unwrap();
    let report = || Signature::new("reports.monthly");
    celery.send(&report()).await.unwrap();
    celery.send(&report().queue(&*red)).await.unwrap();
    celery.send_group(&group([report(), report() | add(1), add(1)])).await.unwrap();
    let ready = async |name: &str| queue::inspect(&connection, name).await.unwrap().ready;
    assert_eq!((ready(&red).await, ready(&blue).await), (2, 3));
    delete(&red).await;
    delete(&blue).await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
async fn what_can_not_be_sent_is_refused_before_anything_is() {
    let name = unique("client-test");
    let celery = client(&name, None).await;
    let refused = celery.send(&group([add(1)])).await.unwrap_err();
    assert!(refused.to_string().contains("send_group"), "{refused}");
    let refused = celery.send_group(&add(1)).await.unwrap_err();
    assert!(matches!(refused, SendError::Shape(_)), "{refused}");
    assert!(matches!(celery.send(&(group([add(1), add(2)]) | sum())).await, Err(SendError::NoChords)));
    assert!(matches!(celery.send(&chain([])).await, Err(SendError::Canvas(_))));
    let no_retries = Celery::builder(setting("AMQP_URL").parse().unwrap())
        .default_queue(&*name)
        .create_missing_queues(false)
        .retry_policy(celery_client::RetryPolicy::never())
        .connect()
        .await
        .unwrap();
    let refused = no_retries.send(&add(1)).await.unwrap_err();
    assert!(matches!(refused, SendError::Publish(PublishError::Unroutable { .. })), "{refused}");
}
