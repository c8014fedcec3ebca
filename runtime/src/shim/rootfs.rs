//! A container's view of the file system: overlay root, bind mounts, `/proc`, `/sys`, `/dev`, masks, pivot_root.
//! Runs in a forked child that has a mount namespace of its own.
//!
//! Everything inside the root is found by descriptor: paths are opened with `openat2(RESOLVE_IN_ROOT)` and
//! mounts are attached to the descriptor, so symlinks in the image or in a volume cannot lead a mount out.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat, makedev, mkdirat, mknodat};
use nix::sys::statfs::fstatfs;
use nix::unistd::{Gid, Uid, fchdir, fchownat, symlinkat};

use super::finish::context;
use crate::spec::{BindMount, ContainerSpec, DeviceNode, MountPropagation};
use crate::sys::mount as fs;
use crate::sys::tty;

/// What a mount point must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// Anything else.
    File,
}

/// The most symlinks without a target that are followed while a path is made.
const MAX_LINKS: usize = 8;

fn open_in(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    openat2(root, path, how)
}

/// Opens `path` below `root`, making what is missing: directories, and a last component of `kind`. Symlinks are
/// followed within the root, also to targets that are missing.
///
/// # Errors
/// What the kernel answered.
pub fn ensure(root: BorrowedFd<'_>, path: &str, kind: Kind) -> io::Result<OwnedFd> {
    ensure_links(root, Path::new(path), kind, MAX_LINKS)
}

fn ensure_links(root: BorrowedFd<'_>, path: &Path, kind: Kind, links: usize) -> io::Result<OwnedFd> {
    match open_in(root, path) {
        Err(Errno::ENOENT) => {}
        other => return Ok(other?),
    }
    let parts: Vec<_> = path
        .components()
        .filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir))
        .map(|c| c.as_os_str())
        .collect();
    let mut sofar = PathBuf::new();
    let mut dir = open_in(root, &sofar)?;
    for (n, part) in parts.iter().enumerate() {
        let parent = sofar.clone();
        sofar.push(part);
        dir = match open_in(root, &sofar) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => {
                let last = n + 1 == parts.len();
                let made = if last && kind == Kind::File {
                    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                    openat(&dir, *part, flags, Mode::from_bits_truncate(0o644)).map(drop)
                } else {
                    mkdirat(&dir, *part, Mode::from_bits_truncate(0o755))
                };
                match made {
                    Ok(()) => {}
                    // It is there and yet cannot be opened: a symlink to nothing.
                    Err(Errno::EEXIST) if links > 0 => {
                        let target = PathBuf::from(readlinkat(&dir, *part)?);
                        let rest: PathBuf = parts[n + 1..].iter().collect();
                        let base = if target.is_absolute() { target } else { parent.join(target) };
                        return ensure_links(root, &base.join(rest), kind, links - 1);
                    }
                    Err(Errno::EEXIST) => return Err(Errno::ELOOP.into()),
                    Err(e) => return Err(e.into()),
                }
                open_in(root, &sofar)?
            }
            Err(e) => return Err(e.into()),
        };
    }
    Ok(dir)
}

fn is_directory(fd: impl AsFd) -> io::Result<bool> {
    Ok(SFlag::from_bits_truncate(fstat(fd)?.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR)
}

/// Prepares a bind mount, detached: its attributes are set before anything can see it.
fn prepare_bind(m: &BindMount) -> io::Result<(OwnedFd, Kind)> {
    let tree = fs::clone_tree(&m.source, true)?;
    let propagation = match m.propagation {
        MountPropagation::Private => fs::Propagation::Private,
        MountPropagation::HostToContainer => fs::Propagation::Slave,
        MountPropagation::Bidirectional => fs::Propagation::Shared,
    };
    fs::set_attributes(&tree, 0, 0, propagation, true)?;
    if m.restricted {
        let attrs = fs::MOUNT_ATTR_NOSUID | fs::MOUNT_ATTR_NODEV | fs::MOUNT_ATTR_NOEXEC;
        fs::set_attributes(&tree, attrs, 0, fs::Propagation::Unchanged, false)?;
    }
    if m.readonly || m.recursive_readonly {
        let recursive = m.recursive_readonly;
        fs::set_attributes(&tree, fs::MOUNT_ATTR_RDONLY, 0, fs::Propagation::Unchanged, recursive)?;
    }
    let kind = if is_directory(&tree)? { Kind::Directory } else { Kind::File };
    Ok((tree, kind))
}

/// Mounts the overlay in this mount namespace and opens its root.
fn mount_overlay(spec: &ContainerSpec) -> io::Result<OwnedFd> {
    let r = &spec.rootfs;
    // Layer names are relative to the working directory: the options must fit one page.
    nix::unistd::chdir(&r.layers_dir)?;
    // "volatile": a container's writable layer is never used again after a crash of the machine.
    let options = format!(
        "lowerdir={},upperdir={},workdir={},volatile",
        r.lower.join(":"),
        r.upper.display(),
        r.work.display()
    );
    mount(Some("overlay"), &r.mount_point, Some("overlay"), MsFlags::empty(), Some(options.as_str()))?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(AT_FDCWD, &r.mount_point, flags, Mode::empty())?)
}

