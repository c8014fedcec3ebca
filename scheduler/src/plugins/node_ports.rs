//! NodePorts: two pods of one node cannot have the same host port.

use crate::framework::{ClusterEvent, Filter, Plugin, Reason};
use crate::pod::{HostPort, PodInfo};
use crate::snapshot::NodeInfo;

const ANY_ADDRESS: &str = "0.0.0.0";

/// The host ports that the pod wants must be free on the node.
pub struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::NodeChanged { .. } => false,
            ClusterEvent::PodFreed { pod: gone, .. } => {
                gone.host_ports.iter().any(|freed| pod.host_ports.iter().any(|want| conflict(want, freed)))
            }
        }
    }
}

impl Filter for NodePorts {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Vec<Reason>> {
        if pod.host_ports.iter().any(|want| node.used_ports.keys().any(|used| conflict(want, used))) {
            return Err(vec![Reason::new("node(s) didn't have free ports for the requested pod ports")]);
        }
        Ok(())
    }

    fn applies(&self, pod: &PodInfo) -> bool {
        !pod.host_ports.is_empty()
    }
}

fn conflict(a: &HostPort, b: &HostPort) -> bool {
    a.port == b.port
        && a.protocol == b.protocol
        && (a.ip == b.ip || &*a.ip == ANY_ADDRESS || &*b.ip == ANY_ADDRESS)
}
