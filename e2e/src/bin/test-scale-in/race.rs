//! A worker's mark is removed, as when load returns, while the ReplicaSet controller deletes a pod. Whichever comes first, a worker that is
//! told to go on must not be deleted.
//!
//! The pods run on a node that exists by name only: what is raced is the API server and the ReplicaSet controller, and no container.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::benchmark::Verdict;
use e2e::progress::Progress;
use e2e::soloist::Test;
use e2e::wait;
use futures_util::future::try_join_all;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde::Serialize;
use serde_json::json;
use tokio::time::sleep;

/// ReplicaSets that are raced at the same time.
const LANES: u32 = 10;
const SETTLED: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    test: &'static str,
    tries: u32,
    /// The mark was removed first.
    resumed: u32,
    /// The deletion came first.
    deleted: u32,
    /// The mark was removed first, and the pod was deleted all the same.
    resumed_and_deleted: u32,
}

impl Verdict for Outcome {
    fn is_good(&self) -> bool {
        // A race that one of the two always wins is none.
        self.resumed_and_deleted == 0 && self.resumed > self.tries / 20 && self.deleted > self.tries / 20
    }
}

/// Runs the race so many times.
pub(crate) async fn race(test: &Test, progress: &Progress, tries: u32) -> Result<Outcome> {
    let nodes: Api<Node> = Api::all(test.client.clone());
    let node = test.namespace.name.clone();
    nodes
        .create(&PostParams::default(), &serde_json::from_value(json!({"metadata": {"name": node}}))?)
        .await?;
    let lanes = (0..LANES).map(|number| async move {
        let lane = Lane::new(test, number).await?;
        lane.run(progress, tries.div_ceil(LANES)).await
    });
    let raced = try_join_all(lanes).await;
    nodes.delete(&node, &DeleteParams::default()).await?;
    let mut outcome =
        Outcome { test: "scale_in_race", tries: 0, resumed: 0, deleted: 0, resumed_and_deleted: 0 };
    for lane in raced? {
        outcome.tries += lane.tries;
        outcome.resumed += lane.resumed;
        outcome.deleted += lane.deleted;
        outcome.resumed_and_deleted += lane.resumed_and_deleted;
    }
    Ok(outcome)
}

struct Lane {
    replica_sets: Api<ReplicaSet>,
    pods: Api<Pod>,
    name: String,
}

impl Lane {
    async fn new(test: &Test, number: u32) -> Result<Self> {
        let name = format!("lane-{number}");
        let labels = json!({"soloist.dev/task-queue": name});
        let replica_set = json!({
            "metadata": {"name": name},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "nodeName": test.namespace.name,
                        "tolerations": [{"operator": "Exists"}],
                        // Nobody is there to end them.
                        "terminationGracePeriodSeconds": 0,
                        "containers": [{"name": "worker", "image": "none"}],
                    },
                },
            },
        });
        let lane = Self { replica_sets: test.namespace.api(), pods: test.namespace.api(), name };
        lane.replica_sets.create(&PostParams::default(), &serde_json::from_value(replica_set)?).await?;
        Ok(lane)
    }

    async fn run(&self, progress: &Progress, tries: u32) -> Result<Outcome> {
        let mut outcome =
            Outcome { test: "scale_in_race", tries, resumed: 0, deleted: 0, resumed_and_deleted: 0 };
        let mut wait = Duration::from_millis(20);
        for number in 1..=tries {
            let marked = self.mark().await?;
            let generation = self.scale(1).await?;
            sleep(wait).await;
            // Ever closer to the moment at which the deletion comes.
            if self.unmark(&marked).await? {
                outcome.resumed += 1;
                wait = wait.mul_f64(1.1) + Duration::from_micros(100);
                self.until_observed(generation).await?;
                let there = self.pods.get_opt(&marked.name_any()).await?;
                if there.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some()) {
                    eprintln!("{} was deleted after its mark was removed", marked.name_any());
                    outcome.resumed_and_deleted += 1;
                }
            } else {
                outcome.deleted += 1;
                wait = wait.mul_f64(0.9);
            }
            self.scale(2).await?;
            if number % 100 == 0 {
                progress.say(format!("{}: {outcome:?}", self.name));
            }
        }
        Ok(outcome)
    }

    /// Labels one of two pods as drained.
    async fn mark(&self) -> Result<Pod> {
        let mine = ListParams::default().labels(&format!("soloist.dev/task-queue={}", self.name));
        let pod = wait::until("two pods", SETTLED, || async {
            let pods = self.pods.list(&mine).await?.items;
            let staying: Vec<&Pod> =
                pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
            ensure!(staying.len() == 2, "{} are there", staying.len());
            Ok(staying.first().map(|pod| pod.name_any()))
        })
        .await?;
        let patch = json!({"metadata": {
            "labels": {"soloist.dev/state": "drained"},
            "annotations": {"controller.kubernetes.io/pod-deletion-cost": "-2147483648"},
        }});
        Ok(self.pods.patch(&pod, &PatchParams::default(), &Patch::Merge(patch)).await?)
    }

    /// Removes the mark as the operator does; whether that won.
    async fn unmark(&self, marked: &Pod) -> Result<bool> {
        let patch = json!({"metadata": {
            "uid": marked.uid(),
            "resourceVersion": marked.resource_version(),
            "labels": {"soloist.dev/state": null},
            "annotations": {"controller.kubernetes.io/pod-deletion-cost": null},
        }});
        match self.pods.patch(&marked.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(pod) => Ok(pod.metadata.deletion_timestamp.is_none()),
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn scale(&self, replicas: u32) -> Result<i64> {
        let patch = json!({"spec": {"replicas": replicas}});
        let patched =
            self.replica_sets.patch(&self.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        patched.metadata.generation.context("no generation")
    }

    /// Waits until the controller has done, or tried, what that generation asks for.
    async fn until_observed(&self, generation: i64) -> Result<()> {
        wait::until("the ReplicaSet controller", SETTLED, || async {
            let status = self.replica_sets.get(&self.name).await?.status.context("no status")?;
            Ok((status.observed_generation >= Some(generation)).then_some(()))
        })
        .await
    }
}
