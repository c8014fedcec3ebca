//! Between storage and the caches: the one watch on everything, lazy starts, writes, and how far reads must wait.
//!
//! A single watch on the registry's whole directory tells every cache its events in the order of revisions, and
//! with that how far all of them have come: one number. A read that must be consistent asks storage for its
//! revision and waits until that number has reached it. With the embedded engine both are in memory; with etcd
//! the question is a linearizable read, so consistency is proven and not assumed.

use std::collections::HashMap;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use hawser_api::kinds::Kind;
use hawser_storage::{
    Error, Event, EventKind, KeyValue, ListOptions, Precondition, ProgressHandle, Storage, WatchItem,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::entry::{Entry, Facts};
use super::{Applied, ResourceCache};
use crate::encode::Head;
use crate::encryption::Transformer;
use crate::kinds::{KindsRegistry, REGISTRY};

/// What is encrypted at rest.
const SECRETS: &str = "/registry/secrets/";
/// How long a read waits for a revision before it is refused (as kube-apiserver).
pub const WAIT_LIMIT: Duration = Duration::from_secs(3);
/// How long the watch may lag before progress is asked for explicitly.
const PROGRESS_AFTER: Duration = Duration::from_millis(5);
/// How often old events are dropped while nothing happens.
const TRIM_EVERY: Duration = Duration::from_secs(15);
/// Values that one thread decodes in one go.
const LOADED_AT_ONCE: usize = 2048;
/// Pause before a failed watch is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Why a cache cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// Storage failed.
    #[error(transparent)]
    Storage(#[from] Error),
    /// A cache lost its state just now.
    #[error(transparent)]
    Reloading(#[from] super::Reloading),
    /// A stored value cannot be read.
    #[error("the stored object {key} cannot be read: {why}")]
    Unreadable {
        /// Its key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// The revision that was asked for has not come.
    #[error("too large resource version: {wanted}, current: {current}")]
    TooLarge {
        /// Asked for.
        wanted: u64,
        /// Reached.
        current: u64,
    },
}

struct Prepared {
    /// Keeps the buffer alive, so that its address stays its name.
    sealed: Bytes,
    value: Bytes,
    facts: Facts,
    /// Revision of the write once it is done; the entry goes when the watch has passed it.
    committed: Option<u64>,
}

/// See the module's text.
pub struct Feed {
    storage: Arc<dyn Storage>,
    kinds: Arc<KindsRegistry>,
    seal: Option<Arc<dyn Transformer>>,
    seen: AtomicU64,
    /// States before this one are given up.
    horizon: AtomicU64,
    stopped: AtomicBool,
    seen_tx: watch::Sender<u64>,
    progress: Mutex<Option<ProgressHandle>>,
    /// Writes on their way, by the address of their bytes: an engine that hands the same buffer back in its event
    /// spares parsing it.
    prepared: Mutex<HashMap<usize, Prepared>>,
}

/// Makes entries of stored values.
#[derive(Clone)]
struct Loader {
    kind: Arc<Kind>,
    head: Head,
    seal: Option<Arc<dyn Transformer>>,
}

impl Loader {
    fn entry(&self, prefix: &str, kv: KeyValue) -> Result<Entry, FeedError> {
        let unreadable = |why: String| FeedError::Unreadable { key: kv.key.to_string(), why };
        let seal = self.seal.as_ref().filter(|_| kv.key.starts_with(SECRETS));
        let outdated = seal.is_some_and(|seal| seal.is_outdated(&kv.value));
        let value = match &self.seal {
            Some(seal) => seal.decrypt(kv.key.as_bytes(), kv.value).map_err(|e| unreadable(e.to_string()))?,
            None => kv.value,
        };
        let key = kv.key.strip_prefix(prefix).unwrap_or(&kv.key).into();
        let mut entry = Entry::load(&self.kind, &self.head, key, kv.mod_revision, value)
            .map_err(|e| unreadable(e.to_string()))?;
        entry.rewritten |= outdated;
        Ok(entry)
    }
}

/// Takes a write out of `prepared` if it fails or nobody waits for it any longer.
struct PreparedGuard<'a>(&'a Feed, usize);

impl Drop for PreparedGuard<'_> {
    fn drop(&mut self) {
        self.0.prepared.lock().remove(&self.1);
    }
}

/// Puts a cache back to idle when the request that was loading it goes away.
struct LoadGuard<'a>(Option<&'a ResourceCache>);

