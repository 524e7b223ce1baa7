//! How quickly a burst becomes workers.

use std::time::{Duration, Instant};

use crate::support::{self, Test};
use anyhow::{Result, ensure};
use e2e::audit;
use futures_util::future::try_join_all;

/// Issued for each run: the figures that the README quotes.
#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_burst_of_500_messages_is_50_replicas_in_one_patch_within_2_seconds() -> Result<()> {
    let test = Test::new("burst").await?;
    test.namespace
        .run(Duration::from_secs(240), async {
            test.task_queue("burst", "{minReplicas: 0, maxReplicas: 50, tasksPerWorker: 10}").await?;
            test.condition("burst", "Ready", "True", "Ready").await?;
            test.until_replicas("burst", 0, support::START).await?;

            let celery = test.celery().await?;
            let mark = audit::mark()?;
            let calls = (0..500).map(|_| support::send(&celery, "burst", "tasks.sleep", (0.01,)));
            let results = try_join_all(calls).await?;
            let published = Instant::now();
            test.until_replicas("burst", 50, Duration::from_secs(10)).await?;
            let seconds = published.elapsed().as_secs_f64();

            let patches: Vec<_> = audit::since(mark)?
                .into_iter()
                .filter(|event| {
                    event.is_write()
                        && event.is_about("deployments")
                        && event.object_ref.as_ref().is_some_and(|object| {
                            object.namespace == test.namespace.name && object.subresource != "status"
                        })
                        && event.is_from("soloist-system", "soloist")
                })
                .collect();
            println!(
                r#"{{"test":"burst","messages":500,"replicas":50,"patches":{},"seconds":{seconds:.3}}}"#,
                patches.len()
            );
            ensure!(patches.len() == 1, "{} writes to the Deployment: {patches:#?}", patches.len());
            ensure!(seconds <= 2.0, "it took {seconds:.2} s");

            for result in &results {
                support::value(result, Duration::from_secs(120)).await?;
            }
            Ok(())
        })
        .await
}
