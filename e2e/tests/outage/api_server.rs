//! The API server is away, for the operators only: whatever else there is on the cluster needs it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use celery_client::AsyncResult;
use e2e::operator::{self, Instance, until_leads};
use e2e::proxy::{Door, Proxy};
use e2e::soloist::{self, START, Test};
use e2e::wait;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::{duration, figures, run, without_workers};

/// How long everything may take once the API server is back.
const CONVERGES: Duration = Duration::from_secs(30);
/// Longest time from a task sent to its result, from workers that are there.
const TASK: Duration = Duration::from_secs(10);

async fn workers(test: &Test) -> Result<BTreeSet<String>> {
    Ok(test.pods("jobs").await?.iter().map(ResourceExt::name_any).collect())
}

/// Sends a task and waits for what comes of it.
async fn work(celery: &celery_client::Celery) -> Result<()> {
    let result: AsyncResult = soloist::send(celery, "jobs", "tasks.add", (2, 2)).await?;
    ensure!(soloist::value(&result, TASK).await? == json!(4), "2 + 2 is not 4");
    Ok(())
}

/// `SOLOIST_OUTAGE_SECONDS=300 cargo e2e --filter an_api_server_that_is_away` keeps it away for five minutes.
#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn an_api_server_that_is_away_stops_no_worker_and_all_is_well_soon_after() -> Result<()> {
    let away = duration("SOLOIST_OUTAGE_SECONDS", 40)?;
    let test = Test::beside_others("api-server-away").await?;
    run(&test, away + Duration::from_secs(200), async {
        operator::keep_installed_out(&test).await?;
        let door = Proxy::to(&operator::api_server(&test).await?).await?;
        let url = format!("https://{}", door.address);
        let mut leader = Instance::start(&test, "a", &url).await?;
        until_leads(&test, &leader, START).await?;
        let mut other = Instance::start(&test, "b", &url).await?;
        other.ready().await?;
        test.task_queue("jobs", "{minReplicas: 2, maxReplicas: 2}").await?;
        test.namespace.apply(&without_workers("idle", "{maxReplicas: 5, tasksPerWorker: 1}")).await?;
        test.condition("jobs", "WorkersAvailable", "True", "WorkersReady").await?;
        test.condition("idle", "Ready", "True", "Ready").await?;
        let celery = test.celery().await?;
        work(&celery).await?;
        let before = workers(&test).await?;

        door.set(Door::Silent);
        let began = Instant::now();
        // What has to be done when it is back.
        let deployments: Api<Deployment> = test.namespace.api();
        deployments.delete("idle-worker", &DeleteParams::background()).await?;
        soloist::send(&celery, "idle", "tasks.add", (1, 1)).await?;
        let mut restarted = None;
        let mut tasks = 0;
        while began.elapsed() < away {
            if began.elapsed() > away / 2 {
                door.set(Door::Shut);
            }
            work(&celery).await.context("workers don't work while the API server is away")?;
            tasks += 1;
            ensure!(other.ended()?.is_none(), "the one that waits to lead has ended");
            other.lives().await?;
            let answer = leader.lives().await;
            match (leader.ended()?, restarted) {
                (None, _) => answer?,
                (Some(ended), None) => {
                    ensure!(ended.code() == Some(1), "the leader ended with {ended}");
                    restarted = Some(began.elapsed());
                    leader.restart().await?;
                    let lives = || async { leader.lives().await.map(Some) };
                    wait::until("the leader's successor to live", START, lives).await?;
                }
                (Some(ended), Some(_)) => anyhow::bail!("the leader ended again, with {ended}"),
            }
            if restarted.is_some() {
                ensure!(!leader.is_ready().await?, "it is ready without having read a thing");
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let restarted = restarted.context("the leader went on without the API server")?;
        ensure!(workers(&test).await? == before, "workers were deleted");
        ensure!(deployments.get_opt("idle-worker").await?.is_none(), "somebody else serves the TaskQueue");

        door.set(Door::Open);
        let back = Instant::now();
        wait::until("the Deployment, with a worker for the task", CONVERGES, || async {
            let replicas = test.replicas("idle").await?;
            Ok((replicas == 1).then_some(()))
        })
        .await?;
        let converged = back.elapsed();
        figures(&json!({
            "test": "api_server_away",
            "seconds": away.as_secs(),
            "leader_ended_after_seconds": restarted.as_secs_f64(),
            "tasks_meanwhile": tasks,
            "converged_after_seconds": converged.as_secs_f64(),
        }))?;
        test.condition("jobs", "Ready", "True", "Ready").await?;
        leader.ready().await?;
        ensure!(leader.ended()?.is_none() && other.ended()?.is_none(), "an operator has ended afterwards");
        let pods = test.pods("jobs").await?;
        ensure!(
            workers(&test).await? == before && soloist::restarts(&pods) == 0,
            "workers were deleted or restarted"
        );
        work(&celery).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn livez_answers_whatever_is_away_and_readyz_once_the_task_queues_were_read() -> Result<()> {
    let test = Test::beside_others("probes").await?;
    run(&test, Duration::from_secs(100), async {
        operator::keep_installed_out(&test).await?;
        let door = Proxy::to(&operator::api_server(&test).await?).await?;
        door.set(Door::Shut);
        let instance = Instance::start(&test, "a", &format!("https://{}", door.address)).await?;
        wait::until("it to answer", START, || async { instance.lives().await.map(Some) }).await?;
        soloist::holds(Duration::from_secs(3), || async {
            instance.lives().await?;
            ensure!(!instance.is_ready().await?, "it is ready without having read a thing");
            Ok(())
        })
        .await?;
        door.set(Door::Open);
        let back = Instant::now();
        instance.ready().await?;
        let ready = back.elapsed();
        // A broker that is away is no reason to be restarted, or to have no metrics.
        test.secret("rabbitmq", "amqp://guest:guest@127.0.0.1:9").await?;
        test.task_queue("jobs", "{maxReplicas: 1}").await?;
        test.condition("jobs", "BrokerReachable", "False", "BrokerUnreachable").await?;
        ensure!(instance.is_ready().await?, "it is not ready without a broker");
        instance.lives().await?;
        figures(&json!({"test": "probes", "ready_after_seconds": ready.as_secs_f64()}))
    })
    .await
}
