//! The rows that this server serves, by path and by kind. Rows come and go at run time (custom resources), so
//! readers load one immutable table at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use hawser_api::kinds::{Kind, StorageLocation};

use crate::access::GroupResource;
use crate::cache::ResourceCache;
use crate::encode::Head;

/// Directory of everything in the store.
pub const REGISTRY: &str = "/registry/";

/// Rows made so far.
static ROWS: AtomicU64 = AtomicU64::new(0);

/// One served row: a resource in one version.
pub struct Row {
    /// Its own: no other row ever has it.
    pub number: u64,
    /// The api crate's facts.
    pub kind: Arc<Kind>,
    /// First bytes of its objects in this version.
    pub head: Head,
    /// `Pod`-row of the version that is stored; `None` when it is this one.
    stored: Option<Arc<Kind>>,
    /// Shared by all versions of one resource; None for what is not stored.
    pub cache: Option<Arc<ResourceCache>>,
}

impl Row {
    /// The row of the stored version.
    pub fn stored_kind(&self) -> &Arc<Kind> {
        self.stored.as_ref().unwrap_or(&self.kind)
    }

    /// The row whose rules a write is judged by: for built-in kinds those of the stored version, for kinds defined at
    /// run time those of the version that is asked for.
    pub fn judging_kind(&self) -> &Arc<Kind> {
        if self.kind.custom.is_some() { &self.kind } else { self.stored_kind() }
    }

    /// Whether only a webhook can tell what objects of this row look like in the stored version.
    pub fn needs_webhook(&self) -> bool {
        self.stored.is_some() && crate::crd::convert::webhook(&self.kind).is_some()
    }

    /// Whether objects of this row are stored as they are served.
    pub fn is_stored_version(&self) -> bool {
        self.stored.is_none()
    }
}

/// An immutable table of rows.
#[derive(Default)]
pub struct Table {
    rows: Vec<Arc<Row>>,
    by_path: HashMap<String, Arc<Row>>,
    by_group_resource: HashMap<GroupResource, Arc<Row>>,
    by_kind: HashMap<(String, String), Arc<Row>>,
    caches: Vec<Arc<ResourceCache>>,
    by_prefix: HashMap<String, Arc<ResourceCache>>,
    groups: Vec<Group>,
    group_at: HashMap<String, usize>,
}

/// A served group.
#[derive(Default)]
pub struct Group {
    /// Empty for the core group.
    pub name: String,
    /// Versions by preference, each with its rows by name.
    pub versions: Vec<(String, Vec<Arc<Row>>)>,
}

impl Table {
    /// The cache of a key in the store. Directories of resources are one or two names deep.
    pub fn cache_of_key(&self, key: &str) -> Option<&Arc<ResourceCache>> {
        let rest = key.strip_prefix(REGISTRY)?;
        let one = rest.find('/')?;
        let upto = |n: usize| self.by_prefix.get(key.get(..REGISTRY.len() + n + 1)?);
        upto(one).or_else(|| upto(one + 1 + rest.get(one + 1..)?.find('/')?))
    }

    /// All rows: groups in the order of discovery, versions by preference, then names.
    pub fn rows(&self) -> &[Arc<Row>] {
        &self.rows
    }

