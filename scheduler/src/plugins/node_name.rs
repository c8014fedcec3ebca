//! NodeName: a pod that names a node goes there.

use crate::framework::{ClusterEvent, Filter, Plugin, Reason};
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

/// `spec.nodeName` must be the node's name.
pub struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        matches!(event, ClusterEvent::NodeAdded(node) if self.filter(pod, node).is_ok())
    }
}

impl Filter for NodeName {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Vec<Reason>> {
        match &pod.node_name {
            Some(name) if *name != node.name => {
                Err(vec![Reason::new("node(s) didn't match the requested node name")])
            }
            _ => Ok(()),
        }
    }

    fn applies(&self, pod: &PodInfo) -> bool {
        pod.node_name.is_some()
    }
}
