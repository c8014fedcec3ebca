//! The atomic writer: a directory of small files whose contents change all at once.
//!
//! Files live in a directory of their own generation; `..data` is a symlink to the current one, and the names that
//! containers see are symlinks through `..data`. Renaming a new `..data` over the old one switches them together.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";

/// One file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// Files by relative path.
pub(crate) type Payload = BTreeMap<String, File>;

/// Whether a path may be written: relative, normal components only, none that begins with two dots.
pub(crate) fn valid_path(path: &str) -> bool {
    let p = Path::new(path);
    !path.is_empty()
        && path.len() <= 4096
        && !path.starts_with("..")
        && p.components().all(|c| matches!(c, Component::Normal(_)))
}

/// Makes `dir` show exactly `payload`. With `group`, files belong to it and it may read them. Says whether
/// anything changed.
pub(crate) fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    if let Some(bad) = payload.keys().find(|p| !valid_path(p)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path {bad:?}")));
    }
    let current = fs::read_link(dir.join(DATA)).ok();
    if let Some(current) = &current
        && same(&dir.join(current), payload)?
    {
        return Ok(false);
    }
    let generation =
        format!("..{}.{:08x}", jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S"), rand::random::<u32>());
    let fresh = dir.join(&generation);
    fs::create_dir(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let full = fresh.join(path);
        if let Some(parent) = full.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&full, &file.data)?;
        fs::set_permissions(&full, fs::Permissions::from_mode(file.mode & 0o777))?;
    }
    if let Some(gid) = group {
        give_to_group(&fresh, gid, false)?;
        chown(dir, None, Some(gid))?;
    }
    let tmp = dir.join(DATA_TMP);
    match fs::remove_file(&tmp) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    symlink(&generation, &tmp)?;
    fs::rename(&tmp, dir.join(DATA))?;
    link_names(dir, payload)?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let old = name.to_string_lossy();
        if entry.file_type()?.is_dir() && old.starts_with("..") && old != generation.as_str() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(true)
}

/// Makes the names that containers see, and removes those that are no more.
fn link_names(dir: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|p| p.split('/').next()).collect();
    for name in &wanted {
        match symlink(Path::new(DATA).join(name), dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if entry.file_type()?.is_symlink() && !name.starts_with("..") && !wanted.contains(name.as_ref()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn same(dir: &Path, payload: &Payload) -> io::Result<bool> {
    let mut found = Vec::new();
    match list(dir, &mut found) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    }
    if found.len() != payload.len() {
        return Ok(false);
    }
    for path in found {
        let Some(file) = path.strip_prefix(dir).ok().and_then(|p| payload.get(p.to_str()?)) else {
            return Ok(false);
        };
        if fs::read(&path)? != file.data {
            return Ok(false);
        }
    }
    Ok(true)
}

fn list(dir: &Path, out: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), out)?;
        } else {
            out.push(entry.path());
        }
    }
    Ok(())
}

/// Gives a tree to a group: readable (and writable) by it, directories set-gid so that new files are its too.
/// Symlinks are not followed.
pub(crate) fn give_to_group(path: &Path, gid: u32, writable: bool) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    std::os::unix::fs::lchown(path, None, Some(gid))?;
    if meta.file_type().is_symlink() {
        return Ok(());
    }
    let read_write = if writable { 0o660 } else { 0o440 };
    let mode = meta.permissions().mode();
    if meta.is_dir() {
        fs::set_permissions(path, fs::Permissions::from_mode(mode | read_write | 0o2110))?;
        for entry in fs::read_dir(path)? {
            give_to_group(&entry?.path(), gid, writable)?;
        }
    } else {
        fs::set_permissions(path, fs::Permissions::from_mode(mode | read_write))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(s: &str) -> File {
        File { data: s.as_bytes().to_vec(), mode: 0o644 }
    }

    fn read(dir: &Path) -> BTreeMap<String, String> {
        let mut out = Vec::new();
        let data = fs::canonicalize(dir.join(DATA)).unwrap();
        list(&data, &mut out).unwrap();
        out.iter()
            .map(|p| {
                let name = p.strip_prefix(&data).unwrap().to_str().unwrap().to_owned();
                // Read it the way a container does.
                (name.clone(), fs::read_to_string(dir.join(&name)).unwrap())
            })
            .collect()
    }

    #[test]
    fn switches_generations() {
        let dir = tempfile::tempdir().unwrap();
        let one = Payload::from([("a".into(), file("1")), ("d/b".into(), file("2"))]);
        assert!(write(dir.path(), &one, None).unwrap());
        assert!(!write(dir.path(), &one, None).unwrap());
        assert_eq!(fs::read_link(dir.path().join("a")).unwrap(), Path::new("..data/a"));
        let two = Payload::from([("a".into(), file("3"))]);
        assert!(write(dir.path(), &two, None).unwrap());
        assert_eq!(read(dir.path()), BTreeMap::from([("a".to_owned(), "3".to_owned())]));
        assert!(!dir.path().join("d").exists());
        // One generation, `..data`, `a`.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        assert!(write(dir.path(), &Payload::new(), None).unwrap());
        assert_eq!(read(dir.path()).len(), 0);
    }

    #[test]
    fn refuses_escapes() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["../x", "/x", "a/../b", "..x", "", "a/./../../b"] {
            let payload = Payload::from([(bad.to_owned(), file("x"))]);
            assert!(write(dir.path(), &payload, None).is_err(), "{bad}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn shows_the_last_payload(
            steps in prop::collection::vec(
                prop::collection::btree_map("[a-c](/[a-c]{1,2})?", "[xyz]{0,3}", 0..4), 1..6)
        ) {
            let dir = tempfile::tempdir().unwrap();
            for step in steps {
                // A name cannot be a file and a directory at once.
                let heads: BTreeSet<_> = step.keys().filter(|k| k.contains('/'))
                    .map(|k| k.split('/').next().unwrap().to_owned()).collect();
                let step: BTreeMap<_, _> =
                    step.into_iter().filter(|(k, _)| !heads.contains(k)).collect();
                let payload = step.iter().map(|(k, v)| (k.clone(), file(v))).collect();
                write(dir.path(), &payload, None).unwrap();
                prop_assert_eq!(read(dir.path()), step);
            }
        }
    }
}
