//! Sending: from signatures of any kind to messages on the broker.

use crate::amqp;
use crate::async_result::AsyncResult;
use crate::canvas_result::{CanvasResult, GroupResult};
use crate::celery::{Celery, Results};
use crate::publisher::{Link, Outgoing, PublishError};
use crate::results::StoreError;
use celery_protocol::canvas::{self, CanvasError, Plan};
use celery_protocol::json::JsonError;
use celery_protocol::signature::{Route, SignatureError};
use celery_protocol::{Map, Request, Signature, delay};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashSet;
use uuid::Uuid;

/// Messages of one canvas that are on their way at once.
const AT_ONCE: usize = 1000;

/// Why a task was not sent, or isn't known to be.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The arguments have no JSON form.
    #[error("arguments of `{task}`")]
    Arguments {
        /// Name of the task.
        task: String,
        /// Why.
        source: JsonError,
    },
    /// The signature can't be sent.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The canvas isn't well-formed.
    #[error(transparent)]
    Canvas(#[from] CanvasError),
    /// The canvas ends in a group, where one result was expected, or the other way round. Nothing was sent.
    #[error("{0}")]
    Shape(&'static str),
    /// Chords count their parts in Redis. Nothing was sent.
    #[error("a chord (or a group that something follows) needs a result store in Redis")]
    NoChords,
    /// The chord can't be announced to the result store. Nothing was sent.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The message did not get into a queue. Of a canvas, others may have been sent.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl Celery {
    /// Sends a task by name: positional arguments from a tuple, keyword arguments from a map or struct, `()` for none.
    ///
    /// # Errors
    /// As [`send`](Self::send), and when an argument has no JSON form.
    pub async fn send_task(
        &self,
        task: &str,
        args: &(impl Serialize + ?Sized),
        kwargs: &(impl Serialize + ?Sized),
    ) -> Result<AsyncResult, SendError> {
        let failed = |source| SendError::Arguments { task: task.to_owned(), source };
        let signature =
            Signature::new(task).with_args(args).and_then(|signature| signature.with_kwargs(kwargs));
        self.send(&signature.map_err(failed)?).await
    }

    /// Sends a task with all its options, or a canvas that ends in one result (a chain, a chord), and returns once the
    /// broker has it.
    ///
    /// Many may be sent at once, from one task or several: they share the connection, and none waits for another.
    ///
    /// ```no_run
    /// # async fn example(celery: celery_client::Celery) -> Result<(), Box<dyn std::error::Error>> {
    /// use celery_client::{Signature, group};
    /// use std::time::Duration;
    ///
    /// let add = |x: i64| Signature::new("tasks.add").arg(x);
    /// let sum = celery.send(&(group([add(1).arg(2), add(3).arg(4)]) | Signature::new("tasks.sum"))).await?;
    /// assert_eq!(sum.get::<i64>(Duration::from_secs(10)).await?, 10);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// When an option doesn't have its type, the canvas isn't well-formed or ends in a group, the broker can't be reached
    /// after some attempts, or a queue doesn't exist or refuses. After a lost connection a message may arrive twice, under
    /// the same id.
    pub async fn send(&self, signature: &Signature) -> Result<AsyncResult, SendError> {
        if signature.subtask_type.is_none() && signature.task != "celery.chunks" {
            return self.send_one(signature).await;
        }
        // Boxed, so that the state of a plain call stays small.
        let plan = Box::pin(self.plan(signature)).await?;
        if plan.result.members.is_some() {
            return Err(SendError::Shape(
                "the canvas ends in a group, which has many results: use `send_group`",
            ));
        }
        match Box::pin(self.carry_out(plan)).await? {
            CanvasResult::Task(result) => Ok(result),
            CanvasResult::Group(_) => unreachable!("a handle without members is of a task"),
        }
    }

    /// Sends a group, or a chain that ends in one, and returns once the broker has all messages.
    ///
    /// # Errors
    /// As [`send`](Self::send), and when the canvas ends in a single result.
    pub async fn send_group(&self, signature: &Signature) -> Result<GroupResult, SendError> {
        let plan = self.plan(signature).await?;
        if plan.result.members.is_none() {
            return Err(SendError::Shape("the canvas does not end in a group: use `send`"));
        }
        match self.carry_out(plan).await? {
            CanvasResult::Group(result) => Ok(result),
            CanvasResult::Task(_) => unreachable!("a handle with members is of a group"),
        }
    }

    /// Sends a signature of any kind: where it isn't known before whether it ends in a group.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn send_canvas(&self, signature: &Signature) -> Result<CanvasResult, SendError> {
        let plan = self.plan(signature).await?;
        self.carry_out(plan).await
    }

    /// What to publish for a signature, each call with its route and with where its answer goes.
    async fn plan(&self, signature: &Signature) -> Result<Plan, SendError> {
        let mut signature = signature.chunks_as_group().unwrap_or_else(|| signature.clone());
        // Workers that go on with the canvas know neither this client's routes nor its queue for answers.
        let link = self.0.publisher.link().await?;
        canvas::change_calls(&mut signature, &mut |call| {
            self.0.routes.address(call);
            if let Some(reply_to) = link.reply_to.as_deref().filter(|_| call.option("reply_to").is_none()) {
                call.options.insert("reply_to".to_owned(), reply_to.into());
            }
        })?;
        let plan = canvas::plan(signature, &[], Map::new(), &mut || Uuid::new_v4().to_string())?;
        if !plan.chords.is_empty() && self.store().is_err() {
            return Err(SendError::NoChords);
        }
        Ok(plan)
    }

    async fn carry_out(&self, plan: Plan) -> Result<CanvasResult, SendError> {
        if let Results::Redis { store, .. } = &self.0.results {
            for chord in &plan.chords {
                store.begin_chord(chord, true).await?;
            }
        }
        let mut ignored = HashSet::new();
        plan.calls.iter().for_each(|call| note_ignored(call, &mut ignored));
        let result = CanvasResult::of(self, plan.result, &ignored);
        let send = async |call: &Signature| {
            let (request, now) = self.request(call)?;
            self.publish(&request, call.route(), now).await
        };
        let mut sent = stream::iter(&plan.calls).map(send).buffered(AT_ONCE);
        while sent.try_next().await?.is_some() {}
        drop(sent);
        Ok(result)
    }

    pub(crate) async fn send_one(&self, signature: &Signature) -> Result<AsyncResult, SendError> {
        let (request, now) = self.request(signature)?;
        let result = match request.ignore_result {
            Some(true) => AsyncResult::ignored(self, request.id.clone(), None),
            _ => AsyncResult::new(self, request.id.clone(), None),
        };
        let route = self.0.routes.find(signature).cloned().unwrap_or_else(|| signature.route());
        self.publish(&request, route, now).await?;
        Ok(result)
    }

    fn request(&self, signature: &Signature) -> Result<(Request, Timestamp), SignatureError> {
        let now = Timestamp::now();
        let mut request = signature.to_request(|| Uuid::new_v4().to_string(), now)?;
        request.origin.get_or_insert_with(|| self.0.origin.clone());
        Ok((request, now))
    }

    async fn publish(&self, request: &Request, route: Route, now: Timestamp) -> Result<(), SendError> {
        let queue = route.queue.unwrap_or_else(|| self.0.default_queue.clone());
        // Like Celery: the queue's name is the key of the default exchange, unless exchange and key are both given.
        let target = match (route.exchange, route.routing_key) {
            (Some(exchange), Some(routing_key)) => {
                Target { exchange, routing_key, queue: None, delayed: false }
            }
            _ => match self.delayed_key(request, &queue, now) {
                Some(routing_key) => {
                    let exchange = delay::entry_exchange();
                    Target { exchange, routing_key, queue: Some(queue), delayed: true }
                }
                None => {
                    let (exchange, routing_key) = (String::new(), queue.clone());
                    Target { exchange, routing_key, queue: Some(queue), delayed: false }
                }
            },
        };
        let message = |link: &Link| {
            let message = match (&request.reply_to, &link.reply_to) {
                (None, Some(reply_to)) => {
                    Request { reply_to: Some(reply_to.clone()), ..request.clone() }.encode(now)
                }
                _ => request.encode(now),
            };
            Outgoing {
                exchange: target.exchange.clone(),
                routing_key: target.routing_key.clone(),
                properties: amqp::basic_properties(&message),
                body: message.body,
            }
        };
        Ok(self.0.publisher.publish(target.queue.as_deref(), target.delayed, message).await?)
    }

    /// Key that takes a request through the delay queues to its own, if that is wanted and it is not due soon.
    ///
    /// In whole seconds and never too late; whoever runs it waits for the rest.
    fn delayed_key(&self, request: &Request, queue: &str, now: Timestamp) -> Option<String> {
        let wait = request.delay(now).filter(|_| self.0.delays_in_broker)?;
        let seconds = u32::try_from(wait.as_secs()).unwrap_or(delay::MAX_SECONDS);
        delay::queue_key(queue).filter(|_| seconds > 0)?;
        delay::routing_key(seconds, queue)
    }
}

/// Notes the ids of all that leaves no result, of a call and of what it takes along.
fn note_ignored(call: &Signature, ids: &mut HashSet<String>) {
    if call.option("ignore_result") == Some(&Value::Bool(true)) {
        ids.extend(call.text_option("task_id").map(str::to_owned));
    }
    let parts = ["chain", "chord"].into_iter().filter_map(|name| call.option(name));
    let members = call.kwargs.values().filter(|_| call.subtask_type.is_some());
    for part in parts.chain(members) {
        let list = std::slice::from_ref(part);
        for signature in part.as_array().map_or(list, Vec::as_slice) {
            // What isn't a signature has no result.
            if let Ok(signature) = Signature::deserialize(signature) {
                note_ignored(&signature, ids);
            }
        }
    }
}

/// Where a message is published to.
struct Target {
    exchange: String,
    routing_key: String,
    /// The queue that it is for, to be made if it is missing.
    queue: Option<String>,
    /// Whether it goes by way of the delay queues.
    delayed: bool,
}
