//! tmpfs mounts for memory volumes and secrets.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Mounts a tmpfs of at most `size` bytes.
pub(super) fn mount_tmpfs(dir: &Path, size: Option<i64>, mode: u32) -> io::Result<()> {
    let mut options = format!("mode={mode:o}");
    if let Some(size) = size {
        options.push_str(&format!(",size={size}"));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some(options.as_str()))?;
    Ok(())
}

/// Bind-mounts `source` at `place`.
pub(super) fn bind(source: &str, place: &Path) -> io::Result<()> {
    mount(Some(source), place, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    Ok(())
}

/// Unmounts lazily: what a dying process still holds open goes with it.
pub(super) fn unmount(dir: &Path) -> io::Result<()> {
    umount2(dir, MntFlags::MNT_DETACH)?;
    Ok(())
}

/// Makes `dir` a private directory in memory, unless it is one already.
pub(crate) fn ensure_tmpfs(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    if !is_mounted(dir)? {
        mount_tmpfs(dir, None, 0o700)?;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

/// Unmounts everything below a directory, innermost first.
pub(crate) fn unmount_below(dir: &Path) -> io::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let dir = dir.canonicalize()?;
    let mut points: Vec<PathBuf> =
        mount_points()?.into_iter().filter(|m| m.starts_with(&dir) && *m != dir).collect();
    points.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
    points.iter().try_for_each(|p| unmount(p))
}

/// Whether something is mounted at `dir`.
pub(super) fn is_mounted(dir: &Path) -> io::Result<bool> {
    match dir.canonicalize() {
        Ok(dir) => Ok(mount_points()?.contains(&dir)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Mount points of this mount namespace, see proc_pid_mountinfo(5).
fn mount_points() -> io::Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(text.lines().filter_map(|l| l.split(' ').nth(4)).map(unescape).map(PathBuf::from).collect())
}

/// Undoes the octal escapes of mountinfo.
fn unescape(field: &str) -> String {
    ["040", "011", "012", "134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(field.to_owned(), |s, (code, c)| s.replace(&format!("\\{code}"), c))
}
