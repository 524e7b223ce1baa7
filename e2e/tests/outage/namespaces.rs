//! A namespace that is deleted takes its TaskQueues with it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::operator;
use e2e::soloist::{self, START, Test};
use e2e::wait;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde_json::json;

use crate::{figures, own_operator, run, without_workers};

const GONE: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(200);

/// A TaskQueue whose queues go with it.
fn deleting(yaml: &str) -> String {
    yaml.replace("spec:\n", "spec:\n  deletionPolicy: Delete\n")
}

async fn delete_namespace(test: &Test) -> Result<Instant> {
    let namespaces: Api<Namespace> = Api::all(test.client.clone());
    namespaces.delete(&test.namespace.name, &DeleteParams::background()).await?;
    Ok(Instant::now())
}

async fn until_namespace_is_gone(test: &Test, since: Instant) -> Result<f64> {
    let namespaces: Api<Namespace> = Api::all(test.client.clone());
    wait::until("the namespace to be gone", GONE, || async {
        match namespaces.get_opt(&test.namespace.name).await? {
            None => Ok(Some(())),
            Some(left) => anyhow::bail!("{:?}", left.status),
        }
    })
    .await?;
    Ok(since.elapsed().as_secs_f64())
}

async fn has_queue(test: &Test, queue: &str) -> Result<bool> {
    let connection = Connection::connect(&test.broker_url, ConnectionProperties::default()).await?;
    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
    let channel = connection.create_channel().await?;
    Ok(channel.queue_declare(queue.into(), passive, FieldTable::default()).await.is_ok())
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_namespace_that_is_deleted_goes_with_workers_and_the_queues_that_are_to_go() -> Result<()> {
    let test = Test::beside_others("namespace-deleted").await?;
    run(&test, DEADLINE, async {
        test.task_queue("keeps", "{minReplicas: 1, maxReplicas: 1}").await?;
        test.namespace
            .apply(&deleting(&soloist::task_queue("goes", "{minReplicas: 1, maxReplicas: 1}")))
            .await?;
        for name in ["keeps", "goes"] {
            test.condition(name, "WorkersAvailable", "True", "WorkersReady").await?;
        }
        let celery = test.celery().await?;
        let results = [
            soloist::send(&celery, "keeps", "tasks.sleep", (4.0,)).await?,
            soloist::send(&celery, "goes", "tasks.sleep", (4.0,)).await?,
        ];
        wait::until("the tasks to run", START, || async {
            for name in ["keeps", "goes"] {
                let busy = soloist::Scrape::of(&test.pods(name).await?[0]).await?.sum("soloist_worker_busy");
                ensure!(busy == 1.0, "{name} is idle");
            }
            Ok(Some(()))
        })
        .await?;
        let deleted = delete_namespace(&test).await?;
        let seconds = until_namespace_is_gone(&test, deleted).await?;
        for result in &results {
            soloist::value(result, Duration::from_secs(1)).await.context("a task was cut off")?;
        }
        figures(&json!({"test": "namespace_deleted", "gone_after_seconds": seconds}))?;
        ensure!(has_queue(&test, "keeps").await?, "the queue that was to stay is gone");
        ensure!(
            !has_queue(&test, "goes").await? && !has_queue(&test, "goes.dead").await?,
            "the queue is still there"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_namespace_goes_without_the_operator_once_finalizers_are_taken_off() -> Result<()> {
    let test = Test::beside_others("operator-gone").await?;
    run(&test, DEADLINE, async {
        let url = format!("https://{}", operator::api_server(&test).await?);
        let mut instance = own_operator(&test, &url).await?;
        test.task_queue("keeps", "{minReplicas: 1, maxReplicas: 1}").await?;
        test.namespace.apply(&deleting(&without_workers("goes", "{maxReplicas: 1}"))).await?;
        test.condition("keeps", "WorkersAvailable", "True", "WorkersReady").await?;
        test.condition("goes", "Ready", "True", "Ready").await?;
        instance.kill().await?;

        let deleted = delete_namespace(&test).await?;
        let task_queues = test.task_queues();
        wait::until("all but the finalizer's TaskQueue to be gone", GONE, || async {
            ensure!(test.pods("keeps").await?.is_empty(), "workers are left");
            Ok(task_queues.get_opt("keeps").await?.is_none().then_some(()))
        })
        .await?;
        ensure!(task_queues.get_opt("goes").await?.is_some(), "its finalizer did not hold it");
        // What the documentation says to do.
        let none = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        task_queues.patch("goes", &PatchParams::default(), &none).await?;
        let seconds = until_namespace_is_gone(&test, deleted).await?;
        figures(&json!({"test": "operator_gone", "gone_after_seconds": seconds}))?;
        ensure!(has_queue(&test, "goes").await?, "who deleted the queue?");
        Ok(())
    })
    .await
}
