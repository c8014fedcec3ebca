//! NodePorts: two pods of one node cannot have the same host port.

use crate::framework::{ClusterEvent, Filter, Plugin, Prepared, Rejection, State};
use crate::pod::{HostPort, PodInfo};
use crate::snapshot::{NodeInfo, Snapshot};

const ANY_ADDRESS: &str = "0.0.0.0";

/// The host ports that the pod wants must be free on the node.
pub struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>, _: &Snapshot) -> bool {
        match event {
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::PodGone { pod: gone, .. } => {
                gone.host_ports.iter().any(|freed| pod.host_ports.iter().any(|want| conflict(want, freed)))
            }
            _ => false,
        }
    }
}

impl Filter for NodePorts {
    fn prepare(&self, pod: &PodInfo, _: &Snapshot, _: Option<Box<dyn State>>) -> Prepared {
        if pod.host_ports.is_empty() { Prepared::Skip } else { Prepared::stateless() }
    }

    fn filter(&self, _: &dyn State, pod: &PodInfo, node: &NodeInfo, _: &Snapshot) -> Result<(), Rejection> {
        if pod.host_ports.iter().any(|want| node.used_ports.keys().any(|used| conflict(want, used))) {
            return Err(Rejection::resolvable("node(s) didn't have free ports for the requested pod ports"));
        }
        Ok(())
    }
}

fn conflict(a: &HostPort, b: &HostPort) -> bool {
    a.port == b.port
        && a.protocol == b.protocol
        && (a.ip == b.ip || &*a.ip == ANY_ADDRESS || &*b.ip == ANY_ADDRESS)
}
