//! Garbage collector: deletes what its owners left behind, in the manner that the owner's deletion asked
//! for: background, foreground or orphan.
//!
//! A graph of all objects and their owner references is kept from metadata alone. Whatever cannot be
//! undone rests on a live look at the object and at its owners.

mod graph;
mod monitor;
mod reconcile;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::DynamicObject;
use kube::{Api, Client};
use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;

pub use graph::{Graph, Uid, Work};
pub use reconcile::{Live, OwnerState, View, reconcile};

use crate::cache::Caches;
use crate::discovery::Resource;
use crate::object::{Key, Metadata};
use crate::plan::{Plan, Target};
use crate::runner::{Controller, Failure, Queue, ViewError};

/// The finalizer of an object whose dependents go first.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an object whose dependents stay.
pub const ORPHAN: &str = "orphan";

/// How many owners are remembered as absent.
const ABSENT: usize = 512;

/// Owners known not to exist: by what a reference says, and where.
#[derive(Default)]
struct AbsentOwners {
    known: HashSet<(String, String, String, String)>,
    order: VecDeque<(String, String, String, String)>,
}

impl AbsentOwners {
    fn key(namespace: &str, owner: &OwnerReference) -> (String, String, String, String) {
        let kind = format!("{}/{}", owner.api_version, owner.kind);
        (kind, namespace.to_owned(), owner.name.clone(), owner.uid.clone())
    }

    fn add(&mut self, namespace: &str, owner: &OwnerReference) {
        let key = Self::key(namespace, owner);
        if self.known.insert(key.clone()) {
            self.order.push_back(key);
        }
        while self.order.len() > ABSENT {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }
}

/// The controller. Keys are `delete/UID` and `orphan/UID`.
pub struct GarbageCollector {
    caches: Arc<Caches>,
    /// Reads live objects with the collector's own identity.
    client: Client,
    /// Watches metadata.
    watcher: Client,
    graph: Mutex<Graph>,
    absent: Mutex<AbsentOwners>,
    /// Resources by group and kind.
    kinds: RwLock<HashMap<(String, String), Arc<Resource>>>,
    queue: OnceLock<Arc<Queue>>,
    monitors: monitor::Monitors,
}

impl GarbageCollector {
    /// A collector that reads with `client` and watches metadata with `watcher`. What the caches hold
    /// in full is taken from there.
    pub fn new(caches: &Arc<Caches>, client: &Client, watcher: &Client) -> Self {
        Self {
            caches: caches.clone(),
            client: client.clone(),
            watcher: watcher.clone(),
            graph: Mutex::default(),
            absent: Mutex::default(),
            kinds: RwLock::default(),
            queue: OnceLock::new(),
            monitors: monitor::Monitors::default(),
        }
    }

    /// Takes an object's metadata into the graph.
    fn observe(&self, resource: &Arc<Resource>, meta: &dyn Metadata) {
        let work = self.graph.lock().upsert(resource, meta);
        self.enqueue(work);
    }

    /// Takes an object out of the graph.
    fn forget(&self, uid: &str) {
        let work = self.graph.lock().remove(uid);
        self.enqueue(work);
    }

    fn enqueue(&self, work: Vec<Work>) {
        let Some(queue) = self.queue.get() else { return };
        for item in work {
            queue.add(match item {
                Work::Delete(uid) => Key::new("delete", uid.as_ref()),
                Work::Orphan(uid) => Key::new("orphan", uid.as_ref()),
            });
        }
    }

    fn resource_of(&self, owner: &OwnerReference) -> Option<Arc<Resource>> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        self.kinds.read().get(&(group.to_owned(), owner.kind.clone())).cloned()
    }

