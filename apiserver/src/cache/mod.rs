//! The watch cache: all objects of a resource as stored bytes, and its recent events.
//!
//! One cache per resource, whatever the number of versions it is served in. It starts with the first request for
//! the resource and is fed by [`feed::Feed`], the one reader of storage's watch. GET, LIST and WATCH are answered
//! from here; how far the cache must have come is the feed's business.

pub mod entry;
pub mod feed;
pub mod filter;
pub mod ring;
mod sparse;

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use hawser_api::kinds::Kind;
use parking_lot::{Mutex, RwLock};

use self::entry::Entry;
use self::ring::{Event, EventType, Ring};
use crate::encode::Head;
use crate::kinds::REGISTRY;

/// Floor of a ring whose history is lost: every cursor lags.
pub const LOST: u64 = u64::MAX;

/// Part of a resource that a watcher looks at. Events wake only the watchers of the scopes they are in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Everything.
    All,
    /// One namespace.
    Namespace(Box<str>),
    /// One object, by key.
    Object(Box<str>),
    /// Objects with this value in the indexed field (a pod's node).
    Field(Box<str>),
}

/// The cache has lost its state and is being read anew: it cannot say what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("storage is (re)initializing")]
pub struct Reloading;

/// A change as storage tells it.
#[derive(Debug, Clone)]
pub enum Applied {
    /// The object is now this.
    Put(Arc<Entry>),
    /// The object is gone since this revision.
    Delete(Arc<str>, u64),
}

impl Applied {
    fn revision(&self) -> u64 {
        match self {
            Self::Put(e) => e.revision,
            Self::Delete(_, r) => *r,
        }
    }
}

#[derive(Debug)]
enum Phase {
    /// Nobody has asked yet: events pass by.
    Idle,
    /// Being read from storage: events wait.
    Loading(Vec<Applied>),
    /// Following.
    Live,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    objects: BTreeMap<Arc<str>, Arc<Entry>>,
    /// How many of them each namespace has.
    namespaces: HashMap<Box<str>, usize>,
    /// The same by the value of the indexed field.
    by_field: HashMap<Box<str>, BTreeMap<Arc<str>, Arc<Entry>>>,
    /// Position of the selectable field that `by_field` goes by.
    indexed_field: Option<usize>,
    /// Of the last event applied, or of the list it began with.
    revision: u64,
    /// Sum of the lengths of all values, to size the buffers of lists.
    bytes: usize,
}

#[derive(Debug, Default)]
struct Scopes {
    namespaces: HashMap<Box<str>, Weak<Ring>>,
    objects: HashMap<Box<str>, Weak<Ring>>,
    fields: HashMap<Box<str>, Weak<Ring>>,
}

/// The cache of one resource.
#[derive(Debug)]
pub struct ResourceCache {
    kind: Arc<Kind>,
    head: Head,
    prefix: String,
    /// Position of the selectable field that objects and watchers are indexed by.
    indexed_field: Option<usize>,
    state: RwLock<State>,
    all: Arc<Ring>,
    scopes: RwLock<Scopes>,
    /// Rings with events that watchers were not woken for yet: events come in batches, and one wake is enough for each.
    dirty: Mutex<Vec<Arc<Ring>>>,
    /// Serialises starting.
    start: tokio::sync::Mutex<()>,
    /// Set once the resource is served no more, or from another cache.
    retired: AtomicBool,
}

impl ResourceCache {
    /// An idle cache; `kind` is the row of the stored version.
    pub fn new(kind: Arc<Kind>) -> Self {
        let indexed_field = kind.selectable_fields.iter().position(|f| f.label == "spec.nodeName");
        Self {
            head: Head::new(&kind),
            prefix: format!("{REGISTRY}{}/", kind.storage_prefix()),
            indexed_field,
            kind,
            state: RwLock::new(State::new(Phase::Idle, indexed_field)),
            all: Arc::default(),
            scopes: RwLock::default(),
            dirty: Mutex::default(),
            start: tokio::sync::Mutex::default(),
            retired: AtomicBool::new(false),
        }
    }

    /// The row of the stored version.
    pub fn kind(&self) -> &Arc<Kind> {
        &self.kind
    }

    /// The head of the stored version.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Directory in the store, with its closing slash.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The store's key of an object; the namespace is empty in cluster scope.
    pub fn storage_key(&self, namespace: &str, name: &str) -> String {
        let mut key = String::with_capacity(self.prefix.len() + namespace.len() + name.len() + 1);
        key.push_str(&self.prefix);
        if !namespace.is_empty() {
            key.push_str(namespace);
            key.push('/');
        }
        key.push_str(name);
        key
    }

