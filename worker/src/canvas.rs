//! What follows a task: its callbacks and errbacks, the next step of its chain, the chord that it is a part of.
//!
//! All of it is published with confirms before the task's own message is acknowledged. A message that is delivered again
//! sends what follows again, under the same ids, whether its task is run again or was found done.

mod replace;
mod sender;

use std::{collections::VecDeque, sync::Arc};

use celery_client::{
    SendError,
    results::{ChordError, ChordPart, ChordProgress, RedisResults, ReplyAddress, StoreError},
};
use celery_protocol::{
    Exception, Map, Request, Signature, State, TaskMeta, canvas,
    json::{self, JsonError},
    result::ResultTuple,
};
use jiff::Timestamp;
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};
use tokio::time::{Duration, Instant, sleep};
use tracing::{debug, error, warn};
use uuid::Uuid;

pub(crate) use self::sender::{Home, Sender};
use crate::{
    attempts,
    health::Health,
    metrics::Metrics,
    results::{Results, describe},
    task::TaskError,
};

/// Between looks at a chord whose body another worker is dispatching.
const DISPATCHING_POLL: Duration = Duration::from_millis(500);

/// How long another worker may take over that: longer than its claim lasts if it died.
const DISPATCHING_PATIENCE: Duration = Duration::from_secs(90);

/// A call that has ended, and how, for what follows it.
#[derive(Clone, Debug)]
pub(crate) struct Sequel {
    pub(crate) request: Arc<Request>,
    pub(crate) ending: Ending,
}

/// How a call has ended.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    Success(Box<RawValue>),
    Failure {
        exception: Exception,
        traceback: Option<String>,
    },
    Revoked(Exception),
    /// Another call takes its place.
    Replaced(Box<Signature>),
    /// It has a canvas sent, whose handle is its result.
    Sent(Box<Signature>),
    /// It is to be run again.
    Retry {
        again: Box<Request>,
        delay: Duration,
    },
}

impl Sequel {
    /// None if nothing follows the call.
    pub(crate) fn new(request: &Arc<Request>, ending: Ending) -> Option<Box<Self>> {
        if let Ending::Retry { .. } | Ending::Replaced(_) | Ending::Sent(_) = &ending {
            return Some(Box::new(Self { request: Arc::clone(request), ending }));
        }
        is_followed(request).then(|| Box::new(Self { request: Arc::clone(request), ending }))
    }
}

/// Whether anything follows a call that succeeds or fails.
pub(crate) fn is_followed(request: &Request) -> bool {
    let embed = &request.embed;
    let has_any = |list: &Option<Vec<Signature>>| list.as_ref().is_some_and(|list| !list.is_empty());
    has_any(&embed.callbacks) || has_any(&embed.errbacks) || has_any(&embed.chain) || embed.chord.is_some()
}

/// Why what follows a task can't be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    #[error("the result can't be passed on: {0}")]
    Value(#[from] JsonError),
    #[error("what follows can't be sent: {0}")]
    Canvas(#[from] canvas::CanvasError),
    #[error("`{task}`, which follows, can't be sent: {source}")]
    Send { task: String, source: Box<SendError> },
    #[error("a chord follows, and chords need a result store in Redis: this worker has none")]
    NoChords,
    #[error("a signature that replaces a task can't be part of a chord")]
    ReplacedByMember,
    #[error("this task is no member of a chord")]
    NoMember,
    #[error("{}", describe(.0))]
    Store(#[from] StoreError),
}

impl FollowError {
    fn into_task_error(self) -> TaskError {
        TaskError::from_exception(self.exception())
    }

    fn exception(&self) -> Exception {
        let message = self.to_string();
        match self {
            Self::Value(_) | Self::Canvas(_) => Exception::builtin("ValueError", message),
            Self::Send { source, .. } if matches!(**source, SendError::Publish(_)) => {
                Exception::new("kombu.exceptions", "OperationalError", vec![message.into()])
            }
            Self::Send { .. } | Self::ReplacedByMember | Self::NoMember => {
                Exception::builtin("ValueError", message)
            }
            Self::Store(_) => Exception::new("kombu.exceptions", "OperationalError", vec![message.into()]),
            Self::NoChords => Exception::builtin("NotImplementedError", message),
        }
    }
}

/// Ids of what is added to a chord are numbered from here: nothing else that a call sends is so much.
const ADDED_IDS: u32 = 1 << 31;

/// Ids of what follows a call's end are numbered from here: it may have failed because not all that it sends could be sent.
const ENDING_IDS: u32 = 1 << 30;

/// The call that something follows.
struct Parent<'a> {
    request: &'a Request,
    /// What it is followed by in.
    home: &'a Home,
    /// Numbers the new ids, which are made from the parent's.
    ids: u32,
}

impl<'a> Parent<'a> {
    fn new(request: &'a Request, home: &'a Home) -> Self {
        Self { request, home, ids: 0 }
    }

    /// The same ids each time that the same message is worked on, so that parts of a chord are not counted twice.
    fn new_id(&mut self) -> String {
        self.ids += 1;
        let Request { id, retries, replaced_task_nesting: nesting, .. } = self.request;
        let name = format!("{id}:{retries}:{nesting}:{}", self.ids);
        Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).to_string()
    }

    /// What a worker gives to all that it sends for a call.
    fn overrides(&self) -> Map {
        let parent = ("parent_id".to_owned(), self.request.id.as_str().into());
        Map::from_iter([("root_id".to_owned(), self.request.root().into()), parent])
    }
}

