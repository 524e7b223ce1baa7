//! One message, from its delivery to its acknowledgement.
//!
//! What few messages need (canvases, delays), or only for a moment (the result store), is boxed: it would make the state of
//! each message several times as large.

use std::{pin::pin, sync::Arc, time::Duration};

use celery_client::{amqp, results::ReplyAddress};
use celery_protocol::{Request, Signature, delay::is_delay_exchange, event::EventKind, result::ResultTuple};
use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, error, info, info_span, warn};

use crate::{
    attempts::{self, Verdict},
    backoff,
    broker::{Arrival, Receipt, decode, salvage},
    canvas::{Canvas, Ending, Home, Sequel},
    delay::{self, Postponed},
    done::Done,
    events::{Activity, Events},
    executor::{Executor, Job, Outcome, Ticket},
    health::Health,
    limits::Limits,
    metrics::{Counted, Metrics},
    results::Results,
    revoked::Revoked,
    settle::{
        Admitted, Disposition, Report, Settlement, admit, fail_to_advance, give_up, is_done_by_success,
        is_start_stored, readmit, received, sent, settle, started,
    },
    stop::Stop,
    supervise::{Ended, TimeLimits, supervise},
    task::{CancelHandle, Context, DeliveryInfo, Facts, Registry, States, TaskError},
    tracker::{Tracker, Tracking},
};

/// How long a task that has ended waits until it is stored that it was started.
const START_PATIENCE: Duration = Duration::from_secs(1);

/// Everything that working on a message needs.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) node: Arc<str>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) states: Arc<States>,
    pub(crate) executor: Executor,
    pub(crate) tracker: Arc<Tracker>,
    pub(crate) postponed: Arc<Postponed>,
    pub(crate) revoked: Arc<Revoked>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) done: Arc<Done>,
    /// How often a message may come back.
    pub(crate) delivery_limit: u32,
    /// Whether it is stored that a task was started, where the task doesn't say.
    pub(crate) track_started: bool,
    pub(crate) results: Arc<Results>,
    pub(crate) canvas: Canvas,
    pub(crate) events: Events,
    pub(crate) activity: Arc<Activity>,
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stop: Stop,
}

impl Work {
    /// Works on one message: read, admit, wait if it is early, run, settle, store, acknowledge.
    ///
    /// Until the task has begun, `recall` gives the message back. Gives the time that the task ran, if it did.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the message unacknowledged; a task that was begun runs on, its result is discarded.
    pub(crate) async fn process(
        &self,
        delivery: &Arc<Arrival>,
        cancel: &CancelHandle,
        recall: &Notify,
    ) -> Option<Duration> {
        let is_revoked = |request: &Request| self.revoked.contains(request);
        let admitted = match admit(decode(delivery), &self.registry, is_revoked, Timestamp::now()) {
            Ok(admitted) => admitted,
            Err(settlement) => {
                self.metrics.count(Counted::Received, &settlement.task);
                let settlement = match settlement.report {
                    Report::Malformed { .. } => Box::new(settlement.followed_by(salvage(delivery))),
                    _ => settlement,
                };
                self.conclude(delivery, *settlement, None, None).await;
                return None;
            }
        };
        let request = &admitted.request;
        if let Some(disposition) = delivery.redelivered.then(|| self.done.recall(request)).flatten() {
            info!(id = request.id, task = request.task, "done already, before the connection was lost");
            delivery.settle(disposition, Some(request));
            return None;
        }
        if is_delay_exchange(delivery.exchange.as_str()) {
            let is_revoked = self.results.is_revoked(&request.id, &self.health, &self.metrics);
            let Some(is_revoked) = self.unless_stopped(is_revoked).await else {
                delivery.settle(Disposition::Requeue, None);
                return None;
            };
            if is_revoked {
                self.revoked.change(|revocations| revocations.add(&request.id, Instant::now()));
            }
        }
        self.metrics.count(Counted::Received, &request.task);
        self.events.task(received(request));
        let (retries, redelivered) = (request.retries, delivery.redelivered);
        info!(id = request.id, task = request.task, retries, redelivered, "task received");
        let tracking = self.tracker.track(Arc::clone(request), delivery_info(delivery, request));
        match self.wait(delivery, &admitted, &tracking, recall).await {
            Waited::Due => return self.run(delivery, &admitted, &tracking, cancel, recall).await,
            Waited::Postponed => {
                self.postponed.add(Arc::clone(request), delivery_info(delivery, request), Timestamp::now());
            }
            Waited::Refused(settlement) => {
                self.conclude(delivery, *settlement, Some(request), None).await;
            }
            Waited::Recalled => delivery.settle(Disposition::Requeue, None),
        }
        None
    }

