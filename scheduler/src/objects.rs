//! What plugins know of objects other than pods and nodes, cut down to what they ask.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use hawser_api::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use k8s_openapi::api::storage::v1::{CSIStorageCapacity, StorageClass};

use crate::devices::{Inventory, Slice};
use crate::selector::Labels;

/// `namespace/name`, or the name alone of what has no namespace.
pub type Name = Arc<str>;

/// Kinds of which the scheduler keeps something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Namespace,
    Service,
    /// ReplicationControllers, ReplicaSets and StatefulSets: what owns pods and selects them.
    Workload,
    PersistentVolumeClaim,
    PersistentVolume,
    StorageClass,
    CsiNode,
    CsiDriver,
    CsiStorageCapacity,
    VolumeAttachment,
    PodDisruptionBudget,
    PodGroup,
    ResourceClaim,
    DeviceClass,
    ResourceSlice,
}

/// A PodDisruptionBudget.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    pub namespace: Box<str>,
    pub selector: LabelSelector,
    pub allowed: i32,
    /// Pods whose disruption is counted already.
    pub disrupted: HashSet<Box<str>>,
}

/// Where a volume is attached, or to be attached.
#[derive(Clone, Debug, PartialEq)]
pub struct Attachment {
    pub attacher: Box<str>,
    pub node: Box<str>,
    pub volume: Option<Box<str>>,
}

/// A PodGroup: how many of its pods must go at once (`None`: each for itself).
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub min_count: Option<usize>,
}

/// Of a CSINode: how many volumes each driver can attach there; `None` is no limit.
pub type CsiNode = BTreeMap<Box<str>, Option<i64>>;

/// An object as the scheduler keeps it.
#[derive(Clone, Debug)]
pub enum Object {
    Namespace(Labels),
    /// Namespace and selector.
    Service(Box<str>, Labels),
    /// Selector. The key is `kind/namespace/name`.
    Workload(LabelSelector),
    PersistentVolumeClaim(Arc<PersistentVolumeClaim>),
    PersistentVolume(Arc<PersistentVolume>),
    StorageClass(Arc<StorageClass>),
    CsiNode(CsiNode),
    /// Whether it publishes capacities.
    CsiDriver(bool),
    CsiStorageCapacity(Arc<CSIStorageCapacity>),
    VolumeAttachment(Attachment),
    PodDisruptionBudget(Budget),
    PodGroup(Group),
    ResourceClaim(Arc<ResourceClaim>),
    DeviceClass(Arc<DeviceClass>),
    ResourceSlice(Arc<Slice>),
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Object::Namespace(_) => Kind::Namespace,
            Object::Service(..) => Kind::Service,
            Object::Workload(_) => Kind::Workload,
            Object::PersistentVolumeClaim(_) => Kind::PersistentVolumeClaim,
            Object::PersistentVolume(_) => Kind::PersistentVolume,
            Object::StorageClass(_) => Kind::StorageClass,
            Object::CsiNode(_) => Kind::CsiNode,
            Object::CsiDriver(_) => Kind::CsiDriver,
            Object::CsiStorageCapacity(_) => Kind::CsiStorageCapacity,
            Object::VolumeAttachment(_) => Kind::VolumeAttachment,
            Object::PodDisruptionBudget(_) => Kind::PodDisruptionBudget,
            Object::PodGroup(_) => Kind::PodGroup,
            Object::ResourceClaim(_) => Kind::ResourceClaim,
            Object::DeviceClass(_) => Kind::DeviceClass,
            Object::ResourceSlice(_) => Kind::ResourceSlice,
        }
    }
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub namespaces: HashMap<Name, Labels>,
    /// Selectors of Services, by namespace.
    pub services: HashMap<Box<str>, BTreeMap<Name, Labels>>,
    pub workloads: HashMap<Name, LabelSelector>,
    pub claims: HashMap<Name, Arc<PersistentVolumeClaim>>,
    pub volumes: HashMap<Name, Arc<PersistentVolume>>,
    /// Names of volumes by their class.
    pub volumes_of_class: HashMap<Box<str>, std::collections::BTreeSet<Name>>,
    pub classes: HashMap<Name, Arc<StorageClass>>,
    pub csi_nodes: HashMap<Name, CsiNode>,
    pub csi_drivers: HashMap<Name, bool>,
    pub capacities: BTreeMap<Name, Arc<CSIStorageCapacity>>,
    pub attachments: HashMap<Name, Attachment>,
    /// Names of attachments by their node.
    pub attached_to: HashMap<Box<str>, HashSet<Name>>,
    /// By namespace.
    pub budgets: HashMap<Box<str>, BTreeMap<Name, Budget>>,
    pub groups: HashMap<Name, Group>,
    pub devices: Inventory,
    /// When the cycle began, or a choice was looked at again: plugins read no clock.
    pub now: Timestamp,
    /// What this process has decided and not seen in the API yet.
    pub assumed_claims: HashMap<Name, Arc<PersistentVolumeClaim>>,
    pub assumed_volumes: HashMap<Name, Arc<PersistentVolume>>,
    /// Pods by their PodGroup.
    members: HashMap<Name, Members>,
    /// Of pods whose volumes are being bound: volumes and claims that were decided about.
    pub reserved: HashMap<Arc<str>, Reserved>,
    versions: HashMap<Kind, u64>,
}

