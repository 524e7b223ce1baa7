//! A node is drained, as for its upgrade.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::go_tools::GoTools;
use e2e::soloist::{self, START, Scrape, Test};
use e2e::{command, wait};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::json;
use tokio::process::Command;

use crate::{figures, run};

/// Longer than kubectl waits (5 s) before it asks once more to evict what a budget protects.
const TASK_SECONDS: f64 = 14.0;
const DRAIN: Duration = Duration::from_secs(90);

fn kubectl(test: &Test, arguments: &[&str]) -> Result<Command> {
    let mut kubectl = Command::new(GoTools::built()?.program("kubectl"));
    kubectl.env("KUBECONFIG", test.cluster.kubeconfig()).args(arguments);
    Ok(kubectl)
}

/// Workers that are ready and not about to go.
fn available(pods: &[Pod]) -> usize {
    pods.iter().filter(|pod| soloist::is_ready(pod) && pod.metadata.deletion_timestamp.is_none()).count()
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn the_drain_of_a_node_waits_for_tasks_and_keeps_to_a_disruption_budget() -> Result<()> {
    let test = Test::beside_others("node-drain").await?;
    run(&test, Duration::from_secs(200), async {
        // No other pod on the node is to go.
        let name = &test.namespace.name;
        test.task_queue(name, "{minReplicas: 2, maxReplicas: 2}").await?;
        let budget = json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "workers"},
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"soloist.dev/task-queue": name}}},
        });
        test.namespace.apply(&budget.to_string()).await?;
        wait::until("two workers", START, || async {
            Ok((available(&test.pods(name).await?) == 2).then_some(()))
        })
        .await?;
        let celery = test.celery().await?;
        let results = [
            soloist::send(&celery, name, "tasks.sleep", (TASK_SECONDS,)).await?,
            soloist::send(&celery, name, "tasks.sleep", (TASK_SECONDS,)).await?,
        ];
        wait::until("both to be busy", START, || async {
            for pod in test.pods(name).await? {
                ensure!(
                    Scrape::of(&pod).await?.sum("soloist_worker_busy") == 1.0,
                    "{} is idle",
                    pod.name_any()
                );
            }
            Ok(Some(()))
        })
        .await?;
        let drained: BTreeSet<String> = test.pods(name).await?.iter().map(ResourceExt::name_any).collect();

        let pods = test.pods(name).await?;
        let node =
            pods[0].spec.as_ref().and_then(|spec| spec.node_name.clone()).context("it is on no node")?;
        let selector = format!("--pod-selector=soloist.dev/task-queue={name}");
        let mut drain = kubectl(&test, &["drain", &node, &selector, "--delete-emptydir-data"])?;
        let mut fewest = 2;
        let said = {
            let mut draining = std::pin::pin!(command::output(&mut drain, DRAIN));
            let evicted = wait::until("the first eviction", START, || async {
                let pods = test.pods(name).await?;
                Ok(pods.iter().any(|pod| pod.metadata.deletion_timestamp.is_some()).then_some(()))
            });
            let evicted = tokio::select! {
                ended = &mut draining => Err(anyhow::anyhow!("it drained at once: {ended:?}")),
                evicted = evicted => evicted,
            };
            // There is but one node for whoever takes their place, and for other people's pods.
            command::output(&mut kubectl(&test, &["uncordon", &node])?, START).await?;
            evicted?;
            loop {
                tokio::select! {
                    said = &mut draining => break said?,
                    () = tokio::time::sleep(Duration::from_millis(200)) => {}
                }
                fewest = fewest.min(available(&test.pods(name).await?));
            }
        };
        ensure!(said.matches("evicted").count() >= 2, "{said}");
        for result in &results {
            soloist::value(result, Duration::from_secs(2)).await.context("a task was cut off")?;
        }
        wait::until("two new workers", START, || async {
            Ok((available(&test.pods(name).await?) == 2).then_some(()))
        })
        .await?;
        let mut received = 0.0;
        for pod in test.pods(name).await?.iter().filter(|pod| !drained.contains(&pod.name_any())) {
            received += Scrape::of(pod).await?.sum("soloist_task_received_total");
        }
        figures(
            &json!({"test": "node_drain", "evicted": 2, "fewest_available": fewest, "begun_again": received}),
        )?;
        ensure!(fewest >= 1, "{fewest} workers were available, the budget is 1");
        ensure!(received == 0.0, "{received} tasks were begun again");
        Ok(())
    })
    .await
}