    /// Ends the cache: it holds nothing from now on, cannot be started again, and watchers are cut off.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.lose(Phase::Idle);
    }

    /// Whether the cache has ended.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Whether objects are held.
    pub fn is_live(&self) -> bool {
        matches!(self.state.read().phase, Phase::Live)
    }

    /// Number of objects held and the bytes of their values.
    pub fn size(&self) -> (usize, usize) {
        let state = self.state.read();
        (state.objects.len(), state.bytes)
    }

    /// Number of objects held of a namespace, or of all.
    pub fn count(&self, namespace: Option<&str>) -> usize {
        let state = self.state.read();
        match namespace {
            Some(ns) => state.namespaces.get(ns).copied().unwrap_or(0),
            None => state.objects.len(),
        }
    }

    /// The revision of the newest change the cache has seen.
    pub fn revision(&self) -> u64 {
        self.state.read().revision
    }

    /// One object.
    ///
    /// # Errors
    /// When the cache is not live.
    pub fn get(&self, namespace: &str, name: &str) -> Result<Option<Arc<Entry>>, Reloading> {
        let state = self.state.read();
        state.live()?;
        if namespace.is_empty() {
            return Ok(state.objects.get(name).cloned());
        }
        let mut key = String::with_capacity(namespace.len() + name.len() + 1);
        key.push_str(namespace);
        key.push('/');
        key.push_str(name);
        Ok(state.objects.get(key.as_str()).cloned())
    }

    /// Shows `visit` the objects in the order of their keys, those of one namespace or all, beginning at `from`,
    /// until it says stop. Answers the revision that this is the state of. The cache is locked for reading
    /// meanwhile: `visit` must not do more than look and clone.
    ///
    /// # Errors
    /// When the cache is not live.
    pub fn scan(
        &self,
        namespace: Option<&str>,
        from: Option<&str>,
        mut visit: impl FnMut(&Arc<Entry>) -> bool,
    ) -> Result<u64, Reloading> {
        let state = self.state.read();
        state.live()?;
        let (low, high) = bounds(namespace, from);
        for entry in state.objects.range::<str, _>((as_bound(&low), as_bound(&high))).map(|(_, e)| e) {
            if !visit(entry) {
                break;
            }
        }
        Ok(state.revision)
    }

    /// Like [`ResourceCache::scan`], for the objects of a scope: costs what the scope holds.
    ///
    /// # Errors
    /// When the cache is not live.
    pub fn scan_scope(
        &self,
        scope: &Scope,
        from: Option<&str>,
        mut visit: impl FnMut(&Arc<Entry>) -> bool,
    ) -> Result<u64, Reloading> {
        let namespace = match scope {
            Scope::All => None,
            Scope::Namespace(ns) => Some(ns.as_ref()),
            Scope::Object(key) => {
                let state = self.state.read();
                state.live()?;
                let entry = state.objects.get(key.as_ref());
                if let Some(entry) = entry.filter(|e| from.is_none_or(|from| *e.key >= *from)) {
                    visit(entry);
                }
                return Ok(state.revision);
            }
            Scope::Field(value) => {
                let state = self.state.read();
                state.live()?;
                let (low, high) = bounds(None, from);
                let range = (as_bound(&low), as_bound(&high));
                for entry in state.by_field.get(value).into_iter().flat_map(|m| m.range::<str, _>(range)) {
                    if !visit(entry.1) {
                        break;
                    }
                }
                return Ok(state.revision);
            }
        };
        self.scan(namespace, from, visit)
    }

    /// All entries of a namespace, or of all.
    ///
    /// # Errors
    /// When the cache is not live.
    pub fn entries(&self, namespace: Option<&str>) -> Result<(Vec<Arc<Entry>>, u64), Reloading> {
        let mut entries = Vec::new();
        let revision = self.scan(namespace, None, |e| {
            entries.push(e.clone());
            true
        })?;
        Ok((entries, revision))
    }

    /// Like [`ResourceCache::scan`], for the state at an earlier revision, made by undoing the ring's events.
    /// None when the ring does not reach back that far.
    ///
    /// # Errors
    /// When the cache is not live.
    pub fn scan_at(
        &self,
        revision: u64,
        namespace: Option<&str>,
        from: Option<&str>,
        mut visit: impl FnMut(&Arc<Entry>) -> bool,
    ) -> Result<Option<()>, Reloading> {
        let state = self.state.read();
        state.live()?;
        let mut later = Vec::new();
        if state.revision > revision && self.all.read(revision, usize::MAX, &mut later).is_err() {
            return Ok(None);
        }
        // The first later event of a key knows what the key was before it. Events that the ring has and the state
        // has not yet do no harm: undone, they give what the state has.
        let mut overlay: BTreeMap<Arc<str>, Option<Arc<Entry>>> = BTreeMap::new();
        for event in later {
            overlay.entry(event.entry.key.clone()).or_insert_with(|| event.previous.clone());
        }
        let (low, high) = bounds(namespace, from);
        let range = (as_bound(&low), as_bound(&high));
        let mut now = state.objects.range::<str, _>(range).peekable();
        let mut then = overlay.range::<str, _>(range).peekable();
        loop {
            let entry = match (now.peek(), then.peek()) {
                (None, None) => return Ok(Some(())),
                (Some((k, _)), Some((o, _))) if k < o => now.next().map(|(_, e)| e),
                (Some(_), None) => now.next().map(|(_, e)| e),
                (key, Some((o, _))) => {
                    if key.is_some_and(|(k, _)| k == o) {
                        now.next();
                    }
                    then.next().and_then(|(_, e)| e.as_ref())
                }
            };
            if let Some(entry) = entry
                && !visit(entry)
            {
                return Ok(Some(()));
            }
        }
    }

    /// The ring of a scope, with everything after `cursor` that the ring of everything still has.
    pub fn ring(&self, scope: &Scope, cursor: u64) -> Arc<Ring> {
        let mut scopes = self.scopes.write();
        let (map, name) = match scope {
            Scope::All => return self.all.clone(),
            Scope::Namespace(n) => (&mut scopes.namespaces, n),
            Scope::Object(n) => (&mut scopes.objects, n),
            Scope::Field(n) => (&mut scopes.fields, n),
        };
        // Pushing holds `scopes` too, so the ring of everything does not move meanwhile.
        let ring = map.get(name).and_then(Weak::upgrade).unwrap_or_else(|| {
            let ring = Arc::new(Ring::new(self.all.newest(), []));
            map.insert(name.clone(), Arc::downgrade(&ring));
            ring
        });
        // Most watchers begin now. For the others what they lack is looked up once.
        let (floor, oldest) = (ring.floor(), cursor.max(self.all.floor()));
        if oldest < floor {
            let mut events = Vec::new();
            // Reading from its floor or later cannot lag.
            let _ = self.all.read(oldest, usize::MAX, &mut events);
            events.retain(|e| e.revision <= floor && self.in_scope(e, scope));
            ring.backfill(oldest, events);
        }
        ring
    }

    /// The oldest revision that watches can go on from.
    pub fn floor(&self) -> u64 {
        self.all.floor()
    }

    /// The scope for watchers of a namespace and a value of the indexed field.
    pub fn indexed_field(&self) -> Option<usize> {
        self.indexed_field
    }

    fn in_scope(&self, event: &Event, scope: &Scope) -> bool {
        match scope {
            Scope::All => true,
            Scope::Namespace(ns) => event.entry.namespace_and_name().0 == ns.as_ref(),
            Scope::Object(key) => *event.entry.key == **key,
            Scope::Field(value) => self.indexed_field.is_some_and(|i| {
                event.entry.facts.field(i) == value.as_ref()
                    || event.previous.as_ref().is_some_and(|p| p.facts.field(i) == value.as_ref())
            }),
        }
    }

    fn push(&self, event: Arc<Event>) {
        let mut stale = false;
        {
            let scopes = self.scopes.read();
            let dropped = self.all.push(event.clone());
            self.touch(&self.all);
            self.each_scope(&scopes, &event, |weak| match weak.upgrade() {
                Some(ring) => {
                    ring.share(event.clone());
                    self.touch(&ring);
                }
                None => stale = true,
            });
            self.forget(&scopes, &dropped);
        }
        if stale {
            self.drop_stale_scopes();
        }
    }

    fn touch(&self, ring: &Arc<Ring>) {
        if ring.mark() {
            self.dirty.lock().push(ring.clone());
        }
    }

    /// Wakes the watchers of everything that was applied since the last call, at once or when their time has come.
    pub fn flush(&self) {
        let rings = std::mem::take(&mut *self.dirty.lock());
        let now = Instant::now();
        for ring in rings {
            if let Err(until) = ring.wake(now) {
                tokio::spawn(async move {
                    tokio::time::sleep_until(until.into()).await;
                    // Nobody else wakes a ring that is dirty already, so its time has come.
                    let _ = ring.wake(until);
                });
            }
        }
    }

    /// Shows `visit` the rings of all smaller scopes that an event is in.
    fn each_scope(&self, scopes: &Scopes, event: &Event, mut visit: impl FnMut(&Weak<Ring>)) {
        let mut found = |map: &HashMap<Box<str>, Weak<Ring>>, name: &str| {
            if let Some(weak) = map.get(name) {
                visit(weak);
            }
        };
        if !scopes.namespaces.is_empty() {
            found(&scopes.namespaces, event.entry.namespace_and_name().0);
        }
        if !scopes.objects.is_empty() {
            found(&scopes.objects, &event.entry.key);
        }
        if let Some(i) = self.indexed_field
            && !scopes.fields.is_empty()
        {
            let value = event.entry.facts.field(i);
            found(&scopes.fields, value);
            if let Some(p) = &event.previous
                && p.facts.field(i) != value
            {
                found(&scopes.fields, p.facts.field(i));
            }
        }
    }

    /// Drops from the smaller scopes what the ring of everything has dropped.
    fn forget(&self, scopes: &Scopes, dropped: &[Arc<Event>]) {
        for event in dropped {
            self.each_scope(scopes, event, |weak| {
                if let Some(ring) = weak.upgrade() {
                    ring.drop_through(event.revision);
                }
            });
        }
    }

    fn drop_stale_scopes(&self) {
        let mut scopes = self.scopes.write();
        let Scopes { namespaces, objects, fields } = &mut *scopes;
        for map in [namespaces, objects, fields] {
            map.retain(|_, weak| weak.strong_count() > 0);
        }
    }

    /// Forgets old events and what was made of them; called now and then by the feed.
    pub fn trim(&self, now: Instant) {
        {
            let scopes = self.scopes.read();
            let dropped = self.all.trim(now);
            self.forget(&scopes, &dropped);
            self.all.forget_batch();
            for map in [&scopes.namespaces, &scopes.objects, &scopes.fields] {
                map.values().filter_map(Weak::upgrade).for_each(|ring| ring.forget_batch());
            }
        }
        self.drop_stale_scopes();
    }

    /// Wakes every watcher, to let it see that the server stops.
    pub fn wake(&self) {
        self.all.changed.notify_waiters();
        let scopes = self.scopes.read();
        for map in [&scopes.namespaces, &scopes.objects, &scopes.fields] {
            map.values().filter_map(Weak::upgrade).for_each(|ring| ring.changed.notify_waiters());
        }
    }

    /// Takes a change in. Changes at or before the cache's revision are known already. Watchers see it after
    /// [`ResourceCache::flush`].
    pub fn apply(&self, change: Applied) {
        let event = {
            let mut state = self.state.write();
            match &mut state.phase {
                Phase::Idle => return,
                Phase::Loading(waiting) => {
                    waiting.push(change);
                    return;
                }
                Phase::Live => state.apply(change),
            }
        };
        if let Some(event) = event {
            self.push(Arc::new(event));
        }
    }

    /// Whether a change would be taken in: an idle cache wants none.
    pub fn wants_events(&self) -> bool {
        !matches!(self.state.read().phase, Phase::Idle)
    }

    /// From now on events wait for [`ResourceCache::finish_loading`].
    fn begin_loading(&self) {
        self.lose(Phase::Loading(Vec::new()));
    }

    /// The state is lost, or could not be read.
    fn abort_loading(&self) {
        self.lose(Phase::Idle);
    }

    /// Gives the state up. Watchers are cut off: nobody can say what they will have missed.
    fn lose(&self, phase: Phase) {
        *self.state.write() = State::new(phase, self.indexed_field);
        self.all.reset(LOST);
        let mut scopes = self.scopes.write();
        let Scopes { namespaces, objects, fields } = &mut *scopes;
        for map in [namespaces, objects, fields] {
            map.drain().filter_map(|(_, w)| w.upgrade()).for_each(|ring| ring.reset(LOST));
        }
    }

    /// Takes what storage listed at a revision, then the events that came meanwhile.
    fn finish_loading(&self, entries: Vec<Entry>, revision: u64) {
        if self.is_retired() {
            self.lose(Phase::Idle);
            return;
        }
        self.all.reset(revision);
        let mut events = Vec::new();
        {
            let mut state = self.state.write();
            let waiting = match std::mem::replace(&mut state.phase, Phase::Live) {
                Phase::Loading(waiting) => waiting,
                Phase::Idle | Phase::Live => Vec::new(),
            };
            state.revision = revision;
            state.bytes = entries.iter().map(|e| e.value.len()).sum();
            let entries: Vec<Arc<Entry>> = entries.into_iter().map(Arc::new).collect();
            for entry in &entries {
                state.index(entry);
                state.count(entry);
            }
            state.objects = entries.into_iter().map(|e| (e.key.clone(), e)).collect();
            events.extend(waiting.into_iter().filter_map(|change| state.apply(change)));
        }
        for event in events {
            self.push(Arc::new(event));
        }
        self.flush();
    }
}

