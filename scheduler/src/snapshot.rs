//! The cluster as the scheduler sees it: nodes with the pods on them, and what plugins ask of other objects.
//!
//! [`Cache`] follows events; its [`Snapshot`] is what a cycle looks at. Both are one: a cycle runs between two events, so
//! nothing is copied. Every change of a node is noted in a short log, so that what was computed over all nodes can be
//! brought up to date by looking at those alone that changed since ([`Snapshot::changed_since`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use hawser_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Node, Taint};

use crate::objects::Objects;
use crate::pod::{HostPort, PodInfo, PodKey};
use crate::resources::Resources;
use crate::selector::Labels;

/// A node's place. It stays the same while the node is there, and is given to another one afterwards.
pub type Slot = usize;

/// So many changes are remembered; who is behind further computes anew.
const LOG: usize = 8192;

/// A node and what its pods take of it.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    pub slot: Slot,
    pub name: Arc<str>,
    pub labels: Arc<Labels>,
    pub taints: Arc<Vec<Taint>>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    pub allowed_pods: i64,
    /// Sizes of the images that are there, in bytes, by name.
    pub images: Arc<BTreeMap<Arc<str>, i64>>,
    /// `status.declaredFeatures`.
    pub features: Arc<Vec<String>>,
    /// Sum over the pods here.
    pub requested: Resources,
    /// CPU (thousandths) and memory, with stand-ins where a container asks for nothing.
    pub counted: (i64, i64),
    pub used_ports: BTreeMap<HostPort, u32>,
    /// When it, or a pod on it, changed last.
    pub changed: u64,
    /// The pods here.
    residents: Vec<Arc<PodInfo>>,
    /// How many of them have affinity to pods, or anti-affinity, and how many require the latter.
    with_affinity: (u32, u32),
}

impl NodeInfo {
    /// The node without pods.
    pub fn new(node: &Node) -> Self {
        let mut info = NodeInfo::default();
        info.update(node);
        info
    }

    fn update(&mut self, node: &Node) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        if *self.name != *name {
            self.name = name.into();
        }
        self.labels = Arc::new(node.metadata.labels.clone().unwrap_or_default());
        let spec = node.spec.clone().unwrap_or_default();
        self.taints = Arc::new(spec.taints.unwrap_or_default());
        self.unschedulable = spec.unschedulable.unwrap_or(false);
        let status = node.status.as_ref();
        let allocatable = status.and_then(|s| s.allocatable.as_ref());
        self.allocatable = allocatable.map(Resources::from_list).unwrap_or_default();
        self.allowed_pods = allocatable
            .and_then(|list| list.get("pods"))
            .and_then(|q| q.0.parse::<Quantity>().ok())
            .map_or(0, |q| q.value());
        self.features = Arc::new(status.and_then(|s| s.declared_features.clone()).unwrap_or_default());
        let images = status.and_then(|s| s.images.as_ref());
        let named = images.into_iter().flatten().flat_map(|image| {
            let size = image.size_bytes.unwrap_or(0);
            image.names.iter().flatten().map(move |name| (Arc::from(name.as_str()), size))
        });
        let named: BTreeMap<Arc<str>, i64> = named.collect();
        if *self.images != named {
            self.images = Arc::new(named);
        }
    }

    /// Whether anything that decides a placement differs; status heartbeats do not.
    fn differs(&self, other: &NodeInfo) -> bool {
        self.labels != other.labels
            || self.taints != other.taints
            || self.unschedulable != other.unschedulable
            || self.allocatable != other.allocatable
            || self.allowed_pods != other.allowed_pods
            || self.features != other.features
            || self.images != other.images
    }

    /// The pods here, in no order.
    pub fn residents(&self) -> &[Arc<PodInfo>] {
        &self.residents
    }

    /// The pods here that have affinity to pods, or anti-affinity.
    pub fn with_affinity(&self) -> impl Iterator<Item = &Arc<PodInfo>> {
        let any = self.with_affinity.0 > 0;
        self.residents.iter().filter(move |pod| any && pod.has_pod_affinity())
    }

    /// Counts a pod.
    pub(crate) fn add_pod(&mut self, pod: &Arc<PodInfo>) {
        let amounts = pod.amounts();
        self.requested.add(&amounts.requests);
        self.counted.0 = self.counted.0.saturating_add(amounts.counted.0);
        self.counted.1 = self.counted.1.saturating_add(amounts.counted.1);
        self.with_affinity.0 += u32::from(pod.has_pod_affinity());
        self.with_affinity.1 += u32::from(!pod.anti_affinity.required.is_empty());
        for port in &pod.host_ports {
            *self.used_ports.entry(port.clone()).or_default() += 1;
        }
        self.residents.push(pod.clone());
    }

    /// Counts a pod no longer. It must have been counted.
    pub(crate) fn remove_pod(&mut self, pod: &PodInfo) {
        let amounts = pod.amounts();
        self.requested.subtract(&amounts.requests);
        self.counted.0 -= amounts.counted.0;
        self.counted.1 -= amounts.counted.1;
        self.with_affinity.0 -= u32::from(pod.has_pod_affinity());
        self.with_affinity.1 -= u32::from(!pod.anti_affinity.required.is_empty());
        if let Some(at) = self.residents.iter().position(|other| other.key.uid == pod.key.uid) {
            self.residents.swap_remove(at);
        }
        for port in &pod.host_ports {
            if let Some(count) = self.used_ports.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    self.used_ports.remove(port);
                }
            }
        }
    }
}

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

