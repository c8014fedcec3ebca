//! The child of an exec: joins a running container's namespaces and cgroups, and runs a program there.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{SFlag, fstat, major, minor};
use nix::sys::statfs::fstatfs;

use super::finish::{self, Report, context};
use super::init::{self, Channels};
use super::rootfs;
use crate::spec::user::User;
use crate::spec::{CgroupMembership, ProcessSpec};

/// The child's body; answers its exit code when the program could not run.
pub fn run(
    spec: &ProcessSpec,
    cgroups: &CgroupMembership,
    user: &User,
    container: BorrowedFd<'_>,
    channels: Channels,
    in_v2: bool,
) -> i32 {
    let mut status = File::from(channels.status);
    let stdio = channels.stdio;
    let started = (|| -> io::Result<Infallible> {
        init::prepare(spec)?;
        init::join_cgroups(cgroups, in_v2)?;
        // The network, IPC and UTS namespaces are the shim's, and so this child's, already.
        setns(container, CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP)
            .map_err(context("join the container"))?;
        let stdio = match &channels.console {
            Some(channel) => init::take_console(open_console()?, channel)?,
            None => stdio,
        };
        finish::set_stdio(stdio, user.uid)?;
        finish::run_program(spec, user, &mut status)
    })();
    let error = match started {
        Err(e) => e,
        Ok(never) => match never {},
    };
    finish::report(&mut status, &Report { user: None, error: Some(error.to_string()) });
    1
}

/// Opens a terminal of the container's `/dev/pts`. The container runs and may have put anything there, so what
/// is opened must be the real thing: a ptmx node of a devpts.
fn open_console() -> io::Result<rootfs::Console> {
    const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;
    let root = File::open("/")?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let pts = openat2(&root, "dev/pts", how).map_err(context("open /dev/pts"))?;
    if fstatfs(&pts)?.filesystem_type().0 != DEVPTS_SUPER_MAGIC {
        return Err(io::Error::other("/dev/pts of the container is no devpts"));
    }
    let console = rootfs::open_console(pts.as_fd())?;
    let stat = fstat(&console.master)?;
    let is_character = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
    if !is_character || (major(stat.st_rdev), minor(stat.st_rdev)) != (5, 2) {
        return Err(io::Error::other("/dev/pts/ptmx of the container is no terminal multiplexer"));
    }
    Ok(console)
}
