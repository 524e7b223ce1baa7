//! Of two operators one writes, whatever becomes of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::api_proxy::{ApiProxy, Fate};
use e2e::audit::{self, Event, Mark};
use e2e::operator::{self, Instance, until_leads};
use e2e::soloist::Test;
use e2e::wait;
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::json;

use crate::{change, figures, run, without_workers};

/// What a lease lasts; then another one may lead.
const LEASE: Duration = Duration::from_secs(15);
/// The one that waits looks every 2 s.
const TAKEOVER: Duration = Duration::from_secs(20);
/// A leader gives up 10 s after its last renewal.
const GIVES_UP: Duration = Duration::from_secs(11);

/// What the two have written since then, the election aside: when, by whom.
fn writes(test: &Test, mark: Mark) -> Result<BTreeMap<&'static str, Vec<Timestamp>>> {
    let mut writes = BTreeMap::from([("a", Vec::new()), ("b", Vec::new())]);
    for event in audit::since(mark)?.into_iter().filter(|event| event.is_write() && !event.is_about("leases"))
    {
        for (name, times) in &mut writes {
            if event.is_from(&test.namespace.name, name) {
                times.push(event.received);
            }
        }
    }
    writes.values_mut().for_each(|times| times.sort_unstable());
    Ok(writes)
}

/// When an instance renewed the Lease last, as the API server has it.
fn renewed(test: &Test, mark: Mark, name: &str) -> Result<Timestamp> {
    let is_renewal = |event: &Event| {
        event.is_from(&test.namespace.name, name)
            && event.is_about("leases")
            && event.is_write()
            && event.response_status.as_ref().is_some_and(|status| status.code < 300)
    };
    let renewals = audit::since(mark)?.into_iter().filter(is_renewal).map(|event| event.received);
    renewals.max().context("it never renewed the Lease")
}

fn between(earlier: Timestamp, later: Timestamp) -> f64 {
    later.duration_since(earlier).as_secs_f64()
}

/// Changes a TaskQueue again and again, so that whoever leads has something to write.
async fn keep_busy(test: &Test) -> Result<()> {
    for round in 0.. {
        change(test, "jobs", 5 + round % 2).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_leader_that_cannot_renew_or_was_stopped_writes_nothing_once_another_may() -> Result<()> {
    let test = Test::beside_others("two-operators").await?;
    run(&test, Duration::from_secs(150), async {
        operator::keep_installed_out(&test).await?;
        let config = operator::config(&test).await?;
        let (to_a, to_b) = (ApiProxy::to(config.clone()).await?, ApiProxy::to(config).await?);
        let mut a = Instance::start(&test, "a", &to_a.url).await?;
        until_leads(&test, &a, TAKEOVER).await?;
        let mut b = Instance::start(&test, "b", &to_b.url).await?;
        b.ready().await?;
        test.namespace.apply(&without_workers("jobs", "{maxReplicas: 5}")).await?;
        test.condition("jobs", "Ready", "True", "Ready").await?;
        tokio::select! {
            ended = keep_busy(&test) => ended,
            judged = async {
                cannot_renew(&test, &to_a, &mut a, &b).await?;
                to_a.set(|_| Fate::Pass);
                a.restart().await?;
                a.ready().await?;
                was_stopped(&test, &a, &mut b).await
            } => judged,
        }
    })
    .await
}

/// The worst of all: it can still write, but not renew.
async fn cannot_renew(test: &Test, to_a: &ApiProxy, a: &mut Instance, b: &Instance) -> Result<()> {
    let mark = audit::mark()?;
    wait::until("it to write, and renew", TAKEOVER, || async {
        renewed(test, mark, "a")?;
        Ok((!writes(test, mark)?["a"].is_empty()).then_some(()))
    })
    .await?;
    to_a.set(|request| if request.uri.path().contains("/leases") { Fate::Hang } else { Fate::Pass });
    let ended = a.end(LEASE).await?;
    let ended_at = Timestamp::now();
    ensure!(ended.code() == Some(1), "it ended with {ended}");
    let log = a.log();
    let said = log.lines().rev().find(|line| line.contains("stopped")).context("it said nothing")?;
    ensure!(said.contains("leadership lost") && said.contains("not renewed"), "{said}");
    until_leads(test, b, TAKEOVER).await?;
    wait::until("the other one to write", TAKEOVER, || async {
        Ok((!writes(test, mark)?["b"].is_empty()).then_some(()))
    })
    .await?;

    let writes = writes(test, mark)?;
    let renewed = renewed(test, mark, "a")?;
    let (last, first) = (writes["a"].last().context("it wrote nothing")?, writes["b"][0]);
    let after_renewal = writes["a"].iter().filter(|at| **at > renewed).count();
    figures(&json!({
        "test": "cannot_renew",
        "ended_after_seconds": between(renewed, ended_at),
        "writes_since_last_renewal": after_renewal,
        "last_write_after_seconds": between(renewed, *last),
        "other_writes_after_seconds": between(renewed, first),
    }))?;
    ensure!(after_renewal > 0, "it wrote nothing after its last renewal: nothing was tried");
    ensure!(between(renewed, ended_at) < GIVES_UP.as_secs_f64(), "it ended late");
    ensure!(*last < first, "it wrote at {last}, and the other one at {first}");
    ensure!(between(renewed, first) >= LEASE.as_secs_f64(), "the other one wrote before the Lease was over");
    ensure!(
        between(renewed, first) < (TAKEOVER + Duration::from_secs(2)).as_secs_f64(),
        "the other one took long"
    );
    Ok(())
}

/// As by a machine that stands still for a while: when it goes on, another one leads.
async fn was_stopped(test: &Test, a: &Instance, b: &mut Instance) -> Result<()> {
    let mark = audit::mark()?;
    b.signal(Signal::STOP)?;
    let stopped = Instant::now();
    // It has to read everything first, on a busy machine.
    until_leads(test, a, TAKEOVER + Duration::from_secs(10)).await?;
    let took = stopped.elapsed();
    let goes_on = Timestamp::now();
    b.signal(Signal::CONT)?;
    let ended = b.end(Duration::from_secs(5)).await?;
    ensure!(ended.code() == Some(1), "it ended with {ended}");
    wait::until("the first one to write again", TAKEOVER, || async {
        Ok((!writes(test, mark)?["a"].is_empty()).then_some(()))
    })
    .await?;
    let late = writes(test, mark)?["b"].iter().filter(|at| **at >= goes_on).count();
    figures(&json!({"test": "was_stopped", "takeover_seconds": took.as_secs_f64(), "late_writes": late}))?;
    ensure!(late == 0, "it wrote {late} times after another one led");
    Ok(())
}
