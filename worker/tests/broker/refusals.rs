//! Messages that can't be run: each is refused once, with the reason stored, and the worker lives.

use serde_json::{Value, json};

use crate::support::{Broker, Call, Celery, Message, eventually, stored, unique, worker};

/// Publishes a message made from a good one, and checks that it ends as `state` with `exc_type`, its queue empty and the
/// worker at work.
async fn ends_as(state: &str, exc_type: &str, spoil: impl FnOnce(&mut Message)) -> Value {
    let queue = unique("refused");
    let broker = Broker::connect().await;
    let mut worker = worker(&queue).ready();
    let id = unique("id");
    let mut message = Message::call(&id, "tasks.add", &json!([1, 2]));
    spoil(&mut message);
    broker.publish(&queue, message).await;
    let (meta, _) = eventually("a result is stored", || stored(&id));
    assert_eq!((&meta["status"], &meta["result"]["exc_type"]), (&json!(state), &json!(exc_type)), "{meta}");
    let seen = Celery::with_redis(&queue).call([Call::sent(&id), Call::new("tasks.add", json!([1, 2]))]);
    assert_eq!((&seen[0]["state"], &seen[0]["error"]), (&json!(state), &json!(exc_type)), "{}", seen[0]);
    assert_eq!(seen[1]["value"], json!(3));
    broker.wait_for_counts(&queue, 0, 0).await;
    assert!(worker.is_running());
    broker.remove(&queue);
    meta
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn what_celery_sends_in_other_formats_is_refused_by_name() {
    let queue = unique("formats");
    let broker = Broker::connect().await;
    let worker = worker(&queue).ready();
    let formats = [
        ("pickle", "application/x-python-serialize"),
        ("yaml", "application/x-yaml"),
        ("msgpack", "application/x-msgpack"),
    ];
    let calls = formats.map(|(serializer, _)| {
        Call::new("tasks.add", json!([1, 2])).options(json!({"serializer": serializer}))
    });
    let outcomes = Celery::with_redis(&queue).call(calls);
    for (outcome, (_, content_type)) in outcomes.iter().zip(formats) {
        let told = (&outcome["state"], &outcome["error"], &outcome["module"]);
        assert_eq!(told, (&json!("FAILURE"), &json!("ContentDisallowed"), &json!("kombu.exceptions")));
        assert!(outcome["message"].as_str().unwrap().contains(content_type), "{outcome}");
    }
    assert_eq!(worker.metric("soloist_task_started_total{task=\"tasks.add\"}"), Some(0.0));
    broker.wait_for_counts(&queue, 0, 0).await;
    broker.remove(&queue);
}

macro_rules! refusals {
    ($($name:ident: $state:literal $exc_type:literal $spoil:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        #[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
        async fn $name() {
            ends_as($state, $exc_type, $spoil).await;
        }
    )*};
}

refusals! {
    pickle_is_content_disallowed: "FAILURE" "ContentDisallowed" |message: &mut Message| {
        message.content_type = Some("application/x-python-serialize");
        message.body = b"\x80\x04\x95".to_vec();
    };
    a_missing_content_type_is_disallowed: "FAILURE" "ContentDisallowed" |message: &mut Message| {
        message.content_type = None;
    };
    a_body_that_is_not_json_is_a_decode_error: "FAILURE" "DecodeError" |message: &mut Message| {
        message.body = b"[[1, 2], {}".to_vec();
    };
    a_body_of_two_elements_is_an_invalid_task: "FAILURE" "InvalidTaskError" |message: &mut Message| {
        message.body = b"[[1, 2], {}]".to_vec();
    };
    keyword_arguments_that_are_a_list_are_an_invalid_task: "FAILURE" "InvalidTaskError" |message: &mut Message| {
        message.body = b"[[1, 2], [], {}]".to_vec();
    };
    an_eta_that_is_no_date_is_an_invalid_task: "FAILURE" "InvalidTaskError" |message: &mut Message| {
        message.headers["eta"] = json!("soon");
    };
    an_unknown_task_is_not_registered: "FAILURE" "NotRegistered" |message: &mut Message| {
        message.headers["task"] = json!("tasks.nope");
    };
    an_expired_task_is_revoked: "REVOKED" "TaskRevokedError" |message: &mut Message| {
        message.headers["expires"] = json!("2020-01-01T00:00:00+00:00");
    };
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ, Redis and Celery: AMQP_URL, MANAGEMENT_URL, REDIS_URL, PYTHON"]
async fn a_message_that_is_no_task_is_rejected_and_logged() {
    let queue = unique("no-task");
    let broker = Broker::connect().await;
    let mut worker = worker(&queue).ready();
    let message =
        Message { headers: json!({}), content_type: Some("application/json"), body: b"{}".to_vec() };
    broker.publish(&queue, message).await;
    let entry = worker.wait_for("message rejected: it can't be read", |_| true);
    assert_eq!(entry["category"], "not_a_task");
    broker.wait_for_counts(&queue, 0, 0).await;
    assert_eq!(worker.metric("soloist_task_rejected_total{task=\"unregistered\"}"), Some(1.0));
    assert!(worker.is_running());
    broker.remove(&queue);
}