/// A failure that is spread to all who wait for what it prevented.
struct Blame<'a> {
    exception: &'a Exception,
    traceback: Option<&'a str>,
}

/// Sends what follows tasks.
#[derive(Debug)]
pub(crate) struct Canvas {
    pub(crate) sender: Sender,
    pub(crate) results: Arc<Results>,
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Canvas {
    /// Sends the callbacks and the next step of a call that returned `value`, and returns their handles.
    ///
    /// # Errors
    /// When they can't be sent, other than for a broker that is away: that is waited for.
    pub(crate) async fn advance(
        &self,
        request: &Request,
        value: &RawValue,
        home: &Home,
    ) -> Result<Vec<ResultTuple>, TaskError> {
        self.try_advance(request, value, home).await.map_err(FollowError::into_task_error)
    }

    /// Sends another call in place of one.
    ///
    /// # Errors
    /// As [`Canvas::advance`].
    pub(crate) async fn replace(
        &self,
        request: &Request,
        signature: Signature,
        home: &Home,
    ) -> Result<(), TaskError> {
        let mut parent = Parent::new(request, home);
        let replaced = async {
            let (signature, mut overrides) = replace::replacement(request, signature)?;
            overrides.extend(parent.overrides());
            self.apply(signature, &[], overrides, &mut parent).await
        };
        replaced.await.map(drop).map_err(FollowError::into_task_error)
    }

    /// Sends a canvas for a call, and returns its handle.
    ///
    /// # Errors
    /// As [`Canvas::advance`].
    pub(crate) async fn send(
        &self,
        request: &Request,
        signature: Signature,
        home: &Home,
    ) -> Result<ResultTuple, TaskError> {
        let mut parent = Parent::new(request, home);
        let overrides = parent.overrides();
        self.apply(signature, &[], overrides, &mut parent).await.map_err(FollowError::into_task_error)
    }

    /// Adds members to the chord that a call is a member of, and returns their handles.
    ///
    /// # Errors
    /// As [`Canvas::advance`], and when the call is no such member.
    pub(crate) async fn add_to_chord(
        &self,
        request: &Request,
        members: Vec<Signature>,
        home: &Home,
    ) -> Result<Vec<ResultTuple>, TaskError> {
        let added = self.try_add_to_chord(request, members, home).await;
        added.map_err(FollowError::into_task_error)
    }

    async fn try_add_to_chord(
        &self,
        request: &Request,
        members: Vec<Signature>,
        home: &Home,
    ) -> Result<Vec<ResultTuple>, FollowError> {
        let (Some(chord), Some(group_id)) = (request.embed.chord.as_deref(), request.group.as_deref()) else {
            return Err(FollowError::NoMember);
        };
        let Some(redis) = self.chords().await else { return Err(FollowError::NoChords) };
        // Not those of what follows the call.
        let mut parent = Parent { ids: ADDED_IDS, ..Parent::new(request, home) };
        let mut handles = Vec::with_capacity(members.len());
        for member in members {
            let id = member.text_option("task_id").map_or_else(|| parent.new_id(), str::to_owned);
            self.insist("add to a chord", || redis.add_to_chord(group_id, &id)).await?;
            let mut overrides = parent.overrides();
            overrides.insert("task_id".to_owned(), id.into());
            overrides.insert("group_id".to_owned(), group_id.into());
            overrides.insert("group_index".to_owned(), request.group_index.into());
            overrides.insert("chord".to_owned(), value_of(chord));
            handles.push(self.apply(member, &[], overrides, &mut parent).await?);
        }
        Ok(handles)
    }

    async fn try_advance(
        &self,
        request: &Request,
        value: &RawValue,
        home: &Home,
    ) -> Result<Vec<ResultTuple>, FollowError> {
        let callbacks = request.embed.callbacks.as_deref().unwrap_or_default();
        let mut rest = request.embed.chain.clone().unwrap_or_default();
        let next = rest.pop();
        let mut children = Vec::new();
        if callbacks.is_empty() && next.is_none() {
            return Ok(children);
        }
        let incoming = [json::parse::<Value>(value.get().as_bytes())?];
        let mut parent = Parent::new(request, home);
        for callback in callbacks {
            let overrides = parent.overrides();
            children.push(self.apply(callback.clone(), &incoming, overrides, &mut parent).await?);
        }
        if let Some(next) = next {
            let mut overrides = parent.overrides();
            if !rest.is_empty() {
                overrides.insert("chain".to_owned(), list(&rest));
            }
            children.push(self.apply(next, &incoming, overrides, &mut parent).await?);
        }
        Ok(children)
    }

    /// Tells all others who wait for a call that it has ended: its chord, and if it failed, the rest of its chain and its
    /// errbacks. Sends it again if that is how it ended; the exception that it has failed with if that can't be done.
    pub(crate) async fn conclude(&self, sequel: &Sequel, home: &Home) -> Option<Exception> {
        let Sequel { request, ending } = sequel;
        if let Ending::Retry { again, delay } = ending {
            return self.send_retry(request, again, *delay, home).await;
        }
        let mut parent = Parent { ids: ENDING_IDS, ..Parent::new(request, home) };
        let mut parts = VecDeque::new();
        parts.extend(part_of(request, ending));
        if let Ending::Failure { exception, traceback } = ending {
            let blame = Blame { exception, traceback: traceback.as_deref() };
            let rest = request.embed.chain.iter().flatten().rev();
            parts.extend(self.abandon(rest, &blame, &request.id).await);
            let errbacks = request.embed.errbacks.as_deref().unwrap_or_default();
            self.call_errbacks(errbacks, &request.id, &mut parent).await;
        }
        while let Some((part, body)) = parts.pop_front() {
            parts.extend(self.report(&part, body, &mut parent).await);
        }
        None
    }

    async fn send_retry(
        &self,
        request: &Arc<Request>,
        again: &Request,
        delay: Duration,
        home: &Home,
    ) -> Option<Exception> {
        let mut message = again.encode(Timestamp::now());
        if home.is_redelivered {
            attempts::mark_again(&mut message);
        }
        let mut sent = self.sender.forward(&home.queue, message.clone(), delay).await;
        if sent.is_err() {
            attempts::mark_again(&mut message);
            // Whoever gets it looks at its eta, and holds it if there are no delay queues.
            sent = self.sender.forward(&home.queue, message, Duration::ZERO).await;
        }
        let error = sent.err()?;
        let message = format!("the retry can't be sent: {error}");
        let exception = Exception::new("kombu.exceptions", "OperationalError", vec![message.into()]);
        let failed = Ending::Failure { exception: exception.clone(), traceback: None };
        if again.ignore_result != Some(true) {
            let meta = TaskMeta {
                group_id: request.group.clone(),
                parent_id: request.parent_id.clone(),
                ..TaskMeta::failure(&request.id, &exception, None, Timestamp::now())
            };
            let queue = request.reply_to.as_deref();
            let reply = ReplyAddress { queue, correlation_id: request.correlation() };
            self.results.store(&meta, reply, &self.health, &self.metrics).await;
        }
        if let Some(sequel) = Sequel::new(request, failed) {
            Box::pin(self.conclude(&sequel, home)).await;
        }
        Some(exception)
    }

    /// Publishes a signature of any kind.
    async fn apply(
        &self,
        signature: Signature,
        incoming: &[Value],
        overrides: Map,
        parent: &mut Parent<'_>,
    ) -> Result<ResultTuple, FollowError> {
        let plan = canvas::plan(signature, incoming, overrides, &mut || parent.new_id())?;
        if !plan.chords.is_empty() {
            let Some(redis) = self.chords().await else { return Err(FollowError::NoChords) };
            // A chord under an id that was used before has nothing to do with this one.
            let is_unique = attempts::is_unique(&parent.request.id, parent.home.is_sequel);
            for chord in &plan.chords {
                let begin = || redis.begin_chord(chord, !(parent.home.is_redelivered && is_unique));
                self.insist("begin a chord", begin).await?;
            }
        }
        for call in plan.calls {
            let task = call.task.clone();
            let sent = self.sender.send(call, parent.request, parent.home).await;
            sent.map_err(|source| FollowError::Send { task, source: Box::new(source) })?;
        }
        Ok(plan.result)
    }

    /// Stores the failure under the ids of all that will not be called now. Returns the parts of chords among it.
    async fn abandon<'a>(
        &self,
        signatures: impl Iterator<Item = &'a Signature>,
        blame: &Blame<'_>,
        parent_id: &str,
    ) -> Vec<(ChordPart, Signature)> {
        let mut parts = Vec::new();
        for abandoned in canvas::abandoned(signatures) {
            let id = &abandoned.task_id;
            let traceback = blame.traceback.map(str::to_owned);
            let meta = TaskMeta {
                group_id: abandoned.group_id.clone(),
                parent_id: Some(parent_id.to_owned()),
                ..TaskMeta::failure(id, blame.exception, traceback, Timestamp::now())
            };
            let reply = ReplyAddress { queue: abandoned.reply_to.as_deref(), correlation_id: id };
            self.results.store(&meta, reply, &self.health, &self.metrics).await;
            if let (Some(body), Some(group_id)) = (abandoned.chord, abandoned.group_id) {
                let part = ChordPart {
                    group_id,
                    index: abandoned.group_index,
                    task_id: abandoned.task_id,
                    state: State::Failure,
                    result: meta.result,
                    size: body.chord_size,
                };
                parts.push((part, body));
            }
        }
        parts
    }

