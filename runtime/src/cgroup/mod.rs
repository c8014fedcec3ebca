//! The cgroup hierarchies of this machine and the directories the runtime owns in them: v2, v1, or v1 with the
//! v2 `unified` hierarchy beside it. Paths of a container are the same in all of them, below the configured root.

pub mod devices;
pub mod limits;
pub mod stats;

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};
use crate::spec::CgroupMembership;
use limits::Resources;

/// v1 controllers that containers join.
const V1_CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "cpuset", "memory", "pids"];
/// The leaf below the root that the agent's own processes live in.
const AGENT: &str = "agent";
/// v2 controllers switched on for the children of the root.
const V2_CONTROLLERS: [&str; 4] = ["cpuset", "cpu", "memory", "pids"];

/// The hierarchies with the runtime's root directory in each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    /// Root directory in the v2 hierarchy.
    v2: Option<PathBuf>,
    /// Where the v2 hierarchy is mounted.
    v2_mount: PathBuf,
    /// Root directory per v1 controller; combined mounts appear under each of their controllers.
    v1: BTreeMap<&'static str, V1>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct V1 {
    /// The root directory of the runtime.
    root: PathBuf,
    /// The last component of the mount point (`cpu,cpuacct`).
    mount_name: String,
    /// Mount options that name the hierarchy.
    options: String,
}

/// One cgroup mount as `/proc/self/mountinfo` tells it.
struct CgroupMount {
    root: PathBuf,
    point: PathBuf,
    /// `None` for v2, controllers for v1.
    controllers: Option<Vec<String>>,
}

fn parse_mounts(mountinfo: &str) -> Vec<CgroupMount> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut left = left.split(' ').skip(3);
            let (root, point) = (left.next()?, left.next()?);
            let mut right = right.split(' ');
            let controllers = match right.next()? {
                "cgroup2" => None,
                "cgroup" => Some(right.nth(1)?.split(',').map(str::to_owned).collect()),
                _ => return None,
            };
            Some(CgroupMount { root: root.into(), point: point.into(), controllers })
        })
        .collect()
}

/// This process' own path per controller; the empty name is v2 (`cgroups(7)`).
fn parse_own(proc_self_cgroup: &str) -> BTreeMap<String, PathBuf> {
    let mut own = BTreeMap::new();
    for line in proc_self_cgroup.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        if let (Some(controllers), Some(path)) = (fields.next(), fields.next()) {
            for controller in controllers.split(',') {
                own.insert(controller.to_owned(), PathBuf::from(path));
            }
        }
    }
    own
}

/// Joins `path` below `base`, with `..`, `.` and leading slashes of `path` taken out.
fn below(base: &Path, path: &Path) -> PathBuf {
    let normal = path.components().filter(|c| matches!(c, Component::Normal(_)));
    normal.fold(base.to_owned(), |p, c| p.join(c))
}

