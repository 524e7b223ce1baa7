//! What somebody sees and does with kubectl.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::command;
use e2e::go_tools::GoTools;
use e2e::soloist::{self, START, Test};
use tokio::process::Command;

const DEADLINE: Duration = Duration::from_secs(180);
/// How long something that must not happen is waited for: several rounds of the operator.
const HOLDS: Duration = Duration::from_secs(4);

async fn kubectl(test: &Test, args: &[&str]) -> Result<String> {
    let mut kubectl = Command::new(GoTools::built()?.program("kubectl"));
    kubectl
        .env("KUBECONFIG", test.cluster.kubeconfig())
        .args(["--namespace", &test.namespace.name])
        .args(args);
    command::output(&mut kubectl, START + Duration::from_secs(5)).await
}

/// An autoscaler that allows two workers.
const AUTOSCALER: &str = "
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: jobs}
spec:
  scaleTargetRef: {apiVersion: soloist.dev/v1alpha1, kind: TaskQueue, name: jobs}
  maxReplicas: 2
  metrics: [{type: External, external: {metric: {name: nowhere}, target: {type: Value, value: 1}}}]
";

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn get_wait_and_scale_work_as_for_a_deployment() -> Result<()> {
    let test = Test::new("kubectl").await?;
    test.run(DEADLINE, async {
        test.task_queue("jobs", "{minReplicas: 1, maxReplicas: 5}").await?;
        kubectl(&test, &["wait", "--for=condition=Ready", "taskqueue/jobs", "--timeout=60s"]).await?;
        let table = kubectl(&test, &["get", "tq"]).await?;
        for column in
            ["NAME", "READY", "BACKLOG", "RUNNING", "REPLICAS", "DESIRED", "MIN", "MAX", "SCALING", "AGE"]
        {
            ensure!(table.contains(column), "{column} is missing: {table}");
        }
        ensure!(kubectl(&test, &["get", "tq", "-o", "wide"]).await?.contains("MESSAGE"));

        kubectl(&test, &["scale", "tq/jobs", "--replicas=3"]).await?;
        test.until_replicas("jobs", 3, START).await?;
        let selector = "jsonpath={.status.selector} {.status.replicas}";
        let scale = kubectl(&test, &["get", "tq", "jobs", "--subresource=scale", "-o", selector]).await?;
        ensure!(scale.starts_with("soloist.dev/task-queue=jobs "), "{scale}");

        // Without a metric, all that an autoscaler of others' can do is to see that there are too many.
        test.namespace.apply(AUTOSCALER).await?;
        test.until_replicas("jobs", 2, START).await?;
        let able = "--for=condition=AbleToScale";
        kubectl(&test, &["wait", able, "horizontalpodautoscaler/jobs", "--timeout=60s"]).await?;
        let scaled_by = kubectl(&test, &["get", "tq", "jobs", "-o", "jsonpath={.spec.replicas}"]).await?;
        ensure!(scaled_by == "2", "spec.replicas is {scaled_by:?}");

        // A broken Secret makes it not ready, a right one ready again.
        test.secret("rabbitmq", "redis://not-a-broker").await?;
        kubectl(&test, &["wait", "--for=condition=Ready=false", "taskqueue/jobs", "--timeout=60s"]).await?;
        test.secret("rabbitmq", &test.broker_url).await?;
        kubectl(&test, &["wait", "--for=condition=Ready", "taskqueue/jobs", "--timeout=60s"]).await.map(drop)
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn an_annotation_holds_the_number_of_workers_until_it_is_removed() -> Result<()> {
    let test = Test::new("paused").await?;
    test.run(DEADLINE, async {
        test.task_queue("jobs", "{maxReplicas: 3, tasksPerWorker: 1}").await?;
        test.condition("jobs", "Ready", "True", "Ready").await?;
        kubectl(&test, &["annotate", "tq", "jobs", "soloist.dev/paused=true"]).await?;
        let message = test.condition("jobs", "ScalingActive", "False", "Paused").await?;
        ensure!(message.contains("annotation soloist.dev/paused"), "{message}");
        let table = kubectl(&test, &["get", "tq", "jobs"]).await?;
        ensure!(table.contains("Paused"), "{table}");

        let celery = test.celery().await?;
        let result = soloist::send(&celery, "jobs", "tasks.add", (2, 2)).await?;
        soloist::holds(HOLDS, async || {
            let replicas = test.replicas("jobs").await?;
            ensure!(replicas == 0, "{replicas} replicas");
            Ok(())
        })
        .await?;
        kubectl(&test, &["annotate", "tq", "jobs", "soloist.dev/paused-"]).await?;
        soloist::value(&result, START).await?;
        test.condition("jobs", "ScalingActive", "True", "Active").await.map(drop)
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn misspelt_and_immutable_fields_are_refused_by_name() -> Result<()> {
    let test = Test::new("strict").await?;
    test.run(DEADLINE, async {
        let file = std::env::temp_dir().join(format!("{}.yaml", test.namespace.name));
        let path = file.display().to_string();
        let apply = async |yaml: &str| {
            std::fs::write(&file, yaml)?;
            kubectl(&test, &["apply", "--validate=strict", "-f", &path]).await
        };
        let yaml = soloist::task_queue("jobs", "{maxReplicas: 1}");
        let misspelt = apply(&yaml.replace("maxReplicas", "maxReplica")).await;
        let unquoted = apply(&yaml.replace("maxReplicas", "mode: Off, maxReplicas")).await;
        let queue = |kind: &str| {
            yaml.replace("spec:\n", &format!("spec:\n  queues: [{{name: jobs, type: {kind}}}]\n"))
        };
        apply(&queue("classic")).await?;
        let changed = apply(&queue("quorum")).await;
        std::fs::remove_file(&file)?;
        for (refused, word) in
            [(misspelt, "maxReplica"), (unquoted, "must be of type string: \"boolean\""), (changed, "type")]
        {
            let message = format!("{:#}", refused.err().context("it was accepted")?);
            ensure!(message.contains(word), "it does not name {word}: {message}");
        }
        Ok(())
    })
    .await
}
