//! What goes wrong around the operator, and whom it harms: nobody else. Each test has operators of its own, and a proxy between them and
//! what is to fail, so that they run side by side.

mod api_server;
mod churn;
mod leadership;
mod namespaces;
mod neighbours;
mod node;
mod overdue;
mod storm;

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::operator::Instance;
use e2e::soloist::{self, Test};
use e2e::wait;
use kube::ResourceExt;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};

/// Runs the body of a test; if it fails, its operators' logs are shown too.
async fn run(test: &Test, within: Duration, body: impl Future<Output = Result<()>>) -> Result<()> {
    let outcome = test.run(within, body).await;
    if outcome.is_err() {
        for name in ["a", "b"] {
            let log = std::fs::read_to_string(e2e::operator::log_file(&test.namespace.name, name));
            let log = log.unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("----- operator {name}\n{}", lines[lines.len().saturating_sub(80)..].join("\n"));
        }
    }
    outcome
}

/// Prints figures, also when the test passes, of which cargo would show nothing.
fn figures(figures: &Value) -> Result<()> {
    writeln!(std::io::stdout(), "{figures}").context("print")
}

/// How long a test goes on that could do so for a day; the variable says so, in seconds.
fn duration(variable: &str, usual: u64) -> Result<Duration> {
    let seconds = match std::env::var(variable) {
        Ok(seconds) => seconds.parse().with_context(|| format!("{variable} is no number of seconds"))?,
        Err(_) => usual,
    };
    Ok(Duration::from_secs(seconds))
}

/// A TaskQueue whose pods are for a node that doesn't exist: what the operator does is looked at, not what workers do.
fn without_workers(name: &str, scaling: &str) -> String {
    let nowhere = "    template: {spec: {nodeSelector: {soloist.dev/e2e: nowhere}}}\n  scaling:";
    soloist::task_queue(name, scaling).replacen("  scaling:", nowhere, 1)
}

/// Changes the spec of a TaskQueue.
async fn change(test: &Test, name: &str, max_replicas: u32) -> Result<()> {
    let patch = json!({"spec": {"scaling": {"maxReplicas": max_replicas}}});
    test.task_queues().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

/// Waits until the status of every TaskQueue is about its spec as it is now.
async fn until_observed(test: &Test, within: Duration) -> Result<()> {
    let task_queues = test.task_queues();
    wait::until("every TaskQueue to be observed", within, || async {
        for task_queue in task_queues.list(&ListParams::default()).await?.items {
            let observed = task_queue.data["status"]["observedGeneration"].as_i64();
            ensure!(observed == task_queue.metadata.generation, "{} isn't", task_queue.name_any());
        }
        Ok(Some(()))
    })
    .await
}

/// The installed operator is kept out, and one of the test's own started.
async fn own_operator(test: &Test, url: &str) -> Result<Instance> {
    e2e::operator::keep_installed_out(test).await?;
    let instance = Instance::start(test, "a", url).await?;
    instance.ready().await?;
    Ok(instance)
}
