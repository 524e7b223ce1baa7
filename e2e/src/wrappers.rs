//! Small scripts that run a tool inside of the cluster's network, so that it can be used by hand.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::go_tools::GoTools;
use crate::kubernetes::{admin_kubeconfig, node};
use crate::netns::{NODE_ADDRESS, Namespace};
use crate::{command, paths, rabbitmq};

/// Writes them all into [`paths::bin`].
pub(crate) fn write(namespace: &Namespace, tools: &GoTools) -> Result<()> {
    let folder = paths::bin();
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    // One that the caller set wins: it may name a user with fewer rights.
    let kubeconfig = format!("export KUBECONFIG=\"${{KUBECONFIG:-{}}}\"", admin_kubeconfig().display());
    let helm_home = paths::cache().join("helm");
    let helm = ["CACHE", "CONFIG", "DATA"]
        .map(|kind| format!("export HELM_{kind}_HOME='{}'", helm_home.join(kind.to_lowercase()).display()))
        .join("\n");
    let rabbit: Vec<String> =
        rabbitmq::environment().iter().map(|(name, value)| format!("export {name}='{value}'")).collect();
    let rabbit = rabbit.join("\n");

    let script = |name: &str, setting: &str, words: &str| {
        let text = format!(
            "#!/bin/sh\n\
             # Runs {name} inside of the cluster's network. Written by `cargo cluster up`.\n\
             [ -e {path} ] || {{ echo 'no cluster is up: cargo cluster up' >&2; exit 1; }}\n\
             {setting}\n\
             exec nsenter --net={path} -- {words} \"$@\"\n",
            path = namespace.path().display(),
        );
        write_script(&folder.join(name), &text)
    };
    let quoted = |file: &Path| format!("'{}'", file.display());
    script("kubectl", &kubeconfig, &quoted(&tools.program("kubectl")))?;
    script("helm", &format!("{kubeconfig}\n{helm}"), &quoted(&tools.program("helm")))?;
    script("inside", &kubeconfig, "")?;
    let ctr = command::find("ctr").unwrap_or_else(|| "ctr".into());
    script(
        "ctr",
        "",
        &format!("{} --address '{}' --namespace k8s.io", quoted(&ctr), node::containerd_socket().display()),
    )?;
    for name in ["rabbitmqctl", "rabbitmq-diagnostics"] {
        script(name, &rabbit, &quoted(&rabbitmq::script(name)))?;
    }
    if let Some(program) = command::find("redis-cli") {
        script("redis-cli", "", &format!("{} -h {NODE_ADDRESS}", quoted(&program)))?;
    }
    if let Some(program) = command::find("promtool") {
        script("promtool", "", &quoted(&program))?;
    }
    Ok(())
}

fn write_script(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", file.display()))
}
