//! A queue that is to have another type, which RabbitMQ can't change, while producers send all the time.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::paths;
use e2e::soloist::{self, START, Test};
use e2e::wait;
use futures_util::future::try_join;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

const DEADLINE: Duration = Duration::from_secs(300);
/// Longer than the longest countdown of the calls, which is a second, and a Celery delay that is rounded up.
const QUIET: Duration = Duration::from_secs(3);

/// A Celery program that calls tasks all the time.
struct Producer {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

/// What it says at its end.
#[derive(Debug, Deserialize)]
struct Calls {
    called: u32,
    right: u32,
}

impl Producer {
    /// Starts it, and waits until it calls.
    async fn start(test: &Test, queue: &str, kind: &str) -> Result<Self> {
        let python = std::env::var("PYTHON").context("PYTHON is one with Celery: cargo e2e")?;
        let mut child = Command::new(python)
            .arg(paths::repository().join("e2e/tests/soloist/calls.py"))
            .args([queue, kind])
            .env("BROKER_URL", &test.broker_url)
            .env("RESULT_URL", test.cluster.redis.url())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start the producer")?;
        let mut lines = BufReader::new(child.stdout.take().context("standard output is piped")?).lines();
        let calling = tokio::time::timeout(START, lines.next_line()).await.context("the first call")??;
        ensure!(calling.as_deref() == Some("calling"), "it says {calling:?}");
        Ok(Self { child, lines })
    }

    /// Ends its calls, and has it read all results.
    async fn stop(mut self) -> Result<Calls> {
        drop(self.child.stdin.take());
        let last = tokio::time::timeout(DEADLINE, self.lines.next_line()).await.context("the results")??;
        Ok(serde_json::from_str(&last.context("it says nothing")?)?)
    }
}

/// A TaskQueue with one queue of its name, which goes with it when it is empty.
fn task_queue(name: &str, kind: &str) -> String {
    let queues =
        format!("spec:\n  deletionPolicy: DeleteIfEmpty\n  queues: [{{name: {name}, type: {kind}}}]\n");
    soloist::task_queue(name, "{minReplicas: 1, maxReplicas: 2}").replace("spec:\n", &queues)
}

/// Waits as somebody would who looks at `kubectl get tq`, and deletes a TaskQueue that is of no more use, and its queue.
async fn retire(test: &Test, name: &str) -> Result<()> {
    let task_queues = test.task_queues();
    wait::until(&format!("{name} to be done"), START, || async {
        soloist::holds(QUIET, async || {
            let status = task_queues.get(name).await?.data["status"].clone();
            ensure!(
                status["ready"] == 0 && status["running"] == 0,
                "it has {} and {}",
                status["ready"],
                status["running"]
            );
            Ok(())
        })
        .await
        .map(Some)
    })
    .await?;
    task_queues.delete(name, &DeleteParams::default()).await?;
    wait::until(&format!("{name} to be gone"), START, || async {
        Ok(task_queues.get_opt(name).await?.is_none().then_some(()))
    })
    .await
}

/// The way of docs/taskqueue.md, there and back, so that in the end the queue has its name and another type.
#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_queue_gets_another_type_and_nothing_is_lost_while_producers_send() -> Result<()> {
    let test = Test::new("other-type").await?;
    test.run(DEADLINE, async {
        let mut calls = Vec::new();
        test.namespace.apply(&task_queue("letters", "classic")).await?;
        test.condition("letters", "Ready", "True", "Ready").await?;
        let mut producer = Producer::start(&test, "letters", "classic").await?;

        let quorum = json!({"spec": {"queues": [{"name": "letters", "type": "quorum"}]}});
        let patched =
            test.task_queues().patch("letters", &PatchParams::default(), &Patch::Merge(&quorum)).await;
        let refused = patched.err().context("the type was changed")?.to_string();
        ensure!(refused.contains("make another TaskQueue"), "{refused}");

        for (from, to) in [("letters", "letters-2"), ("letters-2", "letters")] {
            test.namespace.apply(&task_queue(to, "quorum")).await?;
            test.condition(to, "Ready", "True", "Ready").await?;
            // A rollout of the producers: for a while both are there.
            let next = Producer::start(&test, to, "quorum").await?;
            let last = std::mem::replace(&mut producer, next);
            calls.push(try_join(last.stop(), retire(&test, from)).await?.0);
        }
        calls.push(producer.stop().await?);
        println!("calls: {calls:?}");
        ensure!(calls.iter().all(|calls| calls.called > 0 && calls.called == calls.right), "lost: {calls:?}");
        Ok(())
    })
    .await
}