/// Nodes zone by zone in turn, so that a part of them is spread over all zones.
#[derive(Clone, Debug, Default)]
struct Order {
    zones: BTreeMap<String, Vec<Slot>>,
    turns: Vec<Slot>,
}

impl Order {
    /// The zone that a node is in, from the labels of region and zone.
    fn zone(labels: &Labels) -> String {
        let first =
            |new: &str, old: &str| labels.get(old).or_else(|| labels.get(new)).cloned().unwrap_or_default();
        let region = first("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region");
        let zone = first("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone");
        format!("{region}:\0:{zone}")
    }

    fn add(&mut self, zone: String, slot: Slot) {
        self.zones.entry(zone).or_default().push(slot);
        self.turns.clear();
    }

    fn remove(&mut self, zone: &str, slot: Slot) {
        if let Some(slots) = self.zones.get_mut(zone) {
            slots.retain(|other| *other != slot);
            if slots.is_empty() {
                self.zones.remove(zone);
            }
        }
        self.turns.clear();
    }

    fn fill(&mut self) {
        let longest = self.zones.values().map(Vec::len).max().unwrap_or(0);
        self.turns =
            (0..longest).flat_map(|at| self.zones.values().filter_map(move |z| z.get(at).copied())).collect();
    }
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
        &self.order.turns
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

