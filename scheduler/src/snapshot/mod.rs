//! The cluster as the scheduler sees it: nodes with the pods on them, and what plugins ask of other objects.
//!
//! [`Cache`] follows events; its [`Snapshot`] is what a cycle looks at. Both are one: a cycle runs between two events, so
//! nothing is copied. Every change of a node is noted in a short log, so that what was computed over all nodes can be
//! brought up to date by looking at those alone that changed since ([`Snapshot::changed_since`]).

mod cache;
mod node;
mod order;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

pub use cache::{Cache, NodeChange};
pub use node::NodeInfo;

use self::order::Order;
use crate::objects::Objects;
use crate::pod::PodInfo;

/// A node's place. It stays the same while the node is there, and is given to another one afterwards.
pub type Slot = usize;

/// So many changes are remembered; who is behind further computes anew.
const LOG: usize = 8192;

/// All nodes at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What is known of other objects.
    pub objects: Objects,
    slots: Vec<Option<NodeInfo>>,
    free: Vec<Slot>,
    index: HashMap<Arc<str>, Slot>,
    order: Order,
    /// Pods for which room is being made, by the node.
    nominated: HashMap<Arc<str>, Vec<Arc<PodInfo>>>,
    /// By slot: whether there are such pods for the node.
    awaits: Vec<bool>,
    /// Nodes that have an image, by its name.
    images: HashMap<Arc<str>, usize>,
    /// Pods on nodes that use a claim, by `namespace/name`.
    claim_users: HashMap<Box<str>, usize>,
    /// Nodes with pods that have affinity to pods or anti-affinity, and with pods that require the latter.
    with_affinity: BTreeSet<Slot>,
    with_anti_affinity: BTreeSet<Slot>,
    /// Pods on nodes, by priority.
    priorities: BTreeMap<i32, usize>,
    /// Changed nodes, the newest last, which has the number `changes`.
    log: VecDeque<Slot>,
    changes: u64,
    /// Counts changes of nodes themselves, not of their pods.
    node_changes: u64,
}

impl Snapshot {
    /// The nodes, in no order.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.slots.iter().flatten()
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The order in which nodes are looked at.
    pub fn order(&self) -> &[Slot] {
        self.order.turns()
    }

