//! The place of a run: one directory and one cgroup, emptied after.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::kit::{Failure, IMAGE, PATIENCE};
use crate::kit_image;

/// Where everything of a run lies.
pub struct Scene {
    pub dir: PathBuf,
    /// Relative: below this process' own cgroups.
    pub cgroup: PathBuf,
    _temporary: tempfile::TempDir,
}

impl Scene {
    pub fn new() -> Result<Self, Failure> {
        let temporary = tempfile::Builder::new().prefix("hawser-runtime-test-").tempdir()?;
        let dir = temporary.path().canonicalize()?;
        let cgroup = PathBuf::from(dir.file_name().unwrap_or_default());
        kit_image::busybox_archive(
            &dir.join("busybox.tar"),
            IMAGE,
            &kit_image::ImageSpecification::default(),
        )?;
        Ok(Self { dir, cgroup, _temporary: temporary })
    }

    /// Removes everything and tells what should have been gone before: processes, mounts, cgroups.
    pub fn clean_up(&self) -> Vec<String> {
        let mut left = Vec::new();
        let cgroups = self.cgroup_dirs();
        for dir in &cgroups {
            for procs in find(dir, "cgroup.procs") {
                for pid in fs::read_to_string(procs).unwrap_or_default().lines() {
                    if let Ok(pid) = pid.parse() {
                        left.push(format!("process {pid}"));
                        let _ = nix::sys::signal::kill(
                            nix::unistd::Pid::from_raw(pid),
                            nix::sys::signal::SIGKILL,
                        );
                    }
                }
            }
        }
        let shims = shims_below(&self.dir);
        for pid in shims {
            left.push(format!("shim {pid}"));
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
        for point in mounts_below(&self.dir) {
            left.push(format!("mount {point}"));
            let _ = nix::mount::umount2(Path::new(&point), nix::mount::MntFlags::MNT_DETACH);
        }
        for dir in &cgroups {
            let begin = Instant::now();
            let mut groups = find_dirs(dir);
            groups.reverse();
            for group in groups {
                if group.components().count() > dir.components().count() + 2 {
                    left.push(format!("cgroup {}", group.display()));
                }
                while fs::remove_dir(&group).is_err() && group.exists() && begin.elapsed() < PATIENCE {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            if dir.exists() {
                left.push(format!("cgroup {}", dir.display()));
            }
        }
        left
    }

    fn cgroup_dirs(&self) -> Vec<PathBuf> {
        // Below each mount point, wherever this process' own group is.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let paths: Vec<_> = own.lines().filter_map(|l| l.splitn(3, ':').nth(2)).collect();
        let points = mounts.lines().filter(|l| l.contains(" - cgroup")).filter_map(|l| l.split(' ').nth(4));
        let mut dirs: Vec<_> = points
            .flat_map(|p| paths.iter().map(move |own| Path::new(p).join(own.trim_start_matches('/'))))
            .map(|d| d.join(&self.cgroup))
            .filter(|d| d.exists())
            .collect();
        dirs.sort();
        dirs.dedup();
        dirs
    }
}

fn find_dirs(dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![dir.to_owned()];
    let mut at = 0;
    while at < all.len() {
        let entries = fs::read_dir(&all[at]).into_iter().flatten().flatten();
        let dirs: Vec<_> =
            entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect();
        all.extend(dirs);
        at += 1;
    }
    all
}

fn find(dir: &Path, name: &str) -> Vec<PathBuf> {
    find_dirs(dir).into_iter().map(|d| d.join(name)).filter(|p| p.exists()).collect()
}

pub fn mounts_below(dir: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|l| l.split(' ').nth(4));
    let mut points: Vec<_> = points.filter(|p| Path::new(p).starts_with(dir)).map(str::to_owned).collect();
    points.reverse();
    points
}

/// Process ids of shims whose sandbox directory is below `dir`.
pub fn shims_below(dir: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let args: Vec<_> = line.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
        if args.get(1).is_some_and(|a| a == "shim")
            && args.get(2).is_some_and(|d| Path::new(d).starts_with(dir))
        {
            pids.push(pid);
        }
    }
    pids
}
