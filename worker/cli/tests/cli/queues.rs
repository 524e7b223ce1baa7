//! Purging queues, and moving messages between them.

use crate::support::{json, on_broker, out, run, soloist, unique};
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, BasicRejectOptions, QueueDeclareOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use serde_json::json as value;

async fn declare(channel: &Channel, queue: &str, arguments: FieldTable) {
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(queue.into(), options, arguments).await.unwrap();
}

async fn ready(channel: &Channel, queue: &str) -> u32 {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap().message_count()
}

fn count(queue: &str) -> u32 {
    on_broker(async |channel| ready(&channel, queue).await)
}

fn delete(queues: &[&str]) {
    on_broker(async |channel| {
        for queue in queues {
            channel.queue_delete((*queue).into(), Default::default()).await.unwrap();
        }
    });
}

#[test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
fn a_queue_is_purged_only_when_that_was_confirmed() {
    let name = unique();
    for _ in 0..3 {
        out(soloist(&["call", "-Q", &name, "t"]));
    }
    let said = run(soloist(&["purge", &name]));
    assert!(said.code == 2 && said.err.contains("--yes"), "{said:?}");
    assert_eq!(count(&name), 3);
    assert_eq!(json(soloist(&["purge", &name, "--yes"])), value!({ name.as_str(): 3 }));
    assert_eq!(count(&name), 0);
    delete(&[&name]);
}

#[test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
fn dead_letters_go_back_as_they_were() {
    let name = unique();
    let dead = format!("{name}.dead");
    let mut to_dead = FieldTable::default();
    to_dead.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
    to_dead.insert("x-dead-letter-routing-key".into(), AMQPValue::LongString(dead.as_str().into()));
    on_broker(async |channel| {
        declare(&channel, &name, to_dead).await;
        declare(&channel, &dead, FieldTable::default()).await;
    });
    let args = ["call", "-Q", &name, "t.dead", "1", "--task-id", "dead-id", "--header", "tenant=acme"];
    out(soloist(&args));
    on_broker(async |channel| {
        let message =
            channel.basic_get(name.as_str().into(), BasicGetOptions::default()).await.unwrap().unwrap();
        message.delivery.reject(BasicRejectOptions { requeue: false }).await.unwrap();
        // Answered after the broker has seen the rejection.
        channel.queue_purge(name.as_str().into(), QueuePurgeOptions::default()).await.unwrap();
    });
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while count(&dead) == 0 {
        assert!(std::time::Instant::now() < deadline, "no dead letter");
    }
    let moved = json(soloist(&["move", &dead, &name]));
    assert_eq!(moved, value!({"from": dead, "to": name, "moved": 1}));
    let (headers, body) = on_broker(async |channel| {
        let message =
            channel.basic_get(name.as_str().into(), BasicGetOptions::default()).await.unwrap().unwrap();
        let properties = &message.delivery.properties;
        assert_eq!(properties.correlation_id().as_ref().unwrap().as_str(), "dead-id");
        assert_eq!(*properties.delivery_mode(), Some(2));
        (celery_client::amqp::headers(properties.headers().as_ref().unwrap()), message.delivery.data.clone())
    });
    assert_eq!((&headers["task"], &headers["tenant"]), (&value!("t.dead"), &value!("acme")));
    assert!(!headers.keys().any(|name| name.starts_with("x-")), "{headers:?}");
    assert!(body.starts_with(b"[[1],{}"));
    delete(&[&name, &dead]);
}

#[test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
fn as_many_messages_are_moved_as_are_wanted_and_the_rest_stays() {
    let (from, to) = (unique(), unique());
    on_broker(async |channel| {
        declare(&channel, &from, FieldTable::default()).await;
        declare(&channel, &to, FieldTable::default()).await;
        for n in 0..1000_u32 {
            let body = n.to_string();
            let options = BasicPublishOptions::default();
            let properties = BasicProperties::default();
            channel
                .basic_publish("".into(), from.as_str().into(), options, body.as_bytes(), properties)
                .await
                .unwrap();
        }
        while ready(&channel, &from).await < 1000 {}
    });
    assert_eq!(
        out(soloist(&["move", &from, &to, "--limit", "450"])),
        format!("450 messages moved from {from} to {to}")
    );
    assert_eq!((count(&from), count(&to)), (550, 450));
    assert_eq!(json(soloist(&["move", &from, &to]))["moved"], 550);
    assert_eq!(json(soloist(&["move", &from, &to]))["moved"], 0);
    let order = on_broker(async |channel| {
        let mut numbers = Vec::new();
        let options = BasicGetOptions { no_ack: true };
        while let Some(message) = channel.basic_get(to.as_str().into(), options).await.unwrap() {
            numbers.push(String::from_utf8(message.delivery.data.clone()).unwrap().parse::<u32>().unwrap());
        }
        numbers
    });
    assert!(order.iter().copied().eq(0..1000), "in order, none lost, none twice");
    let said = run(soloist(&["move", &from, &format!("{to}-missing")]));
    assert!(said.code == 1 && said.err.contains("does not exist"), "{said:?}");
    delete(&[&from, &to]);
}

#[test]
#[ignore = "needs RabbitMQ: AMQP_URL"]
fn a_full_queue_takes_no_more_and_nothing_is_lost() {
    let (from, to) = (unique(), unique());
    let mut full = FieldTable::default();
    full.insert("x-max-length".into(), AMQPValue::LongInt(1));
    full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    on_broker(async |channel| {
        declare(&channel, &from, FieldTable::default()).await;
        declare(&channel, &to, full).await;
    });
    for _ in 0..5 {
        out(soloist(&["call", "-Q", &from, "t"]));
    }
    let said = run(soloist(&["move", &from, &to]));
    assert!(said.code == 1 && said.err.contains("refused a message"), "{said:?}");
    assert_eq!(count(&from), 5, "what was not confirmed stays");
    delete(&[&from, &to]);
}
