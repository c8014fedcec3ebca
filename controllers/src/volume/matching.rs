//! Which volume suits a claim. PURE.

use std::sync::Arc;

use hawser_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::{capacity, class_of_claim, class_of_volume, is_bound_to, modes_differ, requested};
use crate::object;

fn access<'a>(modes: Option<&'a Vec<String>>) -> &'a [String] {
    modes.map(Vec::as_slice).unwrap_or_default()
}

fn attributes(class: Option<&String>) -> &str {
    class.map_or("", String::as_str)
}

fn allows(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let wanted = access(claim.spec.as_ref().and_then(|s| s.access_modes.as_ref()));
    let given = access(volume.spec.as_ref().and_then(|s| s.access_modes.as_ref()));
    wanted.iter().all(|mode| given.contains(mode))
}

fn same_attributes(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let wanted = attributes(claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_ref()));
    wanted == attributes(volume.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_ref()))
}

fn is_large_enough(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let wanted = claim.spec.as_ref().and_then(requested).unwrap_or(Quantity::ZERO);
    capacity(volume).unwrap_or(Quantity::ZERO) >= wanted
}

/// What a volume must be also when it is reserved for the claim.
fn fits(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    allows(claim, volume)
        && is_large_enough(claim, volume)
        && !modes_differ(claim, volume)
        && same_attributes(claim, volume)
        && !object::is_deleting(volume)
}

/// Of the volumes that are reserved for the claim (`reserved`) one, else of the free ones that with the fewest access
/// modes, and of those the smallest. With `delayed` binding the free ones are left to the scheduler.
///
/// # Errors
/// When the claim's selector cannot be read.
pub fn best<'a>(
    claim: &PersistentVolumeClaim,
    reserved: &'a [Arc<PersistentVolume>],
    free: &'a [Arc<PersistentVolume>],
    delayed: bool,
) -> Result<Option<&'a Arc<PersistentVolume>>, String> {
    let selector = match claim.spec.as_ref().and_then(|s| s.selector.as_ref()) {
        None => None,
        Some(selector) => Some(object::selector(selector).ok_or("the claim's selector cannot be read")?),
    };
    if let Some(volume) = reserved.iter().find(|v| is_bound_to(v, claim) && fits(claim, v)) {
        return Ok(Some(volume));
    }
    if delayed {
        return Ok(None);
    }
    let usable = free.iter().filter(|v| {
        is_free(v)
            && class_of_volume(v) == class_of_claim(claim)
            && selector.as_ref().is_none_or(|s| object::matches(s, &v.metadata.labels))
            && fits(claim, v)
    });
    Ok(usable.min_by(|a, b| {
        let modes =
            |v: &PersistentVolume| access(v.spec.as_ref().and_then(|s| s.access_modes.as_ref())).len();
        let size = |v: &PersistentVolume| capacity(v).unwrap_or(Quantity::ZERO);
        modes(a)
            .cmp(&modes(b))
            .then_with(|| size(a).cmp(&size(b)))
            .then_with(|| object::name(a.as_ref()).cmp(object::name(b.as_ref())))
    }))
}

/// Whether a volume can be given to any claim.
pub fn is_free(volume: &PersistentVolume) -> bool {
    volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_none())
        && volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available")
}

/// Why the volume that a claim names does not suit it, in Kubernetes' words.
pub fn mismatch(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<String> {
    if object::is_deleting(volume) {
        return Some(format!("the volume is marked for deletion {:?}", object::name(volume)));
    }
    let checks = [
        (is_large_enough(claim, volume), "requested PV is too small"),
        (class_of_volume(volume) == class_of_claim(claim), "storageClassName does not match"),
        (same_attributes(claim, volume), "volumeAttributesClassName does not match"),
        (!modes_differ(claim, volume), "incompatible volumeMode"),
        (allows(claim, volume), "incompatible accessMode"),
    ];
    checks.iter().find(|(ok, _)| !ok).map(|(_, why)| (*why).to_owned())
}
