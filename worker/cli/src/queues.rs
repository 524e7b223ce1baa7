//! `purge` and `move`.

use crate::args::Common;
use crate::failure::Failure;
use crate::output;
use crate::wait::bar;
use celery_client::amqp::short;
use celery_client::{connect, queue};
use celery_protocol::request::is_delivery_history;
use clap::Args;
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use indicatif::ProgressBar;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, Consumer};
use serde_json::json;
use soloist_terminal::count;
use std::time::Duration;

/// Messages that are moved together: published, confirmed, acknowledged.
const BATCH: u16 = 500;

/// How long the next message may take before it is asked whether there is one.
const QUIET: Duration = Duration::from_millis(500);

/// Delete all messages that wait in queues.
#[derive(Debug, Args)]
#[command(after_help = "Messages that workers have already, and run, stay.")]
pub(crate) struct Purge {
    /// Names of the queues.
    #[arg(required = true, value_name = "QUEUE")]
    queues: Vec<String>,

    /// Don't ask.
    #[arg(short, long)]
    yes: bool,

    #[command(flatten)]
    common: Common,
}

impl Purge {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let address = self.common.addresses.broker()?;
        let connection = connect(&address, "soloist").await?;
        let mut ready = 0;
        for name in &self.queues {
            ready += u64::from(queue::inspect(&connection, name).await?.ready);
        }
        if !self.yes {
            let queues = self.queues.join(", ");
            output::confirm(&format!("Delete {} from {queues} on {address}?", count(ready, "message")))?;
        }
        let mut deleted = Vec::new();
        for name in &self.queues {
            deleted.push((name.clone(), queue::purge(&connection, name).await?));
        }
        if self.common.is_json() {
            let counts: serde_json::Map<_, _> =
                deleted.into_iter().map(|(queue, count)| (queue, count.into())).collect();
            return output::json(&counts);
        }
        output::table(
            &["QUEUE", "DELETED"],
            deleted.into_iter().map(|(queue, count)| [queue, count.to_string()]),
        )
    }
}

/// Move messages from one queue to another.
#[derive(Debug, Args)]
#[command(after_help = "\
Each message is published to the other queue, and only when that is confirmed taken from the first: if it is interrupted, \
some may be in both, none is lost. As many are moved as there are at the start.

Example, dead letters back to where they came from: soloist move emails.dead emails")]
pub(crate) struct Move {
    /// Queue to take from.
    from: String,

    /// Queue to put into. Both have to exist.
    to: String,

    /// Move no more than so many.
    #[arg(long, value_name = "NUMBER")]
    limit: Option<u32>,

    #[command(flatten)]
    common: Common,
}

impl Move {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        if self.from == self.to {
            return Err(Failure::usage("both queues are the same"));
        }
        let connection = connect(&self.common.addresses.broker()?, "soloist").await?;
        queue::inspect(&connection, &self.to).await?;
        let ready = queue::inspect(&connection, &self.from).await?.ready;
        let wanted = self.limit.map_or(ready, |limit| limit.min(ready));
        let bar = bar(wanted as usize, "messages");
        let moved = self.carry(&connection, wanted, &bar).await;
        bar.finish_and_clear();
        let moved = moved?;
        if self.common.is_json() {
            return output::json(&json!({"from": self.from, "to": self.to, "moved": moved}));
        }
        let moved = count(moved.into(), "message");
        output::line(&format!("{moved} moved from {} to {}", self.from, self.to))
    }

    async fn carry(&self, connection: &Connection, wanted: u32, bar: &ProgressBar) -> Result<u32, Failure> {
        if wanted == 0 {
            return Ok(0);
        }
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        // No more than will be moved: what is taken in advance and goes back counts as delivered.
        let in_advance = u16::try_from(wanted).unwrap_or(BATCH).min(BATCH);
        channel.basic_qos(in_advance, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        let mut messages =
            channel.basic_consume(short(&self.from), short(""), options, FieldTable::default()).await?;
        let mut moved = 0;
        while moved < wanted {
            let batch = self.take(connection, &mut messages, wanted - moved).await?;
            let Some(last) = batch.last() else { break };
            let (tag, count) = (last.delivery_tag, u32::try_from(batch.len()).unwrap_or(u32::MAX));
            self.publish(&channel, batch).await?;
            channel.basic_ack(tag, BasicAckOptions { multiple: true }).await?;
            moved += count;
            bar.inc(count.into());
        }
        // What was taken in advance goes back to its queue. The answer says that the acknowledgements have arrived.
        channel.close(200, short("done")).await?;
        Ok(moved)
    }

    /// Takes some messages, fewer if there are no more.
    async fn take(
        &self,
        connection: &Connection,
        messages: &mut Consumer,
        wanted: u32,
    ) -> Result<Vec<Delivery>, Failure> {
        let size = wanted.min(BATCH.into()) as usize;
        let mut batch = Vec::with_capacity(size);
        while batch.len() < size {
            match tokio::time::timeout(QUIET, messages.next()).await {
                Ok(Some(message)) => batch.push(message?),
                Ok(None) => break,
                // What is there goes first; somebody else may have taken the rest.
                Err(_) if !batch.is_empty() => break,
                Err(_) if queue::inspect(connection, &self.from).await?.ready == 0 => break,
                Err(_) => {}
            }
        }
        Ok(batch)
    }

    /// Publishes messages, and returns when all of them are known to be in the queue.
    async fn publish(&self, channel: &Channel, batch: Vec<Delivery>) -> Result<(), Failure> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let mut confirms = Vec::with_capacity(batch.len());
        for message in batch {
            let properties = without_history(message.properties);
            let to = short(&self.to);
            confirms.push(channel.basic_publish(short(""), to, options, &message.data, properties).await?);
        }
        for confirmation in try_join_all(confirms).await? {
            if !matches!(confirmation, Confirmation::Ack(None)) {
                let why = format!("queue `{}` refused a message; it stays in `{}`", self.to, self.from);
                return Err(Failure::failed(why).hint("is the queue full, or was it deleted?"));
            }
        }
        Ok(())
    }
}

/// Without what RabbitMQ and workers wrote down on the message's way: it begins a new life.
fn without_history(properties: BasicProperties) -> BasicProperties {
    let Some(headers) = properties.headers() else { return properties };
    let kept = headers.inner().iter().filter(|(name, _)| !is_delivery_history(name.as_str()));
    let kept: FieldTable = kept
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect::<std::collections::BTreeMap<_, _>>()
        .into();
    properties.with_headers(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::types::AMQPValue;

    #[test]
    fn a_moved_message_has_no_history() {
        let names =
            ["x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count", "soloist-attempts"];
        let mut headers = FieldTable::default();
        for name in names.into_iter().chain(["task", "x-ours"]) {
            headers.insert(short(name), AMQPValue::LongInt(1));
        }
        let moved = without_history(BasicProperties::default().with_headers(headers));
        let kept: Vec<_> =
            moved.headers().as_ref().unwrap().inner().keys().map(ToString::to_string).collect();
        assert_eq!(kept, ["task", "x-ours"]);
    }
}
