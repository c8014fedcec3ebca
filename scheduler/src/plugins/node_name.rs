//! NodeName: a pod that names a node goes there.

use crate::framework::{ClusterEvent, Filter, Plugin, Prepared, Rejection, State};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// `spec.nodeName` must be the node's name.
pub struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>, _: &Snapshot) -> bool {
        matches!(event, ClusterEvent::NodeAdded(node) if pod.node_name.as_ref().is_none_or(|n| *n == node.name))
    }
}

impl Filter for NodeName {
    fn prepare(&self, pod: &PodInfo, _: &Snapshot, _: Option<Box<dyn State>>) -> Prepared {
        if pod.node_name.is_some() { Prepared::stateless() } else { Prepared::Skip }
    }

    fn filter(&self, _: &dyn State, pod: &PodInfo, node: &NodeInfo, _: &Snapshot) -> Result<(), Rejection> {
        match &pod.node_name {
            Some(name) if *name != node.name => {
                Err(Rejection::lasting("node(s) didn't match the requested node name"))
            }
            _ => Ok(()),
        }
    }

    /// The name is the pod's own, not its class'.
    fn is_local(&self) -> bool {
        false
    }
}
