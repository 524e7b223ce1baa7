//! A TaskQueue of whose load something can't be seen, or is seen wrongly.

use std::time::Duration;

use anyhow::{Context, Result};
use celery_client::amqp::short;
use celery_client::connect;
use futures_util::future::try_join_all;
use lapin::Connection;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use tokio::time::sleep;

use crate::replicas::{Replicas, unix_now};
use crate::soloist::{self, START, Test, condition};
use crate::wait;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// RabbitMQ's management plugin is off
    ManagementOff,
    /// One queue of two, the one with all the messages, can't be read
    QueueUnreadable,
    /// RabbitMQ keeps its connections and answers nothing
    BrokerSilent,
    /// RabbitMQ's clock jumps two hours ahead and four back
    ClockJumps,
    /// What workers say of their tasks doesn't arrive, and no message waits
    WorkersUnheard,
}

const TASK_QUEUE: &str = "jobs";
/// The queue that nothing is sent to, and the one with the load.
const QUEUES: [&str; 2] = ["quiet", "busy"];
/// How many workers the load needs.
pub const WORKERS: i32 = 4;

/// Makes the TaskQueue.
///
/// # Errors
/// If it doesn't become ready.
pub async fn prepare(test: &Test) -> Result<()> {
    let scaling =
        format!("{{maxReplicas: {WORKERS}, tasksPerWorker: 1, scaleDown: {{stabilizationSeconds: 0}}}}");
    let queues = QUEUES.map(|queue| format!("{{name: {queue}}}")).join(", ");
    let task_queue = soloist::task_queue(TASK_QUEUE, &scaling);
    test.namespace.apply(&format!("{task_queue}  queues: [{queues}]\n")).await?;
    test.condition(TASK_QUEUE, "Ready", "True", "Ready").await.map(drop)
}

/// What was seen during a fault.
#[derive(Debug)]
pub struct Seen {
    /// The fewest workers that there were to be.
    pub workers: i32,
    /// What the TaskQueue said of its scaling at the end.
    pub said: String,
}

/// Gives the TaskQueue work that shows in one thing only, has that go wrong, and sees to it that the workers go when it is right again and
/// nothing is left.
///
/// # Errors
/// If they don't go then; and whatever keeps the fault from being made.
pub async fn trial(test: &Test, fault: Fault, seconds: u64) -> Result<Seen> {
    let replicas = Replicas::watch(test.client.clone(), &test.namespace.name);
    if fault == Fault::ClockJumps {
        test.cluster.rabbitmq.stop().await?;
        test.cluster.rabbitmq.start_with_clock().await?;
    }
    load(test, fault, seconds).await?;
    test.until_replicas(TASK_QUEUE, WORKERS, START).await?;
    wait::until("the workers to be ready", START, || async {
        let pods = test.pods(TASK_QUEUE).await?;
        Ok((pods.iter().filter(|pod| soloist::is_ready(pod)).count() == WORKERS as usize).then_some(()))
    })
    .await?;
    let begun = unix_now();
    let locked = begin(test, fault).await?;
    let seen = watch(test, fault, Duration::from_secs(seconds), begun, &replicas).await;
    end(test, fault, locked).await?;
    let seen = seen?;
    // What was not seen is seen again, and nothing is left: now the workers go.
    let vhost = &test.namespace.name;
    wait::until("the queue to be emptied", START, || async {
        test.cluster.rabbitmq.purge(vhost, QUEUES[1]).await.map(Some)
    })
    .await?;
    test.until_replicas(TASK_QUEUE, 0, START + Duration::from_secs(2 * seconds)).await?;
    Ok(seen)
}

/// Gives every worker something to do for as long as the fault lasts.
async fn load(test: &Test, fault: Fault, seconds: u64) -> Result<()> {
    let workers = WORKERS as u64;
    let (tasks, task_seconds) = match fault {
        // One for each, until after it: all that shows them busy is what they say.
        Fault::WorkersUnheard => (workers, (seconds + 30) as f64),
        _ => (workers * (seconds + 60), 1.0),
    };
    wait::until("the tasks to be sent", START, || async {
        // The broker may just have come up.
        let celery = test.celery().await?;
        let send = (0..tasks).map(|_| soloist::send(&celery, QUEUES[1], "tasks.sleep", (task_seconds,)));
        try_join_all(send).await.map(|_| Some(()))
    })
    .await
}

/// Looks for as long as the fault lasts.
async fn watch(
    test: &Test,
    fault: Fault,
    lasting: Duration,
    begun: f64,
    replicas: &Replicas,
) -> Result<Seen> {
    let jumps: &[&str] = if fault == Fault::ClockJumps { &["+2h", "-2h"] } else { &[] };
    for jump in jumps {
        test.cluster.rabbitmq.set_clock(jump)?;
        sleep(lasting / jumps.len() as u32).await;
    }
    if jumps.is_empty() {
        sleep(lasting).await;
    }
    let changes = replicas.changes(TASK_QUEUE, begun);
    let workers = changes.iter().map(|change| change.replicas).min().unwrap_or(WORKERS);
    let task_queue = test.task_queues().get(TASK_QUEUE).await?;
    let said = condition(&task_queue, "ScalingActive").context("no condition ScalingActive")?;
    Ok(Seen { workers, said: format!("{}: {}", said["reason"], said["message"]) })
}

async fn begin(test: &Test, fault: Fault) -> Result<Option<Connection>> {
    let rabbitmq = &test.cluster.rabbitmq;
    match fault {
        Fault::ManagementOff => rabbitmq.manage(false).await?,
        Fault::QueueUnreadable => return lock(test).await.map(Some),
        Fault::BrokerSilent => rabbitmq.suspend()?,
        Fault::ClockJumps => {}
        Fault::WorkersUnheard => {
            // The workers declare it anew; the operator's queue, which was bound to it, stays unbound.
            rabbitmq.delete_exchange(&test.namespace.name, "celeryev").await?;
        }
    }
    Ok(None)
}

async fn end(test: &Test, fault: Fault, locked: Option<Connection>) -> Result<()> {
    let rabbitmq = &test.cluster.rabbitmq;
    match fault {
        Fault::ManagementOff => rabbitmq.manage(true).await?,
        Fault::QueueUnreadable => {
            locked.context("the queue is not locked")?.close(200, "done".into()).await?;
        }
        Fault::BrokerSilent => rabbitmq.resume()?,
        // With the machine's clock again; and the operator, connected anew, hears the workers again.
        Fault::ClockJumps | Fault::WorkersUnheard => rabbitmq.stop().await?,
    }
    rabbitmq.start().await
}

/// Puts a queue in the busy one's place that belongs to one connection: RabbitMQ tells nobody else about it.
async fn lock(test: &Test) -> Result<Connection> {
    let connection = connect(&test.broker_url.parse()?, "test-wrong-data").await?;
    let (name, exclusive) = (short(QUEUES[1]), QueueDeclareOptions { exclusive: true, ..Default::default() });
    wait::until("the queue to be locked", START, || async {
        // The operator may have been quicker to declare it anew.
        let channel = connection.create_channel().await?;
        channel.queue_delete(name.clone(), QueueDeleteOptions::default()).await?;
        channel.queue_declare(name.clone(), exclusive, FieldTable::default()).await?;
        Ok(Some(()))
    })
    .await?;
    Ok(connection)
}
