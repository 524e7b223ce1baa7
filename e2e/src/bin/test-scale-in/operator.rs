//! The operator, as a process that can be killed at any moment.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::scale_in::{INTERRUPTED, installed};
use e2e::soloist::{self, START, Test};
use e2e::{chart, http, images, paths, wait};
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::process::{Child, Command};

const ADDRESS: &str = "127.0.0.1:18091";

/// An operator for one namespace, without a lease: another one may follow at once.
pub(crate) struct Operator {
    process: Child,
    interrupted: f64,
}

async fn launch(test: &Test) -> Result<Child> {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(paths::logs().join("test-scale-in-operator.log"))
        .context("open the operator's log")?;
    let operator = Command::new(images::program("soloist-operator"))
        .args(["--namespaces", &test.namespace.name, "--leader-election=false", "--http-address", ADDRESS])
        .env("KUBECONFIG", test.cluster.kubeconfig())
        .stdout(log.try_clone()?)
        .stderr(log)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("start the operator")?;
    wait::until("the operator to be ready", Duration::from_secs(30), || async {
        http::get(&format!("http://{ADDRESS}/readyz")).await.map(Some)
    })
    .await?;
    Ok(operator)
}

impl Operator {
    /// Starts it, and waits until it works.
    pub(crate) async fn start(test: &Test) -> Result<Self> {
        Ok(Self { process: launch(test).await?, interrupted: 0.0 })
    }

    /// Kills it as the kernel would, and starts another one.
    pub(crate) async fn restart(&mut self, test: &Test) -> Result<()> {
        self.interrupted += interrupted().await?;
        self.process.kill().await?;
        self.process = launch(test).await?;
        Ok(())
    }

    /// Tasks that it and those before it say were interrupted.
    pub(crate) async fn interrupted_tasks(&self) -> Result<f64> {
        Ok(self.interrupted + interrupted().await?)
    }
}

async fn interrupted() -> Result<f64> {
    read(&http::get(&format!("http://{ADDRESS}/metrics")).await?)
}

/// Takes the installed operator away, which can't be killed as often: Kubernetes waits ever longer before it starts it again.
pub(crate) async fn send_installed_away(test: &Test) -> Result<()> {
    scale_installed(test, 0).await
}

/// Undoes [`send_installed_away`].
pub(crate) async fn bring_installed_back(test: &Test) -> Result<()> {
    scale_installed(test, 2).await
}

async fn scale_installed(test: &Test, replicas: usize) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(test.client.clone(), chart::NAMESPACE);
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    deployments.patch_scale(chart::DEPLOYMENT, &PatchParams::default(), &patch).await?;
    wait::until(&format!("{replicas} operators"), START, || async {
        let pods = installed(test).await?;
        let ready = pods.iter().filter(|pod| soloist::is_ready(pod)).count();
        ensure!(pods.len() == replicas && ready == replicas, "there are {}, {ready} ready", pods.len());
        Ok(Some(()))
    })
    .await
}

fn read(metrics: &str) -> Result<f64> {
    let value = metrics.lines().find_map(|line| line.strip_prefix(INTERRUPTED)?.trim().parse().ok());
    value.with_context(|| format!("no metric {INTERRUPTED}"))
}
