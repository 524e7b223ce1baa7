//! TaskQueues come and go, for as long as one likes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::operator::{self, Instance};
use e2e::soloist::Test;
use e2e::wait;
use futures_util::future::try_join_all;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;

use crate::{change, duration, figures, own_operator, run, until_observed, without_workers};

const TASK_QUEUES: usize = 20;
/// After so many rounds all that is made once has been made.
const WARM: usize = 3;
const ROUND: Duration = Duration::from_secs(120);
/// What the allocator may keep of a round or two more than of another.
const MEMORY: f64 = 6.0;

/// What an operator with no TaskQueue has.
struct Footprint {
    mib: f64,
    descriptors: f64,
    series: usize,
}

async fn footprint(instance: &Instance) -> Result<Footprint> {
    // The operator hears of the last ones that went a moment after the test does.
    let scrape = wait::until("all to be forgotten", ROUND, || async {
        let scrape = instance.scrape().await?;
        let left = scrape.values("soloist_taskqueue_replicas").len();
        ensure!(left == 0, "{left} are not");
        Ok(Some(scrape))
    })
    .await?;
    Ok(Footprint {
        mib: scrape.sum("process_resident_memory_bytes") / f64::from(1 << 20),
        descriptors: scrape.sum("process_open_fds"),
        series: scrape.series(),
    })
}

/// As many TaskQueues are made, changed and deleted, with their queues.
async fn round(test: &Test, number: usize) -> Result<()> {
    let names: Vec<String> = (0..TASK_QUEUES).map(|queue| format!("churn-{number}-{queue}")).collect();
    let yaml: Vec<String> = names.iter().map(|name| without_workers(name, "{maxReplicas: 5}")).collect();
    test.namespace
        .apply(&yaml.join("---").replace("spec:\n  broker", "spec:\n  deletionPolicy: Delete\n  broker"))
        .await?;
    for name in &names {
        test.condition(name, "Ready", "True", "Ready").await?;
    }
    try_join_all(names.iter().map(|name| change(test, name, 6))).await?;
    until_observed(test, ROUND).await?;
    let task_queues = test.task_queues();
    task_queues.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    wait::until("all to be gone", ROUND, || async {
        let left = task_queues.list(&ListParams::default()).await?.items.len();
        ensure!(left == 0, "{left} are left");
        Ok(Some(()))
    })
    .await
}

/// `SOLOIST_CHURN_SECONDS=86400 cargo e2e --filter task_queues_that_come_and_go` goes on for a day.
#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn task_queues_that_come_and_go_leave_nothing_behind() -> Result<()> {
    let lasts = duration("SOLOIST_CHURN_SECONDS", 20)?;
    let test = Test::beside_others("churn").await?;
    run(&test, lasts + Duration::from_secs(300), async {
        let url = format!("https://{}", operator::api_server(&test).await?);
        let instance = own_operator(&test, &url).await?;
        let mut warm = None;
        let (began, mut rounds) = (Instant::now(), 0);
        while began.elapsed() < lasts || rounds <= WARM {
            round(&test, rounds).await?;
            rounds += 1;
            if rounds == WARM {
                warm = Some(footprint(&instance).await?);
            }
        }
        let warm = warm.context("no round")?;
        let end = footprint(&instance).await?;
        figures(&json!({
            "test": "churn",
            "task_queues": rounds * TASK_QUEUES,
            "seconds": began.elapsed().as_secs(),
            "mib": [warm.mib, end.mib],
            "descriptors": [warm.descriptors, end.descriptors],
            "series": [warm.series, end.series],
        }))?;
        ensure!(end.series <= warm.series, "{} series more", end.series - warm.series);
        ensure!(end.descriptors <= warm.descriptors + 4.0, "{} descriptors", end.descriptors);
        ensure!(end.mib <= warm.mib + MEMORY, "{} MiB, {} before", end.mib, warm.mib);
        Ok(())
    })
    .await
}
