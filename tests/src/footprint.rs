//! What a sandbox has on the machine: its namespaces, mounts, cgroups, processes and pins.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Lists, found by looking at the machine and not at what the sandbox remembers.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Footprint {
    /// Mount points below the sandbox's folders.
    pub mounts: BTreeSet<PathBuf>,
    /// cgroups below one of the sandbox's name, in every hierarchy.
    pub cgroups: BTreeSet<PathBuf>,
    /// Processes in those cgroups, or with one of the folders on their command line.
    pub processes: BTreeSet<u32>,
    /// Inodes of network namespaces: of those processes, and of `known`, while anything holds them.
    pub namespaces: BTreeSet<u64>,
    /// Files pinned in a BPF file system below the folders.
    pub pins: BTreeSet<PathBuf>,
    /// Which of the folders exist.
    pub folders: BTreeSet<PathBuf>,
}

impl Footprint {
    /// Looks for a sandbox called `name` with these folders. `known` are namespaces it had: they count while they live.
    pub fn of(name: &str, folders: &[&Path], known: &BTreeSet<u64>) -> Result<Self> {
        let mut found = Footprint::default();
        let table = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
        let mut alive = BTreeSet::new();
        for line in table.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let (Some(root), Some(point)) = (fields.get(3), fields.get(4)) else { continue };
            let point = PathBuf::from(point);
            let kind = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
            if kind.starts_with("cgroup") && root == &"/" {
                cgroups_called(name, &point, &mut found.cgroups);
            }
            let inode: Option<u64> =
                root.strip_prefix("net:[").and_then(|rest| rest.strip_suffix(']')?.parse().ok());
            alive.extend(inode);
            if folders.iter().any(|folder| point.starts_with(folder)) {
                found.namespaces.extend(inode);
                if kind == "bpf" {
                    files_below(&point, &mut found.pins);
                }
                found.mounts.insert(point);
            }
        }
        for cgroup in &found.cgroups {
            let members = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
            found.processes.extend(members.lines().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        let own = fs::metadata("/proc/self/ns/net")?.ino();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse::<u32>().ok()) else {
                continue;
            };
            // A process that ends meanwhile is none.
            let Ok(namespace) = fs::metadata(entry.path().join("ns/net")) else { continue };
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let names = |folder: &&Path| {
                let folder = folder.as_os_str().as_encoded_bytes();
                command.windows(folder.len()).any(|window| window == folder)
            };
            if pid != std::process::id() && folders.iter().any(names) {
                found.processes.insert(pid);
            }
            if found.processes.contains(&pid) {
                found.namespaces.insert(namespace.ino());
            }
            alive.insert(namespace.ino());
        }
        found.namespaces.extend(known.intersection(&alive));
        found.namespaces.remove(&own);
        found.folders =
            folders.iter().filter(|folder| folder.exists()).map(|folder| folder.to_path_buf()).collect();
        Ok(found)
    }
}

/// A line per list, with its length.
impl fmt::Display for Footprint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "namespaces {}, mounts {}, cgroups {}, pins {}, processes {}, folders {}",
            self.namespaces.len(),
            self.mounts.len(),
            self.cgroups.len(),
            self.pins.len(),
            self.processes.len(),
            self.folders.len()
        )
    }
}

fn directories(of: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

/// Collects every cgroup called `name` and all below it.
fn cgroups_called(name: &str, below: &Path, found: &mut BTreeSet<PathBuf>) {
    for directory in directories(below) {
        if directory.file_name().is_some_and(|last| last == name) {
            all_below(&directory, found);
        } else {
            cgroups_called(name, &directory, found);
        }
    }
}

fn all_below(directory: &Path, found: &mut BTreeSet<PathBuf>) {
    found.insert(directory.to_path_buf());
    for inner in directories(directory) {
        all_below(&inner, found);
    }
}

fn files_below(directory: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files_below(&entry.path(), found);
        } else {
            found.insert(entry.path());
        }
    }
}
