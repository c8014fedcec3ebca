//! The rows that this server serves, by path and by kind. Rows come and go at run time (custom resources), so
//! readers load one immutable table at a time.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use hawser_api::kinds::{Kind, StorageLocation};
use serde_json::Value;

use crate::access::GroupResource;
use crate::cache::ResourceCache;
use crate::encode::Head;

/// Directory of everything in the store.
pub const REGISTRY: &str = "/registry/";

/// One served row: a resource in one version.
pub struct Row {
    /// The api crate's facts.
    pub kind: Arc<Kind>,
    /// First bytes of its objects in this version.
    pub head: Head,
    /// `Pod`-row of the version that is stored; `None` when it is this one.
    stored: Option<Arc<Kind>>,
    /// Shared by all versions of one resource; None for what is not stored.
    pub cache: Option<Arc<ResourceCache>>,
    /// Schema of a kind defined at run time.
    pub schema: Option<Arc<dyn DefinedSchema>>,
}

/// The schema of a kind defined at run time, for OpenAPI. Made when it is asked for, so that nothing is kept twice.
pub trait DefinedSchema: Send + Sync {
    /// The objects' schema as OpenAPI v3 has it, `$ref`s excepted: of an object, with `properties`.
    fn openapi(&self) -> Value;
}

impl Row {
    /// The row of the stored version.
    pub fn stored_kind(&self) -> &Arc<Kind> {
        self.stored.as_ref().unwrap_or(&self.kind)
    }

    /// The schema of the objects of a kind defined at run time; None for one that keeps everything.
    pub fn openapi(&self) -> Option<Value> {
        self.schema.as_ref().map(|s| s.openapi())
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
        self.rows.iter().any(|r| r.kind.group == group && r.kind.version == version)
    }

    /// Builds a table. A resource that `previous` had keeps its cache.
    fn build(kinds: &[Arc<Kind>], previous: &Self) -> Self {
        let mut caches: HashMap<StorageLocation, Arc<ResourceCache>> =
            previous.caches.iter().map(|c| (c.kind().storage.clone(), c.clone())).collect();
        let mut table = Self::default();
        for kind in kinds {
            let stored = if kind.is_storage_version() {
                None
            } else {
                let s = &kind.storage;
                kinds
                    .iter()
                    .find(|k| k.group == s.group && k.version == s.version && k.plural == s.plural)
                    .cloned()
                    .or_else(|| hawser_api::kinds::find(&s.group, &s.version, &s.plural).cloned())
            };
            let cache = kind.is_stored().then(|| {
                caches
                    .entry(kind.storage.clone())
                    .or_insert_with(|| {
                        Arc::new(ResourceCache::new(stored.clone().unwrap_or_else(|| kind.clone())))
                    })
                    .clone()
            });
            if let Some(cache) = &cache
                && !table.caches.iter().any(|c| Arc::ptr_eq(c, cache))
            {
                table.caches.push(cache.clone());
                table.by_prefix.insert(cache.prefix().to_owned(), cache.clone());
            }
            let row =
                Arc::new(Row { head: Head::new(kind), kind: kind.clone(), stored, cache, schema: None });
            table.by_path.insert(path_key(&kind.group, &kind.version, &kind.plural), row.clone());
            table.by_kind.insert((kind.api_version(), kind.kind.clone()), row.clone());
            let resource = GroupResource::new(&*kind.group, &*kind.plural);
            let better = row.is_stored_version() || !table.by_group_resource.contains_key(&resource);
            if better {
                table.by_group_resource.insert(resource, row.clone());
            }
            table.rows.push(row);
        }
        table
    }
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

    /// Serves these rows from now on; caches of resources that stay are kept.
    pub fn replace(&self, kinds: &[Arc<Kind>]) {
        self.table.rcu(|old| Table::build(kinds, old));
    }
}
