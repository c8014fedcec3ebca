//! The extension points, after kube-scheduler's framework: a plugin implements the traits of the points at which it
//! has a say. `scheduler/tests/own_plugin.rs` is a plugin of one's own.
//!
//! A plugin never waits, reads no clock and draws no randomness; what it may look at is passed to it. What it would ask
//! of the API server it answers as data ([`Write`]), which the driver carries out.

use std::any::Any;
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim, ResourceClaimConsumerReference};

use crate::devices::extended::Plan;
use crate::objects::{Name, Object, Objects};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Slot, Snapshot};

/// The plugin for devices, the last of those that look at a pod before the nodes.
pub(crate) const DEVICES: &str = "DynamicResources";
/// The highest score that a plugin gives.
pub const MAX_SCORE: i64 = 100;

/// Why a node does not fit, as text for the event: "0/5 nodes are available: 5 <reason>".
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reason(pub Cow<'static, str>);

impl Reason {
    /// A reason with this text.
    pub fn new(text: impl Into<Cow<'static, str>>) -> Self {
        Reason(text.into())
    }
}

/// A plugin's no.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rejection {
    /// Whose it is. [`Framework`] fills it in.
    pub plugin: &'static str,
    /// Whether the departure of other pods could change it. If not, preemption is not tried there.
    pub resolvable: bool,
    /// The plugin could not do its work, and the attempt ends.
    pub failed: bool,
    pub reasons: Vec<Reason>,
}

impl Rejection {
    /// One that may change when other pods leave.
    pub fn resolvable(reason: impl Into<Cow<'static, str>>) -> Self {
        Rejection { plugin: "", resolvable: true, failed: false, reasons: vec![Reason::new(reason)] }
    }

    /// One that no other pod's departure changes.
    pub fn lasting(reason: impl Into<Cow<'static, str>>) -> Self {
        Rejection { resolvable: false, ..Rejection::resolvable(reason) }
    }

    /// One that says nothing of the node: the plugin could not do its work.
    pub fn failure(reason: impl Into<Cow<'static, str>>) -> Self {
        Rejection { failed: true, ..Rejection::lasting(reason) }
    }

    /// The reasons in one line.
    pub fn message(&self) -> String {
        let texts: Vec<&str> = self.reasons.iter().map(|r| &*r.0).collect();
        texts.join(", ")
    }
}

/// Something that happened in the cluster and may let a rejected pod fit.
#[derive(Clone, Debug)]
pub enum ClusterEvent<'a> {
    /// A node appeared.
    NodeAdded(&'a NodeInfo),
    /// A node's labels, taints, `unschedulable` or allocatable amounts changed.
    NodeChanged { before: &'a NodeInfo, after: &'a NodeInfo },
    /// A node is gone.
    NodeGone(&'a NodeInfo),
    /// A pod was placed on a node, by whomever.
    PodPlaced { pod: &'a PodInfo, node: &'a NodeInfo },
    /// A placed pod's labels or amounts changed.
    PodChanged { before: &'a PodInfo, after: &'a PodInfo, node: &'a NodeInfo },
    /// A pod left its node.
    PodGone { pod: &'a PodInfo, node: &'a NodeInfo },
    /// A pod without a node appeared.
    PodWaits(&'a PodInfo),
    /// Another object appeared (`before` is `None`), changed, or is gone (`after` is `None`).
    Object { name: &'a str, before: Option<&'a Object>, after: Option<&'a Object> },
}

impl ClusterEvent<'_> {
    /// The node on which it happened, as it is now.
    pub fn node(&self) -> Option<&NodeInfo> {
        match self {
            ClusterEvent::NodeAdded(node)
            | ClusterEvent::NodeChanged { after: node, .. }
            | ClusterEvent::PodPlaced { node, .. }
            | ClusterEvent::PodChanged { node, .. }
            | ClusterEvent::PodGone { node, .. } => Some(node),
            ClusterEvent::NodeGone(_) | ClusterEvent::PodWaits(_) | ClusterEvent::Object { .. } => None,
        }
    }
}

/// What a plugin keeps in mind from one extension point to the next, and from one pod of a class to the next.
pub trait State: Send {
    /// A copy for a dry run.
    fn copy(&self) -> Box<dyn State>;
    fn as_any(&self) -> &dyn Any;
    fn as_any_mut(&mut self) -> &mut dyn Any;
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

impl<T: Any + Clone + Send> State for T {
    fn copy(&self) -> Box<dyn State> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// A state as the plugin made it. The framework hands every plugin its own.
///
/// # Panics
/// If it is another plugin's, which would be the framework's error.
pub fn state<T: 'static>(state: &dyn State) -> &T {
    state.as_any().downcast_ref().expect("the plugin's own state")
}

/// The same, to change it.
///
/// # Panics
/// As [`state`].
pub fn state_mut<T: 'static>(state: &mut dyn State) -> &mut T {
    state.as_any_mut().downcast_mut().expect("the plugin's own state")
}

/// A kept state as the plugin made it; `None` if there is none.
pub fn kept<T: 'static>(kept: Option<Box<dyn State>>) -> Option<T> {
    kept?.into_any().downcast().ok().map(|state| *state)
}

/// What every plugin has.
pub trait Plugin: Send + Sync {
    /// As in Kubernetes' configuration, `NodeResourcesFit` for one.
    fn name(&self) -> &'static str;

    /// Whether `event` may let `pod`, which this plugin rejected, fit now (a queueing hint, KEP-4247).
    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>, snapshot: &Snapshot) -> bool;
}

/// The order of the active queue.
pub trait QueueSort: Send + Sync {
    /// A key; pods with smaller ones go first. Equal keys go by age.
    fn rank(&self, pod: &PodInfo) -> i64;
}

/// Whether a pod may enter the queue at all.
pub trait PreEnqueue: Plugin {
    /// The reason to hold it back.
    fn admit(&self, pod: &PodInfo, objects: &Objects) -> Result<(), Reason>;
}

/// A pod that a dry run put on a node, or took away from it.
pub struct Moved<'a> {
    pub pod: &'a PodInfo,
    pub node: &'a NodeInfo,
    pub added: bool,
}