impl Drop for LoadGuard<'_> {
    fn drop(&mut self) {
        if let Some(cache) = self.0 {
            cache.abort_loading();
        }
    }
}

impl Feed {
    /// A feed that begins at storage's current revision.
    ///
    /// # Errors
    /// When storage does not answer.
    pub async fn new(
        storage: Arc<dyn Storage>,
        kinds: Arc<KindsRegistry>,
        seal: Option<Arc<dyn Transformer>>,
    ) -> Result<Self, Error> {
        let revision = storage.current_revision().await?;
        Ok(Self {
            storage,
            kinds,
            seal,
            seen: AtomicU64::new(revision),
            horizon: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            seen_tx: watch::Sender::new(revision),
            progress: Mutex::default(),
            prepared: Mutex::default(),
        })
    }

    /// Storage itself.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Gives up the states before a revision, in storage and for pages of lists from the caches.
    ///
    /// # Errors
    /// Those of [`Storage::compact`].
    pub async fn compact(&self, revision: u64) -> Result<(), Error> {
        self.storage.compact(revision).await?;
        self.horizon.fetch_max(revision, Ordering::AcqRel);
        Ok(())
    }

    /// Whether a state is given up. A cache may still know it; clients are told of its end by the clock of compaction,
    /// as kube-apiserver's snapshots follow it, and not by how busy the resource was.
    pub fn has_given_up(&self, revision: u64) -> bool {
        revision < self.horizon.load(Ordering::Acquire)
    }

