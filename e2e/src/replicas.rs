//! Notices the moment at which a Deployment is told to have workers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use tokio::task::JoinHandle;

use crate::stage::NAMESPACE;

/// The label that tells which TaskQueue an object belongs to.
const TASK_QUEUE: &str = "soloist.dev/task-queue";

/// A watch on the Deployments of the demo.
pub(crate) struct Watch {
    first: Arc<Mutex<BTreeMap<String, f64>>>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Starts to watch, in the background.
    pub(crate) fn start(client: kube::Client) -> Self {
        let first = Arc::new(Mutex::new(BTreeMap::new()));
        let seen = first.clone();
        let task = tokio::spawn(async move {
            let deployments: Api<Deployment> = Api::namespaced(client, NAMESPACE);
            let mut changes = watcher(deployments, watcher::Config::default())
                .default_backoff()
                .applied_objects()
                .into_stream()
                .boxed();
            loop {
                match changes.try_next().await {
                    Ok(Some(deployment)) => note(&seen, &deployment),
                    Ok(None) => return,
                    // The watcher goes on by itself after an error.
                    Err(error) => eprintln!("watch the Deployments: {error}"),
                }
            }
        });
        Self { first, task }
    }

    /// Seconds from `since` (Unix time) to the moment at which the last of `queues` was first scaled out.
    pub(crate) fn first_scale_out(&self, queues: &[&str], since: f64) -> Result<f64> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let mut longest = 0.0_f64;
        for queue in queues {
            let at = first.get(*queue).with_context(|| format!("{queue} was never scaled out"))?;
            longest = longest.max(at - since);
        }
        Ok(longest)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn note(seen: &Mutex<BTreeMap<String, f64>>, deployment: &Deployment) {
    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default();
    if let Some(queue) = deployment.labels().get(TASK_QUEUE)
        && replicas > 0
    {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.entry(queue.clone()).or_insert_with(crate::unix_now);
    }
}
