//! Remote control of a real Python worker, and its events.

use crate::support::{PythonWorker, client, setting, unique};
use celery_client::{Answers, Celery, Event, EventKind, NodeError, ResultError, Signature, State};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// A Python worker takes seconds to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the one worker that was asked has answered.
fn only<T>(mut answers: Answers<T>) -> Result<T, NodeError> {
    assert_eq!(answers.len(), 1);
    answers.pop_first().unwrap().1
}

/// A Python worker with two threads, so that it answers while it works, and a client of it.
async fn started() -> (PythonWorker, Celery) {
    let redis = setting("REDIS_URL");
    let worker = PythonWorker::start_with(&redis, "threads", false);
    let celery = client(&worker.queue, Some(&redis)).await;
    celery.send_task("tk.add", &(1, 2), &()).await.unwrap().get::<i64>(PATIENCE).await.unwrap();
    (worker, celery)
}

#[tokio::test]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, REDIS_URL, PYTHON"]
async fn workers_are_asked_what_they_do() {
    let (worker, celery) = started().await;
    let control = celery.control().to([worker.node()]).timeout(PATIENCE);
    assert_eq!(only(control.ping().await.unwrap()).unwrap(), "pong");
    let all = celery.control().ping().await.unwrap();
    assert!(all.contains_key(&worker.node()));
    let matching = celery.control().matching(format!("{}@*", worker.queue));
    assert_eq!(only(matching.ping().await.unwrap()).unwrap(), "pong");
    assert!(celery.control().to(["nobody@here"]).ping().await.unwrap().is_empty());

    let running = celery.send_task("tk.sleep", &(4,), &()).await.unwrap();
    let later = Signature::new("tk.sleep").arg(0).countdown(Duration::from_secs(600));
    let later = celery.send(&later).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    let active = loop {
        let active = only(control.active().await.unwrap()).unwrap();
        let scheduled = only(control.scheduled().await.unwrap()).unwrap();
        if !active.is_empty() && !scheduled.is_empty() {
            assert_eq!(scheduled[0].request.id, later.id());
            break active;
        }
        assert!(Instant::now() < deadline, "no active task, or none scheduled");
        sleep(Duration::from_millis(50)).await;
    };
    assert_eq!((active[0].id.as_str(), active[0].task.as_str()), (running.id(), "tk.sleep"));
    assert_eq!(active[0].delivery_info.routing_key, worker.queue);
    let found = only(control.query_task(&[running.id(), "unknown"]).await.unwrap()).unwrap();
    assert_eq!(found.keys().collect::<Vec<_>>(), [running.id()]);
    assert_eq!(found[running.id()].0, "active");
    only(control.reserved().await.unwrap()).unwrap();

    assert!(only(control.registered().await.unwrap()).unwrap().contains(&"tk.add".to_owned()));
    assert_eq!(only(control.active_queues().await.unwrap()).unwrap()[0].name, worker.queue);
    assert_eq!(only(control.stats().await.unwrap()).unwrap()["total"]["tk.add"], 1);
    let conf = only(control.conf(false).await.unwrap()).unwrap();
    assert_eq!(conf["task_default_queue"], json!(worker.queue));
    assert!(only(control.report().await.unwrap()).unwrap().contains("celery"));
    assert!(only(control.clock().await.unwrap()).unwrap()["clock"] > 0);

    let told = only(control.revoke(&[later.id()]).await.unwrap()).unwrap();
    assert!(told.contains("flagged as revoked"), "{told}");
    assert_eq!(only(control.revoked().await.unwrap()).unwrap(), [later.id()]);
    assert_eq!(running.get::<i64>(PATIENCE).await.unwrap(), 4);
    worker.stop().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, REDIS_URL, PYTHON"]
async fn workers_are_told_what_to_do() {
    let (mut worker, celery) = started().await;
    // Longer than a clock can say: it ends when the worker has answered.
    let control = celery.control().to([worker.node()]).timeout(Duration::MAX);
    let told = |answers| only::<String>(answers).unwrap();
    assert_eq!(
        told(control.rate_limit("tk.add", Some("10/m")).await.unwrap()),
        "new rate limit set successfully"
    );
    assert_eq!(told(control.rate_limit("tk.add", None).await.unwrap()), "rate limit disabled successfully");
    let limits = control.time_limit("tk.add", Some(Duration::from_secs(5)), Some(Duration::from_secs(9)));
    assert_eq!(told(limits.await.unwrap()), "time limits set successfully");
    let error = only(control.rate_limit("tk.unknown", Some("1/s")).await.unwrap()).unwrap_err();
    assert!(matches!(&error, NodeError::Refused(why) if why.contains("unknown task")), "{error}");
    assert!(only(control.pool_restart().await.unwrap()).is_err());
    assert!(only(control.autoscale(2, 1).await.unwrap()).is_err());
    // Only a prefork pool can do these.
    assert!(only(control.pool_grow(1).await.unwrap()).is_err());
    assert!(only(control.pool_shrink(1).await.unwrap()).is_err());

    let other = unique("client-test");
    assert!(told(control.add_consumer(&other).await.unwrap()).contains(&other));
    let there = Signature::new("tk.add").arg(1).arg(1).queue(&*other);
    assert_eq!(celery.send(&there).await.unwrap().get::<i64>(PATIENCE).await.unwrap(), 2);
    assert!(told(control.cancel_consumer(&other).await.unwrap()).contains("no longer consuming"));
    crate::support::delete(&other).await;

    let stamped =
        Signature::new("tk.add").arg(1).arg(1).stamp("tenant", "acme").countdown(Duration::from_secs(1));
    let stamped = celery.send(&stamped).await.unwrap();
    let stamps = json!({"tenant": "acme"});
    let answer = control.revoke_by_stamps(stamps.as_object().unwrap(), false).await.unwrap();
    assert!(told(answer).contains("flagged as revoked"));
    let ended = stamped.get::<Value>(PATIENCE).await.unwrap_err();
    assert!(matches!(&ended, ResultError::Task(error) if error.state == State::Revoked), "{ended}");
    only(control.terminate(&[unique("nothing")], "KILL").await.unwrap()).unwrap();

    control.shutdown().await.unwrap();
    worker.has_exited().await;
    worker.stop().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, REDIS_URL, PYTHON"]
async fn events_tell_of_workers_and_tasks() {
    let (worker, celery) = started().await;
    let control = celery.control().to([worker.node()]).timeout(PATIENCE);
    let mut events = celery.events().await.unwrap();
    assert!(only(control.enable_events().await.unwrap()).unwrap().contains("enabled"));
    let result = celery.send_task("tk.add", &(1, 2), &()).await.unwrap();
    let mut seen = BTreeSet::new();
    let mut has_beaten = false;
    let succeeded = async {
        // With threads, Celery 5.3 doesn't tell of the start.
        while !(has_beaten && seen.contains("task-received") && seen.contains("task-succeeded")) {
            let event: Event = events.next().await.unwrap();
            if event.hostname != worker.node() {
                continue;
            }
            let id = match &event.kind {
                EventKind::WorkerHeartbeat(_) => {
                    has_beaten = true;
                    continue;
                }
                EventKind::TaskReceived(received) => &received.uuid,
                EventKind::TaskStarted { uuid } | EventKind::TaskSucceeded { uuid, .. } => uuid,
                _ => continue,
            };
            assert_eq!(id, result.id());
            seen.insert(event.kind.name().to_owned());
        }
    };
    timeout(PATIENCE, succeeded).await.unwrap();
    assert!(only(control.disable_events().await.unwrap()).unwrap().contains("disabled"));
    control.heartbeat().await.unwrap();
    worker.stop().await;
}