impl State {
    fn new(phase: Phase, indexed_field: Option<usize>) -> Self {
        let (objects, by_field) = (BTreeMap::new(), HashMap::new());
        let namespaces = HashMap::new();
        Self { phase, objects, namespaces, by_field, indexed_field, revision: 0, bytes: 0 }
    }

    fn count(&mut self, entry: &Entry) {
        let namespace = entry.namespace_and_name().0;
        match self.namespaces.get_mut(namespace) {
            Some(count) => *count += 1,
            None => {
                self.namespaces.insert(namespace.into(), 1);
            }
        }
    }

    fn uncount(&mut self, entry: &Entry) {
        let namespace = entry.namespace_and_name().0;
        if let Some(count) = self.namespaces.get_mut(namespace) {
            *count -= 1;
            if *count == 0 {
                self.namespaces.remove(namespace);
            }
        }
    }

    fn index(&mut self, entry: &Arc<Entry>) {
        let Some(i) = self.indexed_field else { return };
        let value = entry.facts.field(i);
        let group = match self.by_field.get_mut(value) {
            Some(group) => group,
            None => self.by_field.entry(value.into()).or_default(),
        };
        group.insert(entry.key.clone(), entry.clone());
    }

    fn unindex(&mut self, entry: &Entry) {
        let Some(i) = self.indexed_field else { return };
        let value = entry.facts.field(i);
        if let Some(group) = self.by_field.get_mut(value) {
            group.remove(&entry.key);
            if group.is_empty() {
                self.by_field.remove(value);
            }
        }
    }

