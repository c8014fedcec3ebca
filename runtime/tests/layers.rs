//! Unpacking layers: what a good archive gives, and that no archive reaches outside its directory. Needs root (device
//! nodes, owners, `trusted.*` attributes).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use hawser_runtime::image::digest::Digest;
use hawser_runtime::image::store::ImageStore;
use hawser_runtime::image::unpack::unpack;
use hawser_runtime::sys::xattr;
use proptest::prelude::*;
use tar::EntryType;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// One entry of an archive.
#[derive(Debug, Clone)]
struct Entry {
    path: String,
    kind: EntryType,
    text: String,
    link: String,
    pax: Vec<(String, Vec<u8>)>,
    uid: u64,
    mode: u32,
    device: (u32, u32),
}

fn entry(kind: EntryType, path: &str, text: &str, link: &str) -> Entry {
    let mode = if kind == EntryType::Directory { 0o755 } else { 0o644 };
    Entry {
        path: path.into(),
        kind,
        text: text.into(),
        link: link.into(),
        pax: Vec::new(),
        uid: 0,
        mode,
        device: (0, 0),
    }
}

fn file(path: &str, text: &str) -> Entry {
    entry(EntryType::Regular, path, text, "")
}

fn dir(path: &str) -> Entry {
    entry(EntryType::Directory, path, "", "")
}

fn symlink(path: &str, target: &str) -> Entry {
    entry(EntryType::Symlink, path, "", target)
}

fn hardlink(path: &str, target: &str) -> Entry {
    entry(EntryType::Link, path, "", target)
}

/// Writes names as they are: the tar crate's own setters refuse the ones that matter here.
fn put(field: &mut [u8], text: &str) {
    let n = text.len().min(field.len());
    field[..n].copy_from_slice(&text.as_bytes()[..n]);
}

fn archive(entries: &[Entry]) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for e in entries {
        if !e.pax.is_empty() {
            tar.append_pax_extensions(e.pax.iter().map(|(k, v)| (k.as_str(), v.as_slice())))?;
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(e.kind);
        header.set_mode(e.mode);
        header.set_uid(e.uid);
        header.set_gid(e.uid);
        header.set_mtime(1_600_000_000);
        header.set_size(e.text.len() as u64);
        header.set_device_major(e.device.0)?;
        header.set_device_minor(e.device.1)?;
        put(&mut header.as_old_mut().name, &e.path);
        put(&mut header.as_old_mut().linkname, &e.link);
        header.set_cksum();
        tar.append(&header, e.text.as_bytes())?;
    }
    tar.into_inner()
}

/// A directory to unpack into, in a directory that nothing may change.
struct Cell {
    _temporary: tempfile::TempDir,
    outside: PathBuf,
    root: PathBuf,
}

impl Cell {
    fn new() -> io::Result<Self> {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        let temporary = tempfile::tempdir()?;
        let outside = temporary.path().join("outside");
        let root = outside.join("a/b/root");
        fs::create_dir_all(&root)?;
        fs::write(outside.join("secret"), "secret")?;
        fs::write(outside.join("a/b/secret"), "secret")?;
        Ok(Self { outside, root, _temporary: temporary })
    }

    fn unpack(&self, entries: &[Entry]) -> io::Result<()> {
        unpack(File::open(&self.root)?.as_fd(), &archive(entries)?[..]).map(drop)
    }

    /// Everything outside the root, as text.
    fn surroundings(&self) -> io::Result<BTreeSet<String>> {
        let mut seen = BTreeSet::new();
        let mut stack = vec![self.outside.clone()];
        while let Some(dir) = stack.pop() {
            for entry in fs::read_dir(dir)? {
                let path = entry?.path();
                if path == self.root {
                    continue;
                }
                let m = fs::symlink_metadata(&path)?;
                let text = if m.is_file() { fs::read_to_string(&path)? } else { String::new() };
                let facts = (path.display(), m.mode(), m.uid(), m.nlink(), text);
                seen.insert(format!("{facts:?}"));
                if m.is_dir() {
                    stack.push(path);
                }
            }
        }
        Ok(seen)
    }
}

fn is_whiteout(path: &Path) -> io::Result<bool> {
    let m = fs::symlink_metadata(path)?;
    Ok(m.file_type().is_char_device() && m.rdev() == 0)
}

fn is_opaque(path: &Path) -> io::Result<bool> {
    Ok(xattr::get::<8>(path, b"trusted.overlay.opaque")? == Some(b"y".to_vec()))
}

