//! Redis beside the cluster: where results go.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::process::Signal;

use crate::netns::{NODE_ADDRESS, Namespace};
use crate::process::{Launch, Process};
use crate::state::State;
use crate::{paths, wait};

const NAME: &str = "redis";

/// The Redis server of a cluster.
#[derive(Clone, Debug)]
pub struct Redis {
    /// Where it runs, if it is ours.
    namespace: Option<Namespace>,
    url: String,
}

impl Redis {
    pub(crate) fn own(namespace: Namespace) -> Self {
        Self { namespace: Some(namespace), url: format!("redis://{NODE_ADDRESS}:6379/0") }
    }

    pub(crate) fn given(url: String) -> Self {
        Self { namespace: None, url }
    }

    /// Its database 0, as seen from the cluster's network.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Starts it, if it isn't running, and waits until it answers. It has what it had when it was stopped.
    ///
    /// # Errors
    /// If it doesn't answer within 30 seconds.
    pub async fn start(&self) -> Result<()> {
        if self.process()?.is_none() {
            self.launch()?;
        }
        self.ready().await
    }

    /// Stops it; it writes its data down first.
    ///
    /// # Errors
    /// If it is still there after 30 seconds.
    pub async fn stop(&self) -> Result<()> {
        let Some(process) = self.process()? else { return Ok(()) };
        process.signal(Signal::TERM)?;
        process.gone("Redis", Duration::from_secs(30)).await
    }

    fn namespace(&self) -> Result<&Namespace> {
        self.namespace.as_ref().ok_or_else(|| anyhow!("this Redis isn't ours to start or stop"))
    }

    fn process(&self) -> Result<Option<Process>> {
        self.namespace()?;
        State::running(NAME)
    }

    pub(crate) fn launch(&self) -> Result<()> {
        let folder = paths::cluster().join(NAME);
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let process = Launch::new(NAME, "redis-server")
            .args(["--bind", "0.0.0.0", "--port", "6379", "--protected-mode", "no", "--dir"])
            .args([&folder])
            // The title overwrites the environment, which a process of ours is known by.
            .args(["--set-proc-title", "no", "--daemonize", "no"])
            // Written down only when it is stopped.
            .args(["--appendonly", "no", "--save", "3600 1"])
            .start(self.namespace()?)?;
        State::record(NAME, &process)
    }

    pub(crate) async fn ready(&self) -> Result<()> {
        let url = self.url();
        self.namespace()?
            .run(move || async move {
                wait::until("Redis to answer", Duration::from_secs(30), || async {
                    let client = redis::Client::open(url.as_str())?;
                    let mut connection = client.get_multiplexed_async_connection().await?;
                    redis::cmd("PING").query_async::<()>(&mut connection).await?;
                    Ok(Some(()))
                })
                .await
            })
            .await
    }
}
