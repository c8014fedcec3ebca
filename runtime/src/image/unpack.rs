//! Unpacking one layer (a tar archive) into a directory that overlayfs can use.
//!
//! The archive is not trusted. Every name is resolved below the layer's directory with
//! `openat2(RESOLVE_IN_ROOT)`, so neither `..` nor a symlink made by an earlier entry leads out of it; the last
//! component is never followed. Whiteouts of the OCI image format become overlayfs' own: a character device 0/0
//! for a deleted name, the attribute `trusted.overlay.opaque` for a directory that hides those below it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstatat, makedev, mkdirat, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use tar::EntryType;

use crate::sys::xattr;

/// What a layer takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LayerSize {
    /// Bytes of file content.
    pub bytes: u64,
    /// Files, directories and the rest.
    pub inodes: u64,
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";
/// overlayfs' own attributes: an image must not set them.
const OVERLAY_XATTR: &[u8] = b"trusted.overlay.";
const PAX_XATTR: &[u8] = b"SCHILY.xattr.";

fn bad(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

/// A path of the archive as components below the root: `.` and slashes vanish, `..` goes up but never out.
fn components(path: &[u8]) -> io::Result<Vec<&OsStr>> {
    let mut out = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                out.pop();
            }
            p if p.contains(&0) => return Err(bad("a path with a NUL byte")),
            p => out.push(OsStr::from_bytes(p)),
        }
    }
    Ok(out)
}

/// Attributes an entry carries.
struct Attributes {
    mode: Mode,
    uid: Uid,
    gid: Gid,
    mtime: TimeSpec,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

struct Unpacker<'a> {
    root: BorrowedFd<'a>,
    /// The directory of the entry before, which is most often that of the next.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Modification times of directories, set last: what is put into them changes theirs.
    directories: Vec<(PathBuf, TimeSpec)>,
    size: LayerSize,
}

/// Unpacks the archive into the directory behind `root`.
///
/// # Errors
/// `InvalidData` for a malformed archive, and what the file system answered. The directory then holds a part.
pub fn unpack(root: BorrowedFd<'_>, archive: impl Read) -> io::Result<LayerSize> {
    let mut u = Unpacker { root, parent: None, directories: Vec::new(), size: LayerSize::default() };
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path_bytes().into_owned();
        u.entry(&mut entry, &path)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", String::from_utf8_lossy(&path))))?;
    }
    u.finish()
}

