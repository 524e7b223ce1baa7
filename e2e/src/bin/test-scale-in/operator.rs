//! The operator: installed, or as a process that can be killed at any moment.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::soloist::Test;
use e2e::{chart, http, images, paths, wait};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use tokio::process::{Child, Command};

const ADDRESS: &str = "127.0.0.1:18091";

/// What it counts tasks in that it failed to protect.
const INTERRUPTED: &str = "soloist_scale_in_interrupted_tasks_total";

/// An operator for one namespace, without a lease: another one may follow at once.
pub(crate) struct Operator(Child);

impl Operator {
    /// Starts it, and waits until it works.
    pub(crate) async fn start(test: &Test) -> Result<Self> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(paths::logs().join("test-scale-in-operator.log"))
            .context("open the operator's log")?;
        let operator = Command::new(images::program("soloist-operator"))
            .args([
                "--namespaces",
                &test.namespace.name,
                "--leader-election=false",
                "--http-address",
                ADDRESS,
            ])
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
        Ok(Self(operator))
    }

    /// Kills it as the kernel would. It must not have counted an interrupted task.
    pub(crate) async fn kill(mut self) -> Result<()> {
        let interrupted = read(&http::get(&format!("http://{ADDRESS}/metrics")).await?)?;
        self.0.kill().await?;
        ensure!(interrupted == 0.0, "the operator says that {interrupted} tasks were interrupted");
        Ok(())
    }
}

/// Tasks that the installed operators say were interrupted.
pub(crate) async fn interrupted_tasks(test: &Test) -> Result<f64> {
    let pods: Api<Pod> = Api::namespaced(test.client.clone(), chart::NAMESPACE);
    let operators = pods.list(&ListParams::default().labels("app.kubernetes.io/name=soloist")).await?;
    let mut sum = 0.0;
    for pod in operators {
        let Some(address) = pod.status.and_then(|status| status.pod_ip) else { continue };
        sum += read(&http::get(&format!("http://{address}:8080/metrics")).await?)?;
    }
    Ok(sum)
}

fn read(metrics: &str) -> Result<f64> {
    let value = metrics.lines().find_map(|line| line.strip_prefix(INTERRUPTED)?.trim().parse().ok());
    value.with_context(|| format!("no metric {INTERRUPTED}"))
}
