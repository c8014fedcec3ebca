//! The rows that this server serves, by path and by kind. Rows come and go at run time (custom resources), so
//! readers load one immutable table at a time. Tables share all that did not change: a new one costs the logarithm of
//! the number of rows, whatever it is.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use bytes::Bytes;
use hawser_api::crd::rows::compare_versions;
use hawser_api::kinds::{Kind, StorageLocation};
pub use hawser_api::strategy::{Feature, switched_on as feature_switched_on};
use rpds::{HashTrieMapSync, RedBlackTreeMapSync};

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

/// Rows or caches by a name, ordered.
type Named<T> = RedBlackTreeMapSync<Arc<str>, Arc<T>>;

/// Kinds whose rows go, and rows that come.
type Exchange<'k, R> = (Vec<&'k Arc<Kind>>, Vec<R>);

/// An immutable table of rows.
#[derive(Clone, Default)]
pub struct Table {
    /// Built-in groups by their position in discovery.
    built_in: RedBlackTreeMapSync<usize, Arc<Group>>,
    /// All others, which come after them.
    others: Named<Group>,
    /// By directory in the store.
    caches: HashTrieMapSync<Arc<str>, Arc<ResourceCache>>,
    /// Positions of the built-in groups, and the built-in rows of resources that several groups serve.
    fixed: Arc<Fixed>,
}

#[derive(Default)]
struct Fixed {
    positions: HashMap<String, usize>,
    shared: HashMap<StorageLocation, Vec<Arc<Row>>>,
}

/// A served group.
#[derive(Default)]
pub struct Group {
    /// Empty for the core group.
    pub name: Arc<str>,
    /// Versions by preference.
    pub versions: Vec<Arc<Version>>,
    /// The row of the stored version of each resource, or of its preferred one; also where nothing is served.
    resources: Named<Row>,
    /// What is made of the group when it is asked for.
    pub made: Made,
}

/// A served version of a group.
#[derive(Default)]
pub struct Version {
    /// `v1`
    pub name: String,
    rows: Named<Row>,
    kinds: Named<Row>,
    /// What is made of the version when it is asked for.
    pub made: Made,
}

/// Parts of documents, each made at most once.
#[derive(Default)]
pub struct Made {
    /// Aggregated discovery.
    pub discovery: OnceLock<Bytes>,
    /// Hash of the OpenAPI document.
    pub openapi: OnceLock<String>,
}

impl Version {
    /// The rows by name.
    pub fn rows(&self) -> impl Iterator<Item = &Arc<Row>> {
        self.rows.values()
    }

    /// What versions of a group are ordered by: built-in ones say it, others are as Kubernetes orders names.
    fn before(&self, other: &Self) -> std::cmp::Ordering {
        let stated = |v: &Self| v.rows.values().find(|r| r.kind.builtin).map(|r| r.kind.preference);
        match (stated(self), stated(other)) {
            (Some(a), Some(b)) => a.cmp(&b),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (None, None) => compare_versions(&other.name, &self.name),
        }
    }
}

impl Group {
    /// A version by name.
    pub fn version(&self, name: &str) -> Option<&Arc<Version>> {
        self.versions.iter().find(|v| v.name == name)
    }

    fn rows(&self) -> impl Iterator<Item = &Arc<Row>> {
        self.versions.iter().flat_map(|v| v.rows())
    }

