//! Real Celery as the producer, and as another process that reads the results.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::cluster::Cluster;
use e2e::{command, paths};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::process::Command;

/// What the producer says at its end.
#[derive(Deserialize)]
pub(crate) struct Published {
    /// Tasks that the broker confirmed.
    pub(crate) published: u32,
    /// The same for each queue.
    pub(crate) queues: BTreeMap<String, u32>,
    /// Unix time just before the first was published.
    pub(crate) first: f64,
    /// Unix time just after the last was confirmed.
    pub(crate) last: f64,
}

/// What the reader of the results says at its end.
#[derive(Deserialize)]
pub(crate) struct Fetched {
    pub(crate) correct: u32,
    pub(crate) wrong: u32,
    pub(crate) missing: u32,
}

/// The two Celery programs, and the file of ids that goes from one to the other.
pub(crate) struct Load {
    python: PathBuf,
    environment: [(&'static str, String); 2],
    ids: PathBuf,
    pub(crate) tasks: u32,
    pub(crate) threads: u32,
}

impl Load {
    pub(crate) fn new(cluster: &Cluster, python: PathBuf, tasks: u32, threads: u32) -> Result<Self> {
        let folder = paths::target().join("demo");
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self {
            python,
            environment: [("BROKER_URL", cluster.rabbitmq.amqp_url()), ("RESULT_URL", cluster.redis.url())],
            ids: folder.join("ids.jsonl"),
            tasks,
            threads,
        })
    }

    /// Posts the tasks and keeps their ids.
    pub(crate) async fn publish(&self, within: Duration) -> Result<Published> {
        let mut program = self.program("produce.py");
        program.args([self.tasks.to_string(), self.threads.to_string()]).arg(&self.ids);
        last_line(&mut program, within).await.context("the Celery producer")
    }

    /// Reads every result by its id, in a process of its own. Wrong and missing ones are counted, not an error.
    pub(crate) async fn fetch(&self, within: Duration) -> Result<Fetched> {
        let mut program = self.program("fetch.py");
        program.arg(&self.ids);
        last_line(&mut program, within).await.context("the reader of the results")
    }

    fn program(&self, script: &str) -> Command {
        let mut program = Command::new(&self.python);
        program.arg(paths::repository().join("e2e/demo").join(script)).envs(self.environment.clone());
        program
    }
}

async fn last_line<T: DeserializeOwned>(program: &mut Command, within: Duration) -> Result<T> {
    let printed = command::output(program, within).await?;
    let line = printed.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("read its last line: {line:?}"))
}
