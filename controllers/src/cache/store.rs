//! An indexed store of one kind, fed by one watch and shared by every controller.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use tokio::sync::watch;

use super::held::{Held, Metadata};
use crate::object::{self, Key};
use crate::runner::Queue;

/// A change that the store has just taken in. At least one of `old` and `new` is there.
pub struct Change<'a, K> {
    /// The object's name.
    pub key: &'a Key,
    /// What the store held before.
    pub old: Option<&'a Arc<K>>,
    /// What it holds now.
    pub new: Option<&'a Arc<K>>,
}

impl<K> Change<'_, K> {
    /// The old and the new state, those that there are.
    pub fn states(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.into_iter().chain(self.new)
    }
}

/// Called inside the informer's task after each change: must be quick and must not block.
pub type Handler<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;

/// Computes an object's values in an index.
pub type IndexFn<K> = fn(&K) -> Vec<String>;

/// Which objects of the kind a store holds.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Only this namespace.
    pub namespace: Option<&'static str>,
    /// Only objects of this name.
    pub name: Option<&'static str>,
    /// A further field selector.
    pub fields: Option<&'static str>,
    /// The kind may be missing: then there are none of it.
    pub optional: bool,
}

/// What a write must look like before its writer may trust the store again.
#[derive(Clone, Debug, PartialEq)]
pub enum Written {
    /// The object was written at this resourceVersion.
    Version(u64),
    /// The object with this uid was deleted (or its deletion has begun).
    Deleted(String),
}

/// The objects with one value of an index, by key.
type Members<K> = BTreeMap<Arc<Key>, Arc<K>>;

struct Inner<K> {
    objects: HashMap<Arc<Key>, Arc<K>>,
    /// Per index, in their order, the objects by value.
    index: Vec<HashMap<String, Members<K>>>,
    /// Every change up to this resourceVersion is taken in.
    version: u64,
    /// How many full lists were taken in.
    lists: u64,
    listing: Option<Listing>,
}

/// A list that is being taken in.
#[derive(Default)]
struct Listing {
    seen: HashSet<Arc<Key>>,
    /// The highest resourceVersion in it. What it has not named yet may be older.
    version: u64,
}

/// The store of one kind. See the module's documentation.
pub struct Store<K: Held> {
    inner: RwLock<Inner<K>>,
    indexes: Vec<(&'static str, IndexFn<K>)>,
    handlers: RwLock<Vec<Handler<K>>>,
    trim: fn(&mut K::Wire),
    pool: K::Pool,
    progress: watch::Sender<u64>,
    synced: watch::Sender<bool>,
    wanted: AtomicBool,
    pub(super) scope: Scope,
}

impl<K: Held> Store<K> {
    /// An empty store. `trim` drops what no controller reads before an object is kept.
    pub fn new(scope: Scope, indexes: Vec<(&'static str, IndexFn<K>)>, trim: fn(&mut K::Wire)) -> Self {
        let index = indexes.iter().map(|_| HashMap::new()).collect();
        Self {
            inner: RwLock::new(Inner { objects: HashMap::new(), index, version: 0, lists: 0, listing: None }),
            indexes,
            handlers: RwLock::new(Vec::new()),
            trim,
            pool: K::Pool::default(),
            progress: watch::Sender::new(0),
            synced: watch::Sender::new(false),
            wanted: AtomicBool::new(false),
            scope,
        }
    }

    /// Marks the store as needed: only needed stores open a watch.
    pub fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    /// Whether some controller needs the store.
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Adds a handler for every later change, and marks the store as needed.
    pub fn on_change(&self, handler: impl Fn(&Change<'_, K>) + Send + Sync + 'static) {
        self.want();
        self.handlers.write().push(Box::new(handler));
    }

    /// Queues the key of every object that changes.
    pub fn queue_changed(&self, queue: &Arc<Queue>) {
        let queue = queue.clone();
        self.on_change(move |change| queue.add(change.key.clone()));
    }

    /// Queues the key of every object that is new.
    pub fn queue_added(&self, queue: &Arc<Queue>) {
        let queue = queue.clone();
        self.on_change(move |change| {
            if change.old.is_none() {
                queue.add(change.key.clone());
            }
        });
    }

    /// The object of this name.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.inner.read().objects.get(key).cloned()
    }

    /// Every object, in no order. For start-up and tests; the work per event must not need it.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.inner.read().objects.values().cloned().collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.inner.read().objects.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn at(&self, name: &str) -> Option<usize> {
        self.indexes.iter().position(|(index, _)| *index == name)
    }

    /// The objects with `value` in the index `name`, ordered by key.
    pub fn by_index(&self, name: &'static str, value: &str) -> Vec<Arc<K>> {
        let Some(at) = self.at(name) else { return Vec::new() };
        let inner = self.inner.read();
        let members = inner.index[at].get(value);
        members.map(|members| members.values().cloned().collect()).unwrap_or_default()
    }