    /// The same without some rows and with others. Versions that neither touches are shared.
    fn changed(&self, gone: &[&Arc<Kind>], added: Vec<Arc<Row>>) -> Self {
        let mut versions: BTreeMap<&str, Exchange<'_, &Arc<Row>>> = BTreeMap::new();
        gone.iter().for_each(|kind| versions.entry(&kind.version).or_default().0.push(kind));
        added.iter().for_each(|row| versions.entry(&row.kind.version).or_default().1.push(row));
        let mut new = Self {
            name: self.name.clone(),
            versions: Vec::with_capacity(self.versions.len()),
            resources: self.resources.clone(),
            made: Made::default(),
        };
        new.versions.extend(self.versions.iter().filter(|v| !versions.contains_key(&*v.name)).cloned());
        for (name, (gone, added)) in versions {
            let held = self.version(name);
            let (mut rows, mut kinds) =
                held.map_or_else(Default::default, |v| (v.rows.clone(), v.kinds.clone()));
            for kind in gone {
                rows.remove_mut(&*kind.plural);
                kinds.remove_mut(&*kind.kind);
            }
            for row in added.into_iter().filter(|row| !row.kind.verbs.is_empty()) {
                rows.insert_mut(row.kind.plural.as_str().into(), row.clone());
                kinds.insert_mut(row.kind.kind.as_str().into(), row.clone());
            }
            if !rows.is_empty() {
                let version = Version { name: name.to_owned(), rows, kinds, made: Made::default() };
                new.versions.push(Arc::new(version));
            }
        }
        new.versions.sort_by(|a, b| a.before(b));
        for kind in gone {
            new.resources.remove_mut(&*kind.plural);
        }
        for row in added {
            let better = |held: &Arc<Row>| row.is_stored_version() || held.kind.verbs.is_empty();
            // A stored version that is not served stands in only where no other is.
            let fits = match new.resources.get(&*row.kind.plural) {
                Some(held) => !row.kind.verbs.is_empty() && better(held),
                None => true,
            };
            if fits {
                new.resources.insert_mut(row.kind.plural.as_str().into(), row);
            }
        }
        new
    }
}

impl Table {
    /// The cache of a key in the store. Directories of resources are one or two names deep.
    pub fn cache_of_key(&self, key: &str) -> Option<&Arc<ResourceCache>> {
        let rest = key.strip_prefix(REGISTRY)?;
        let one = rest.find('/')?;
        let upto = |n: usize| self.caches.get(key.get(..REGISTRY.len() + n + 1)?);
        upto(one).or_else(|| upto(one + 1 + rest.get(one + 1..)?.find('/')?))
    }

    /// All rows: groups in the order of discovery, versions by preference, then names.
    pub fn rows(&self) -> impl Iterator<Item = &Arc<Row>> {
        self.groups().flat_map(|group| group.rows())
    }

