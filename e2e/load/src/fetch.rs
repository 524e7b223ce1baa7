//! How fast results can be read.

use std::{path::PathBuf, time::Instant};

use celery_client::{BrokerAddress, Celery, ResultStoreAddress};
use celery_protocol::{State, TaskMeta};
use clap::Args;

use crate::{Outcome, on_this_thread};

/// Reads the results of the ids in a file.
#[derive(Args)]
pub(crate) struct Fetch {
    #[arg(long)]
    broker: BrokerAddress,
    #[arg(long)]
    results: ResultStoreAddress,
    /// Ids, one a line
    #[arg(long)]
    ids: PathBuf,
    /// What each result has to be, as JSON
    #[arg(long)]
    value: String,
}

impl Fetch {
    pub(crate) fn run(self) -> Outcome<f64> {
        let text = std::fs::read_to_string(&self.ids)?;
        let ids: Vec<&str> = text.lines().collect();
        on_this_thread(async {
            let celery = Celery::builder(self.broker).results(self.results).connect().await?;
            let begun = Instant::now();
            let metas = celery.results(&ids).await?;
            let seconds = begun.elapsed().as_secs_f64();
            let expected = &self.value;
            let is_right = |meta: &&Option<TaskMeta>| {
                meta.as_ref()
                    .is_some_and(|meta| meta.status == State::Success && meta.result.get() == *expected)
            };
            match metas.iter().filter(is_right).count() {
                right if right == ids.len() => Ok(ids.len() as f64 / seconds),
                right => Err(format!("of {} results only {right} are {expected}", ids.len()).into()),
            }
        })
    }
}