impl Cgroups {
    /// Finds the hierarchies. A relative `root` is taken below this process' own cgroup in each hierarchy, an
    /// absolute one below each mount point.
    ///
    /// # Errors
    /// When `/proc` cannot be read, or there is no usable hierarchy.
    pub fn discover(root: &Path) -> Result<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(Error::io("read mountinfo"))?;
        let own = std::fs::read_to_string("/proc/self/cgroup").map_err(Error::io("read own cgroup"))?;
        Self::from_proc(&mounts, &own, root)
    }

    fn from_proc(mountinfo: &str, own: &str, root: &Path) -> Result<Self> {
        let own = parse_own(own);
        let mut v2 = None;
        let mut v2_mount = PathBuf::new();
        let mut v1 = BTreeMap::new();
        for mount in parse_mounts(mountinfo) {
            let place = |controller: &str| -> PathBuf {
                if root.is_absolute() {
                    return below(&mount.point, root);
                }
                let own = own.get(controller).map_or(Path::new("/"), PathBuf::as_path);
                let own = own.strip_prefix(&mount.root).unwrap_or(own);
                // This process may have moved into its leaf already; the root stays where it was.
                let leaf = below(Path::new(""), root).join(AGENT);
                let own = if own.ends_with(&leaf) {
                    own.ancestors().nth(leaf.components().count()).unwrap_or(own)
                } else {
                    own
                };
                below(&below(&mount.point, own), root)
            };
            match &mount.controllers {
                None if v2.is_none() => {
                    v2 = Some(place(""));
                    v2_mount.clone_from(&mount.point);
                }
                None => {}
                Some(controllers) => {
                    for known in V1_CONTROLLERS {
                        if controllers.iter().any(|c| c == known) && !v1.contains_key(known) {
                            let mount_name = mount
                                .point
                                .file_name()
                                .map_or_else(|| known.to_owned(), |n| n.to_string_lossy().into_owned());
                            let options: Vec<_> = controllers
                                .iter()
                                .filter(|c| V1_CONTROLLERS.contains(&c.as_str()))
                                .cloned()
                                .collect();
                            v1.insert(
                                known,
                                V1 { root: place(known), mount_name, options: options.join(",") },
                            );
                        }
                    }
                }
            }
        }
        if v2.is_none() && v1.is_empty() {
            return Err(Error::Unavailable("no cgroup hierarchy is mounted".into()));
        }
        Ok(Self { v2, v2_mount, v1 })
    }

    /// True when cpu and memory are controlled by v2.
    pub fn is_v2(&self) -> bool {
        self.v1.is_empty()
    }

    /// The runtime's root directory in the v2 hierarchy, where cgroup eBPF programs attach.
    pub fn v2_root(&self) -> Option<&Path> {
        self.v2.as_deref()
    }

    /// The directory of `group` in the v2 hierarchy.
    pub fn v2_dir(&self, group: &Path) -> Option<PathBuf> {
        self.v2.as_ref().map(|root| below(root, group))
    }

    /// The directory of `group` in the hierarchy of a v1 controller.
    pub fn v1_dir(&self, controller: &str, group: &Path) -> Option<PathBuf> {
        self.v1.get(controller).map(|v| below(&v.root, group))
    }

    /// All directories of `group`, without duplicates.
    fn dirs(&self, group: &Path) -> Vec<PathBuf> {
        let mut dirs: Vec<_> = self.v2_dir(group).into_iter().collect();
        for v in self.v1.values() {
            let dir = below(&v.root, group);
            if !dirs.contains(&dir) {
                dirs.push(dir);
            }
        }
        dirs
    }

    /// Makes the root in every hierarchy; on v2 moves this process into `<root>/agent`, since a cgroup with
    /// controllers for its children may hold no processes itself.
    ///
    /// # Errors
    /// What the file system answered.
    pub fn prepare_root(&self) -> Result<()> {
        for dir in self.dirs(Path::new("")) {
            std::fs::create_dir_all(&dir).map_err(Error::path("create cgroup", &dir))?;
        }
        if self.is_v2()
            && let Some(agent) = self.v2_dir(Path::new(AGENT))
        {
            std::fs::create_dir_all(&agent).map_err(Error::path("create cgroup", &agent))?;
            write(&agent.join("cgroup.procs"), "0")?;
        }
        Ok(())
    }

    /// Makes `group` in every hierarchy and applies `resources`.
    ///
    /// # Errors
    /// What the file system answered, or a limit that this hierarchy cannot express.
    pub fn create(&self, group: &Path, resources: &Resources) -> Result<()> {
        for dir in self.dirs(group) {
            std::fs::create_dir_all(&dir).map_err(Error::path("create cgroup", &dir))?;
        }
        if self.is_v2() {
            self.enable_v2_controllers(group);
        }
        if let Some(dir) = self.v1_dir("cpuset", group) {
            inherit_cpuset(&dir)?;
        }
        self.update(group, resources)
    }

    /// Applies `resources` to an existing group.
    ///
    /// # Errors
    /// What the file system answered, or a limit that this hierarchy cannot express.
    pub fn update(&self, group: &Path, resources: &Resources) -> Result<()> {
        if self.is_v2() {
            if let Some(dir) = self.v2_dir(group) {
                for (file, value) in resources.v2_writes()? {
                    write(&dir.join(&file), &value)?;
                }
            }
            return Ok(());
        }
        for (controller, file, value) in resources.v1_writes()? {
            let Some(dir) = self.v1_dir(controller, group) else {
                return Err(Error::Unavailable(format!("no cgroup v1 controller {controller}")));
            };
            let path = dir.join(file);
            // Swap accounting may be compiled out or off; a limit on it is then moot.
            if file.contains("memsw") && !path.exists() {
                continue;
            }
            write(&path, &value)?;
        }
        Ok(())
    }

    /// Switches the controllers on from the mount point down to the parent of `group`. A controller that a level
    /// does not offer, or a level that is not ours, cannot be helped; the write of a limit will say so.
    fn enable_v2_controllers(&self, group: &Path) {
        let Some(dir) = self.v2_dir(group) else { return };
        let mut levels: Vec<_> =
            dir.ancestors().skip(1).take_while(|d| d.starts_with(&self.v2_mount)).collect();
        levels.reverse();
        for level in levels {
            let file = level.join("cgroup.subtree_control");
            let on = std::fs::read_to_string(&file).unwrap_or_default();
            for controller in V2_CONTROLLERS.iter().filter(|c| !on.split_whitespace().any(|o| o == **c)) {
                let _ = std::fs::write(&file, format!("+{controller}"));
            }
        }
    }

    /// What a process of `group` must join.
    pub fn membership(&self, group: &Path) -> CgroupMembership {
        let mut m = CgroupMembership { v2: self.v2_dir(group), ..CgroupMembership::default() };
        for v in self.v1.values() {
            let dir = below(&v.root, group);
            if !m.v1.contains(&dir) {
                m.v1.push(dir);
                m.v1_names.push(format!("{}={}", v.mount_name, v.options));
            }
        }
        m.oom_file = match self.v1_dir("memory", group) {
            Some(dir) => Some(dir.join("memory.oom_control")),
            None => m.v2.as_ref().map(|d| d.join("memory.events")),
        };
        m
    }

    /// Kills every process in `group` and below, at once where the kernel can (`cgroup.kill`).
    ///
    /// # Errors
    /// What the file system answered; a group that is gone is no error.
    pub fn kill(&self, group: &Path) -> Result<()> {
        kill_group(&self.membership(group)).map_err(Error::path("kill cgroup", group))
    }

    /// Removes `group` and the empty groups below it from every hierarchy. Answers false when a process is
    /// still in it.
    pub fn remove(&self, group: &Path) -> bool {
        self.dirs(group).iter().all(|dir| remove_tree(dir).is_ok())
    }

    /// Groups directly below `group`, by name, from any hierarchy.
    pub fn children(&self, group: &Path) -> Vec<String> {
        let mut names = std::collections::BTreeSet::new();
        for dir in self.dirs(group) {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    names.insert(entry.file_name().to_string_lossy().into_owned());
                }
            }
        }
        names.into_iter().collect()
    }
}