const QUIET: u64 = fs::MOUNT_ATTR_NOSUID | fs::MOUNT_ATTR_NODEV | fs::MOUNT_ATTR_NOEXEC;

fn mount_at(root: BorrowedFd<'_>, path: &str, what: &OwnedFd) -> io::Result<()> {
    fs::attach(what, ensure(root, path, Kind::Directory)?)
}

fn mount_cgroups(spec: &ContainerSpec, sys: &OwnedFd, attrs: u64) -> io::Result<()> {
    let Ok(point) = open_in(sys.as_fd(), Path::new("fs/cgroup")) else { return Ok(()) };
    let attrs = attrs | QUIET;
    if spec.cgroups.v1_names.is_empty() {
        return fs::attach(fs::new_filesystem(c"cgroup2", &[], attrs)?, point);
    }
    let tmpfs = fs::new_filesystem(c"tmpfs", &[("mode", "755")], QUIET)?;
    fs::attach(&tmpfs, point)?;
    for name in &spec.cgroups.v1_names {
        let (dir, controllers) = name.split_once('=').unwrap_or((name, name));
        let options: Vec<_> = controllers.split(',').map(|c| (c, "")).collect();
        let hierarchy = fs::new_filesystem(c"cgroup", &options, attrs)?;
        fs::attach(hierarchy, ensure(tmpfs.as_fd(), dir, Kind::Directory)?)?;
    }
    if spec.cgroups.v2.is_some() {
        let v2 = fs::new_filesystem(c"cgroup2", &[], attrs)?;
        fs::attach(v2, ensure(tmpfs.as_fd(), "unified", Kind::Directory)?)?;
    }
    fs::set_attributes(&tmpfs, fs::MOUNT_ATTR_RDONLY, 0, fs::Propagation::Unchanged, false)
}

fn make_node(dev: BorrowedFd<'_>, name: &Path, node: &DeviceNode) -> io::Result<()> {
    let kind = if node.block { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
    let mode = Mode::from_bits_truncate(node.mode);
    mknodat(dev, name, kind, mode, makedev(node.major.into(), node.minor.into()))?;
    fchmodat(dev, name, mode, FchmodatFlags::FollowSymlink)?;
    let owner = (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)));
    fchownat(dev, name, owner.0, owner.1, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// (name, major, minor) of the nodes every container has.
const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("pts/ptmx", "ptmx"),
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
];

/// Makes `/dev` and answers the pts file system.
fn mount_dev(spec: &ContainerSpec, root: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attrs = fs::MOUNT_ATTR_NOSUID | fs::MOUNT_ATTR_STRICTATIME;
    let dev = fs::new_filesystem(c"tmpfs", &[("mode", "755"), ("size", "65536k")], attrs)?;
    mount_at(root, "/dev", &dev)?;
    for (name, major, minor) in NODES {
        let node = DeviceNode {
            path: String::new(),
            block: false,
            major,
            minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
            permissions: String::new(),
        };
        make_node(dev.as_fd(), Path::new(name), &node)?;
    }
    for (target, name) in LINKS {
        symlinkat(target, &dev, name)?;
    }
    let pts_options = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
    let pts = fs::new_filesystem(c"devpts", &pts_options, fs::MOUNT_ATTR_NOSUID | fs::MOUNT_ATTR_NOEXEC)?;
    mount_at(dev.as_fd(), "pts", &pts)?;
    let mqueue = fs::new_filesystem(c"mqueue", &[], QUIET)?;
    mount_at(dev.as_fd(), "mqueue", &mqueue)?;
    mkdirat(&dev, "shm", Mode::from_bits_truncate(0o1777))?;
    for node in &spec.devices {
        let Some(name) = node.path.strip_prefix("/dev/") else {
            return Err(io::Error::other(format!("device path {:?} is not below /dev", node.path)));
        };
        let (parent, name) = name.rsplit_once('/').unwrap_or(("", name));
        let parent = ensure(dev.as_fd(), parent, Kind::Directory)?;
        match make_node(parent.as_fd(), Path::new(name), node) {
            // One of the usual nodes given once more.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(context(&node.path))?,
        }
    }
    Ok(pts)
}

