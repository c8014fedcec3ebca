//! Making, watching and preparing processes: `clone3(2)`, pidfds, signals, descriptors.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::check;

/// `linux/sched.h`; libc's constant has a type too small for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Runs `child` in a new process, like `fork(2)`, in new namespaces (`CLONE_NEW*` in `namespaces`) and, when
/// given, in the cgroup v2 directory `cgroup`. Answers the process id and a pidfd. The child exits with the
/// value that `child` returns; it runs no destructors of the parent.
///
/// # Errors
/// What `clone3(2)` answered, and `InvalidInput` when this process has more than one thread: the child of such a
/// process could find a lock taken by a thread that it does not have.
pub fn spawn(
    namespaces: u64,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> i32,
) -> io::Result<(i32, OwnedFd)> {
    if thread_count()? != 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "clone3 from a process with threads"));
    }
    let mut pidfd: i32 = -1;
    let args = libc::clone_args {
        flags: namespaces | libc::CLONE_PIDFD as u64 | if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 },
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |c| c.as_raw_fd() as u64),
    };
    // SAFETY: without CLONE_VM and with no stack given this is fork: the child goes on with a copy of this
    // stack. This process has one thread (checked above), so the copy's locks are all free. `args` and `pidfd`
    // live over the call.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, std::mem::size_of_val(&args)) })?;
    if pid == 0 {
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(70);
        // SAFETY: _exit ends this process at once and runs nothing of the parent's.
        unsafe { libc::_exit(code) };
    }
    // SAFETY: CLONE_PIDFD made the kernel store a new descriptor, ours alone, in `pidfd`.
    Ok((pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// [`spawn`] of a child that keeps nothing of its parent's: it starts with stdin, stdout and stderr only. That it
/// is a plain function makes sure that it captures no descriptor.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_bare(namespaces: u64, child: fn() -> i32) -> io::Result<(i32, OwnedFd)> {
    spawn(namespaces, None, || {
        // SAFETY: this runs in the child, where no object that owns one of these descriptors is used or dropped
        // any more: `child` has none, and the process ends with it.
        unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
        child()
    })
}

/// The number of threads of this process.
fn thread_count() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// A pidfd for a process that is already there.
///
/// # Errors
/// `ESRCH` when there is none.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends a signal to the very process behind a pidfd. Signal numbers may be real-time ones.
///
/// # Errors
/// `ESRCH` when it is gone, `EINVAL` for a number that is no signal.
pub fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is what the manual page allows; the descriptor is borrowed over the call.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_fd().as_raw_fd(), signal, null, 0) })?;
    Ok(())
}

/// Gives every signal its default action and unblocks all, as a container's program expects at its start.
pub fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no handler; numbers that cannot be set answer an error, which means nothing.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let empty = nix::sys::signal::SigSet::empty();
    // Cannot fail with a valid `how`.
    let _ = empty.thread_set_mask();
}

/// Marks every descriptor from `first` up close-on-exec, so that none leaks into a container's program.
///
/// # Errors
/// What `close_range(2)` answered.
pub fn cloexec_from(first: u32) -> io::Result<()> {
    // SAFETY: CLOSE_RANGE_CLOEXEC closes nothing now; it only sets a flag on descriptors.
    check(unsafe {
        libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_uint)
    })?;
    Ok(())
}

/// Gives this process a session keyring of its own (`keyctl(2)`), so that it cannot read the agent's.
///
/// # Errors
/// What `keyctl` answered; `ENOSYS` on a kernel without keys.
pub fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    let anonymous = std::ptr::null::<libc::c_char>();
    // SAFETY: a null name asks for an anonymous keyring.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, anonymous) })?;
    Ok(())
}

/// Sets a limit of this process for `resource` (`RLIMIT_*`). Without `CAP_SYS_RESOURCE` a hard limit cannot rise; it
/// then stays, and the soft one is cut to it.
///
/// # Errors
/// What `prlimit(2)` answered.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let set = |limit: libc::rlimit64| {
        // SAFETY: `limit` is a live rlimit64 that the kernel only reads; no old value is asked for.
        check(unsafe {
            libc::syscall(
                libc::SYS_prlimit64,
                0,
                resource,
                &raw const limit,
                std::ptr::null_mut::<libc::rlimit64>(),
            )
        })
    };
    match set(libc::rlimit64 { rlim_cur: soft, rlim_max: hard }) {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
        other => return other.map(drop),
    }
    let mut current = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `current` is a live rlimit64 that the kernel fills; no new value is given.
    check(unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, resource, std::ptr::null::<libc::rlimit64>(), &raw mut current)
    })?;
    let hard = hard.min(current.rlim_max);
    set(libc::rlimit64 { rlim_cur: soft.min(hard), rlim_max: hard }).map(drop)
}
