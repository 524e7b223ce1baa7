//! Installing Soloist on the cluster, as a user would.

use std::time::Duration;

use anyhow::Result;
use tokio::process::Command;

use crate::cluster::Cluster;
use crate::go_tools::GoTools;
use crate::{command, paths};

/// The release, and the operator's namespace.
const RELEASE: &str = "soloist";
/// Where the operator is installed.
pub const NAMESPACE: &str = "soloist-system";
/// The operator's Deployment.
pub const DEPLOYMENT: &str = "soloist";
/// The operator's service account.
pub const SERVICE_ACCOUNT: &str = "soloist";

/// Installs the chart anew and waits until the operator is ready. A release that is there is removed first: its pods
/// would go on with the image of the same name that was loaded before.
///
/// # Errors
/// If helm fails, or the operator isn't ready within 2 minutes.
pub async fn install(cluster: &Cluster) -> Result<()> {
    uninstall(cluster).await?;
    let mut helm = helm(cluster)?;
    helm.args(["install", RELEASE]).arg(paths::repository().join("charts/soloist"));
    helm.args(["--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", "2m"]);
    command::output(&mut helm, Duration::from_secs(150)).await.map(drop)
}

/// Removes the release, if there is one.
///
/// # Errors
/// If helm fails, or something is left after 2 minutes.
pub async fn uninstall(cluster: &Cluster) -> Result<()> {
    let mut helm = helm(cluster)?;
    helm.args([
        "uninstall",
        RELEASE,
        "--namespace",
        NAMESPACE,
        "--ignore-not-found",
        "--wait",
        "--timeout",
        "2m",
    ]);
    command::output(&mut helm, Duration::from_secs(150)).await.map(drop)
}

/// `helm`, in the cluster's network.
fn helm(cluster: &Cluster) -> Result<Command> {
    let program = GoTools::built()?.program("helm");
    let mut helm = Command::from(cluster.namespace().command(&program.to_string_lossy()));
    helm.env("KUBECONFIG", cluster.kubeconfig());
    Ok(helm)
}