    /// The values that `object` has in the index `name`, held or not.
    pub fn values_of(&self, name: &'static str, object: &K) -> Vec<String> {
        self.at(name).map(|at| (self.indexes[at].1)(object)).unwrap_or_default()
    }

    /// How many objects have `value` in the index `name`.
    pub fn count(&self, name: &'static str, value: &str) -> usize {
        let Some(at) = self.at(name) else { return 0 };
        self.inner.read().index[at].get(value).map_or(0, BTreeMap::len)
    }

    /// The values of the index `name` that at least one object has.
    pub fn index_values(&self, name: &'static str) -> Vec<String> {
        let Some(at) = self.at(name) else { return Vec::new() };
        self.inner.read().index[at].keys().cloned().collect()
    }

    /// Takes in an added or modified object.
    pub fn apply(&self, mut object: K::Wire) {
        (self.trim)(&mut object);
        let new = Arc::new(K::hold(object, &self.pool));
        let key = Key::of(new.as_ref());
        let old = self.swap(&key, Some(&new));
        match old {
            // Deleted and made anew between two looks: two changes, so that nobody mixes them up.
            Some(old) if object::uid(old.as_ref()) != object::uid(new.as_ref()) => {
                self.notify(&Change { key: &key, old: Some(&old), new: None });
                self.notify(&Change { key: &key, old: None, new: Some(&new) });
            }
            old => self.notify(&Change { key: &key, old: old.as_ref(), new: Some(&new) }),
        }
        self.advance();
    }

    /// Takes in a deletion; `last` is the object's last state.
    pub fn remove(&self, last: &K::Wire) {
        let key = Key::of(last);
        if let Some(version) = version_of(last) {
            self.inner.write().saw(version);
        }
        // A late deletion of a predecessor must not take the object that has its name now.
        if self.get(&key).is_some_and(|held| object::uid(held.as_ref()) == object::uid(last)) {
            self.take(&key);
        }
        self.advance();
    }

    fn take(&self, key: &Key) {
        if let Some(old) = self.swap(key, None) {
            self.notify(&Change { key, old: Some(&old), new: None });
        }
    }

    /// Begins a list: what it does not name until [`Store::end_list`] is gone then.
    pub fn begin_list(&self) {
        self.inner.write().listing = Some(Listing::default());
    }

    /// Ends a list.
    pub fn end_list(&self) {
        let gone: Vec<Arc<Key>> = {
            let mut inner = self.inner.write();
            let listing = inner.listing.take().unwrap_or_default();
            inner.saw(listing.version);
            inner.objects.keys().filter(|key| !listing.seen.contains(*key)).cloned().collect()
        };
        for key in gone {
            self.take(&key);
        }
        self.inner.write().lists += 1;
        self.synced.send_replace(true);
        self.advance();
    }

    /// Waits for the first complete list.
    pub async fn wait_synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives in `self`, so this ends only with `true`.
        let _ = synced.wait_for(|done| *done).await;
    }

    /// A mark of how many lists the store has taken in, for [`Store::wait_written`].
    pub fn list_mark(&self) -> u64 {
        self.inner.read().lists
    }

    /// Waits until the store shows a write (or something later). `mark` was taken before the write.
    pub async fn wait_written(&self, key: &Key, written: &Written, mark: u64) {
        let mut progress = self.progress.subscribe();
        while !self.shows(key, written, mark) {
            if progress.changed().await.is_err() {
                return;
            }
        }
    }

    fn shows(&self, key: &Key, written: &Written, mark: u64) -> bool {
        let inner = self.inner.read();
        // A list made after the write shows it, whatever became of the object since. The list that is
        // being made while we write is not counted: the mark is of finished ones, so one more is asked.
        if inner.lists > mark + 1 {
            return true;
        }
        let held = inner.objects.get(key).map(Arc::as_ref);
        match written {
            Written::Version(version) => {
                inner.version >= *version || held.and_then(version_of).is_some_and(|v| v >= *version)
            }
            Written::Deleted(uid) => held.is_none_or(|o| object::is_deleting(o) || object::uid(o) != uid),
        }
    }

