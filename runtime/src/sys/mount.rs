//! The mount interface of Linux 5.2 and later (`fsopen(2)`, `open_tree(2)`, `move_mount(2)`,
//! `mount_setattr(2)`), which names both ends of a mount by descriptor: a path that changes under us between
//! check and use cannot send a mount elsewhere.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use super::{check, cstring};

pub use libc::{
    MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MOUNT_ATTR_STRICTATIME,
};

/// How mount events pass between a mount and its peers (`mount_namespaces(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// As the source of the clone has it.
    Unchanged,
    /// `MS_PRIVATE`.
    Private,
    /// `MS_SLAVE`.
    Slave,
    /// `MS_SHARED`.
    Shared,
}

/// Makes a file system of type `fstype` with `options` (`""` as a value means a flag), unattached.
///
/// # Errors
/// What `fsopen`, `fsconfig` or `fsmount` answered.
pub fn new_filesystem(fstype: &CStr, options: &[(&str, &str)], attrs: u64) -> io::Result<OwnedFd> {
    // SAFETY: `fstype` is a C string that lives over the call; the kernel only reads it.
    let fd = check(unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), libc::FSOPEN_CLOEXEC) })?;
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    let context = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    for (key, value) in options {
        let key = CString::new(*key)?;
        let value = CString::new(*value)?;
        let flag = value.as_bytes().is_empty();
        let command = if flag { libc::FSCONFIG_SET_FLAG } else { libc::FSCONFIG_SET_STRING };
        let pointer = if flag { std::ptr::null() } else { value.as_ptr() };
        // SAFETY: key and value are C strings that live over the call, or value is null as SET_FLAG demands.
        check(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                command as libc::c_uint,
                key.as_ptr(),
                pointer,
                0,
            )
        })?;
    }
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: CMD_CREATE takes no key and no value.
    check(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            libc::FSCONFIG_CMD_CREATE as libc::c_uint,
            null,
            null,
            0,
        )
    })?;
    // SAFETY: no pointers are passed.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), libc::FSMOUNT_CLOEXEC, attrs as libc::c_uint)
    })?;
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A detached copy of the mount at `path` (a bind mount not yet attached), with all below it when `recursive`.
///
/// # Errors
/// What `open_tree(2)` answered.
pub fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let path = cstring(path)?;
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE as libc::c_uint;
    }
    // SAFETY: `path` is a C string that lives over the call.
    let fd = check(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })?;
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Like [`clone_tree`] for the object behind a descriptor.
///
/// # Errors
/// What `open_tree(2)` answered.
pub fn clone_tree_at(fd: impl AsFd) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as libc::c_uint;
    // SAFETY: the path is the empty C string; the descriptor is borrowed over the call.
    let new =
        check(unsafe { libc::syscall(libc::SYS_open_tree, fd.as_fd().as_raw_fd(), c"".as_ptr(), flags) })?;
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(new as i32) })
}

/// Attaches a detached mount on the object that `target` names.
///
/// # Errors
/// What `move_mount(2)` answered.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both paths are the empty C string; the descriptors are borrowed over the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            target.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
        )
    })?;
    Ok(())
}

/// Sets and clears `MOUNT_ATTR_*` and the propagation of the mount behind `mount`.
///
/// # Errors
/// What `mount_setattr(2)` answered.
pub fn set_attributes(
    mount: impl AsFd,
    set: u64,
    clear: u64,
    propagation: Propagation,
    recursive: bool,
) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation: match propagation {
            Propagation::Unchanged => 0,
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Shared => libc::MS_SHARED,
        },
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `attr` is a live, initialised mount_attr and its size is passed along.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags as libc::c_uint,
            &raw const attr,
            std::mem::size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}
