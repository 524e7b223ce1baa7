//! One message, from its delivery to its acknowledgement.

use std::sync::Arc;

use celery_client::{amqp, results::ReplyAddress};
use celery_protocol::event::EventKind;
use jiff::Timestamp;
use lapin::{
    Acker,
    message::Delivery,
    options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions},
};
use tokio::sync::watch;
use tracing::{debug, error, info, info_span, warn};

use crate::{
    broker::{answer, decode},
    events::{Activity, Events},
    executor::{Executor, Job},
    health::Health,
    metrics::{Counted, Metrics},
    results::Results,
    settle::{Admitted, Disposition, Report, Settlement, admit, received, settle},
    stop::Stop,
    task::{Call, Context, ContextFacts, DeliveryInfo, Registry},
};

/// Everything that working on a message needs.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) node: Arc<str>,
    pub(crate) registry: Registry,
    pub(crate) executor: Executor,
    pub(crate) results: Arc<Results>,
    pub(crate) events: Events,
    pub(crate) activity: Arc<Activity>,
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Work {
    /// Works on one message: read, admit, run, settle, store, acknowledge.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the message unacknowledged; a task that was begun runs on, its result is discarded.
    pub(crate) async fn process(&self, delivery: &Delivery, cancelled: watch::Receiver<bool>, stop: &Stop) {
        let now = Timestamp::now();
        let admitted = match admit(decode(delivery), &self.registry, now) {
            Ok(admitted) => admitted,
            Err(settlement) => {
                self.metrics.count(Counted::Received, &settlement.task);
                return self.conclude(delivery, *settlement, None).await;
            }
        };
        let request = &admitted.request;
        self.metrics.count(Counted::Received, &request.task);
        self.events.emit(received(request));
        let (retries, redelivered) = (request.retries, delivery.redelivered);
        info!(id = request.id, task = request.task, retries, redelivered, "task received");
        if let Some(delay) = request.delay(now) {
            debug!(id = request.id, task = request.task, ?delay, "waiting until the task may run");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                // Whoever gets it next can wait as well as we could.
                () = stop.requested() => return give_back(&delivery.acker).await,
            }
        }
        self.run(delivery, admitted, cancelled).await;
    }

    async fn run(&self, delivery: &Delivery, admitted: Admitted, cancelled: watch::Receiver<bool>) {
        let request = &admitted.request;
        self.activity.begin();
        self.metrics.busy.set(1);
        self.metrics.count(Counted::Started, &request.task);
        self.events.emit(EventKind::TaskStarted { uuid: request.id.clone() });
        let span = info_span!("task", id = request.id, name = request.task);
        let context = Context::new(ContextFacts {
            id: request.id.clone(),
            task: request.task.clone(),
            retries: request.retries,
            root_id: request.root().to_owned(),
            parent_id: request.parent_id.clone(),
            group: request.group.clone(),
            headers: request.headers.clone(),
            hostname: Arc::clone(&self.node),
            delivery_info: DeliveryInfo {
                exchange: delivery.exchange.to_string(),
                routing_key: delivery.routing_key.to_string(),
                priority: request.priority,
                redelivered: delivery.redelivered,
            },
            span: span.clone(),
            cancelled,
        });
        let call = Call { arguments: request.arguments.clone(), context };
        let job = Job { task: Arc::clone(&admitted.task), call, span };
        let outcome = self.executor.execute(job).await;
        self.metrics.observe_runtime(&request.task, outcome.runtime);
        let runtime = outcome.runtime.as_secs_f64();
        let settlement = settle(&admitted, outcome.result, runtime, Timestamp::now());
        self.conclude(delivery, settlement, Some(runtime)).await;
        self.metrics.busy.set(0);
        self.activity.end();
    }

    /// Carries out what was decided: store, then acknowledge, then tell.
    async fn conclude(&self, delivery: &Delivery, settlement: Settlement, runtime: Option<f64>) {
        if let Some(meta) = &settlement.store {
            let properties = amqp::properties(&delivery.properties);
            let reply = ReplyAddress {
                queue: properties.reply_to.as_deref(),
                correlation_id: properties.correlation_id.as_deref().unwrap_or(&meta.task_id),
            };
            self.results.store(meta, reply, &self.health, &self.metrics).await;
        }
        acknowledge(delivery, &settlement).await;
        if let Some(event) = settlement.event {
            self.events.emit(event);
        }
        self.metrics.count(settlement.counted, &settlement.task);
        let id = settlement.id.unwrap_or_default();
        let task = settlement.task;
        match settlement.report {
            Report::Succeeded { result } => info!(id, task, runtime, result, "task succeeded"),
            Report::Failed { exception, traceback } => {
                error!(id, task, runtime, exception, traceback, "task failed");
            }
            Report::Expired => info!(id, task, "task expired before it could be run"),
            Report::Unregistered => error!(id, task, "message rejected: no task of this name is registered"),
            Report::Malformed { category, problem } => {
                error!(id, task, category, problem, "message rejected: it can't be read");
            }
        }
    }
}

async fn acknowledge(delivery: &Delivery, settlement: &Settlement) {
    let told = match settlement.disposition {
        Disposition::Ack => answer("acknowledge", delivery.acker.ack(BasicAckOptions::default())).await,
        Disposition::Reject => {
            answer("reject", delivery.acker.reject(BasicRejectOptions { requeue: false })).await
        }
    };
    let problem = match told {
        Ok(true) => return,
        Ok(false) => "the connection it came on is gone".to_owned(),
        Err(error) => error.describe(),
    };
    // Never on another channel: delivery tags of one mean something else on the next.
    warn!(id = settlement.id, problem, "not acknowledged: the broker will deliver the message again");
}

/// Puts a message back into its queue.
pub(crate) async fn give_back(acker: &Acker) {
    let requeue = BasicNackOptions { multiple: false, requeue: true };
    match answer("give a message back", acker.nack(requeue)).await {
        Ok(_) => debug!("gave a message back to its queue"),
        Err(error) => {
            warn!(error = %error.describe(), "the broker takes the message back when the connection ends")
        }
    }
}
