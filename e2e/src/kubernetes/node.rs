//! The node: containerd, the kubelet and kube-proxy, in a mount namespace of their own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use serde_json::json;

use super::{DNS_SERVICE, NODE, Setup, write_json};
use crate::certificates::Identity;
use crate::netns::{NODE_ADDRESS, POD_CIDR};
use crate::process::{Launch, Process, fits_socket};
use crate::{images, paths, wait};

/// The socket of the cluster's own containerd.
pub(crate) fn containerd_socket() -> PathBuf {
    folder().join("containerd.sock")
}

/// Its sockets lie below, so the name is short.
fn folder() -> PathBuf {
    paths::cluster().join("node")
}

/// Starts containerd, which also holds the mount namespace, and loads images into it.
pub(crate) async fn start_containerd(setup: &Setup, tars: &[PathBuf]) -> Result<Process> {
    let folder = folder();
    std::fs::create_dir_all(folder.join("cni")).with_context(|| format!("create {}", folder.display()))?;
    let socket = containerd_socket();
    if !fits_socket(&socket) {
        bail!("the checkout's path is too long for a socket in it: {}", socket.display());
    }
    write_json(&folder.join("cni/10-pods.conflist"), &pod_network())?;
    let config = folder.join("containerd.toml");
    std::fs::write(&config, containerd_config(&folder))
        .with_context(|| format!("write {}", config.display()))?;

    let launch = Launch::new("containerd", "sh")
        .args([paths::cluster_sources().join("node-mounts.sh"), paths::cache()])
        .args(["containerd", "--log-level=warn", "--config"])
        .args([&config])
        .with_own_mounts();
    let containerd = setup.launch("containerd", launch)?;
    wait::until("containerd's socket", Duration::from_secs(20), || async {
        tokio::net::UnixStream::connect(&socket).await?;
        Ok(Some(()))
    })
    .await?;
    images::import(&socket, tars).await?;
    Ok(containerd)
}

/// Starts the kubelet and kube-proxy, once the API server answers and containerd runs.
pub(crate) fn start_kubelet(setup: &Setup, containerd: &Process) -> Result<()> {
    let folder = folder();
    let user = setup.kubeconfig("kubelet", &Identity { user: "system:node:node", group: "system:nodes" })?;
    let serving = setup.authority.server("kubelet-serving", &[NODE, NODE_ADDRESS])?;
    let config = folder.join("kubelet.json");
    write_json(
        &config,
        &json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "x509": {"clientCAFile": setup.authority.file("ca.crt")},
            },
            "tlsCertFile": serving.certificate,
            "tlsPrivateKeyFile": serving.key,
            "containerRuntimeEndpoint": format!("unix://{}", containerd_socket().display()),
            "clusterDomain": "cluster.local",
            "clusterDNS": [DNS_SERVICE],
            "resolvConf": "",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", setup.namespace.name()),
            "failCgroupV1": false,
            "failSwapOn": false,
            "oomScoreAdj": 0,
            // The machine's disk is not the cluster's to judge or to clean.
            "localStorageCapacityIsolation": false,
            "evictionHard": {},
            "imageGCHighThresholdPercent": 100,
            "maxPods": 250,
            "podLogsDir": folder.join("pod-logs"),
            "registerWithTaints": [],
        }),
    )?;
    let launch = Launch::new("kubelet", setup.tools.program("kubelet"))
        .args([
            format!("--config={}", config.display()),
            format!("--kubeconfig={}", user.display()),
            format!("--root-dir={}", folder.join("kubelet").display()),
            format!("--hostname-override={NODE}"),
            format!("--node-ip={NODE_ADDRESS}"),
        ])
        .with_mounts_of(containerd);
    setup.launch("kubelet", launch)?;

    let user = setup
        .kubeconfig("kube-proxy", &Identity { user: "system:kube-proxy", group: "system:node-proxier" })?;
    let launch = Launch::new("kube-proxy", setup.tools.program("kube-proxy"))
        .args([
            format!("--kubeconfig={}", user.display()),
            format!("--hostname-override={NODE}"),
            format!("--cluster-cidr={POD_CIDR}"),
            "--proxy-mode=iptables".to_owned(),
            "--iptables-min-sync-period=100ms".to_owned(),
            "--oom-score-adj=0".to_owned(),
            // These kernel settings are the machine's and can't be written from a network namespace.
            "--conntrack-max-per-core=0".to_owned(),
            "--conntrack-tcp-timeout-established=0".to_owned(),
            "--conntrack-tcp-timeout-close-wait=0".to_owned(),
        ])
        .with_mounts_of(containerd);
    setup.launch("kube-proxy", launch).map(drop)
}

/// Waits until the node takes pods.
pub(crate) async fn ready(client: &kube::Client) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    wait::until("the node to be Ready", Duration::from_secs(60), || async {
        let conditions =
            nodes.get(NODE).await?.status.and_then(|status| status.conditions).unwrap_or_default();
        Ok(conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
            .then_some(()))
    })
    .await
}

fn containerd_config(folder: &Path) -> String {
    let folder = folder.display();
    let plugins =
        ["/usr/lib/cni", "/opt/cni/bin"].into_iter().find(|path| Path::new(path).join("ptp").exists());
    let plugins = plugins.unwrap_or("/usr/lib/cni");
    let pause = images::PAUSE;
    format!(
        r#"version = 2
root = "{folder}/containerd"
state = "{folder}/containerd-state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
  address = "{folder}/containerd.sock"

[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Lowering a score takes CAP_SYS_RESOURCE, which containers of a CI don't have: no sandbox would start.
  restrict_oom_score_adj = true
  # Its profile would stay loaded in the kernel.
  disable_apparmor = true
  netns_mounts_under_state_dir = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{folder}/cni"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"#
    )
}

/// Each pod on a pair of its own rather than on a bridge: every packet is routed, so Services work without the
/// br_netfilter module, also between two pods of the node.
fn pod_network() -> serde_json::Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [{
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": POD_CIDR}]],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": folder().join("cni-addresses"),
            },
        }],
    })
}
