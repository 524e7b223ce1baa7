//! Bringing the cluster up, and taking it down without a trace.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Cluster;
use crate::certificates::Authority;
use crate::go_tools::GoTools;
use crate::kubernetes::{Setup, addons, admin_kubeconfig, control_plane, node};
use crate::netns::Namespace;
use crate::process::{self, Process};
use crate::progress::Progress;
use crate::prometheus::Prometheus;
use crate::state::{self, State};
use crate::{cgroups, debian, images, paths, wrappers};

impl Cluster {
    /// Installs and builds what a cluster is made of, so that [`up`](Self::up) has only to start it.
    ///
    /// # Errors
    /// If something is missing and can't be had, or without root's rights.
    pub async fn prepare(progress: &Progress) -> Result<GoTools> {
        debian::ensure(progress).await?;
        GoTools::ensure(progress).await
    }

    /// Starts everything, unless it runs already; builds and installs what that takes. What is left of a cluster that
    /// crashed is cleared away first.
    ///
    /// May be called from any thread and runtime: it doesn't move the caller into the cluster's network, see
    /// [`Namespace::enter`] for that.
    ///
    /// # Errors
    /// If something is missing or doesn't come up; nothing is left running then.
    pub async fn up(progress: &Progress) -> Result<Self> {
        let tools = Self::prepare(progress).await?;
        let tars = images::of_the_cluster(&tools)?;

        let _lock = state::lock("cluster")?;
        let cluster = Self::own();
        if is_up()? {
            // The tools may be newer than the cluster.
            wrappers::write(&cluster.namespace, &tools)?;
            progress.say("the cluster is up already");
            return Ok(cluster);
        }
        cluster.clear(progress).await?;
        if let Err(error) = cluster.start(progress, tools, tars).await {
            let error = error.context(dead_programs());
            if let Err(clearing) = cluster.clear(progress).await {
                return Err(error.context(format!("then clearing away failed: {clearing:#}")));
            }
            return Err(error);
        }
        Ok(cluster)
    }

    /// Stops everything and waits until each process is gone; only the logs stay. Does nothing if nothing is there.
    ///
    /// # Errors
    /// If something can't be stopped or removed.
    pub async fn down(progress: &Progress) -> Result<()> {
        let _lock = state::lock("cluster")?;
        Self::own().clear(progress).await
    }

    async fn start(&self, progress: &Progress, tools: GoTools, tars: Vec<PathBuf>) -> Result<()> {
        let logs = paths::logs();
        if logs.exists() {
            std::fs::remove_dir_all(&logs).with_context(|| format!("remove {}", logs.display()))?;
        }
        std::fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;

        let step = progress.step("network");
        self.namespace.create().await?;
        cgroups::create(self.namespace.name())?;
        step.done("");
        wrappers::write(&self.namespace, &tools)?;

        let authority = Authority::create(&paths::cluster().join("certificates"))?;
        let setup = Setup { namespace: self.namespace.clone(), tools, authority };
        let servers = async {
            let step = progress.step("rabbitmq");
            self.rabbitmq.launch_epmd()?;
            self.rabbitmq.launch(&[])?;
            self.rabbitmq.ready().await?;
            step.done(self.rabbitmq.amqp_url());
            anyhow::Ok(())
        };
        let results = async {
            let step = progress.step("redis");
            self.redis.launch()?;
            self.redis.ready().await?;
            step.done(self.redis.url());
            anyhow::Ok(())
        };
        tokio::try_join!(servers, results, self.start_kubernetes(progress, &setup, &tars))?;
        State::update(|state| state.complete = true)
    }

    async fn start_kubernetes(&self, progress: &Progress, setup: &Setup, tars: &[PathBuf]) -> Result<()> {
        let api_server = async {
            let step = progress.step("etcd and API server");
            control_plane::start_api_server(setup)?;
            self.with_client(|client| async move { control_plane::ready(&client).await }).await?;
            control_plane::start_controllers(setup)?;
            self.with_client(|client| async move { addons::apply(&client).await }).await?;
            step.done("");
            let step = progress.step("prometheus");
            Prometheus::launch(setup)?;
            self.prometheus.ready().await?;
            step.done(self.prometheus.url());
            anyhow::Ok(())
        };
        let containerd = async {
            let step = progress.step("containerd and images");
            let containerd = node::start_containerd(setup, tars).await?;
            step.done("");
            anyhow::Ok(containerd)
        };
        let ((), containerd) = tokio::try_join!(api_server, containerd)?;
        let step = progress.step("node and cluster DNS");
        node::start_kubelet(setup, &containerd)?;
        self.with_client(|client| async move {
            node::ready(&client).await?;
            addons::ready(&client).await
        })
        .await?;
        step.done("");
        Ok(())
    }

    async fn with_client<T, F, Running>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(kube::Client) -> Running + Send + 'static,
        Running: Future<Output = Result<T>>,
    {
        self.namespace.run(|| async move { work(super::client(Some(admin_kubeconfig())).await?).await }).await
    }

    /// Removes all traces of a cluster but its logs.
    async fn clear(&self, progress: &Progress) -> Result<()> {
        // A state that can't be read (a crash in the middle of writing it) names no process; each is found otherwise.
        let recorded: Vec<Process> =
            State::load().ok().flatten().unwrap_or_default().processes.into_values().collect();
        let data = data_folders()?;
        let name = self.namespace.name();
        if data.is_empty() && !self.namespace.exists() && !cgroups::exists(name) {
            return Ok(());
        }
        let step = progress.step("clear away the cluster");
        let killed = process::kill_all(&self.namespace, recorded, Duration::from_secs(30)).await?;
        self.namespace.delete().await?;
        cgroups::remove(name)?;
        for folder in data {
            let removed = if folder.is_dir() {
                std::fs::remove_dir_all(&folder)
            } else {
                std::fs::remove_file(&folder)
            };
            removed.with_context(|| format!("remove {}", folder.display()))?;
        }
        step.done(format!("{killed} processes stopped; logs stay in {}", paths::logs().display()));
        Ok(())
    }
}

/// Whether this checkout's cluster runs, all of it.
pub(crate) fn is_up() -> Result<bool> {
    let state = State::load()?;
    Ok(Namespace::of_this_checkout().exists()
        && state.is_some_and(|state| state.complete && state.dead().is_empty()))
}

/// Everything in the cluster's folder but the logs.
fn data_folders() -> Result<Vec<PathBuf>> {
    let folder = paths::cluster();
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path != paths::logs() {
            found.push(path);
        }
    }
    Ok(found)
}

/// The ends of the logs of those programs that died, to be told with the error.
fn dead_programs() -> String {
    let state = State::load().ok().flatten().unwrap_or_default();
    let mut text = format!("start the cluster (logs are in {})", paths::logs().display());
    for name in state.dead() {
        text.push_str(&format!(
            "\n{name} died; the end of its log:\n{}",
            paths::tail(&process::log_file(name), 15)
        ));
    }
    text
}
