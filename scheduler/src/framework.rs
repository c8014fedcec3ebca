//! The extension points, after kube-scheduler's framework: a plugin implements the traits of the points at which it
//! has a say.
//!
//! A plugin never waits, reads no clock and draws no randomness; what it may look at is passed to it.

use std::time::Duration;

use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// The highest score that a plugin gives.
pub const MAX_SCORE: i64 = 100;

/// Why a node does not fit, as text for the event: "0/5 nodes are available: 5 <reason>".
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reason(pub Box<str>);

impl Reason {
    /// A reason with this text.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Reason(text.into())
    }
}

/// Something that happened in the cluster and may let a rejected pod fit.
#[derive(Clone, Debug)]
pub enum ClusterEvent<'a> {
    /// A node appeared.
    NodeAdded(&'a NodeInfo),
    /// A node's labels, taints, `unschedulable` or allocatable amounts changed.
    NodeChanged { before: &'a NodeInfo, after: &'a NodeInfo },
    /// A pod left its node, or gave up resources there.
    PodFreed { pod: &'a PodInfo, node: &'a NodeInfo },
}

impl ClusterEvent<'_> {
    /// The node as it is now.
    pub fn node(&self) -> &NodeInfo {
        match self {
            ClusterEvent::NodeAdded(node)
            | ClusterEvent::NodeChanged { after: node, .. }
            | ClusterEvent::PodFreed { node, .. } => node,
        }
    }
}

/// What every plugin has.
pub trait Plugin: Send + Sync {
    /// As in Kubernetes' configuration, `NodeResourcesFit` for one.
    fn name(&self) -> &'static str;

    /// Whether `event` may let `pod`, which this plugin rejected, fit now (a queueing hint, KEP-4247).
    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool;
}

/// The order of the active queue.
pub trait QueueSort: Send + Sync {
    /// A key; pods with smaller ones go first. Equal keys go by age.
    fn rank(&self, pod: &PodInfo) -> i64;
}

/// Whether a pod may enter the queue at all.
pub trait PreEnqueue: Plugin {
    /// The reason to hold it back.
    fn admit(&self, pod: &PodInfo) -> Result<(), Reason>;
}

/// Whether a pod may go to a node.
pub trait Filter: Plugin {
    /// Reasons against the node; none if the pod fits.
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Vec<Reason>>;

    /// Whether this plugin has anything to say on this pod. Saves a call per node.
    fn applies(&self, pod: &PodInfo) -> bool {
        let _ = pod;
        true
    }
}

/// How well a node suits a pod.
pub trait Score: Plugin {
    /// Any scale, if `normalize` brings it to 0 to [`MAX_SCORE`].
    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64;

    /// Brings the scores of all feasible nodes to 0 to [`MAX_SCORE`].
    fn normalize(&self, scores: &mut [i64]) {
        let _ = scores;
    }

    /// Whether this plugin has anything to say on this pod.
    fn applies(&self, pod: &PodInfo) -> bool {
        let _ = pod;
        true
    }
}

/// Told of a choice before it is carried out.
pub trait Reserve: Plugin {
    /// Takes what the plugin keeps account of. An error undoes the choice.
    fn reserve(&self, pod: &PodInfo, node: &str, snapshot: &Snapshot) -> Result<(), Reason>;
    /// Gives it back. May be called without a reservation before.
    fn unreserve(&self, pod: &PodInfo, node: &str);
}

/// A plugin's answer on whether a reserved pod may be bound now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    Approve,
    /// Hold the pod, with its reservation, for at most this long. It is asked again after each later reservation.
    Wait(Duration),
    Reject(Reason),
}

/// Whether a reserved pod may be bound now.
pub trait Permit: Plugin {
    fn permit(&self, pod: &PodInfo, node: &str) -> Permission;
}

/// A profile: the plugins of each extension point, in order.
pub struct Framework {
    /// Pods name the profile that they want by `spec.schedulerName`.
    pub scheduler_name: Box<str>,
    pub queue_sort: Box<dyn QueueSort>,
    pub pre_enqueue: Vec<Box<dyn PreEnqueue>>,
    pub filters: Vec<Box<dyn Filter>>,
    /// With weights.
    pub scores: Vec<(Box<dyn Score>, i64)>,
    pub reserves: Vec<Box<dyn Reserve>>,
    pub permits: Vec<Box<dyn Permit>>,
}

impl Framework {
    /// Whether the event may let a pod fit that was rejected by the plugin of this name.
    pub fn wakes(&self, plugin: &str, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        let filter = self.filters.iter().find(|p| p.name() == plugin).map(|p| p.wakes(pod, event));
        let gate = || self.pre_enqueue.iter().find(|p| p.name() == plugin).map(|p| p.wakes(pod, event));
        let reserve = || self.reserves.iter().find(|p| p.name() == plugin).map(|p| p.wakes(pod, event));
        let permit = || self.permits.iter().find(|p| p.name() == plugin).map(|p| p.wakes(pod, event));
        // A name that no plugin has: better one try too many than a pod that stays for ever.
        filter.or_else(gate).or_else(reserve).or_else(permit).unwrap_or(true)
    }
}