    /// The row of a path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Row>> {
        self.by_path.get(&path_key(group, version, plural))
    }

    /// The row of the stored version of a resource, or of its preferred one.
    pub fn find_resource(&self, resource: &GroupResource) -> Option<&Arc<Row>> {
        self.by_group_resource.get(resource)
    }

    /// The row of `apiVersion` and `kind`.
    pub fn find_kind(&self, api_version: &str, kind: &str) -> Option<&Arc<Row>> {
        self.by_kind.get(&(api_version.to_owned(), kind.to_owned()))
    }

    /// One cache per stored resource.
    pub fn caches(&self) -> &[Arc<ResourceCache>] {
        &self.caches
    }

    /// Whether a group version is served at all.
    pub fn has_version(&self, group: &str, version: &str) -> bool {
        self.group(group).is_some_and(|g| g.versions.iter().any(|(v, _)| v == version))
    }

    /// Groups in the order of discovery.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// A group by name.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.get(*self.group_at.get(name)?)
    }

    /// Builds a table. A resource that `previous` had keeps its cache, and a row that did not change stays the same.
    /// A kind without verbs is no row: it only tells how objects are stored.
    fn build(kinds: &[Arc<Kind>], previous: &Self) -> Self {
        let mut caches: HashMap<StorageLocation, Arc<ResourceCache>> =
            previous.caches.iter().map(|c| (c.kind().storage.clone(), c.clone())).collect();
        let stored_kinds: HashMap<String, &Arc<Kind>> = kinds
            .iter()
            .filter(|k| k.is_storage_version())
            .map(|k| (path_key(&k.group, &k.version, &k.plural), k))
            .collect();
        let mut table = Self::default();
        for kind in kinds.iter().filter(|k| !k.verbs.is_empty()) {
            let stored = (!kind.is_storage_version()).then(|| {
                let s = &kind.storage;
                let found =
                    stored_kinds.get(&path_key(&s.group, &s.version, &s.plural)).map(|k| (*k).clone());
                found.or_else(|| hawser_api::kinds::find(&s.group, &s.version, &s.plural).cloned())
            });
            let stored = stored.flatten();
            let cache = kind.is_stored().then(|| {
                let stored = stored.as_ref().unwrap_or(kind);
                let held = caches.get(&kind.storage).filter(|c| same_storage(c.kind(), stored)).cloned();
                held.unwrap_or_else(|| {
                    let new = Arc::new(ResourceCache::new(stored.clone()));
                    caches.insert(kind.storage.clone(), new.clone());
                    new
                })
            });
            if let Some(cache) = &cache
                && !table.by_prefix.contains_key(cache.prefix())
            {
                table.caches.push(cache.clone());
                table.by_prefix.insert(cache.prefix().to_owned(), cache.clone());
            }
            let path = path_key(&kind.group, &kind.version, &kind.plural);
            let unchanged = previous.by_path.get(&path).filter(|r| {
                let same_cache = match (&r.cache, &cache) {
                    (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                    (a, b) => a.is_none() && b.is_none(),
                };
                Arc::ptr_eq(&r.kind, kind) && r.stored == stored && same_cache
            });
            let row = unchanged.cloned().unwrap_or_else(|| {
                let number = ROWS.fetch_add(1, Ordering::Relaxed);
                Arc::new(Row { number, head: Head::new(kind), kind: kind.clone(), stored, cache })
            });
            table.add(path, row);
        }
        for group in &mut table.groups {
            // Preferences are known once all rows are; a version's is that of its first row.
            group.versions.sort_by_key(|(_, rows)| rows.first().map_or(0, |r| r.kind.preference));
            for (_, rows) in &mut group.versions {
                rows.sort_by(|a, b| a.kind.plural.cmp(&b.kind.plural));
            }
        }
        table
    }

    fn add(&mut self, path: String, row: Arc<Row>) {
        let kind = &row.kind;
        self.by_path.insert(path, row.clone());
        self.by_kind.insert((kind.api_version(), kind.kind.clone()), row.clone());
        let resource = GroupResource::new(&*kind.group, &*kind.plural);
        if row.is_stored_version() || !self.by_group_resource.contains_key(&resource) {
            self.by_group_resource.insert(resource, row.clone());
        }
        let at = *self.group_at.entry(kind.group.clone()).or_insert_with(|| {
            self.groups.push(Group { name: kind.group.clone(), versions: Vec::new() });
            self.groups.len() - 1
        });
        if let Some(group) = self.groups.get_mut(at) {
            match group.versions.iter_mut().find(|(v, _)| *v == kind.version) {
                Some((_, rows)) => rows.push(row.clone()),
                None => group.versions.push((kind.version.clone(), vec![row.clone()])),
            }
        }
        self.rows.push(row);
    }
}

/// Whether what a cache holds is what a row stores: objects of a changed schema are read anew.
fn same_storage(held: &Kind, wanted: &Kind) -> bool {
    let content = |k: &Kind| k.custom.as_ref().map(|c| c.content.clone());
    held.version == wanted.version && content(held) == content(wanted)
}

fn path_key(group: &str, version: &str, plural: &str) -> String {
    let mut key = String::with_capacity(group.len() + version.len() + plural.len() + 2);
    key.push_str(group);
    key.push('/');
    key.push_str(version);
    key.push('/');
    key.push_str(plural);
    key
}

/// The current table.
pub struct KindsRegistry {
    table: ArcSwap<Table>,
}

impl KindsRegistry {
    /// A registry that serves these rows.
    pub fn new(kinds: &[Arc<Kind>]) -> Self {
        Self { table: ArcSwap::from_pointee(Table::build(kinds, &Table::default())) }
    }

    /// The built-in rows that are on by default, and those that `wanted` asks for (`group/version`).
    pub fn builtin(wanted: &[String]) -> Self {
        let kinds: Vec<_> = hawser_api::kinds::builtin()
            .iter()
            .filter(|k| k.on_by_default || wanted.contains(&k.api_version()))
            .cloned()
            .collect();
        Self::new(&kinds)
    }

    /// The table of this moment.
    pub fn load(&self) -> arc_swap::Guard<Arc<Table>> {
        self.table.load()
    }

    /// The table of this moment, to be kept.
    pub fn snapshot(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Serves these rows from now on. Caches of resources that stay as they are are kept; the others say from now on
    /// that they have nothing.
    pub fn replace(&self, kinds: &[Arc<Kind>]) {
        let old = self.table.load_full();
        let new = Arc::new(Table::build(kinds, &old));
        self.table.store(new.clone());
        for cache in &old.caches {
            if !new.by_prefix.get(cache.prefix()).is_some_and(|c| Arc::ptr_eq(c, cache)) {
                cache.retire();
            }
        }
    }
}
