//! Recent events, shared by all watchers of a scope.
//!
//! A watcher is a cursor (a revision) into a [`Ring`]; it has no queue of its own. What it may hold back is
//! bounded by the ring: a watcher that falls behind the ring's floor is cut off. The ring of everything decides what
//! is old; the rings of smaller scopes share its events and drop them with it, so all of a resource's history
//! together is bounded by [`MAX_BYTES`].
//!
//! Many watchers are not woken for every event: see [`Ring::wake`].

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::entry::Entry;

/// Events younger than this are kept while there is room.
const FRESH: Duration = Duration::from_secs(75);
/// Kept whatever their age, while there is room.
const MIN_EVENTS: usize = 128;
/// Never more than this.
const MAX_EVENTS: usize = 65_536;
/// Never more bytes than this, the newest event excepted.
const MAX_BYTES: usize = 64 << 20;
/// What an event costs beside its objects.
const OVERHEAD: usize = 256;
/// Processor time that waking one watcher and writing to it takes, roughly, for server and client together.
const WAKE_COST: Duration = Duration::from_micros(50);
/// Watchers are let alone for no longer than this after they were woken …
const MAX_REST: Duration = Duration::from_millis(50);
/// … nor for less than this, which is as exact as timers are.
const MIN_REST: Duration = Duration::from_millis(1);

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// Created, or began to match.
    Added,
    /// Changed.
    Modified,
    /// Deleted, or ceased to match.
    Deleted,
}

impl EventType {
    /// As watch events write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// Identifies the form that a watcher wants: the row's number and which of its renderings.
pub type Form = (u64, u8);

/// Identifies a rendering of an event: the form, and the type as the watcher sees it.
pub type RenderKey = (Form, EventType);

/// Rendered events, one after the other.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The rendered events; empty when the watcher is shown none of them.
    pub bytes: Bytes,
    /// How many there are in `bytes`.
    pub events: u64,
    /// Revision of the last event looked at: where to go on from.
    pub last: u64,
}

/// One change of one object.
#[derive(Debug)]
pub struct Event {
    /// Revision of the change.
    pub revision: u64,
    /// What happened.
    pub kind: EventType,
    /// The object after the change; for a deletion its last state.
    pub entry: Arc<Entry>,
    /// The object before a modification or deletion.
    pub previous: Option<Arc<Entry>>,
    at: Instant,
    frames: Mutex<Vec<(RenderKey, Bytes)>>,
}

impl Event {
    /// A change that happened now.
    pub fn new(revision: u64, kind: EventType, entry: Arc<Entry>, previous: Option<Arc<Entry>>) -> Self {
        Self { revision, kind, entry, previous, at: Instant::now(), frames: Mutex::default() }
    }

    /// Whether the time that a rendering shows is still right.
    pub fn is_recent(&self) -> bool {
        self.at.elapsed() < Duration::from_secs(1)
    }

    /// The bytes of a rendering, made once for all watchers.
    pub fn frame<E>(&self, key: RenderKey, make: impl FnOnce() -> Result<Bytes, E>) -> Result<Bytes, E> {
        let mut frames = self.frames.lock();
        if let Some((_, bytes)) = frames.iter().find(|(k, _)| *k == key) {
            return Ok(bytes.clone());
        }
        let bytes = make()?;
        frames.push((key, bytes.clone()));
        Ok(bytes)
    }

    /// Bytes that the event may hold: the object before and after, and one rendering.
    fn bytes(&self) -> usize {
        OVERHEAD + 2 * self.entry.value.len() + self.previous.as_ref().map_or(0, |p| p.value.len())
    }
}

/// The cursor is older than what the ring still has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lagged {
    /// The oldest revision that one can go on from.
    pub floor: u64,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<Arc<Event>>,
    /// Every event after this revision is in `events`.
    floor: u64,
    bytes: usize,
}