#[test]
fn a_good_archive() -> Outcome {
    let cell = Cell::new()?;
    let mut owned = file("d/owned", "text");
    owned.uid = 1234;
    owned.mode = 0o4751;
    owned.pax = vec![
        ("SCHILY.xattr.user.note".into(), b"hello".to_vec()),
        ("SCHILY.xattr.trusted.overlay.redirect".into(), b"/etc".to_vec()),
        ("mtime".into(), b"1500000000.25".to_vec()),
    ];
    let mut device = entry(EntryType::Char, "dev", "", "");
    device.device = (1, 3);
    cell.unpack(&[
        dir("./"),
        dir("d"),
        owned,
        hardlink("d/other", "d/owned"),
        symlink("link", "/etc/passwd"),
        hardlink("link2", "link"),
        device,
        entry(EntryType::Fifo, "pipe", "", ""),
        file("made/on/the/way", "x"),
    ])?;
    let r = &cell.root;
    let m = fs::metadata(r.join("d/owned"))?;
    assert_eq!((m.uid(), m.gid(), m.mode() & 0o7777, m.nlink()), (1234, 1234, 0o4751, 2));
    assert_eq!((m.mtime(), m.mtime_nsec()), (1_500_000_000, 250_000_000));
    assert_eq!(xattr::get::<16>(&r.join("d/owned"), b"user.note")?, Some(b"hello".to_vec()));
    assert_eq!(xattr::get::<16>(&r.join("d/owned"), b"trusted.overlay.redirect")?, None);
    assert_eq!(fs::metadata(r.join("d/other"))?.ino(), m.ino());
    assert_eq!(fs::metadata(r.join("d"))?.mtime(), 1_600_000_000, "the time of a directory is set last");
    assert_eq!(fs::read_link(r.join("link2"))?, Path::new("/etc/passwd"));
    assert!(fs::metadata(r.join("dev"))?.file_type().is_char_device());
    assert!(fs::metadata(r.join("pipe"))?.file_type().is_fifo());
    assert_eq!(fs::metadata(r.join("made/on"))?.permissions().mode() & 0o7777, 0o755);
    Ok(())
}

#[test]
fn whiteouts_become_overlays_own() -> Outcome {
    let cell = Cell::new()?;
    cell.unpack(&[
        file("d/.wh.gone", ""),
        file("opaque/.wh..wh..opq", ""),
        file("opaque/new", "new"),
        file(".wh..wh.plnk", ""),
        // A name that is deleted and made again, in either order, hides what lies below.
        file("again/.wh.f", ""),
        file("again/f", "new"),
        file("again/g", "new"),
        file("again/.wh.g", ""),
        file("again/.wh.sub", ""),
        dir("again/sub"),
        dir("again/sub2"),
        file("again/.wh.sub2", ""),
    ])?;
    let r = &cell.root;
    assert!(is_whiteout(&r.join("d/gone"))?);
    assert!(is_opaque(&r.join("opaque"))? && r.join("opaque/new").is_file());
    assert!(!r.join(".wh..wh.plnk").exists());
    assert_eq!(fs::read_to_string(r.join("again/f"))?, "new");
    assert_eq!(fs::read_to_string(r.join("again/g"))?, "new");
    assert!(is_opaque(&r.join("again/sub"))? && is_opaque(&r.join("again/sub2"))?);
    Ok(())
}

#[test]
fn later_entries_replace_earlier_ones() -> Outcome {
    let cell = Cell::new()?;
    cell.unpack(&[
        dir("x"),
        file("x/inner", "1"),
        file("x", "now a file"),
        symlink("y", "x"),
        dir("y"),
        file("y/inner", "2"),
        file("z", "1"),
        file("z", "2"),
    ])?;
    assert_eq!(fs::read_to_string(cell.root.join("x"))?, "now a file");
    assert_eq!(fs::read_to_string(cell.root.join("y/inner"))?, "2");
    assert_eq!(fs::read_to_string(cell.root.join("z"))?, "2");
    Ok(())
}

