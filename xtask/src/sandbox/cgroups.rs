//! The cgroups of the sandbox's nodes: where they are, and how they are emptied and removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::libc::{ENODEV, ENOENT};

/// How long killed processes may take to leave their cgroup.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(10);

/// This process' own cgroup in every hierarchy (v1 controllers and v2), as directories.
pub fn own() -> Result<Vec<PathBuf>> {
    let memberships = fs::read_to_string("/proc/self/cgroup").context("reading /proc/self/cgroup")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    let mut directories = Vec::new();
    for membership in memberships.lines() {
        let mut fields = membership.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        if let Some(mount) = mounts.lines().find_map(|line| mount_of(line, controllers)) {
            directories.push(mount.join(path.trim_start_matches('/')));
        }
    }
    Ok(directories)
}

/// The mount point, if this line of mountinfo is the hierarchy of these controllers (empty: v2).
fn mount_of(line: &str, controllers: &str) -> Option<PathBuf> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    let (kind, options) = (right.next()?, right.nth(1)?);
    let matches = if controllers.is_empty() {
        kind == "cgroup2"
    } else {
        kind == "cgroup" && controllers.split(',').all(|c| options.split(',').any(|o| o == c))
    };
    matches.then(|| left.split(' ').nth(4).map(PathBuf::from)).flatten()
}

/// Kills every process below a cgroup and removes the cgroup. Nothing happens when it is not there.
pub fn kill_and_remove(cgroup: &Path) -> Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    let deadline = Instant::now() + EMPTY_TIMEOUT;
    loop {
        let tree = tree(cgroup)?;
        let mut left = 0;
        for directory in &tree {
            for pid in processes(directory)? {
                left += 1;
                // It may end on its own between the two steps.
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        if left == 0 && tree.iter().rev().all(|d| fs::remove_dir(d).is_ok() || !d.exists()) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{left} processes stay in {}", cgroup.display());
        }
        // Killed processes leave when the kernel has reaped them; cgroup v1 has no event for it.
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A cgroup and all below it, parents first.
fn tree(cgroup: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![cgroup.to_path_buf()];
    let mut next = 0;
    while next < found.len() {
        if let Ok(entries) = fs::read_dir(&found[next]) {
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    found.push(entry.path());
                }
            }
        }
        next += 1;
    }
    Ok(found)
}

fn processes(cgroup: &Path) -> Result<Vec<nix::unistd::Pid>> {
    match fs::read_to_string(cgroup.join("cgroup.procs")) {
        Ok(list) => Ok(list
            .lines()
            .filter_map(|line| line.parse().ok())
            .filter(|pid| *pid > 0)
            .map(nix::unistd::Pid::from_raw)
            .collect()),
        // Gone between the listing and the reading.
        Err(error) if matches!(error.raw_os_error(), Some(ENOENT | ENODEV)) => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("reading {}", cgroup.display())),
    }
}
