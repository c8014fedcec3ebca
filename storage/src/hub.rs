//! Watches of the engines that live in this process.
//!
//! The writer hands every committed event to [`Hub::dispatch`], which finds the watches whose prefix
//! the key starts with by hash, one look-up per distinct prefix length, and not by asking every watch.
//! A watch in step gets the event into its queue. A watch whose queue is full, or that starts in
//! the past, is *behind*: it costs the writer nothing and reads the engine's history by itself until
//! it has caught up, or until history is compacted under it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{Error, Event, Revision, WatchItem, WatchStream};

/// A queue is full at this many events …
const QUEUE_EVENTS: usize = 4096;
/// … or at this many bytes of keys and values.
const QUEUE_BYTES: usize = 4 << 20;
/// An idle watch yields progress this often, if there is any.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Events read from history.
pub(crate) struct Chunk {
    pub events: Vec<Event>,
    /// Where to read on: everything before is in `events`. Greater than where the read began.
    pub next: Revision,
}

/// History as a watch that is behind reads it.
#[async_trait]
pub(crate) trait History: Send + Sync + 'static {
    /// Events of `prefix` from revision `from` up to `to` at most, as many as are reasonable at once.
    ///
    /// # Errors
    /// [`Error::Compacted`] when not all of them are there any more.
    async fn read(&self, prefix: &str, from: Revision, to: Revision) -> Result<Chunk, Error>;
}

struct Slot {
    id: u64,
    prefix: Arc<str>,
    /// Events up to here are not wanted.
    after: Revision,
    state: Mutex<SlotState>,
    notify: Notify,
}

#[derive(Default)]
struct SlotState {
    queue: Vec<Event>,
    bytes: usize,
    /// The first revision to read from history once the queue is drained.
    behind: Option<Revision>,
    progress_wanted: bool,
}

#[derive(Default)]
struct HubState {
    dispatched: Revision,
    next_id: u64,
    by_prefix: HashMap<Arc<str>, Vec<Arc<Slot>>>,
    /// How many prefixes there are of each length.
    lengths: BTreeMap<usize, usize>,
    closed: Option<Error>,
}

/// The watches of one engine.
#[derive(Clone)]
pub(crate) struct Hub(Arc<Mutex<HubState>>);

impl Hub {
    /// A hub for a store at revision `current`.
    pub fn new(current: Revision) -> Self {
        Hub(Arc::new(Mutex::new(HubState { dispatched: current, ..HubState::default() })))
    }

    /// Hands out committed events, in the order of their revisions.
    pub fn dispatch(&self, events: &[Event]) {
        let mut hub = self.0.lock();
        let hub = &mut *hub;
        for event in events {
            let key = &*event.kv.key;
            for length in hub.lengths.range(..=key.len()).map(|(length, _)| *length) {
                let Some(slots) = key.get(..length).and_then(|prefix| hub.by_prefix.get(prefix)) else {
                    continue;
                };
                for slot in slots {
                    slot.push(event);
                }
            }
            hub.dispatched = event.revision();
        }
    }

    /// Ends all watches with `error`, after what is in their queues.
    pub fn close(&self, error: Error) {
        let mut hub = self.0.lock();
        for slot in hub.by_prefix.values().flatten() {
            slot.notify.notify_one();
        }
        hub.closed.get_or_insert(error);
    }