/// The pods of a PodGroup by uid, and whether each has a node.
#[derive(Clone, Debug, Default)]
struct Members {
    pods: HashMap<Arc<str>, bool>,
    placed: usize,
}

/// Volumes and claims that were decided about for a pod.
#[derive(Clone, Debug, Default)]
pub struct Reserved {
    pub volumes: Vec<Name>,
    pub claims: Vec<Name>,
}

impl Objects {
    /// Counts the changes of a kind. What was derived from it holds while this is the same.
    pub fn version(&self, kind: Kind) -> u64 {
        self.versions.get(&kind).copied().unwrap_or(0)
    }

    /// How many pods a PodGroup has, and how many of them have a node.
    pub fn members(&self, group: &str) -> (usize, usize) {
        self.members.get(group).map_or((0, 0), |m| (m.pods.len(), m.placed))
    }

    /// Notes a pod of a PodGroup, and whether it has a node; `None`: it is gone.
    pub fn set_member(&mut self, group: &str, uid: &Arc<str>, placed: Option<bool>) {
        let members = self.members.entry(group.into()).or_default();
        let before = match placed {
            Some(placed) => members.pods.insert(uid.clone(), placed),
            None => members.pods.remove(uid),
        };
        members.placed -= usize::from(before == Some(true));
        members.placed += usize::from(placed == Some(true));
        if members.pods.is_empty() {
            self.members.remove(group);
        }
    }

    /// A claim, as it will be once what was decided is carried out.
    pub fn claim(&self, name: &str) -> Option<&Arc<PersistentVolumeClaim>> {
        self.assumed_claims.get(name).or_else(|| self.claims.get(name))
    }

    /// A volume, likewise.
    pub fn volume(&self, name: &str) -> Option<&Arc<PersistentVolume>> {
        self.assumed_volumes.get(name).or_else(|| self.volumes.get(name))
    }

    /// Takes in an object that was seen. Answers what it was before.
    pub fn set(&mut self, name: Name, object: Object) -> Option<Object> {
        *self.versions.entry(object.kind()).or_default() += 1;
        match object {
            Object::Namespace(labels) => self.namespaces.insert(name, labels).map(Object::Namespace),
            Object::Service(namespace, selector) => {
                let before = self.services.entry(namespace.clone()).or_default().insert(name, selector);
                before.map(|selector| Object::Service(namespace, selector))
            }
            Object::Workload(selector) => self.workloads.insert(name, selector).map(Object::Workload),
            Object::PersistentVolumeClaim(claim) => {
                if self.assumed_claims.get(&name).is_some_and(|a| newer(&claim.metadata, &a.metadata)) {
                    self.assumed_claims.remove(&name);
                }
                self.claims.insert(name, claim).map(Object::PersistentVolumeClaim)
            }
            Object::PersistentVolume(volume) => {
                if self.assumed_volumes.get(&name).is_some_and(|a| newer(&volume.metadata, &a.metadata)) {
                    self.assumed_volumes.remove(&name);
                }
                let class = class_of_volume(&volume);
                let before = self.volumes.insert(name.clone(), volume);
                if let Some(before) = &before
                    && class_of_volume(before) != class
                {
                    self.unlist_volume(&name, &class_of_volume(before));
                }
                self.volumes_of_class.entry(class).or_default().insert(name);
                before.map(Object::PersistentVolume)
            }
            Object::StorageClass(class) => self.classes.insert(name, class).map(Object::StorageClass),
            Object::CsiNode(limits) => self.csi_nodes.insert(name, limits).map(Object::CsiNode),
            Object::CsiDriver(publishes) => self.csi_drivers.insert(name, publishes).map(Object::CsiDriver),
            Object::CsiStorageCapacity(capacity) => {
                self.capacities.insert(name, capacity).map(Object::CsiStorageCapacity)
            }
            Object::VolumeAttachment(attachment) => {
                let before = self.unattach(&name);
                self.attached_to.entry(attachment.node.clone()).or_default().insert(name.clone());
                self.attachments.insert(name, attachment);
                before.map(Object::VolumeAttachment)
            }
            Object::PodDisruptionBudget(budget) => {
                let of_namespace = self.budgets.entry(budget.namespace.clone()).or_default();
                of_namespace.insert(name, budget).map(Object::PodDisruptionBudget)
            }
            Object::PodGroup(group) => self.groups.insert(name, group).map(Object::PodGroup),
            Object::ResourceClaim(claim) => self.devices.set_claim(name, claim).map(Object::ResourceClaim),
            Object::DeviceClass(class) => self.devices.set_class(name, class).map(Object::DeviceClass),
            Object::ResourceSlice(slice) => self.devices.set_slice(name, slice).map(Object::ResourceSlice),
        }
    }

