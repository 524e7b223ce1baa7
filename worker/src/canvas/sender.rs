//! Sending tasks from a worker, to where they belong.

use std::{sync::Arc, time::Duration};

use celery_client::{BrokerAddress, Celery, PublishError, RetryPolicy, SendError, SetupError};
use celery_protocol::{Message, Request, Signature, delay::queue_key};
use tokio::sync::OnceCell;
use tracing::warn;

use crate::{
    attempts,
    backoff::{self, Backoff},
    delay,
    task::Registry,
};

/// Where the tasks of this worker come from, as seen from one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Home {
    /// Queue that the message came out of.
    pub(crate) queue: Arc<str>,
    /// Exchange that the message came over.
    pub(crate) exchange: String,
    /// Routing key that it came with: its queue, if there was no exchange.
    pub(crate) routing_key: String,
    /// Whether the message may have been worked on before.
    pub(crate) is_redelivered: bool,
    /// Whether a worker sent the message to follow a task, with an id that was made for it alone.
    pub(crate) is_sequel: bool,
}

/// Sends tasks over a connection that is made when the first is sent.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) address: BrokerAddress,
    /// Name of the connection.
    pub(crate) name: String,
    pub(crate) create_missing_queues: bool,
    /// Where tasks go that name no queue and aren't known here.
    pub(crate) default_queue: String,
    pub(crate) registry: Arc<Registry>,
    client: OnceCell<Celery>,
}

impl Sender {
    pub(crate) fn new(
        address: BrokerAddress,
        name: String,
        create_missing_queues: bool,
        default_queue: String,
        registry: Arc<Registry>,
    ) -> Self {
        Self { address, name, create_missing_queues, default_queue, registry, client: OnceCell::new() }
    }

    /// Sends a plain task for `parent`, and returns once the broker has it. A broker that is away is waited for. If the broker may
    /// have had it before, whoever gets it is told so: it may be done already.
    ///
    /// # Errors
    /// When the task can't be sent as it is, or its queue doesn't exist or refuses it.
    pub(crate) async fn send(&self, call: Signature, parent: &Request, home: &Home) -> Result<(), SendError> {
        let mut call = self.address(call, parent, home);
        if attempts::is_unique(&parent.id, home.is_sequel) {
            call = attempts::sequel(call);
        }
        if home.is_redelivered {
            call = attempts::sent_again(call);
        }
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
        loop {
            let sent = match self.client().await {
                Ok(client) => client.send_call(&call).await.map(drop),
                Err(error) => Err(error.into()),
            };
            let error = match sent {
                Err(error) if is_transient(&error) => error,
                settled => return settled,
            };
            let wait = backoff.next(backoff::random());
            warn!(task = call.task, %error, retry_in = ?wait, "can't send the task that follows");
            tokio::time::sleep(wait).await;
            call = attempts::sent_again(call);
        }
    }

    /// Puts a message into a queue, or lets the broker do so after some time, and returns once the broker has it. A broker
    /// that is away is waited for.
    ///
    /// # Errors
    /// When the queue doesn't exist or refuses the message, or the delay queues can't be made or can't lead to it.
    pub(crate) async fn forward(
        &self,
        queue: &str,
        mut message: Message,
        delay: Duration,
    ) -> Result<(), PublishError> {
        let seconds = delay::whole_seconds(delay);
        if seconds > 0 && queue_key(queue).is_none() {
            return Err(PublishError::Unroutable { routing_key: queue.to_owned() });
        }
        if seconds > 0 {
            // It would be taken for the time to leave the delay queues. Whoever gets the message looks at `expires`.
            message.properties.expiration = None;
        }
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
        loop {
            let sent = match self.client().await {
                Ok(client) => client.forward(queue, &message, seconds).await,
                Err(error) => Err(error),
            };
            let error = match sent {
                Err(error) if is_lost(&error) => error,
                settled => return settled,
            };
            let wait = backoff.next(backoff::random());
            warn!(queue, %error, retry_in = ?wait, "can't put the message into its queue");
            tokio::time::sleep(wait).await;
            attempts::mark_again(&mut message);
        }
    }

