//! What readers, the writer and the keeper share: index, recent events and the table.
//!
//! A value is in the ring, or in the table, or in both. A reader opens its snapshot of the table below the
//! state's lock, and rows leave the table only after the index forgot them below that lock;
//! so a row that a reader's view of the index names is in its snapshot.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;

use super::{
    frame::Record,
    ring::Ring,
    rows::{Reader, Rows},
};
use crate::{
    Error, Event, KeyValue, ListOptions, ListResult, Revision,
    hub::{Chunk, History, Hub},
    index::{Index, Version},
};

/// A watch that catches up reads at most this many revisions …
const CHUNK_REVISIONS: usize = 1024;
/// … or bytes of values at once.
const CHUNK_BYTES: usize = 1 << 20;
/// A list that reads more rows than this from the table goes to a thread where it may block.
const INLINE_ROWS: usize = 32;
/// A list that needs at least one of so many rows in its range reads the range.
const SCAN_SHARE: Revision = 8;

pub(crate) struct State {
    pub index: Index,
    pub ring: Ring,
    /// All revisions up to this one are in the table.
    pub applied: Revision,
    /// `None` once closed.
    pub rows: Option<Rows>,
}

pub(crate) struct Store {
    pub state: RwLock<State>,
    pub hub: Hub,
}

/// A row that the index names and nothing has.
fn lost(revision: Revision) -> Error {
    Error::Corrupt { what: format!("there is no row for revision {revision}") }
}

impl State {
    pub fn rows(&self) -> Result<&Rows, Error> {
        self.rows.as_ref().ok_or(Error::Closed)
    }

    /// The value written at `revision`, which the index names.
    pub fn value(&self, revision: Revision) -> Result<KeyValue, Error> {
        match self.ring.get(revision) {
            Some(kv) => Ok(kv.clone()),
            None => self.rows()?.reader()?.get(revision, |r| r.kv())?.ok_or_else(|| lost(revision)),
        }
    }
}

/// Builds the index from the table.
///
/// # Errors
/// [`Error::Corrupt`] when rows are damaged or missing.
pub(crate) fn load_index(rows: &Rows) -> Result<Index, Error> {
    let meta = rows.meta()?;
    let mut index = Index::new();
    let mut next = None;
    let mut count = 0;
    rows.reader()?.scan(0..=Revision::MAX, |record| {
        count += 1;
        // Above the compacted revision every revision has its row.
        let expected = next.unwrap_or(meta.compacted.max(crate::FIRST_REVISION) + 1);
        if record.revision > expected {
            return Err(lost(expected));
        }
        next = (record.revision == expected).then_some(expected + 1).or(next);
        let key = index.intern(record.key);
        index.apply(key, Version { create: record.create, revision: record.revision });
        Ok(true)
    })?;
    if count != meta.rows {
        return Err(Error::Corrupt { what: format!("the table has {count} rows instead of {}", meta.rows) });
    }
    if index.current() > meta.applied {
        return Err(Error::Corrupt { what: "the table is ahead of its own revision".to_owned() });
    }
    if next.unwrap_or(meta.compacted.max(crate::FIRST_REVISION) + 1) <= meta.applied {
        return Err(lost(meta.applied));
    }
    index.advance_to(meta.applied);
    index.compact(meta.compacted)?;
    Ok(index)
}

enum Found {
    Here(KeyValue),
    InTable(Arc<str>, Version),
}

/// Reads what is not here yet, in the order in which the table has it.
fn read_rows(mut found: Vec<Found>, reader: &Reader) -> Result<Vec<KeyValue>, Error> {
    let mut misses: Vec<(Revision, usize)> = Vec::new();
    for (n, item) in found.iter().enumerate() {
        if let Found::InTable(_, version) = item {
            misses.push((version.revision, n));
        }
    }
    misses.sort_unstable();
    let mut take = |n: usize, revision, value: &[u8]| {
        if let Some(Found::InTable(key, version)) = found.get(n) {
            let (key, create_revision) = (key.clone(), version.create);
            let value = Bytes::copy_from_slice(value);
            found[n] = Found::Here(KeyValue { key, value, create_revision, mod_revision: revision });
        }
    };
    let span = misses.first().zip(misses.last()).map_or(0, |(first, last)| last.0 - first.0);
    if span / SCAN_SHARE < misses.len() as Revision && misses.len() > INLINE_ROWS {
        // Most of what lies between is wanted: one way through the table instead of a search for each row.
        let mut wanted = misses.iter().copied().peekable();
        reader.scan(misses[0].0..=misses[0].0 + span, |record| {
            if let Some((revision, n)) = wanted.next_if(|(revision, _)| *revision == record.revision) {
                take(n, revision, record.value);
            }
            Ok(wanted.peek().is_none_or(|(revision, _)| *revision > record.revision))
        })?;
    } else {
        for (revision, n) in misses {
            reader.get(revision, |r| take(n, revision, r.value))?;
        }
    }
    let whole = found.into_iter().map(|item| match item {
        Found::Here(kv) => Ok(kv),
        Found::InTable(_, version) => Err(lost(version.revision)),
    });
    whole.collect()
}