    /// The revision up to which every live cache is complete.
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Acquire)
    }

    /// Follows storage until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow() => {}
        }
        self.end_watches();
    }

    /// Ends every watch; nothing follows the caches any longer.
    pub fn end_watches(&self) {
        self.stopped.store(true, Ordering::Release);
        self.kinds.load().caches().for_each(|c| c.wake());
    }

    /// Whether nothing will come any more: watches end.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    async fn follow(&self) {
        loop {
            let after = self.seen();
            match self.storage.watch(REGISTRY, after).await {
                Ok(stream) => {
                    *self.progress.lock() = Some(stream.progress_handle());
                    let why = self.read(stream).await;
                    *self.progress.lock() = None;
                    self.recover(why).await;
                }
                Err(why) => self.recover(Some(why)).await,
            }
        }
    }

    /// Reads one watch to its end; answers the error it ended with.
    async fn read(&self, mut stream: hawser_storage::WatchStream) -> Option<Error> {
        let mut trim = tokio::time::interval(TRIM_EVERY);
        loop {
            let item = tokio::select! {
                item = stream.next() => item?,
                _ = trim.tick() => {
                    let now = Instant::now();
                    self.kinds.load().caches().for_each(|c| c.trim(now));
                    continue;
                }
            };
            match item {
                Ok(WatchItem::Events(events)) => {
                    let last = events.last().map(Event::revision);
                    let mut touched: Vec<Arc<ResourceCache>> = Vec::new();
                    for event in events {
                        if let Err(why) = self.take(event, &mut touched) {
                            tracing::error!(error = %why, "a stored object cannot be read");
                        }
                    }
                    if let Some(revision) = last {
                        self.advance(revision);
                    }
                    touched.iter().for_each(|cache| cache.flush());
                }
                Ok(WatchItem::Progress(revision)) => self.advance(revision),
                Err(why) => return Some(why),
            }
        }
    }

    fn advance(&self, revision: u64) {
        if self.seen.fetch_max(revision, Ordering::AcqRel) < revision {
            self.seen_tx.send_replace(revision);
            self.prepared.lock().retain(|_, p| p.committed.is_none_or(|r| r > revision));
        }
    }

    /// Applies an event. Its cache is noted in `touched`.
    fn take(&self, event: Event, touched: &mut Vec<Arc<ResourceCache>>) -> Result<(), FeedError> {
        let table = self.kinds.load();
        let Some(cache) = table.cache_of_key(&event.kv.key) else { return Ok(()) };
        if !cache.wants_events() {
            return Ok(());
        }
        let kv = event.kv;
        let change = match event.kind {
            EventKind::Delete => {
                let key = kv.key.strip_prefix(cache.prefix()).unwrap_or(&kv.key).into();
                Applied::Delete(key, kv.mod_revision)
            }
            EventKind::Put => Applied::Put(Arc::new(self.entry(cache, kv)?)),
        };
        cache.apply(change);
        if !touched.last().is_some_and(|last| Arc::ptr_eq(last, cache)) {
            touched.push(cache.clone());
        }
        Ok(())
    }

    fn entry(&self, cache: &ResourceCache, kv: KeyValue) -> Result<Entry, FeedError> {
        let address = kv.value.as_ptr() as usize;
        {
            let mut prepared = self.prepared.lock();
            if let Some(p) = prepared.get_mut(&address)
                && p.sealed.len() == kv.value.len()
            {
                let facts = std::mem::take(&mut p.facts);
                let value = p.value.clone();
                prepared.remove(&address);
                let key = kv.key.strip_prefix(cache.prefix()).unwrap_or(&kv.key).into();
                return Ok(Entry::new(key, kv.mod_revision, value, facts));
            }
        }
        let loader =
            Loader { kind: cache.kind().clone(), head: cache.head().clone(), seal: self.seal.clone() };
        loader.entry(cache.prefix(), kv)
    }

    /// After a watch has ended: when history is gone, all caches are read anew.
    async fn recover(&self, why: Option<Error>) {
        match why {
            Some(Error::Compacted { .. } | Error::FutureRevision { .. }) => {
                tracing::warn!(seen = self.seen(), "storage's history is gone: reading everything anew");
                match self.storage.current_revision().await {
                    Ok(revision) => {
                        let live: Vec<_> =
                            self.kinds.load().caches().filter(|c| c.wants_events()).cloned().collect();
                        // Idle first: what the next watch brings must not meet the old state.
                        live.iter().for_each(|c| c.abort_loading());
                        self.seen.store(revision, Ordering::Release);
                        self.seen_tx.send_replace(revision);
                        for cache in live {
                            if let Err(e) = self.ensure(&cache).await {
                                tracing::error!(error = %e, prefix = cache.prefix(), "cannot read");
                            }
                        }
                        return;
                    }
                    Err(e) => tracing::error!(error = %e, "storage does not answer"),
                }
            }
            Some(Error::Closed) => std::future::pending().await,
            Some(e) => tracing::warn!(error = %e, "the watch on storage failed"),
            None => tracing::warn!("the watch on storage ended"),
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }

    /// Starts a cache if it is idle.
    ///
    /// # Errors
    /// When storage cannot be read; the cache then stays idle.
    pub async fn ensure(&self, cache: &ResourceCache) -> Result<(), FeedError> {
        if cache.is_live() {
            return Ok(());
        }
        let _one = cache.start.lock().await;
        if cache.is_live() {
            return Ok(());
        }
        if cache.is_retired() {
            return Err(FeedError::Reloading(super::Reloading));
        }
        cache.begin_loading();
        let mut guard = LoadGuard(Some(cache));
        let listed = self.storage.list(cache.prefix(), ListOptions::default()).await?;
        let entries = self.load(cache, listed.items).await?;
        guard.0 = None;
        cache.finish_loading(entries, listed.revision);
        Ok(())
    }

    /// Makes entries of what storage listed. Many of them are made where work may take its time, on several threads.
    async fn load(&self, cache: &ResourceCache, items: Vec<KeyValue>) -> Result<Vec<Entry>, FeedError> {
        let mut entries = Vec::with_capacity(items.len());
        let mut items = items.into_iter();
        let loader =
            Loader { kind: cache.kind().clone(), head: cache.head().clone(), seal: self.seal.clone() };
        let prefix = cache.prefix();
        if items.len() <= LOADED_AT_ONCE {
            for kv in items {
                entries.push(loader.entry(prefix, kv)?);
            }
            return Ok(entries);
        }
        let pieces = std::iter::from_fn(move || {
            let piece: Vec<KeyValue> = items.by_ref().take(LOADED_AT_ONCE).collect();
            (!piece.is_empty()).then_some(piece)
        });
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let mut loaded = stream::iter(pieces.map(|piece| {
            let (loader, prefix) = (loader.clone(), prefix.to_owned());
            tokio::task::spawn_blocking(move || {
                piece.into_iter().map(|kv| loader.entry(&prefix, kv)).collect::<Result<Vec<_>, _>>()
            })
        }))
        .buffered(threads);
        while let Some(piece) = loaded.next().await {
            let piece = piece.map_err(|e| Error::Unavailable(format!("reading was interrupted: {e}")))?;
            entries.extend(piece?);
        }
        Ok(entries)
    }

    /// Waits until the caches have seen a revision.
    ///
    /// # Errors
    /// [`FeedError::TooLarge`] after [`WAIT_LIMIT`].
    pub async fn wait_for(&self, revision: u64) -> Result<(), FeedError> {
        if self.seen() >= revision {
            return Ok(());
        }
        let mut seen = self.seen_tx.subscribe();
        let reached = async {
            let mut pause = PROGRESS_AFTER;
            loop {
                match tokio::time::timeout(pause, seen.wait_for(|s| *s >= revision)).await {
                    Ok(_) => return,
                    Err(_) => {
                        if let Some(progress) = self.progress.lock().as_ref() {
                            progress.request();
                        }
                        pause = Duration::from_millis(100);
                    }
                }
            }
        };
        match tokio::time::timeout(WAIT_LIMIT, reached).await {
            Ok(()) => Ok(()),
            Err(_) => Err(FeedError::TooLarge { wanted: revision, current: self.seen() }),
        }
    }

    /// Starts a cache if need be, and waits until it has everything that was written before this call. The answer
    /// is the revision that is proven.
    ///
    /// # Errors
    /// When storage does not answer, or the caches do not catch up.
    pub async fn consistent(&self, cache: &ResourceCache) -> Result<u64, FeedError> {
        let now = self.storage.current_revision().await?;
        self.ensure(cache).await?;
        self.wait_for(now).await?;
        Ok(now)
    }

    /// Writes an object. `facts` are those of `value`.
    ///
    /// # Errors
    /// Those of [`Storage::put`].
    pub async fn put(
        &self,
        key: &str,
        value: Bytes,
        facts: Facts,
        precondition: Precondition,
    ) -> Result<u64, Error> {
        let sealed = match &self.seal {
            Some(seal) if key.starts_with(SECRETS) => {
                seal.encrypt(key.as_bytes(), &value).map_err(|e| Error::Corrupt { what: e.to_string() })?
            }
            _ => value.clone(),
        };
        let address = sealed.as_ptr() as usize;
        let prepared = Prepared { sealed: sealed.clone(), value, facts, committed: None };
        self.prepared.lock().insert(address, prepared);
        let guard = PreparedGuard(self, address);
        let revision = self.storage.put(key, sealed, precondition).await?;
        // The event may still be on its way; once the watch is past it, what was prepared is of no use.
        let mut prepared = self.prepared.lock();
        if self.seen() >= revision {
            prepared.remove(&address);
        } else if let Some(p) = prepared.get_mut(&address) {
            p.committed = Some(revision);
        }
        std::mem::forget(guard);
        Ok(revision)
    }

    /// Deletes an object. The answer is the deletion's revision.
    ///
    /// # Errors
    /// Those of [`Storage::delete`].
    pub async fn delete(&self, key: &str, precondition: Precondition) -> Result<u64, Error> {
        self.storage.delete(key, precondition).await.map(|(_, revision)| revision)
    }

    /// The state of a resource at an earlier revision that the cache no longer knows, read from storage: at most
    /// `limit` objects (0 for all) and how many follow.
    ///
    /// # Errors
    /// [`Error::Compacted`] among others.
    pub async fn list_at(
        &self,
        cache: &ResourceCache,
        namespace: Option<&str>,
        revision: u64,
        start: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<Arc<Entry>>, u64), FeedError> {
        let prefix = match namespace {
            Some(ns) => format!("{}{ns}/", cache.prefix()),
            None => cache.prefix().to_owned(),
        };
        let options = ListOptions {
            // Continue tokens name the first key of the next page; storage wants the one before it.
            start_after: start.map(|s| before(&format!("{}{s}", cache.prefix()))),
            limit,
            revision: Some(revision),
        };
        let listed = self.storage.list(&prefix, options).await?;
        let mut entries = Vec::with_capacity(listed.items.len());
        for kv in listed.items {
            entries.push(Arc::new(self.entry(cache, kv)?));
        }
        Ok((entries, listed.remaining))
    }
}

/// A key that sorts right before `key` among keys that hold no control characters: tokens are made as
/// `last key + NUL`, of which this takes the NUL away.
fn before(key: &str) -> String {
    key.strip_suffix('\0').unwrap_or(key).to_owned()
}
