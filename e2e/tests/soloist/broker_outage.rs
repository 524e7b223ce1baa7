//! The broker goes away for half a minute while tasks wait and run.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::soloist::{self, Test};
use futures_util::future::try_join_all;

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn replicas_are_held_while_the_broker_is_away_and_every_task_finishes_afterwards() -> Result<()> {
    let test = Test::new("outage").await?;
    test.run(Duration::from_secs(300), async {
        let scaling = "{maxReplicas: 4, tasksPerWorker: 5, scaleDown: {stabilizationSeconds: 0}}";
        test.task_queue("jobs", scaling).await?;
        test.condition("jobs", "Ready", "True", "Ready").await?;
        let celery = test.celery().await?;
        let calls = (0..40).map(|_| soloist::send(&celery, "jobs", "tasks.sleep", (2.0,)));
        let results = try_join_all(calls).await?;
        test.until_replicas("jobs", 4, Duration::from_secs(10)).await?;

        test.cluster.rabbitmq.stop().await?;
        let message = test.condition("jobs", "BrokerReachable", "False", "BrokerUnreachable").await?;
        println!("BrokerReachable: {message}");
        let held = tokio::time::Instant::now() + Duration::from_secs(30);
        while tokio::time::Instant::now() < held {
            let replicas = test.replicas("jobs").await?;
            ensure!(replicas == 4, "{replicas} replicas while the backlog is unknown");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        test.cluster.rabbitmq.start().await?;

        test.condition("jobs", "BrokerReachable", "True", "Connected").await?;
        for result in &results {
            soloist::value(result, Duration::from_secs(120)).await?;
        }
        let pods = test.pods("jobs").await?;
        ensure!(soloist::restarts(&pods) == 0, "workers were restarted: {:?}", soloist::names(&pods));
        test.until_replicas("jobs", 0, Duration::from_secs(60)).await
    })
    .await
}