impl Unpacker<'_> {
    fn open_dir(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(self.root, if path.as_os_str().is_empty() { Path::new(".") } else { path }, how)
    }

    /// Opens the directory `parts`, making what the archive left out.
    fn dir(&mut self, parts: &[&OsStr]) -> io::Result<OwnedFd> {
        let path: PathBuf = parts.iter().collect();
        if let Some((cached, fd)) = &self.parent
            && *cached == path
        {
            return fd.try_clone();
        }
        let fd = match self.open_dir(&path) {
            Err(Errno::ENOENT) => {
                let mut sofar = PathBuf::new();
                let mut dir = self.open_dir(&sofar)?;
                for part in parts {
                    sofar.push(part);
                    dir = match self.open_dir(&sofar) {
                        Err(Errno::ENOENT) => {
                            // EEXIST here is a symlink to nothing: not a directory, so no parent.
                            mkdirat(&dir, *part, Mode::from_bits_truncate(0o755))?;
                            self.size.inodes += 1;
                            self.open_dir(&sofar)?
                        }
                        other => other?,
                    };
                }
                dir
            }
            other => other?,
        };
        self.parent = Some((path, fd.try_clone()?));
        Ok(fd)
    }

    fn existing(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<FileStat>> {
        match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Takes away what an entry replaces.
    fn remove(&mut self, dir: BorrowedFd<'_>, name: &OsStr, stat: &FileStat) -> io::Result<()> {
        // The open parent may be the thing that goes, or be below it.
        self.parent = None;
        if kind(stat) != SFlag::S_IFDIR {
            return Ok(unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?);
        }
        // Resolved through our own descriptor; remove_dir_all follows no symlink below it.
        std::fs::remove_dir_all(xattr::path_in(dir, Path::new(name)))
    }

    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, path: &[u8]) -> io::Result<()> {
        let header_type = entry.header().entry_type();
        if matches!(header_type, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let parts = components(path)?;
        let Some((name, parents)) = parts.split_last() else {
            // The root itself.
            if header_type == EntryType::Directory {
                let a = attributes(entry)?;
                self.directories.push((PathBuf::new(), a.mtime));
                return apply(self.root, OsStr::new("."), &a, EntryType::Directory);
            }
            return Err(bad("an entry without a name"));
        };
        let dir = self.dir(parents)?;
        let dir = dir.as_fd();
        if name.as_bytes() == OPAQUE {
            return xattr::set(dir, Path::new("."), b"trusted.overlay.opaque", b"y");
        }
        if name.as_bytes().starts_with(AUFS) {
            // Bookkeeping of aufs, of no meaning here.
            return Ok(());
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.whiteout(dir, OsStr::from_bytes(hidden));
        }
        let a = attributes(entry)?;
        let mut replaced_whiteout = false;
        if let Some(stat) = Self::existing(dir, name)? {
            let keeps = header_type == EntryType::Directory && kind(&stat) == SFlag::S_IFDIR;
            if !keeps {
                replaced_whiteout = is_whiteout(&stat);
                self.remove(dir, name, &stat)?;
            }
        }
        self.size.inodes += 1;
        match header_type {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags =
                    OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let fd = openat(dir, *name, flags, Mode::from_bits_truncate(0o600))?;
                self.size.bytes += io::copy(entry, &mut File::from(fd))?;
            }
            EntryType::Directory => {
                match mkdirat(dir, *name, Mode::from_bits_truncate(0o700)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(e) => return Err(e.into()),
                }
                if replaced_whiteout {
                    let path = Path::new(name);
                    xattr::set(dir, path, b"trusted.overlay.opaque", b"y")?;
                }
                self.directories.push((parts.iter().collect(), a.mtime));
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or_else(|| bad("a symlink without a target"))?;
                symlinkat(OsStr::from_bytes(&target), dir, *name)?;
            }
            EntryType::Link => {
                let target =
                    entry.link_name_bytes().ok_or_else(|| bad("a hard link without a target"))?.into_owned();
                self.hard_link(&target, dir, name)?;
                // It shares the attributes of its target.
                return Ok(());
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let h = entry.header();
                let device =
                    makedev(h.device_major()?.unwrap_or(0).into(), h.device_minor()?.unwrap_or(0).into());
                let (file_type, device) = match header_type {
                    EntryType::Char if device == 0 => return Err(bad("character device 0/0 is a whiteout")),
                    EntryType::Char => (SFlag::S_IFCHR, device),
                    EntryType::Block => (SFlag::S_IFBLK, device),
                    _ => (SFlag::S_IFIFO, 0),
                };
                mknodat(dir, *name, file_type, Mode::from_bits_truncate(0o600), device)?;
            }
            other => return Err(bad(format!("an entry of unknown type {:?}", char::from(other.as_byte())))),
        }
        apply(dir, name, &a, header_type)
    }

    fn whiteout(&mut self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        if matches!(name.as_bytes(), b"" | b"." | b"..") {
            return Err(bad("a whiteout of nothing"));
        }
        match Self::existing(dir, name)? {
            // The layer brings its own: only what lies below is hidden, which a file does anyway.
            Some(stat) if kind(&stat) == SFlag::S_IFDIR => {
                xattr::set(dir, Path::new(name), b"trusted.overlay.opaque", b"y")
            }
            Some(_) => Ok(()),
            None => {
                self.size.inodes += 1;
                Ok(mknodat(dir, name, SFlag::S_IFCHR, Mode::empty(), 0)?)
            }
        }
    }

    fn hard_link(&mut self, target: &[u8], dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let parts = components(target)?;
        let (target_name, parents) = parts.split_last().ok_or_else(|| bad("a hard link to the root"))?;
        let path: PathBuf = parents.iter().collect();
        let target_dir = self.open_dir(&path)?;
        linkat(&target_dir, *target_name, dir, name, LinkatFlags::empty())?;
        Ok(())
    }

    fn finish(mut self) -> io::Result<LayerSize> {
        // Deepest first, so that no time is touched again.
        self.directories.reverse();
        for (path, mtime) in &self.directories {
            let dir = match self.open_dir(path) {
                // A later entry took its place.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => continue,
                other => other?,
            };
            utimensat(&dir, ".", mtime, mtime, UtimensatFlags::NoFollowSymlink)?;
        }
        Ok(self.size)
    }
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn is_whiteout(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

fn id(value: u64) -> io::Result<u32> {
    u32::try_from(value).map_err(|_| bad("a user or group id beyond 32 bits"))
}

fn attributes<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Attributes> {
    let mut xattrs = Vec::new();
    let mut pax_mtime = None;
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            if let Some(name) = extension.key_bytes().strip_prefix(PAX_XATTR) {
                if !name.starts_with(OVERLAY_XATTR) {
                    xattrs.push((name.to_vec(), extension.value_bytes().to_vec()));
                }
            } else if extension.key_bytes() == b"mtime" {
                pax_mtime = extension.value().ok().and_then(pax_time);
            }
        }
    }
    let h = entry.header();
    let mtime = match pax_mtime {
        Some(t) => t,
        None => TimeSpec::new(i64::try_from(h.mtime()?).unwrap_or(0), 0),
    };
    Ok(Attributes {
        mode: Mode::from_bits_truncate(h.mode()? & 0o7777),
        uid: Uid::from_raw(id(h.uid()?)?),
        gid: Gid::from_raw(id(h.gid()?)?),
        mtime,
        xattrs,
    })
}

