//! Workers that are to go and aren't done in time.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::operator::{self, Instance};
use e2e::soloist::{self, START, Scrape, Test};
use e2e::wait;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::{figures, own_operator, run};

const DRAIN_SECONDS: u32 = 1;
/// What a worker that is left alone is to finish, though it takes longer than that.
const LONG: f64 = 8.0;
/// Longer than the pod of one that is given up has left: the drain timeout, and 10 s.
const TOO_LONG: f64 = 25.0;
const GRACE: Duration = Duration::from_secs(11);

/// A TaskQueue with one worker, who has little time to drain.
async fn with_one_worker(test: &Test, name: &str, on_drain_timeout: &str) -> Result<()> {
    let scaling = format!("{{maxReplicas: 1, scaleDown: {{onDrainTimeout: {on_drain_timeout}}}}}");
    let yaml = soloist::task_queue(name, &scaling)
        .replace("  worker:\n", &format!("  worker:\n    drainTimeoutSeconds: {DRAIN_SECONDS}\n"));
    test.namespace.apply(&yaml).await?;
    scale(test, name, 1).await
}

async fn scale(test: &Test, name: &str, replicas: u16) -> Result<()> {
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    test.task_queues().patch(name, &PatchParams::default(), &patch).await?;
    Ok(())
}

/// The only worker, once it has begun a task.
async fn busy_worker(test: &Test, name: &str) -> Result<Pod> {
    wait::until(&format!("a busy worker of {name}"), START, || async {
        let [pod] = test.pods(name).await?.try_into().ok().context("there is not one worker")?;
        let busy = Scrape::of(&pod).await?.sum("soloist_worker_busy");
        Ok((busy == 1.0).then_some(pod))
    })
    .await
}

/// What was told of a worker that took too long.
async fn told(test: &Test, pod: &Pod) -> Result<String> {
    let events: Api<Event> = test.namespace.api();
    wait::until("a word on the worker", START, || async {
        let events = events.list(&ListParams::default()).await?.items;
        let notes = events.into_iter().filter(|event| event.reason.as_deref() == Some("DrainTimeout"));
        Ok(notes.filter_map(|event| event.note).find(|note| note.contains(&pod.name_any())))
    })
    .await
}

/// Waits until the operator has counted so many workers that took too long, and tasks that scale-in interrupted.
async fn counted(operator: &Instance, overdue: f64, interrupted: f64) -> Result<()> {
    wait::until("the counters", START, || async {
        let scrape = operator.scrape().await?;
        let seen = ["drain_timeouts", "interrupted_tasks"]
            .map(|counted| scrape.values(&format!("soloist_scale_in_{counted}_total")));
        ensure!(seen == [vec![overdue], vec![interrupted]], "they are at {seen:?}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_worker_that_drains_too_long_is_told_of_and_goes_only_where_that_is_wanted() -> Result<()> {
    let test = Test::beside_others("overdue").await?;
    run(&test, Duration::from_secs(150), async {
        let url = operator::config(&test).await?.cluster_url.to_string();
        let operator = own_operator(&test, &url).await?;
        with_one_worker(&test, "waits", "Wait").await?;
        with_one_worker(&test, "forced", "Force").await?;
        for name in ["waits", "forced"] {
            test.condition(name, "QueuesDeclared", "True", "Declared").await?;
        }
        let celery = test.celery().await?;
        let long = soloist::send(&celery, "waits", "tasks.sleep", (LONG,)).await?;
        soloist::send(&celery, "forced", "tasks.sleep", (TOO_LONG,)).await?;
        let waits = busy_worker(&test, "waits").await?;
        let forced = busy_worker(&test, "forced").await?;
        counted(&operator, 0.0, 0.0).await?;

        scale(&test, "waits", 0).await?;
        scale(&test, "forced", 0).await?;
        let note = told(&test, &waits).await?;
        ensure!(note.contains("It stays until then"), "{note}");
        let note = told(&test, &forced).await?;
        ensure!(note.contains("It is given up"), "{note}");
        counted(&operator, 2.0, 1.0).await?;
        test.until_replicas("forced", 0, START).await?;

        // The one that is left alone: no fewer are asked for until it is done, and the status tells them apart.
        let task_queue = test.task_queues().get("waits").await?;
        let (status, pod) = (&task_queue.data["status"], test.pods("waits").await?);
        ensure!(status["desiredReplicas"] == 0 && status["replicas"] == 1, "{status}");
        ensure!(pod.len() == 1 && pod[0].metadata.deletion_timestamp.is_none(), "it goes");
        ensure!(test.replicas("waits").await? == 1, "fewer are asked for");
        soloist::value(&long, Duration::from_secs_f64(2.0 * LONG)).await?;
        wait::until("it to go when it is done", START, || async {
            Ok(test.pods("waits").await?.is_empty().then_some(()))
        })
        .await?;

        // The other one had its grace period. Now its task is somebody else's.
        wait::until("it to be killed", GRACE + START, || async {
            Ok(test.pods("forced").await?.is_empty().then_some(()))
        })
        .await?;
        scale(&test, "forced", 1).await?;
        let other = busy_worker(&test, "forced").await?;
        ensure!(other.name_any() != forced.name_any(), "the same worker");
        counted(&operator, 2.0, 1.0).await?;
        figures(&json!({"test": "overdue", "drain_timeouts": 2, "interrupted_tasks": 1}))
    })
    .await
}