    /// Calls errbacks with the id of what failed. One that can't be sent is logged: there is nobody left to tell.
    async fn call_errbacks(&self, errbacks: &[Signature], failed_id: &str, parent: &mut Parent<'_>) {
        for errback in errbacks {
            let mut overrides = parent.overrides();
            overrides.insert("parent_id".to_owned(), failed_id.into());
            let applied = self.apply(errback.clone(), &[failed_id.into()], overrides, parent).await;
            if let Err(problem) = applied {
                error!(id = failed_id, errback = errback.task, %problem, "an errback can't be called");
            }
        }
    }

    /// Counts a part of a chord. If it was the last, calls the body, or fails it, and returns the parts of other chords that
    /// have failed with it.
    async fn report(
        &self,
        part: &ChordPart,
        body: Signature,
        parent: &mut Parent<'_>,
    ) -> Vec<(ChordPart, Signature)> {
        let (id, group_id) = (&part.task_id, &part.group_id);
        let Some(redis) = self.chords().await else {
            error!(
                id,
                group_id, "a part of a chord can't be counted: this worker has no result store in Redis"
            );
            return Vec::new();
        };
        let token = Uuid::new_v4().simple().to_string();
        let problem = match self.collect(&redis, part, &token).await {
            Ok(None) => return Vec::new(),
            // Each part comes upon that: the first fails the chord.
            Err(_) if self.has_ended(&redis, &body).await => return Vec::new(),
            Err(problem) => describe(&problem),
            Ok(Some(Err(problem))) => problem.to_string(),
            Ok(Some(Ok(results))) => {
                let overrides = parent.overrides();
                match self.apply(body.clone(), &[Value::Array(results)], overrides, parent).await {
                    Ok(_) => {
                        let finish = || redis.finish_chord(group_id, &token);
                        // Its keys were all read before.
                        let _ = self.insist("finish a chord", finish).await;
                        debug!(id, group_id, body = body.task, "called the body of a chord");
                        return Vec::new();
                    }
                    Err(problem) => format!("Callback error: {problem}"),
                }
            }
        };
        warn!(id, group_id, body = body.task, problem, "a chord has failed");
        let exception = Exception::chord(problem);
        let blame = Blame { exception: &exception, traceback: None };
        let parts = self.abandon([&body].into_iter(), &blame, id).await;
        for (errback, failed_id) in canvas::errbacks(&body) {
            self.call_errbacks(&[errback], &failed_id, parent).await;
        }
        // A plain DEL, which removes whatever is there.
        let _ = self.insist("fail a chord", || redis.fail_chord(group_id)).await;
        parts
    }

