//! Which nodes a daemon pod belongs on, and how it is bound for its node.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec,
    Toleration,
};

use crate::cache::Pod;
use crate::node::taints::{self, NO_EXECUTE, NO_SCHEDULE};
use crate::object;
use crate::pods;

/// Taints that daemons bear whatever their template says: key and effect.
const BORNE: [(&str, &str); 6] = [
    (taints::NOT_READY, NO_EXECUTE),
    (taints::UNREACHABLE, NO_EXECUTE),
    ("node.kubernetes.io/disk-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/memory-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/pid-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/unschedulable", NO_SCHEDULE),
];

/// The node a daemon pod is on or bound for.
pub fn of_pod(pod: &Pod) -> Option<&str> {
    let placed = pods::node(pod);
    if !placed.is_empty() {
        return Some(placed);
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let fields = terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    let named = fields.into_iter().find(|f| f.key == "metadata.name" && f.operator == "In")?;
    named.values.as_ref()?.first().map(String::as_str)
}

/// Gives a pod's spec the tolerations of daemons.
pub fn add_tolerations(spec: &mut PodSpec) {
    let host = spec.host_network.unwrap_or(false);
    let network = host.then_some(("node.kubernetes.io/network-unavailable", NO_SCHEDULE));
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in BORNE.into_iter().chain(network) {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        let same = |t: &Toleration| t.key == toleration.key && t.effect == toleration.effect;
        match tolerations.iter_mut().find(|t| same(t)) {
            Some(held) => *held = toleration,
            None => tolerations.push(toleration),
        }
    }
}

/// Binds a pod's spec for a node; the scheduler does the rest.
pub fn bind(spec: &mut PodSpec, node: &str) {
    let term = NodeSelectorTerm {
        match_expressions: None,
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.to_owned()]),
        }]),
    };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let nodes: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    nodes.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
}

/// Whether a pod of the set is to be started on the node, and whether one may stay there.
pub fn fits(set: &DaemonSet, node: &Node) -> (bool, bool) {
    let Some(template) = set.spec.as_ref().and_then(|s| s.template.spec.as_ref()) else {
        return (false, false);
    };
    let name = object::name(node);
    if template.node_name.as_ref().is_some_and(|n| !n.is_empty() && n != name) || !selects(template, node) {
        return (false, false);
    }
    let mut bearing = template.clone();
    add_tolerations(&mut bearing);
    let tolerations = bearing.tolerations.unwrap_or_default();
    let repels = |effect: &str| {
        let mut list = taints::of(node).iter().filter(|t| t.effect == effect);
        list.any(|taint| !tolerations.iter().any(|t| taints::tolerates(t, taint)))
    };
    if repels(NO_EXECUTE) {
        return (false, false);
    }
    (!repels(NO_SCHEDULE), true)
}

/// Whether node selector and required affinity of a spec match the node.
fn selects(spec: &PodSpec, node: &Node) -> bool {
    let selector = spec.node_selector.clone().unwrap_or_default();
    if !object::matches_pairs(&selector, &node.metadata.labels) {
        return false;
    }
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let Some(required) = required else { return true };
    required.node_selector_terms.iter().any(|term| {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        // A term that demands nothing matches nothing.
        !(expressions.is_empty() && fields.is_empty())
            && expressions.iter().all(|r| meets(r, object::label(&node.metadata, &r.key)))
            && fields.iter().all(|r| r.key == "metadata.name" && meets(r, node.metadata.name.as_deref()))
    })
}

fn meets(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let among = value.is_some_and(|v| values.iter().any(|w| w == v));
    let number = |v: &str| v.parse::<i64>().ok();
    let pair = || Some((value.and_then(number)?, values.first().and_then(|v| number(v))?));
    match requirement.operator.as_str() {
        "In" => among,
        "NotIn" => !among,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => pair().is_some_and(|(v, w)| v > w),
        "Lt" => pair().is_some_and(|(v, w)| v < w),
        _ => false,
    }
}
