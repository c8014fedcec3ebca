//! The cluster as the scheduler sees it: nodes with the pods on them.
//!
//! [`Cache`] follows events; its [`Snapshot`] is what a cycle looks at. Nodes are shared (`Arc`) and copied only
//! when they change, so taking a snapshot and applying one event cost the same however large the cluster is.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};

use crate::pod::{HostPort, PodInfo, PodKey};
use crate::resources::Resources;

/// A node and what its pods take of it.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    pub name: Box<str>,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    pub allowed_pods: i64,
    /// Sum over the pods here.
    pub requested: Resources,
    /// The same with stand-ins where a container asks for nothing.
    pub scoring_requested: Resources,
    pub used_ports: BTreeMap<HostPort, u32>,
    /// The pods here.
    residents: Vec<Arc<PodInfo>>,
}

impl NodeInfo {
    /// The node without pods.
    pub fn new(node: &Node) -> Self {
        let mut info = NodeInfo::default();
        info.update(node);
        info
    }

    fn update(&mut self, node: &Node) {
        self.name = node.metadata.name.as_deref().unwrap_or_default().into();
        self.labels = node.metadata.labels.clone().unwrap_or_default();
        let spec = node.spec.clone().unwrap_or_default();
        self.taints = spec.taints.unwrap_or_default();
        self.unschedulable = spec.unschedulable.unwrap_or(false);
        let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
        self.allocatable = allocatable.map(Resources::from_list).unwrap_or_default();
        self.allowed_pods = allocatable
            .and_then(|list| list.get("pods"))
            .and_then(|q| q.0.parse::<hawser_api::quantity::Quantity>().ok())
            .map_or(0, |q| q.value());
    }

    /// Whether anything that decides a placement differs; status heartbeats do not.
    fn differs(&self, other: &NodeInfo) -> bool {
        self.labels != other.labels
            || self.taints != other.taints
            || self.unschedulable != other.unschedulable
            || self.allocatable != other.allocatable
            || self.allowed_pods != other.allowed_pods
    }

    /// The pods here, in no order.
    pub fn residents(&self) -> &[Arc<PodInfo>] {
        &self.residents
    }

    /// Counts a pod.
    pub(crate) fn add_pod(&mut self, pod: &Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.scoring_requested.add(&pod.scoring_requests);
        self.residents.push(pod.clone());
        for port in &pod.host_ports {
            *self.used_ports.entry(port.clone()).or_default() += 1;
        }
    }

    /// Counts a pod no longer. It must have been counted.
    pub(crate) fn remove_pod(&mut self, pod: &PodInfo) {
        self.requested.subtract(&pod.requests);
        self.scoring_requested.subtract(&pod.scoring_requests);
        self.residents.retain(|other| other.key.uid != pod.key.uid);
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
    nodes: Vec<Arc<NodeInfo>>,
    /// Index into `nodes`.
    index: HashMap<Box<str>, usize>,
    /// Pods for which room is being made, by the node.
    nominated: HashMap<Box<str>, Vec<Arc<PodInfo>>>,
}

impl Snapshot {
    /// The nodes, in a fixed but arbitrary order.
    pub fn nodes(&self) -> &[Arc<NodeInfo>] {
        &self.nodes
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<&Arc<NodeInfo>> {
        self.index.get(name).map(|at| &self.nodes[*at])
    }

    /// The node as `pod` has to see it: with the other pods of no lower priority for which room is being made there.
    pub fn with_nominated<'a>(&self, node: &'a Arc<NodeInfo>, pod: &PodInfo) -> Cow<'a, NodeInfo> {
        let mut seen = Cow::Borrowed(&**node);
        for other in self.nominated.get(&node.name).into_iter().flatten() {
            if other.priority >= pod.priority && other.key.uid != pod.key.uid {
                seen.to_mut().add_pod(other);
            }
        }
        seen
    }
}

/// What changed, for the queue to wake pods with.
pub enum NodeChange {
    Added(Arc<NodeInfo>),
    Changed { before: Arc<NodeInfo>, after: Arc<NodeInfo> },
}

/// Follows nodes and placed pods.
#[derive(Default)]
pub struct Cache {
    snapshot: Snapshot,
    /// For which pods room is being made where.
    nominated_on: HashMap<Arc<str>, Box<str>>,
    /// Every pod that counts on a node, by uid.
    placed: HashMap<Arc<str>, Placed>,
    /// Pods whose node is not known (yet), so that a node that appears late is filled at once.
    by_unknown_node: HashMap<Box<str>, Vec<Arc<str>>>,
}