    async fn client(&self) -> Result<&Celery, PublishError> {
        let connect = || async {
            let connected = Celery::builder(self.address.clone())
                .default_queue(self.default_queue.clone())
                .name(self.name.clone())
                .create_missing_queues(self.create_missing_queues)
                // What is sent again is marked, here.
                .retry_policy(RetryPolicy::never())
                .connect()
                .await;
            connected.map_err(|error| match error {
                SetupError::Broker(error) => error,
                SetupError::Results(_) => unreachable!("this client was given no result store"),
            })
        };
        self.client.get_or_try_init(connect).await
    }

    /// Says where a task goes that doesn't say so itself: what this worker knows, to where its own tasks come from; the
    /// rest to the default queue. Its answer goes to who waits for the parent's.
    fn address(&self, call: Signature, parent: &Request, home: &Home) -> Signature {
        let route = call.route();
        let is_routed = route.queue.is_some() || (route.exchange.is_some() && route.routing_key.is_some());
        let call = match (is_routed, self.registry.resolves(&call.task), home.exchange.as_str()) {
            (true, ..) | (false, false, _) => call,
            (false, true, "") => call.queue(&home.routing_key),
            (false, true, exchange) => call.set("exchange", exchange).set("routing_key", &*home.routing_key),
        };
        match &parent.reply_to {
            Some(reply_to) if call.option("reply_to").is_none() => call.set("reply_to", &**reply_to),
            _ => call,
        }
    }
}

/// Whether sending the same again may succeed: the broker is away.
fn is_transient(error: &SendError) -> bool {
    match error {
        SendError::Publish(error) => is_lost(error),
        _ => false,
    }
}

fn is_lost(error: &PublishError) -> bool {
    matches!(error, PublishError::Connect(_)) || error.is_worth_a_retry()
}

#[cfg(test)]
mod tests {
    use celery_protocol::Arguments;

    use super::*;
    use crate::Task;

    fn sender() -> Sender {
        let mut registry = Registry::default();
        registry.insert(Task::new("t.known", || ()));
        let address = "amqp://localhost".parse().unwrap();
        Sender::new(address, "test".to_owned(), false, "celery".to_owned(), Arc::new(registry))
    }

    fn home(exchange: &str) -> Home {
        Home {
            queue: "red".into(),
            exchange: exchange.to_owned(),
            routing_key: "red".to_owned(),
            is_redelivered: false,
            is_sequel: false,
        }
    }

    #[test]
    fn a_task_known_here_goes_to_where_its_parent_came_from() {
        let parent = Request::new("t.known", "id1", Arguments::default());
        let route = |call: Signature, exchange: &str| {
            let route = sender().address(call, &parent, &home(exchange)).route();
            (route.queue, route.exchange, route.routing_key)
        };
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(route(Signature::new("t.known"), ""), (text("red"), None, None));
        assert_eq!(route(Signature::new("celery.map"), ""), (text("red"), None, None));
        assert_eq!(route(Signature::new("t.known"), "topic"), (None, text("topic"), text("red")));
        assert_eq!(route(Signature::new("t.known").queue("blue"), ""), (text("blue"), None, None));
        assert_eq!(route(Signature::new("t.other"), ""), (None, None, None));
    }

    #[test]
    fn answers_go_to_who_waits_for_the_parents() {
        let parent = Request {
            reply_to: Some("client".to_owned()),
            ..Request::new("t.known", "id1", Arguments::default())
        };
        let reply_to = |call: Signature| {
            let call = sender().address(call, &parent, &home(""));
            call.text_option("reply_to").map(str::to_owned)
        };
        assert_eq!(reply_to(Signature::new("t.known")).as_deref(), Some("client"));
        assert_eq!(reply_to(Signature::new("t.known").set("reply_to", "own")).as_deref(), Some("own"));
    }
}
