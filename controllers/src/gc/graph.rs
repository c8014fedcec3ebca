//! The graph of owner references. PURE.
//!
//! A *virtual* node stands for an owner that some object names and that nobody has seen: it is there so
//! that its dependents are found when it turns out not to exist.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::discovery::ApiResource;

use super::{FOREGROUND, ORPHAN};
use crate::cache::Pool;
use crate::discovery::Resource;
use crate::object::{Metadata, has_finalizer};

/// An object's uid.
pub type Uid = Arc<str>;

/// Owners: those of one owner's dependents are held once.
pub type Owners = Arc<Vec<OwnerReference>>;

/// What a change makes due.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Work {
    /// See whether the object must go.
    Delete(Uid),
    /// Release the object's dependents.
    Orphan(Uid),
}

/// An object of the graph.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its resource.
    pub resource: Arc<Resource>,
    /// Its namespace, empty for cluster scope.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Box<str>,
    uid: Uid,
    /// Its owners.
    pub owners: Owners,
    /// The objects that name it as owner.
    pub dependents: BTreeSet<Uid>,
    /// Its deletion has begun.
    pub deleting: bool,
    /// Its deletion waits for its dependents'.
    pub deleting_dependents: bool,
    orphaning: bool,
    /// Only named by others so far.
    pub is_virtual: bool,
}

impl Node {
    /// A reference that would name this object as owner.
    pub fn as_owner(&self) -> OwnerReference {
        OwnerReference {
            api_version: self.resource.api.api_version.clone(),
            kind: self.resource.api.kind.clone(),
            name: self.name.to_string(),
            uid: self.uid.to_string(),
            ..OwnerReference::default()
        }
    }
}

/// See the module's documentation.
#[derive(Default)]
pub struct Graph {
    nodes: HashMap<Uid, Node>,
    /// Resources by group and kind, to place virtual nodes.
    kinds: HashMap<(String, String), Arc<Resource>>,
    /// Objects that wait for a kind of owner to become known.
    strays: HashMap<(String, String), BTreeSet<Uid>>,
    owners: Pool<Vec<OwnerReference>>,
    namespaces: Pool<str>,
}

impl Graph {
    /// Makes a kind known. Owners of that kind that nobody has seen become virtual nodes.
    pub fn learn(&mut self, resource: &Arc<Resource>) -> Vec<Work> {
        let kind = (resource.api.group.clone(), resource.api.kind.clone());
        self.kinds.insert(kind.clone(), resource.clone());
        let mut work = Vec::new();
        for uid in self.strays.remove(&kind).unwrap_or_default() {
            let Some(node) = self.nodes.get(&uid) else { continue };
            let (owners, namespace) = (node.owners.clone(), node.namespace.clone());
            self.link(&uid, &namespace, &owners, &mut work);
        }
        work
    }