    /// An object is gone. Answers what it was.
    pub fn remove(&mut self, kind: Kind, name: &str) -> Option<Object> {
        *self.versions.entry(kind).or_default() += 1;
        let namespace = name.split('/').next().unwrap_or_default();
        match kind {
            Kind::Namespace => self.namespaces.remove(name).map(Object::Namespace),
            Kind::Service => {
                let gone = self.services.get_mut(namespace)?.remove(name);
                gone.map(|selector| Object::Service(namespace.into(), selector))
            }
            Kind::Workload => self.workloads.remove(name).map(Object::Workload),
            Kind::PersistentVolumeClaim => {
                self.assumed_claims.remove(name);
                self.claims.remove(name).map(Object::PersistentVolumeClaim)
            }
            Kind::PersistentVolume => {
                self.assumed_volumes.remove(name);
                let gone = self.volumes.remove(name)?;
                self.unlist_volume(name, &class_of_volume(&gone));
                Some(Object::PersistentVolume(gone))
            }
            Kind::StorageClass => self.classes.remove(name).map(Object::StorageClass),
            Kind::CsiNode => self.csi_nodes.remove(name).map(Object::CsiNode),
            Kind::CsiDriver => self.csi_drivers.remove(name).map(Object::CsiDriver),
            Kind::CsiStorageCapacity => self.capacities.remove(name).map(Object::CsiStorageCapacity),
            Kind::VolumeAttachment => self.unattach(name).map(Object::VolumeAttachment),
            Kind::PodDisruptionBudget => {
                self.budgets.get_mut(namespace)?.remove(name).map(Object::PodDisruptionBudget)
            }
            Kind::PodGroup => self.groups.remove(name).map(Object::PodGroup),
            Kind::ResourceClaim => self.devices.remove_claim(name).map(Object::ResourceClaim),
            Kind::DeviceClass => self.devices.remove_class(name).map(Object::DeviceClass),
            Kind::ResourceSlice => self.devices.remove_slice(name).map(Object::ResourceSlice),
        }
    }

    /// Marks that something was decided about objects of a kind.
    pub fn touch(&mut self, kind: Kind) {
        *self.versions.entry(kind).or_default() += 1;
    }

    fn unattach(&mut self, name: &str) -> Option<Attachment> {
        let gone = self.attachments.remove(name)?;
        if let Some(names) = self.attached_to.get_mut(&gone.node) {
            names.remove(name);
            if names.is_empty() {
                self.attached_to.remove(&gone.node);
            }
        }
        Some(gone)
    }

    fn unlist_volume(&mut self, name: &str, class: &str) {
        if let Some(names) = self.volumes_of_class.get_mut(class) {
            names.remove(name);
            if names.is_empty() {
                self.volumes_of_class.remove(class);
            }
        }
    }
}

type Meta = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Whether an object that was seen is newer than the one that a decision was made on. The decision keeps the
/// resourceVersion of what it changes.
fn newer(seen: &Meta, assumed: &Meta) -> bool {
    let version = |m: &Meta| m.resource_version.as_deref().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
    version(seen) > version(assumed)
}

const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// The class of a volume; empty for none.
pub fn class_of_volume(volume: &PersistentVolume) -> Box<str> {
    let old = volume.metadata.annotations.as_ref().and_then(|a| a.get(OLD_CLASS));
    let own = volume.spec.as_ref().and_then(|s| s.storage_class_name.as_ref());
    old.or(own).map(String::as_str).unwrap_or_default().into()
}

/// The class of a claim; empty for none.
pub fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let old = claim.metadata.annotations.as_ref().and_then(|a| a.get(OLD_CLASS));
    let own = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_ref());
    old.or(own).map(String::as_str).unwrap_or_default()
}