/// What a filter knows before it looks at nodes.
pub enum Prepared {
    /// It has nothing to say on this pod.
    Skip,
    /// It looks at nodes with this state.
    Look(Box<dyn State>),
    /// It looks at these nodes only.
    Only(Box<dyn State>, BTreeSet<Box<str>>),
    /// The pod fits nowhere.
    Reject(Rejection),
}

impl Prepared {
    /// It looks at nodes and needs no state.
    pub fn stateless() -> Self {
        Prepared::Look(Box::new(()))
    }
}

/// Whether a pod may go to a node.
pub trait Filter: Plugin {
    /// Called once before the nodes. `kept` is the state of the last pod of the same class.
    fn prepare(&self, pod: &PodInfo, snapshot: &Snapshot, kept: Option<Box<dyn State>>) -> Prepared {
        let _ = (pod, snapshot, kept);
        Prepared::stateless()
    }

    /// Reasons against the node; none if the pod fits.
    fn filter(
        &self,
        state: &dyn State,
        pod: &PodInfo,
        node: &NodeInfo,
        snapshot: &Snapshot,
    ) -> Result<(), Rejection>;

    /// Whether the answer depends on nothing but the pod's class and the node with its pods, so that it holds until the
    /// node changes.
    fn is_local(&self) -> bool {
        true
    }

    /// Follows a dry run.
    fn follow(&self, state: &mut dyn State, pod: &PodInfo, other: &Moved<'_>, snapshot: &Snapshot) {
        let _ = (state, pod, other, snapshot);
    }
}

/// What a plugin does for a pod that fits nowhere.
pub struct Remedy {
    /// What is told of it.
    pub text: &'static str,
    /// What is to be written.
    pub write: Option<Write>,
}

/// Asked when no node fits, before preemption.
pub trait PostFilter: Plugin {
    /// `rejected`: the nodes that the plugin itself rejected, and why.
    fn remedy(&self, pod: &PodInfo, rejected: &[(Slot, &Rejection)], snapshot: &Snapshot) -> Remedy;
}

/// How well a node suits a pod.
pub trait Score: Plugin {
    /// Called once before the nodes that fit. `None`: nothing to say on this pod.
    fn prepare_score(
        &self,
        pod: &PodInfo,
        snapshot: &Snapshot,
        feasible: &[Slot],
        kept: Option<Box<dyn State>>,
    ) -> Option<Box<dyn State>> {
        let _ = (pod, snapshot, feasible, kept);
        Some(Box::new(()))
    }

    /// Any scale, if `normalize` brings it to 0 to [`MAX_SCORE`].
    fn score(&self, state: &dyn State, pod: &PodInfo, node: &NodeInfo, snapshot: &Snapshot) -> i64;

    /// Whether [`Score::score`] depends on nothing but the pod's class and the node with its pods, so that it holds until
    /// the node changes. If in doubt it does not.
    fn is_local(&self) -> bool {
        false
    }

    /// Brings the scores of all feasible nodes to 0 to [`MAX_SCORE`].
    fn normalize(&self, state: &dyn State, nodes: &[Slot], scores: &mut [i64]) {
        let _ = (state, nodes, scores);
    }
}

/// Told of a choice before it is carried out.
pub trait Reserve: Plugin {
    /// Takes what the plugin keeps account of. An error undoes the choice.
    fn reserve(&self, pod: &PodInfo, node: &NodeInfo, objects: &mut Objects) -> Result<(), Rejection>;
    /// Gives it back. May be called without a reservation before.
    fn unreserve(&self, pod: &PodInfo, node: &str, objects: &mut Objects);
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
    fn permit(&self, pod: &PodInfo, node: &str, objects: &Objects) -> Permission;
}

