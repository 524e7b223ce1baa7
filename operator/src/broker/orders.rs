//! The connection over which workers are told: opened when there is something to tell, closed when there was nothing for a while.
//!
//! Messages go to a worker's own mailbox through the default exchange, so that no other worker hears of them. Reading queues has a
//! connection of its own: a broker in alarm stops reading from whoever publishes.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use celery_client::BrokerAddress;
use celery_client::amqp::{self, short};
use celery_protocol::control::{self, ReplyTo};
use celery_protocol::{Map, Message, Properties, content};
use futures_util::StreamExt as _;
use kube::runtime::reflector::ObjectRef;
use lapin::message::Delivery;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, Consumer, ExchangeKind};
use serde_json::Value;
use tokio::time::{sleep, sleep_until};

use super::connection::{Failure, Lost, answered};
use super::errands::Command;
use super::state::Shared;
use crate::api::v1alpha1::TaskQueue;

/// The connection is closed when there was nothing to tell for this long.
const IDLE: Duration = Duration::from_secs(60);

/// Wait before the next attempt to connect.
const RETRY: Duration = Duration::from_secs(5);

/// Workers answer one by one. What they say within this time is told to a TaskQueue together, so that it scales in once.
const SETTLE: Duration = Duration::from_millis(50);

/// Tells workers what they are ordered, for as long as the broker is connected.
pub(super) async fn run(address: &BrokerAddress, name: &str, shared: &Shared) {
    let name = format!("{name} control");
    loop {
        while shared.errands.next_due().is_none() {
            shared.errands.changed.notified().await;
        }
        let problem = match celery_client::connect(address, &name).await {
            Ok(connection) => match serve(&connection, shared).await {
                Ok(()) => continue,
                Err(lost) => lost.to_string(),
            },
            Err(error) => error.to_string(),
        };
        tracing::warn!(broker = %address, problem, "can't tell workers anything: scale-in rests");
        shared.errands.ask_anew(Instant::now());
        sleep(RETRY).await;
    }
}

/// Sends what is due and takes in the replies, until there is nothing to tell any more.
async fn serve(connection: &Connection, shared: &Shared) -> Result<(), Lost> {
    let (channel, reply_to, mut replies) = open(connection).await.map_err(|failure| match failure {
        Failure::Lost(lost) => lost,
        Failure::Refused(error) => error.into(),
    })?;
    let mut obeyed = HashSet::new();
    let mut settled: Option<Instant> = None;
    loop {
        for (node, commands) in shared.errands.due(Instant::now()) {
            for command in commands {
                send(connection, &channel, &node, command, &reply_to).await?;
            }
        }
        let due = shared.errands.next_due();
        let wake = [due, settled].into_iter().flatten().min();
        tokio::select! {
            reply = replies.next() => match reply {
                Some(Ok(reply)) => {
                    let by_them = take_in(&reply, shared);
                    if !by_them.is_empty() {
                        settled.get_or_insert_with(|| Instant::now() + SETTLE);
                        obeyed.extend(by_them);
                    }
                }
                Some(Err(error)) => return Err(error.into()),
                None => return Err(Lost("the queue for replies is gone".to_owned())),
            },
            () = sleep_until(wake.unwrap_or_else(|| Instant::now() + IDLE).into()) => {
                if wake.is_none() {
                    return Ok(());
                }
            }
            () = shared.errands.changed.notified() => {}
        }
        if settled.is_some_and(|settled| settled <= Instant::now()) {
            settled = None;
            for task_queue in obeyed.drain() {
                shared.trigger(task_queue);
            }
        }
    }
}

async fn open(connection: &Connection) -> Result<(Channel, ReplyTo, Consumer), Failure> {
    let channel = answered(connection, "open a channel", connection.create_channel()).await?;
    let transient = ExchangeDeclareOptions::default();
    let exchange = short(control::REPLY_EXCHANGE);
    let declaring =
        channel.exchange_declare(exchange.clone(), ExchangeKind::Direct, transient, FieldTable::default());
    answered(connection, "declare the exchange of replies", declaring).await?;
    let caller = format!("soloist-operator-{:016x}", fastrand::u64(..));
    let queue = short(&control::reply_queue(&caller));
    let own = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let declaring = channel.queue_declare(queue.clone(), own, FieldTable::default());
    answered(connection, "declare a queue for replies", declaring).await?;
    let binding = channel.queue_bind(
        queue.clone(),
        exchange,
        short(&caller),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    answered(connection, "bind the queue for replies", binding).await?;
    let no_ack = BasicConsumeOptions { no_ack: true, exclusive: true, ..BasicConsumeOptions::default() };
    let consuming = channel.basic_consume(queue, short("soloist-operator"), no_ack, FieldTable::default());
    let replies = answered(connection, "consume replies", consuming).await?;
    let reply_to = ReplyTo { exchange: control::REPLY_EXCHANGE.to_owned(), routing_key: caller };
    Ok((channel, reply_to, replies))
}

async fn send(
    connection: &Connection,
    channel: &Channel,
    node: &str,
    command: Command,
    reply_to: &ReplyTo,
) -> Result<(), Lost> {
    let wants_reply = command.ticket.is_some();
    let command = control::Command {
        method: command.method.to_owned(),
        arguments: command.arguments,
        destination: Some(vec![node.to_owned()]),
        ticket: command.ticket,
        reply_to: wants_reply.then(|| reply_to.clone()),
        ..control::Command::default()
    };
    let message = Message {
        // Celery's logical clock: zero moves nobody's.
        headers: Map::from_iter([("clock".to_owned(), 0.into()), ("expires".to_owned(), 0.into())]),
        properties: Properties {
            content_type: Some(content::JSON.to_owned()),
            content_encoding: Some(content::UTF_8.to_owned()),
            delivery_mode: Some(1),
            ..Properties::default()
        },
        body: command.encode(),
    };
    // A worker that isn't there has no mailbox: the broker drops the message, and it is sent again.
    let publishing = channel.basic_publish(
        ShortString::default(),
        short(&control::mailbox(node)),
        BasicPublishOptions::default(),
        &message.body,
        amqp::basic_properties(&message),
    );
    match answered(connection, "tell a worker", publishing).await {
        Ok(_confirm) => Ok(()),
        Err(Failure::Lost(lost)) => Err(lost),
        Err(Failure::Refused(error)) => Err(error.into()),
    }
}

/// Takes in a reply. Returns the TaskQueues whose workers have obeyed by that.
fn take_in(reply: &Delivery, shared: &Shared) -> Vec<ObjectRef<TaskQueue>> {
    let headers = reply.properties.headers().as_ref().map(amqp::headers).unwrap_or_default();
    let Some(ticket) = headers.get("ticket").and_then(Value::as_str) else { return Vec::new() };
    let Ok(answers) = control::decode_reply(&reply.data) else { return Vec::new() };
    let now = Instant::now();
    answers
        .into_iter()
        .filter_map(|(node, answer)| shared.errands.answered(&node, ticket, answer, now))
        .collect()
}
