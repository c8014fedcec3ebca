//! Kills a process that writes, a hundred times, and looks at what it left.
//!
//! The process is this program again, with `child` as its first argument. It writes from several tasks and prints
//! a line for every acknowledged write. It is ended by SIGKILL at a random moment: while
//! it opens the store, writes, checkpoints or compacts. Afterwards every write it has acknowledged
//! is there with its revision, nothing is there in part, and revisions have no gap and no second use.

use std::{
    collections::BTreeMap,
    env,
    error::Error as StdError,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use hawser_storage::{
    Error, Event, EventKind, ListOptions, Precondition, Revision, Storage, WatchItem,
    embedded::{Embedded, Options},
};
use tempfile::TempDir;

const KILLS: u64 = 100;
const WRITERS: u64 = 8;

type Result<T> = std::result::Result<T, Box<dyn StdError>>;

/// A small generator of numbers that look random (xorshift).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// Runs differ in how soon the log is taken over, so that kills meet every activity.
fn options(round: u64) -> Options {
    let (checkpoint_bytes, interval) = match round % 3 {
        0 => (1, 0),
        1 => (64 << 10, 20),
        _ => (4 << 20, 3_600_000),
    };
    Options {
        segment_bytes: 4 << 20,
        checkpoint_bytes,
        checkpoint_interval: Duration::from_millis(interval),
        recent_bytes: (round % 2) as usize * (1 << 20),
        ..Options::default()
    }
}

/// A value that says what it is, of a length that varies, with a checksum at its end.
fn value(tag: &str, length: u64) -> Bytes {
    let mut value = format!("{tag} ").into_bytes();
    value.extend((0..length).map(|n| (n % 251) as u8));
    let checksum = crc32c::crc32c(&value);
    value.extend(checksum.to_le_bytes());
    value.into()
}

/// The tag of a value, if it is whole.
fn tag(value: &[u8]) -> Option<String> {
    let (body, checksum) = value.split_last_chunk::<4>()?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
        return None;
    }
    let end = body.iter().position(|b| *b == b' ')?;
    String::from_utf8(body[..end].to_vec()).ok()
}

