//! The engine for one machine: a log that acknowledges and a table that keeps.
//!
//! A write is one record. Whatever writes are waiting are written together, as one checksummed
//! frame, to the end of a log with one synchronous write; then they are acknowledged. A redb table takes
//! them over a few seconds or megabytes later. A start reads the table, then what the log has beyond it.
//! In memory are the keys with their revisions and the most recent events; values are read from the table.
//!
//! | file | what |
//! |---|---|
//! | `lock` | locked while a process has the directory open |
//! | `table.redb` | rows by revision, up to the last checkpoint |
//! | `log/*.wal` | frames of the writes since then ([`frame`]) |

mod frame;
mod handoff;
mod keeper;
mod plan;
mod recovery;
mod ring;
mod rows;
mod segment;
mod store;
mod writer;

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    hash::{BuildHasher, Hasher, RandomState},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use crate::{
    Error, KeyValue, ListOptions, ListResult, Precondition, Revision, Storage, WatchStream,
    hub::Hub,
    model::{check_key, check_write},
};
use handoff::{Compaction, Handoff};
use keeper::Keeper;
use plan::Request;
use ring::Ring;
use rows::Rows;
use segment::{Log, Segment, io_error};
use store::{State, Store};
use writer::{MAX_FRAME_BYTES, Message, Writer};

/// How the engine uses memory and disk. The defaults suit a cluster of any size.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of one file of the log, fixed when the store is made; at least 4 MiB.
    pub segment_bytes: u64,
    /// The log is taken over into the table after this many bytes …
    pub checkpoint_bytes: usize,
    /// … or after this time.
    pub checkpoint_interval: Duration,
    /// Bytes of recent events kept in memory for watches.
    pub recent_bytes: usize,
    /// Bytes of the table's pages kept in memory.
    pub cache_bytes: usize,
    /// History older than this is compacted …
    pub history_age: Duration,
    /// … and so is history beyond this many revisions.
    pub history_revisions: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            segment_bytes: 8 << 20,
            checkpoint_bytes: 4 << 20,
            checkpoint_interval: Duration::from_secs(5),
            recent_bytes: 8 << 20,
            cache_bytes: 16 << 20,
            history_age: Duration::from_secs(300),
            history_revisions: 200_000,
        }
    }
}

/// Writes wait while the log is this many bytes ahead of the table.
const MAX_BACKLOG: usize = 32 << 20;
const MIN_SEGMENT_BYTES: u64 = 4 << 20;
const _: () = assert!(MAX_FRAME_BYTES < MIN_SEGMENT_BYTES as usize);

/// A store in a directory. Cloning shares it; it is closed by [`Storage::close`], or in the background
/// once the last clone is dropped.
#[derive(Clone)]
pub struct Embedded(Arc<Handle>);

struct Handle {
    store: Arc<Store>,
    handoff: Arc<Handoff>,
    requests: mpsc::Sender<Message>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Embedded {
    /// Opens the store in `dir`, which is made (mode 0700) if it is not there.
    ///
    /// # Errors
    /// [`Error::InUse`] when another process has it open; [`Error::Corrupt`] when acknowledged writes
    /// cannot be read back; [`Error::Unavailable`] for failures of the file system.
    pub async fn open(dir: impl Into<PathBuf>, options: Options) -> Result<Embedded, Error> {
        let dir = dir.into();
        match tokio::task::spawn_blocking(move || open(&dir, options)).await {
            Ok(result) => result,
            Err(e) => Err(Error::Unavailable(format!("opening was interrupted: {e}"))),
        }
    }

    async fn write(
        &self,
        key: &str,
        value: Option<Bytes>,
        precondition: Precondition,
    ) -> Result<(Option<KeyValue>, Revision), Error> {
        let (reply, answer) = oneshot::channel();
        let request = Request { key: key.to_owned(), value, precondition, reply };
        self.0.requests.send(Message::Write(request)).map_err(|_| Error::Closed)?;
        answer.await.unwrap_or(Err(Error::Closed))
    }
}

fn make_dir(dir: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| io_error("create", dir, &e))
}

fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| io_error("open", &path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: dir.display().to_string() }),
        Err(TryLockError::Error(e)) => Err(io_error("lock", &path, &e)),
    }
}

