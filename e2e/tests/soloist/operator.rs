//! The operator itself: who leads when one goes, what it repairs, and what it leaves alone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::chart::NAMESPACE;
use e2e::soloist::{START, Test};
use e2e::{audit, wait};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(180);
/// A lease lasts 15 s; the one that waits looks every 2 s.
const TAKEOVER: Duration = Duration::from_secs(20);
/// An operator that stops gives its lease up.
const HANDOVER: Duration = Duration::from_secs(3);
/// What the watch shows is repaired at once; the rest is for a busy machine.
const REPAIR: Duration = Duration::from_secs(5);

async fn lease(test: &Test) -> Result<Lease> {
    let leases: Api<Lease> = Api::namespaced(test.client.clone(), NAMESPACE);
    Ok(leases.get("soloist-operator").await?)
}

/// The operator's pod that leads.
pub(crate) async fn leader(test: &Test) -> Result<String> {
    lease(test)
        .await?
        .spec
        .and_then(|spec| spec.holder_identity)
        .filter(|holder| !holder.is_empty())
        .context("nobody leads")
}

/// How often the lease has passed from one to another.
async fn transitions(test: &Test) -> Result<i32> {
    lease(test).await?.spec.and_then(|spec| spec.lease_transitions).context("the lease counts no transitions")
}

/// Waits until as many operators are ready as there are to be: one that is to take over is there.
async fn until_all_are_ready(test: &Test) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(test.client.clone(), NAMESPACE);
    wait::until("all operators to be ready", START, || async {
        let status = deployments.get("soloist").await?.status.context("no status")?;
        Ok((status.ready_replicas == Some(2) && status.unavailable_replicas.is_none()).then_some(()))
    })
    .await
}

/// The number of an operator's process: containers are processes of this machine, with their pod's name in the environment.
fn process_of(pod: &str) -> Result<rustix::process::Pid> {
    let wanted = format!("POD_NAME={pod}");
    for entry in std::fs::read_dir("/proc").context("list /proc")? {
        let entry = entry?;
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that has ended meanwhile can't be read.
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()) {
            return rustix::process::Pid::from_raw(number).context("process 0");
        }
    }
    anyhow::bail!("no process has {wanted}")
}

/// Deletes the Deployment of a TaskQueue and waits until the operator has made it anew.
async fn repairs(test: &Test, within: Duration) -> Result<Duration> {
    let deployments: Api<Deployment> = test.namespace.api();
    let before = test.deployment("jobs").await?.metadata.uid;
    deployments.delete("jobs-worker", &DeleteParams::background()).await?;
    let deleted = Instant::now();
    wait::until("the Deployment to be there again", within, || async {
        let now = deployments.get_opt("jobs-worker").await?;
        Ok(now.is_some_and(|now| now.metadata.uid != before).then_some(()))
    })
    .await?;
    Ok(deleted.elapsed())
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_leader_that_stops_is_succeeded_within_3_seconds_and_one_that_is_killed_within_20() -> Result<()> {
    let test = Test::new("takeover").await?;
    test.run(DEADLINE, async {
        test.task_queue("jobs", "{minReplicas: 1, maxReplicas: 1}").await?;
        test.condition("jobs", "Ready", "True", "Ready").await?;

        until_all_are_ready(&test).await?;
        let (first, count) = (leader(&test).await?, transitions(&test).await?);
        let pods: Api<Pod> = Api::namespaced(test.client.clone(), NAMESPACE);
        pods.delete(&first, &DeleteParams::default()).await?;
        let stopped = Instant::now();
        wait::until("another leader", HANDOVER, || async {
            Ok((leader(&test).await? != first).then_some(()))
        })
        .await?;
        let handover = stopped.elapsed();
        ensure!(transitions(&test).await? > count, "the lease did not pass on");

        until_all_are_ready(&test).await?;
        rustix::process::kill_process(process_of(&leader(&test).await?)?, rustix::process::Signal::KILL)?;
        let killed = Instant::now();
        repairs(&test, TAKEOVER).await?;
        let takeover = killed.elapsed();
        println!(
            "a leader that stopped was succeeded in {handover:.1?}, one that was killed in {takeover:.1?}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn what_it_owns_is_repaired_and_what_it_does_not_is_left_alone() -> Result<()> {
    let test = Test::new("repair").await?;
    test.run(DEADLINE, async {
        test.task_queue("jobs", "{minReplicas: 1, maxReplicas: 1}").await?;
        test.condition("jobs", "Ready", "True", "Ready").await?;
        let took = repairs(&test, REPAIR).await?;
        println!("a deleted Deployment was there again after {took:.1?}");

        let deployments: Api<Deployment> = test.namespace.api();
        let image = |deployment: &Deployment| {
            let template = deployment.spec.as_ref().map(|spec| &spec.template);
            template.and_then(|template| template.spec.as_ref()?.containers.first()?.image.clone())
        };
        let wanted = image(&test.deployment("jobs").await?);
        let foreign = json!({
            "metadata": {"annotations": {"example.com/note": "mine"}},
            "spec": {"template": {"spec": {"containers": [{"name": "worker", "image": "example.com/other"}]}}},
        });
        deployments.patch("jobs-worker", &PatchParams::default(), &Patch::Strategic(foreign)).await?;
        wait::until("the image to be the TaskQueue's again", REPAIR, || async {
            Ok((image(&test.deployment("jobs").await?) == wanted).then_some(()))
        })
        .await?;
        let annotations = test.deployment("jobs").await?.metadata.annotations.unwrap_or_default();
        ensure!(annotations.get("example.com/note").is_some_and(|note| note == "mine"), "{annotations:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn nothing_is_written_while_nothing_changes() -> Result<()> {
    let test = Test::new("idle").await?;
    test.run(DEADLINE, async {
        for name in ["one", "two", "three"] {
            test.task_queue(name, "{minReplicas: 1, maxReplicas: 1}").await?;
        }
        for name in ["one", "two", "three"] {
            test.condition(name, "Ready", "True", "Ready").await?;
            test.condition(name, "WorkersAvailable", "True", "WorkersReady").await?;
        }
        // What is known of the workers settles within a few heartbeats.
        let quiet = Duration::from_secs(20);
        wait::until("20 s without a write", Duration::from_secs(90), || async {
            let mark = audit::mark()?;
            tokio::time::sleep(quiet).await;
            let writes = audit::writes_by_operator(mark, &test.namespace.name)?;
            ensure!(writes.is_empty(), "it wrote {writes:?}");
            Ok(Some(()))
        })
        .await?;
        let mark = audit::mark()?;
        tokio::time::sleep(quiet).await;
        for event in audit::since(mark)?.iter().filter(|event| event.is_by_operator_in(&test.namespace.name))
        {
            // Secrets may not be watched; those in use are read again every 30 s, by name.
            let named = event.verb == "get" && event.is_about("secrets");
            ensure!(named || event.verb == "watch", "it asked: {event:?}");
        }
        Ok(())
    })
    .await
}
