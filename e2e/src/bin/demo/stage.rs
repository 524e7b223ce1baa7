//! What the demo puts on the stage: three TaskQueues in a namespace of their own.

use std::time::Duration;

use anyhow::{Context, Result};
use e2e::cluster::Cluster;
use e2e::{manifest, paths, progress::Progress, wait};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{DeleteParams, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind, ObjectMeta};
use kube::{Api, Client};

use crate::QUEUES;

/// The namespace of the three TaskQueues.
pub(crate) const NAMESPACE: &str = "demo";

/// Applies the samples, with Secrets that name the cluster's servers, and waits until all three are Ready.
pub(crate) async fn apply(cluster: &Cluster, progress: &Progress) -> Result<()> {
    let step = progress.step("three TaskQueues");
    let client = cluster.client().await?;
    clear(&client).await?;
    let metadata = |name: &str| ObjectMeta { name: Some(name.to_owned()), ..Default::default() };
    let namespace = Namespace { metadata: metadata(NAMESPACE), ..Default::default() };
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.create(&PostParams::default(), &namespace).await.context("create the namespace")?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    for (name, uri) in [("rabbitmq", cluster.rabbitmq.amqp_url()), ("redis", cluster.redis.url())] {
        let string_data = Some([("uri".to_owned(), uri)].into());
        let secret = Secret { metadata: metadata(name), string_data, ..Default::default() };
        secrets
            .create(&PostParams::default(), &secret)
            .await
            .with_context(|| format!("create secret {name}"))?;
    }
    for file in ["secret-reader.yaml", "demo/taskqueues.yaml"] {
        let path = paths::repository().join("manifests/samples").join(file);
        let yaml = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        manifest::apply_in(&client, NAMESPACE, &yaml).await?;
    }
    wait_until_ready(&client).await?;
    step.done(QUEUES.join(", "));
    Ok(())
}

async fn wait_until_ready(client: &Client) -> Result<()> {
    let kind = GroupVersionKind::gvk("soloist.dev", "v1alpha1", "TaskQueue");
    let task_queues: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), NAMESPACE, &ApiResource::from_gvk(&kind));
    for queue in QUEUES {
        wait::until(&format!("TaskQueue {queue} to be Ready"), Duration::from_secs(60), || async {
            let task_queue = task_queues.get(queue).await?;
            let conditions = task_queue.data["status"]["conditions"].as_array();
            let is_ready = |c: &serde_json::Value| c["type"] == "Ready" && c["status"] == "True";
            Ok(conditions.into_iter().flatten().any(is_ready).then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// Deletes the demo's namespace and waits until it is gone.
pub(crate) async fn clear(client: &Client) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    if namespaces.get_opt(NAMESPACE).await?.is_none() {
        return Ok(());
    }
    namespaces.delete(NAMESPACE, &DeleteParams::default()).await.context("delete the namespace")?;
    wait::until("the namespace to be gone", Duration::from_secs(120), || async {
        Ok(namespaces.get_opt(NAMESPACE).await?.is_none().then_some(()))
    })
    .await
}