    /// A copy of the object's node.
    pub fn get(&self, uid: &str) -> Option<Node> {
        self.nodes.get(uid).cloned()
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether the object was seen under exactly this name and is not being deleted.
    pub fn stands(&self, uid: &str, resource: &ApiResource, namespace: &str, name: &str) -> bool {
        self.nodes.get(uid).is_some_and(|n| {
            !n.is_virtual
                && !n.deleting
                && n.resource.api.group == resource.group
                && n.resource.api.kind == resource.kind
                && *n.namespace == *namespace
                && *n.name == *name
        })
    }

    /// Takes an object's state in.
    pub fn upsert(&mut self, resource: &Arc<Resource>, meta: &dyn Metadata) -> Vec<Work> {
        let uid = meta.uid();
        if uid.is_empty() {
            return Vec::new();
        }
        let uid: Uid = match self.nodes.get(uid) {
            Some(node) => node.uid.clone(),
            None => Uid::from(uid),
        };
        let mut work = Vec::new();
        let owners = self.owners.share(meta.owner_references().to_vec());
        let deleting = meta.deletion_timestamp().is_some();
        let foreground = deleting && has_finalizer(meta, FOREGROUND);
        let orphaning = deleting && has_finalizer(meta, ORPHAN);
        let namespace = self.namespaces.share(meta.namespace());
        let node = self.nodes.entry(uid.clone()).or_insert_with(|| Node {
            resource: resource.clone(),
            namespace: namespace.clone(),
            name: Box::default(),
            uid: uid.clone(),
            owners: Owners::default(),
            dependents: BTreeSet::new(),
            deleting: false,
            deleting_dependents: false,
            orphaning: false,
            is_virtual: true,
        });
        let name = meta.name();
        // A reference may have named it wrongly: who relied on that must be looked at again.
        let misnamed = node.is_virtual
            && !node.name.is_empty()
            && (*node.name != *name || node.namespace != namespace || node.resource.api != resource.api);
        let first = node.is_virtual;
        node.resource = resource.clone();
        node.namespace = namespace.clone();
        node.name = name.into();
        node.is_virtual = false;
        let before = std::mem::replace(&mut node.owners, owners.clone());
        let starts_foreground = foreground && !node.deleting_dependents;
        let starts_orphaning = orphaning && !node.orphaning;
        node.deleting = deleting;
        node.deleting_dependents = foreground;
        node.orphaning = orphaning;
        // There may be very many: they are looked at only when there is something to tell them.
        let dependents =
            if starts_foreground || misnamed { node.dependents.clone() } else { BTreeSet::new() };

        self.unlink(&uid, &before, &owners, &mut work);
        if *before != *owners {
            self.link(&uid, &namespace, &owners, &mut work);
        }
        if starts_orphaning {
            work.push(Work::Orphan(uid.clone()));
        }
        if starts_foreground {
            work.extend(dependents.iter().cloned().map(Work::Delete));
            work.push(Work::Delete(uid.clone()));
        }
        if misnamed {
            work.extend(dependents.into_iter().map(Work::Delete));
        }
        // What is seen for the first time may have lost its owners before we began to look.
        if first && !owners.is_empty() {
            work.push(Work::Delete(uid));
        }
        work
    }

    /// Takes an object out.
    pub fn remove(&mut self, uid: &str) -> Vec<Work> {
        let mut work = Vec::new();
        let Some(node) = self.nodes.remove(uid) else { return work };
        self.unlink(&node.uid, &node.owners, &[], &mut work);
        work.extend(node.dependents.into_iter().map(Work::Delete));
        work
    }

    /// The dependents that keep the object from going (`blockOwnerDeletion`), and those of them that must
    /// be looked at.
    pub fn blocking(&self, uid: &str) -> (usize, Vec<Work>) {
        let Some(node) = self.nodes.get(uid) else { return (0, Vec::new()) };
        let mut count = 0;
        let mut work = Vec::new();
        for dependent in node.dependents.iter().filter_map(|d| self.nodes.get(d)) {
            let blocks =
                dependent.owners.iter().any(|o| o.uid == *uid && o.block_owner_deletion == Some(true));
            if blocks {
                count += 1;
                if !dependent.deleting_dependents {
                    work.push(Work::Delete(dependent.uid.clone()));
                }
            }
        }
        (count, work)
    }

    /// How many dependents the object has, and whether one of them waits for its own dependents: then
    /// the two may wait for each other.
    pub fn dependents_of(&self, uid: &str) -> (usize, bool) {
        let Some(node) = self.nodes.get(uid) else { return (0, false) };
        let waits = |d: &Uid| self.nodes.get(d).is_some_and(|n| n.deleting_dependents);
        (node.dependents.len(), node.dependents.iter().any(waits))
    }

    /// Enters the object among its owners' dependents.
    fn link(&mut self, uid: &Uid, namespace: &str, owners: &[OwnerReference], work: &mut Vec<Work>) {
        for owner in owners {
            if let Some(node) = self.nodes.get_mut(owner.uid.as_str()) {
                node.dependents.insert(uid.clone());
                // An owner that waits for its dependents has a new one.
                if node.deleting_dependents {
                    work.push(Work::Delete(uid.clone()));
                }
                continue;
            }
            let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
            let kind = (group.to_owned(), owner.kind.clone());
            let Some(resource) = self.kinds.get(&kind).cloned() else {
                self.strays.entry(kind).or_default().insert(uid.clone());
                continue;
            };
            let owner_uid = Uid::from(owner.uid.as_str());
            let home = if resource.namespaced { namespace } else { "" };
            self.nodes.insert(
                owner_uid.clone(),
                Node {
                    resource,
                    namespace: self.namespaces.share(home),
                    name: owner.name.as_str().into(),
                    uid: owner_uid.clone(),
                    owners: Owners::default(),
                    dependents: BTreeSet::from([uid.clone()]),
                    deleting: false,
                    deleting_dependents: false,
                    orphaning: false,
                    is_virtual: true,
                },
            );
            work.push(Work::Delete(owner_uid));
        }
    }

    /// Removes the object from the dependents of owners that it no longer has, and wakes owners that it
    /// no longer blocks.
    fn unlink(&mut self, uid: &Uid, before: &[OwnerReference], now: &[OwnerReference], work: &mut Vec<Work>) {
        for old in before {
            let kept = now.iter().find(|o| o.uid == old.uid);
            let unblocks = kept.is_none_or(|o| {
                old.block_owner_deletion == Some(true) && o.block_owner_deletion != Some(true)
            });
            let Some(owner) = self.nodes.get_mut(old.uid.as_str()) else { continue };
            if unblocks && owner.deleting_dependents {
                work.push(Work::Delete(owner.uid.clone()));
            }
            if kept.is_none() {
                owner.dependents.remove(uid);
                // A virtual owner that nobody names any more is nothing.
                if owner.is_virtual && owner.dependents.is_empty() {
                    self.nodes.remove(old.uid.as_str());
                }
            }
        }
    }
}
