//! A line a second about the three TaskQueues, all of it from Prometheus.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::progress::Progress;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::QUEUES;
use crate::series::Prometheus;

/// Messages that wait.
pub(crate) const READY: &str = "soloist_taskqueue_messages_ready";
/// Tasks that run.
pub(crate) const RUNNING: &str = "soloist_taskqueue_running_tasks";
/// Worker pods.
pub(crate) const REPLICAS: &str = "soloist_taskqueue_replicas";

/// How many looks in a row must agree: a single one can fall between a message that left the queue and the worker's
/// word that it runs.
const LOOKS: u32 = 3;

/// One series for each TaskQueue, whichever replica of the operator tells.
pub(crate) fn by_queue(metric: &str) -> String {
    format!("max by (taskqueue) ({metric})")
}

/// For how many looks in a row all queues have been quiet.
#[derive(Clone, Copy, Default)]
struct Looks {
    drained: u32,
    at_rest: u32,
}

/// What is so at the moment, and has been for a few looks.
pub(crate) struct Quiet {
    /// Nothing waits and nothing runs.
    pub(crate) drained: bool,
    /// Nor is there a worker.
    pub(crate) at_rest: bool,
}

/// Prints until it is dropped.
pub(crate) struct Live {
    looks: watch::Receiver<Looks>,
    task: JoinHandle<()>,
}

impl Live {
    /// Starts to print, with seconds counted from `started`.
    pub(crate) fn start(progress: Progress, prometheus: Prometheus, started: Instant) -> Self {
        let (sender, looks) = watch::channel(Looks::default());
        let task = tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_secs(1));
            loop {
                tick.tick().await;
                let seconds = started.elapsed().as_secs_f64();
                match Now::look(&prometheus).await {
                    Ok(now) => {
                        progress.say(format!("{seconds:4.0} s │ {}", now.line()));
                        sender.send_modify(|looks| {
                            looks.drained = if now.drained() { looks.drained + 1 } else { 0 };
                            looks.at_rest = if now.at_rest() { looks.at_rest + 1 } else { 0 };
                        });
                    }
                    Err(error) => progress.say(format!("{seconds:4.0} s │ {error:#}")),
                }
            }
        });
        Self { looks, task }
    }

    /// Waits for `what`, counting from now.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        within: Duration,
        is_so: impl Fn(Quiet) -> bool,
    ) -> Result<()> {
        let before = *self.looks.borrow();
        // Looks of before the call don't count: they may be from before the first message.
        let since = |now: u32, before: u32| if now > before { now - before } else { now } >= LOOKS;
        let quiet = self.looks.wait_for(|now| {
            is_so(Quiet {
                drained: since(now.drained, before.drained),
                at_rest: since(now.at_rest, before.at_rest),
            })
        });
        let seen = tokio::time::timeout(within, quiet).await;
        seen.with_context(|| format!("waited {within:?} for {what}"))?.context("the live lines ended")?;
        Ok(())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The three TaskQueues at one moment. A number that Prometheus doesn't have is unknown, not zero.
struct Now(Vec<Row>);

struct Row {
    queue: &'static str,
    ready: Option<f64>,
    running: Option<f64>,
    replicas: Option<f64>,
}

impl Now {
    async fn look(prometheus: &Prometheus) -> Result<Self> {
        let ready = prometheus.now(&by_queue(READY)).await?;
        let running = prometheus.now(&by_queue(RUNNING)).await?;
        let replicas = prometheus.now(&by_queue(REPLICAS)).await?;
        let of = |values: &BTreeMap<String, f64>, queue: &str| values.get(queue).copied();
        let row = |queue| Row {
            queue,
            ready: of(&ready, queue),
            running: of(&running, queue),
            replicas: of(&replicas, queue),
        };
        Ok(Self(QUEUES.into_iter().map(row).collect()))
    }

    fn drained(&self) -> bool {
        self.0.iter().all(|row| row.ready == Some(0.0) && row.running == Some(0.0))
    }

    fn at_rest(&self) -> bool {
        self.drained() && self.0.iter().all(|row| row.replicas == Some(0.0))
    }

    fn line(&self) -> String {
        let number = |value: Option<f64>| value.map_or("?".to_owned(), |v| format!("{v:.0}"));
        let cell = |row: &Row| {
            let (ready, running, pods) = (number(row.ready), number(row.running), number(row.replicas));
            format!("{:<5} {ready:>5} waiting {running:>3} running {pods:>3} pods", row.queue)
        };
        self.0.iter().map(cell).collect::<Vec<_>>().join(" │ ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(ready: Option<f64>, running: Option<f64>, replicas: Option<f64>) -> Now {
        Now(vec![Row { queue: "red", ready, running, replicas }])
    }

    #[test]
    fn an_unknown_number_is_not_quiet() {
        assert!(!now(Some(0.0), None, Some(0.0)).drained());
        assert!(!now(Some(0.0), Some(0.0), None).at_rest());
        assert!(now(Some(0.0), Some(0.0), Some(0.0)).at_rest());
    }
}
