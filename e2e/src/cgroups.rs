//! The control group that all pods run below, in either version of the interface.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const ROOT: &str = "/sys/fs/cgroup";

/// Makes the group in every hierarchy that the kubelet wants it in.
pub(crate) fn create(name: &str) -> Result<()> {
    let root = Path::new(ROOT);
    if is_version_2(root) {
        for controller in ["cpuset", "cpu", "io", "memory", "pids"] {
            // A controller that is missing or already handed down is no reason to stop: the kubelet says what it lacks.
            drop(fs::write(root.join("cgroup.subtree_control"), format!("+{controller}")));
        }
    }
    for hierarchy in hierarchies() {
        let group = hierarchy.join(name);
        fs::create_dir_all(&group).with_context(|| format!("create {}", group.display()))?;
        // A new group of this kind is empty, and nothing may join it until it has processors and memory.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if !is_version_2(&hierarchy) && hierarchy.join(file).exists() {
                let parent = fs::read_to_string(hierarchy.join(file))?;
                fs::write(group.join(file), parent.trim()).with_context(|| format!("set {file}"))?;
            }
        }
    }
    Ok(())
}

/// Removes the group and all below it; its processes must be gone.
pub(crate) fn remove(name: &str) -> Result<()> {
    for hierarchy in hierarchies() {
        remove_tree(&hierarchy.join(name))?;
    }
    Ok(())
}

/// Whether the group is there.
pub(crate) fn exists(name: &str) -> bool {
    hierarchies().iter().any(|hierarchy| hierarchy.join(name).exists())
}

fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from(ROOT);
    if is_version_2(&root) {
        return vec![root];
    }
    let below = fs::read_dir(&root).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    // Links (`cpu` to `cpu,cpuacct`) lead to hierarchies that are listed anyway.
    below.filter(|path| path.is_dir() && !path.is_symlink()).collect()
}

fn is_version_2(hierarchy: &Path) -> bool {
    hierarchy.join("cgroup.controllers").exists()
}

fn remove_tree(group: &Path) -> Result<()> {
    if !group.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(group)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_tree(&path)?;
        }
    }
    fs::remove_dir(group).with_context(|| format!("remove {}", group.display()))
}
