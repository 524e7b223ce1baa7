//! Workers with a task stay until it is done. `cargo test-scale-in` tries harder.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::scale_in::{Kind, TASK_QUEUE, Trial, interrupted_by_installed};
use e2e::soloist::{START, Test, is_ready};
use e2e::wait;
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn no_worker_is_deleted_before_it_has_drained() -> Result<()> {
    let test = Test::new("scale-in").await?;
    test.run(Duration::from_secs(400), async {
        let trial = Trial::new(&test, 8, Kind::Soloist, (3.0, 8.0)).await?;
        test.condition(TASK_QUEUE, "ScaleInProtection", "True", "Guaranteed").await?;
        // More tasks than workers: one that went on consuming would take another.
        trial.make_busy(2).await?;
        trial.scale(Some(0)).await?;
        trial.until_gone().await?;

        // A rollout, while they are busy with the rest.
        trial.make_busy(1).await?;
        trial.change(json!({"spec": {"worker": {"env": [{"name": "ROLLOUT", "value": "1"}]}}})).await?;
        trial.finish().await?;
        let figures = trial.figures().await?;
        println!("{figures:?}");
        ensure!(figures.deletes >= 16, "{figures:?}");
        ensure!(figures.are_good(), "{figures:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn celerys_own_workers_come_and_go_as_ours_do() -> Result<()> {
    come_and_go(Kind::Celery, (3.0, 5.0)).await
}

/// Longer than a worker may say nothing before the operator doubts it.
const LONG: (f64, f64) = (11.0, 12.0);

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn so_do_those_of_celerys_solo_pool_which_say_nothing_while_they_work() -> Result<()> {
    come_and_go(Kind::CelerySolo, LONG).await
}

async fn come_and_go(kind: Kind, seconds: (f64, f64)) -> Result<()> {
    let test = Test::new("celery-workers").await?;
    test.run(Duration::from_secs(300), async {
        let trial = Trial::new(&test, 3, kind, seconds).await?;
        trial.make_busy(2).await?;
        trial.scale(Some(0)).await?;
        trial.until_gone().await?;
        // The autoscaler brings them back for what is left. That may be nothing: one of the solo pool hears what it is told between two tasks at
        // the earliest.
        trial.finish().await?;
        let figures = trial.figures().await?;
        println!("{figures:?}");
        ensure!(figures.deletes >= 3 && figures.are_good(), "{figures:?}");
        Ok(())
    })
    .await
}

/// Says what the API server does about a deletion that the policy doesn't allow.
async fn on_violation(test: &Test, action: &str) -> Result<()> {
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(test.client.clone());
    let patch = Patch::Merge(json!({"spec": {"validationActions": [action]}}));
    bindings.patch("soloist-scale-in", &PatchParams::default(), &patch).await?;
    Ok(())
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn without_the_policy_idle_workers_go_drained_and_what_interrupts_a_task_is_counted() -> Result<()> {
    let test = Test::new("best-effort").await?;
    let outcome = test
        .run(Duration::from_secs(200), async {
            on_violation(&test, "Audit").await?;
            let trial = Trial::new(&test, 2, Kind::Soloist, (8.0, 10.0)).await?;
            let message = test.condition(TASK_QUEUE, "ScaleInProtection", "False", "BestEffort").await?;
            ensure!(message.contains("soloist-scale-in"), "{message}");
            trial.scale(Some(2)).await?;
            until_pods(&test, 2).await?;
            trial.scale(Some(1)).await?;
            until_pods(&test, 1).await?;
            let figures = trial.figures().await?;
            ensure!((figures.deletes, figures.undrained_deletes) == (1, 0), "{figures:?}");

            // Kubernetes is told to take both, and nothing holds it up. Their grace period is longer than their tasks.
            let before = interrupted_by_installed(&test).await?;
            trial.make_busy(1).await?;
            trial.scale_deployment(0).await?;
            trial.until_gone().await?;
            let figures = trial.figures().await?;
            let interrupted = interrupted_by_installed(&test).await? - before;
            println!("{figures:?}, {interrupted} interrupted");
            ensure!((figures.deletes, figures.undrained_deletes) == (3, 2), "{figures:?}");
            ensure!((figures.lost, figures.ran_twice) == (0, 0), "{figures:?}");
            ensure!(interrupted == 2.0, "{interrupted} tasks are counted");

            on_violation(&test, "Deny").await?;
            test.condition(TASK_QUEUE, "ScaleInProtection", "True", "Guaranteed").await
        })
        .await;
    on_violation(&test, "Deny").await?;
    outcome.map(drop)
}

/// Waits until there are so many workers, all of them ready.
async fn until_pods(test: &Test, wanted: usize) -> Result<()> {
    wait::until(&format!("{wanted} workers"), START, || async {
        let pods = test.pods(TASK_QUEUE).await?;
        ensure!(pods.len() == wanted && pods.iter().all(is_ready), "there are {}", pods.len());
        Ok(Some(()))
    })
    .await
}
