//! What a process and its children use, as the kernel counts it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// The kernel's unit of CPU time: a hundredth of a second, on every Linux there is.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds that a process and those below it have used, the ended ones included.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    family(pid)?.into_iter().map(own_cpu_seconds).sum()
}

/// Resident memory of a process and those below it, in MB.
pub(crate) fn resident_mb(pid: u32) -> Result<f64> {
    family(pid)?.into_iter().map(own_resident_mb).sum()
}

fn own_cpu_seconds(pid: u32) -> Result<f64> {
    let stat = stat(pid)?;
    // utime, stime, cutime, cstime
    let ticks = stat.iter().skip(11).take(4).map(|field| field.parse::<u64>().unwrap_or(0)).sum::<u64>();
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

fn own_resident_mb(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("read a process's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse().unwrap_or(0.0);
    Ok(kilobytes / 1000.0)
}

/// The fields of `/proc/<pid>/stat` after the program's name.
fn stat(pid: u32) -> Result<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("read a process's stat")?;
    let (_, fields) = stat.rsplit_once(')').context("a stat has the program's name in parentheses")?;
    Ok(fields.split_whitespace().map(str::to_owned).collect())
}

/// The process and all below it.
fn family(pid: u32) -> Result<Vec<u32>> {
    let mut parents = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Gone meanwhile, if it can't be read.
        if let Some(parent) = stat(pid).ok().and_then(|stat| stat.get(1)?.parse::<u32>().ok()) {
            parents.insert(pid, parent);
        }
    }
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(member) = family.get(next).copied() {
        family.extend(parents.iter().filter(|(_, parent)| **parent == member).map(|(pid, _)| *pid));
        next += 1;
    }
    Ok(family)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory() {
        let pid = std::process::id();
        assert!(resident_mb(pid).unwrap() > 1.0);
        assert!(cpu_seconds(pid).unwrap() >= 0.0);
    }
}
