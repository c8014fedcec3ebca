//! Where the cgroup v2 hierarchy is, and where in it a process is.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where the hierarchy is mounted (mount options and the like: proc_pid_mounts(5)).
pub fn mount_point() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = lines.find(|fields| fields.get(2) == Some(&"cgroup2")).context("no cgroup v2 hierarchy")?;
    Ok(PathBuf::from(found[1]))
}

/// The path of a process' cgroup below the mount point, from its directory in `/proc`. `None`: it has ended, or it is no
/// process, or there is no such hierarchy.
pub fn path_of(process: &Path) -> Option<String> {
    let table = std::fs::read_to_string(process.join("cgroup")).ok()?;
    table.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}