    /// Counts a part of a chord. If it was the last, the results of all parts, or what is wrong with one.
    async fn collect(
        &self,
        redis: &RedisResults,
        part: &ChordPart,
        token: &str,
    ) -> Result<Option<Result<Vec<Value>, ChordError>>, StoreError> {
        let (id, group_id) = (&part.task_id, &part.group_id);
        let deadline = Instant::now() + DISPATCHING_PATIENCE;
        loop {
            match self.insist("count a part of a chord", || redis.report_chord_part(part, token)).await? {
                ChordProgress::Claimed => {
                    let extend = || redis.extend_chord_claim(group_id, token);
                    // Many results take longer to read than the first claim holds.
                    if self.insist("claim a chord", extend).await? {
                        let results = self.insist("read a chord", || redis.chord_results(group_id)).await?;
                        if self.insist("claim a chord", extend).await? {
                            return Ok(Some(results));
                        }
                    }
                    // Redis was away for so long. To report the part once more tells whether somebody else has taken over.
                    warn!(id, group_id, "the claim of a chord has expired");
                }
                ChordProgress::Waiting | ChordProgress::Done => return Ok(None),
                ChordProgress::Dispatching if Instant::now() < deadline => sleep(DISPATCHING_POLL).await,
                ChordProgress::Dispatching => {
                    warn!(id, group_id, "another worker takes very long to call the body of a chord");
                    return Ok(None);
                }
            }
        }
    }