/// Kills every process of a container's cgroups.
///
/// # Errors
/// What the file system answered; groups that are gone are no error.
pub fn kill_group(membership: &CgroupMembership) -> io::Result<()> {
    if let Some(dir) = &membership.v2 {
        match std::fs::write(dir.join("cgroup.kill"), "1") {
            Ok(()) => return Ok(()),
            // Before Linux 5.14 there is no such file.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    // A bounded number of rounds: a process that forks as fast as we kill is caught by its pids limit.
    for _ in 0..16 {
        let mut pids = Vec::new();
        for dir in membership.v2.iter().chain(&membership.v1) {
            if let Ok(text) = std::fs::read_to_string(dir.join("cgroup.procs")) {
                pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()));
            }
        }
        if pids.is_empty() {
            break;
        }
        for pid in pids {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
    }
    Ok(())
}

/// Writes one value to a control file.
fn write(path: &Path, value: &str) -> Result<()> {
    std::fs::write(path, value)
        .map_err(|e| Error::Io { what: format!("write {value:?} to {}", path.display()), source: e })
}

/// A v1 cpuset without cpus and memory nodes accepts no process: fills each level from the one above, beginning
/// below the lowest that has them.
fn inherit_cpuset(dir: &Path) -> Result<()> {
    const FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];
    let read = |level: &Path, file: &str| std::fs::read_to_string(level.join(file)).ok();
    let is_empty = |level: &Path| FILES.iter().any(|f| read(level, f).is_some_and(|t| t.trim().is_empty()));
    let mut levels: Vec<_> = dir.ancestors().take_while(|d| is_empty(d)).collect();
    levels.reverse();
    for level in levels {
        for file in FILES {
            let above = level.parent().and_then(|p| read(p, file)).unwrap_or_default();
            if read(level, file).is_some_and(|t| t.trim().is_empty()) && !above.trim().is_empty() {
                write(&level.join(file), above.trim())?;
            }
        }
    }
    Ok(())
}

/// Removes a cgroup directory and those below it.
fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

    #[test]
    fn hybrid_below_own_cgroup() {
        let own = "4:memory:/own/box\n2:cpu,cpuacct:/\n0::/u\n";
        let Ok(c) = Cgroups::from_proc(HYBRID, own, Path::new("hawser/../x")) else { panic!("usable") };
        assert!(!c.is_v2());
        let group = Path::new("/kubepods/pod1/abc");
        assert_eq!(c.v2_dir(group), Some("/sys/fs/cgroup/unified/u/hawser/x/kubepods/pod1/abc".into()));
        let memory = "/sys/fs/cgroup/memory/own/box/hawser/x/kubepods/pod1/abc";
        assert_eq!(c.v1_dir("memory", group), Some(memory.into()));
        let m = c.membership(group);
        assert_eq!(m.v1.len(), 2, "a combined mount is joined once: {:?}", m.v1);
        assert_eq!(m.oom_file, Some(PathBuf::from(memory).join("memory.oom_control")));
        assert_eq!(m.v1_names, ["cpu,cpuacct=cpu,cpuacct", "memory=memory"]);
    }

    #[test]
    fn the_root_stays_when_the_agent_has_moved_into_its_leaf() {
        for own in ["0::/u\n", "0::/u/a/b/agent\n"] {
            let c = Cgroups::from_proc(HYBRID, own, Path::new("a/b"));
            assert!(c.is_ok_and(|c| c.v2_root() == Some(Path::new("/sys/fs/cgroup/unified/u/a/b"))), "{own}");
        }
    }

    #[test]
    fn v2_below_the_mount_point() {
        let mounts = "34 30 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let Ok(c) = Cgroups::from_proc(mounts, "0::/u\n", Path::new("/hawser")) else { panic!("usable") };
        assert!(c.is_v2());
        assert_eq!(c.v2_root(), Some(Path::new("/sys/fs/cgroup/hawser")));
        assert!(Cgroups::from_proc("", "", Path::new("x")).is_err());
    }
}
