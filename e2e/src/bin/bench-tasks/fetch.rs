//! How fast results are read by their ids.

use std::{path::Path, time::Duration};

use anyhow::Result;
use e2e::{command, paths};
use tokio::process::Command;

use crate::Stand;
use crate::contender::celery;
use crate::enqueue::number;
use crate::line::Subject;

const PATIENCE: Duration = Duration::from_secs(300);

/// Results that our client reads, and Celery's.
const RESULTS: [(&str, usize); 2] = [("soloist", 100_000), ("celery-solo", 20_000)];

/// Stores results as workers do, and reads them.
pub(crate) async fn all(stand: &Stand) -> Result<()> {
    for (worker, count) in RESULTS {
        let step = stand.progress.step(format!("fetch {worker}"));
        let ids: Vec<String> = (0..count).map(|_| uuid::Uuid::new_v4().to_string()).collect();
        store(stand, &ids).await?;
        let file = paths::cache().join("bench-tasks.ids");
        std::fs::write(&file, ids.join("\n"))?;
        let mut figures = Vec::new();
        for _ in 0..stand.runs {
            let mut command = if worker == "soloist" {
                stand.load_fetch(&file, "3")
            } else {
                let mut command = celery(stand, "celery", "classic", Some(&stand.redis_url));
                command.args(["celery_app.py", "fetch"]).arg(&file);
                command
            };
            figures.push(number(&command::output(&mut command, PATIENCE).await?)?);
        }
        std::fs::remove_file(&file)?;
        let subject = Subject { bench: "fetch", worker, queue: "classic", results: "redis", in_hand: 1 };
        let median = subject.print(format!("results/s, {count} results"), &figures)?;
        step.done(format!("{median} results/s"));
    }
    Ok(())
}

impl Stand {
    /// Our client, reading the results of the ids in a file, each of which is to be `value`.
    pub(crate) fn load_fetch(&self, ids: &Path, value: &str) -> Command {
        let mut command = Command::new(&self.programs.load);
        command.args(["fetch", "--broker", &self.amqp_url, "--results", &self.redis_url]);
        command.args(["--value", value, "--ids"]).arg(ids);
        command
    }
}

async fn store(stand: &Stand, ids: &[String]) -> Result<()> {
    let client = redis::Client::open(stand.redis_url.as_str())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    for some in ids.chunks(1000) {
        let mut pipeline = redis::pipe();
        for id in some {
            let meta = format!(
                "{{\"status\": \"SUCCESS\", \"result\": 3, \"traceback\": null, \"children\": [], \"date_done\": \
                 \"2026-11-21T02:57:45.037066+00:00\", \"task_id\": \"{id}\"}}"
            );
            pipeline.cmd("SETEX").arg(format!("celery-task-meta-{id}")).arg(3600).arg(meta).ignore();
        }
        pipeline.query_async::<()>(&mut connection).await?;
    }
    Ok(())
}