struct Placed {
    pod: Arc<PodInfo>,
    node: Box<str>,
    /// Chosen here but not yet seen as bound.
    assumed: bool,
}

impl Cache {
    /// The nodes as they are now.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<&Arc<NodeInfo>> {
        self.snapshot.node(name)
    }

    /// Keeps the room on a node for a pod that waits for others to leave it.
    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.denominate(&pod.key.uid);
        self.nominated_on.insert(pod.key.uid.clone(), node.into());
        self.snapshot.nominated.entry(node.into()).or_default().push(pod);
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
    }

    /// A node was added or changed.
    pub fn set_node(&mut self, node: &Node) -> Option<NodeChange> {
        let name = node.metadata.name.as_deref()?;
        if let Some(at) = self.snapshot.index.get(name) {
            let slot = &mut self.snapshot.nodes[*at];
            let mut next = NodeInfo::clone(slot);
            next.update(node);
            if !slot.differs(&next) {
                return None;
            }
            let after = Arc::new(next);
            let before = std::mem::replace(slot, after.clone());
            return Some(NodeChange::Changed { before, after });
        }
        let mut info = NodeInfo::new(node);
        for uid in self.by_unknown_node.remove(name).unwrap_or_default() {
            if let Some(placed) = self.placed.get(&uid) {
                info.add_pod(&placed.pod);
            }
        }
        let info = Arc::new(info);
        self.snapshot.index.insert(name.into(), self.snapshot.nodes.len());
        self.snapshot.nodes.push(info.clone());
        Some(NodeChange::Added(info))
    }

    /// A node is gone. Its pods are kept account of until they go too.
    pub fn remove_node(&mut self, name: &str) {
        let Some(at) = self.snapshot.index.remove(name) else { return };
        self.snapshot.nodes.swap_remove(at);
        if let Some(moved) = self.snapshot.nodes.get(at) {
            self.snapshot.index.insert(moved.name.clone(), at);
        }
        // Rare and bounded by the number of pods; needed when a node of that name comes back.
        let orphans: Vec<Arc<str>> =
            self.placed.iter().filter(|(_, p)| &*p.node == name).map(|(uid, _)| uid.clone()).collect();
        if !orphans.is_empty() {
            self.by_unknown_node.insert(name.into(), orphans);
        }
    }

    /// Names of all nodes.
    pub fn node_names(&self) -> impl Iterator<Item = &str> {
        self.snapshot.index.keys().map(AsRef::as_ref)
    }

    /// Counts a pod on the node that was chosen for it, before the API server has confirmed it.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.place(pod, node, true);
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

    /// A pod with a node was seen. Answers the amounts it gave up, if it changed or finished.
    pub fn set_pod(&mut self, pod: Arc<PodInfo>) -> Option<Arc<PodInfo>> {
        let node = pod.node_name.clone()?;
        if pod.finished {
            return self.remove_pod(&pod.key.uid);
        }
        let before = self.placed.get(&pod.key.uid).map(|placed| placed.pod.clone());
        let shrunk = before.as_ref().is_some_and(|before| before.requests != pod.requests);
        self.place(pod, &node, false);
        before.filter(|_| shrunk)
    }

    /// A pod is gone. Answers what it was, if it counted on a node.
    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let placed = self.placed.remove(uid)?;
        if let Some(at) = self.snapshot.index.get(&placed.node) {
            Arc::make_mut(&mut self.snapshot.nodes[*at]).remove_pod(&placed.pod);
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

    fn place(&mut self, pod: Arc<PodInfo>, node: &str, assumed: bool) {
        let uid = pod.key.uid.clone();
        self.remove_pod(&uid);
        self.denominate(&uid);
        match self.snapshot.index.get(node) {
            Some(at) => Arc::make_mut(&mut self.snapshot.nodes[*at]).add_pod(&pod),
            None => self.by_unknown_node.entry(node.into()).or_default().push(uid.clone()),
        }
        self.placed.insert(uid, Placed { pod, node: node.into(), assumed });
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
            prop_assert_eq!(cache.snapshot().nodes().len(), nodes.len());
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