    /// A watch after `after`, which the engine has found to be available.
    pub fn watch(
        &self,
        history: Arc<dyn History>,
        prefix: &str,
        after: Revision,
    ) -> Result<WatchStream, Error> {
        let slot = self.register(prefix, after)?;
        let watch = Watch { hub: self.clone(), slot: slot.clone(), history, reported: after };
        let items = stream::unfold(Some(watch), |watch| async move {
            let mut watch = watch?;
            match watch.next().await {
                Ok(item) => Some((Ok(item), Some(watch))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(WatchStream::new(items.boxed(), move || {
            slot.state.lock().progress_wanted = true;
            slot.notify.notify_one();
        }))
    }

    fn register(&self, prefix: &str, after: Revision) -> Result<Arc<Slot>, Error> {
        let mut hub = self.0.lock();
        if let Some(error) = &hub.closed {
            return Err(error.clone());
        }
        let prefix: Arc<str> = match hub.by_prefix.get_key_value(prefix) {
            Some((prefix, _)) => prefix.clone(),
            None => {
                *hub.lengths.entry(prefix.len()).or_default() += 1;
                prefix.into()
            }
        };
        hub.next_id += 1;
        let behind = (after < hub.dispatched).then_some(after + 1);
        let slot = Arc::new(Slot {
            id: hub.next_id,
            prefix: prefix.clone(),
            after,
            state: Mutex::new(SlotState { behind, ..SlotState::default() }),
            notify: Notify::new(),
        });
        hub.by_prefix.entry(prefix).or_default().push(slot.clone());
        Ok(slot)
    }

    fn unregister(&self, slot: &Slot) {
        let mut hub = self.0.lock();
        let Some(slots) = hub.by_prefix.get_mut(&slot.prefix) else { return };
        slots.retain(|s| s.id != slot.id);
        if slots.is_empty() {
            hub.by_prefix.remove(&slot.prefix);
            let length = slot.prefix.len();
            if let Some(count) = hub.lengths.get_mut(&length) {
                *count -= 1;
                if *count == 0 {
                    hub.lengths.remove(&length);
                }
            }
        }
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        let hub = self.0.lock();
        hub.by_prefix.is_empty() && hub.lengths.is_empty()
    }
}

impl Slot {
    fn push(&self, event: &Event) {
        if event.revision() <= self.after {
            return;
        }
        let mut state = self.state.lock();
        if state.behind.is_some() {
            return;
        }
        let bytes = event_bytes(event);
        if state.queue.len() >= QUEUE_EVENTS || state.bytes + bytes > QUEUE_BYTES && !state.queue.is_empty() {
            state.behind = Some(event.revision());
        } else {
            state.bytes += bytes;
            state.queue.push(event.clone());
        }
        drop(state);
        self.notify.notify_one();
    }
}

/// The bytes an event keeps alive.
pub(crate) fn event_bytes(event: &Event) -> usize {
    size_of::<Event>()
        + event.kv.key.len()
        + event.kv.value.len()
        + event.prev.as_ref().map_or(0, |prev| prev.value.len())
}

/// The reading end of a slot.
struct Watch {
    hub: Hub,
    slot: Arc<Slot>,
    history: Arc<dyn History>,
    /// The last revision the reader knows it has seen everything of.
    reported: Revision,
}

enum Step {
    Yield(WatchItem),
    CatchUp { from: Revision, to: Revision },
    Wait,
}

impl Watch {
    async fn next(&mut self) -> Result<WatchItem, Error> {
        let mut idle = false;
        loop {
            match self.step(idle)? {
                Step::Yield(item) => return Ok(item),
                Step::CatchUp { from, to } => {
                    let chunk = self.history.read(&self.slot.prefix, from, to).await?;
                    self.caught_up(chunk.next);
                    if let Some(last) = chunk.events.last() {
                        self.reported = last.revision();
                        return Ok(WatchItem::Events(chunk.events));
                    }
                }
                Step::Wait => {
                    idle =
                        tokio::time::timeout(PROGRESS_INTERVAL, self.slot.notify.notified()).await.is_err();
                }
            }
        }
    }

    fn step(&mut self, idle: bool) -> Result<Step, Error> {
        // The order of locks is hub, then slot, here and in `dispatch`.
        let hub = self.hub.0.lock();
        let mut state = self.slot.state.lock();
        if let Some(last) = state.queue.last() {
            self.reported = last.revision();
            state.bytes = 0;
            return Ok(Step::Yield(WatchItem::Events(std::mem::take(&mut state.queue))));
        }
        if let Some(error) = &hub.closed {
            return Err(error.clone());
        }
        if let Some(from) = state.behind {
            return Ok(Step::CatchUp { from, to: hub.dispatched });
        }
        let dispatched = hub.dispatched.max(self.slot.after);
        if state.progress_wanted || idle && dispatched > self.reported {
            state.progress_wanted = false;
            self.reported = dispatched;
            return Ok(Step::Yield(WatchItem::Progress(dispatched)));
        }
        Ok(Step::Wait)
    }

    /// Everything before `next` has been read from history.
    fn caught_up(&self, next: Revision) {
        let hub = self.hub.0.lock();
        self.slot.state.lock().behind = (next <= hub.dispatched).then_some(next);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.hub.unregister(&self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EventKind, KeyValue};
    use bytes::Bytes;

    struct Log(Mutex<Vec<Event>>);

    #[async_trait]
    impl History for Log {
        async fn read(&self, prefix: &str, from: Revision, to: Revision) -> Result<Chunk, Error> {
            let log = self.0.lock();
            let next = to.min(from + 99) + 1;
            let wanted = |e: &&Event| (from..next).contains(&e.revision()) && e.kv.key.starts_with(prefix);
            Ok(Chunk { events: log.iter().filter(wanted).cloned().collect(), next })
        }
    }

    fn event(key: &str, revision: Revision) -> Event {
        let kv = KeyValue {
            key: key.into(),
            value: Bytes::new(),
            create_revision: revision,
            mod_revision: revision,
        };
        Event { kind: EventKind::Put, kv, prev: None }
    }

    async fn revisions(watch: &mut WatchStream, upto: Revision) -> Vec<Revision> {
        let mut got = Vec::new();
        while got.last().is_none_or(|last| *last < upto) {
            match watch.next().await.unwrap().unwrap() {
                WatchItem::Events(events) => got.extend(events.iter().map(Event::revision)),
                WatchItem::Progress(_) => {}
            }
        }
        got
    }

    #[tokio::test]
    async fn overflow_falls_back_to_history_without_gap_or_duplicate() {
        let log = Arc::new(Log(Mutex::new(Vec::new())));
        let hub = Hub::new(1);
        let mut watch = hub.watch(log.clone(), "a/", 1).unwrap();
        let mut other = hub.watch(log.clone(), "b/", 1).unwrap();
        let last = 3 * QUEUE_EVENTS as Revision;
        for revision in 2..=last {
            let event = event(if revision % 2 == 0 { "a/x" } else { "b/x" }, revision);
            log.0.lock().push(event.clone());
            hub.dispatch(&[event]);
        }
        for slot in hub.0.lock().by_prefix.values().flatten() {
            assert_eq!(slot.state.lock().queue.len(), QUEUE_EVENTS, "what nobody reads is bounded");
        }
        let even: Vec<_> = (2..=last).filter(|r| r % 2 == 0).collect();
        assert_eq!(revisions(&mut watch, last).await, even);
        let odd: Vec<_> = (2..=last).filter(|r| r % 2 == 1).collect();
        assert_eq!(revisions(&mut other, last - 1).await, odd);
        // In step again: progress is the hub's revision, and new events come through the queue.
        watch.progress_handle().request();
        assert_eq!(watch.next().await.unwrap().unwrap(), WatchItem::Progress(last));
        hub.dispatch(&[event("a/y", last + 1)]);
        assert_eq!(revisions(&mut watch, last + 1).await, [last + 1]);
        drop((watch, other));
        assert!(hub.is_empty());
    }

    #[tokio::test]
    async fn closing_ends_a_watch_after_its_queue() {
        let hub = Hub::new(1);
        let log = Arc::new(Log(Mutex::new(Vec::new())));
        let mut watch = hub.watch(log.clone(), "", 1).unwrap();
        hub.dispatch(&[event("k", 2)]);
        hub.close(Error::Closed);
        assert!(matches!(watch.next().await, Some(Ok(WatchItem::Events(e))) if e.len() == 1));
        assert!(matches!(watch.next().await, Some(Err(Error::Closed))));
        assert!(watch.next().await.is_none());
        assert!(hub.watch(log, "", 1).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn idle_watches_report_progress_once() {
        let hub = Hub::new(1);
        let log = Arc::new(Log(Mutex::new(Vec::new())));
        let mut watch = hub.watch(log.clone(), "a/", 1).unwrap();
        hub.dispatch(&[event("b/1", 2)]);
        assert_eq!(watch.next().await.unwrap().unwrap(), WatchItem::Progress(2));
        let again = tokio::time::timeout(PROGRESS_INTERVAL * 10, watch.next()).await;
        assert!(again.is_err(), "nothing happened since");
    }
}