    /// Whether room is being made for any pod.
    pub fn has_nominated(&self) -> bool {
        !self.nominated.is_empty()
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

/// What changed, for the queue to wake pods with.
pub enum NodeChange {
    Added,
    Changed { before: Box<NodeInfo> },
}

/// Follows nodes and placed pods.
#[derive(Default)]
pub struct Cache {
    snapshot: Snapshot,
    /// For which pods room is being made where.
    nominated_on: HashMap<Arc<str>, Arc<str>>,
    /// Every pod that counts on a node, by uid.
    placed: HashMap<Arc<str>, Placed>,
    /// Uids of pods whose node is not known (yet), so that a node that appears late is filled at once.
    by_unknown_node: HashMap<Arc<str>, Vec<Arc<str>>>,
}

struct Placed {
    pod: Arc<PodInfo>,
    node: Arc<str>,
    /// Chosen here but not yet seen as bound.
    assumed: bool,
}

impl Cache {
    /// The nodes as they are now, ready for a cycle.
    pub fn snapshot(&mut self) -> &Snapshot {
        if self.snapshot.order.turns.len() != self.snapshot.index.len() {
            self.snapshot.order.fill();
        }
        &self.snapshot
    }

    /// The same, to look something up.
    pub fn view(&self) -> &Snapshot {
        &self.snapshot
    }

    /// What is known of other objects.
    pub fn objects(&mut self) -> &mut Objects {
        &mut self.snapshot.objects
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.snapshot.node(name)
    }

    /// Does something about a node that changes what is known of other objects.
    pub fn with_node<T: Default, E>(
        &mut self,
        name: &str,
        work: impl FnOnce(&NodeInfo, &mut Objects) -> Result<T, E>,
    ) -> Result<T, E> {
        let Snapshot { slots, index, objects, .. } = &mut self.snapshot;
        let node = index.get(name).and_then(|slot| slots[*slot].as_ref());
        node.map_or_else(|| Ok(T::default()), |node| work(node, objects))
    }

    /// Keeps the room on a node for a pod that waits for others to leave it.
    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.denominate(&pod.key.uid);
        let node: Arc<str> = node.into();
        self.nominated_on.insert(pod.key.uid.clone(), node.clone());
        self.snapshot.nominated.entry(node.clone()).or_default().push(pod);
        self.touch(&node);
    }

    /// Keeps no room for the pod any more.
    pub fn denominate(&mut self, uid: &str) {
        let Some(node) = self.nominated_on.remove(uid) else { return };
        if let Some(pods) = self.snapshot.nominated.get_mut(&node) {
            pods.retain(|pod| *pod.key.uid != *uid);
            if pods.is_empty() {
                self.snapshot.nominated.remove(&node);
            }
        }
        self.touch(&node);
    }

    /// Where room is being made for a pod.
    pub fn nominated_node(&self, uid: &str) -> Option<&Arc<str>> {
        self.nominated_on.get(uid)
    }

    /// The pods of lower priority for which room is being made on a node.
    pub fn nominated_below(&self, node: &str, priority: i32) -> Vec<Arc<PodInfo>> {
        let list = self.snapshot.nominated.get(node).into_iter().flatten();
        list.filter(|pod| pod.priority < priority).cloned().collect()
    }

    fn touch(&mut self, node: &str) {
        if let Some(slot) = self.snapshot.index.get(node).copied() {
            self.snapshot.note(slot);
        }
    }

    /// A node was added or changed.
    pub fn set_node(&mut self, node: &Node) -> Option<NodeChange> {
        let name = node.metadata.name.as_deref()?;
        let snapshot = &mut self.snapshot;
        if let Some(slot) = snapshot.index.get(name).copied() {
            let info = snapshot.slots[slot].as_mut()?;
            let mut next = NodeInfo::new(node);
            if !info.differs(&next) {
                return None;
            }
            std::mem::swap(&mut info.residents, &mut next.residents);
            let before = std::mem::replace(info, next);
            let info = snapshot.slots[slot].as_mut()?;
            info.slot = slot;
            info.name = before.name.clone();
            info.requested = before.requested.clone();
            info.counted = before.counted;
            info.used_ports = before.used_ports.clone();
            info.with_affinity = before.with_affinity;
            let (old, new) = (Order::zone(&before.labels), Order::zone(&info.labels));
            let images = info.images.clone();
            if old != new {
                snapshot.order.remove(&old, slot);
                snapshot.order.add(new, slot);
            }
            snapshot.count_images(&before.images, &images);
            snapshot.node_changes += 1;
            snapshot.note(slot);
            return Some(NodeChange::Changed { before: Box::new(before) });
        }
        let mut info = NodeInfo::new(node);
        for uid in self.by_unknown_node.remove(name).unwrap_or_default() {
            if let Some(placed) = self.placed.get(&uid) {
                info.add_pod(&placed.pod);
            }
        }
        let slot = snapshot.free.pop().unwrap_or(snapshot.slots.len());
        info.slot = slot;
        snapshot.index.insert(info.name.clone(), slot);
        snapshot.order.add(Order::zone(&info.labels), slot);
        snapshot.count_images(&BTreeMap::new(), &info.images.clone());
        if slot == snapshot.slots.len() {
            snapshot.slots.push(Some(info));
        } else {
            snapshot.slots[slot] = Some(info);
        }
        snapshot.node_changes += 1;
        snapshot.note(slot);
        Some(NodeChange::Added)
    }

    /// A node is gone. Its pods are kept account of until they go too. Answers what it was.
    pub fn remove_node(&mut self, name: &str) -> Option<NodeInfo> {
        let snapshot = &mut self.snapshot;
        let slot = snapshot.index.remove(name)?;
        let gone = snapshot.slots[slot].take()?;
        snapshot.free.push(slot);
        snapshot.order.remove(&Order::zone(&gone.labels), slot);
        snapshot.count_images(&gone.images, &BTreeMap::new());
        snapshot.node_changes += 1;
        snapshot.note(slot);
        let orphans: Vec<Arc<str>> = gone.residents.iter().map(|pod| pod.key.uid.clone()).collect();
        if !orphans.is_empty() {
            self.by_unknown_node.insert(name.into(), orphans);
        }
        Some(gone)
    }

    /// Names of all nodes.
    pub fn node_names(&self) -> impl Iterator<Item = &str> {
        self.snapshot.index.keys().map(AsRef::as_ref)
    }

    /// Counts a pod on the node that was chosen for it, before the API server has confirmed it.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.place(pod, node.into(), true);
    }

