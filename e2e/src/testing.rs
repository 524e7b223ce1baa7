//! For tests on a cluster: a namespace for each, a deadline, and on failure a look at everything in it.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures_util::FutureExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, PostParams};
use tokio::process::Command;

use crate::go_tools::GoTools;
use crate::kubernetes::admin_kubeconfig;
use crate::{command, manifest};

/// A namespace of one test's own.
#[derive(Clone)]
pub struct TestNamespace {
    /// Its name: that of the test, and something random.
    pub name: String,
    client: kube::Client,
}

/// Makes a namespace for a test. Its name begins with `test`, a few lower-case words joined by dashes.
///
/// # Errors
/// If the API server refuses it.
pub async fn namespace_for_test(client: &kube::Client, test: &str) -> Result<TestNamespace> {
    let random = uuid::Uuid::new_v4().simple().to_string();
    let name = format!("{test}-{}", &random[..6]);
    let namespace = Namespace {
        metadata: kube::core::ObjectMeta {
            name: Some(name.clone()),
            labels: Some([("soloist.dev/e2e".to_owned(), "true".to_owned())].into()),
            ..Default::default()
        },
        ..Default::default()
    };
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .with_context(|| format!("create namespace {name}"))?;
    Ok(TestNamespace { name, client: client.clone() })
}

impl TestNamespace {
    /// Runs the body of a test, for at most `within`. If it fails, panics or takes too long, the state of the
    /// namespace is printed. The namespace is deleted in any case.
    ///
    /// # Errors
    /// Those of the body, and the deadline.
    ///
    /// # Panics
    /// As the body does.
    pub async fn run<T>(&self, within: Duration, body: impl Future<Output = Result<T>>) -> Result<T> {
        let outcome = tokio::time::timeout(within, AssertUnwindSafe(body).catch_unwind()).await;
        if !matches!(outcome, Ok(Ok(Ok(_)))) {
            dump_state(&self.name).await;
        }
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        // In the background: what is still in it ends on its own, and no other test uses it.
        let deleted = namespaces.delete(&self.name, &DeleteParams::background()).await;
        match outcome {
            Ok(Ok(result)) => {
                let value = result?;
                match deleted {
                    // The test has done so itself.
                    Err(kube::Error::Api(status)) if status.is_not_found() => {}
                    deleted => drop(deleted.with_context(|| format!("delete namespace {}", self.name))?),
                }
                Ok(value)
            }
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => Err(anyhow!("the test took longer than {within:?}")),
        }
    }

    /// Applies YAML into this namespace (and into no other).
    ///
    /// # Errors
    /// As [`manifest::apply`].
    pub async fn apply(&self, yaml: &str) -> Result<Vec<DynamicObject>> {
        manifest::apply_in(&self.client, &self.name, yaml).await
    }

    /// An API of this namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }
}

/// Prints what there is to know of a namespace: objects, events, logs, and the operator's log. The calling thread must be
/// in the cluster's network.
pub async fn dump_state(namespace: &str) {
    eprintln!("\n===== state of namespace {namespace}");
    for arguments in [
        "get deployments,replicasets,pods,services,secrets -o wide",
        "get taskqueues -o yaml",
        "describe pods",
        "get events --sort-by=.lastTimestamp",
    ] {
        show(namespace, arguments).await;
    }
    let pods = kubectl(namespace, "get pods -o name").await.unwrap_or_default();
    // The first few tell the story; there may be fifty.
    for pod in pods.lines().take(8) {
        show(namespace, &format!("logs {pod} --all-containers --prefix --tail=60 --ignore-errors")).await;
    }
    show("soloist-system", "logs deployment/soloist --all-pods=true --prefix --tail=60").await;
    eprintln!("===== end of the state of namespace {namespace}\n");
}

async fn show(namespace: &str, arguments: &str) {
    eprintln!("----- kubectl -n {namespace} {arguments}");
    match kubectl(namespace, arguments).await {
        Ok(text) => eprintln!("{}", text.trim_end()),
        // As much as can be had: a kind that isn't installed or a pod without a log must not hide the rest.
        Err(error) => eprintln!("{error:#}"),
    }
}

async fn kubectl(namespace: &str, arguments: &str) -> Result<String> {
    let program = GoTools::built().map_or_else(|_| "kubectl".into(), |tools| tools.program("kubectl"));
    let mut kubectl = Command::new(program);
    if std::env::var_os("KUBECONFIG").is_none() {
        kubectl.env("KUBECONFIG", admin_kubeconfig());
    }
    kubectl.args(["--namespace", namespace]).args(arguments.split(' '));
    command::output(&mut kubectl, Duration::from_secs(20)).await
}