    /// The object as it is now; `None` when there is none, or another one, of this name.
    async fn live(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Result<Option<Live>, kube::Error> {
        let api: Api<DynamicObject> = if resource.namespaced && !namespace.is_empty() {
            Api::namespaced_with(self.client.clone(), namespace, &resource.api)
        } else {
            Api::all_with(self.client.clone(), &resource.api)
        };
        let found = api.get_metadata_opt(name).await?;
        Ok(found.filter(|o| o.metadata.uid.as_deref() == Some(uid)).map(|o| Live {
            target: Target {
                resource: resource.api.clone(),
                namespace: o.metadata.namespace.clone().unwrap_or_default(),
                name: name.to_owned(),
            },
            meta: o.metadata,
        }))
    }

    /// What has become of an owner that an object in `namespace` names.
    async fn owner_state(&self, namespace: &str, owner: &OwnerReference) -> Result<OwnerState, ViewError> {
        let Some(resource) = self.resource_of(owner) else {
            return Err(ViewError::NotReady(format!("kind {} {} is unknown", owner.api_version, owner.kind)));
        };
        if resource.namespaced && namespace.is_empty() {
            return Ok(OwnerState::Unresolvable);
        }
        let home = if resource.namespaced { namespace } else { "" };
        if self.absent.lock().known.contains(&AbsentOwners::key(home, owner)) {
            return Ok(OwnerState::Absent);
        }
        if self.graph.lock().stands(&owner.uid, &resource.api, home, &owner.name) {
            return Ok(OwnerState::Solid);
        }
        Ok(match self.live(&resource, home, &owner.name, &owner.uid).await? {
            None => {
                self.absent.lock().add(home, owner);
                OwnerState::Absent
            }
            Some(live) if live.is_deleting_dependents() => OwnerState::WaitsForDependents,
            Some(_) => OwnerState::Solid,
        })
    }

    async fn view_delete(&self, uid: &str) -> Result<Option<View>, ViewError> {
        let Some(item) = self.graph.lock().get(uid) else { return Ok(None) };
        if item.deleting && !item.deleting_dependents {
            return Ok(None);
        }
        let mut owners = Vec::new();
        if !item.is_virtual && !item.deleting_dependents {
            // If every owner stands there is nothing to do, and nothing to ask the server.
            for owner in item.owners.iter() {
                owners.push((owner.clone(), self.owner_state(&item.namespace, owner).await?));
            }
            if owners.iter().all(|(_, state)| matches!(state, OwnerState::Solid)) {
                return Ok(None);
            }
        }
        let Some(live) = self.live(&item.resource, &item.namespace, &item.name, uid).await? else {
            // It went without our being told, or never was.
            if item.is_virtual {
                let owner = item.as_owner();
                self.absent.lock().add(&item.namespace, &owner);
            }
            self.forget(uid);
            return Ok(None);
        };
        if item.is_virtual {
            // It exists: the watch will show it.
            return Err(ViewError::NotReady(format!(
                "{} {} is not observed yet",
                item.resource.api.kind, item.name
            )));
        }
        if item.deleting_dependents {
            let (blocking, work) = self.graph.lock().blocking(uid);
            self.enqueue(work);
            return Ok(Some(View::Foreground { item: live, blocking }));
        }
        // The references may have changed since the graph saw them.
        let known: HashMap<String, OwnerState> =
            owners.into_iter().map(|(owner, state)| (owner.uid, state)).collect();
        let mut owners = Vec::new();
        for owner in live.meta.owner_references.iter().flatten() {
            let state = match known.get(&owner.uid) {
                Some(state) => *state,
                None => self.owner_state(&item.namespace, owner).await?,
            };
            owners.push((owner.clone(), state));
        }
        let (dependents, circle) = self.graph.lock().dependents_of(uid);
        Ok(Some(View::Delete { item: live, owners, dependents, circle }))
    }

    async fn view_orphan(&self, uid: &str) -> Result<Option<View>, ViewError> {
        let Some(item) = self.graph.lock().get(uid) else { return Ok(None) };
        let Some(owner) = self.live(&item.resource, &item.namespace, &item.name, uid).await? else {
            return Ok(None);
        };
        let mut dependents = Vec::new();
        for uid in item.dependents {
            let Some(node) = self.graph.lock().get(&uid) else { continue };
            if let Some(live) = self.live(&node.resource, &node.namespace, &node.name, &uid).await? {
                dependents.push(live);
            }
        }
        Ok(Some(View::Orphan { owner, dependents }))
    }
}

#[async_trait]
impl Controller for GarbageCollector {
    type View = View;

    fn name(&self) -> &'static str {
        "garbage-collector"
    }

    fn component(&self) -> &'static str {
        "garbage-collector-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        // Set once, here; a second wiring would be a mistake of the caller's and change nothing.
        let _ = self.queue.set(queue.clone());
    }

    async fn background(self: Arc<Self>, stop: CancellationToken) {
        monitor::run(self, stop).await;
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        if !self.monitors.are_synced() {
            return Err(ViewError::NotReady("the graph is not complete".to_owned()));
        }
        match key.namespace.as_str() {
            "orphan" => self.view_orphan(&key.name).await,
            _ => self.view_delete(&key.name).await,
        }
    }

    fn reconcile(&self, view: &View, now: jiff::Timestamp) -> Plan {
        reconcile(view, now)
    }

    fn workers(&self) -> usize {
        20
    }
}
