//! Files that were cut, overwritten or lost: what was acknowledged is recovered, or the damage is
//! reported; the store never answers something that was not written, and never skips the middle.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use hawser_storage::{
    Error, ListOptions, Precondition, Storage,
    embedded::{Embedded, Options},
};
use tempfile::TempDir;

/// Damaged copies that are looked at at the same time.
const AT_ONCE: usize = 8;
const WRITES: usize = 12;
/// Writes that are in the table before the others go to the log.
const IN_TABLE: usize = 5;

fn options(checkpoint_interval: Duration) -> Options {
    Options { segment_bytes: 4 << 20, checkpoint_interval, ..Options::default() }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn key(n: usize) -> String {
    format!("key/{:02}", n % 8)
}

fn value(n: usize) -> Bytes {
    Bytes::from(vec![b'a' + n as u8; 20 + n])
}

/// The state after each number of writes.
fn states() -> Vec<BTreeMap<String, Bytes>> {
    let mut states = vec![BTreeMap::new()];
    for n in 0..WRITES {
        let mut state = states[n].clone();
        state.insert(key(n), value(n));
        states.push(state);
    }
    states
}

/// What a machine that lost power leaves: some writes in the table, one frame each for the rest.
async fn image() -> TempDir {
    let dir = TempDir::new().unwrap();
    let image = TempDir::new().unwrap();
    let store = Embedded::open(dir.path(), options(Duration::from_secs(3600))).await.unwrap();
    for n in 0..IN_TABLE {
        store.put(&key(n), value(n), Precondition::None).await.unwrap();
    }
    store.close().await.unwrap();
    let store = Embedded::open(dir.path(), options(Duration::from_secs(3600))).await.unwrap();
    for n in IN_TABLE..WRITES {
        store.put(&key(n), value(n), Precondition::None).await.unwrap();
    }
    copy(dir.path(), image.path());
    store.close().await.unwrap();
    image
}

/// The segment that has the frames, and where its frames end.
fn log(dir: &Path) -> (PathBuf, usize) {
    let mut found = None;
    for entry in fs::read_dir(dir.join("log")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |n| n + 1);
        // The segment of the first run is there still; the newest one counts.
        if used > 0 && found.as_ref().is_none_or(|(p, _)| *p < path) {
            found = Some((path, used));
        }
    }
    found.expect("a segment with frames")
}

enum Opened {
    /// With the state after this many writes.
    After(usize),
    Corrupt,
}

