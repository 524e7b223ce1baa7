//! An API server that refuses what it is asked, for a while.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use axum::http::StatusCode;
use e2e::api_proxy::{ApiProxy, Fate};
use e2e::operator;
use e2e::soloist::Test;
use futures_util::future::try_join_all;
use serde_json::json;

use crate::{change, figures, own_operator, run, until_observed, without_workers};

const TASK_QUEUES: usize = 20;
/// Half of it "too many requests", half of it "not available".
const STORM: Duration = Duration::from_secs(20);
/// Attempts of one TaskQueue in that time: after 0, 1, 2, 4 and 8 s or half of that each, a status and perhaps an event each time.
const ATTEMPTS: usize = 6;
/// A TaskQueue waits 15 s for its next attempt at most; the rest is for a busy machine.
const OVER: Duration = Duration::from_secs(30);

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_storm_of_refusals_is_met_with_ever_fewer_requests_and_leaves_nothing_undone() -> Result<()> {
    let test = Test::beside_others("storm").await?;
    run(&test, Duration::from_secs(150), async {
        let api = ApiProxy::to(operator::config(&test).await?).await?;
        let mut instance = own_operator(&test, &api.url).await?;
        let names: Vec<String> = (0..TASK_QUEUES).map(|number| format!("jobs-{number}")).collect();
        let yaml: Vec<String> = names.iter().map(|name| without_workers(name, "{maxReplicas: 5}")).collect();
        test.namespace.apply(&yaml.join("---")).await?;
        for name in &names {
            test.condition(name, "Ready", "True", "Ready").await?;
        }
        let before = instance.scrape().await?;

        let (began, refused) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
        let counting = Arc::clone(&refused);
        api.set(move |request| {
            // As API servers do: the election has a share of its own.
            if request.uri.path().contains("/leases") {
                return Fate::Pass;
            }
            let at = began.elapsed();
            counting.lock().expect("no test panics here").push(at);
            let code =
                if at < STORM / 2 { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::SERVICE_UNAVAILABLE };
            Fate::Refuse(code)
        });
        try_join_all(names.iter().map(|name| change(&test, name, 6))).await?;
        tokio::time::sleep(STORM).await;
        api.set(|_| Fate::Pass);
        let over = Instant::now();
        until_observed(&test, OVER).await?;
        let recovered = over.elapsed();

        let refused = refused.lock().expect("no test panics here").clone();
        let until = |end: Duration| refused.iter().filter(|at| **at < end).count();
        let (early, late) = (until(STORM / 4), refused.len() - until(STORM * 3 / 4));
        let after = instance.scrape().await?;
        let grown = |metric: &str| after.sum(metric) - before.sum(metric);
        let (errors, retries) =
            (grown("controller_runtime_reconcile_errors_total"), grown("workqueue_retries_total"));
        figures(&json!({
            "test": "storm",
            "task_queues": TASK_QUEUES,
            "seconds": STORM.as_secs(),
            "refused": refused.len(),
            "refused_in_first_quarter": early,
            "refused_in_last_quarter": late,
            "errors_counted": errors,
            "retries_counted": retries,
            "recovered_after_seconds": recovered.as_secs_f64(),
        }))?;
        ensure!(refused.len() <= TASK_QUEUES * ATTEMPTS * 2, "{} requests", refused.len());
        ensure!(2 * late <= early, "{early} requests at first, {late} at last");
        ensure!(
            errors >= TASK_QUEUES as f64 && retries >= TASK_QUEUES as f64,
            "{errors} errors, {retries} retries"
        );
        ensure!(instance.ended()?.is_none(), "the operator has ended");
        test.condition(&names[0], "Ready", "True", "Ready").await.map(drop)
    })
    .await
}
