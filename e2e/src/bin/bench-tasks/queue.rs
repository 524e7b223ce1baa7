//! The queue that a benchmark runs on, seen from outside.

use std::time::Duration;

use anyhow::{Context, Result};
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::time::{Instant, sleep};

/// Between two looks at a queue. A look costs the broker as much as a message does.
const LOOK: Duration = Duration::from_millis(10);

/// A queue of a benchmark's own.
pub(crate) struct Queue {
    pub(crate) name: String,
    channel: Channel,
    _connection: Connection,
}

/// How a queue was emptied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drained {
    /// Messages that were taken.
    pub(crate) tasks: u64,
    /// From the first message to the last.
    pub(crate) seconds: f64,
}

impl Queue {
    /// Makes it: `classic` or `quorum`.
    pub(crate) async fn create(amqp_url: &str, kind: &str) -> Result<Self> {
        let connection = Connection::connect(amqp_url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let name = format!("bench-tasks-{}", uuid::Uuid::new_v4().simple());
        let mut arguments = FieldTable::default();
        if kind == "quorum" {
            arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        }
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(name.as_str().into(), durable, arguments).await?;
        Ok(Self { name, channel, _connection: connection })
    }

    /// Messages that wait.
    pub(crate) async fn ready(&self) -> Result<u64> {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue =
            self.channel.queue_declare(self.name.as_str().into(), passive, FieldTable::default()).await;
        Ok(queue.context("look at the queue")?.message_count().into())
    }

    /// Waits until the queue is empty, or `within` after its first message was taken. Messages that the worker holds
    /// count as taken.
    pub(crate) async fn drained(&self, start: Duration, within: Duration) -> Result<Drained> {
        let full = self.ready().await?;
        let deadline = Instant::now() + start;
        let mut begun: Option<(Instant, u64)> = None;
        loop {
            let (now, ready) = (Instant::now(), self.ready().await?);
            match begun {
                None if ready < full => begun = Some((now, ready)),
                None => anyhow::ensure!(now < deadline, "no message was taken in {start:?}"),
                Some((since, then)) if ready == 0 || now - since > within => {
                    return Ok(Drained { tasks: then - ready, seconds: (now - since).as_secs_f64() });
                }
                Some(_) => {}
            }
            sleep(LOOK).await;
        }
    }

    /// Waits until no message waits.
    pub(crate) async fn emptied(&self, within: Duration) -> Result<()> {
        e2e::wait::until("the queue to be empty", within, || async {
            Ok((self.ready().await? == 0).then_some(()))
        })
        .await
    }

    /// Removes it with what is left in it.
    pub(crate) async fn delete(self) -> Result<()> {
        self.channel.queue_delete(self.name.as_str().into(), QueueDeleteOptions::default()).await?;
        Ok(())
    }
}
