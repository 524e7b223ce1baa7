//! Greeting the other workers at the start: who is there, which calls are revoked, what time it is on their clocks.

use std::{sync::Arc, time::Duration};

use celery_client::amqp::{self, short};
use celery_protocol::{
    Map, Message,
    control::{self, Command, ReplyTo},
};
use futures_util::StreamExt;
use lapin::{
    options::{BasicConsumeOptions, BasicPublishOptions, QueueBindOptions},
    types::{FieldTable, ShortString},
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::{Panel, declare_mailbox, json_properties};
use crate::broker::{BrokerError, Linked, answer};

/// How long others have to answer, as in Celery.
const PATIENCE: Duration = Duration::from_secs(1);

/// Says hello and learns from the answers.
pub(super) async fn mingle(panel: Arc<Panel>, linked: Linked) {
    match greet(&panel, &linked).await {
        Ok(neighbours) if neighbours.is_empty() => info!(neighbours = 0, "all alone"),
        Ok(neighbours) => {
            info!(neighbours = neighbours.len(), names = neighbours.join(","), "met the neighbours")
        }
        Err(error) => warn!(problem = error.describe(), "can't greet the other workers"),
    }
}

async fn greet(panel: &Panel, linked: &Linked) -> Result<Vec<String>, BrokerError> {
    let channel = answer("open a channel", linked.connection.create_channel()).await?;
    let caller = uuid::Uuid::new_v4().to_string();
    let queue = short(&control::reply_queue(&caller));
    declare_mailbox(&channel, queue.clone()).await?;
    let bind = channel.queue_bind(
        queue.clone(),
        control::REPLY_EXCHANGE.into(),
        short(&caller),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    answer("bind the queue for answers", bind).await?;
    let no_ack = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let consume = channel.basic_consume(queue, ShortString::default(), no_ack, FieldTable::default());
    let mut answers = answer("read the answers", consume).await?;
    let message = hello(panel, caller);
    let publish = channel.basic_publish(
        control::EXCHANGE.into(),
        ShortString::default(),
        BasicPublishOptions::default(),
        &message.body,
        amqp::basic_properties(&message),
    );
    answer("say hello", publish).await?;

    let deadline = Instant::now() + PATIENCE;
    let mut neighbours = Vec::new();
    while let Ok(Some(Ok(delivery))) = timeout_at(deadline, answers.next()).await {
        for (node, reply) in control::decode_reply(&delivery.data).unwrap_or_default() {
            if node != *panel.node {
                learn(panel, &reply);
                neighbours.push(node);
            }
        }
    }
    answer("close a channel", channel.close(200, short("done"))).await?;
    Ok(neighbours)
}

fn hello(panel: &Panel, caller: String) -> Message {
    let arguments = json!({"from_node": &*panel.node, "revoked": panel.revoked.ids()});
    let command = Command {
        method: "hello".to_owned(),
        arguments: arguments.as_object().cloned().unwrap_or_default(),
        ticket: Some(caller.clone()),
        reply_to: Some(ReplyTo { exchange: control::REPLY_EXCHANGE.to_owned(), routing_key: caller }),
        ..Command::default()
    };
    Message {
        headers: Map::from_iter([("clock".to_owned(), panel.clock.forward().into())]),
        properties: json_properties(2),
        body: command.encode(),
    }
}

fn learn(panel: &Panel, reply: &Value) {
    if let Some(clock) = reply.get("clock").and_then(Value::as_u64) {
        panel.clock.adjust(clock);
    }
    panel.adopt(reply.get("revoked"));
}
