//! TaskQueues whose workers are Celery's own, as they are.
//!
//! There is no image for them: their pods use this machine's Python and the environment of the tests, from folders of the node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::progress::Progress;
use crate::soloist::{self, Test};
use crate::{command, paths, python};

/// Module of the app, and name of the ConfigMap that has it.
const APP: &str = "celery_worker";
const CONFIG_MAP: &str = "celery-worker";

/// Makes such a TaskQueue. `scaling` is YAML in flow style. With the pool `prefork` there is one process for tasks, beside one that answers.
///
/// # Errors
/// If there is no Python with Celery, or the API server refuses it.
pub(crate) async fn task_queue(test: &Test, name: &str, pool: &str, scaling: &str) -> Result<()> {
    let python = python::ensure(&Progress::new(), python::NEWEST).await?;
    let file = paths::repository().join("e2e/python").join(APP).with_extension("py");
    let app = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let app = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CONFIG_MAP},
        "data": {format!("{APP}.py"): app},
    });
    test.namespace.apply(&app.to_string()).await?;
    let mut task_queue: Value = serde_yaml::from_str(&soloist::task_queue(name, scaling))?;
    let worker = &mut task_queue["spec"]["worker"];
    worker["command"] = json!([python, "-m", "celery"]);
    worker["args"] = json!([
        "--workdir=/app",
        format!("--app={APP}"),
        "worker",
        format!("--pool={pool}"),
        "--concurrency=1",
        "--queues=$(SOLOIST_QUEUES)",
        "--hostname=$(SOLOIST_NODE_NAME)",
    ]);
    worker["template"] = template(&folders(&python).await?);
    test.namespace.apply(&task_queue.to_string()).await.map(drop)
}

/// The folders that this Python is in, and those of the system's libraries.
async fn folders(python: &Path) -> Result<Vec<PathBuf>> {
    let mut ask = Command::new(python);
    ask.args(["-c", "import sys; print(sys.prefix); print(sys.base_prefix)"]);
    let own = command::output(&mut ask, Duration::from_secs(30)).await?;
    let own = own.lines().map(PathBuf::from).filter(|folder| !folder.starts_with("/usr"));
    Ok(["/usr", "/lib", "/lib64"].map(PathBuf::from).into_iter().chain(own).collect())
}

fn template(folders: &[PathBuf]) -> Value {
    let name = |index: usize| format!("node-{index}");
    let volumes = folders.iter().enumerate();
    let volumes = volumes.map(|(index, folder)| json!({"name": name(index), "hostPath": {"path": folder}}));
    let mounts = folders.iter().enumerate();
    let mounts =
        mounts.map(|(index, folder)| json!({"name": name(index), "mountPath": folder, "readOnly": true}));
    let app = json!({"name": "app", "configMap": {"name": CONFIG_MAP}});
    let app_mount = json!({"name": "app", "mountPath": "/app"});
    json!({"spec": {
        "volumes": volumes.chain([app]).collect::<Vec<_>>(),
        "containers": [{
            "name": "worker",
            "volumeMounts": mounts.chain([app_mount]).collect::<Vec<_>>(),
            "startupProbe": {
                "exec": {"command": ["/usr/bin/test", "-e", "/tmp/ready"]},
                "periodSeconds": 1, "failureThreshold": 120,
            },
        }],
    }})
}
