//! The plugins, one file each, and the default profile.

mod claims;
mod declared_features;
mod dynamic_resources;
mod gang_scheduling;
mod image_locality;
mod inter_pod_affinity;
mod migration;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources;
mod node_unschedulable;
mod node_volume_limits;
mod priority_sort;
mod registry;
mod scheduling_gates;
mod taint_toleration;
mod topology_spread;
mod volume_binding;
mod volume_restrictions;
mod volume_zone;

#[cfg(test)]
pub(crate) mod tests;

pub use declared_features::NodeDeclaredFeatures;
pub use dynamic_resources::DynamicResources;
pub use gang_scheduling::{GangScheduling, group_of};
pub use image_locality::ImageLocality;
pub use inter_pod_affinity::InterPodAffinity;
pub use node_affinity::NodeAffinity;
pub use node_name::NodeName;
pub use node_ports::NodePorts;
pub use node_resources::{BalancedAllocation, NodeResourcesFit, Strategy, Weighted};
pub use node_unschedulable::NodeUnschedulable;
pub use node_volume_limits::NodeVolumeLimits;
pub use priority_sort::PrioritySort;
pub use registry::{Built, DEFAULTS, Points, Registry, default_profile};
pub use scheduling_gates::SchedulingGates;
pub use taint_toleration::TaintToleration;
pub use topology_spread::PodTopologySpread;
pub use volume_binding::VolumeBinding;
pub use volume_restrictions::VolumeRestrictions;
pub use volume_zone::VolumeZone;

/// Brings scores to 0 to 100 in proportion to the highest; reversed, the highest becomes 0.
fn normalize_by_highest(scores: &mut [i64], reverse: bool) {
    use crate::framework::MAX_SCORE;
    let highest = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let scaled = if highest == 0 { 0 } else { *score * MAX_SCORE / highest };
        *score = if reverse { MAX_SCORE - scaled } else { scaled };
    }
}
