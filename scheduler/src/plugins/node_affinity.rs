//! NodeAffinity: `nodeSelector` and node affinity.

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use super::normalize_by_highest;
use crate::framework::{ClusterEvent, Filter, Plugin, Reason, Score};
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

/// The node must match `nodeSelector` and one of the required terms; preferred terms add their weight.
pub struct NodeAffinity;

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::NodeAdded(node) => matches(pod, node),
            ClusterEvent::NodeChanged { before, after } => {
                before.labels != after.labels && !matches(pod, before) && matches(pod, after)
            }
            ClusterEvent::PodFreed { .. } => false,
        }
    }
}

impl Filter for NodeAffinity {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Vec<Reason>> {
        if matches(pod, node) {
            return Ok(());
        }
        Err(vec![Reason::new("node(s) didn't match Pod's node affinity/selector")])
    }

    fn applies(&self, pod: &PodInfo) -> bool {
        !pod.node_selector.is_empty() || pod.required_affinity.is_some()
    }
}

impl Score for NodeAffinity {
    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        pod.preferred_affinity
            .iter()
            .filter(|term| term.weight != 0 && term_matches(&term.preference, node))
            .map(|term| i64::from(term.weight))
            .sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize_by_highest(scores, false);
    }

    fn applies(&self, pod: &PodInfo) -> bool {
        !pod.preferred_affinity.is_empty()
    }
}

fn matches(pod: &PodInfo, node: &NodeInfo) -> bool {
    let selected = pod.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value));
    let affine = pod
        .required_affinity
        .as_ref()
        .is_none_or(|required| required.node_selector_terms.iter().any(|term| term_matches(term, node)));
    selected && affine
}

/// A term without any requirement matches nothing.
fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if labels.is_empty() && fields.is_empty() {
        return false;
    }
    labels.iter().all(|r| requirement_holds(r, node.labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| r.key == "metadata.name" && requirement_holds(r, Some(&node.name)))
}

fn requirement_holds(requirement: &NodeSelectorRequirement, found: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = |found: &str| values.iter().any(|value| value == found);
    match requirement.operator.as_str() {
        "In" => found.is_some_and(listed),
        "NotIn" => !found.is_some_and(listed),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => compare(found, values).is_some_and(|(found, bound)| found > bound),
        "Lt" => compare(found, values).is_some_and(|(found, bound)| found < bound),
        _ => false,
    }
}

fn compare(found: Option<&str>, values: &[String]) -> Option<(i64, i64)> {
    Some((found?.parse().ok()?, values.first()?.parse().ok()?))
}
