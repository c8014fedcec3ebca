//! NodeDeclaredFeatures: a pod that needs a feature goes to a node that declares it (KEP-5328).

use crate::framework::{ClusterEvent, Filter, Plugin, Prepared, Rejection, State};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// `status.declaredFeatures` of the node must have what the pod's fields ask for.
pub struct NodeDeclaredFeatures;

fn declares(pod: &PodInfo, node: &NodeInfo) -> bool {
    pod.features.iter().all(|feature| node.features.iter().any(|declared| declared == feature))
}

impl Plugin for NodeDeclaredFeatures {
    fn name(&self) -> &'static str {
        "NodeDeclaredFeatures"
    }

    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>, _: &Snapshot) -> bool {
        match event {
            ClusterEvent::NodeAdded(node) => declares(pod, node),
            ClusterEvent::NodeChanged { before, after } => !declares(pod, before) && declares(pod, after),
            _ => false,
        }
    }
}

impl Filter for NodeDeclaredFeatures {
    fn prepare(&self, pod: &PodInfo, _: &Snapshot, _: Option<Box<dyn State>>) -> Prepared {
        if pod.features.is_empty() { Prepared::Skip } else { Prepared::stateless() }
    }

    fn filter(&self, _: &dyn State, pod: &PodInfo, node: &NodeInfo, _: &Snapshot) -> Result<(), Rejection> {
        if declares(pod, node) {
            return Ok(());
        }
        Err(Rejection::lasting("node(s) didn't match Pod's required features"))
    }
}
