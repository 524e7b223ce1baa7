//! How fast tasks can be sent.

use std::sync::atomic::{AtomicU64, Ordering};

use celery_client::{BrokerAddress, Celery, amqp, connect, queue};
use celery_protocol::{Arguments, Request, Signature};
use clap::Args;
use futures_util::{StreamExt, stream};
use lapin::{Channel, options::BasicPublishOptions, options::ConfirmSelectOptions};

use crate::{Outcome, Sender, on_this_thread, send_on_threads};

/// Messages on their way at once from each thread.
const UNCONFIRMED: usize = 1000;

/// Sends `tasks.add(1, 2)`.
#[derive(Args)]
pub(crate) struct Enqueue {
    #[arg(long)]
    broker: BrokerAddress,
    #[arg(long)]
    queue: String,
    #[arg(long)]
    tasks: u64,
    #[arg(long, value_enum, default_value = "client")]
    with: Sender,
    /// Threads that send, each over a connection of its own
    #[arg(long, default_value_t = 1)]
    threads: u64,
    /// Don't wait for the broker to confirm
    #[arg(long)]
    unconfirmed: bool,
    /// Write the ids of the tasks there, one a line
    #[arg(long)]
    ids: Option<std::path::PathBuf>,
}

impl Enqueue {
    pub(crate) fn run(self) -> Outcome<f64> {
        on_this_thread(async {
            let connection = connect(&self.broker, "load").await?;
            Ok(queue::declare_default(&connection, &self.queue).await?)
        })?;
        let left = AtomicU64::new(self.tasks);
        send_on_threads(self.threads, self.tasks, self.ids.as_deref(), async || self.send(&left).await)
    }

    /// Sends as long as tasks are left, and gives back their ids.
    async fn send(&self, left: &AtomicU64) -> Outcome<Vec<String>> {
        let mine = std::iter::from_fn(|| {
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).ok()
        });
        match self.with {
            Sender::Client => {
                let celery =
                    Celery::builder(self.broker.clone()).confirms(!self.unconfirmed).connect().await?;
                let signature = Signature::new("tasks.add").with_args(&(1, 2))?.queue(&self.queue);
                let sending = mine.map(|_| celery.send(&signature));
                let mut sent = stream::iter(sending).buffer_unordered(UNCONFIRMED);
                let mut ids = Vec::new();
                while let Some(result) = sent.next().await {
                    ids.push(result?.id().to_owned());
                }
                celery.close().await;
                Ok(ids)
            }
            Sender::Lapin => {
                let connection = connect(&self.broker, "load").await?;
                let channel = connection.create_channel().await?;
                if !self.unconfirmed {
                    channel.confirm_select(ConfirmSelectOptions::default()).await?;
                }
                let sending = mine.map(|_| publish(&channel, &self.queue));
                let mut sent = stream::iter(sending).buffer_unordered(UNCONFIRMED);
                while let Some(result) = sent.next().await {
                    result?;
                }
                connection.close(200, amqp::short("done")).await?;
                Ok(Vec::new())
            }
        }
    }
}

async fn publish(channel: &Channel, queue: &str) -> Outcome {
    let arguments = Arguments::new(&(1, 2), &())?;
    let request = Request::new("tasks.add", uuid::Uuid::new_v4().to_string(), arguments);
    let message = request.encode(Default::default());
    let sent = channel.basic_publish(
        amqp::short(""),
        amqp::short(queue),
        BasicPublishOptions::default(),
        &message.body,
        amqp::basic_properties(&message),
    );
    sent.await?.await?;
    Ok(())
}