    /// One more than the highest slot.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.index.get(name).and_then(|at| self.at(*at))
    }

    /// The node in a slot.
    pub fn at(&self, slot: Slot) -> Option<&NodeInfo> {
        self.slots.get(slot).and_then(Option::as_ref)
    }

    /// Counts all changes of nodes and of the pods on them.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Counts changes of nodes themselves.
    pub fn node_changes(&self) -> u64 {
        self.node_changes
    }

    /// The slots that changed after the change of this number, some more than once; `None` if that is too long ago.
    pub fn changed_since(&self, change: u64) -> Option<impl Iterator<Item = Slot>> {
        let behind = usize::try_from(self.changes - change).ok().filter(|n| *n <= self.log.len())?;
        Some(self.log.iter().skip(self.log.len() - behind).copied())
    }

    /// How many nodes have an image.
    pub fn nodes_with_image(&self, image: &str) -> usize {
        self.images.get(image).copied().unwrap_or(0)
    }

    /// How many pods on nodes use a claim, `namespace/name`.
    pub fn users_of_claim(&self, claim: &str) -> usize {
        self.claim_users.get(claim).copied().unwrap_or(0)
    }

    /// Nodes with pods that have affinity to pods, or anti-affinity.
    pub fn nodes_with_affinity(&self) -> impl Iterator<Item = &NodeInfo> {
        self.with_affinity.iter().filter_map(|slot| self.at(*slot))
    }

    /// Nodes with pods that require anti-affinity.
    pub fn nodes_with_anti_affinity(&self) -> impl Iterator<Item = &NodeInfo> {
        self.with_anti_affinity.iter().filter_map(|slot| self.at(*slot))
    }

    /// Whether any pod on any node has a lower priority.
    pub fn has_lower_priority(&self, priority: i32) -> bool {
        self.priorities.first_key_value().is_some_and(|(lowest, _)| *lowest < priority)
    }

    /// The other pods of no lower priority for which room is being made on a node.
    pub fn nominated<'a>(&'a self, node: &str, pod: &'a PodInfo) -> impl Iterator<Item = &'a Arc<PodInfo>> {
        let list = if self.nominated.is_empty() { None } else { self.nominated.get(node) };
        let counts = |other: &&Arc<PodInfo>| other.priority >= pod.priority && other.key.uid != pod.key.uid;
        list.into_iter().flatten().filter(counts)
    }

    /// The pods for which room is being made on a node.
    pub fn all_nominated(&self, node: &str) -> &[Arc<PodInfo>] {
        self.nominated.get(node).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether room is being made for the pod with this uid on a node.
    pub fn is_nominated(&self, node: &str, uid: &str) -> bool {
        self.nominated.get(node).into_iter().flatten().any(|pod| *pod.key.uid == *uid)
    }

    /// Whether room is being made on a node for any pod.
    pub fn awaits(&self, slot: Slot) -> bool {
        self.awaits.get(slot).copied().unwrap_or(false)
    }

    /// Whether room is being made for any pod.
    pub fn has_nominated(&self) -> bool {
        !self.nominated.is_empty()
    }

    /// Finds out whether room is being made on a node.
    fn await_on(&mut self, slot: Slot) {
        let awaits = match self.at(slot) {
            Some(node) => self.nominated.contains_key(&node.name),
            None => false,
        };
        if self.awaits.len() <= slot {
            self.awaits.resize(slot + 1, false);
        }
        self.awaits[slot] = awaits;
    }

    fn note(&mut self, slot: Slot) {
        self.changes += 1;
        if self.log.len() == LOG {
            self.log.pop_front();
        }
        self.log.push_back(slot);
        let changes = self.changes;
        let Some(Some(node)) = self.slots.get_mut(slot) else {
            self.with_affinity.remove(&slot);
            self.with_anti_affinity.remove(&slot);
            return;
        };
        node.changed = changes;
        let (any, anti) = node.with_affinity;
        mark(&mut self.with_affinity, slot, any > 0);
        mark(&mut self.with_anti_affinity, slot, anti > 0);
    }

    fn count_images(&mut self, before: &BTreeMap<Arc<str>, i64>, after: &BTreeMap<Arc<str>, i64>) {
        for name in after.keys() {
            *self.images.entry(name.clone()).or_default() += 1;
        }
        for name in before.keys() {
            if let Some(count) = self.images.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    self.images.remove(name);
                }
            }
        }
    }

    fn count_pod(&mut self, pod: &PodInfo, there: bool) {
        step(&mut self.priorities, pod.priority, there);
        for (claim, _) in pod.claims() {
            step(&mut self.claim_users, format!("{}/{claim}", pod.key.namespace).into(), there);
        }
    }
}

fn mark(set: &mut BTreeSet<Slot>, slot: Slot, there: bool) {
    if there {
        set.insert(slot);
    } else if !set.is_empty() {
        set.remove(&slot);
    }
}

/// A map that counts.
trait Counts<K> {
    fn up(&mut self, key: K);
    fn down(&mut self, key: K);
}

impl<K: Ord> Counts<K> for BTreeMap<K, usize> {
    fn up(&mut self, key: K) {
        *self.entry(key).or_default() += 1;
    }

    fn down(&mut self, key: K) {
        if let std::collections::btree_map::Entry::Occupied(mut entry) = self.entry(key) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

impl<K: Eq + std::hash::Hash> Counts<K> for HashMap<K, usize> {
    fn up(&mut self, key: K) {
        *self.entry(key).or_default() += 1;
    }

    fn down(&mut self, key: K) {
        if let std::collections::hash_map::Entry::Occupied(mut entry) = self.entry(key) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

fn step<K>(counts: &mut impl Counts<K>, key: K, there: bool) {
    if there { counts.up(key) } else { counts.down(key) }
}