/// Runs `read` where it may block.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(read).await {
        Ok(result) => result,
        Err(e) => Err(Error::Unavailable(format!("reading was interrupted: {e}"))),
    }
}

impl Store {
    pub fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), Error> {
        let state = self.state.read();
        state.rows()?;
        let revision = state.index.current();
        let Some(version) = state.index.latest(key) else { return Ok((None, revision)) };
        if let Some(kv) = state.ring.get(version.revision) {
            return Ok((Some(kv.clone()), revision));
        }
        let key = state.index.intern(key);
        let reader = state.rows()?.reader()?;
        drop(state);
        let kv = read_rows(vec![Found::InTable(key, version)], &reader)?.pop();
        Ok((kv, revision))
    }

    pub async fn list(&self, prefix: &str, options: ListOptions) -> Result<ListResult, Error> {
        let (found, misses, reader, revision, remaining) = {
            let state = self.state.read();
            let rows = state.rows()?;
            let revision = state.index.resolve(options.revision)?;
            let page = state.index.page(prefix, options.start_after.as_deref(), options.limit, revision);
            let mut misses = 0;
            let find = |(key, version): (Arc<str>, Version)| match state.ring.get(version.revision) {
                Some(kv) => Found::Here(kv.clone()),
                None => {
                    misses += 1;
                    Found::InTable(key, version)
                }
            };
            let found: Vec<_> = page.items.into_iter().map(find).collect();
            (found, misses, rows.reader()?, revision, page.remaining)
        };
        let items = if misses <= INLINE_ROWS {
            read_rows(found, &reader)?
        } else {
            blocking(move || read_rows(found, &reader)).await?
        };
        Ok(ListResult { items, revision, more: remaining > 0, remaining })
    }

    /// Makes durable events visible: to readers, then to watches.
    pub fn publish(&self, events: Vec<Event>) {
        let mut state = self.state.write();
        for event in &events {
            let version = Version { create: event.kv.create_revision, revision: event.revision() };
            state.index.apply(event.kv.key.clone(), version);
            state.ring.push(event.clone());
        }
        drop(state);
        self.hub.dispatch(&events);
    }
}

#[async_trait]
impl History for Store {
    async fn read(&self, prefix: &str, from: Revision, to: Revision) -> Result<Chunk, Error> {
        let (reader, to) = {
            let state = self.state.read();
            let rows = state.rows()?;
            state.index.check_watch(from - 1)?;
            if let Some(events) = state.ring.since(from) {
                let mut chunk = Chunk { events: Vec::new(), next: from };
                for event in events.take(CHUNK_REVISIONS).take_while(|e| e.revision() <= to) {
                    chunk.next = event.revision() + 1;
                    if event.kv.key.starts_with(prefix) {
                        chunk.events.push(event.clone());
                    }
                }
                return Ok(chunk);
            }
            (rows.reader()?, to.min(state.ring.base() - 1))
        };
        let prefix = prefix.to_owned();
        blocking(move || read_events(&reader, &prefix, from, to)).await
    }
}

fn read_events(reader: &Reader, prefix: &str, from: Revision, to: Revision) -> Result<Chunk, Error> {
    let mut chunk = Chunk { events: Vec::new(), next: from };
    let mut bytes = 0;
    reader.scan(from..=to, |record| {
        if record.revision != chunk.next {
            return Err(lost(chunk.next));
        }
        chunk.next += 1;
        if record.key.starts_with(prefix) {
            let event = event(reader, &record)?;
            bytes += crate::hub::event_bytes(&event);
            chunk.events.push(event);
        }
        Ok(bytes < CHUNK_BYTES && chunk.next - from < CHUNK_REVISIONS as Revision)
    })?;
    if chunk.next == from {
        return Err(lost(from));
    }
    Ok(chunk)
}

fn event(reader: &Reader, record: &Record<'_>) -> Result<Event, Error> {
    // 0 (a creation) is no row's revision.
    let prev = reader.get(record.prev, |r| r.kv())?;
    Ok(Event { kind: record.kind(), kv: record.kv(), prev })
}
