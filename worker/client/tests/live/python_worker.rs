//! Tasks sent to a real Python worker, and its results read.

use crate::support::{PythonWorker, client, setting};
use celery_client::{Celery, ResultError, Signature, State};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use std::time::Duration;

/// A Python worker takes seconds to start.
const PATIENCE: Duration = Duration::from_secs(60);

async fn adds_and_fails(celery: &Celery) {
    let result = celery.send_task("tk.add", &(1, 2), &()).await.unwrap();
    assert_eq!(result.get::<i64>(PATIENCE).await.unwrap(), 3);
    assert!(result.ready().await.unwrap());
    let result = celery.send_task("tk.add", &(), &json!({"x": "a", "y": "b"})).await.unwrap();
    assert_eq!(result.get::<String>(PATIENCE).await.unwrap(), "ab");

    let spawned = celery.clone();
    let sum = tokio::spawn(async move {
        spawned.send_task("tk.add", &(2, 2), &()).await.unwrap().get::<i64>(PATIENCE).await
    });
    assert_eq!(sum.await.unwrap().unwrap(), 4);

    let failed = celery.send_task("tk.fail", &(), &()).await.unwrap();
    let ResultError::Task(error) = failed.get::<Value>(PATIENCE).await.unwrap_err() else {
        panic!("the task did not fail");
    };
    assert_eq!((error.state, error.exception.repr().as_str()), (State::Failure, "ValueError('boom', 3)"));
    assert!(error.traceback.unwrap().contains("in fail"));

    let error =
        celery.send_task("tk.add", &(1, 2), &()).await.unwrap().get::<String>(PATIENCE).await.unwrap_err();
    assert!(matches!(error, ResultError::Type { .. }), "{error}");

    let results = try_join_all((0..200).map(|n| async move {
        celery.send_task("tk.add", &(n, n), &()).await.unwrap().get::<i64>(PATIENCE).await
    }));
    assert_eq!(results.await.unwrap(), (0..200).map(|n| 2 * n).collect::<Vec<_>>());
}

#[tokio::test]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, REDIS_URL, PYTHON"]
async fn results_come_through_redis() {
    let redis = setting("REDIS_URL");
    let worker = PythonWorker::start(&redis);
    let celery = client(&worker.queue, Some(&redis)).await;
    adds_and_fails(&celery).await;

    let celery = &celery;
    let sent = try_join_all((0..1000).map(|n| async move { celery.send(&add(n)).await })).await.unwrap();
    for result in &sent {
        result.wait(PATIENCE).await.unwrap();
    }
    let ids: Vec<&str> = sent.iter().map(|result| result.id()).chain(["unknown"]).collect();
    let metas = celery.results(&ids).await.unwrap();
    for (n, meta) in metas[..1000].iter().enumerate() {
        assert_eq!(meta.as_ref().unwrap().result_as::<usize>().unwrap(), n + 1);
    }
    assert!(metas[1000].is_none());

    let result = sent.into_iter().next().unwrap();
    let id = result.id().to_owned();
    assert_eq!(celery.result(&*id).state().await.unwrap(), State::Success);
    result.forget().await.unwrap();
    assert_eq!(celery.result(&*id).state().await.unwrap(), State::Pending);
    let error = celery.result(&*id).get::<Value>(Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(error, ResultError::Timeout { .. }), "{error}");
    worker.stop().await;
}

fn add(n: usize) -> Signature {
    Signature::new("tk.add").arg(n).arg(1)
}

#[tokio::test]
#[ignore = "needs RabbitMQ and Celery: AMQP_URL, PYTHON"]
async fn results_come_over_rpc() {
    let worker = PythonWorker::start("rpc://");
    let celery = client(&worker.queue, Some("rpc://")).await;
    adds_and_fails(&celery).await;
    assert!(matches!(celery.results(&["x"]).await, Err(ResultError::NoResultStore)));
    worker.stop().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, REDIS_URL, PYTHON"]
async fn each_option_reaches_the_worker() {
    let redis = setting("REDIS_URL");
    let worker = PythonWorker::start(&redis);
    let celery = client("elsewhere", Some(&redis)).await;
    let signature = Signature::new("tk.seen")
        .queue(&*worker.queue)
        .task_id("chosen-by-the-caller")
        .countdown(Duration::from_millis(300))
        .expires(Duration::from_secs(600))
        .priority(3)
        .time_limit(Duration::from_secs(20))
        .shadow("shown")
        .header("tenant", "acme")
        .stamp("label", "x");
    let result = celery.send(&signature).await.unwrap();
    let seen: Value = result.get(PATIENCE).await.unwrap();
    assert_eq!(seen["id"], "chosen-by-the-caller");
    assert_eq!(seen["root_id"], "chosen-by-the-caller");
    assert_eq!(seen["parent_id"], Value::Null);
    assert_eq!(seen["timelimit"], json!([20, null]));
    assert_eq!(seen["shadow"], "shown");
    assert_eq!(seen["tenant"], "acme");
    assert_eq!(seen["stamps"], json!({"label": "x"}));
    assert_eq!(seen["priority"], 3);
    assert!(seen["expires"].is_string() && seen["origin"].as_str().unwrap().starts_with("gen"), "{seen}");

    let ignored = celery.send(&add(1).queue(&*worker.queue).ignore_result(true)).await.unwrap();
    assert!(matches!(ignored.get::<Value>(PATIENCE).await, Err(ResultError::Ignored(_))));

    let callback = Signature::new("tk.add").arg(100).queue(&*worker.queue).task_id("linked-by-the-caller");
    celery.send(&add(1).queue(&*worker.queue).link(callback)).await.unwrap();
    assert_eq!(celery.result("linked-by-the-caller").get::<i64>(PATIENCE).await.unwrap(), 102);
    result.forget().await.unwrap();
    celery.result("linked-by-the-caller").forget().await.unwrap();
    worker.stop().await;
}

#[test]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, REDIS_URL, PYTHON"]
fn a_program_that_is_not_async_gets_its_results_too() {
    for results in [setting("REDIS_URL").as_str(), "rpc://"] {
        let worker = PythonWorker::start(results);
        let settings = Celery::builder(setting("AMQP_URL").parse().unwrap())
            .default_queue(&*worker.queue)
            .results(results.parse().unwrap());
        let celery = celery_client::blocking::Celery::connect(settings).unwrap();
        let result = celery.send_task("tk.add", &(1, 2), &()).unwrap();
        assert_eq!(result.get::<i64>(PATIENCE).unwrap(), 3);
        assert_eq!(result.state().unwrap(), State::Success);
        result.forget().unwrap();
        tokio::runtime::Runtime::new().unwrap().block_on(worker.stop());
    }
}
