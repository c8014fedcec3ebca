//! Follows nodes and the pods on them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use super::order::Order;
use super::{NodeInfo, Snapshot};
use crate::objects::Objects;
use crate::pod::{PodInfo, PodKey};

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
        self.snapshot.order.tidy();
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
            self.snapshot.await_on(slot);
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
        snapshot.await_on(slot);
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
        snapshot.await_on(slot);
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