    fn live(&self) -> Result<(), Reloading> {
        if matches!(self.phase, Phase::Live) { Ok(()) } else { Err(Reloading) }
    }

    fn apply(&mut self, change: Applied) -> Option<Event> {
        let revision = change.revision();
        if revision <= self.revision {
            return None;
        }
        self.revision = revision;
        match change {
            Applied::Put(entry) => {
                self.bytes += entry.value.len();
                let previous = self.objects.insert(entry.key.clone(), entry.clone());
                match &previous {
                    Some(p) => {
                        self.bytes -= p.value.len();
                        self.unindex(p);
                    }
                    None => self.count(&entry),
                }
                self.index(&entry);
                let kind = if previous.is_some() { EventType::Modified } else { EventType::Added };
                Some(Event::new(revision, kind, entry, previous))
            }
            Applied::Delete(key, _) => {
                let last = self.objects.remove(&key)?;
                self.bytes -= last.value.len();
                self.unindex(&last);
                self.uncount(&last);
                Some(Event::new(revision, EventType::Deleted, last.clone(), Some(last)))
            }
        }
    }
}

fn bounds(namespace: Option<&str>, from: Option<&str>) -> (Bound<String>, Bound<String>) {
    let (low, high) = match namespace {
        // '0' follows '/', so this is every key below "ns/".
        Some(ns) => (Bound::Included(format!("{ns}/")), Bound::Excluded(format!("{ns}0"))),
        None => (Bound::Unbounded, Bound::Unbounded),
    };
    // Where to begin comes from clients: a range that is upside down would panic.
    let low = match (low, from) {
        (Bound::Included(l), Some(from)) if l.as_str() >= from => Bound::Included(l),
        (_, Some(from)) => Bound::Included(from.to_owned()),
        (low, None) => low,
    };
    match (&low, &high) {
        (Bound::Included(l), Bound::Excluded(h)) if l > h => (Bound::Included(h.clone()), high),
        _ => (low, high),
    }
}

fn as_bound(bound: &Bound<String>) -> Bound<&str> {
    match bound {
        Bound::Included(s) => Bound::Included(s.as_str()),
        Bound::Excluded(s) => Bound::Excluded(s.as_str()),
        Bound::Unbounded => Bound::Unbounded,
    }
}

#[cfg(test)]
mod tests;
