//! How long kubelets may keep Secrets and ConfigMaps: an annotation that grows with the cluster.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;

use crate::cache::Caches;
use crate::object::Key;
use crate::plan::{Act, Plan};
use crate::runner::{Controller, Failure, Queue, ViewError};

const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";

/// From how many nodes on, up to how many, and seconds. The ranges overlap, so that a cluster at a border keeps its value.
const STEPS: [(usize, usize, u32); 5] =
    [(0, 100, 0), (90, 500, 15), (450, 1000, 30), (900, 2000, 60), (1800, usize::MAX, 300)];

/// The step for so many nodes, coming from another one.
fn step(from: usize, nodes: usize) -> usize {
    let mut at = from;
    while nodes > STEPS[at].1 {
        at += 1;
    }
    while nodes < STEPS[at].0 {
        at -= 1;
    }
    at
}

/// What a decision rests on.
pub struct View {
    /// The node.
    pub node: Arc<Node>,
    /// Seconds.
    pub ttl: u32,
}

/// Decides about a node.
pub fn reconcile(view: &View, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let wanted = view.ttl.to_string();
    let said = view.node.metadata.annotations.as_ref().and_then(|a| a.get(ANNOTATION));
    if said != Some(&wanted) {
        let patch = json!({"metadata": {"annotations": {ANNOTATION: wanted}}});
        plan.push(Act::patch(view.node.as_ref(), None, patch).may_be_absent());
    }
    plan
}

/// The controller. Keys are nodes.
pub struct Ttl {
    caches: Arc<Caches>,
    step: Mutex<usize>,
}

impl Ttl {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone(), step: Mutex::new(0) }
    }

    fn ttl(&self) -> u32 {
        let mut at = self.step.lock();
        *at = step(*at, self.caches.nodes.len());
        STEPS[*at].2
    }
}

#[async_trait]
impl Controller for Ttl {
    type View = View;

    fn name(&self) -> &'static str {
        "ttl"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        // A node's next change brings it the value of a cluster that has grown: kubelets report often enough.
        let q = queue.clone();
        self.caches.nodes.on_change(move |change| {
            if change.new.is_some() {
                q.add(change.key.clone());
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(node) = self.caches.nodes.get(key) else { return Ok(None) };
        Ok(Some(View { node, ttl: self.ttl() }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Harness;
    use proptest::prelude::*;

    #[test]
    fn borders_are_crossed_late() {
        for (from, nodes, want) in
            [(0, 100, 0), (0, 101, 1), (1, 90, 1), (1, 89, 0), (0, 5000, 4), (4, 10, 0), (4, 1800, 4)]
        {
            assert_eq!(step(from, nodes), want, "{nodes} nodes from step {from}");
        }
    }

    proptest! {
        /// Wherever it comes from, the value fits the number of nodes.
        #[test]
        fn a_step_fits(from in 0..5usize, nodes in 0..10_000usize) {
            let (low, high, _) = STEPS[step(from, nodes)];
            prop_assert!(low <= nodes && nodes <= high);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_are_told_once() {
        let mut h = Harness::new(|caches, _| Ttl::new(caches));
        let mut node = Node::default();
        node.metadata.name = Some("n".into());
        h.model.lock().put(&node);
        h.settle(20).await;
        let node: Node = h.model.lock().get("", "n").unwrap();
        assert_eq!(node.metadata.annotations.unwrap()[ANNOTATION], "0");
        assert!(h.plan(&Key::cluster("n")).await.is_empty());
    }
}
