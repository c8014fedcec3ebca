//! subPath mounts that a container cannot turn against the host.
//!
//! A container that may write to a volume can put a symlink where another container's subPath points. So the path
//! is opened with `openat2(2)` and `RESOLVE_BENEATH`, which no symlink leaves, and the open descriptor is
//! bind-mounted through `/proc/self/fd/<n>` to a place of the kubelet's own: what was checked is what is mounted.

use super::mounts;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// A path inside a volume, held open.
#[derive(Debug)]
pub(crate) struct SubPath {
    fd: OwnedFd,
}

impl SubPath {
    /// Mounts it at `place`, in place of what is mounted there. Blocking.
    pub fn mount(&self, place: &Path) -> io::Result<()> {
        if mounts::is_mounted(place)? {
            mounts::unmount(place)?;
        }
        let kind = SFlag::from_bits_truncate(fstat(&self.fd)?.st_mode) & SFlag::S_IFMT;
        if kind == SFlag::S_IFDIR {
            std::fs::create_dir_all(place)?;
        } else {
            if let Some(parent) = place.parent() {
                std::fs::create_dir_all(parent)?;
            }
            File::create(place)?;
        }
        mounts::bind(&format!("/proc/self/fd/{}", self.fd.as_raw_fd()), place)
    }

    /// Where it is found for as long as this value lives.
    pub fn host_path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd()).into()
    }
}

/// Opens `sub` below `volume`; directories that are missing are made. Blocking.
pub(crate) fn open(volume: &Path, sub: &str, mode: u32) -> io::Result<SubPath> {
    let relative = Path::new(sub);
    let normal = relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if !normal {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("subPath {sub:?} must stay in the volume"),
        ));
    }
    let root = OwnedFd::from(File::open(volume)?);
    match beneath(&root, relative) {
        Ok(fd) => return Ok(SubPath { fd }),
        Err(nix::Error::ENOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let mut at = beneath(&root, Path::new("."))?;
    for part in relative.components() {
        let Component::Normal(name) = part else { continue };
        let name = Path::new(name);
        at = match beneath(&at, name) {
            Ok(fd) => fd,
            Err(nix::Error::ENOENT) => {
                // A dangling symlink must not be followed to a new directory elsewhere.
                if exists(&at, name) {
                    return Err(io::Error::other(format!("subPath {sub:?} is a broken link")));
                }
                mkdirat(&at, name, Mode::from_bits_truncate(mode))?;
                beneath(&at, name)?
            }
            Err(e) => return Err(e.into()),
        };
    }
    Ok(SubPath { fd: at })
}

fn beneath(at: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(at, path, how)
}

fn exists(at: &OwnedFd, name: &Path) -> bool {
    let stat: nix::Result<FileStat> = fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW);
    stat.is_ok_and(|s| SFlag::from_bits_truncate(s.st_mode).contains(SFlag::S_IFLNK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn stays_inside() {
        let tmp = tempfile::tempdir().unwrap();
        let volume = tmp.path().join("v");
        fs::create_dir(&volume).unwrap();
        fs::write(tmp.path().join("secret"), "s").unwrap();
        fs::write(volume.join("f"), "x").unwrap();
        symlink("../secret", volume.join("out")).unwrap();
        symlink("/etc", volume.join("abs")).unwrap();
        symlink("f", volume.join("in")).unwrap();
        symlink("nowhere", volume.join("dangling")).unwrap();
        assert_eq!(fs::read_to_string(open(&volume, "f", 0o755).unwrap().host_path()).unwrap(), "x");
        assert_eq!(fs::read_to_string(open(&volume, "in", 0o755).unwrap().host_path()).unwrap(), "x");
        for bad in ["out", "abs/passwd", "../secret", "/etc", "dangling", "f/x"] {
            assert!(open(&volume, bad, 0o755).is_err(), "{bad}");
        }
        let made = open(&volume, "a/b/c", 0o750).unwrap();
        assert!(volume.join("a/b/c").is_dir());
        // The descriptor holds what was checked, whatever happens to the name.
        fs::write(volume.join("a/b/c/file"), "1").unwrap();
        fs::rename(volume.join("a"), volume.join("z")).unwrap();
        symlink("/etc", volume.join("a")).unwrap();
        assert!(made.host_path().join("file").exists());
    }
}
