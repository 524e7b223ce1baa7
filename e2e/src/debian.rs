//! The Debian packages that a cluster needs: installed when we may, named when we may not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::{command, progress::Progress};

/// A package, and the file or program that shows it is there. Programs rather than package names, because the same
/// program may come from elsewhere (Docker's `containerd.io`).
const PACKAGES: &[(&str, &str)] = &[
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("containernetworking-plugins", "/usr/lib/cni/ptp"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("iproute2", "ip"),
    ("util-linux", "nsenter"),
    ("ca-certificates", "/etc/ssl/certs/ca-certificates.crt"),
    ("rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmq-server"),
    ("redis-server", "redis-server"),
    ("prometheus", "prometheus"),
    ("musl-tools", "musl-gcc"),
    ("python3-venv", "/usr/share/doc/python3-venv"),
];

/// For the tests that look at Flower's pages.
const BROWSER: &[(&str, &str)] = &[("chromium", "chromium")];

/// Gives a program a clock of its own.
pub(crate) const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// What the packages of all releases of Debian are signed with; Ubuntu has it in a package of its own.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Tells Debian's maintainer scripts not to start the services they install: 101 is "forbidden by policy".
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Makes sure of every package and of root's rights.
///
/// # Errors
/// If something is missing and can't be installed; the message names it and what to do.
pub async fn ensure(progress: &Progress) -> Result<()> {
    let missing = missing(PACKAGES);
    if !rustix::process::geteuid().is_root() {
        let mut message = "the cluster needs root, for its network namespace and its containers".to_owned();
        if !missing.is_empty() {
            message.push_str(&format!("; these Debian packages are missing too: {}", missing.join(" ")));
        }
        bail!("{message}");
    }
    install_missing(missing, progress).await
}

/// Makes sure of a browser.
///
/// # Errors
/// If it is missing and can't be installed.
pub async fn ensure_browser(progress: &Progress) -> Result<()> {
    install_missing(missing(BROWSER), progress).await
}

/// Makes sure of [`KEYRING`].
///
/// # Errors
/// If it is missing and can't be installed.
pub(crate) async fn ensure_keyring(progress: &Progress) -> Result<()> {
    install_missing(missing(&[("debian-archive-keyring", KEYRING)]), progress).await
}

/// Makes sure of what gives RabbitMQ a clock of its own.
///
/// # Errors
/// If it is missing and can't be installed.
pub async fn ensure_faketime(progress: &Progress) -> Result<()> {
    install_missing(missing(&[("libfaketime", FAKETIME)]), progress).await
}

async fn install_missing(missing: Vec<&'static str>, progress: &Progress) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    if command::find("apt-get").is_none() {
        bail!("these Debian packages (or their like on this system) are missing: {}", missing.join(" "));
    }
    let step = progress.step("debian packages");
    step.note(missing.join(" "));
    let _policy = NoServices::new()?;
    let mut refreshed = false;
    while let Err(error) = install(&missing).await {
        if refreshed {
            return Err(error.context(format!("install {}", missing.join(" "))));
        }
        // Package lists may be missing (a fresh container) or too old to point at files that still exist.
        apt(&["update", "--quiet"], Duration::from_secs(180)).await?;
        refreshed = true;
    }
    step.done(missing.join(" "));
    Ok(())
}

fn missing(packages: &[(&'static str, &str)]) -> Vec<&'static str> {
    let is_there = |proof: &str| match proof.starts_with('/') {
        true => Path::new(proof).exists(),
        false => command::find(proof).is_some(),
    };
    packages.iter().filter(|(_, proof)| !is_there(proof)).map(|(package, _)| *package).collect()
}

async fn install(packages: &[&str]) -> Result<()> {
    let mut arguments = vec!["install", "--yes", "--quiet", "--no-install-recommends"];
    arguments.extend(packages);
    apt(&arguments, Duration::from_secs(600)).await
}

async fn apt(arguments: &[&str], within: Duration) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    command::output(&mut apt, within).await.map(drop)
}

/// While it lives, installing a service doesn't start it.
struct NoServices {
    ours: Option<PathBuf>,
}

impl NoServices {
    fn new() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let file = PathBuf::from(POLICY);
        if file.exists() {
            // The machine has a policy of its own.
            return Ok(Self { ours: None });
        }
        std::fs::write(&file, "#!/bin/sh\nexit 101\n").with_context(|| format!("write {POLICY}"))?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self { ours: Some(file) })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(file) = &self.ours {
            // Nothing to be done about a failure here but to say so.
            if let Err(error) = std::fs::remove_file(file) {
                eprintln!("remove {}: {error}", file.display());
            }
        }
    }
}
