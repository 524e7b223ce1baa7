//! Queues that go with their TaskQueue, and deletions that don't wait for ever.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::soloist::{self, START, Test};
use e2e::wait;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};

const DEADLINE: Duration = Duration::from_secs(240);
/// The operator gives up after a minute without a broker.
const GIVE_UP: Duration = Duration::from_secs(100);

/// A TaskQueue with a policy.
fn task_queue(name: &str, policy: &str, scaling: &str) -> String {
    soloist::task_queue(name, scaling).replace("spec:\n", &format!("spec:\n  deletionPolicy: {policy}\n"))
}

/// Deletes a TaskQueue and waits until it is gone.
async fn delete(test: &Test, name: &str, within: Duration) -> Result<()> {
    let task_queues = test.task_queues();
    task_queues.delete(name, &DeleteParams::default()).await?;
    wait::until(&format!("{name} to be gone"), within, || async {
        Ok(task_queues.get_opt(name).await?.is_none().then_some(()))
    })
    .await
}

/// The messages in a queue; none if there is no such queue.
async fn messages(test: &Test, queue: &str) -> Result<Option<u32>> {
    let connection = Connection::connect(&test.broker_url, ConnectionProperties::default()).await?;
    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
    let channel = connection.create_channel().await?;
    let found = channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
    Ok(found.ok().map(|queue| queue.message_count()))
}

/// The note of the event on a TaskQueue with this reason.
async fn event(test: &Test, name: &str, reason: &str) -> Result<String> {
    let events: Api<Event> = test.namespace.api();
    wait::until(&format!("the event {reason} on {name}"), START, || async {
        let all = events.list(&ListParams::default()).await?.items;
        let found = all.into_iter().find(|event| {
            event.reason.as_deref() == Some(reason)
                && event.regarding.as_ref().and_then(|object| object.name.as_deref()) == Some(name)
        });
        Ok(found.and_then(|event| event.note))
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn queues_go_with_their_task_queue_only_where_it_says_so() -> Result<()> {
    let test = Test::new("deletion").await?;
    test.run(DEADLINE, async {
        for (name, policy) in [("keep", "Retain"), ("go", "Delete"), ("full", "DeleteIfEmpty")] {
            test.namespace.apply(&task_queue(name, policy, "{maxReplicas: 1, paused: true}")).await?;
            test.condition(name, "Ready", "True", "Ready").await?;
        }
        let celery = test.celery().await?;
        for name in ["keep", "go", "full"] {
            soloist::send(&celery, name, "tasks.add", (1, 1)).await?;
            let finalizers = test.task_queues().get(name).await?.finalizers().to_vec();
            ensure!(finalizers.is_empty() == (name == "keep"), "{name} has {finalizers:?}");
            delete(&test, name, START).await?;
        }
        ensure!(messages(&test, "keep").await? == Some(1) && messages(&test, "full").await? == Some(1));
        ensure!(messages(&test, "go").await?.is_none() && messages(&test, "go.dead").await?.is_none());
        let gone = event(&test, "go", "QueuesDeleted").await?;
        ensure!(gone.contains("go, go.dead"), "{gone}");
        let kept = event(&test, "full", "QueuesKept").await?;
        ensure!(kept.contains("queue `full`: 1 messages wait in it"), "{kept}");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn the_worker_finishes_its_task_before_its_queue_goes() -> Result<()> {
    let test = Test::new("deletion-busy").await?;
    test.run(DEADLINE, async {
        test.namespace.apply(&task_queue("jobs", "Delete", "{minReplicas: 1, maxReplicas: 1}")).await?;
        test.condition("jobs", "WorkersAvailable", "True", "WorkersReady").await?;
        let celery = test.celery().await?;
        let result = soloist::send(&celery, "jobs", "tasks.sleep", (6.0,)).await?;
        wait::until("the task to run", START, || async {
            Ok((messages(&test, "jobs").await? == Some(0)).then_some(()))
        })
        .await?;
        delete(&test, "jobs", START).await?;
        soloist::value(&result, Duration::from_secs(1)).await.context("the task was cut off")?;
        ensure!(messages(&test, "jobs").await?.is_none(), "the queue is still there");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_deletion_without_broker_or_secret_ends_all_the_same() -> Result<()> {
    let test = Test::new("deletion-stuck").await?;
    test.run(DEADLINE, async {
        test.secret("nowhere", "amqp://guest:guest@10.88.0.1:9/").await?;
        for (name, secret) in
            [("unreachable", "nowhere"), ("secretless", "missing"), ("impatient", "nowhere")]
        {
            let yaml = task_queue(name, "Delete", "{maxReplicas: 1}");
            test.namespace.apply(&yaml.replace("name: rabbitmq", &format!("name: {secret}"))).await?;
            test.condition(
                name,
                "Ready",
                "False",
                if secret == "missing" { "SecretNotFound" } else { "BrokerUnreachable" },
            )
            .await?;
            test.task_queues().delete(name, &DeleteParams::default()).await?;
        }
        // Who doesn't want to wait says so.
        test.namespace.apply(&task_queue("impatient", "Retain", "{maxReplicas: 1}")).await?;
        for (name, within) in [("impatient", START), ("unreachable", GIVE_UP), ("secretless", GIVE_UP)] {
            wait::until(&format!("{name} to be gone"), within, || async {
                Ok(test.task_queues().get_opt(name).await?.is_none().then_some(()))
            })
            .await?;
        }
        let kept = event(&test, "unreachable", "QueuesKept").await?;
        ensure!(kept.contains("queue `unreachable`") && kept.contains("10.88.0.1:9"), "{kept}");
        Ok(())
    })
    .await
}
