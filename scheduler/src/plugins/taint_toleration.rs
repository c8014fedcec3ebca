//! TaintToleration: a node's taints keep pods away that do not tolerate them.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use super::normalize_by_highest;
use crate::framework::{ClusterEvent, Filter, Plugin, Reason, Score};
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

/// Taints `NoSchedule` and `NoExecute` forbid, `PreferNoSchedule` lowers the score.
pub struct TaintToleration;

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::NodeAdded(node) => self.filter(pod, node).is_ok(),
            ClusterEvent::NodeChanged { before, after } => {
                before.taints != after.taints && self.filter(pod, after).is_ok()
            }
            ClusterEvent::PodFreed { .. } => false,
        }
    }
}

impl Filter for TaintToleration {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Vec<Reason>> {
        let forbidding = |taint: &&Taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute";
        let untolerated = node
            .taints
            .iter()
            .filter(forbidding)
            .any(|taint| !pod.tolerations.iter().any(|toleration| tolerates(toleration, taint)));
        if untolerated { Err(vec![Reason::new("node(s) had untolerated taint(s)")]) } else { Ok(()) }
    }
}

impl Score for TaintToleration {
    /// The number of `PreferNoSchedule` taints that the pod does not tolerate.
    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let intolerable =
            node.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule").filter(|taint| {
                !pod.tolerations
                    .iter()
                    .filter(|t| matches!(t.effect.as_deref(), None | Some("" | "PreferNoSchedule")))
                    .any(|toleration| tolerates(toleration, taint))
            });
        i64::try_from(intolerable.count()).unwrap_or(i64::MAX)
    }

    fn normalize(&self, scores: &mut [i64]) {
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