    /// Takes back an assumption. A pod that has been seen as bound meanwhile stays.
    pub fn forget(&mut self, key: &PodKey) {
        if self.placed.get(&key.uid).is_some_and(|placed| placed.assumed) {
            self.remove_pod(&key.uid);
        }
    }

    /// Whether a choice for this pod is being carried out.
    pub fn is_assumed(&self, key: &PodKey) -> bool {
        self.placed.get(&key.uid).is_some_and(|placed| placed.assumed)
    }

    /// A placed pod by uid.
    pub fn placed(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.placed.get(uid).map(|placed| &placed.pod)
    }

    /// A pod with a node was seen. Answers what it was, if it counted as bound before.
    pub fn set_pod(&mut self, pod: Arc<PodInfo>) -> Option<Arc<PodInfo>> {
        let node = pod.node_name.clone()?;
        if pod.finished {
            return self.remove_pod(&pod.key.uid);
        }
        if let Some(placed) = self.placed.get_mut(&pod.key.uid)
            && placed.node == node
            && Arc::ptr_eq(&placed.pod.class, &pod.class)
            && placed.pod.resized == pod.resized
            && placed.pod.deleting == pod.deleting
            && placed.pod.started == pod.started
        {
            // Nothing that counts has changed, as when a binding is confirmed.
            placed.assumed = false;
            return Some(placed.pod.clone());
        }
        let before = self.placed.get(&pod.key.uid).map(|placed| placed.pod.clone());
        self.place(pod, node, false);
        before
    }

