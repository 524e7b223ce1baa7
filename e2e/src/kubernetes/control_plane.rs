//! etcd, the API server, and the two that decide: controller manager and scheduler.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::{API_PORT, API_SERVICE, NODE, Setup, write_json};
use crate::certificates::Identity;
use crate::netns::{NODE_ADDRESS, SERVICE_CIDR};
use crate::{paths, wait};

const ETCD: &str = "http://127.0.0.1:2379";
/// Who may do anything.
const MASTERS: &str = "system:masters";

/// Where the API server writes down each request that [`audit_policy`] names.
pub(crate) fn audit_log() -> PathBuf {
    paths::logs().join("audit.log")
}

/// Starts etcd and the API server; they find each other.
pub(crate) fn start_api_server(setup: &Setup) -> Result<()> {
    let data = paths::cluster().join("etcd");
    setup.start(
        "etcd",
        &[
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls={ETCD}"),
            format!("--advertise-client-urls={ETCD}"),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            // The data lives as long as the cluster: there is nothing to keep safe from a power cut.
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ],
    )?;

    let hosts = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "localhost",
        "127.0.0.1",
        NODE_ADDRESS,
        API_SERVICE,
    ];
    let serving = setup.authority.server("apiserver", &hosts)?;
    let to_kubelet =
        setup.authority.client("apiserver-kubelet", &Identity { user: "apiserver", group: MASTERS })?;
    setup.kubeconfig("admin", &Identity { user: "admin", group: MASTERS })?;
    let policy = paths::cluster().join("audit-policy.json");
    write_json(&policy, &audit_policy())?;
    let ca = setup.authority.file("ca.crt");
    let ca = ca.display();
    setup
        .start(
            "kube-apiserver",
            &[
                format!("--advertise-address={NODE_ADDRESS}"),
                format!("--secure-port={API_PORT}"),
                format!("--etcd-servers={ETCD}"),
                format!("--client-ca-file={ca}"),
                format!("--tls-cert-file={}", serving.certificate.display()),
                format!("--tls-private-key-file={}", serving.key.display()),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                format!("--service-account-key-file={}", setup.authority.file("sa.pub").display()),
                format!("--service-account-signing-key-file={}", setup.authority.file("sa.key").display()),
                format!("--service-cluster-ip-range={SERVICE_CIDR}"),
                "--authorization-mode=Node,RBAC".to_owned(),
                "--enable-admission-plugins=NodeRestriction".to_owned(),
                "--allow-privileged=true".to_owned(),
                "--kubelet-preferred-address-types=InternalIP".to_owned(),
                format!("--kubelet-certificate-authority={ca}"),
                format!("--kubelet-client-certificate={}", to_kubelet.certificate.display()),
                format!("--kubelet-client-key={}", to_kubelet.key.display()),
                format!("--audit-policy-file={}", policy.display()),
                format!("--audit-log-path={}", audit_log().display()),
                // Written before the answer is sent, so that a test that got its answer can count.
                "--audit-log-mode=blocking-strict".to_owned(),
            ],
        )
        .map(drop)
}

/// Starts what fills the cluster with life, once the API server answers.
pub(crate) fn start_controllers(setup: &Setup) -> Result<()> {
    let controllers = setup.kubeconfig(
        "kube-controller-manager",
        &Identity { user: "system:kube-controller-manager", group: "system:kube-controller-manager" },
    )?;
    setup.start(
        "kube-controller-manager",
        &[
            format!("--kubeconfig={}", controllers.display()),
            format!("--service-account-private-key-file={}", setup.authority.file("sa.key").display()),
            format!("--root-ca-file={}", setup.authority.file("ca.crt").display()),
            // Each controller is a user of its own, as on clusters out there.
            "--use-service-account-credentials=true".to_owned(),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
        ],
    )?;
    let scheduler = setup.kubeconfig(
        "kube-scheduler",
        &Identity { user: "system:kube-scheduler", group: "system:kube-scheduler" },
    )?;
    setup
        .start(
            "kube-scheduler",
            &[
                format!("--kubeconfig={}", scheduler.display()),
                "--leader-elect=false".to_owned(),
                "--bind-address=127.0.0.1".to_owned(),
            ],
        )
        .map(drop)
}

/// Waits until the API server has brought up all its parts.
pub(crate) async fn ready(client: &kube::Client) -> Result<()> {
    wait::until("the API server to be ready", Duration::from_secs(60), || async {
        let request = ::http::Request::get("/readyz").body(Vec::new()).context("build a request")?;
        client.request_text(request).await?;
        Ok(Some(()))
    })
    .await
}

/// Which requests are written down: everybody's writes, and all that service accounts of the users' namespaces ask
/// for, so that a test can say how much an operator at rest costs the API server.
fn audit_policy() -> serde_json::Value {
    let own = ["system:kube-controller-manager", "system:kube-scheduler", "system:apiserver", "apiserver"];
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "omitManagedFields": true,
        "rules": [
            {"level": "None", "users": own, "verbs": ["get", "list", "watch"]},
            {"level": "None", "userGroups": ["system:nodes", "system:serviceaccounts:kube-system"],
             "verbs": ["get", "list", "watch"]},
            {"level": "None", "users": [format!("system:node:{NODE}")], "resources": [{"group": "coordination.k8s.io"}]},
            {"level": "Metadata", "verbs": ["create", "update", "patch", "delete", "deletecollection"]},
            {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
            {"level": "None"},
        ],
    })
}
