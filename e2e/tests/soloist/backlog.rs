//! What waits outlasts all that serves it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use celery_client::AsyncResult;
use e2e::soloist::{self, Test};
use e2e::{chart, wait};
use futures_util::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};

use crate::{faults, operator};

const TASKS: u32 = 10_000;
const WORKERS: u16 = 4;
/// The tasks alone take 10 s.
const DRAINED: Duration = Duration::from_secs(120);

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_backlog_of_10_000_outlasts_workers_broker_and_operator() -> Result<()> {
    let test = Test::new("backlog").await?;
    test.run(Duration::from_secs(300), async {
        test.task_queue("jobs", &format!("{{minReplicas: {WORKERS}, maxReplicas: {WORKERS}}}")).await?;
        faults::until_workers(&test, "jobs", WORKERS.into()).await?;
        let celery = test.celery().await?;
        // Each has a result of its own.
        let seconds = |n: u32| 0.003 + f64::from(n) / 1e7;
        let sent = (0..TASKS).map(|n| soloist::send(&celery, "jobs", "tasks.sleep", (seconds(n),)));
        let sent = try_join_all(sent).await?;
        let ids: Vec<&str> = sent.iter().map(AsyncResult::id).collect();
        let begun = Instant::now();
        let until_some_are_done_and_others_wait = async |what: &str, before: usize| {
            wait::until(&format!("results while {what}"), soloist::START, || async {
                let done = celery.results(&ids).await?.iter().flatten().count();
                ensure!(done < ids.len(), "nothing waits any more");
                Ok((done > before).then_some(done))
            })
            .await
        };

        let done = until_some_are_done_and_others_wait("all is well", 0).await?;
        let workers = test.pods("jobs").await?;
        for worker in &workers {
            soloist::kill_process_of(&worker.name_any())?;
        }
        until_restarted(&test, &workers).await?;
        let done = until_some_are_done_and_others_wait("the workers are new", done).await?;
        test.cluster.rabbitmq.kill().await?;
        test.cluster.rabbitmq.start().await?;
        let done = until_some_are_done_and_others_wait("the broker is new", done).await?;
        let leader = operator::leader(&test).await?;
        let operators: Api<Pod> = Api::namespaced(test.client.clone(), chart::NAMESPACE);
        operators.delete(&leader, &DeleteParams::default()).await?;
        until_some_are_done_and_others_wait("the operator goes", done).await?;

        let results = wait::until("all results", DRAINED, || async {
            Ok(celery.results(&ids).await?.into_iter().collect::<Option<Vec<_>>>())
        })
        .await?;
        println!("{TASKS} tasks took {:.1?}", begun.elapsed());
        for (n, result) in (0..).zip(&results) {
            let difference = result.result_as::<f64>()? - seconds(n);
            ensure!(difference.abs() < 1e-9, "task {n} has the result {}", result.result);
        }
        wait::until("another operator to see that nothing is left", soloist::START, || async {
            ensure!(operator::leader(&test).await? != leader, "{leader} still leads");
            let status = &test.task_queues().get("jobs").await?.data["status"];
            ensure!(status["ready"] == 0 && status["running"] == 0, "it sees {status}");
            Ok(Some(()))
        })
        .await?;
        let connection = celery_client::connect(&test.broker_url.parse()?, "backlog").await?;
        for queue in ["jobs", "jobs.dead"] {
            let left = celery_client::queue::inspect(&connection, queue).await?.ready;
            ensure!(left == 0, "{left} messages are left in {queue}");
        }
        // None has ended since.
        until_restarted(&test, &workers).await
    })
    .await
}

/// Waits until these pods, and no others, are ready, and each has been restarted once.
async fn until_restarted(test: &Test, workers: &[Pod]) -> Result<()> {
    wait::until("workers that were restarted once", soloist::START, || async {
        let pods = test.pods("jobs").await?;
        ensure!(soloist::names(&pods) == soloist::names(workers), "they are {:?}", soloist::names(&pods));
        let restarts: Vec<i32> =
            pods.iter().map(|pod| soloist::restarts(std::slice::from_ref(pod))).collect();
        ensure!(restarts.iter().all(|restarts| *restarts == 1), "they were restarted {restarts:?} times");
        ensure!(pods.iter().all(soloist::is_ready), "not all are ready");
        Ok(Some(()))
    })
    .await
}
