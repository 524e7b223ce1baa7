//! Takes queues off the broker, with the TaskQueue that they belonged to.
//!
//! What is deleted is what a declaration of the same queue would have found equal: a queue of that name with other settings is somebody
//! else's, and stays.

use std::time::{Duration, Instant};

use celery_client::amqp::short;
use celery_client::queue::reply_code;
use lapin::options::{ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use tokio::time::sleep;

use super::connection::Lost;
use super::declarations::{Declarer, Undeclared, problem};
use crate::api::v1alpha1::QueueType;
use crate::plan::topology::Queue;

/// Time between the two looks that a quorum queue has to be empty for.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// An answer that took longer than this may be a zero that isn't one: a quorum queue without a leader answers so after 250 ms.
const PROMPT: Duration = Duration::from_millis(200);

/// Queues that are to go.
#[derive(Clone, Debug, PartialEq)]
pub struct Removal {
    /// The queues; their dead letter queues go too.
    pub queues: Vec<Queue>,
    /// Only those that hold no message and have no consumer.
    pub only_if_empty: bool,
}

/// What became of a removal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Queues that are gone.
    pub gone: Vec<String>,
    /// What is still there, and why.
    pub kept: Vec<(String, String)>,
}

impl Declarer<'_> {
    /// Deletes queues as far as the broker lets us.
    pub(super) async fn remove(&mut self, removal: &Removal) -> Result<Removed, Lost> {
        let mut removed = Removed::default();
        for queue in &removal.queues {
            let own = (queue.name.as_str(), queue.arguments());
            // The queue before its dead letters: what is rejected in between still has where to go.
            let dead = queue.dead_letters.as_deref().map(|name| (name, queue.dead_letter_arguments()));
            for (name, arguments) in std::iter::once(own).chain(dead) {
                match self.remove_queue(name, arguments, queue.queue_type, removal.only_if_empty).await {
                    Ok(None) => removed.gone.push(name.to_owned()),
                    Ok(Some(why)) => removed.kept.push((format!("queue `{name}`"), why)),
                    Err(Undeclared::Problem(problem)) => {
                        removed.kept.push((format!("queue `{name}`"), problem.message));
                    }
                    Err(Undeclared::Lost(lost)) => return Err(lost),
                }
            }
            if removed.gone.contains(&queue.name)
                && let Err(Undeclared::Lost(lost)) = self.remove_own_exchange(&queue.name).await
            {
                return Err(lost);
            }
        }
        Ok(removed)
    }

    /// Deletes one queue, if it is there and nothing speaks against it. Returns what does.
    async fn remove_queue(
        &mut self,
        name: &str,
        arguments: Arguments,
        queue_type: QueueType,
        only_if_empty: bool,
    ) -> Result<Option<String>, Undeclared> {
        let Some(length) = self.length(name).await? else { return Ok(None) };
        // Whether it is what was declared: an answer for us, or one for somebody else's queue of that name.
        self.declare_one(name, arguments).await?;
        let mut options = QueueDeleteOptions::default();
        if only_if_empty {
            if let Some(why) = length.objection() {
                return Ok(Some(why));
            }
            match queue_type {
                QueueType::Classic => (options.if_empty, options.if_unused) = (true, true),
                // RabbitMQ has no such condition for them, in any version.
                QueueType::Quorum => {
                    sleep(SECOND_LOOK).await;
                    let objection = self.length(name).await?.and_then(|length| length.objection());
                    if objection.is_some() {
                        return Ok(objection);
                    }
                }
            }
        }
        let channel = self.channel().await?;
        let deleting = channel.queue_delete(short(name), options);
        match self.answer("delete a queue", deleting).await? {
            Ok(_) => Ok(None),
            Err(error) if reply_code(&error) == Some(404) => Ok(None),
            Err(error) if reply_code(&error) == Some(406) => {
                Ok(Some("messages or consumers have just come".to_owned()))
            }
            Err(error) => Err(Undeclared::Problem(problem(&format!("queue `{name}`"), &error))),
        }
    }

    /// The length of a queue; nothing if there is no such queue.
    async fn length(&mut self, name: &str) -> Result<Option<Length>, Undeclared> {
        let channel = self.channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let asked_at = Instant::now();
        let asking = channel.queue_declare(short(name), passive, FieldTable::default());
        match self.answer("look at a queue", asking).await? {
            Ok(queue) => Ok(Some(Length {
                messages: queue.message_count(),
                consumers: queue.consumer_count(),
                prompt: asked_at.elapsed() < PROMPT,
            })),
            Err(error) if reply_code(&error) == Some(404) => Ok(None),
            Err(error) => Err(Undeclared::Problem(problem(&format!("queue `{name}`"), &error))),
        }
    }

    /// Deletes the exchange that was declared under the queue's name, unless something else is bound to it.
    async fn remove_own_exchange(&mut self, name: &str) -> Result<(), Undeclared> {
        let channel = self.channel().await?;
        let options = ExchangeDeleteOptions { if_unused: true, ..ExchangeDeleteOptions::default() };
        let deleting = channel.exchange_delete(short(name), options);
        // What is refused is in use, or not ours to delete.
        self.answer("delete an exchange", deleting).await.map(drop)
    }
}

type Arguments = std::collections::BTreeMap<&'static str, crate::plan::topology::Argument>;

struct Length {
    messages: u32,
    consumers: u32,
    prompt: bool,
}

impl Length {
    /// What speaks against deleting the queue.
    fn objection(&self) -> Option<String> {
        match self {
            Self { messages: 1.., .. } => Some(format!("{} messages wait in it", self.messages)),
            Self { consumers: 1.., .. } => Some(format!("it has {} consumers", self.consumers)),
            Self { prompt: false, .. } => Some("it doesn't say promptly that it is empty".to_owned()),
            _ => None,
        }
    }
}
