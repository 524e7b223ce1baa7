//! The network namespace that the whole cluster lives in: it has no route to the machine's network, so nothing leaks
//! out of it and nothing in it collides with what else runs on the machine.

use std::fs::File;
use std::future::Future;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::thread::LinkNameSpaceType;
use sha2::{Digest, Sha256};
use tokio::process::Command;

use crate::{command, paths};

/// The node's address: the API server, the brokers and Prometheus are reached under it.
pub const NODE_ADDRESS: &str = "10.88.0.1";
/// Addresses of pods. The kubelet takes at most 250 pods.
pub const POD_CIDR: &str = "10.89.0.0/16";
/// Addresses of Services.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";

/// The network that a cluster is reached in: a named namespace of this checkout (so clusters of two checkouts don't
/// meet), or that of the machine, where a cluster is reached that isn't ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    name: String,
    of_the_machine: bool,
}

impl Namespace {
    /// The namespace of this checkout, whether or not it exists.
    pub fn of_this_checkout() -> Self {
        let digest = Sha256::digest(paths::repository().as_os_str().as_encoded_bytes());
        let short: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        Self { name: format!("soloist-{short}"), of_the_machine: false }
    }

    /// The machine's own network.
    pub fn of_the_machine() -> Self {
        Self { name: "machine".to_owned(), of_the_machine: true }
    }

    /// Its name, as `ip netns` lists it. The node's control group has the same one.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file to enter it by.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Makes it, with the node's address in it.
    pub(crate) async fn create(&self) -> Result<()> {
        ip(&["netns", "add", &self.name]).await?;
        let address = format!("{NODE_ADDRESS}/24");
        for arguments in [
            "link set lo up",
            // A pair, because not every kernel has dummy devices. Its far end stays here too.
            "link add node type veth peer name peer",
            &format!("address add {address} dev node"),
            "link set node up",
            "link set peer up",
            // The kubelet looks for the node's address along the default route.
            "route add default dev node",
        ] {
            let mut words = vec!["-netns", self.name.as_str()];
            words.extend(arguments.split(' '));
            ip(&words).await?;
        }
        let mut forward = Command::from(self.command("sh"));
        forward.args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
        command::output(&mut forward, SOON).await.map(drop)
    }

    /// Takes its name away; it vanishes with the last process in it.
    pub(crate) async fn delete(&self) -> Result<()> {
        if self.exists() {
            ip(&["netns", "delete", &self.name]).await?;
        }
        Ok(())
    }

    /// A command that will run inside. `nsenter` rather than `ip netns exec`: that one mounts another /sys, without
    /// the control groups in it.
    pub fn command(&self, program: &str) -> std::process::Command {
        if self.of_the_machine {
            return std::process::Command::new(program);
        }
        let mut command = std::process::Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Moves the calling thread inside, and with it every thread that it starts from then on. Threads that exist
    /// already stay where they are: call it before a multi-threaded runtime is made.
    ///
    /// # Errors
    /// Without root's rights, or if the namespace isn't there.
    pub fn enter(&self) -> Result<()> {
        if self.of_the_machine {
            return Ok(());
        }
        let path = self.path();
        let file =
            File::open(&path).with_context(|| format!("open {}: is the cluster up?", path.display()))?;
        rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("enter the network namespace {}", self.name))
    }

    /// Runs a future inside, on a thread and a runtime of its own, so that all its connections are made there.
    ///
    /// # Errors
    /// Those of the future, and those of [`enter`](Self::enter).
    pub async fn run<T, F, Running>(&self, inside: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Running + Send + 'static,
        Running: Future<Output = Result<T>>,
    {
        let namespace = self.clone();
        let (send, receive) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let run = || {
                namespace.enter()?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(inside())
            };
            // The receiver is gone only if the caller no longer wants to know.
            drop(send.send(run()));
        });
        receive.await.map_err(|_| anyhow!("a thread in the network namespace {} panicked", self.name))?
    }

    /// Whether a process is inside.
    pub(crate) fn holds(&self, pid: i32) -> bool {
        let inode = |path: &Path| path.metadata().map(|found| (found.dev(), found.ino()));
        match (inode(&self.path()), inode(Path::new(&format!("/proc/{pid}/ns/net")))) {
            (Ok(ours), Ok(theirs)) => ours == theirs,
            _ => false,
        }
    }
}

const SOON: Duration = Duration::from_secs(10);

async fn ip(arguments: &[&str]) -> Result<()> {
    let program = command::find("ip").ok_or_else(|| anyhow!("`ip` (iproute2) is missing"))?;
    command::output(Command::new(program).args(arguments), SOON).await.map(drop)
}
