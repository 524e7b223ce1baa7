//! Notices every change of the number of workers that Deployments are told to have, and when it came.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use tokio::task::JoinHandle;

/// The label that tells which TaskQueue an object belongs to.
const TASK_QUEUE: &str = "soloist.dev/task-queue";

/// One change.
#[derive(Clone, Debug)]
pub struct Change {
    /// The TaskQueue that the Deployment belongs to.
    pub task_queue: String,
    /// How many workers it is to have now.
    pub replicas: i32,
    /// When it was seen, in Unix seconds.
    pub at: f64,
}

/// A watch on the Deployments of a namespace.
pub struct Replicas {
    changes: Arc<Mutex<Vec<Change>>>,
    task: JoinHandle<()>,
}

impl Replicas {
    /// Starts to watch, in the background.
    pub fn watch(client: kube::Client, namespace: &str) -> Self {
        let changes = Arc::new(Mutex::new(Vec::new()));
        let seen = changes.clone();
        let deployments: Api<Deployment> = Api::namespaced(client, namespace);
        let task = tokio::spawn(async move {
            let mut deployments = watcher(deployments, watcher::Config::default())
                .default_backoff()
                .applied_objects()
                .into_stream()
                .boxed();
            loop {
                match deployments.try_next().await {
                    Ok(Some(deployment)) => note(&seen, &deployment),
                    Ok(None) => return,
                    // The watcher goes on by itself after an error.
                    Err(error) => eprintln!("watch the Deployments: {error}"),
                }
            }
        });
        Self { changes, task }
    }

    /// The changes of a TaskQueue's workers that were seen from `since` on (Unix seconds).
    pub fn changes(&self, task_queue: &str, since: f64) -> Vec<Change> {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = |change: &&Change| change.task_queue == task_queue && change.at >= since;
        changes.iter().filter(wanted).cloned().collect()
    }
}

impl Drop for Replicas {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn note(changes: &Mutex<Vec<Change>>, deployment: &Deployment) {
    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default();
    let Some(task_queue) = deployment.labels().get(TASK_QUEUE) else { return };
    let mut changes = changes.lock().unwrap_or_else(PoisonError::into_inner);
    let before = changes.iter().rev().find(|change| &change.task_queue == task_queue);
    if before.is_none_or(|before| before.replicas != replicas) {
        changes.push(Change { task_queue: task_queue.clone(), replicas, at: unix_now() });
    }
}

/// The time, in Unix seconds.
pub fn unix_now() -> f64 {
    jiff::Timestamp::now().as_millisecond() as f64 / 1000.0
}
