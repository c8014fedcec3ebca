//! The engine that keeps everything in memory, history included, until it is compacted.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;

use crate::{
    Error, Event, EventKind, FIRST_REVISION, KeyValue, ListOptions, ListResult, Precondition, Revision,
    Storage, WatchStream,
    hub::{Chunk, History, Hub},
    index::{Decision, Index, Version, decide},
    model::{check_key, check_write},
};

/// A watch that catches up reads at most this many revisions at once.
const CHUNK_REVISIONS: usize = 1024;

/// A store in memory. Cloning shares it.
#[derive(Clone)]
pub struct Memory(Arc<Inner>);

struct Inner {
    state: RwLock<State>,
    hub: Hub,
}

struct State {
    index: Index,
    rows: BTreeMap<Revision, Row>,
    closed: bool,
}

struct Row {
    key: Arc<str>,
    /// 0 for a tombstone.
    create: Revision,
    value: Bytes,
    /// The live version it followed.
    prev: Option<Revision>,
}

impl Memory {
    pub fn new() -> Self {
        let state = State { index: Index::new(), rows: BTreeMap::new(), closed: false };
        Memory(Arc::new(Inner { state: RwLock::new(state), hub: Hub::new(FIRST_REVISION) }))
    }

    fn write(
        &self,
        key: &str,
        value: Option<Bytes>,
        precondition: Precondition,
    ) -> Result<(Option<KeyValue>, Revision), Error> {
        let mut state = self.0.state.write();
        state.check_open()?;
        let live = state.index.latest(key);
        let live = match decide(live, value.is_none(), precondition) {
            Decision::NotFound => return Err(Error::NotFound),
            Decision::Conflict(live) => {
                return Err(Error::Conflict { current: live.map(|v| state.row(v.revision)).transpose()? });
            }
            Decision::Go(live) => live,
        };
        let prev = live.map(|v| state.row(v.revision)).transpose()?;
        let revision = state.index.current() + 1;
        let create = if value.is_none() { 0 } else { live.map_or(revision, |v| v.create) };
        let key = state.index.intern(key);
        state.index.apply(key.clone(), Version { create, revision });
        let row = Row { key, create, value: value.unwrap_or_default(), prev: live.map(|v| v.revision) };
        let event = state.event(revision, &row);
        state.rows.insert(revision, row);
        // Below the lock, so that events are dispatched in the order of their revisions.
        self.0.hub.dispatch(&[event]);
        Ok((prev, revision))
    }
}

impl Default for Memory {
    fn default() -> Self {
        Memory::new()
    }
}

impl State {
    fn check_open(&self) -> Result<(), Error> {
        if self.closed { Err(Error::Closed) } else { Ok(()) }
    }

    fn row(&self, revision: Revision) -> Result<KeyValue, Error> {
        self.rows
            .get(&revision)
            .map(|row| row.kv(revision))
            .ok_or_else(|| Error::Corrupt { what: format!("no row for indexed revision {revision}") })
    }

    fn event(&self, revision: Revision, row: &Row) -> Event {
        let prev = row.prev.and_then(|prev| Some(self.rows.get(&prev)?.kv(prev)));
        let kind = if row.create == 0 { EventKind::Delete } else { EventKind::Put };
        Event { kind, kv: row.kv(revision), prev }
    }
}

impl Row {
    fn kv(&self, revision: Revision) -> KeyValue {
        KeyValue {
            key: self.key.clone(),
            value: self.value.clone(),
            create_revision: self.create,
            mod_revision: revision,
        }
    }
}

#[async_trait]
impl History for Inner {
    async fn read(&self, prefix: &str, from: Revision, to: Revision) -> Result<Chunk, Error> {
        let state = self.state.read();
        state.index.check_watch(from - 1)?;
        let mut chunk = Chunk { events: Vec::new(), next: to + 1 };
        for (n, (revision, row)) in state.rows.range(from..=to).enumerate() {
            if n == CHUNK_REVISIONS {
                chunk.next = *revision;
                break;
            }
            if row.key.starts_with(prefix) {
                chunk.events.push(state.event(*revision, row));
            }
        }
        Ok(chunk)
    }
}

#[async_trait]
impl Storage for Memory {
    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), Error> {
        check_key(key)?;
        let state = self.0.state.read();
        state.check_open()?;
        let kv = state.index.latest(key).map(|v| state.row(v.revision)).transpose()?;
        Ok((kv, state.index.current()))
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<ListResult, Error> {
        let state = self.0.state.read();
        state.check_open()?;
        let revision = state.index.resolve(options.revision)?;
        let page = state.index.page(prefix, options.start_after.as_deref(), options.limit, revision);
        let items = page.items.iter().map(|(_, v)| state.row(v.revision)).collect::<Result<_, _>>()?;
        Ok(ListResult { items, revision, more: page.remaining > 0, remaining: page.remaining })
    }

    async fn put(&self, key: &str, value: Bytes, precondition: Precondition) -> Result<Revision, Error> {
        check_write(key, &value)?;
        self.write(key, Some(value), precondition).map(|(_, revision)| revision)
    }

    async fn delete(&self, key: &str, precondition: Precondition) -> Result<(KeyValue, Revision), Error> {
        check_key(key)?;
        let (prev, revision) = self.write(key, None, precondition)?;
        Ok((prev.ok_or(Error::NotFound)?, revision))
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, Error> {
        let state = self.0.state.read();
        state.check_open()?;
        state.index.check_watch(after)?;
        self.0.hub.watch(self.0.clone(), prefix, after)
    }

    async fn current_revision(&self) -> Result<Revision, Error> {
        let state = self.0.state.read();
        state.check_open()?;
        Ok(state.index.current())
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let mut state = self.0.state.write();
        state.check_open()?;
        state.index.compact(revision)?;
        for gone in state.index.sweep(usize::MAX) {
            state.rows.remove(&gone);
        }
        Ok(())
    }

    async fn close(&self) -> Result<(), Error> {
        self.0.state.write().closed = true;
        self.0.hub.close(Error::Closed);
        Ok(())
    }
}
