//! NodeUnschedulable: cordoned nodes take no pods, except those that tolerate it.

use k8s_openapi::api::core::v1::Taint;

use super::taint_toleration::tolerates;
use crate::framework::{ClusterEvent, Filter, Plugin, Reason};
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

const TAINT: &str = "node.kubernetes.io/unschedulable";

/// `spec.unschedulable` of the node counts like a taint `node.kubernetes.io/unschedulable:NoSchedule`.
pub struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn wakes(&self, _: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::NodeAdded(node) => !node.unschedulable,
            ClusterEvent::NodeChanged { before, after } => before.unschedulable && !after.unschedulable,
            ClusterEvent::PodFreed { .. } => false,
        }
    }
}

impl Filter for NodeUnschedulable {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Vec<Reason>> {
        if !node.unschedulable {
            return Ok(());
        }
        let taint = Taint { key: TAINT.into(), effect: "NoSchedule".into(), ..Taint::default() };
        if pod.tolerations.iter().any(|toleration| tolerates(toleration, &taint)) {
            return Ok(());
        }
        Err(vec![Reason::new("node(s) were unschedulable")])
    }
}
