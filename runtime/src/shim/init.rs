//! The child that becomes a container's first process. Forked by the shim into the container's PID and mount
//! namespaces; everything it inherits of the shim is close-on-exec.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, unshare};

use super::finish::{self, Report, context};
use super::rootfs;
use crate::spec::{CgroupMembership, ContainerSpec, ProcessSpec};
use crate::sys::{process, socket, tty};

/// Descriptors of the child.
pub struct Channels {
    /// Reports go here.
    pub status: OwnedFd,
    /// The terminal's master side goes here.
    pub console: Option<OwnedFd>,
    /// stdin, stdout, stderr; `None` is `/dev/null`.
    pub stdio: [Option<OwnedFd>; 3],
}

/// Joins the cgroups; `in_v2` when `clone3` has put this process into the v2 one.
///
/// # Errors
/// What the file system answered.
pub fn join_cgroups(cgroups: &CgroupMembership, in_v2: bool) -> io::Result<()> {
    let v2 = cgroups.v2.iter().filter(|_| !in_v2);
    for dir in v2.chain(&cgroups.v1) {
        fs::write(dir.join("cgroup.procs"), "0").map_err(context(&format!("join {}", dir.display())))?;
    }
    Ok(())
}

/// What is done first in every child: signals, session, dumpability, limits.
///
/// # Errors
/// What the kernel answered.
pub fn prepare(spec: &ProcessSpec) -> io::Result<()> {
    process::reset_signals();
    nix::unistd::setsid()?;
    // Until exec, processes of the container must not reach this one (and the host through its /proc/PID/exe).
    nix::sys::prctl::set_dumpable(false)?;
    for (resource, soft, hard) in &spec.rlimits {
        process::set_rlimit(*resource, *soft, *hard).map_err(context("set resource limit"))?;
    }
    if let Some(score) = spec.oom_score_adj {
        set_oom_score(score).map_err(context("set oom_score_adj"))?;
    }
    match process::new_session_keyring() {
        Err(e) if e.raw_os_error() != Some(libc::ENOSYS) => Err(context("make session keyring")(e)),
        _ => Ok(()),
    }
}

/// Sets the score by which the kernel picks whom to kill. To lower it below what it was needs CAP_SYS_RESOURCE
/// (proc_pid_oom_score_adj(5)); a runtime without it, as in a user namespace, leaves the lowest there is, the inherited
/// one, as other runtimes do there.
fn set_oom_score(score: i32) -> io::Result<()> {
    const FILE: &str = "/proc/self/oom_score_adj";
    match fs::write(FILE, score.to_string()) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let inherited = fs::read_to_string(FILE)?.trim().parse::<i32>();
            if inherited.is_ok_and(|inherited| score < inherited) { Ok(()) } else { Err(e) }
        }
        written => written,
    }
}

/// Sends a terminal's master side to the shim and takes the slave side as controlling terminal and stdio.
///
/// # Errors
/// What the kernel answered.
pub fn take_console(console: rootfs::Console, channel: &OwnedFd) -> io::Result<[Option<OwnedFd>; 3]> {
    socket::send_with_fds(channel, b"c", &[console.master.as_raw_fd()])?;
    tty::set_controlling(&console.slave)?;
    Ok([Some(console.slave.try_clone()?), Some(console.slave.try_clone()?), Some(console.slave)])
}

/// The child's body; answers its exit code when the program could not run.
pub fn run(spec: &ContainerSpec, channels: Channels, in_v2: bool) -> i32 {
    let mut status = File::from(channels.status);
    let error = match start(spec, &mut status, channels.console, channels.stdio, in_v2) {
        Err(e) => e,
        Ok(never) => match never {},
    };
    finish::report(&mut status, &Report { user: None, error: Some(error.to_string()) });
    1
}

fn start(
    spec: &ContainerSpec,
    status: &mut File,
    console_channel: Option<OwnedFd>,
    mut stdio: [Option<OwnedFd>; 3],
    in_v2: bool,
) -> io::Result<Infallible> {
    prepare(&spec.process)?;
    join_cgroups(&spec.cgroups, in_v2)?;
    // After joining: the new cgroup namespace is rooted where this process is.
    unshare(CloneFlags::CLONE_NEWCGROUP).map_err(context("make cgroup namespace"))?;
    let console = rootfs::enter(spec)?;
    let user = finish::resolve_user(&spec.process.user)?;
    if let (Some(console), Some(channel)) = (console, &console_channel) {
        stdio = take_console(console, channel)?;
    }
    finish::set_stdio(stdio, user.uid)?;
    finish::run_program(&spec.process, &user, status)
}

/// The first process of a PID namespace that the pod's containers share: it only reaps.
pub fn pause() -> i32 {
    use nix::sys::signal::{SigSet, Signal};
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

    process::reset_signals();
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    if set.thread_block().is_err() || nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).is_err() {
        return 1;
    }
    let _ = nix::sys::prctl::set_name(c"hawser-pause");
    let _ = std::env::set_current_dir(Path::new("/"));
    loop {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
        if set.wait().is_err() {
            return 1;
        }
    }
}
