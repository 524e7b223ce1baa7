//! A worker that goes away, gently or not, never takes a task with it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::soloist::{self, Scrape, Test};
use e2e::wait;
use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::json;

/// Longer than it takes to find the worker that runs it.
const TASK_SECONDS: f64 = 8.0;

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn the_task_of_a_force_deleted_worker_is_finished_by_another() -> Result<()> {
    let test = Test::new("force-delete").await?;
    test.run(Duration::from_secs(240), async {
        test.task_queue("jobs", "{minReplicas: 2, maxReplicas: 2}").await?;
        until_workers(&test, "jobs", 2).await?;
        let celery = test.celery().await?;
        let result = soloist::send(&celery, "jobs", "tasks.sleep", (TASK_SECONDS,)).await?;
        let victim = busy_worker(&test, "jobs").await?;

        let pods: Api<Pod> = test.namespace.api();
        pods.delete(&victim, &DeleteParams::default().grace_period(0)).await?;

        let other = wait::until("another worker to run the task", soloist::START, || async {
            let busy = busy_worker(&test, "jobs").await?;
            Ok((busy != victim).then_some(busy))
        })
        .await?;
        soloist::value(&result, Duration::from_secs(60)).await?;
        println!("{victim} was killed, {other} finished its task");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_worker_that_is_told_to_stop_finishes_its_task_and_exits_with_0() -> Result<()> {
    let test = Test::new("drain").await?;
    test.run(Duration::from_secs(240), async {
        test.task_queue("jobs", "{minReplicas: 1, maxReplicas: 1}").await?;
        until_workers(&test, "jobs", 1).await?;
        let celery = test.celery().await?;
        let result = soloist::send(&celery, "jobs", "tasks.sleep", (TASK_SECONDS,)).await?;
        let worker = busy_worker(&test, "jobs").await?;

        let pods: Api<Pod> = test.namespace.api();
        let exit = watch_exit(pods.clone(), &worker);
        pods.delete(&worker, &DeleteParams::default()).await?;
        let exit =
            tokio::time::timeout(Duration::from_secs(60), exit).await.context("the pod did not end")??;
        ensure!(exit == 0, "the worker exited with {exit}");

        // The first run's result: had the message come back, another worker would need TASK_SECONDS more.
        soloist::value(&result, Duration::from_secs(2)).await?;
        let successor = wait::until("the worker in its place", soloist::START, || async {
            Ok(test
                .pods("jobs")
                .await?
                .into_iter()
                .find(|pod| pod.name_any() != worker && soloist::is_ready(pod)))
        })
        .await?;
        let received = Scrape::of(&successor).await?.sum("soloist_task_received_total");
        ensure!(received == 0.0, "{} received the task again", successor.name_any());
        Ok(())
    })
    .await
}

/// Its container starts again, which must not consume; and the operator must see that it is done.
#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_worker_that_is_killed_while_it_drains_goes_without_another_task() -> Result<()> {
    let test = Test::new("killed-draining").await?;
    test.run(Duration::from_secs(240), async {
        test.task_queue("jobs", "{maxReplicas: 1}").await?;
        let replicas = async |replicas: u16| {
            let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
            test.task_queues().patch("jobs", &PatchParams::default(), &patch).await
        };
        replicas(1).await?;
        until_workers(&test, "jobs", 1).await?;
        let celery = test.celery().await?;
        soloist::send(&celery, "jobs", "tasks.sleep", (3600.0,)).await?;
        let worker = busy_worker(&test, "jobs").await?;
        replicas(0).await?;
        let pods: Api<Pod> = test.namespace.api();
        wait::until("the worker to drain", soloist::START, || async {
            Ok(pods.get(&worker).await?.annotations().get("soloist.dev/draining-since").map(drop))
        })
        .await?;

        soloist::kill_process_of(&worker)?;
        wait::until("its pod to go", soloist::START, || async {
            Ok(pods.get_opt(&worker).await?.is_none().then_some(()))
        })
        .await?;
        wait::until("its task to wait for another", soloist::START, || async {
            Ok((test.task_queues().get("jobs").await?.data["status"]["ready"] == 1).then_some(()))
        })
        .await?;
        test.cluster.rabbitmq.purge(&test.namespace.name, "jobs").await?;
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_time_limit_of_the_task_queue_ends_its_tasks() -> Result<()> {
    let test = Test::new("time-limit").await?;
    test.run(Duration::from_secs(240), async {
        let yaml = soloist::task_queue("jobs", "{maxReplicas: 1}")
            .replace("  worker:\n", "  worker:\n    taskTimeLimitSeconds: 2\n");
        test.namespace.apply(&yaml).await?;
        test.condition("jobs", "Ready", "True", "Ready").await?;
        let celery = test.celery().await?;
        let result = soloist::send(&celery, "jobs", "tasks.sleep", (3600.0,)).await?;
        let error = soloist::value(&result, soloist::START).await.expect_err("it ran for an hour");
        ensure!(format!("{error:#}").contains("TimeLimitExceeded"), "{error:#}");
        let pods = test.pods("jobs").await?;
        let grace = pods.iter().map(|pod| pod.spec.as_ref()?.termination_grace_period_seconds);
        ensure!(grace.clone().all(|seconds| seconds == Some(12)), "{:?}", grace.collect::<Vec<_>>());
        Ok(())
    })
    .await
}

/// Waits until as many workers are ready.
pub(crate) async fn until_workers(test: &Test, name: &str, wanted: usize) -> Result<()> {
    wait::until(&format!("{wanted} ready workers"), soloist::START, || async {
        let pods = test.pods(name).await?;
        let ready = pods.iter().filter(|pod| soloist::is_ready(pod)).count();
        ensure!(ready == wanted, "{ready} of {:?} are ready", soloist::names(&pods));
        Ok(Some(()))
    })
    .await
}

/// The worker that says that it is busy.
async fn busy_worker(test: &Test, name: &str) -> Result<String> {
    wait::until("a busy worker", soloist::START, || async {
        for pod in test.pods(name).await? {
            if Scrape::of(&pod).await.is_ok_and(|scrape| scrape.sum("soloist_worker_busy") == 1.0) {
                return Ok(Some(pod.name_any()));
            }
        }
        Ok(None)
    })
    .await
}

/// The exit code of a pod's worker, seen while the pod is being deleted.
async fn watch_exit(pods: Api<Pod>, name: &str) -> Result<i32> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut changes = watcher(pods, config).default_backoff().touched_objects().boxed();
    while let Some(pod) = changes.try_next().await? {
        let containers = pod.status.and_then(|status| status.container_statuses).unwrap_or_default();
        if let Some(ended) = containers.into_iter().find_map(|container| container.state?.terminated) {
            return Ok(ended.exit_code);
        }
    }
    anyhow::bail!("the watch ended")
}
