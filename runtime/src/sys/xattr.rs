//! Extended attributes of things named by an open parent directory and a name, never following a final symlink.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use super::{check, cstring};

/// `/proc/self/fd/N/name`: the path form of "`name` in the directory behind `dir`".
pub fn path_in(dir: impl AsFd, name: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd())).join(name)
}

/// Sets an extended attribute.
///
/// # Errors
/// What `lsetxattr(2)` answered.
pub fn set(dir: impl AsFd, name: &Path, attribute: &[u8], value: &[u8]) -> io::Result<()> {
    let path = cstring(&path_in(dir, name))?;
    let attribute = CString::new(attribute)?;
    let path = path.as_ptr();
    // SAFETY: both strings and the value live over the call; the length is the value's.
    let rc = unsafe { libc::lsetxattr(path, attribute.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    check(rc.into())?;
    Ok(())
}

/// Reads an extended attribute of at most `N` bytes; `None` when there is none.
///
/// # Errors
/// What `lgetxattr(2)` answered, `ERANGE` for a longer value included.
pub fn get<const N: usize>(path: &Path, attribute: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let path = cstring(path)?;
    let attribute = CString::new(attribute)?;
    let mut value = vec![0u8; N];
    // SAFETY: the buffer is live and its length is passed along.
    let rc =
        unsafe { libc::lgetxattr(path.as_ptr(), attribute.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    match check(rc as libc::c_long) {
        Ok(len) => {
            value.truncate(len as usize);
            Ok(Some(value))
        }
        Err(e) if e.raw_os_error() == Some(libc::ENODATA) => Ok(None),
        Err(e) => Err(e),
    }
}