#[test]
fn nothing_gets_out() -> Outcome {
    let up = "../../../../../../../..";
    let cases: Vec<(&str, Vec<Entry>)> = vec![
        ("dots", vec![file("../../secret", "evil"), file("a/../../../secret", "evil")]),
        ("absolute", vec![file("/secret", "inside")]),
        ("through a relative symlink", vec![symlink("l", "../.."), file("l/secret", "evil")]),
        ("through an absolute symlink", vec![symlink("l", "OUTSIDE"), file("l/secret", "evil")]),
        ("through two", vec![symlink("l", ".."), symlink("m", "l/.."), file("m/secret", "evil")]),
        ("over a symlink", vec![symlink("secret", "../secret"), file("secret", "evil")]),
        ("directory over a symlink", vec![symlink("l", "OUTSIDE"), dir("l"), file("l/secret", "evil")]),
        ("hard link out", vec![hardlink("h", "../secret"), file("h", "evil")]),
        ("hard link through a symlink", vec![symlink("l", ".."), hardlink("h", "l/secret")]),
        ("hard link to a symlink", vec![symlink("l", "../secret"), hardlink("h", "l"), file("h", "evil")]),
        (
            "attributes through a symlink",
            vec![symlink("l", "OUTSIDE"), {
                let mut e = hardlink("h", "l");
                e.mode = 0o777;
                e
            }],
        ),
        ("whiteout of the parent", vec![file(".wh...", "")]),
        ("whiteout through a symlink", vec![symlink("l", ".."), file("l/.wh.secret", "")]),
        ("opaque through a symlink", vec![symlink("l", ".."), file("l/.wh..wh..opq", "")]),
        (
            "a cached parent that is replaced",
            vec![dir("p"), file("p/1", ""), file("p", ""), symlink("p", ".."), file("p/secret", "evil")],
        ),
        ("a directory removed through a symlink", vec![symlink("l", ".."), dir("l/b"), file("l/b", "evil")]),
        ("the proc way", vec![symlink("l", "/proc/self/cwd"), file("l/secret", "evil")]),
        (
            "far up",
            vec![symlink("l", up), file("l/tmp/evil", "evil"), file(&format!("{up}/tmp/evil"), "evil")],
        ),
    ];
    for (name, mut entries) in cases {
        let cell = Cell::new()?;
        for e in &mut entries {
            e.link = e.link.replace("OUTSIDE", &cell.outside.display().to_string());
        }
        let before = cell.surroundings()?;
        // Whether it is refused or lands inside, nothing around may change.
        let result = cell.unpack(&entries);
        assert_eq!(cell.surroundings()?, before, "{name}: {result:?}");
        assert!(!Path::new("/tmp/evil").exists(), "{name}");
    }
    Ok(())
}

#[test]
fn malformed_archives_are_errors() -> Outcome {
    let good = archive(&[file("a", "some text"), file("b", "more")])?;
    for cut in [1, 511, 513, 600] {
        let cell = Cell::new()?;
        assert!(unpack(File::open(&cell.root)?.as_fd(), &good[..cut]).is_err(), "cut at {cut}");
    }
    let refused = [
        entry(EntryType::Char, "c", "", ""),
        entry(EntryType::new(b'9'), "x", "", ""),
        hardlink("h", "missing"),
        file(".wh.", ""),
        file("", "no name"),
    ];
    for e in refused {
        assert!(Cell::new()?.unpack(std::slice::from_ref(&e)).is_err(), "{e:?}");
    }
    Ok(())
}

fn a_path() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => proptest::sample::select(vec!["a", "b", "c", "secret"]),
        2 => Just(".."),
        1 => proptest::sample::select(vec![".", "", ".wh.a", ".wh.secret", ".wh..wh..opq", ".wh...", "root"]),
    ];
    (any::<bool>(), proptest::collection::vec(part, 1..5))
        .prop_map(|(absolute, parts)| format!("{}{}", if absolute { "/" } else { "" }, parts.join("/")))
}

fn an_entry() -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![
        3 => Just(EntryType::Regular),
        3 => Just(EntryType::Symlink),
        2 => Just(EntryType::Directory),
        2 => Just(EntryType::Link),
        1 => Just(EntryType::Fifo),
    ];
    (kind, a_path(), a_path()).prop_map(|(kind, path, link)| {
        let text = if kind == EntryType::Regular { "evil" } else { "" };
        let mut e = entry(kind, &path, text, &link);
        e.uid = 666;
        e.mode = 0o777;
        e
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_sequence_of_entries_gets_out(entries in proptest::collection::vec(an_entry(), 1..10)) {
        let fail = |e: io::Error| TestCaseError::fail(e.to_string());
        let cell = Cell::new().map_err(fail)?;
        let before = cell.surroundings().map_err(fail)?;
        // Entries one by one: an error ends an archive, but the next one must find the traps laid so far.
        for e in &entries {
            let _ = cell.unpack(std::slice::from_ref(e));
        }
        prop_assert_eq!(cell.surroundings().map_err(fail)?, before.clone());
        let other = Cell::new().map_err(fail)?;
        let around = other.surroundings().map_err(fail)?;
        let _ = other.unpack(&entries);
        prop_assert_eq!(other.surroundings().map_err(fail)?, around);
    }
}

fn compress(kind: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
    match kind {
        "gzip" => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(bytes)?;
            out.finish()
        }
        "zstd" => zstd::encode_all(bytes, 1),
        _ => Ok(bytes.to_vec()),
    }
}

