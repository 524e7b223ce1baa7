//! Operators of a test's own: processes that serve its namespace only, which a test may cut off, stop and kill without harm to others on
//! the cluster.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustix::process::{Pid, Signal};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::soloist::{Scrape, Test};
use crate::{chart, http, images, manifest, paths, wait};

/// On a namespace that the installed operator is to leave alone.
const LABEL: &str = "soloist.dev/own-operator";
/// What the API server then tells it.
const REFUSAL: &str = "this namespace has an operator of its own";
const START: Duration = Duration::from_secs(30);

/// Keeps the installed operator from a test's namespace, which it would serve too: the API server refuses what it writes there, and it may
/// not read the Secrets any more, without which it talks to no broker. To be called before there is a TaskQueue.
pub async fn keep_installed_out(test: &Test) -> Result<()> {
    let user = format!("system:serviceaccount:{}:{}", chart::NAMESPACE, chart::SERVICE_ACCOUNT);
    // One for all tests, and without effect where the label isn't.
    let policy = format!(
        r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {{name: soloist-e2e-own-operator}}
spec:
  matchConstraints:
    namespaceSelector: {{matchLabels: {{{LABEL}: "true"}}}}
    resourceRules: [{{apiGroups: ["*"], apiVersions: ["*"], operations: [CREATE, UPDATE, DELETE], resources: ["*/*"]}}]
  matchConditions: [{{name: installed, expression: "request.userInfo.username == '{user}'"}}]
  validations: [{{expression: "false", message: "{REFUSAL}"}}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {{name: soloist-e2e-own-operator}}
spec: {{policyName: soloist-e2e-own-operator, validationActions: [Deny]}}
"#
    );
    manifest::apply(&test.client, &policy).await?;
    let namespaces: Api<Namespace> = Api::all(test.client.clone());
    let label = Patch::Merge(json!({"metadata": {"labels": {LABEL: "true"}}}));
    namespaces.patch(&test.namespace.name, &PatchParams::default(), &label).await?;
    let bindings: Api<RoleBinding> = test.namespace.api();
    bindings.delete("soloist-secret-reader", &DeleteParams::default()).await?;

    let mut config = config(test).await?;
    config.auth_info.impersonate = Some(user);
    let deployments: Api<Deployment> = Api::namespaced(config.try_into()?, &test.namespace.name);
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let probe: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "probe"},
        "spec": {
            "selector": {"matchLabels": {"app": "probe"}},
            "template": {"metadata": {"labels": {"app": "probe"}}, "spec": {"containers": [{"name": "a", "image": "a"}]}},
        },
    }))?;
    wait::until("the installed operator to be kept out", START, || async {
        match deployments.create(&dry, &probe).await {
            // Or it may do nothing here anyway.
            Err(kube::Error::Api(status)) if status.is_forbidden() || status.message.contains(REFUSAL) => {
                Ok(Some(()))
            }
            Err(error) => Err(error.into()),
            Ok(_) => Ok(None),
        }
    })
    .await
}

