//! `control`.

use crate::args::{Common, Workers};
use crate::failure::Failure;
use crate::inspect::verdict;
use crate::output::{self, cell};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

/// Tell workers what to do.
#[derive(Debug, Args)]
pub(crate) struct ControlArgs {
    #[command(subcommand)]
    order: Order,

    #[command(flatten)]
    workers: Workers,

    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Subcommand)]
#[command(rename_all = "snake_case")]
enum Order {
    /// Don't run these tasks.
    Revoke {
        /// Ids of the tasks.
        #[arg(required = true)]
        ids: Vec<String>,
        /// End those that run, too.
        #[arg(long)]
        terminate: bool,
        /// By which signal.
        #[arg(long, default_value = "TERM", requires = "terminate")]
        signal: String,
    },
    /// End these tasks: `terminate KILL ID...`.
    Terminate {
        /// By which signal.
        signal: String,
        /// Ids of the tasks.
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Don't run tasks that carry one of these stamps.
    #[command(alias = "revoke-by-stamped-headers")]
    RevokeByStampedHeaders {
        /// The stamps: NAME=VALUE.
        #[arg(required = true)]
        stamps: Vec<String>,
        /// End those that run, too.
        #[arg(long)]
        terminate: bool,
    },
    /// Run a task at most so often in each worker.
    #[command(alias = "rate-limit")]
    RateLimit {
        /// Name of the task.
        task: String,
        /// 10/s, 100/m, 1000/h; 0 for as often as it can.
        rate: String,
    },
    /// Set the time limits of a task.
    #[command(alias = "time-limit")]
    TimeLimit {
        /// Name of the task.
        task: String,
        /// Seconds after which it is asked to stop.
        soft: f64,
        /// Seconds after which it is ended.
        hard: Option<f64>,
    },
    /// Take tasks from one more queue.
    #[command(alias = "add-consumer")]
    AddConsumer {
        /// Name of the queue.
        queue: String,
        /// Exchange to bind it to; of the queue's name unless given.
        exchange: Option<String>,
        /// Type of the exchange.
        #[arg(default_value = "direct")]
        exchange_type: String,
        /// Routing key to bind it with.
        routing_key: Option<String>,
    },
    /// Take no more tasks from a queue.
    #[command(alias = "cancel-consumer")]
    CancelConsumer {
        /// Name of the queue.
        queue: String,
    },
    /// Run more tasks at once. Solo workers refuse.
    #[command(alias = "pool-grow")]
    PoolGrow {
        /// By how many.
        #[arg(default_value_t = 1)]
        n: u32,
    },
    /// Run fewer tasks at once. Solo workers refuse.
    #[command(alias = "pool-shrink")]
    PoolShrink {
        /// By how many.
        #[arg(default_value_t = 1)]
        n: u32,
    },
    /// Start the pool anew. Solo workers refuse.
    #[command(alias = "pool-restart")]
    PoolRestart,
    /// Set the limits between which a pool scales itself. Solo workers refuse.
    Autoscale {
        /// Most processes.
        max: u32,
        /// Fewest processes.
        min: u32,
    },
    /// Send events of tasks.
    #[command(alias = "enable-events")]
    EnableEvents,
    /// Send no more events of tasks.
    #[command(alias = "disable-events")]
    DisableEvents,
    /// Send a heartbeat event now.
    Heartbeat,
    /// Finish what runs, and exit.
    Shutdown {
        /// Don't ask when all workers are meant.
        #[arg(short, long)]
        yes: bool,
    },
}

impl Order {
    /// The command, its arguments, and whether it is answered.
    fn command(&self) -> (&'static str, Value, bool) {
        let (method, arguments) = match self {
            Self::Revoke { ids, terminate: false, .. } => ("revoke", json!({"task_id": ids})),
            Self::Revoke { ids, signal, .. } | Self::Terminate { ids, signal } => {
                ("revoke", json!({"task_id": ids, "terminate": true, "signal": signal}))
            }
            Self::RevokeByStampedHeaders { stamps, terminate } => {
                ("revoke_by_stamped_headers", json!({"headers": stamps, "terminate": terminate}))
            }
            Self::RateLimit { task, rate } => {
                let rate = if rate == "0" { json!(0) } else { json!(rate) };
                ("rate_limit", json!({"task_name": task, "rate_limit": rate}))
            }
            Self::TimeLimit { task, soft, hard } => {
                ("time_limit", json!({"task_name": task, "soft": soft, "hard": hard}))
            }
            Self::AddConsumer { queue, exchange, exchange_type, routing_key } => (
                "add_consumer",
                json!({
                    "queue": queue, "exchange": exchange, "exchange_type": exchange_type, "routing_key": routing_key,
                }),
            ),
            Self::CancelConsumer { queue } => ("cancel_consumer", json!({"queue": queue})),
            Self::PoolGrow { n } => ("pool_grow", json!({"n": n})),
            Self::PoolShrink { n } => ("pool_shrink", json!({"n": n})),
            Self::PoolRestart => ("pool_restart", json!({})),
            Self::Autoscale { max, min } => ("autoscale", json!({"max": max, "min": min})),
            Self::EnableEvents => ("enable_events", json!({})),
            Self::DisableEvents => ("disable_events", json!({})),
            Self::Heartbeat => return ("heartbeat", json!({}), false),
            Self::Shutdown { .. } => return ("shutdown", json!({}), false),
        };
        (method, arguments, true)
    }
}

impl ControlArgs {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        if matches!(self.order, Order::Shutdown { yes: false }) && self.workers.is_everyone() {
            output::confirm("Shut down all workers on this broker's virtual host?")?;
        }
        let (method, arguments, is_answered) = self.order.command();
        let arguments = arguments.as_object().cloned().unwrap_or_default();
        let celery = self.common.control().await?;
        let control = self.workers.control(&celery);
        if !is_answered {
            control.cast(method, arguments).await?;
            celery.close().await;
            return if self.common.is_json() { output::json(&json!({})) } else { output::line("sent") };
        }
        let answers = control.call(method, arguments).await?;
        celery.close().await;
        if self.common.is_json() {
            output::json(&answers)?;
        } else if answers.values().any(|answer| answer["error"].is_null()) {
            let done = answers.iter().filter(|(_, answer)| answer["error"].is_null());
            output::table(
                &["NODE", "ANSWER"],
                done.map(|(node, answer)| [node.clone(), cell(&answer["ok"])]),
            )?;
        }
        verdict(&answers, &self.workers)
    }
}
