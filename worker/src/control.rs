//! Remote control: commands that monitors and administrators broadcast to workers, answered also while a task runs.
//!
//! The worker listens on a mailbox of its own, a queue on the connection that it publishes over. It is exclusive: of two
//! workers with one name the second is refused, and waits.

mod mingle;
mod panel;
mod show;

use std::{sync::Arc, time::Duration};

use celery_client::amqp::{self, short};
use celery_protocol::{
    Map, Message, Properties, content,
    control::{self, Command, ReplyTo},
};
use futures_util::StreamExt;
use lapin::{
    Channel, ExchangeKind,
    message::Delivery,
    options::{
        BasicConsumeOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::Value;
use tokio::task::JoinSet;
use tracing::{debug, warn};

pub(crate) use self::panel::Panel;
use crate::{
    backoff::{self, Backoff},
    broker::{BrokerError, Link, Linked, answer},
};

/// Answers commands for as long as the worker lives.
pub(crate) async fn serve(panel: Arc<Panel>, link: Link) {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    loop {
        let linked = link.ready().await;
        let problem = match listen(&panel, &linked, &mut backoff).await {
            Ok(()) => "the mailbox was closed".to_owned(),
            Err(error) => error.describe(),
        };
        let wait = backoff.next(backoff::random());
        // If it is refused, another worker has this name, or this one's last connection is not quite gone.
        warn!(node = &*panel.node, problem, retry_in = ?wait, "remote control is interrupted");
        tokio::time::sleep(wait).await;
    }
}

/// Opens the mailbox and answers what comes, until it is closed.
async fn listen(panel: &Arc<Panel>, linked: &Linked, backoff: &mut Backoff) -> Result<(), BrokerError> {
    let channel = answer("open a channel", linked.connection.create_channel()).await?;
    declare_exchanges(&channel).await?;
    let queue = short(&control::mailbox(&panel.node));
    declare_mailbox(&channel, queue.clone()).await?;
    let bind = channel.queue_bind(
        queue.clone(),
        control::EXCHANGE.into(),
        ShortString::default(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    answer("bind the mailbox", bind).await?;
    let no_ack = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let consume = channel.basic_consume(queue, ShortString::default(), no_ack, FieldTable::default());
    let mut mailbox = answer("read the mailbox", consume).await?;
    backoff.reset();
    debug!("listening to remote control");
    // Ends with this function, however it ends.
    let mut mingling = JoinSet::new();
    mingling.spawn(mingle::mingle(Arc::clone(panel), linked.clone()));
    while let Some(delivery) = mailbox.next().await {
        let delivery =
            delivery.map_err(|source| BrokerError::Refused { doing: "read the mailbox", source })?;
        if let Some((reply, to, ticket)) = obey(panel, &delivery) {
            send_reply(panel, &channel, reply, &to, ticket).await?;
        }
    }
    Ok(())
}

/// Carries out a command; gives the reply, where it goes and its label, if one is wanted.
fn obey(panel: &Panel, delivery: &Delivery) -> Option<(Value, ReplyTo, String)> {
    let headers = delivery.properties.headers().as_ref().map(amqp::headers).unwrap_or_default();
    if let Some(clock) = headers.get("clock").and_then(Value::as_u64) {
        panel.clock.adjust(clock);
    }
    let command = match Command::decode(&delivery.data) {
        Ok(command) => command,
        Err(error) => {
            debug!(%error, "remote control message can't be read");
            return None;
        }
    };
    if !command.is_for(&panel.node) {
        return None;
    }
    debug!(method = command.method, "remote control");
    let reply = panel.obey(&command)?;
    Some((reply, command.reply_to?, command.ticket.unwrap_or_default()))
}

async fn send_reply(
    panel: &Panel,
    channel: &Channel,
    reply: Value,
    to: &ReplyTo,
    ticket: String,
) -> Result<(), BrokerError> {
    let message = Message {
        headers: Map::from_iter([
            ("ticket".to_owned(), ticket.into()),
            ("clock".to_owned(), panel.clock.forward().into()),
        ]),
        properties: json_properties(1),
        body: control::encode_reply(&panel.node, reply),
    };
    let publish = channel.basic_publish(
        short(&to.exchange),
        short(&to.routing_key),
        BasicPublishOptions::default(),
        &message.body,
        amqp::basic_properties(&message),
    );
    answer("reply to remote control", publish).await.map(|_confirm| ())
}

fn json_properties(delivery_mode: u8) -> Properties {
    Properties {
        content_type: Some(content::JSON.to_owned()),
        content_encoding: Some(content::UTF_8.to_owned()),
        delivery_mode: Some(delivery_mode),
        ..Properties::default()
    }
}

async fn declare_exchanges(channel: &Channel) -> Result<(), BrokerError> {
    for (name, kind) in
        [(control::EXCHANGE, ExchangeKind::Fanout), (control::REPLY_EXCHANGE, ExchangeKind::Direct)]
    {
        let transient = ExchangeDeclareOptions::default();
        let declare = channel.exchange_declare(name.into(), kind, transient, FieldTable::default());
        answer("declare an exchange of remote control", declare).await?;
    }
    Ok(())
}

/// Declares a queue for this connection alone, that goes away with it.
async fn declare_mailbox(channel: &Channel, queue: ShortString) -> Result<(), BrokerError> {
    let options =
        QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-expires".into(), AMQPValue::LongInt(control::QUEUE_EXPIRES_MS));
    arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(control::QUEUE_MESSAGE_TTL_MS));
    answer("declare the mailbox", channel.queue_declare(queue, options, arguments)).await.map(|_queue| ())
}
