//! The connection that the worker publishes over: events, and answers to those who ask.
//!
//! It isn't the one that tasks come in on: RabbitMQ stops reading from connections that publish when it runs short of
//! memory, and acknowledgements must not wait behind that.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use celery_client::{BrokerAddress, connect};
use futures_util::StreamExt;
use lapin::{Channel, Connection, Event, options::ConfirmSelectOptions};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{BrokerError, answer};
use crate::backoff::{self, Backoff};

/// RabbitMQ takes no smaller frames. Whatever goes over this connection has short headers, and lapin's buffers, of 32 frames, fill up
/// with events while tasks are short.
const FRAME_BYTES: u32 = 8 << 10;

/// What is to be done on each new connection before it is used.
pub(crate) type Prepare =
    dyn Fn(Channel) -> Pin<Box<dyn Future<Output = Result<(), BrokerError>> + Send>> + Send + Sync;

/// A connection that is there most of the time.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    linked: watch::Receiver<Option<Linked>>,
}

/// A connection, and channels on it to publish on.
#[derive(Clone, Debug)]
pub(crate) struct Linked {
    pub(crate) connection: Arc<Connection>,
    pub(crate) channel: Channel,
    /// Where the broker confirms what it has taken, on a link that carries results.
    results: Option<Channel>,
}

impl Link {
    /// Connects, and reconnects as often as needed, for as long as the link is held by anyone.
    pub(crate) fn keep(
        mut address: BrokerAddress,
        name: String,
        prepare: Arc<Prepare>,
        carries_results: bool,
    ) -> Self {
        address.frame_bytes = FRAME_BYTES;
        let (sender, linked) = watch::channel(None);
        tokio::spawn(async move {
            let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
            while !sender.is_closed() {
                match hold(&address, &name, &prepare, carries_results, &sender, &mut backoff).await {
                    Ok(()) => return,
                    Err(error) => {
                        sender.send_replace(None);
                        let wait = backoff.next(backoff::random());
                        warn!(error = %error.describe(), retry_in = ?wait, connection = name, "publishing is interrupted");
                        tokio::time::sleep(wait).await;
                    }
                }
            }
        });
        Self { linked }
    }

    /// A link that is never up.
    #[cfg(test)]
    pub(crate) fn never() -> Self {
        Self { linked: watch::channel(None).1 }
    }

    /// Waits for the connection, for as long as it takes.
    pub(crate) async fn ready(&self) -> Linked {
        let is_up = |linked: &Option<Linked>| {
            linked.as_ref().is_some_and(|linked| linked.channel.status().connected())
        };
        match self.linked.clone().wait_for(is_up).await.ok().and_then(|linked| linked.clone()) {
            Some(linked) => linked,
            // The task that connects lives as long as the runtime: only shutting down ends it.
            None => std::future::pending().await,
        }
    }

    /// The channel for results, if there is one right now: the broker confirms each.
    pub(crate) fn results(&self) -> Option<Channel> {
        let channel = self.linked.borrow().as_ref().and_then(|linked| linked.results.clone());
        channel.filter(|channel| channel.status().connected())
    }
}

/// Connects and serves one connection until it fails, or nobody needs it any more.
async fn hold(
    address: &BrokerAddress,
    name: &str,
    prepare: &Arc<Prepare>,
    carries_results: bool,
    sender: &watch::Sender<Option<Linked>>,
    backoff: &mut Backoff,
) -> Result<(), BrokerError> {
    let connection = Arc::new(connect(address, name).await?);
    let mut events = connection.events_listener();
    let channel = answer("open a channel", connection.create_channel()).await?;
    prepare(channel.clone()).await?;
    let results = if carries_results {
        let results = answer("open a channel", connection.create_channel()).await?;
        answer("have results confirmed", results.confirm_select(ConfirmSelectOptions::default())).await?;
        Some(results)
    } else {
        None
    };
    sender.send_replace(Some(Linked {
        connection: Arc::clone(&connection),
        channel: channel.clone(),
        results: results.clone(),
    }));
    backoff.reset();
    info!(connection = name, "publishing");
    let is_up = || {
        let results_up = results.as_ref().is_none_or(|results| results.status().connected());
        channel.status().connected() && results_up
    };
    loop {
        tokio::select! {
            () = sender.closed() => {
                return answer("close the connection", connection.close(200, "done".into())).await;
            }
            event = events.next() => match event {
                Some(Event::Error(source)) if !is_up() => {
                    return Err(BrokerError::Refused { doing: "publish", source });
                }
                Some(Event::ConnectionBlocked(reason)) => warn!(reason, "the broker takes no messages for now"),
                Some(Event::ConnectionUnblocked) => info!("the broker takes messages again"),
                Some(_) => {}
                None => return Err(BrokerError::Closed),
            },
        }
    }
}
