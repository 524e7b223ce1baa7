//! Prometheus beside the cluster: it scrapes RabbitMQ, and every pod that asks for it by annotation, once a second.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::certificates::Identity;
use crate::kubernetes::Setup;
use crate::netns::{NODE_ADDRESS, Namespace};
use crate::process::Launch;
use crate::{http, paths, wait};

const NAME: &str = "prometheus";
/// Where it learns which pods to scrape.
const TARGETS: &str = "127.0.0.1:9099";

/// The Prometheus server of a cluster.
#[derive(Clone, Debug)]
pub struct Prometheus {
    namespace: Namespace,
    url: String,
}

impl Prometheus {
    pub(crate) fn own(namespace: Namespace) -> Self {
        Self { namespace, url: format!("http://{NODE_ADDRESS}:9090") }
    }

    pub(crate) fn given(url: String) -> Self {
        Self { namespace: Namespace::of_the_machine(), url }
    }

    /// Where it answers queries, as seen from the cluster's network.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    pub(crate) fn launch(setup: &Setup) -> Result<()> {
        let user = setup.kubeconfig("pod-targets", &Identity { user: "prometheus", group: "prometheus" })?;
        setup.start(
            "pod-targets",
            &[format!("--kubeconfig={}", user.display()), format!("--address={TARGETS}")],
        )?;

        let folder = paths::cluster().join(NAME);
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let config = folder.join("prometheus.json");
        std::fs::write(&config, serde_json::to_vec_pretty(&configuration())?)
            .with_context(|| format!("write {}", config.display()))?;
        let launch = Launch::new(NAME, "prometheus").args([
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", folder.join("data").display()),
            "--web.listen-address=0.0.0.0:9090".to_owned(),
            "--log.level=warn".to_owned(),
        ]);
        setup.launch(NAME, launch).map(drop)
    }

    pub(crate) async fn ready(&self) -> Result<()> {
        let url = format!("{}/-/ready", self.url());
        self.namespace
            .run(move || async move {
                wait::until("Prometheus to be ready", Duration::from_secs(30), || async {
                    http::get(&url).await.map(Some)
                })
                .await
            })
            .await
            .map(drop)
    }
}

/// The usual three annotations (`prometheus.io/scrape`, `port`, `path`) say which pods to scrape and where;
/// `e2e/cluster/kubernetes/targets.go` reads them.
fn configuration() -> serde_json::Value {
    json!({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [
            {
                "job_name": "rabbitmq",
                "static_configs": [{"targets": [format!("{NODE_ADDRESS}:15692")]}],
                "metrics_path": "/metrics/per-object",
            },
            {
                "job_name": "pods",
                "http_sd_configs": [{"url": format!("http://{TARGETS}/targets"), "refresh_interval": "1s"}],
                // As the chart's monitors have it: a TaskQueue's series carry its own namespace, and workers the name of their TaskQueue.
                "honor_labels": true,
                "relabel_configs": [{"source_labels": ["task_queue"], "target_label": "taskqueue"}],
            },
        ],
    })
}
