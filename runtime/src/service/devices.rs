//! Device nodes of the host that a container asks for.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use k8s_cri::v1::Device;
use nix::sys::stat::{major, minor};

use crate::error::{Error, Result};
use crate::spec::DeviceNode;

/// The deepest directory below a device path that is looked into.
const MAX_DEPTH: usize = 4;
/// Parts of `/dev` that every container has its own of.
const OWN: [&str; 8] = ["pts", "shm", "mqueue", "fd", "console", "ptmx", "hugepages", "log"];

fn node(host: &Path, container: &str, permissions: &str) -> io::Result<Option<DeviceNode>> {
    let metadata = fs::metadata(host)?;
    let block = metadata.file_type().is_block_device();
    if !block && !metadata.file_type().is_char_device() {
        return Ok(None);
    }
    let number = |n: u64| u32::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
    Ok(Some(DeviceNode {
        path: container.to_owned(),
        block,
        major: number(major(metadata.rdev()))?,
        minor: number(minor(metadata.rdev()))?,
        mode: metadata.mode() & 0o777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        permissions: permissions.to_owned(),
    }))
}

fn walk(
    host: &Path,
    container: &str,
    permissions: &str,
    depth: usize,
    out: &mut Vec<DeviceNode>,
) -> io::Result<()> {
    for entry in fs::read_dir(host)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let inside = format!("{container}/{name}");
        let kind = entry.file_type()?;
        if container == "/dev" && OWN.contains(&name.as_str()) {
            continue;
        }
        if kind.is_dir() && depth > 0 {
            walk(&path, &inside, permissions, depth - 1, out)?;
        } else if (kind.is_block_device() || kind.is_char_device())
            && let Some(found) = node(&path, &inside, permissions)?
        {
            out.push(found);
        }
    }
    Ok(())
}

/// Resolves the devices of a container configuration; a directory stands for the devices in it.
///
/// # Errors
/// `InvalidArgument` for what is not there or no device.
pub fn resolve(devices: &[Device]) -> Result<Vec<DeviceNode>> {
    let mut out = Vec::new();
    for device in devices {
        let host = Path::new(&device.host_path);
        let container =
            if device.container_path.is_empty() { &device.host_path } else { &device.container_path };
        let permissions = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
        let wrong =
            |e: &dyn std::fmt::Display| Error::InvalidArgument(format!("device {}: {e}", host.display()));
        if !container.starts_with("/dev/") {
            return Err(wrong(&format_args!("{container:?} is not below /dev")));
        }
        if host.is_dir() {
            walk(host, container, permissions, MAX_DEPTH, &mut out).map_err(|e| wrong(&e))?;
        } else {
            let found = node(host, container, permissions).map_err(|e| wrong(&e))?;
            out.push(found.ok_or_else(|| wrong(&"is no device"))?);
        }
    }
    Ok(out)
}

/// Every device of the host, for a privileged container.
///
/// # Errors
/// What the file system answered.
pub fn all() -> Result<Vec<DeviceNode>> {
    let mut out = Vec::new();
    walk(Path::new("/dev"), "/dev", "rwm", MAX_DEPTH, &mut out).map_err(Error::io("list devices"))?;
    Ok(out)
}
