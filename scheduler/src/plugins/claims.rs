//! What the volume plugins ask of a pod's claims.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::migration;
use crate::objects::{Objects, class_of_claim};
use crate::pod::PodInfo;
use crate::selector::NodeTerms;
use crate::snapshot::NodeInfo;

/// `namespace/name` of a claim of the pod.
pub fn claim_name(pod: &PodInfo, claim: &str) -> String {
    format!("{}/{claim}", pod.key.namespace)
}

/// What a lister says of an object that is not there.
pub fn not_found(resource: &str, name: &str) -> String {
    format!("{resource} {} not found", hawser_api::text::quote(name))
}

/// The volume that a claim names; empty for none.
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default()
}

/// Whether a claim and its volume are bound to each other for good.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let annotations = claim.metadata.annotations.as_ref();
    !volume_name(claim).is_empty()
        && annotations.is_some_and(|a| a.contains_key("pv.kubernetes.io/bind-completed"))
}

/// Whether an ephemeral volume's claim was made for this very pod.
pub fn made_for(claim: &PersistentVolumeClaim, pod: &PodInfo) -> bool {
    let owner = claim.metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true));
    owner.is_some_and(|o| o.kind == "Pod" && *o.uid == *pod.key.uid)
}

/// What is wrong with an ephemeral volume's claim that was not made for the pod.
pub fn made_for_other(claim: &PersistentVolumeClaim, pod: &PodInfo) -> String {
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    format!(
        "PVC {}/{name} was not created for pod {}/{} (pod is not owner)",
        pod.key.namespace, pod.key.namespace, pod.key.name
    )
}

/// Whether a node is where a volume can be used.
pub fn reachable(volume: &PersistentVolume, node: &NodeInfo) -> bool {
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref());
    affinity
        .and_then(|a| a.required.as_ref())
        .is_none_or(|required| NodeTerms::new(required).matches("", &node.labels))
}

/// How a claim is to be bound: when the first pod that uses it has a node (`Ok(true)`), or at once.
pub fn waits_for_consumer(claim: &PersistentVolumeClaim, objects: &Objects) -> Result<bool, String> {
    let name = class_of_claim(claim);
    let Some(class) = objects.classes.get(name).filter(|_| !name.is_empty()) else { return Ok(false) };
    match class.volume_binding_mode.as_deref() {
        None => Err(format!("VolumeBindingMode not set for StorageClass {}", hawser_api::text::quote(name))),
        Some(mode) => Ok(mode == "WaitForFirstConsumer"),
    }
}

/// The driver and the handle of a claim's volume, which nodes limit the number of; `None` if it is not CSI's. `migrated`:
/// CSI drivers have taken the place of those that were built in.
pub fn csi_volume(
    claim: &Arc<PersistentVolumeClaim>,
    objects: &Objects,
    migrated: bool,
) -> Option<migration::CsiVolume> {
    if let Some(volume) = objects.volumes.get(volume_name(claim)) {
        return match volume.spec.as_ref()?.csi.as_ref() {
            Some(source) => Some((source.driver.as_str().into(), source.volume_handle.clone())),
            None => migration::of_volume(volume).filter(|_| migrated),
        };
    }
    let class = objects.classes.get(class_of_claim(claim))?;
    let driver = migration::driver(&class.provisioner)
        .filter(|_| migrated || !migration::is_built_in(&class.provisioner))?;
    let (namespace, name) = (claim.metadata.namespace.as_deref()?, claim.metadata.name.as_deref()?);
    // Not provisioned yet: a handle that no volume has.
    Some((driver.into(), format!("?{namespace}/{name}")))
}
