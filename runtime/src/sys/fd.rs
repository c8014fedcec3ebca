//! Descriptors for the event loop.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::unix::AsyncFd;

/// Gives the descriptor non-blocking mode.
///
/// # Errors
/// What `fcntl(2)` answered.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Registers a pipe or terminal with the event loop, non-blocking.
///
/// # Errors
/// What the kernel answered.
pub fn asynchronous(fd: OwnedFd) -> io::Result<AsyncFd<File>> {
    set_nonblocking(&fd)?;
    // SAFETY: a File owns its descriptor and answers the same one until it is dropped, and the AsyncFd owns the
    // File.
    unsafe { AsyncFd::register(File::from(fd)) }.map_err(Into::into)
}
