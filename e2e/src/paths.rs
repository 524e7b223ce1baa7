//! Where the harness keeps things: all of it under `.cache` in the checkout, which git ignores.

use std::path::{Path, PathBuf};

/// The root of the checkout.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("e2e lies in the repository").to_owned()
}

/// Everything the harness builds or runs.
pub fn cache() -> PathBuf {
    repository().join(".cache")
}

/// Wrappers of kubectl, helm and the brokers' tools that reach into the cluster's network.
pub fn bin() -> PathBuf {
    cache().join("bin")
}

/// What the Go modules were built into, one folder for each version.
pub fn tools() -> PathBuf {
    cache().join("tools")
}

/// Images as `docker save` writes them.
pub fn images() -> PathBuf {
    cache().join("images")
}

/// The Go modules and files that a cluster is made of.
pub fn cluster_sources() -> PathBuf {
    repository().join("e2e/cluster")
}

/// Data of the running cluster; gone after `cargo cluster down`, but for [`logs`].
pub fn cluster() -> PathBuf {
    cache().join("cluster")
}

/// Logs of the cluster's programs, and the API server's audit log. They outlive the cluster.
pub fn logs() -> PathBuf {
    cluster().join("log")
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}

/// The last `lines` lines of a file, for error messages; empty if there is no such file.
pub fn tail(file: &Path, lines: usize) -> String {
    let text = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut last: Vec<&str> = text.lines().rev().take(lines).collect();
    last.reverse();
    last.join("\n")
}
