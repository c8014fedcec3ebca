//! NodeUnschedulable: cordoned nodes take no pods, except those that tolerate it.

use k8s_openapi::api::core::v1::Taint;

use super::taint_toleration::tolerates;
use crate::framework::{ClusterEvent, Filter, Plugin, Rejection, State};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

const TAINT: &str = "node.kubernetes.io/unschedulable";

/// `spec.unschedulable` of the node counts like a taint `node.kubernetes.io/unschedulable:NoSchedule`.
pub struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn wakes(&self, _: &PodInfo, event: &ClusterEvent<'_>, _: &Snapshot) -> bool {
        match event {
            ClusterEvent::NodeAdded(node) => !node.unschedulable,
            ClusterEvent::NodeChanged { before, after } => before.unschedulable && !after.unschedulable,
            _ => false,
        }
    }
}

impl Filter for NodeUnschedulable {
    fn filter(&self, _: &dyn State, pod: &PodInfo, node: &NodeInfo, _: &Snapshot) -> Result<(), Rejection> {
        if !node.unschedulable {
            return Ok(());
        }
        let taint = Taint { key: TAINT.into(), effect: "NoSchedule".into(), ..Taint::default() };
        if pod.tolerations.iter().any(|toleration| tolerates(toleration, &taint)) {
            return Ok(());
        }
        Err(Rejection::lasting("node(s) were unschedulable"))
    }
}