/// `seconds[.fraction]`, the seconds maybe negative.
fn pax_time(text: &str) -> Option<TimeSpec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let (mut seconds, mut nanos): (i64, i64) = (seconds.parse().ok()?, digits.parse().ok()?);
    if text.starts_with('-') && nanos > 0 {
        seconds = seconds.checked_sub(1)?;
        nanos = 1_000_000_000 - nanos;
    }
    Some(TimeSpec::new(seconds, nanos))
}

/// Sets owner, attributes, mode and time, in the order in which one does not undo the other.
fn apply(dir: BorrowedFd<'_>, name: &OsStr, a: &Attributes, entry_type: EntryType) -> io::Result<()> {
    fchownat(dir, name, Some(a.uid), Some(a.gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let symlink = entry_type == EntryType::Symlink;
    if !symlink {
        fchmodat(dir, name, a.mode, FchmodatFlags::FollowSymlink)?;
    }
    for (key, value) in &a.xattrs {
        // user.* and POSIX ACLs do not exist on symlinks and special files.
        let plain = matches!(entry_type, EntryType::Regular | EntryType::Continuous | EntryType::Directory);
        if !plain && !key.starts_with(b"security.") {
            continue;
        }
        match xattr::set(dir, Path::new(name), key, value) {
            // A file system without this kind of attribute.
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) && !key.starts_with(b"security.") => {}
            other => other.map_err(|e| {
                let key = OsString::from_vec(key.clone());
                io::Error::new(e.kind(), format!("attribute {}: {e}", key.display()))
            })?,
        }
    }
    if entry_type != EntryType::Directory {
        utimensat(dir, name, &a.mtime, &a.mtime, UtimensatFlags::NoFollowSymlink)?;
    }
    Ok(())
}
