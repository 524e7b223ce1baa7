//! What workers say they run: their heartbeats, on the exchange of Celery's events.

use std::time::Instant;

use celery_client::amqp::short;
use celery_protocol::event::{EXCHANGE, Event, EventKind, WorkerState};
use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, Consumer, ExchangeKind};
use tokio::time::{Duration, sleep};

use super::connection::{Failure, Lost, answered};
use super::reports::Counts;
use super::state::Shared;

/// Heartbeats that wait longer than this in our queue say nothing any more.
const MESSAGE_TTL_MILLISECONDS: i32 = 5000;

/// Wait before the broker is asked again after it refused.
const RETRY: Duration = Duration::from_secs(30);

/// Takes in heartbeats until the connection is lost.
pub(super) async fn run(connection: &Connection, shared: &Shared) -> Lost {
    loop {
        match consume(connection).await {
            Ok(mut events) => {
                while let Some(delivery) = events.next().await {
                    match delivery {
                        Ok(delivery) => take_in(&delivery.data, shared),
                        Err(error) if !connection.status().connected() => return error.into(),
                        Err(_) => break,
                    }
                }
                tracing::warn!("the queue of worker events is gone: making a new one");
                sleep(Duration::from_secs(1)).await;
            }
            Err(Failure::Lost(lost)) => return lost,
            Err(Failure::Refused(error)) => {
                // Without heartbeats workers count as silent, so none is taken away.
                tracing::warn!(%error, "can't listen to worker events: scale-in rests");
                sleep(RETRY).await;
            }
        }
    }
}

async fn consume(connection: &Connection) -> Result<Consumer, Failure> {
    let channel = answered(connection, "open a channel", connection.create_channel()).await?;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declaring =
        channel.exchange_declare(short(EXCHANGE), ExchangeKind::Topic, durable, FieldTable::default());
    answered(connection, "declare the exchange of events", declaring).await?;
    // Ours alone, and gone with the connection. The name is the broker's choice.
    let own = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert(short("x-message-ttl"), AMQPValue::LongInt(MESSAGE_TTL_MILLISECONDS));
    let queue =
        answered(connection, "declare a queue for events", channel.queue_declare(short(""), own, arguments))
            .await?;
    let queue = queue.name().clone();
    let binding = channel.queue_bind(
        queue.clone(),
        short(EXCHANGE),
        short("worker.#"),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    answered(connection, "bind the queue for events", binding).await?;
    let no_ack = BasicConsumeOptions { no_ack: true, exclusive: true, ..BasicConsumeOptions::default() };
    let consuming = channel.basic_consume(queue, short("soloist-operator"), no_ack, FieldTable::default());
    answered(connection, "consume events", consuming).await
}

/// Takes in one event, or an array of them, as Python's workers send when they are busy.
pub(super) fn take_in(body: &[u8], shared: &Shared) {
    let events = match serde_json::from_slice::<Event>(body) {
        Ok(event) => vec![event],
        Err(_) => serde_json::from_slice::<Vec<Event>>(body).unwrap_or_else(|error| {
            tracing::debug!(%error, "a worker event can't be read");
            Vec::new()
        }),
    };
    for event in events {
        match event.kind {
            EventKind::WorkerHeartbeat(worker) | EventKind::WorkerOnline(worker) => {
                // Python's answer to the `heartbeat` command doesn't say it. Who never says it is silent.
                if let Some(counts) = counts(&worker) {
                    shared.heartbeat(&event.hostname, counts, Instant::now());
                }
            }
            EventKind::WorkerOffline(worker) => {
                shared.offline(&event.hostname, counts(&worker), Instant::now());
            }
            _ => {}
        }
    }
}

fn counts(worker: &WorkerState) -> Option<Counts> {
    Some(Counts { active: worker.active?, processed: worker.processed? })
}
