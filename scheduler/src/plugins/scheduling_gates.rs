//! SchedulingGates: a pod with gates waits until all are removed (KEP-3521).

use crate::framework::{ClusterEvent, Plugin, PreEnqueue, Reason};
use crate::objects::Objects;
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;

/// Holds back pods with `spec.schedulingGates`.
pub struct SchedulingGates;

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }

    /// Only an update of the pod itself removes a gate, and that enqueues it anew.
    fn wakes(&self, _: &PodInfo, _: &ClusterEvent<'_>, _: &Snapshot) -> bool {
        false
    }
}

impl PreEnqueue for SchedulingGates {
    fn admit(&self, pod: &PodInfo, _: &Objects) -> Result<(), Reason> {
        if pod.gated {
            Err(Reason::new("Scheduling is blocked due to non-empty scheduling gates"))
        } else {
            Ok(())
        }
    }
}