    /// A pod is gone. Answers what it was, if it counted on a node.
    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let placed = self.placed.remove(uid)?;
        self.snapshot.count_pod(&placed.pod, false);
        if let Some(slot) = self.snapshot.index.get(&placed.node).copied() {
            if let Some(Some(node)) = self.snapshot.slots.get_mut(slot) {
                node.remove_pod(&placed.pod);
            }
            self.snapshot.note(slot);
        } else if let Some(waiting) = self.by_unknown_node.get_mut(&placed.node) {
            waiting.retain(|other| **other != *uid);
            if waiting.is_empty() {
                self.by_unknown_node.remove(&placed.node);
            }
        }
        Some(placed.pod)
    }

    /// The uids of all pods seen as bound, for pruning after a new list.
    pub fn bound_pods(&self) -> impl Iterator<Item = &Arc<str>> {
        self.placed.iter().filter(|(_, placed)| !placed.assumed).map(|(uid, _)| uid)
    }

    fn place(&mut self, pod: Arc<PodInfo>, node: Arc<str>, assumed: bool) {
        let uid = pod.key.uid.clone();
        self.remove_pod(&uid);
        self.denominate(&uid);
        self.snapshot.count_pod(&pod, true);
        match self.snapshot.index.get(&node).copied() {
            Some(slot) => {
                if let Some(Some(info)) = self.snapshot.slots.get_mut(slot) {
                    info.add_pod(&pod);
                }
                self.snapshot.note(slot);
            }
            None => self.by_unknown_node.entry(node.clone()).or_default().push(uid.clone()),
        }
        self.placed.insert(uid, Placed { pod, node, assumed });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::tests::{node, pod};
    use proptest::prelude::*;
    use serde_json::json;

    #[derive(Clone, Debug)]
    enum Step {
        SetNode(u8),
        RemoveNode(u8),
        Bind(u8, u8),
        Assume(u8, u8),
        Forget(u8),
        RemovePod(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3u8).prop_map(Step::SetNode),
            (0..3u8).prop_map(Step::RemoveNode),
            (0..6u8, 0..3u8).prop_map(|(p, n)| Step::Bind(p, n)),
            (0..6u8, 0..3u8).prop_map(|(p, n)| Step::Assume(p, n)),
            (0..6u8).prop_map(Step::Forget),
            (0..6u8).prop_map(Step::RemovePod),
        ]
    }

    fn asking(name: u8, on: Option<u8>) -> Arc<PodInfo> {
        let mut spec = json!({"containers": [{"name": "c",
            "ports": [{"containerPort": 1, "hostPort": 1000 + u32::from(name)}],
            "resources": {"requests": {"cpu": format!("{}m", u32::from(name) + 1)}}}]});
        if let Some(on) = on {
            spec["nodeName"] = format!("n{on}").into();
        }
        Arc::new(pod(&format!("p{name}"), spec))
    }

    proptest! {
        /// The sums on every node are those of the pods placed there, whatever came in whatever order.
        #[test]
        fn sums_follow_the_pods(steps in proptest::collection::vec(step(), 1..60)) {
            let mut cache = Cache::default();
            let mut nodes: std::collections::BTreeSet<u8> = [].into();
            let mut placed: BTreeMap<u8, (u8, bool)> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::SetNode(n) => { cache.set_node(&node(&format!("n{n}"), json!({}))); nodes.insert(n); }
                    Step::RemoveNode(n) => { cache.remove_node(&format!("n{n}")); nodes.remove(&n); }
                    Step::Bind(p, n) => { cache.set_pod(asking(p, Some(n))); placed.insert(p, (n, false)); }
                    Step::Assume(p, n) => { cache.assume(asking(p, None), &format!("n{n}")); placed.insert(p, (n, true)); }
                    Step::Forget(p) => {
                        cache.forget(&asking(p, None).key);
                        if placed.get(&p).is_some_and(|(_, assumed)| *assumed) { placed.remove(&p); }
                    }
                    Step::RemovePod(p) => { cache.remove_pod(&format!("uid-p{p}")); placed.remove(&p); }
                }
            }
            prop_assert_eq!(cache.snapshot().nodes().count(), nodes.len());
            for n in nodes {
                let info = cache.node(&format!("n{n}")).unwrap();
                let here: Vec<u8> = placed.iter().filter(|(_, (on, _))| *on == n).map(|(p, _)| *p).collect();
                prop_assert_eq!(info.residents().len(), here.len());
                prop_assert_eq!(info.requested.milli_cpu, here.iter().map(|p| i64::from(*p) + 1).sum::<i64>());
                prop_assert_eq!(info.used_ports.len(), here.len());
            }
        }
    }
}