async fn child(dir: &Path, round: u64) -> Result<()> {
    let store = Embedded::open(dir, options(round)).await?;
    let start = store.current_revision().await?;
    println!("open {start}");
    let mut tasks = Vec::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            let mut random = Random::new(round * 1000 + writer);
            for n in 0u64.. {
                let key = format!("k/{}", random.below(200));
                let tag = format!("{round}.{writer}.{n}");
                let length = if random.below(50) == 0 { 200_000 } else { random.below(1500) };
                let written = match random.below(10) {
                    0..4 => store.put(&key, value(&tag, length), Precondition::None).await,
                    4..6 => store.put(&key, value(&tag, length), Precondition::Absent).await,
                    6..8 => match store.get(&key).await {
                        Ok((Some(kv), _)) => {
                            store
                                .put(&key, value(&tag, length), Precondition::ModRevision(kv.mod_revision))
                                .await
                        }
                        Ok((None, _)) => continue,
                        Err(error) => Err(error),
                    },
                    8 => match store.delete(&key, Precondition::None).await {
                        Ok((_, revision)) => {
                            print_line(&format!("ack {revision} {key} -"));
                            continue;
                        }
                        Err(error) => Err(error),
                    },
                    // History that the parent has seen may go.
                    _ => match store.compact(start).await {
                        Ok(()) => continue,
                        Err(error) => Err(error),
                    },
                };
                match written {
                    Ok(revision) => print_line(&format!("ack {revision} {key} {tag}")),
                    Err(Error::Conflict { .. } | Error::NotFound) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}

/// One write per line, so that what arrives is whole up to the last line end.
fn print_line(line: &str) {
    let mut out = std::io::stdout().lock();
    // The parent may be gone; then this process is about to be, too.
    let _ = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
}

/// An acknowledged write: key and tag, `-` for a deletion.
type Acknowledged = BTreeMap<Revision, (String, String)>;

/// Runs a child, kills it, answers what it has acknowledged.
fn run_and_kill(dir: &Path, round: u64, random: &mut Random) -> Result<(bool, Acknowledged)> {
    let mut child = Command::new(env::current_exe()?)
        .args(["child", &dir.display().to_string(), &round.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut out = BufReader::new(child.stdout.take().ok_or("no pipe")?);
    let mut text = Vec::new();
    // Every fifth child is killed while it starts.
    if round % 5 != 4 {
        out.read_until(b'\n', &mut text)?;
    }
    let reader = std::thread::spawn(move || {
        let mut rest = Vec::new();
        out.read_to_end(&mut rest).map(|_| rest)
    });
    std::thread::sleep(Duration::from_micros(random.below(if round % 5 == 4 { 40_000 } else { 150_000 })));
    child.kill()?;
    let status = child.wait()?;
    if status.code().is_some() {
        return Err(format!("the child ended by itself: {status}").into());
    }
    text.extend(reader.join().map_err(|_| "the reader panicked")??);
    let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
    let text = std::str::from_utf8(&text[..whole])?;
    let mut acknowledged = Acknowledged::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        if words.next() == Some("ack") {
            let revision = words.next().ok_or("no revision")?.parse()?;
            let write = (words.next().ok_or("no key")?.to_owned(), words.next().ok_or("no tag")?.to_owned());
            if acknowledged.insert(revision, write).is_some() {
                return Err(format!("revision {revision} was acknowledged twice").into());
            }
        }
    }
    Ok((text.starts_with("open"), acknowledged))
}

/// What the store holds, as far as the parent knows.
#[derive(Default)]
struct Known {
    revision: Revision,
    live: BTreeMap<String, (Revision, String)>,
}

async fn check(dir: &Path, round: u64, known: &mut Known, acknowledged: &Acknowledged) -> Result<()> {
    let store = Embedded::open(dir, options(round)).await?;
    let current = store.current_revision().await?;
    let mut events: Vec<Event> = Vec::new();
    let mut watch = store.watch("", known.revision).await?;
    while events.last().map_or(known.revision, Event::revision) < current {
        match watch.next().await {
            Some(Ok(WatchItem::Events(more))) => events.extend(more),
            Some(Ok(WatchItem::Progress(_))) => {}
            other => return Err(format!("the watch ended: {other:?}").into()),
        }
    }
    for event in &events {
        known.revision += 1;
        assert_eq!(event.revision(), known.revision, "revisions have no gap");
        let key = event.kv.key.to_string();
        let written = match event.kind {
            EventKind::Put => tag(&event.kv.value).expect("a value is whole"),
            EventKind::Delete => "-".to_owned(),
        };
        if let Some(ack) = acknowledged.get(&known.revision) {
            assert_eq!(*ack, (key.clone(), written.clone()), "revision {}", known.revision);
        }
        let prev = event.prev.as_ref().map(|kv| kv.mod_revision);
        assert_eq!(prev, known.live.get(&key).map(|(revision, _)| *revision));
        match event.kind {
            EventKind::Put => known.live.insert(key, (known.revision, written)),
            EventKind::Delete => known.live.remove(&key),
        };
    }
    assert_eq!(known.revision, current);
    if let Some((last, _)) = acknowledged.last_key_value() {
        assert!(*last <= current, "revision {last} was acknowledged, but the store is at {current}");
    }
    let list = store.list("", ListOptions::default()).await?;
    let live: BTreeMap<_, _> = list
        .items
        .iter()
        .map(|kv| (kv.key.to_string(), (kv.mod_revision, tag(&kv.value).expect("a value is whole"))))
        .collect();
    assert_eq!(live, known.live);
    store.close().await?;
    Ok(())
}

async fn parent() -> Result<()> {
    let dir = TempDir::new()?;
    let mut known = Known { revision: hawser_storage::FIRST_REVISION, ..Known::default() };
    let mut random = Random::new(u64::from(std::process::id()));
    let (mut opened, mut writes, mut unacknowledged) = (0, 0, 0);
    for round in 0..KILLS {
        let before = known.revision;
        let (open, acknowledged) = run_and_kill(dir.path(), round, &mut random)?;
        assert!(acknowledged.keys().all(|revision| *revision > before), "no revision is used twice");
        check(dir.path(), round + 1, &mut known, &acknowledged).await?;
        opened += u64::from(open);
        writes += acknowledged.len() as u64;
        unacknowledged += known.revision - before - acknowledged.len() as u64;
    }
    assert!(opened > KILLS / 2 && writes > KILLS, "the children have written");
    println!(
        "{KILLS} processes killed, {opened} of them while writing: {writes} acknowledged writes are all there, \
         and {unacknowledged} whose answer was cut off; {} keys live",
        known.live.len()
    );

    // While one process has the store open, another one is refused.
    let store = Embedded::open(dir.path(), options(0)).await?;
    let args = ["child", &dir.path().display().to_string(), "0"];
    let output = Command::new(env::current_exe()?).args(args).output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("in use by another process"), "{told}");
    store.close().await?;
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match &args[1..] {
        [mode, dir, round] if mode == "child" => {
            if let Err(error) = runtime.block_on(child(Path::new(dir), round.parse()?)) {
                eprintln!("{error}");
                std::process::exit(1);
            }
            Ok(())
        }
        // Whatever the harness of other tests would be told.
        _ => runtime.block_on(parent()),
    }
}
