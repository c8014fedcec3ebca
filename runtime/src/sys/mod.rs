//! The crate's only unsafe code: thin, safe wrappers over system calls that neither std nor nix offers safely.
//!
//! Each function takes owned or borrowed descriptors and plain values, and answers `io::Result`. Nothing here
//! decides anything: policy lives in the modules that call it.

pub mod bpf;
pub mod fd;
pub mod memory;
pub mod mount;
pub mod net;
pub mod process;
pub mod seccomp;
pub mod socket;
pub mod tty;
pub mod xattr;

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Converts a system call's `-1` into the thread's last error.
fn check(rc: libc::c_long) -> io::Result<libc::c_long> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

/// A path as a C string; a path with a NUL byte is `InvalidInput`.
fn cstring(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}
