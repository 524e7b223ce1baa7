//! Kubernetes, program by program.
//!
//! ```text
//! etcd <- kube-apiserver <- kube-controller-manager, kube-scheduler     control_plane
//!                        <- kubelet -> containerd, kube-proxy           node
//!                        <- CoreDNS, Services of the brokers            addons
//! ```

pub(crate) mod addons;
pub(crate) mod control_plane;
pub(crate) mod node;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use crate::certificates::{Authority, Identity, Pair};
use crate::go_tools::GoTools;
use crate::netns::{NODE_ADDRESS, Namespace};
use crate::process::{Launch, Process};
use crate::{paths, state};

/// Where the API server listens.
pub(crate) const API_PORT: u16 = 6443;
/// The name of the one node.
pub(crate) const NODE: &str = "node";
/// The first address of the Services' range is the API server's.
pub(crate) const API_SERVICE: &str = "10.96.0.1";
/// Where pods find the cluster's DNS.
pub(crate) const DNS_SERVICE: &str = "10.96.0.10";

/// What every program of the cluster is started with.
pub(crate) struct Setup {
    pub(crate) namespace: Namespace,
    pub(crate) tools: GoTools,
    pub(crate) authority: Authority,
}

impl Setup {
    /// Starts one of the Go programs and writes down that it runs.
    pub(crate) fn start(&self, name: &str, arguments: &[String]) -> Result<Process> {
        self.launch(name, Launch::new(name, self.tools.program(name)).args(arguments))
    }

    /// Starts a program and writes down that it runs.
    pub(crate) fn launch(&self, name: &str, launch: Launch) -> Result<Process> {
        let process = launch.start(&self.namespace)?;
        state::State::record(name, &process)?;
        Ok(process)
    }

    /// Writes a kubeconfig with a certificate of its own.
    pub(crate) fn kubeconfig(&self, name: &str, identity: &Identity) -> Result<PathBuf> {
        let pair = self.authority.client(name, identity)?;
        let file = paths::cluster().join(format!("{name}.kubeconfig"));
        write_kubeconfig(&file, &self.authority.file("ca.crt"), &pair)?;
        Ok(file)
    }
}

/// The cluster administrator's kubeconfig: what `KUBECONFIG` is set to.
pub(crate) fn admin_kubeconfig() -> PathBuf {
    paths::cluster().join("admin.kubeconfig")
}

fn write_kubeconfig(file: &Path, authority: &Path, pair: &Pair) -> Result<()> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "soloist", "cluster": {
            "server": format!("https://{NODE_ADDRESS}:{API_PORT}"),
            "certificate-authority": authority,
        }}],
        "users": [{"name": "user", "user": {
            "client-certificate": pair.certificate,
            "client-key": pair.key,
        }}],
        "contexts": [{"name": "soloist", "context": {"cluster": "soloist", "user": "user"}}],
        "current-context": "soloist",
    });
    write_json(file, &config)
}

fn write_json(file: &Path, value: &serde_json::Value) -> Result<()> {
    std::fs::write(file, serde_json::to_vec_pretty(value)?)
        .with_context(|| format!("write {}", file.display()))
}