#[test]
fn layers_of_every_compression_are_checked() -> Outcome {
    let temporary = tempfile::tempdir()?;
    let store = ImageStore::open(temporary.path())?;
    let tar = archive(&[file("a", "some text")])?;
    let diff_id = Digest::of(&tar);
    for kind in ["plain", "gzip", "zstd"] {
        let blob = compress(kind, &tar)?;
        store.stage_layer(&blob[..], Some(&Digest::of(&blob)), &diff_id)?;
        assert!(store.stage_layer(&blob[..], Some(&Digest::of(b"x")), &diff_id).is_err(), "{kind}: digest");
        assert!(store.stage_layer(&blob[..], None, &Digest::of(b"x")).is_err(), "{kind}: diff id");
        assert!(store.stage_layer(&blob[..blob.len() / 2], None, &diff_id).is_err(), "{kind}: half");
        // Bytes after the end belong to the blob.
        let longer = [&blob[..], b"tail"].concat();
        assert!(store.stage_layer(&longer[..], Some(&Digest::of(&blob)), &diff_id).is_err(), "{kind}: tail");
    }
    assert_eq!(fs::read_dir(temporary.path().join("tmp"))?.count(), 0, "staged layers are left behind");
    Ok(())
}

#[test]
fn a_store_survives_a_crash_at_any_point() -> Outcome {
    let temporary = tempfile::tempdir()?;
    let tar = archive(&[file("a", "some text")])?;
    let diff_id = Digest::of(&tar);
    let config =
        serde_json::json!({ "config": {}, "rootfs": { "diff_ids": [diff_id.to_string()] } }).to_string();
    let names = |n: &str| BTreeSet::from([format!("docker.io/library/{n}:latest")]);
    {
        let store = ImageStore::open(temporary.path())?;
        let staged = store.stage_layer(&tar[..], None, &diff_id)?;
        store.commit(config.as_bytes(), None, vec![staged], names("one"), BTreeSet::new())?;
    }
    // What a crash leaves: a layer half unpacked, a record half written, a layer without an image.
    fs::create_dir_all(temporary.path().join("tmp/half/fs"))?;
    fs::write(temporary.path().join("images/0.json.new"), "{\"id\":")?;
    fs::write(temporary.path().join("images/1.json"), "{\"id\":")?;
    let orphan = temporary.path().join("layers").join("0".repeat(64));
    fs::create_dir_all(orphan.join("fs"))?;
    fs::write(orphan.join("size.json"), r#"{"bytes":0,"inodes":0}"#)?;
    let store = ImageStore::open(temporary.path())?;
    assert_eq!(store.list().len(), 1);
    assert_eq!(fs::read_dir(temporary.path().join("tmp"))?.count(), 0);
    assert_eq!(fs::read_dir(temporary.path().join("images"))?.count(), 1);
    let image = store.find("one").ok_or("no image")?;
    store.collect(&BTreeSet::new());
    assert!(!orphan.exists());
    // A tag moves to the image that was given it last.
    let other = config.replace("{}", r#"{"User":"x"}"#);
    store.commit(other.as_bytes(), None, Vec::new(), names("one"), BTreeSet::new())?;
    assert_ne!(store.find("one").ok_or("no image")?.id, image.id);
    assert!(store.find(&image.id).is_some_and(|i| i.repo_tags.is_empty()));
    // Layers in use by containers stay when their images go.
    for image in store.list() {
        store.remove(&image.id)?;
    }
    let layer = temporary.path().join("layers").join(diff_id.hex());
    store.collect(&BTreeSet::from([diff_id.hex().to_owned()]));
    assert!(layer.exists());
    store.collect(&BTreeSet::new());
    assert!(!layer.exists());
    let left: BTreeMap<_, _> = fs::read_dir(temporary.path().join("content"))?
        .flatten()
        .map(|e| (e.file_name(), e.path()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}