/// Something to write to the API before a pod is bound.
#[derive(Clone, Debug)]
pub enum Write {
    Claim(Arc<PersistentVolumeClaim>),
    Volume(Arc<PersistentVolume>),
    /// Gives a claim devices, if it has none, and reserves it for a pod.
    ResourceClaim {
        claim: Arc<ResourceClaim>,
        allocation: Option<Arc<AllocationResult>>,
        consumer: ResourceClaimConsumerReference,
    },
    /// Reserves a claim no longer for the pod with this uid.
    Unreserve(Arc<ResourceClaim>, Arc<str>),
    /// Takes a claim's devices away.
    Deallocate(Arc<ResourceClaim>),
    /// Makes a claim for a pod's extended resources, with these devices, and tells of it in the pod's status.
    ExtendedClaim {
        plan: Arc<Plan>,
        allocation: Arc<AllocationResult>,
        consumer: ResourceClaimConsumerReference,
    },
    /// Deletes such a claim.
    DeleteClaim(Arc<ResourceClaim>),
}

/// Whether what was written has taken effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    Wait(Wait),
    Failed(Reason),
}

/// What is waited for before a pod is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The plugin is asked again when one of these changes.
    pub objects: Vec<Name>,
    /// After this it is given up.
    pub longest: Duration,
    /// What is told then.
    pub late: Cow<'static, str>,
    /// It is devices that are waited for, which may take long: that is told at once.
    pub for_devices: bool,
}

/// What must be written, and take effect, before a pod is bound.
pub trait PreBind: Plugin {
    /// Nothing, for most pods.
    fn writes(&self, pod: &PodInfo, node: &str, objects: &Objects) -> Vec<Write>;
    fn ready(&self, pod: &PodInfo, node: &NodeInfo, objects: &Objects) -> Readiness;

    /// What must be written when the pod is not bound after all.
    fn undo(&self, pod: &PodInfo, objects: &Objects) -> Vec<Write> {
        let _ = (pod, objects);
        Vec::new()
    }
}

/// A profile: the plugins of each extension point, in order.
pub struct Framework {
    /// Pods name the profile that they want by `spec.schedulerName`.
    pub scheduler_name: Box<str>,
    pub queue_sort: Box<dyn QueueSort>,
    pub pre_enqueue: Vec<Arc<dyn PreEnqueue>>,
    pub filters: Vec<Arc<dyn Filter>>,
    pub post_filters: Vec<Arc<dyn PostFilter>>,
    /// With weights.
    pub scores: Vec<(Arc<dyn Score>, i64)>,
    pub reserves: Vec<Arc<dyn Reserve>>,
    pub permits: Vec<Arc<dyn Permit>>,
    pub pre_binds: Vec<Arc<dyn PreBind>>,
    /// Preemption, unless the profile has none.
    pub preemption: Option<crate::preempt::Args>,
    /// How many of the nodes that fit are scored, in per cent; 0: it depends on their number.
    pub percentage_of_nodes_to_score: usize,
    /// By name, for queueing hints.
    pub(crate) hints: HashMap<&'static str, Hint>,
}

/// A plugin's queueing hint.
pub(crate) type Hint = Arc<dyn Fn(&PodInfo, &ClusterEvent<'_>, &Snapshot) -> bool + Send + Sync>;

impl Framework {
    /// A profile of this name without any plugin.
    pub fn empty(scheduler_name: &str, queue_sort: Box<dyn QueueSort>) -> Self {
        Framework {
            scheduler_name: scheduler_name.into(),
            queue_sort,
            pre_enqueue: Vec::new(),
            filters: Vec::new(),
            post_filters: Vec::new(),
            scores: Vec::new(),
            reserves: Vec::new(),
            permits: Vec::new(),
            pre_binds: Vec::new(),
            preemption: None,
            percentage_of_nodes_to_score: 0,
            hints: HashMap::new(),
        }
    }

    /// Whether the plugin for devices is asked when no node fits.
    pub(crate) fn has_devices(&self) -> bool {
        self.post_filters.iter().any(|plugin| plugin.name() == DEVICES)
    }

    /// Whether the plugin of this name tells which events matter.
    pub fn has_hint(&self, plugin: &str) -> bool {
        self.hints.contains_key(plugin)
    }

    /// Whether the event may let a pod fit that was rejected by the plugin of this name.
    pub fn wakes(&self, plugin: &str, pod: &PodInfo, event: &ClusterEvent<'_>, snapshot: &Snapshot) -> bool {
        // A name that no plugin has: better one try too many than a pod that stays for ever.
        self.hints.get(plugin).is_none_or(|wakes| wakes(pod, event, snapshot))
    }
}
