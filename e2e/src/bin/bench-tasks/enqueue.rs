//! How fast tasks are sent.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::command;
use tokio::process::Command;

use crate::Stand;
use crate::contender::celery;
use crate::line::Subject;
use crate::queue::Queue;

/// Celery's client sends a thousand tasks a second, so this is plenty.
const PATIENCE: Duration = Duration::from_secs(300);

/// Messages on their way at once from each thread of ours.
const UNCONFIRMED: u16 = 1000;

impl Stand {
    /// Fills a queue with calls of `tasks.add(1, 2)`, and writes their ids to a file if there is to be one.
    pub(crate) async fn fill(&self, queue: &str, tasks: u64, ids: Option<&Path>) -> Result<()> {
        let mut fill = self.load_enqueue(queue, tasks);
        if let Some(ids) = ids {
            fill.arg("--ids").arg(ids);
        }
        command::output(&mut fill, PATIENCE).await.map(drop)
    }

    fn load_enqueue(&self, queue: &str, tasks: u64) -> Command {
        let mut command = Command::new(&self.programs.load);
        command.args(["enqueue", "--broker", &self.amqp_url, "--queue", queue]);
        command.args(["--tasks", &tasks.to_string()]);
        command
    }
}

/// Our client, lapin alone and Celery's client; from one thread and from ten, with confirms and without.
pub(crate) async fn all(stand: &Stand) -> Result<()> {
    for (worker, in_hand) in [("soloist", UNCONFIRMED), ("lapin-loop", UNCONFIRMED), ("celery-solo", 1)] {
        for threads in [1, 10] {
            for confirms in [true, false] {
                let what = if confirms { "confirmed" } else { "unconfirmed" };
                let name = format!("enqueue {worker} {threads} {what}");
                let step = stand.progress.step(name);
                let mut figures = Vec::new();
                for _ in 0..stand.runs {
                    figures.push(run(stand, worker, threads, confirms).await?);
                }
                let subject =
                    Subject { bench: "enqueue", worker, queue: "classic", results: "none", in_hand };
                let unit =
                    format!("tasks/s, {threads} thread{}, {what}", if threads == 1 { "" } else { "s" });
                let median = subject.print(unit, &figures)?;
                step.done(format!("{median} tasks/s"));
            }
        }
    }
    Ok(())
}

async fn run(stand: &Stand, worker: &str, threads: u64, confirms: bool) -> Result<f64> {
    let queue = Queue::create(&stand.amqp_url, "classic").await?;
    let mut command = if worker == "celery-solo" {
        let mut command = celery(stand, &queue.name, "classic", None);
        // A fifth of the tasks: it is slower by more than that.
        command.args(["celery_app.py", "enqueue", &(stand.tasks / 5).to_string(), &threads.to_string()]);
        if confirms {
            command.env("CONFIRMS", "1");
        }
        command
    } else {
        let mut command = stand.load_enqueue(&queue.name, stand.tasks);
        command.args(["--threads", &threads.to_string()]);
        command.args(["--with", if worker == "soloist" { "client" } else { "lapin" }]);
        if !confirms {
            command.arg("--unconfirmed");
        }
        command
    };
    let rate = number(&command::output(&mut command, PATIENCE).await?)?;
    queue.delete().await?;
    Ok(rate)
}

/// The number that a program has printed.
pub(crate) fn number(printed: &str) -> Result<f64> {
    printed.trim().parse().with_context(|| format!("read `{}` as a number", printed.trim()))
}
