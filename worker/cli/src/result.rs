//! `result`.

use crate::args::{Common, seconds};
use crate::failure::Failure;
use crate::output;
use crate::wait::{bar, wait};
use celery_client::{CanvasResult, Celery, ResultError, State, TaskMeta};
use celery_protocol::{date, json};
use clap::Args;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};
use std::time::Duration;

/// Show, or wait for, what came of tasks.
#[derive(Debug, Args)]
#[command(after_help = "\
One id: the value that the task returned. Several: a table. With -o json: all that is stored.
A group's id, as `soloist group` prints it, stands for its tasks.")]
pub(crate) struct ResultArgs {
    /// Ids of tasks, or of one group.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,

    /// Wait until they have ended.
    #[arg(short, long)]
    wait: bool,

    /// Seconds to wait at most.
    #[arg(short, long, value_name = "SECONDS", default_value = "60", value_parser = seconds, requires = "wait")]
    timeout: Duration,

    /// Print the traceback of a failure too.
    #[arg(long)]
    traceback: bool,

    /// Delete what is stored, after it was shown.
    #[arg(long)]
    forget: bool,

    #[command(flatten)]
    common: Common,
}

impl ResultArgs {
    pub(crate) async fn run(mut self) -> Result<(), Failure> {
        match self.common.addresses.results()? {
            None => return Err(ResultError::NoResultStore.into()),
            Some(store) if store.to_string() == "rpc://" => {
                return Err(Failure::usage("results over RPC go to the process that made the call, and to no other")
                    .hint("`soloist call --wait` waits for its own; or use --results redis://HOST (SOLOIST_RESULTS)"));
            }
            Some(_) => {}
        }
        let celery = self.common.connect(self.common.builder()?).await?;
        let shown = self.show(&celery).await;
        if self.forget && shown.is_ok() {
            for id in &self.ids {
                celery.result(id).forget().await?;
            }
        }
        celery.close().await;
        shown
    }

    async fn show(&mut self, celery: &Celery) -> Result<(), Failure> {
        if let [id] = self.ids.as_slice()
            && celery.result(id).meta().await?.is_none()
            && let Some(group) = celery.saved_group(id).await?
        {
            let group = CanvasResult::Group(group);
            self.ids = group.tasks().iter().map(|task| task.id().to_owned()).collect();
            if self.wait {
                let value = wait(&group, self.timeout).await?;
                if !self.common.is_json() {
                    return output::line(&value.to_string());
                }
            }
        } else if self.wait {
            self.wait_for_all(celery).await?;
        }
        let metas = celery.results(&self.ids).await?;
        match (self.ids.as_slice(), metas.as_slice()) {
            ([id], [meta]) => self.show_one(id, meta.as_ref())?,
            (ids, metas) => self.show_all(ids, metas)?,
        }
        self.verdict(&metas)
    }

    async fn wait_for_all(&self, celery: &Celery) -> Result<(), Failure> {
        let tasks: Vec<_> = self.ids.iter().map(|id| celery.result(id)).collect();
        let bar = bar(tasks.len(), "tasks");
        let mut ending: FuturesUnordered<_> = tasks.iter().map(|task| task.wait(self.timeout)).collect();
        while let Some(ended) = ending.next().await {
            ended?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn show_one(&self, id: &str, meta: Option<&TaskMeta>) -> Result<(), Failure> {
        if self.common.is_json() {
            return output::json(&as_json(id, meta));
        }
        if let Some(traceback) = meta.and_then(|meta| meta.traceback.as_ref()).filter(|_| self.traceback) {
            eprintln!("{}", traceback.trim_end());
        }
        match meta {
            Some(meta) if meta.status == State::Success => output::line(&value_of(meta)),
            _ => Ok(()),
        }
    }

    fn show_all(&self, ids: &[String], metas: &[Option<TaskMeta>]) -> Result<(), Failure> {
        if self.common.is_json() {
            let all: Vec<_> = ids.iter().zip(metas).map(|(id, meta)| as_json(id, meta.as_ref())).collect();
            return output::json(&all);
        }
        let rows = ids.iter().zip(metas).map(|(id, meta)| {
            let Some(meta) = meta else { return [id.clone(), "PENDING".into(), "".into(), "".into()] };
            let done = meta.date_done.map(date::format).unwrap_or_default();
            [id.clone(), meta.status.as_str().to_owned(), done, value_of(meta)]
        });
        output::table(&["ID", "STATE", "DONE", "RESULT"], rows)
    }

    /// The exit code: a failure counts for more than a task that hasn't ended.
    fn verdict(&self, metas: &[Option<TaskMeta>]) -> Result<(), Failure> {
        let known = || self.ids.iter().zip(metas);
        let failed = known().find_map(|(id, meta)| {
            let meta = meta.as_ref().filter(|meta| matches!(meta.status, State::Failure | State::Revoked))?;
            Some(format!("task `{id}` ended as {}: {}", meta.status, value_of(meta)))
        });
        if let Some(failed) = failed {
            return Err(Failure::task(failed));
        }
        let is_open = |meta: &&Option<TaskMeta>| !meta.as_ref().is_some_and(|meta| meta.status.is_final());
        let open = metas.iter().filter(is_open).count();
        match (self.ids.as_slice(), open) {
            (_, 0) => Ok(()),
            ([id], _) => {
                let state = metas[0].as_ref().map_or(&State::Pending, |meta| &meta.status);
                let failure = Failure::no_answer(format!("task `{id}` has not ended: {state}"));
                Err(match metas[0] {
                    None => failure
                        .hint("pending is also what is not known: a wrong id, or results that are elsewhere"),
                    Some(_) => failure.hint("--wait waits for it"),
                })
            }
            (ids, open) => Err(Failure::no_answer(format!("{open} of {} tasks have not ended", ids.len()))),
        }
    }
}

/// The value, or the exception as Python writes it.
fn value_of(meta: &TaskMeta) -> String {
    match meta.exception() {
        Some(exception) => exception.repr(),
        // What can't be read without losing digits is shown as it is stored.
        None => json::parse(meta.result.get().as_bytes())
            .map_or_else(|_| meta.result.get().to_owned(), |value| output::cell(&value)),
    }
}

fn as_json(id: &str, meta: Option<&TaskMeta>) -> Value {
    meta.and_then(|meta| serde_json::to_value(meta).ok())
        .unwrap_or_else(|| json!({"task_id": id, "status": "PENDING", "result": null}))
}
