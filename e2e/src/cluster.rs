//! The cluster as a whole: up, down, and getting at it from a test.

mod lifecycle;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::images;
use crate::kubernetes::{admin_kubeconfig, node};
use crate::netns::Namespace;
use crate::process::Process;
use crate::prometheus::Prometheus;
use crate::rabbitmq::Rabbit;
use crate::redis::Redis;
use crate::state::State;

/// A cluster with the servers beside it: that of this checkout, or one that was given.
#[derive(Clone, Debug)]
pub struct Cluster {
    namespace: Namespace,
    kubeconfig: PathBuf,
    /// The message broker.
    pub rabbitmq: Rabbit,
    /// The result store.
    pub redis: Redis,
    /// The monitoring.
    pub prometheus: Prometheus,
}

impl Cluster {
    fn own() -> Self {
        let namespace = Namespace::of_this_checkout();
        Self {
            kubeconfig: admin_kubeconfig(),
            rabbitmq: Rabbit::own(namespace.clone()),
            redis: Redis::own(namespace.clone()),
            prometheus: Prometheus::own(namespace.clone()),
            namespace,
        }
    }

    /// The cluster that a test is to use, or a tool. If `KUBECONFIG` names another one than this checkout's, that one,
    /// with the servers that `AMQP_URL`, `MANAGEMENT_URL`, `REDIS_URL` and `PROMETHEUS_URL` name. Else the running
    /// cluster of this checkout: then the calling thread is moved into its network, and so is everything that a
    /// `#[tokio::test]` on it connects to.
    ///
    /// # Errors
    /// If no cluster is up, or one of those variables is missing.
    pub fn attach() -> Result<Self> {
        let cluster = match std::env::var_os("KUBECONFIG").map(PathBuf::from) {
            Some(kubeconfig) if kubeconfig != admin_kubeconfig() => Self::given(kubeconfig)?,
            _ => Self::find()?,
        };
        cluster.namespace.enter()?;
        Ok(cluster)
    }

    /// The running cluster of this checkout, without moving into its network.
    ///
    /// # Errors
    /// If it isn't up.
    pub fn find() -> Result<Self> {
        if !lifecycle::is_up()? {
            bail!("no cluster is up: run `cargo cluster up`, or the tests by `cargo e2e`");
        }
        Ok(Self::own())
    }

    /// The cluster of a kubeconfig, with the servers that `AMQP_URL`, `MANAGEMENT_URL`, `REDIS_URL` and
    /// `PROMETHEUS_URL` name.
    ///
    /// # Errors
    /// If one of those variables is missing.
    pub fn given(kubeconfig: PathBuf) -> Result<Self> {
        let url = |name: &str| {
            std::env::var(name)
                .with_context(|| format!("{name} must be set for a cluster that isn't this checkout's"))
        };
        Ok(Self {
            namespace: Namespace::of_the_machine(),
            kubeconfig,
            rabbitmq: Rabbit::given(url("AMQP_URL")?, url("MANAGEMENT_URL")?),
            redis: Redis::given(url("REDIS_URL")?),
            prometheus: Prometheus::given(url("PROMETHEUS_URL")?),
        })
    }

    /// Its network.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig.clone()
    }

    /// A client with all rights. The calling thread must be in the cluster's network, see [`attach`](Self::attach).
    ///
    /// # Errors
    /// If the kubeconfig can't be read.
    pub async fn client(&self) -> Result<kube::Client> {
        client(Some(self.kubeconfig())).await
    }

    /// What programs that use the cluster want to know, as the environment variables of the tests.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let tls = self.rabbitmq.tls_secret();
        let mut environment = vec![
            ("KUBECONFIG", self.kubeconfig.display().to_string()),
            ("AMQP_URL", self.rabbitmq.amqp_url()),
            ("MANAGEMENT_URL", self.rabbitmq.management_url()),
            ("REDIS_URL", self.redis.url()),
            ("PROMETHEUS_URL", self.prometheus.url()),
        ];
        environment.extend(tls.map(|folder| ("AMQPS_DIRECTORY", folder.display().to_string())));
        environment
    }

    /// Loads images into the cluster of this checkout, so that pods can use them.
    ///
    /// # Errors
    /// If a tar isn't one of an image.
    pub async fn load(&self, tars: &[PathBuf]) -> Result<()> {
        images::import(&node::containerd_socket(), tars).await
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
        Ok(Self { is_up: lifecycle::is_up()?, programs: state.processes.into_iter().map(program).collect() })
    }
}
