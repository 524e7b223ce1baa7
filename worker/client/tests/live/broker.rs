//! Sending without a worker: what arrives in queues, and what becomes of messages that can't.

use crate::support::{client, delete, setting, unique};
use celery_client::results::{ReplyAddress, RpcResults, StoreError};
use celery_client::{BrokerAddress, Celery, PublishError, ResultError, SendError, connect, queue};
use celery_protocol::{Message, Properties, TaskMeta};
use futures_util::future::join_all;
use lapin::options::{BasicGetOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;
use std::time::Duration;

fn address() -> BrokerAddress {
    setting("AMQP_URL").parse().unwrap()
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
async fn a_missing_queue_is_made_as_celery_makes_it() {
    let name = unique("client-test");
    let celery = client(&name, None).await;
    let result = celery.send_task("tk.add", &(1, 2), &()).await.unwrap();
    assert!(matches!(result.get::<Value>(Duration::from_secs(1)).await, Err(ResultError::NoResultStore)));

    let connection = connect(&address(), "test").await.unwrap();
    assert_eq!(queue::inspect(&connection, &name).await.unwrap().ready, 1);
    // A second declaration with Celery's settings is no contradiction.
    let channel = connection.create_channel().await.unwrap();
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(name.as_str().into(), durable, FieldTable::default()).await.unwrap();
    let message = channel.basic_get(name.as_str().into(), BasicGetOptions::default()).await.unwrap().unwrap();
    let headers = message.delivery.properties.headers().clone().unwrap();
    assert_eq!(headers.inner()["task"], AMQPValue::LongString("tk.add".into()));
    assert_eq!(
        message.delivery.data,
        br#"[[1,2],{},{"callbacks":null,"errbacks":null,"chain":null,"chord":null}]"#
    );
    assert_eq!(message.delivery.properties.delivery_mode(), &Some(2));
    delete(&name).await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
async fn a_queue_with_settings_of_its_own_is_left_alone() {
    let name = unique("client-test");
    let connection = connect(&address(), "test").await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(name.as_str().into(), durable, quorum).await.unwrap();
    let celery = client(&name, None).await;
    celery.send_task("tk.add", &(1, 2), &()).await.unwrap();
    delete(&name).await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
async fn a_message_that_no_queue_takes_is_an_error() {
    let name = unique("client-test");
    let celery = Celery::builder(address())
        .default_queue(&*name)
        .create_missing_queues(false)
        .connect()
        .await
        .unwrap();
    let error = celery.send_task("tk.add", &(1, 2), &()).await.unwrap_err();
    assert!(matches!(&error, SendError::Publish(PublishError::Unroutable { .. })), "{error}");
    assert_eq!(error.to_string(), format!("no queue takes messages for `{name}`"));
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
async fn among_many_messages_only_the_unroutable_ones_fail() {
    let name = unique("client-test");
    let connection = connect(&address(), "test").await.unwrap();
    queue::declare_default(&connection, &name).await.unwrap();
    let celery = &Celery::builder(address()).create_missing_queues(false).connect().await.unwrap();
    let missing = unique("missing");
    let (name_of, missing) = (name.as_str(), missing.as_str());
    let outcomes = join_all((0..2000).map(|n| async move {
        let queue = if n % 7 == 0 { missing } else { name_of };
        celery.send(&celery_client::Signature::new("tk.add").queue(queue)).await
    }));
    for (n, outcome) in outcomes.await.into_iter().enumerate() {
        assert_eq!(outcome.is_err(), n % 7 == 0, "{n}: {outcome:?}");
    }
    assert_eq!(queue::inspect(&connection, &name).await.unwrap().ready, 1714);
    delete(&name).await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
async fn a_missing_exchange_fails_only_what_is_sent_to_it() {
    let (name, missing) = (unique("client-test"), unique("missing"));
    let celery = &client(&name, None).await;
    let missing = missing.as_str();
    let outcomes = join_all((0..200).map(|n| async move {
        let add = celery_client::Signature::new("tk.add");
        celery
            .send(&if n == 100 { add.set("exchange", missing).set("routing_key", "any") } else { add })
            .await
    }));
    for (n, outcome) in outcomes.await.into_iter().enumerate() {
        assert_eq!(outcome.is_err(), n == 100, "{n}: {outcome:?}");
    }
    delete(&name).await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
async fn a_message_that_the_broker_refuses_fails_alone_and_answers_still_come() {
    let name = unique("client-test");
    let celery = &client(&name, Some("rpc://")).await;
    let before = celery.send_task("tk.add", &(1, 2), &()).await.unwrap();
    let properties = Properties { expiration: Some("soon".to_owned()), ..Properties::default() };
    let bad = Message { headers: Default::default(), properties, body: b"[[], {}, {}]".to_vec() };
    let send = async || celery.send_task("tk.add", &(1, 2), &()).await;
    let (neighbours, refused) = tokio::join!(
        join_all((0..200).map(|_| send())),
        join_all((0..3).map(|_| celery.forward(&name, &bad, 0))),
    );
    for error in refused {
        let error = error.unwrap_err();
        let text = format!("{:?}", anyhow::Error::from(error));
        assert!(text.contains("PRECONDITION_FAILED - invalid expiration"), "{text}");
    }
    for sent in neighbours {
        sent.unwrap();
    }
    let connection = connect(&address(), "test").await.unwrap();
    let ready = queue::inspect(&connection, &name).await.unwrap().ready;
    // What was on its way when the channel was closed may have arrived before.
    assert!((201..=401).contains(&ready), "{ready}");
    assert!(before.meta().await.unwrap().is_none(), "its answer may still come");
    delete(&name).await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
async fn a_result_over_rpc_that_is_too_large_for_the_broker_is_told_apart() {
    let connection = connect(&address(), "test").await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    // RabbitMQ's limit is 128 MiB, and 16 MiB from 4.0 on.
    let value = serde_json::value::to_raw_value(&"x".repeat(129 << 20)).unwrap();
    let meta = TaskMeta::success("id", value, jiff::Timestamp::now());
    let reply = ReplyAddress { queue: Some("nobody"), correlation_id: "id" };
    let error = RpcResults::new(channel).store(&meta, reply).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }) && error.is_permanent(), "{error:?}");
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
async fn a_result_over_rpc_that_a_full_queue_refuses_is_not_taken_for_sent() {
    let name = unique("client-test");
    let connection = connect(&address(), "test").await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let mut full = FieldTable::default();
    full.insert("x-max-length".into(), AMQPValue::LongInt(1));
    full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name.as_str().into(), exclusive, full).await.unwrap();
    let value = serde_json::value::to_raw_value(&1).unwrap();
    let meta = TaskMeta::success("id", value, jiff::Timestamp::now());
    let reply = ReplyAddress { queue: Some(&name), correlation_id: "id" };
    let results = RpcResults::new(channel);
    assert!(results.store(&meta, reply).await.unwrap());
    let error = results.store(&meta, reply).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }) && error.is_permanent(), "{error:?}");
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
async fn delayed_messages_come_to_a_queue_that_was_made_again() {
    let name = unique("client-test");
    let settings = Celery::builder(address()).default_queue(&*name).delay_in_broker(true);
    let celery = settings.connect().await.unwrap();
    let later = celery_client::Signature::new("tk.add").countdown(Duration::from_millis(1500));
    celery.send(&later).await.unwrap();
    delete(&name).await;
    tokio::time::sleep(Duration::from_millis(5500)).await;
    celery.send(&later).await.unwrap();
    let connection = connect(&address(), "test").await.unwrap();
    let arrived = async {
        while queue::inspect(&connection, &name).await.unwrap().ready == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), arrived).await.expect("the delayed message did not come");
    delete(&name).await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
async fn without_confirms_messages_arrive_also_after_one_that_closed_the_channel() {
    let name = unique("client-test");
    let celery = Celery::builder(address()).default_queue(&*name).confirms(false).connect().await.unwrap();
    let send = async || celery.send_task("tk.add", &(1, 2), &()).await.unwrap();
    join_all((0..200).map(|_| send())).await;
    let connection = connect(&address(), "test").await.unwrap();
    let arrived = async |wanted: u32| {
        while queue::inspect(&connection, &name).await.unwrap().ready < wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let patience = Duration::from_secs(10);
    tokio::time::timeout(patience, arrived(200)).await.expect("not all arrived");
    let missing = celery_client::Signature::new("tk.add").set("exchange", unique("missing"));
    celery.send(&missing.set("routing_key", "any")).await.unwrap();
    // What is sent before the broker has closed the channel is lost.
    let again = async {
        while queue::inspect(&connection, &name).await.unwrap().ready == 200 {
            send().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(patience, again).await.expect("nothing arrives any more");
    delete(&name).await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
async fn a_full_queue_refuses() {
    let name = unique("client-test");
    let connection = connect(&address(), "test").await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(name.as_str().into(), durable, arguments).await.unwrap();
    let celery = client(&name, None).await;
    celery.send_task("tk.add", &(1, 2), &()).await.unwrap();
    let error = celery.send_task("tk.add", &(1, 2), &()).await.unwrap_err();
    assert!(matches!(&error, SendError::Publish(PublishError::Refused { .. })), "{error}");
    delete(&name).await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
async fn a_lost_connection_is_made_anew() {
    let name = unique("client-test");
    let celery = client(&name, Some("rpc://")).await;
    let before = celery.send_task("tk.add", &(1, 2), &()).await.unwrap();
    // Closing is what a broker does to a client that it wants to be rid of.
    celery.close().await;
    let lost = before.get::<Value>(Duration::from_secs(5)).await.unwrap_err();
    assert!(matches!(lost, ResultError::Lost(_)), "{lost}");
    celery.send_task("tk.add", &(1, 2), &()).await.unwrap();
    let connection = connect(&address(), "test").await.unwrap();
    assert_eq!(queue::inspect(&connection, &name).await.unwrap().ready, 2);
    delete(&name).await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
async fn a_wrong_password_is_told_apart_from_a_broker_that_is_away() {
    let mut wrong = address();
    wrong.password = "wrong".into();
    let error = connect(&wrong, "test").await.unwrap_err();
    assert_eq!(error.category(), "access_refused", "{error:?}");
    let mut wrong = address();
    wrong.vhost = "no-such-vhost".into();
    let error = connect(&wrong, "test").await.unwrap_err();
    assert_eq!(error.category(), "access_refused", "{error:?}");
    let mut away = address();
    away.port = 1;
    assert_eq!(connect(&away, "test").await.unwrap_err().category(), "unreachable");
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
async fn a_broker_that_says_nothing_is_given_up() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut address = address();
    address.host = "127.0.0.1".to_owned();
    address.port = silent.local_addr().unwrap().port();
    address.connect_timeout = Duration::from_millis(300);
    assert_eq!(connect(&address, "test").await.unwrap_err().category(), "timeout");
}

#[tokio::test]
#[ignore = "needs Redis: REDIS_URL"]
async fn a_success_is_never_overwritten() {
    use celery_client::results::{RedisResults, ResultStoreAddress};
    let ResultStoreAddress::Redis(address) = setting("REDIS_URL").parse().unwrap() else {
        panic!("not Redis")
    };
    let store = RedisResults::connect(&address).await.unwrap();
    let id = unique("client-test");
    let now = jiff::Timestamp::now();
    let raw = |text: &str| serde_json::value::RawValue::from_string(text.into()).unwrap();
    let state = async || store.get(&id).await.unwrap().unwrap();
    let failure = TaskMeta::failure(&*id, &celery_protocol::Exception::builtin("ValueError", "x"), None, now);

    let started = TaskMeta::started(&*id, 1, "celery@a");
    assert!(store.store(&started).await.unwrap());
    // A start that comes late replaces no end, though another end does, and no start of a retry is late.
    for end in [&failure, &TaskMeta::revoked(&*id, "revoked", now), &failure] {
        assert!(store.store(end).await.unwrap());
        assert!(!store.store(&started).await.unwrap());
        assert_eq!(state().await.status, end.status);
    }
    assert!(store.store(&TaskMeta::retry(&*id, None, None)).await.unwrap());
    assert!(store.store(&started).await.unwrap());
    assert!(store.store(&failure).await.unwrap());
    // A failure whose text mentions a success is still none.
    let mention = TaskMeta::success(&*id, raw(r#"{"status": "SUCCESS"}"#), now);
    let mention = TaskMeta { status: "RETRY".into(), ..mention };
    assert!(store.store(&mention).await.unwrap());
    assert!(store.store(&TaskMeta::success(&*id, raw("3"), now)).await.unwrap());
    assert!(!store.store(&failure).await.unwrap() && !store.store(&started).await.unwrap());
    assert_eq!(state().await.result.get(), "3");
    store.forget(&id).await.unwrap();
    assert!(store.get(&id).await.unwrap().is_none());
}
