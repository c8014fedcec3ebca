//! Pseudo-terminals (`pty(7)`, `ioctl_tty(2)`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::check;

/// Opens the slave side of a pty master without going through a path, which a container could have replaced.
///
/// # Errors
/// What the ioctls answered.
pub fn open_peer(master: impl AsFd) -> io::Result<OwnedFd> {
    let master = master.as_fd().as_raw_fd();
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int from the pointer, which is live.
    check(unsafe { libc::ioctl(master, libc::TIOCSPTLCK, &raw const unlock) }.into())?;
    // SAFETY: TIOCGPTPEER takes open flags by value.
    let fd = check(
        unsafe { libc::ioctl(master, libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) }
            .into(),
    )?;
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Makes the terminal the controlling one of this session.
///
/// # Errors
/// `EPERM` when this process leads no session or the terminal has one.
pub fn set_controlling(slave: impl AsFd) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an int by value.
    check(unsafe { libc::ioctl(slave.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) }.into())?;
    Ok(())
}

/// Sets the window size, which sends SIGWINCH to the foreground process group.
///
/// # Errors
/// `ENOTTY` when the descriptor is no terminal.
pub fn set_window_size(fd: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize from the pointer, which is live.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into())?;
    Ok(())
}