/// Events of one scope in the order of revisions.
#[derive(Debug, Default)]
pub struct Ring {
    inner: RwLock<Inner>,
    /// Something was added that watchers were not woken for yet.
    dirty: AtomicBool,
    watchers: AtomicU32,
    /// Until when watchers are let alone.
    rest: Mutex<Option<Instant>>,
    /// The newest batch, by its form and the cursor that it begins after.
    shared: Mutex<Option<(Form, u64, Batch)>>,
    /// Woken by [`Ring::wake`] and when the ring starts anew.
    pub changed: Notify,
}

/// A ring as a watcher holds it, which is counted.
#[derive(Debug)]
pub struct Seat(Arc<Ring>);

impl Seat {
    /// One watcher more.
    pub fn new(ring: Arc<Ring>) -> Self {
        ring.watchers.fetch_add(1, Ordering::Relaxed);
        Self(ring)
    }
}

impl Deref for Seat {
    type Target = Ring;

    fn deref(&self) -> &Ring {
        &self.0
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Ring {
    /// A ring with history from `floor` on.
    pub fn new(floor: u64, events: impl IntoIterator<Item = Arc<Event>>) -> Self {
        let events: VecDeque<_> = events.into_iter().collect();
        let bytes = events.iter().map(|e| e.bytes()).sum();
        Self { inner: RwLock::new(Inner { events, floor, bytes }), ..Self::default() }
    }

    /// Adds the newest event. What has become old is dropped and answered. Nobody is woken yet.
    pub fn push(&self, event: Arc<Event>) -> Vec<Arc<Event>> {
        let mut inner = self.inner.write();
        inner.bytes += event.bytes();
        let now = event.at;
        inner.events.push_back(event);
        inner.trim(now)
    }

    /// Adds the newest event to a scope's ring, which drops nothing by itself. Nobody is woken yet.
    pub fn share(&self, event: Arc<Event>) {
        let mut inner = self.inner.write();
        inner.bytes += event.bytes();
        inner.events.push_back(event);
    }

    /// Notes that watchers are to be woken. Answers whether nobody had noted it yet.
    pub fn mark(&self) -> bool {
        !self.dirty.swap(true, Ordering::AcqRel)
    }

    /// Wakes the watchers. Many of them are then let alone for as long as they are busy with what they were woken
    /// for: waking them again for each event that comes meanwhile would cost a task, a record and a system call for
    /// every event and watcher, where one for all these events does as well.
    ///
    /// # Errors
    /// Before that time has passed, with when to come back.
    pub fn wake(&self, now: Instant) -> Result<(), Instant> {
        {
            let mut rest = self.rest.lock();
            if let Some(until) = rest.filter(|until| now < *until) {
                return Err(until);
            }
            let cost = (WAKE_COST * self.watchers.load(Ordering::Relaxed)).min(MAX_REST);
            *rest = (cost >= MIN_REST).then(|| now + cost);
        }
        self.dirty.store(false, Ordering::Release);
        self.changed.notify_waiters();
        Ok(())
    }

    /// What another watcher of the same form has made of the events after a cursor.
    pub fn batch(&self, form: Form, cursor: u64) -> Option<Batch> {
        let shared = self.shared.lock();
        shared
            .as_ref()
            .filter(|(f, after, _)| (*f, *after) == (form, cursor))
            .map(|(_, _, batch)| batch.clone())
    }

    /// Lets go of the shared batch: those whom it was for have taken it.
    pub fn forget_batch(&self) {
        *self.shared.lock() = None;
    }

    /// Gives the others what was made of the events after a cursor.
    pub fn share_batch(&self, form: Form, cursor: u64, batch: &Batch) {
        if self.watchers.load(Ordering::Relaxed) > 1 {
            *self.shared.lock() = Some((form, cursor, batch.clone()));
        }
    }

    /// Drops events up to a revision: the ring of everything has dropped them.
    pub fn drop_through(&self, revision: u64) {
        let mut inner = self.inner.write();
        while inner.events.front().is_some_and(|e| e.revision <= revision) {
            inner.drop_oldest();
        }
    }

    /// Puts what came before into a ring: `events` are all of its scope after `floor` and up to its own floor.
    pub fn backfill(&self, floor: u64, events: Vec<Arc<Event>>) {
        let mut inner = self.inner.write();
        for event in events.into_iter().rev() {
            inner.bytes += event.bytes();
            inner.events.push_front(event);
        }
        inner.floor = inner.floor.min(floor);
    }

    /// Drops what is old although nothing new came, and answers it.
    pub fn trim(&self, now: Instant) -> Vec<Arc<Event>> {
        self.inner.write().trim(now)
    }

    /// Forgets everything: history begins at `floor`. Watchers that are not there yet lag.
    pub fn reset(&self, floor: u64) {
        *self.inner.write() = Inner { floor, ..Inner::default() };
        self.forget_batch();
        self.changed.notify_waiters();
    }

    /// Moves up to `max` events after the cursor into `out`.
    ///
    /// # Errors
    /// When events after the cursor are gone.
    pub fn read(&self, cursor: u64, max: usize, out: &mut Vec<Arc<Event>>) -> Result<(), Lagged> {
        let inner = self.inner.read();
        if cursor < inner.floor {
            return Err(Lagged { floor: inner.floor });
        }
        // A watcher that keeps up looks at the back only.
        if inner.events.back().is_none_or(|e| e.revision <= cursor) {
            return Ok(());
        }
        let start = inner.events.partition_point(|e| e.revision <= cursor);
        out.extend(inner.events.range(start..).take(max).cloned());
        Ok(())
    }

    /// Whether reading after the cursor would give anything, or an error.
    pub fn has_after(&self, cursor: u64) -> bool {
        let inner = self.inner.read();
        cursor < inner.floor || inner.events.back().is_some_and(|e| e.revision > cursor)
    }

    /// The oldest revision that one can go on from.
    pub fn floor(&self) -> u64 {
        self.inner.read().floor
    }

    /// The revision of the newest event; that of the beginning without any.
    pub fn newest(&self) -> u64 {
        let inner = self.inner.read();
        inner.events.back().map_or(inner.floor, |e| e.revision)
    }
}

impl Inner {
    fn trim(&mut self, now: Instant) -> Vec<Arc<Event>> {
        let mut dropped = Vec::new();
        while self.events.len() > 1 {
            let Some(oldest) = self.events.front() else { break };
            let full = self.events.len() > MAX_EVENTS || self.bytes > MAX_BYTES;
            let old = self.events.len() > MIN_EVENTS && now.saturating_duration_since(oldest.at) >= FRESH;
            if !full && !old {
                break;
            }
            dropped.extend(self.drop_oldest());
        }
        dropped
    }

    fn drop_oldest(&mut self) -> Option<Arc<Event>> {
        let oldest = self.events.pop_front()?;
        self.floor = oldest.revision;
        self.bytes -= oldest.bytes();
        Some(oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::entry::Facts;

    fn event(revision: u64) -> Arc<Event> {
        let entry = Entry::new("a".into(), revision, Bytes::from_static(b"{}"), Facts::default());
        Arc::new(Event::new(revision, EventType::Added, Arc::new(entry), None))
    }

    fn revisions(ring: &Ring, cursor: u64, max: usize) -> Result<Vec<u64>, Lagged> {
        let mut out = Vec::new();
        ring.read(cursor, max, &mut out)?;
        Ok(out.iter().map(|e| e.revision).collect())
    }

    #[test]
    fn reads_after_the_cursor() {
        let ring = Ring::new(4, [event(5), event(8)]);
        ring.push(event(9));
        assert_eq!(revisions(&ring, 4, 10), Ok(vec![5, 8, 9]));
        assert_eq!(revisions(&ring, 5, 1), Ok(vec![8]));
        assert_eq!(revisions(&ring, 7, 10), Ok(vec![8, 9]));
        assert_eq!(revisions(&ring, 9, 10), Ok(vec![]));
        assert_eq!(revisions(&ring, 3, 10), Err(Lagged { floor: 4 }));
        ring.reset(20);
        assert_eq!(revisions(&ring, 9, 10), Err(Lagged { floor: 20 }));
        assert_eq!(revisions(&ring, 20, 10), Ok(vec![]));
    }

    #[test]
    fn is_bounded_and_says_what_it_forgot() {
        let ring = Ring::new(0, []);
        for revision in 1..=(MAX_EVENTS as u64 + 10) {
            ring.push(event(revision));
        }
        assert_eq!(ring.floor(), 10);
        assert_eq!(revisions(&ring, 9, 1), Err(Lagged { floor: 10 }));
        ring.trim(Instant::now() + FRESH * 2);
        assert_eq!(revisions(&ring, ring.floor(), usize::MAX).map(|r| r.len()), Ok(MIN_EVENTS));
    }

    #[test]
    fn large_objects_are_bounded_by_their_bytes() {
        let ring = Ring::new(0, []);
        let value = Bytes::from(vec![b'x'; 1 << 20]);
        for revision in 1..=200 {
            let entry = Arc::new(Entry::new("a".into(), revision, value.clone(), Facts::default()));
            ring.push(Arc::new(Event::new(revision, EventType::Modified, entry.clone(), Some(entry))));
        }
        let held = revisions(&ring, ring.floor(), usize::MAX).expect("in reach").len();
        assert_eq!(held, MAX_BYTES / (3 * (1 << 20) + OVERHEAD));
    }

    #[test]
    fn history_comes_before_what_is_there() {
        let ring = Ring::new(10, [event(12)]);
        ring.backfill(5, vec![event(7), event(9)]);
        assert_eq!(revisions(&ring, 5, 10), Ok(vec![7, 9, 12]));
        assert_eq!(revisions(&ring, 4, 10), Err(Lagged { floor: 5 }));
        ring.drop_through(9);
        assert_eq!(revisions(&ring, 9, 10), Ok(vec![12]));
        assert_eq!(revisions(&ring, 8, 10), Err(Lagged { floor: 9 }));
        assert_eq!((ring.floor(), ring.newest()), (9, 12));
    }

    #[test]
    fn many_watchers_are_let_alone_for_a_while() {
        let ring = Arc::new(Ring::default());
        let now = Instant::now();
        let few: Vec<_> = (0..10).map(|_| Seat::new(ring.clone())).collect();
        assert!(ring.mark() && !ring.mark());
        assert_eq!(ring.wake(now), Ok(()));
        assert_eq!((ring.mark(), ring.wake(now)), (true, Ok(())), "a few do not rest");
        let many: Vec<_> = (0..10_000).map(|_| Seat::new(ring.clone())).collect();
        assert_eq!((ring.mark(), ring.wake(now)), (true, Ok(())), "who was idle is woken at once");
        assert_eq!((ring.mark(), ring.wake(now + MIN_REST)), (true, Err(now + MAX_REST)));
        assert!(!ring.mark(), "whoever was sent away comes back");
        drop(many);
        assert_eq!(ring.wake(now + MAX_REST), Ok(()));
        assert_eq!((ring.mark(), ring.wake(now + MAX_REST)), (true, Ok(())));
        drop(few);
        assert_eq!(ring.watchers.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_batch_is_for_its_form_and_cursor() {
        let ring = Arc::new(Ring::default());
        let batch = Batch { bytes: Bytes::from_static(b"x"), events: 1, last: 7 };
        let _one = Seat::new(ring.clone());
        ring.share_batch((1, 0), 5, &batch);
        assert!(ring.batch((1, 0), 5).is_none(), "there is nobody to share it with");
        let _other = Seat::new(ring.clone());
        ring.share_batch((1, 0), 5, &batch);
        assert_eq!(ring.batch((1, 0), 5).map(|b| b.last), Some(7));
        assert!(ring.batch((1, 1), 5).is_none() && ring.batch((2, 0), 5).is_none());
        assert!(ring.batch((1, 0), 6).is_none());
        ring.reset(20);
        assert!(ring.batch((1, 0), 5).is_none());
    }

    #[test]
    fn a_frame_is_made_once() {
        let e = event(1);
        let mut made = 0;
        for _ in 0..3 {
            let bytes = e.frame(((1, 0), EventType::Added), || {
                made += 1;
                Ok::<_, ()>(Bytes::from_static(b"x"))
            });
            assert_eq!(bytes, Ok(Bytes::from_static(b"x")));
        }
        assert_eq!(made, 1);
    }
}