fn mask(root: BorrowedFd<'_>, path: &str, null: &File) -> io::Result<()> {
    let target = match open_in(root, Path::new(path)) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
        other => other?,
    };
    if is_directory(&target)? {
        let empty = fs::new_filesystem(c"tmpfs", &[], QUIET | fs::MOUNT_ATTR_RDONLY)?;
        fs::attach(empty, target)
    } else {
        fs::attach(fs::clone_tree_at(null)?, target)
    }
}

fn make_readonly(root: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let target = match open_in(root, Path::new(path)) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
        other => other?,
    };
    let tree = fs::clone_tree_at(&target)?;
    fs::set_attributes(&tree, fs::MOUNT_ATTR_RDONLY, 0, fs::Propagation::Unchanged, false)?;
    fs::attach(tree, target)
}

/// Files of `/proc` that may be covered, by those who tell containers of their own limits.
const COVERABLE: [&str; 8] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
];

/// Refuses a mount inside `/proc`, whatever path leads there: a false `/proc` deceives those who write to it.
fn refuse_proc(destination: &str, target: &OwnedFd) -> io::Result<()> {
    const PROC_SUPER_MAGIC: i64 = 0x9fa0;
    if fstatfs(target)?.filesystem_type().0 == PROC_SUPER_MAGIC && !COVERABLE.contains(&destination) {
        return Err(io::Error::other("it is inside /proc"));
    }
    Ok(())
}

/// The container's console: master for the shim, slave for the program.
pub struct Console {
    /// Master side.
    pub master: OwnedFd,
    /// Slave side.
    pub slave: OwnedFd,
}

/// Opens a new terminal of a pts file system.
///
/// # Errors
/// What the kernel answered.
pub fn open_console(pts: BorrowedFd<'_>) -> io::Result<Console> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let master = openat(pts, "ptmx", flags, Mode::empty())?;
    let slave = tty::open_peer(&master)?;
    Ok(Console { master, slave })
}

/// Makes the container's root, and makes it the root of this process. With a terminal, answers its two ends.
///
/// # Errors
/// Whatever stood in the way, with what was being done.
pub fn enter(spec: &ContainerSpec) -> io::Result<Option<Console>> {
    nix::sys::stat::umask(Mode::empty());
    // Clone the sources while their propagation is still the host's, then cut this namespace off.
    let mut binds = Vec::new();
    for m in &spec.mounts {
        let what = format!("mount {} on {}", m.source.display(), m.destination);
        binds.push((m, prepare_bind(m).map_err(context(&what))?));
    }
    let null = File::open("/dev/null")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(context("make mounts private"))?;
    let root = mount_overlay(spec).map_err(context("mount overlay"))?;
    let root = root.as_fd();

    let proc = fs::new_filesystem(c"proc", &[], QUIET).map_err(context("make proc"))?;
    mount_at(root, "/proc", &proc).map_err(context("mount /proc"))?;
    let read_only = if spec.privileged { 0 } else { fs::MOUNT_ATTR_RDONLY };
    let sys = fs::new_filesystem(c"sysfs", &[], QUIET | read_only).map_err(context("make sysfs"))?;
    mount_at(root, "/sys", &sys).map_err(context("mount /sys"))?;
    mount_cgroups(spec, &sys, read_only).map_err(context("mount cgroups"))?;
    let pts = mount_dev(spec, root).map_err(context("make /dev"))?;

    for (m, (tree, kind)) in &binds {
        let what = format!("mount {} on {}", m.source.display(), m.destination);
        let target = ensure(root, &m.destination, *kind).map_err(context(&what))?;
        refuse_proc(&m.destination, &target).map_err(context(&what))?;
        fs::attach(tree, target).map_err(context(&what))?;
    }
    let console = if spec.process.tty {
        let console = open_console(pts.as_fd()).map_err(context("open console"))?;
        let point = ensure(root, "/dev/console", Kind::File)?;
        fs::attach(fs::clone_tree_at(&console.slave)?, point).map_err(context("mount /dev/console"))?;
        Some(console)
    } else {
        None
    };
    for path in &spec.readonly_paths {
        make_readonly(root, path).map_err(context(&format!("make {path} read-only")))?;
    }
    for path in &spec.masked_paths {
        mask(root, path, &null).map_err(context(&format!("mask {path}")))?;
    }

    // pivot_root(".", ".") puts the old root over the new one, from where it is detached (pivot_root(2)).
    fchdir(root)?;
    nix::unistd::pivot_root(".", ".").map_err(context("pivot_root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(context("detach old root"))?;
    nix::unistd::chdir("/")?;
    if spec.rootfs.readonly {
        let root = openat(AT_FDCWD, "/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        fs::set_attributes(root, fs::MOUNT_ATTR_RDONLY, 0, fs::Propagation::Unchanged, false)
            .map_err(context("make root read-only"))?;
    }
    Ok(console)
}
