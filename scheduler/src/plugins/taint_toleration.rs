//! TaintToleration: a node's taints keep pods away that do not tolerate them.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use super::normalize_by_highest;
use crate::framework::{ClusterEvent, Filter, Plugin, Rejection, Score, State};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Slot, Snapshot};

/// Taints `NoSchedule` and `NoExecute` forbid, `PreferNoSchedule` lowers the score.
pub struct TaintToleration;

/// Whether a node has a taint that forbids the pod.
pub fn has_untolerated(pod: &PodInfo, node: &NodeInfo) -> bool {
    node.taints
        .iter()
        .filter(|taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute")
        .any(|taint| !pod.tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>, _: &Snapshot) -> bool {
        match event {
            ClusterEvent::NodeAdded(node) => !has_untolerated(pod, node),
            ClusterEvent::NodeChanged { before, after } => {
                before.taints != after.taints && has_untolerated(pod, before) && !has_untolerated(pod, after)
            }
            _ => false,
        }
    }
}

impl Filter for TaintToleration {
    fn filter(&self, _: &dyn State, pod: &PodInfo, node: &NodeInfo, _: &Snapshot) -> Result<(), Rejection> {
        if has_untolerated(pod, node) {
            return Err(Rejection::lasting("node(s) had untolerated taint(s)"));
        }
        Ok(())
    }
}

impl Score for TaintToleration {
    fn is_local(&self) -> bool {
        true
    }

    /// The number of `PreferNoSchedule` taints that the pod does not tolerate.
    fn score(&self, _: &dyn State, pod: &PodInfo, node: &NodeInfo, _: &Snapshot) -> i64 {
        let intolerable =
            node.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule").filter(|taint| {
                !pod.tolerations
                    .iter()
                    .filter(|t| matches!(t.effect.as_deref(), None | Some("" | "PreferNoSchedule")))
                    .any(|toleration| tolerates(toleration, taint))
            });
        i64::try_from(intolerable.count()).unwrap_or(i64::MAX)
    }

    fn normalize(&self, _: &dyn State, _: &[Slot], scores: &mut [i64]) {
        normalize_by_highest(scores, true);
    }
}

/// Whether a toleration matches a taint: effect (empty: all), key (empty with Exists: all) and value.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = toleration.key.as_deref().unwrap_or_default();
    if !key.is_empty() && key != taint.key {
        return false;
    }
    let value = toleration.value.as_deref().unwrap_or_default();
    let tainted = taint.value.as_deref().unwrap_or_default();
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => !key.is_empty() && value == tainted,
        "Lt" => numbers(tainted, value).is_some_and(|(taint, bound)| taint < bound),
        "Gt" => numbers(tainted, value).is_some_and(|(taint, bound)| taint > bound),
        _ => false,
    }
}

fn numbers(a: &str, b: &str) -> Option<(i64, i64)> {
    Some((a.parse().ok()?, b.parse().ok()?))
}