    /// The row of a path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Row>> {
        self.group(group)?.version(version)?.rows.get(plural)
    }

    /// The row of the stored version of a resource, or of its preferred one. Of a resource that is not served any more
    /// it is the row that instances are stored by.
    pub fn find_resource(&self, resource: &GroupResource) -> Option<&Arc<Row>> {
        self.group(&resource.group)?.resources.get(&*resource.resource)
    }

    /// The row of `apiVersion` and `kind`.
    pub fn find_kind(&self, api_version: &str, kind: &str) -> Option<&Arc<Row>> {
        let (group, version) = hawser_api::object::split_api_version(api_version);
        self.group(group)?.version(version)?.kinds.get(kind)
    }

    /// The rows of all versions of a row's resource.
    pub fn versions_of(&self, row: &Row) -> Vec<&Arc<Row>> {
        let kind = &row.kind;
        if let Some(shared) = self.fixed.shared.get(&kind.storage) {
            return shared.iter().collect();
        }
        let versions = self.group(&kind.group).map(|g| g.versions.as_slice()).unwrap_or_default();
        let rows = versions.iter().filter_map(|v| v.rows.get(&*kind.plural));
        rows.filter(|row| row.kind.storage == kind.storage).collect()
    }

    /// One cache per stored resource.
    pub fn caches(&self) -> impl Iterator<Item = &Arc<ResourceCache>> {
        self.caches.values()
    }

    /// Whether a group version is served at all.
    pub fn has_version(&self, group: &str, version: &str) -> bool {
        self.group(group).is_some_and(|g| g.version(version).is_some())
    }

    /// Groups in the order of discovery; those of which nothing is served are none.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.built_in.values().chain(self.others.values()).filter(|g| !g.versions.is_empty())
    }

    /// A group by name.
    pub fn group(&self, name: &str) -> Option<&Arc<Group>> {
        match self.fixed.positions.get(name) {
            Some(at) => self.built_in.get(at),
            None => self.others.get(name),
        }
    }

    /// The table of the built-in rows.
    fn fixed(kinds: &[Arc<Kind>]) -> Self {
        let mut fixed = Fixed::default();
        for kind in kinds {
            let next = fixed.positions.len();
            fixed.positions.entry(kind.group.clone()).or_insert(next);
        }
        let mut table = Self { fixed: Arc::new(fixed), ..Self::default() };
        table.change(&[], kinds);
        let mut shared: HashMap<StorageLocation, Vec<Arc<Row>>> = HashMap::new();
        for row in table.rows() {
            shared.entry(row.kind.storage.clone()).or_default().push(row.clone());
        }
        shared.retain(|_, rows| rows.iter().any(|row| row.kind.group != rows[0].kind.group));
        let positions = table.fixed.positions.clone();
        table.fixed = Arc::new(Fixed { positions, shared });
        table
    }

    /// Takes the rows of a definition out and puts others in their place. A resource that stays as it is keeps its
    /// cache, and a row that does not change stays the same. Answers the caches that are not needed any more.
    fn change(&mut self, gone: &[Arc<Kind>], added: &[Arc<Kind>]) -> Vec<Arc<ResourceCache>> {
        let stored_kinds: HashMap<String, &Arc<Kind>> = added
            .iter()
            .filter(|k| k.is_storage_version())
            .map(|k| (path_key(&k.group, &k.version, &k.plural), k))
            .collect();
        let mut retired: HashMap<Arc<str>, Arc<ResourceCache>> = HashMap::new();
        for kind in gone {
            let row = self.find(&kind.group, &kind.version, &kind.plural);
            let row = row.or_else(|| self.find_resource(&GroupResource::new(&*kind.group, &*kind.plural)));
            if let Some(cache) = row.and_then(|r| r.cache.clone()) {
                retired.insert(cache.prefix().into(), cache);
            }
        }
        for prefix in retired.keys() {
            self.caches.remove_mut(prefix);
        }
        let mut groups: BTreeMap<&str, Exchange<'_, Arc<Row>>> = BTreeMap::new();
        gone.iter().for_each(|kind| groups.entry(&kind.group).or_default().0.push(kind));
        for kind in added {
            let stored = (!kind.is_storage_version()).then(|| {
                let s = &kind.storage;
                let found =
                    stored_kinds.get(&path_key(&s.group, &s.version, &s.plural)).map(|k| (*k).clone());
                found.or_else(|| hawser_api::kinds::find(&s.group, &s.version, &s.plural).cloned())
            });
            let stored = stored.flatten();
            // Instances of a version that is not served are stored all the same.
            let cache = (kind.is_stored() || kind.custom.is_some()).then(|| {
                let stored = stored.as_ref().unwrap_or(kind);
                let fresh = ResourceCache::new(stored.clone());
                let held = self.caches.get(fresh.prefix()).or_else(|| retired.get(fresh.prefix()));
                let held = held.filter(|c| same_storage(c.kind(), stored)).cloned();
                let cache = held.unwrap_or_else(|| Arc::new(fresh));
                self.caches.insert_mut(cache.prefix().into(), cache.clone());
                cache
            });
            let unchanged = self.find(&kind.group, &kind.version, &kind.plural).filter(|r| {
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
            groups.entry(&kind.group).or_default().1.push(row);
        }
        for (name, (gone, added)) in groups {
            let empty = Group { name: name.into(), ..Group::default() };
            let new = Arc::new(self.group(name).map_or(&empty, |g| &**g).changed(&gone, added));
            match (self.fixed.positions.get(name), new.resources.is_empty()) {
                (Some(at), _) => self.built_in.insert_mut(*at, new),
                (None, false) => self.others.insert_mut(new.name.clone(), new),
                (None, true) => {
                    self.others.remove_mut(name);
                }
            }
        }
        retired
            .into_values()
            .filter(|c| !self.caches.get(c.prefix()).is_some_and(|n| Arc::ptr_eq(n, c)))
            .collect()
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

/// Rows of a definition, before and after.
pub type Replaced = (Vec<Arc<Kind>>, Vec<Arc<Kind>>);

/// The current table.
pub struct KindsRegistry {
    table: ArcSwap<Table>,
}

/// The group versions (`v1`, `apps/v1`) that an item of `--runtime-config` switches on, of those that are off by default:
/// `api/all`, `api/alpha`, `api/beta`, `api/ga` or a group version, with `=true`, `=false` or nothing behind it.
///
/// # Errors
/// One line: it names nothing that there is, or is to switch off what is on by default.
pub fn switched_on(item: &str) -> Result<Vec<String>, String> {
    let (name, wanted) = match item.split_once('=') {
        None => (item, true),
        Some((name, "" | "true" | "1")) => (name, true),
        Some((name, "false" | "0")) => (name, false),
        Some((_, other)) => return Err(format!("{other:?} is neither true nor false")),
    };
    let is_meant = |kind: &Kind| match name {
        "api/all" => true,
        "api/alpha" => kind.version.contains("alpha"),
        "api/beta" => kind.version.contains("beta"),
        "api/ga" => !kind.version.contains("alpha") && !kind.version.contains("beta"),
        name => kind.api_version() == name,
    };
    // Served by a whole cluster only, which switches it on itself.
    let rows = hawser_api::kinds::builtin().iter().filter(|k| k.api_version() != crate::usage::GROUP_VERSION);
    let meant: Vec<_> = rows.filter(|kind| is_meant(kind)).collect();
    match wanted {
        _ if meant.is_empty() => Err(format!("there is no API {name:?}; name one as group/version")),
        false if meant.iter().any(|kind| kind.on_by_default) => {
            Err(format!("{name} has what is on by default, and that cannot be switched off"))
        }
        false => Ok(Vec::new()),
        true => {
            let off = meant.into_iter().filter(|kind| !kind.on_by_default).map(|kind| kind.api_version());
            let mut off: Vec<String> = off.collect();
            off.dedup();
            Ok(off)
        }
    }
}

impl KindsRegistry {
    /// A registry that serves these rows.
    pub fn new(kinds: &[Arc<Kind>]) -> Self {
        Self { table: ArcSwap::from_pointee(Table::fixed(kinds)) }
    }

    /// The built-in rows that are on by default, and those that `wanted` asks for (`group/version`; see
    /// [`switched_on`]), with these features.
    pub fn builtin(wanted: &[String], features: &[Feature]) -> Self {
        let with_features = |kind: &Arc<Kind>| match features {
            [] => kind.clone(),
            features => Arc::new(Kind { features: features.to_vec(), ..Kind::clone(kind) }),
        };
        let kinds: Vec<_> = hawser_api::kinds::builtin()
            .iter()
            .filter(|k| k.on_by_default || wanted.contains(&k.api_version()))
            .map(with_features)
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

    /// Serves other rows of some definitions from now on. Caches of resources that stay as they are are kept; the others
    /// say from now on that they have nothing. Only one task may change the table.
    pub fn replace(&self, changes: &[Replaced]) {
        let mut table = (**self.table.load()).clone();
        let retired: Vec<_> = changes.iter().flat_map(|(gone, added)| table.change(gone, added)).collect();
        self.table.store(Arc::new(table));
        let table = self.table.load();
        for cache in retired {
            if !table.caches.get(cache.prefix()).is_some_and(|c| Arc::ptr_eq(c, &cache)) {
                cache.retire();
            }
        }
    }
}
