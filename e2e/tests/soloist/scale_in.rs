//! Workers with a task stay until it is done. `cargo test-scale-in` tries harder.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::scale_in::{TASK_QUEUE, Trial};
use e2e::soloist::Test;
use serde_json::json;

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn no_worker_is_deleted_before_it_has_drained() -> Result<()> {
    let test = Test::new("scale-in").await?;
    test.run(Duration::from_secs(400), async {
        let trial = Trial::new(&test, 8, (3.0, 8.0)).await?;
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
        ensure!((figures.undrained_deletes, figures.lost, figures.ran_twice) == (0, 0, 0), "{figures:?}");
        Ok(())
    })
    .await
}
