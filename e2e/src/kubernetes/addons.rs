//! What runs on the cluster from the start: its DNS, and names for the brokers beside it.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;

use crate::{manifest, paths, wait};

/// Applies the manifests of `e2e/cluster/manifests`.
pub(crate) async fn apply(client: &kube::Client) -> Result<()> {
    for name in ["coredns.yaml", "brokers.yaml"] {
        let file = paths::cluster_sources().join("manifests").join(name);
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        manifest::apply(client, &text).await.with_context(|| format!("apply {name}"))?;
    }
    Ok(())
}

/// Waits until names resolve, and until pods may be made in `default` (each needs the namespace's service account).
pub(crate) async fn ready(client: &kube::Client) -> Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    wait::until("the default service account", Duration::from_secs(30), || async {
        Ok(accounts.get_opt("default").await?.map(drop))
    })
    .await?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "kube-system");
    wait::until("CoreDNS to be ready", Duration::from_secs(60), || async {
        let status = deployments.get("coredns").await?.status.unwrap_or_default();
        Ok((status.ready_replicas.unwrap_or_default() > 0).then_some(()))
    })
    .await
}