/// A number that no other store has.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Opens the table and brings it up to date with the log. Answers what is left of the log.
fn recover(dir: &Path, log_dir: &Path, options: &Options) -> Result<(Rows, Vec<(u64, PathBuf)>), Error> {
    let table = dir.join("table.redb");
    let segments = segment::find(log_dir)?;
    if !table.exists() {
        if let Some((_, path)) = segments.first() {
            let what = format!("{} is missing, but there is {}", table.display(), path.display());
            return Err(Error::Corrupt { what });
        }
        Rows::create(&table, random(), options.segment_bytes.max(MIN_SEGMENT_BYTES))?;
    }
    let rows = Rows::open(&table, options.cache_bytes)?;
    let meta = rows.meta()?;
    if segments.is_empty() && meta.applied > crate::FIRST_REVISION {
        return Err(Error::Corrupt { what: format!("the log in {} is missing", log_dir.display()) });
    }
    let images = recovery::load(segments.clone(), meta.segment_bytes)?;
    let records = recovery::replay(&images, meta.salt, meta.applied)?;
    if !records.is_empty() {
        tracing::info!(records = records.len(), after = meta.applied, "replaying the storage log");
        rows.append(records.into_iter())?;
    }
    Ok((rows, segments))
}

fn open(dir: &Path, mut options: Options) -> Result<Embedded, Error> {
    make_dir(dir)?;
    let lock = lock(dir)?;
    let log_dir = dir.join("log");
    make_dir(&log_dir)?;
    let (rows, mut segments) = recover(dir, &log_dir, &options)?;
    let meta = rows.meta()?;
    options.segment_bytes = meta.segment_bytes;
    let index = store::load_index(&rows)?;

    // A fresh segment first, so that there is always a log; then the old ones can go.
    let id = segments.last().map_or(0, |(id, _)| id + 1);
    let reuse = (segments.len() > 1).then(|| segments.remove(0).1);
    let segment = Segment::create(&log_dir, id, options.segment_bytes, reuse)?;
    let mut spare: Vec<PathBuf> = segments.into_iter().map(|(_, path)| path).collect();
    for path in spare.drain(1.min(spare.len())..) {
        fs::remove_file(&path).map_err(|e| io_error("remove", &path, &e))?;
    }

    let current = index.current();
    let state =
        State { index, ring: Ring::new(current + 1), applied: meta.applied, rows: Some(rows.clone()) };
    let store = Arc::new(Store { state: RwLock::new(state), hub: Hub::new(current) });
    let handoff = Arc::new(Handoff::default());
    let (requests, receiver) = mpsc::channel();
    let writer = Writer {
        store: store.clone(),
        handoff: handoff.clone(),
        log: Log::new(meta.salt, segment),
        checkpoint_bytes: options.checkpoint_bytes,
        max_backlog: MAX_BACKLOG,
        failed: None,
    };
    let keeper = Keeper {
        store: store.clone(),
        handoff: handoff.clone(),
        rows,
        options,
        log_dir,
        next_segment: id + 1,
        spare,
        lock,
    };
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
        thread.map_err(|e| Error::Unavailable(format!("cannot start a thread: {e}")))
    };
    let threads = vec![
        spawn("storage-keeper", Box::new(move || keeper.run()))?,
        spawn("storage-writer", Box::new(move || writer.run(receiver)))?,
    ];
    Ok(Embedded(Arc::new(Handle { store, handoff, requests, threads: Mutex::new(threads) })))
}

#[async_trait]
impl Storage for Embedded {
    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), Error> {
        check_key(key)?;
        self.0.store.get(key)
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<ListResult, Error> {
        self.0.store.list(prefix, options).await
    }

    async fn put(&self, key: &str, value: Bytes, precondition: Precondition) -> Result<Revision, Error> {
        check_write(key, &value)?;
        self.write(key, Some(value), precondition).await.map(|(_, revision)| revision)
    }

    async fn delete(&self, key: &str, precondition: Precondition) -> Result<(KeyValue, Revision), Error> {
        check_key(key)?;
        let (prev, revision) = self.write(key, None, precondition).await?;
        Ok((prev.ok_or(Error::NotFound)?, revision))
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, Error> {
        let state = self.0.store.state.read();
        state.rows()?;
        state.index.check_watch(after)?;
        self.0.store.hub.watch(self.0.store.clone(), prefix, after)
    }

    async fn current_revision(&self) -> Result<Revision, Error> {
        let state = self.0.store.state.read();
        state.rows()?;
        Ok(state.index.current())
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        {
            let state = self.0.store.state.read();
            state.rows()?;
            if revision <= state.index.compacted() {
                return Ok(());
            }
        }
        self.0.handoff.change(|desk| {
            if desk.closing {
                return Err(Error::Closed);
            }
            desk.compactions.push(Compaction { revision, reply });
            Ok(())
        })?;
        answer.await.unwrap_or(Err(Error::Closed))
    }

    async fn close(&self) -> Result<(), Error> {
        let _ = self.0.requests.send(Message::Close);
        let threads = std::mem::take(&mut *self.0.threads.lock());
        let joined =
            tokio::task::spawn_blocking(move || threads.into_iter().map(JoinHandle::join).all(|r| r.is_ok()));
        match joined.await {
            Ok(true) => Ok(()),
            _ => Err(Error::Unavailable("a storage thread has panicked".to_owned())),
        }
    }
}
