//! The plugins, one file each, and the default profile.

mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources;
mod node_unschedulable;
mod priority_sort;
mod scheduling_gates;
mod taint_toleration;

#[cfg(test)]
pub(crate) mod tests;

pub use node_affinity::NodeAffinity;
pub use node_name::NodeName;
pub use node_ports::NodePorts;
pub use node_resources::NodeResourcesFit;
pub use node_unschedulable::NodeUnschedulable;
pub use priority_sort::PrioritySort;
pub use scheduling_gates::SchedulingGates;
pub use taint_toleration::TaintToleration;

use crate::framework::Framework;

/// The profile that pods get by default, with kube-scheduler's weights.
pub fn default_profile() -> Framework {
    Framework {
        scheduler_name: "default-scheduler".into(),
        queue_sort: Box::new(PrioritySort),
        pre_enqueue: vec![Box::new(SchedulingGates)],
        filters: vec![
            Box::new(NodeUnschedulable),
            Box::new(NodeName),
            Box::new(TaintToleration),
            Box::new(NodeAffinity),
            Box::new(NodePorts),
            Box::new(NodeResourcesFit),
        ],
        scores: vec![
            (Box::new(TaintToleration), 3),
            (Box::new(NodeAffinity), 2),
            (Box::new(NodeResourcesFit), 1),
        ],
        reserves: Vec::new(),
        permits: Vec::new(),
    }
}

/// Brings scores to 0 to 100 in proportion to the highest; reversed, the highest becomes 0.
fn normalize_by_highest(scores: &mut [i64], reverse: bool) {
    use crate::framework::MAX_SCORE;
    let highest = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let scaled = if highest == 0 { 0 } else { *score * MAX_SCORE / highest };
        *score = if reverse { MAX_SCORE - scaled } else { scaled };
    }
}
