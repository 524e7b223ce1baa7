//! A TaskQueue that says how long a task may wait, and nothing else about the number of its workers; and one that leaves it to others.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::audit;
use e2e::soloist::{self, Test};
use e2e::wait;
use e2e::wrong_data::{self, Fault};
use futures_util::future::try_join_all;
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

const TASKS: usize = 100;
const WORKERS: i32 = 20;
/// Two seconds are what the burst test holds us to, on three tries. Here a machine that is busy otherwise is no failure.
const LIMIT: Duration = Duration::from_secs(5);
/// How long something that must not happen is waited for: several rounds of the operator.
const HOLDS: Duration = Duration::from_secs(3);
/// Four start-ups after the last task at the latest, and a worker may need a while to start on a busy machine. The last worker stays for
/// as long as another task is expected, which is some minutes.
const DOWN: Duration = Duration::from_secs(180);

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_wait_is_enough_to_scale_out_in_one_patch_and_in_again() -> Result<()> {
    let test = Test::new("wait").await?;
    test.run(Duration::from_secs(420), async {
        test.task_queue("jobs", &format!("{{maxReplicas: {WORKERS}, maxWaitSeconds: 10}}")).await?;
        test.condition("jobs", "Ready", "True", "Ready").await?;
        test.until_replicas("jobs", 0, soloist::START).await?;

        let celery = test.celery().await?;
        let mark = audit::mark()?;
        let calls = (0..TASKS).map(|_| soloist::send(&celery, "jobs", "tasks.sleep", (1.0,)));
        let results = try_join_all(calls).await?;
        let published = Instant::now();
        test.until_replicas("jobs", WORKERS, LIMIT).await?;
        let out = published.elapsed();
        let patches = audit::deployment_writes_by_operator(mark, &test.namespace.name)?.len();
        ensure!(patches == 1, "{patches} patches to have {WORKERS} workers");

        for result in &results {
            soloist::value(result, soloist::START).await?;
        }
        let finished = Instant::now();
        wait::until("the workers to go, but for one", DOWN, || async {
            let replicas = test.replicas("jobs").await?;
            ensure!(replicas <= 1, "there are {replicas}");
            Ok(Some(()))
        })
        .await?;

        let task_queue = test.task_queues().get("jobs").await?;
        let decision = &task_queue.data["status"]["decision"];
        for term in ["arrivalRate", "serviceSeconds", "startupSeconds", "wanted", "windowSeconds", "maxReplicas"] {
            ensure!(decision[term].is_number(), "the status says nothing of {term}: {decision}");
        }
        let service = decision["serviceSeconds"].as_f64().context("it is a number")?;
        ensure!((0.8..2.0).contains(&service), "tasks of a second are thought to take {service} s");
        writeln!(
            std::io::stdout(),
            r#"{{"test":"wait","tasks":{TASKS},"replicas":{WORKERS},"patches":{patches},"out_seconds":{:.3},"in_seconds":{:.0}}}"#,
            out.as_secs_f64(),
            finished.elapsed().as_secs_f64()
        )?;
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_recommendation_is_told_and_changes_nothing_until_the_mode_does() -> Result<()> {
    let test = Test::new("recommend").await?;
    test.run(Duration::from_secs(120), async {
        let scaling = "{maxReplicas: 5, tasksPerWorker: 1, mode: Recommend}";
        test.namespace.apply(&soloist::on_no_node(&soloist::task_queue("jobs", scaling))).await?;
        test.condition("jobs", "Ready", "True", "Ready").await?;
        test.condition("jobs", "ScalingActive", "False", "Recommending").await?;
        let celery = test.celery().await?;
        let mark = audit::mark()?;
        try_join_all((0..4).map(|_| soloist::send(&celery, "jobs", "tasks.add", (1, 1)))).await?;
        let status = until_recommended(&test, 4, 0).await?;
        ensure!(status["decision"]["reason"] == "Recommended", "{status}");

        // As another autoscaler does.
        let deployments: Api<Deployment> = test.namespace.api();
        let patch = Patch::Merge(json!({"spec": {"replicas": 2}}));
        deployments.patch_scale("jobs-worker", &PatchParams::default(), &patch).await?;
        until_recommended(&test, 4, 2).await?;
        soloist::holds(HOLDS, async || {
            let replicas = test.replicas("jobs").await?;
            ensure!(replicas == 2, "{replicas} replicas");
            Ok(())
        })
        .await?;
        let writes = audit::deployment_writes_by_operator(mark, &test.namespace.name)?;
        ensure!(writes.is_empty(), "{writes:#?}");

        let patch = Patch::Merge(json!({"spec": {"scaling": {"mode": "Auto"}}}));
        test.task_queues().patch("jobs", &PatchParams::default(), &patch).await?;
        test.until_replicas("jobs", 4, LIMIT).await
    })
    .await
}

/// Waits until the status says that there should be so many workers, and that there are so many.
async fn until_recommended(test: &Test, wanted: u64, there: u64) -> Result<Value> {
    wait::until(&format!("{wanted} workers to be recommended"), soloist::START, || async {
        let status = test.task_queues().get("jobs").await?.data["status"].clone();
        let seen = (status["desiredReplicas"].as_u64(), status["replicas"].as_u64());
        ensure!(seen == (Some(wanted), Some(there)), "it says {seen:?}");
        Ok(Some(status))
    })
    .await
}

/// `cargo test-wrong-data` does the same with all else that can't be seen.
#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_queue_that_cannot_be_read_takes_no_worker_away() -> Result<()> {
    let test = Test::new("wrong-data").await?;
    test.run(Duration::from_secs(200), async {
        wrong_data::prepare(&test).await?;
        let seen = wrong_data::trial(&test, Fault::QueueUnreadable, 6).await?;
        ensure!(seen.workers == wrong_data::WORKERS && seen.said.contains("BacklogUnknown"), "{seen:?}");
        Ok(())
    })
    .await
}
