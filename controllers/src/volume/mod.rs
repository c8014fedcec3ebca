//! Persistent volumes: claims and volumes find each other ([`claim`], [`phase`]), are made larger ([`expand`]), are made
//! for pods ([`ephemeral`]) and attached to nodes ([`attach`]).

pub mod attach;
pub mod binder;
pub mod claim;
pub mod ephemeral;
pub mod expand;
pub mod matching;
pub mod phase;
#[cfg(test)]
mod tests;

use hawser_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource;

use crate::object::{self, Object};

/// On a claim: it was bound once.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On claims and volumes: we chose the other.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a claim: the node for which the scheduler wants a volume.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a volume: what made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a volume: a CSI driver does what a plugin in Kubernetes did.
pub const MIGRATED_TO: &str = "pv.kubernetes.io/migrated-to";
/// On a claim: who is to make a volume; the second is the name of old.
pub const PROVISIONERS: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
/// On claims and volumes: the class, before there was a field.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// On classes: claims that name none get this one.
const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

/// An annotation's value.
pub fn annotation<'a, K: Object>(object: &'a K, name: &str) -> Option<&'a str> {
    object.meta().annotations.as_ref()?.get(name).map(String::as_str)
}

/// Sets an annotation to `yes` if it is not there.
pub fn mark<K: Object>(object: &mut K, name: &str) {
    let annotations = object.meta_mut().annotations.get_or_insert_default();
    annotations.entry(name.to_owned()).or_insert_with(|| "yes".to_owned());
}

/// The class that a claim wants; none if it says nothing, the empty one if it wants none.
pub fn stated_class(claim: &PersistentVolumeClaim) -> Option<&str> {
    let spec = claim.spec.as_ref();
    annotation(claim, CLASS).or_else(|| spec.and_then(|s| s.storage_class_name.as_deref()))
}

/// The class that a claim wants, empty if none.
pub fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    stated_class(claim).unwrap_or_default()
}

/// The class of a volume, empty if it has none.
pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    let stated = annotation(volume, CLASS).or_else(|| spec.and_then(|s| s.storage_class_name.as_deref()));
    stated.unwrap_or_default()
}

/// The class of claims that name none: of several the newest.
pub fn default_class(classes: &[std::sync::Arc<StorageClass>]) -> Option<&StorageClass> {
    let is_default =
        |c: &&StorageClass| DEFAULT_CLASS.iter().any(|name| annotation(*c, name) == Some("true"));
    let created = |c: &StorageClass| c.metadata.creation_timestamp.as_ref().map(|t| t.0);
    classes
        .iter()
        .map(AsRef::as_ref)
        .filter(is_default)
        .max_by(|a, b| created(a).cmp(&created(b)).then_with(|| object::name(*b).cmp(object::name(*a))))
}

/// The amount of storage in a map of resources.
pub fn storage(map: Option<&std::collections::BTreeMap<String, resource::Quantity>>) -> Option<Quantity> {
    Quantity::parse(&map?.get("storage")?.0).ok()
}

/// How much a claim asks for.
pub fn requested(spec: &PersistentVolumeClaimSpec) -> Option<Quantity> {
    storage(spec.resources.as_ref().and_then(|r| r.requests.as_ref()))
}

/// How much a volume holds.
pub fn capacity(volume: &PersistentVolume) -> Option<Quantity> {
    storage(volume.spec.as_ref().and_then(|s| s.capacity.as_ref()))
}

/// Whether a volume is bound, or reserved, to a claim.
pub fn is_bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    reference.is_some_and(|r| {
        let uid = r.uid.as_deref().unwrap_or_default();
        r.name == claim.metadata.name
            && r.namespace == claim.metadata.namespace
            && (uid.is_empty() || uid == object::uid(claim))
    })
}

/// Volumes are files or blocks; whether the two differ in that.
pub fn modes_differ(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let of = |mode: Option<&String>| mode.map_or("Filesystem", String::as_str).to_owned();
    of(claim.spec.as_ref().and_then(|s| s.volume_mode.as_ref()))
        != of(volume.spec.as_ref().and_then(|s| s.volume_mode.as_ref()))
}
