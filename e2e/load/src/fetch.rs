//! How fast results can be read.

use std::{path::PathBuf, time::Instant};

use celery_client::{BrokerAddress, Celery, ResultStoreAddress};
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
            match metas.iter().filter(|meta| meta.is_none()).count() {
                0 => Ok(ids.len() as f64 / seconds),
                missing => Err(format!("{missing} of {} results are missing", ids.len()).into()),
            }
        })
    }
}
