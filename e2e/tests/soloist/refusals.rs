//! What can't work is refused with words that name it, and harms nothing else.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::soloist::{self, Test};
use e2e::wait;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(180);
/// How long something that must not happen is waited for: several rounds of the operator, and time for a pod to start.
const HOLDS: Duration = Duration::from_secs(8);
/// A kubelet looks at the Secrets that are mounted about once a minute, and its cache may be as old again.
const MOUNTED_SECRET: Duration = Duration::from_secs(150);

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn min_above_max_is_refused_by_kubectl_apply() -> Result<()> {
    let test = Test::new("min-above-max").await?;
    test.run(DEADLINE, async {
        let refused = test.task_queue("jobs", "{minReplicas: 5, maxReplicas: 2}").await;
        let message = format!("{:#}", refused.err().context("it was accepted")?);
        ensure!(message.contains("minReplicas") && message.contains("maxReplicas"), "{message}");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_missing_secret_is_a_condition_until_it_is_there() -> Result<()> {
    let test = Test::new("missing-secret").await?;
    test.run(DEADLINE, async {
        let yaml = soloist::task_queue("jobs", "{maxReplicas: 1}").replace("name: rabbitmq", "name: broker");
        test.namespace.apply(&yaml).await?;
        let message = test.condition("jobs", "BrokerReachable", "False", "SecretNotFound").await?;
        ensure!(message.contains("broker"), "{message}");
        test.condition("jobs", "Ready", "False", "SecretNotFound").await?;

        test.secret("broker", &test.broker_url).await?;
        test.condition("jobs", "Ready", "True", "Ready").await.map(drop)
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_secret_that_may_not_be_read_is_a_condition_with_the_command_that_helps() -> Result<()> {
    let test = Test::new("forbidden-secret").await?;
    test.run(DEADLINE, async {
        let bindings: kube::Api<k8s_openapi::api::rbac::v1::RoleBinding> = test.namespace.api();
        bindings.delete("soloist-secret-reader", &Default::default()).await?;
        test.task_queue("jobs", "{maxReplicas: 1}").await?;
        let message = test.condition("jobs", "BrokerReachable", "False", "SecretForbidden").await?;
        ensure!(message.contains("kubectl create rolebinding"), "{message}");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_wrong_password_is_a_condition_and_harms_no_other_task_queue() -> Result<()> {
    let test = Test::new("wrong-password").await?;
    test.run(DEADLINE + MOUNTED_SECRET, async {
        test.secret("wrong", &test.broker_url.replace("guest:guest@", "guest:not-the-password@")).await?;
        let yaml = soloist::task_queue("locked-out", "{minReplicas: 1, maxReplicas: 1}")
            .replace("name: rabbitmq", "name: wrong");
        test.namespace.apply(&yaml).await?;
        let message = test.condition("locked-out", "BrokerReachable", "False", "AuthFailed").await?;
        ensure!(!message.contains("not-the-password"), "the message holds the password: {message}");

        // Its worker has begun with the wrong password too.
        wait::until("the locked-out worker to run", soloist::START, || async {
            Ok(test.pods("locked-out").await?.iter().any(soloist::is_running).then_some(()))
        })
        .await?;

        test.task_queue("welcome", "{maxReplicas: 1}").await?;
        test.condition("welcome", "Ready", "True", "Ready").await?;
        let celery = test.celery().await?;
        let result = soloist::send(&celery, "welcome", "tasks.add", (2, 2)).await?;
        ensure!(soloist::value(&result, soloist::START).await? == json!(4), "2 + 2 is not 4");

        // The right password is noticed without a restart, by the operator and by the worker.
        test.secret("wrong", &test.broker_url).await?;
        test.condition("locked-out", "BrokerReachable", "True", "Connected").await?;
        test.condition("locked-out", "QueuesDeclared", "True", "Declared").await?;
        let result = soloist::send(&celery, "locked-out", "tasks.add", (3, 3)).await?;
        ensure!(soloist::value(&result, MOUNTED_SECRET).await? == json!(6), "3 + 3 is not 6");
        let pods = test.pods("locked-out").await?;
        ensure!(soloist::restarts(&pods) == 0, "workers were restarted: {:?}", soloist::names(&pods));
        test.condition("locked-out", "Ready", "True", "Ready").await.map(drop)
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_queue_with_other_arguments_is_reported_and_left_alone() -> Result<()> {
    let test = Test::new("other-arguments").await?;
    test.run(DEADLINE, async {
        let connection = Connection::connect(&test.broker_url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-priority".into(), 5.into());
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare("jobs".into(), durable, arguments.clone()).await?;

        test.task_queue("jobs", "{minReplicas: 1, maxReplicas: 1}").await?;
        let message = test.condition("jobs", "QueuesDeclared", "False", "QueueArgumentMismatch").await?;
        ensure!(message.contains("x-max-priority") && message.contains("jobs"), "{message}");
        test.condition("jobs", "Ready", "False", "QueueArgumentMismatch").await?;

        // Whether there are workers or not: none crashes over it.
        soloist::holds(HOLDS, || async {
            let pods = test.pods("jobs").await?;
            ensure!(soloist::restarts(&pods) == 0, "workers crash: {:?}", soloist::names(&pods));
            Ok(())
        })
        .await?;
        // RabbitMQ refuses to declare a queue that is there with other arguments; a passive look finds one that is there.
        let passive = QueueDeclareOptions { passive: true, ..durable };
        channel
            .queue_declare("jobs".into(), passive, FieldTable::default())
            .await
            .context("the queue is gone")?;
        channel
            .queue_declare("jobs".into(), durable, arguments)
            .await
            .context("the queue has other arguments now")?;
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn the_second_task_queue_that_claims_a_queue_is_refused() -> Result<()> {
    let test = Test::new("claimed").await?;
    test.run(DEADLINE, async {
        test.task_queue("jobs", "{maxReplicas: 1}").await?;
        test.condition("jobs", "Ready", "True", "Ready").await?;
        let second = soloist::task_queue("late", "{minReplicas: 1, maxReplicas: 1}")
            .replace("  worker:", "  queues: [{name: jobs}]\n  worker:");
        test.namespace.apply(&second).await?;
        let message = test.condition("late", "QueuesDeclared", "False", "QueueClaimed").await?;
        ensure!(message.contains("jobs") && message.contains(&test.namespace.name), "{message}");
        soloist::holds(HOLDS, || async {
            let pods = test.pods("late").await?;
            ensure!(pods.is_empty(), "it runs workers all the same: {:?}", soloist::names(&pods));
            Ok(())
        })
        .await?;
        test.condition("jobs", "Ready", "True", "Ready").await.map(drop)
    })
    .await
}