/// The administrator's way to the API server.
pub async fn config(test: &Test) -> Result<kube::Config> {
    let kubeconfig = Kubeconfig::read_from(test.cluster.kubeconfig()).context("read the kubeconfig")?;
    Ok(kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}

/// The API server's `host:port`.
pub async fn api_server(test: &Test) -> Result<String> {
    let url = config(test).await?.cluster_url;
    url.authority().map(ToString::to_string).context("no host in the API server's address")
}

/// One operator.
pub struct Instance {
    /// Its identity, and its service account.
    pub name: String,
    /// `host:port` of its HTTP server.
    pub address: String,
    namespace: String,
    kubeconfig: PathBuf,
    process: Child,
}

impl Instance {
    /// Starts one which reaches the API server at `url`, as a service account of its own with all rights in the namespace. It takes part
    /// in an election in that namespace.
    pub async fn start(test: &Test, name: &str, url: &str) -> Result<Self> {
        let namespace = test.namespace.name.clone();
        let account = format!(
            r"
{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {name}}}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: operator-{name}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}}
subjects: [{{kind: ServiceAccount, name: {name}, namespace: {namespace}}}]
"
        );
        test.namespace.apply(&account).await?;
        let accounts: Api<ServiceAccount> = test.namespace.api();
        let token =
            accounts.create_token_request(name, &PostParams::default(), &TokenRequest::default()).await?;
        let token = token.status.context("no token")?.token;
        let mut given = Kubeconfig::read_from(test.cluster.kubeconfig()).context("read the kubeconfig")?;
        let mut cluster = given.clusters.pop().and_then(|named| named.cluster).context("no cluster in it")?;
        cluster.server = Some(url.to_owned());
        let own = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "own", "cluster": cluster}],
            "users": [{"name": "own", "user": {"token": token}}],
            "contexts": [{"name": "own", "context": {"cluster": "own", "user": "own"}}],
            "current-context": "own",
        });
        std::fs::create_dir_all(paths::logs()).context("make the folder of logs")?;
        let kubeconfig = paths::cluster().join(format!("{namespace}-{name}.kubeconfig"));
        std::fs::write(&kubeconfig, own.to_string())
            .with_context(|| format!("write {}", kubeconfig.display()))?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let process = launch(&namespace, name, &address, &kubeconfig)?;
        Ok(Self { name: name.to_owned(), address, namespace, kubeconfig, process })
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.process.try_wait().context("look at the operator's process")
    }

    /// Waits until it ends by itself.
    pub async fn end(&mut self, within: Duration) -> Result<ExitStatus> {
        let ended = tokio::time::timeout(within, self.process.wait()).await;
        ended.with_context(|| format!("{} did not end within {within:?}", self.name))?.context("wait for it")
    }

    /// Starts it anew under the same name, as the kubelet does with a container that has ended. One that still runs is killed.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill().await.context("kill the operator")?;
        self.process = launch(&self.namespace, &self.name, &self.address, &self.kubeconfig)?;
        Ok(())
    }

    /// Kills it.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await.context("kill the operator")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.process.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("it has ended")?;
        rustix::process::kill_process(pid, signal).with_context(|| format!("send {signal:?}"))
    }

    /// Fails unless it says that it lives.
    pub async fn lives(&self) -> Result<()> {
        http::get(&format!("http://{}/livez", self.address)).await.map(drop)
    }

    /// Whether it says that it is ready.
    pub async fn is_ready(&self) -> Result<bool> {
        match http::get(&format!("http://{}/readyz", self.address)).await {
            Ok(_) => Ok(true),
            Err(error) if format!("{error:#}").contains("503") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until it is ready.
    pub async fn ready(&self) -> Result<()> {
        let what = format!("{} to be ready", self.name);
        wait::until(&what, START, || async { Ok(self.is_ready().await?.then_some(())) }).await
    }

    /// What it tells Prometheus.
    pub async fn scrape(&self) -> Result<Scrape> {
        Scrape::at(&self.address).await
    }

    /// All that it and those before it have logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(log_file(&self.namespace, &self.name)).unwrap_or_default()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // It holds a token; an error means that it is gone already.
        let _ = std::fs::remove_file(&self.kubeconfig);
    }
}

/// Where the operators of this name write in this namespace.
pub fn log_file(namespace: &str, name: &str) -> PathBuf {
    paths::logs().join(format!("operator-{namespace}-{name}.log"))
}

fn launch(namespace: &str, name: &str, address: &str, kubeconfig: &Path) -> Result<Child> {
    let program = images::program("soloist-operator");
    ensure!(program.exists(), "{} is not built", program.display());
    let log = std::fs::File::options().create(true).append(true).open(log_file(namespace, name));
    let log = log.context("open the operator's log")?;
    Command::new(program)
        .args(["--namespaces", namespace, "--lease-namespace", namespace, "--http-address", address])
        .args(["--log-format", "json"])
        .env("KUBECONFIG", kubeconfig)
        .env("POD_NAME", name)
        .env("POD_NAMESPACE", namespace)
        .stdout(log.try_clone()?)
        .stderr(log)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("start the operator")
}

/// Who leads in the test's namespace.
pub async fn leader(test: &Test) -> Result<String> {
    let leases: Api<Lease> = test.namespace.api();
    let holder = leases.get("soloist-operator").await?.spec.and_then(|spec| spec.holder_identity);
    match holder {
        Some(holder) if !holder.is_empty() => Ok(holder),
        _ => bail!("nobody leads"),
    }
}

/// Waits until this instance leads and works.
pub async fn until_leads(test: &Test, instance: &Instance, within: Duration) -> Result<()> {
    wait::until(&format!("{} to lead", instance.name), within, || async {
        Ok((leader(test).await? == instance.name && instance.is_ready().await?).then_some(()))
    })
    .await
}
