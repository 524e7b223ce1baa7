//! The cluster as a whole: up, down, and getting at it from a test.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::certificates::Authority;
use crate::go_tools::GoTools;
use crate::kubernetes::{Setup, addons, admin_kubeconfig, control_plane, node};
use crate::netns::Namespace;
use crate::process::{self, Process};
use crate::progress::Progress;
use crate::prometheus::Prometheus;
use crate::rabbitmq::Rabbit;
use crate::redis::Redis;
use crate::state::{self, State};
use crate::{cgroups, debian, images, paths, wrappers};

/// The cluster of this checkout, with the servers beside it.
#[derive(Clone, Debug)]
pub struct Cluster {
    namespace: Namespace,
    /// The message broker.
    pub rabbitmq: Rabbit,
    /// The result store.
    pub redis: Redis,
    /// The monitoring.
    pub prometheus: Prometheus,
}

impl Cluster {
    fn of_this_checkout() -> Self {
        let namespace = Namespace::of_this_checkout();
        Self {
            rabbitmq: Rabbit::new(namespace.clone()),
            redis: Redis::new(namespace.clone()),
            prometheus: Prometheus::new(namespace.clone()),
            namespace,
        }
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
        debian::ensure(progress).await?;
        let tools = {
            let _lock = state::lock("tools")?;
            GoTools::ensure(progress).await?
        };
        let tars = images::of_the_cluster(&tools)?;

        let _lock = state::lock("cluster")?;
        let cluster = Self::of_this_checkout();
        if cluster.is_up()? {
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
        Self::of_this_checkout().clear(progress).await
    }

    /// The running cluster, for a test or a tool. Moves the calling thread into the cluster's network (and so
    /// everything that a `#[tokio::test]` on it connects to).
    ///
    /// # Errors
    /// If no cluster is up.
    pub fn attach() -> Result<Self> {
        let cluster = Self::of_this_checkout();
        if !cluster.is_up()? {
            bail!("no cluster is up: run `cargo cluster up`, or the tests by `cargo e2e`");
        }
        cluster.namespace.enter()?;
        Ok(cluster)
    }

    /// The cluster as it is, without moving into its network.
    ///
    /// # Errors
    /// If no cluster is up.
    pub fn find() -> Result<Self> {
        let cluster = Self::of_this_checkout();
        if !cluster.is_up()? {
            bail!("no cluster is up: run `cargo cluster up`");
        }
        Ok(cluster)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        admin_kubeconfig()
    }

    /// Its network.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// A client with all rights. The calling thread must be in the cluster's network, see [`attach`](Self::attach).
    ///
    /// # Errors
    /// If the kubeconfig can't be read.
    pub async fn client(&self) -> Result<kube::Client> {
        client(Some(admin_kubeconfig())).await
    }

    /// What programs that use the cluster want to know, as the environment variables of the tests.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("KUBECONFIG", admin_kubeconfig().display().to_string()),
            ("AMQP_URL", self.rabbitmq.amqp_url()),
            ("MANAGEMENT_URL", self.rabbitmq.management_url()),
            ("REDIS_URL", self.redis.url()),
            ("PROMETHEUS_URL", self.prometheus.url()),
        ]
    }

    /// Loads images, so that pods can use them.
    ///
    /// # Errors
    /// If a tar isn't one of an image.
    pub async fn load(&self, tars: &[PathBuf]) -> Result<()> {
        images::import(&node::containerd_socket(), tars).await
    }

    fn is_up(&self) -> Result<bool> {
        let state = State::load()?;
        Ok(self.namespace.exists() && state.is_some_and(|state| state.complete && state.dead().is_empty()))
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
            self.rabbitmq.launch()?;
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
        self.namespace.run(|| async move { work(client(Some(admin_kubeconfig())).await?).await }).await
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
            let removed = if folder.is_dir() { std::fs::remove_dir_all(&folder) } else { std::fs::remove_file(&folder) };
            removed.with_context(|| format!("remove {}", folder.display()))?;
        }
        step.done(format!("{killed} processes stopped; logs stay in {}", paths::logs().display()));
        Ok(())
    }
}

/// A client for a cluster: that of `kubeconfig`, or else that of the variable `KUBECONFIG`.
///
/// # Errors
/// If there is no usable kubeconfig.
pub async fn client(kubeconfig: Option<PathBuf>) -> Result<kube::Client> {
    // An error means that one is installed already.
    drop(rustls::crypto::ring::default_provider().install_default());
    let kubeconfig = match kubeconfig {
        Some(file) => Kubeconfig::read_from(&file).with_context(|| format!("read {}", file.display()))?,
        None => Kubeconfig::read().context("read the kubeconfig that KUBECONFIG names")?,
    };
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(kube::Client::try_from(config)?)
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
        text.push_str(&format!("\n{name} died; the end of its log:\n{}", paths::tail(&process::log_file(name), 15)));
    }
    text
}

/// What runs.
#[derive(Clone, Debug)]
pub struct Status {
    /// Whether the cluster can be used.
    pub is_up: bool,
    /// Its programs: name, number of the process, whether it runs.
    pub programs: Vec<(String, i32, bool)>,
}

impl Status {
    /// Looks at the processes.
    ///
    /// # Errors
    /// If what was written down about them can't be read.
    pub fn observe() -> Result<Self> {
        let state = State::load()?.unwrap_or_default();
        let program = |(name, process): (String, Process)| (name, process.pid, process.is_alive());
        Ok(Self {
            is_up: Cluster::of_this_checkout().is_up()?,
            programs: state.processes.into_iter().map(program).collect(),
        })
    }
}