/// Opens a damaged copy of `image`; panics if the answer is a state that never was.
async fn open_damaged(image: &Path, damage: impl FnOnce(&Path)) -> Opened {
    let dir = TempDir::new().unwrap();
    copy(image, dir.path());
    damage(dir.path());
    let store = match Embedded::open(dir.path(), options(Duration::from_secs(3600))).await {
        Ok(store) => store,
        Err(Error::Corrupt { .. }) => return Opened::Corrupt,
        Err(other) => panic!("unexpected: {other}"),
    };
    let list = store.list("", ListOptions::default()).await.unwrap();
    let got: BTreeMap<_, _> = list.items.iter().map(|kv| (kv.key.to_string(), kv.value.clone())).collect();
    let count = states().iter().position(|state| *state == got).expect("a state that was acknowledged once");
    assert_eq!(list.revision, 1 + count as u64);
    // It goes on from there, with the next revision.
    let next = store.put("next", Bytes::from("x"), Precondition::Absent).await.unwrap();
    assert_eq!(next, list.revision + 1);
    store.close().await.unwrap();
    let store = Embedded::open(dir.path(), options(Duration::from_secs(3600))).await.unwrap();
    assert_eq!(store.get("next").await.unwrap().0.unwrap().mod_revision, next);
    store.close().await.unwrap();
    Opened::After(count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_undamaged_image_recovers() {
    let image = image().await;
    assert!(matches!(open_damaged(image.path(), |_| ()).await, Opened::After(WRITES)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_file_is_reported() {
    let image = image().await;
    let (log, used) = log(image.path());
    let name = log.strip_prefix(image.path()).unwrap().to_owned();
    for length in (0..=used).rev().step_by(11) {
        let opened = open_damaged(image.path(), |dir| {
            fs::OpenOptions::new().write(true).open(dir.join(&name)).unwrap().set_len(length as u64).unwrap();
        });
        assert!(matches!(opened.await, Opened::Corrupt), "cut to {length} bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_tail_is_cut_off_at_every_byte() {
    let image = image().await;
    let (log, used) = log(image.path());
    let name = log.strip_prefix(image.path()).unwrap().to_owned();
    // About the last two frames byte by byte, what is before in steps.
    let offsets = (0..used).filter(|offset| used - offset < 200 || offset % 16 == 0);
    let opened = offsets.map(|offset| {
        open_damaged(image.path(), {
            let name = name.clone();
            move |dir| {
                let path = dir.join(&name);
                let mut bytes = fs::read(&path).unwrap();
                bytes[offset..].fill(0);
                fs::write(&path, bytes).unwrap();
            }
        })
    });
    let mut opened = stream::iter(opened).buffered(AT_ONCE);
    let mut seen = Vec::new();
    while let Some(opened) = opened.next().await {
        match opened {
            Opened::After(count) => seen.push(count),
            Opened::Corrupt => panic!("a torn tail was taken for damage, after {seen:?}"),
        }
    }
    assert!(seen.is_sorted(), "the later the tear, the more is there");
    seen.dedup();
    assert_eq!(seen, (IN_TABLE..WRITES).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_in_the_log_is_cut_off_at_the_end_and_reported_before() {
    let image = image().await;
    let (log, used) = log(image.path());
    let name = log.strip_prefix(image.path()).unwrap().to_owned();
    let offsets = (0..used).filter(|offset| used - offset < 200 || offset % 16 == 0);
    let opened = offsets.map(|offset| {
        open_damaged(image.path(), {
            let name = name.clone();
            move |dir| {
                let path = dir.join(&name);
                let mut bytes = fs::read(&path).unwrap();
                bytes[offset] ^= 1 << (offset % 8);
                fs::write(&path, bytes).unwrap();
            }
        })
    });
    let mut opened = stream::iter(opened).buffered(AT_ONCE);
    let (mut cut, mut corrupt) = (0, 0);
    while let Some(opened) = opened.next().await {
        match opened {
            // Between frames there may be a few bytes that mean nothing.
            Opened::After(WRITES) => {}
            Opened::After(count) => {
                assert_eq!(count, WRITES - 1, "only the last write looks like one that was torn");
                cut += 1;
            }
            Opened::Corrupt => corrupt += 1,
        }
    }
    assert!(cut > 50 && corrupt > 50, "{cut} {corrupt}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_table_is_never_believed() {
    let image = image().await;
    let size = fs::metadata(image.path().join("table.redb")).unwrap().len() as usize;
    let reference = fs::read(image.path().join("table.redb")).unwrap();
    let used: Vec<usize> = (0..size).filter(|n| reference[*n] != 0).collect();
    let mut refused = 0;
    for n in 0..150 {
        let offset = used[n * used.len() / 150];
        let dir = TempDir::new().unwrap();
        copy(image.path(), dir.path());
        let mut bytes = reference.clone();
        bytes[offset] ^= 0x10;
        fs::write(dir.path().join("table.redb"), bytes).unwrap();
        match Embedded::open(dir.path(), options(Duration::from_secs(3600))).await {
            Err(Error::Corrupt { .. } | Error::Unavailable(_)) => refused += 1,
            Err(other) => panic!("unexpected: {other}"),
            Ok(store) => {
                let list = store.list("", ListOptions::default()).await.unwrap();
                let got: BTreeMap<_, _> =
                    list.items.iter().map(|kv| (kv.key.to_string(), kv.value.clone())).collect();
                assert_eq!(got, states()[WRITES], "flipped byte {offset}");
                // Closing may fail where the damage is.
                let _ = store.close().await;
            }
        }
    }
    assert!(refused > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_files_are_reported() {
    let image = image().await;
    let (log, _) = log(image.path());
    let log = log.strip_prefix(image.path()).unwrap().to_owned();
    let no_table = open_damaged(image.path(), |dir| fs::remove_file(dir.join("table.redb")).unwrap());
    assert!(matches!(no_table.await, Opened::Corrupt));
    let no_log = open_damaged(image.path(), |dir| fs::remove_dir_all(dir.join("log")).unwrap());
    assert!(matches!(no_log.await, Opened::Corrupt));
    let empty_segment = open_damaged(image.path(), |dir| fs::write(dir.join(&log), "").unwrap());
    assert!(matches!(empty_segment.await, Opened::Corrupt));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_has_one_user_and_private_files() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a/db");
    let store = Embedded::open(&path, Options::default()).await.unwrap();
    match Embedded::open(&path, Options::default()).await.map(drop) {
        Err(error @ Error::InUse { .. }) => assert!(error.to_string().contains("in use by another process")),
        other => panic!("{other:?}"),
    }
    store.put("k", Bytes::from("v"), Precondition::Absent).await.unwrap();
    let mut pending = vec![path.clone()];
    let mut files = 0;
    while let Some(next) = pending.pop() {
        let meta = fs::metadata(&next).unwrap();
        let mode = meta.permissions().mode() & 0o777;
        if meta.is_dir() {
            assert_eq!(mode, 0o700, "{}", next.display());
            pending.extend(fs::read_dir(&next).unwrap().map(|e| e.unwrap().path()));
        } else {
            assert_eq!(mode, 0o600, "{}", next.display());
            files += 1;
        }
    }
    assert!(files >= 3, "lock, table and log");
    store.close().await.unwrap();
    Embedded::open(&path, Options::default()).await.expect("it is free again").close().await.unwrap();
}