    /// Whether the end of a chord's body is stored.
    async fn has_ended(&self, redis: &RedisResults, body: &Signature) -> bool {
        let Some(id) = body.text_option("task_id") else { return false };
        let meta = self.insist("read a result", || redis.get(id)).await;
        meta.ok().flatten().is_some_and(|meta| meta.status.is_final())
    }

    async fn chords(&self) -> Option<RedisResults> {
        self.results.redis(&self.health, &self.metrics).await
    }

    async fn insist<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        doing: &'static str,
        attempt: impl Fn() -> F,
    ) -> Result<T, StoreError> {
        self.results.insist(doing, attempt, &self.health, &self.metrics).await
    }
}

/// A call's part of the chord that it belongs to, if any, and the chord's body.
fn part_of(request: &Request, ending: &Ending) -> Option<(ChordPart, Signature)> {
    let body = request.embed.chord.as_deref()?;
    let raw = |exception| to_raw_value(exception).expect("exceptions have string keys only");
    let (state, result) = match ending {
        Ending::Success(value) => (State::Success, value.clone()),
        Ending::Failure { exception, .. } => (State::Failure, raw(exception)),
        Ending::Revoked(exception) => (State::Revoked, raw(exception)),
        Ending::Retry { .. } | Ending::Replaced(_) | Ending::Sent(_) => return None,
    };
    let part = ChordPart {
        group_id: request.group.clone()?,
        index: request.group_index,
        task_id: request.id.clone(),
        state,
        result,
        size: body.chord_size,
    };
    Some((part, body.clone()))
}

fn value_of(signature: &Signature) -> Value {
    serde_json::to_value(signature).expect("a signature has string keys only")
}

fn list(signatures: &[Signature]) -> Value {
    serde_json::to_value(signatures).expect("signatures have string keys only")
}

#[cfg(test)]
mod tests;
