//! NodeAffinity: `nodeSelector` and node affinity.

use std::collections::BTreeSet;

use super::normalize_by_highest;
use crate::framework::{ClusterEvent, Filter, Plugin, Prepared, Rejection, Score, State};
use crate::pod::PodInfo;
use crate::selector::{NodeTerm, NodeTerms};
use crate::snapshot::{NodeInfo, Slot, Snapshot};

/// The node must match `nodeSelector` and one of the required terms; preferred terms add their weight. NodeAffinityArgs
/// can add to both.
#[derive(Default)]
pub struct NodeAffinity {
    pub added_required: Option<NodeTerms>,
    pub added_preferred: Vec<(i32, NodeTerm)>,
}

impl NodeAffinity {
    fn enforced(&self, node: &NodeInfo) -> bool {
        self.added_required.as_ref().is_none_or(|terms| terms.matches(&node.name, &node.labels))
    }
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>, _: &Snapshot) -> bool {
        match event {
            ClusterEvent::NodeAdded(node) => self.enforced(node) && matches(pod, node),
            ClusterEvent::NodeChanged { before, after } => {
                let fits = |node| self.enforced(node) && matches(pod, node);
                before.labels != after.labels && !fits(before) && fits(after)
            }
            _ => false,
        }
    }
}

impl Filter for NodeAffinity {
    fn prepare(&self, pod: &PodInfo, _: &Snapshot, _: Option<Box<dyn State>>) -> Prepared {
        let Some(required) = &pod.required_affinity else {
            let any = !pod.node_selector.is_empty() || self.added_required.is_some();
            return if any { Prepared::stateless() } else { Prepared::Skip };
        };
        let mut names: BTreeSet<Box<str>> = BTreeSet::new();
        for term in required.terms() {
            let Some(named) = term.node_names() else { return Prepared::stateless() };
            names.extend(named.into_iter().map(Box::from));
        }
        match (required.terms().is_empty(), names.is_empty()) {
            (true, _) => Prepared::stateless(),
            (false, true) => Prepared::Reject(Rejection::lasting("pod affinity terms conflict")),
            (false, false) => Prepared::Only(Box::new(()), names),
        }
    }

    fn filter(&self, _: &dyn State, pod: &PodInfo, node: &NodeInfo, _: &Snapshot) -> Result<(), Rejection> {
        if !self.enforced(node) {
            return Err(Rejection::lasting("node(s) didn't match scheduler-enforced node affinity"));
        }
        if matches(pod, node) {
            return Ok(());
        }
        Err(Rejection::lasting("node(s) didn't match Pod's node affinity/selector"))
    }
}

impl Score for NodeAffinity {
    fn prepare_score(
        &self,
        pod: &PodInfo,
        _: &Snapshot,
        _: &[Slot],
        _: Option<Box<dyn State>>,
    ) -> Option<Box<dyn State>> {
        let any = !pod.preferred_affinity.is_empty() || !self.added_preferred.is_empty();
        any.then(|| Box::new(()) as Box<dyn State>)
    }

    fn is_local(&self) -> bool {
        true
    }

    fn score(&self, _: &dyn State, pod: &PodInfo, node: &NodeInfo, _: &Snapshot) -> i64 {
        let terms = pod.preferred_affinity.iter().chain(&self.added_preferred);
        terms
            .filter(|(weight, term)| *weight != 0 && term.matches(&node.name, &node.labels))
            .map(|(weight, _)| i64::from(*weight))
            .sum()
    }

    fn normalize(&self, _: &dyn State, _: &[Slot], scores: &mut [i64]) {
        normalize_by_highest(scores, false);
    }
}

/// Whether a node is what the pod's selector and required affinity ask for.
pub fn matches(pod: &PodInfo, node: &NodeInfo) -> bool {
    pod.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
        && pod.required_affinity.as_ref().is_none_or(|required| required.matches(&node.name, &node.labels))
}
