//! Where the demo plays: a cluster of its own that it starts, or one that is there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use e2e::cluster::{self, Cluster};
use e2e::{command, go_tools::GoTools, images, manifest, paths, progress::Progress, python, wait};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{DeleteParams, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind, ObjectMeta};
use kube::{Api, Client};
use tokio::process::Command;

use crate::QUEUES;

/// The namespace of the three TaskQueues.
pub(crate) const NAMESPACE: &str = "demo";
const OPERATOR_NAMESPACE: &str = "soloist-system";

/// Another cluster than the demo's own. The images must be there already: `cargo cluster images` builds them.
#[derive(Args, Clone)]
pub(crate) struct Elsewhere {
    /// Use the cluster of this kubeconfig instead of starting one
    #[arg(long, requires_all = ["broker_url", "results_url", "prometheus_url"])]
    kubeconfig: Option<PathBuf>,
    /// RabbitMQ, reachable from that cluster's pods and from here: amqp://user:password@host:5672/vhost
    #[arg(long, requires = "kubeconfig")]
    broker_url: Option<String>,
    /// Redis, reachable from that cluster's pods and from here: redis://host:6379/0
    #[arg(long, requires = "kubeconfig")]
    results_url: Option<String>,
    /// A Prometheus that scrapes the operator's pods there
    #[arg(long, requires = "kubeconfig")]
    prometheus_url: Option<String>,
}

/// A cluster with what the demo needs.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) broker_url: String,
    pub(crate) results_url: String,
    pub(crate) prometheus_url: String,
    pub(crate) python: PathBuf,
    kubeconfig: PathBuf,
    helm: PathBuf,
    /// The demo's own cluster, and whether it ran before.
    own: Option<(Cluster, bool)>,
}

impl Stage {
    /// Starts the cluster, unless another one is named, and makes all that is needed.
    pub(crate) async fn set(progress: &Progress, elsewhere: &Elsewhere) -> Result<Self> {
        let python = python::ensure(progress).await?;
        if let Elsewhere {
            kubeconfig: Some(kubeconfig),
            broker_url: Some(broker_url),
            results_url: Some(results_url),
            prometheus_url: Some(prometheus_url),
        } = elsewhere.clone()
        {
            let helm = command::find("helm").context("helm is missing: install it")?;
            return Ok(Self { broker_url, results_url, prometheus_url, python, kubeconfig, helm, own: None });
        }
        let ran_before = Cluster::find().is_ok();
        let tars = images::ours(progress).await?;
        let cluster = Cluster::up(progress).await?;
        let step = progress.step("load our images");
        cluster.load(&tars).await?;
        step.done("");
        Ok(Self {
            broker_url: cluster.rabbitmq.amqp_url(),
            results_url: cluster.redis.url(),
            prometheus_url: cluster.prometheus.url(),
            python,
            kubeconfig: cluster.kubeconfig(),
            helm: GoTools::built()?.program("helm"),
            own: Some((cluster, ran_before)),
        })
    }

    /// Runs `play` where the cluster can be reached: inside of its network, if it is our own.
    pub(crate) async fn run<T, F, Playing>(&self, play: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Playing + Send + 'static,
        Playing: Future<Output = Result<T>>,
    {
        match &self.own {
            Some((cluster, _)) => cluster.namespace().run(play).await,
            None => play().await,
        }
    }

    /// A client with the rights of the kubeconfig.
    pub(crate) async fn client(&self) -> Result<Client> {
        cluster::client(Some(self.kubeconfig.clone())).await
    }

    /// Installs the operator and the three TaskQueues, and waits until they are ready for tasks.
    pub(crate) async fn install(&self, progress: &Progress) -> Result<()> {
        let step = progress.step("helm install soloist");
        let chart = paths::repository().join("charts/soloist");
        let mut helm = self.helm();
        helm.args(["upgrade", "--install", "soloist"]).arg(&chart);
        helm.args(["--namespace", OPERATOR_NAMESPACE, "--create-namespace", "--wait", "--timeout", "2m"]);
        command::output(&mut helm, Duration::from_secs(150)).await?;
        step.done("");

        let step = progress.step("three TaskQueues");
        let client = self.client().await?;
        remove_namespace(&client).await?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        namespaces.create(&PostParams::default(), &named(NAMESPACE)).await.context("create the namespace")?;
        let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
        for (name, uri) in [("rabbitmq", &self.broker_url), ("redis", &self.results_url)] {
            let secret = Secret {
                metadata: ObjectMeta { name: Some(name.to_owned()), ..Default::default() },
                string_data: Some([("uri".to_owned(), uri.clone())].into()),
                ..Default::default()
            };
            secrets
                .create(&PostParams::default(), &secret)
                .await
                .with_context(|| format!("create secret {name}"))?;
        }
        for file in ["secret-reader.yaml", "demo/taskqueues.yaml"] {
            manifest::apply_in(&client, NAMESPACE, &sample(file)?).await?;
        }
        self.wait_until_ready(&client).await?;
        step.done(QUEUES.join(", "));
        Ok(())
    }

    async fn wait_until_ready(&self, client: &Client) -> Result<()> {
        let kind = GroupVersionKind::gvk("soloist.dev", "v1alpha1", "TaskQueue");
        let task_queues: Api<DynamicObject> =
            Api::namespaced_with(client.clone(), NAMESPACE, &ApiResource::from_gvk(&kind));
        for queue in QUEUES {
            wait::until(&format!("TaskQueue {queue} to be Ready"), Duration::from_secs(60), || async {
                let task_queue = task_queues.get(queue).await?;
                let conditions = task_queue.data["status"]["conditions"].as_array();
                let ready =
                    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
                Ok(ready.then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// Takes away what the demo made.
    pub(crate) async fn clear(&self, progress: &Progress) -> Result<()> {
        match &self.own {
            Some((_, false)) => return Cluster::down(progress).await,
            Some((_, true)) => {
                progress.say("the cluster was up before the demo and stays: `cargo cluster down` ends it")
            }
            None => {}
        }
        let stage = self.clone();
        self.run(move || async move {
            remove_namespace(&stage.client().await?).await?;
            let mut helm = stage.helm();
            helm.args(["uninstall", "soloist", "--namespace", OPERATOR_NAMESPACE, "--wait"]);
            command::output(&mut helm, Duration::from_secs(120)).await.map(drop)
        })
        .await
    }

    /// What to tell somebody who wants to look around.
    pub(crate) fn how_to_look(&self) -> &'static str {
        if self.own.is_some() {
            "left running. Look around: eval \"$(cargo cluster env)\"; kubectl -n demo get taskqueues; \
             end it: cargo cluster down"
        } else {
            "left running: kubectl -n demo get taskqueues"
        }
    }

    fn helm(&self) -> Command {
        let mut helm = Command::new(&self.helm);
        helm.env("KUBECONFIG", &self.kubeconfig);
        helm
    }
}

fn sample(file: &str) -> Result<String> {
    let path: &Path = &paths::repository().join("manifests/samples").join(file);
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn named(name: &str) -> Namespace {
    Namespace {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..Default::default() },
        ..Default::default()
    }
}

/// Deletes the demo's namespace and waits until it is gone.
async fn remove_namespace(client: &Client) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    if namespaces.get_opt(NAMESPACE).await?.is_none() {
        return Ok(());
    }
    namespaces.delete(NAMESPACE, &DeleteParams::default()).await.context("delete the namespace")?;
    wait::until("the namespace to be gone", Duration::from_secs(120), || async {
        Ok(namespaces.get_opt(NAMESPACE).await?.is_none().then_some(()))
    })
    .await
}