    fn advance(&self) {
        self.progress.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn notify(&self, change: &Change<'_, K>) {
        for handler in self.handlers.read().iter() {
            handler(change);
        }
    }

    /// Puts `new` in the place of what `key` holds, keeps the indexes true, returns the old.
    fn swap(&self, key: &Key, new: Option<&Arc<K>>) -> Option<Arc<K>> {
        let after: Vec<Vec<String>> =
            self.indexes.iter().map(|(_, of)| new.map(|new| of(new)).unwrap_or_default()).collect();
        let mut guard = self.inner.write();
        let inner = &mut *guard;
        let held = inner.objects.get_key_value(key).map(|(key, _)| key.clone());
        let key = held.unwrap_or_else(|| Arc::new(key.clone()));
        let old = match new {
            Some(new) => {
                if let Some(listing) = &mut inner.listing {
                    listing.seen.insert(key.clone());
                }
                if let Some(version) = version_of(new.as_ref()) {
                    inner.saw(version);
                }
                inner.objects.insert(key.clone(), new.clone())
            }
            None => inner.objects.remove(&key),
        };
        for ((index, (_, values_of)), after) in inner.index.iter_mut().zip(&self.indexes).zip(after) {
            let before = old.as_deref().map(values_of).unwrap_or_default();
            for value in before.iter().filter(|v| !after.contains(v)) {
                if let Some(members) = index.get_mut(value) {
                    members.remove(&key);
                    if members.is_empty() {
                        index.remove(value);
                    }
                }
            }
            for value in after {
                if let Some(new) = new {
                    index.entry(value).or_default().insert(key.clone(), new.clone());
                }
            }
        }
        old
    }
}

impl<K> Inner<K> {
    fn saw(&mut self, version: u64) {
        let newest = match &mut self.listing {
            Some(listing) => &mut listing.version,
            None => &mut self.version,
        };
        *newest = version.max(*newest);
    }
}

fn version_of<K: Held>(object: &K) -> Option<u64> {
    object.held_meta().resource_version().and_then(object::version_number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use std::sync::Mutex;

    fn cm(name: &str, uid: &str, version: u64, label: &str) -> ConfigMap {
        let mut c = ConfigMap::default();
        c.metadata.name = Some(name.into());
        c.metadata.namespace = Some("ns".into());
        c.metadata.uid = Some(uid.into());
        c.metadata.resource_version = Some(version.to_string());
        c.metadata.labels = Some([("l".to_string(), label.to_string())].into());
        c
    }

    fn by_label(c: &ConfigMap) -> Vec<String> {
        c.metadata.labels.iter().flatten().map(|(_, v)| v.clone()).collect()
    }

    fn store() -> Store<ConfigMap> {
        Store::new(Scope::default(), vec![("label", by_label)], |_| {})
    }

    #[test]
    fn indexes_follow_changes() {
        let s = store();
        s.apply(cm("a", "1", 1, "x"));
        s.apply(cm("b", "2", 2, "x"));
        assert_eq!(s.by_index("label", "x").len(), 2);
        s.apply(cm("a", "1", 3, "y"));
        assert_eq!(s.count("label", "x"), 1);
        assert_eq!(s.count("label", "y"), 1);
        s.remove(&cm("b", "2", 4, "x"));
        assert_eq!(s.index_values("label"), vec!["y"]);
    }

    #[test]
    fn a_late_deletion_spares_the_successor() {
        let s = store();
        s.apply(cm("a", "2", 5, "x"));
        s.remove(&cm("a", "1", 4, "x"));
        assert_eq!(s.len(), 1);
    }

    #[test]
    fn a_successor_is_two_changes_and_a_list_deletes_the_rest() {
        let s = store();
        let log = Arc::new(Mutex::new(Vec::new()));
        let sink = log.clone();
        s.on_change(move |c| {
            let uid = |o: Option<&Arc<ConfigMap>>| o.and_then(|o| o.metadata.uid.clone()).unwrap_or_default();
            sink.lock().unwrap().push(format!("{}>{}", uid(c.old), uid(c.new)));
        });
        s.apply(cm("a", "1", 1, "x"));
        s.apply(cm("a", "2", 2, "x"));
        s.begin_list();
        s.apply(cm("b", "3", 3, "x"));
        s.end_list();
        assert_eq!(*log.lock().unwrap(), vec![">1", "1>", ">2", ">3", "2>"]);
    }

    #[test]
    fn half_a_list_does_not_prove_what_it_has_not_named() {
        let s = store();
        s.begin_list();
        s.apply(cm("b", "2", 6, "x"));
        assert!(!s.shows(&Key::new("ns", "a"), &Written::Version(5), 0));
        s.end_list();
        assert!(s.shows(&Key::new("ns", "a"), &Written::Version(5), 0));
    }

    #[tokio::test]
    async fn writes_are_waited_for() {
        let s = store();
        let key = Key::new("ns", "a");
        s.apply(cm("a", "1", 5, "x"));
        s.wait_written(&key, &Written::Version(5), 0).await;
        assert!(!s.shows(&key, &Written::Version(6), 0));
        assert!(!s.shows(&key, &Written::Deleted("1".into()), 0));
        assert!(s.shows(&key, &Written::Deleted("0".into()), 0));
        // Another object's later version proves that this one's was passed.
        s.apply(cm("b", "2", 6, "x"));
        assert!(s.shows(&key, &Written::Version(6), 0));
        s.remove(&cm("a", "1", 7, "x"));
        assert!(s.shows(&key, &Written::Deleted("1".into()), 0));
    }
}