    /// What the store answers about a message that isn't begun with; nothing if the worker is to stop before it does.
    async fn unless_stopped<T>(&self, answer: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            answer = answer => Some(answer),
            () = self.stop.requested() => None,
        }
    }

    /// Waits until the call may be run, or leaves that to the broker.
    async fn wait(
        &self,
        delivery: &Arrival,
        admitted: &Admitted,
        tracking: &Tracking,
        recall: &Notify,
    ) -> Waited {
        let request = &admitted.request;
        let mut has_delay_queues = true;
        loop {
            let now = Timestamp::now();
            if let Err(settlement) = readmit(admitted, |request| self.revoked.contains(request), now) {
                return Waited::Refused(settlement);
            }
            let until_eta = request.delay(now);
            let Some(delay) = until_eta.or_else(|| self.limits.delay(&request.task, Instant::now())) else {
                // Not only when it begins: the next of this task may be in hand already.
                self.limits.begin(&request.task, Instant::now());
                return Waited::Due;
            };
            tracking.wait(until_eta.is_some());
            if has_delay_queues && let Some(wait) = until_eta.filter(|wait| delay::whole_seconds(*wait) > 0) {
                if Box::pin(self.postpone(delivery, request, wait)).await {
                    return Waited::Postponed;
                }
                has_delay_queues = false;
                continue;
            }
            debug!(id = request.id, task = request.task, ?delay, "waiting until the task may run");
            tokio::select! {
                () = sleep(delay) => {}
                () = self.revoked.changed() => {}
                // Whoever gets it next can wait as well as we could.
                () = self.stop.requested() => return Waited::Recalled,
                () = recall.notified() => return Waited::Recalled,
            }
        }
    }

    /// The turn of a message that came back, if it is to be run again. If not, it is done with.
    async fn begins_again(
        &self,
        ticket: Ticket,
        delivery: &Arrival,
        admitted: &Admitted,
        recall: &Notify,
    ) -> Option<Ticket> {
        let request = &admitted.request;
        let limit = self.delivery_limit;
        let watched = (&*self.health, &*self.metrics);
        loop {
            let verdict =
                attempts::verdict(delivery, request, limit, backoff::random(), &self.results, watched);
            let Some(verdict) = self.unless_stopped(verdict).await else {
                delivery.settle(Disposition::Requeue, None);
                return None;
            };
            match verdict {
                Verdict::Run if delivery.is_ours() => return Some(ticket),
                Verdict::Run => {
                    // Its connection was lost meanwhile: it comes again.
                    delivery.settle(Disposition::Requeue, None);
                    return None;
                }
                Verdict::Done => {
                    info!(id = request.id, task = request.task, "done already, by another worker");
                    delivery.settle(Disposition::Ack, Some(request));
                    return None;
                }
                Verdict::Succeeded(value) => {
                    info!(id = request.id, task = request.task, "done already: its result is stored");
                    // What follows may take its time, in which others can run.
                    drop(ticket);
                    // Its chord may not have been told. What follows was sent, but by a worker of Celery's without the broker's word.
                    let home = home(delivery);
                    if let Err(error) = self.canvas.advance(request, &value, &home).await {
                        let settlement = fail_to_advance(admitted, &error, Timestamp::now());
                        self.conclude(delivery, settlement, Some(request), None).await;
                        return None;
                    }
                    if let Some(sequel) = Sequel::new(request, Ending::Success(value)) {
                        self.canvas.conclude(&sequel, &home).await;
                    }
                    delivery.settle(Disposition::Ack, Some(request));
                    return None;
                }
                Verdict::Later(wait) => {
                    return (!self.postpone(delivery, request, wait).await).then_some(ticket);
                }
                Verdict::Elsewhere => {
                    if self.postpone(delivery, request, attempts::LOOK_AGAIN).await {
                        return None;
                    }
                    // Not to be run twice at a time: what the broker can't put off is put off here.
                    let stops = timeout(attempts::LOOK_AGAIN, self.stop.requested()).await.is_ok();
                    if stops || recall.notified().now_or_never().is_some() {
                        delivery.settle(Disposition::Requeue, None);
                        return None;
                    }
                }
                Verdict::GiveUp(deliveries) => {
                    // Whoever takes it out of the dead letters wants it to be tried.
                    self.forget_attempts(delivery, request, Duration::ZERO).await;
                    let settlement = give_up(admitted, deliveries, Timestamp::now());
                    self.conclude(delivery, settlement, Some(request), None).await;
                    return None;
                }
            }
        }
    }

    /// Puts the message into the delay queues; false if that can't be done.
    async fn postpone(&self, delivery: &Arrival, request: &Request, wait: Duration) -> bool {
        match self.canvas.sender.forward(&delivery.queue, delay::again(delivery), wait).await {
            Ok(()) => {
                info!(id = request.id, task = request.task, ?wait, "to be run later: it waits in the broker");
                // If that can't be told, the broker delivers it again, and there are two: the other one is marked.
                delivery.settle(Disposition::Ack, None);
                true
            }
            Err(problem) => {
                warn!(id = request.id, task = request.task, %problem, "no delay queues for a task that is to be run later");
                false
            }
        }
    }

    /// Runs the task when its turn comes.
    async fn run(
        &self,
        delivery: &Arc<Arrival>,
        admitted: &Admitted,
        tracking: &Tracking,
        cancel: &CancelHandle,
        recall: &Notify,
    ) -> Option<Duration> {
        let request = &admitted.request;
        let context = Context::new(Facts {
            request: Arc::clone(request),
            hostname: Arc::clone(&self.node),
            delivery_info: delivery_info(delivery, request),
            span: info_span!("task", id = request.id, task = request.task),
            cancelled: cancel.subscribe(),
            states: Arc::clone(&self.states),
        });
        let stores = !matches!(*self.results, Results::Nowhere);
        let receipt = is_done_by_success(admitted, stores).then(|| Receipt::new(delivery, request));
        let submitted = Job { task: Arc::clone(&admitted.task), context: context.clone(), receipt };
        let came_back = attempts::is_redelivered(delivery);
        let waits = came_back || !admitted.task.acks_late;
        let mut ticket = self.executor.submit(submitted, waits);
        let is_recalled = tokio::select! {
            biased;
            () = ticket.begun() => false,
            () = recall.notified() => ticket.withdraw(),
        };
        if is_recalled {
            delivery.settle(Disposition::Requeue, None);
            return None;
        }
        if came_back {
            ticket = Box::pin(self.begins_again(ticket, delivery, admitted, recall)).await?;
        }
        if !admitted.task.acks_late && !delivery.acknowledge().await {
            // It will come again, and must not have been run then.
            return None;
        }
        ticket.go();
        let begun = Instant::now();
        tracking.begin(Timestamp::now());
        self.activity.begin();
        self.metrics.busy.set(1);
        self.metrics.count(Counted::Started, &request.task);
        self.events.task(EventKind::TaskStarted { uuid: request.id.clone() });
        let of_message = TimeLimits { soft: request.time_limit.soft(), hard: request.time_limit.hard() };
        let limits = of_message.or(self.limits.times(&request.task));
        let tells_start = stores && is_start_stored(admitted, self.track_started);
        let finish = async {
            let ended = supervise(ticket.ended(), limits, tracking.terminate(), cancel);
            let ended =
                if tells_start { Box::pin(self.tell_start(admitted, ended)).await } else { ended.await };
            let is_stuck = ended.is_stuck();
            let runtime = match &ended {
                Ended::Finished(outcome) => outcome.runtime,
                _ => begun.elapsed(),
            };
            self.metrics.observe_runtime(&request.task, runtime);
            let has_succeeded = matches!(&ended, Ended::Finished(Outcome { result: Ok(_), .. }));
            let chance = if has_succeeded { 0.0 } else { backoff::random() };
            let settlement = settle(admitted, ended, Timestamp::now(), chance);
            let additions = context.take_additions();
            let settlement = self.advance(delivery, admitted, settlement, additions, runtime).await;
            self.conclude(delivery, settlement, Some(request), Some(runtime)).await;
            (runtime, is_stuck)
        };
        let (runtime, is_stuck) = tokio::select! {
            biased;
            finished = finish => finished,
            // To the end: the message may come back while the result or what follows can't be told yet.
            never = attempts::hold(request, &self.node, &self.results, &self.health, &self.metrics) => match never {},
        };
        self.activity.end();
        self.metrics.busy.set(self.activity.active().into());
        if is_stuck {
            warn!(
                id = request.id,
                task = request.task,
                "the task can't be stopped: restarting the worker to be rid of it"
            );
            self.stop.restart();
        }
        Some(runtime)
    }

    /// Waits for the end of a task and stores meanwhile that it was started. What isn't stored soon after its end is given up: it
    /// must not replace a retry.
    async fn tell_start(&self, admitted: &Admitted, ended: impl Future<Output = Ended>) -> Ended {
        let meta = started(admitted, std::process::id(), &self.node);
        let mut storing = pin!(self.results.store_started(&meta, ReplyAddress::from(&*admitted.request)));
        let mut ended = pin!(ended);
        tokio::select! {
            biased;
            () = &mut storing => ended.await,
            ended = &mut ended => {
                // Where this takes longer, the end can't be stored either.
                let _ = timeout(START_PATIENCE, storing).await;
                ended
            }
        }
    }

    /// Sends what follows a task that succeeded, or takes its place. If that can't be done, the task has failed.
    async fn advance(
        &self,
        delivery: &Arrival,
        admitted: &Admitted,
        settlement: Settlement,
        additions: Vec<Signature>,
        runtime: Duration,
    ) -> Settlement {
        let advanced = self.try_advance(delivery, admitted, settlement, additions, runtime).await;
        advanced.unwrap_or_else(|error| fail_to_advance(admitted, &error, Timestamp::now()))
    }

    async fn try_advance(
        &self,
        delivery: &Arrival,
        admitted: &Admitted,
        mut settlement: Settlement,
        additions: Vec<Signature>,
        runtime: Duration,
    ) -> Result<Settlement, TaskError> {
        let request = &admitted.request;
        let home = home(delivery);
        let mut children = Vec::new();
        match settlement.sequel.as_deref().map(|sequel| &sequel.ending) {
            Some(Ending::Replaced(signature)) => {
                if !additions.is_empty() {
                    // Before what takes its place, which may be the chord's last member otherwise.
                    Box::pin(self.canvas.add_to_chord(request, additions, &home)).await?;
                }
                Box::pin(self.canvas.replace(request, Signature::clone(signature), &home)).await?;
                return Ok(settlement);
            }
            Some(Ending::Sent(signature)) => {
                let handle = Box::pin(self.canvas.send(request, Signature::clone(signature), &home)).await?;
                settlement = sent(admitted, &handle, runtime, Timestamp::now());
                children.push(handle);
            }
            _ => {}
        }
        let Some(sequel) = &settlement.sequel else { return Ok(with_children(settlement, children)) };
        let Ending::Success(value) = &sequel.ending else { return Ok(settlement) };
        if !additions.is_empty() {
            children.extend(Box::pin(self.canvas.add_to_chord(request, additions, &home)).await?);
        }
        children.extend(Box::pin(self.canvas.advance(request, value, &home)).await?);
        Ok(with_children(settlement, children))
    }

    async fn forget_attempts(&self, delivery: &Arrival, request: &Request, ran: Duration) {
        let (node, results) = (&self.node, &self.results);
        attempts::forget(delivery, request, ran, node, results, &self.health, &self.metrics).await;
    }

    /// Carries out what was decided: store, tell the chord and the rest of the chain, acknowledge, tell monitors.
    async fn conclude(
        &self,
        delivery: &Arrival,
        mut settlement: Settlement,
        request: Option<&Arc<Request>>,
        runtime: Option<Duration>,
    ) {
        if let Some(meta) = &settlement.store {
            let properties = amqp::properties(&delivery.properties);
            let reply = ReplyAddress {
                queue: properties.reply_to.as_deref(),
                correlation_id: properties.correlation_id.as_deref().unwrap_or(&meta.task_id),
            };
            Box::pin(self.results.store(meta, reply, &self.health, &self.metrics)).await;
        }
        if let Some(sequel) = &settlement.sequel {
            let failed = Box::pin(self.canvas.conclude(sequel, &home(delivery))).await;
            if let Some(exception) = failed
                && let Some(task) = request.and_then(|request| self.registry.resolve(request))
            {
                settlement = settlement.failed_after_all(&exception, &task);
            }
        }
        if let (Disposition::Requeue, Some(request)) = (settlement.disposition, request) {
            Box::pin(self.forget_attempts(delivery, request, runtime.unwrap_or_default())).await;
        }
        delivery.settle(settlement.disposition, request);
        if let Some(event) = settlement.event {
            self.events.task(event);
        }
        self.metrics.count(settlement.counted, &settlement.task);
        let id = settlement.id.unwrap_or_default();
        let task = settlement.task;
        let runtime = runtime.map(|runtime| runtime.as_secs_f64());
        match settlement.report {
            Report::Succeeded { result } => info!(id, task, runtime, result, "task succeeded"),
            Report::Failed { exception, traceback } => {
                error!(id, task, runtime, exception, traceback, "task failed");
            }
            Report::Retried { cause, delay } => {
                warn!(id, task, runtime, cause, retry_in = ?delay, "task is to be run again");
            }
            Report::Ignored => info!(id, task, runtime, "task ended without a result"),
            Report::Rejected { reason, requeue } => {
                warn!(id, task, runtime, reason, requeue, "task rejected its message");
            }
            Report::Revoked { reason } => info!(id, task, runtime, reason, "task revoked"),
            Report::Unregistered => error!(id, task, "message rejected: no task of this name is registered"),
            Report::Malformed { category, problem } => {
                error!(id, task, category, problem, "message rejected: it can't be read");
            }
        }
    }
}

fn with_children(mut settlement: Settlement, children: Vec<ResultTuple>) -> Settlement {
    if let Some(meta) = &mut settlement.store {
        meta.children = Some(children);
    }
    settlement
}

/// How waiting for the right moment ended.
enum Waited {
    Due,
    Postponed,
    Refused(Box<Settlement>),
    Recalled,
}

fn home(delivery: &Arrival) -> Home {
    let (exchange, routing_key) = match delivery.exchange.as_str() {
        // The key is the delay's; what it was sent with before is lost.
        exchange if is_delay_exchange(exchange) => ("", &*delivery.queue),
        exchange => (exchange, delivery.routing_key.as_str()),
    };
    Home {
        queue: Arc::clone(&delivery.queue),
        exchange: exchange.to_owned(),
        routing_key: routing_key.to_owned(),
        is_redelivered: attempts::is_redelivered(delivery),
        is_sequel: attempts::is_sequel(delivery),
    }
}

fn delivery_info(delivery: &Arrival, request: &Request) -> DeliveryInfo {
    DeliveryInfo {
        exchange: delivery.exchange.to_string(),
        routing_key: delivery.routing_key.to_string(),
        priority: request.priority,
        redelivered: attempts::is_redelivered(delivery),
    }
}
