//! How whoever makes pods tells the dataplane which ports of this node lead to them.

use tokio::sync::mpsc;

use crate::desired::{HostPort, ObjectName};

/// Pods' host ports, for the agent.
#[derive(Debug, Clone)]
pub struct HostPorts(mpsc::UnboundedSender<HostPortsOf>);

/// A pod (`namespace/name`) with its host ports.
pub type HostPortsOf = (ObjectName, Vec<HostPort>);

impl HostPorts {
    /// With the end that the agent reads.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<HostPortsOf>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// The ports of a pod, in place of those said before; none when the pod is gone. What is said before the
    /// agent runs is part of its first comparison of the maps, so that a restart leaves them open.
    pub fn set(&self, pod: ObjectName, ports: Vec<HostPort>) {
        // An agent that has ended has nothing to keep up to date.
        let _ = self.0.send((pod, ports));
    }
}
