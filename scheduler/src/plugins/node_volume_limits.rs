//! NodeVolumeLimits: a node can attach so many volumes of a CSI driver, as its CSINode tells. Volumes of drivers that
//! were built in count as those of the CSI drivers in their place.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::Volume;

use super::claims::{claim_name, csi_volume, made_for, made_for_other, not_found};
use super::migration;
use crate::framework::{ClusterEvent, Filter, Plugin, Prepared, Rejection, State, state};
use crate::objects::{Object, Objects};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// Volumes of one node, each counted once: those of its pods, and those attached for whatever reason.
pub struct NodeVolumeLimits;

type Volumes = HashSet<migration::CsiVolume>;

fn counts(pod: &PodInfo) -> bool {
    let counts = |v: &Volume| v.persistent_volume_claim.is_some() || v.ephemeral.is_some();
    pod.volumes.iter().any(|v| counts(v) || migration::is_inline(v))
}

/// The volumes of a pod that count. Of a pod that is there already, claims that are gone do not matter. `migrated`: the
/// node tells of CSI drivers, so that these have the volumes of drivers that were built in.
fn volumes(pod: &PodInfo, objects: &Objects, new: bool, migrated: bool) -> Result<Volumes, Rejection> {
    let mut found = Volumes::new();
    for volume in &pod.volumes {
        let Some((name, ephemeral)) = pod.claim_of(volume) else {
            if let Some(inline) = migration::inline(volume).filter(|_| migrated) {
                found.insert(inline.map_err(Rejection::failure)?);
            }
            continue;
        };
        let key = claim_name(pod, &name);
        let Some(claim) = objects.claims.get(key.as_str()) else {
            if new {
                let text = not_found("persistentvolumeclaim", &name);
                return Err(Rejection::lasting(format!("looking up PVC {key}: {text}")));
            }
            continue;
        };
        if new && ephemeral && !made_for(claim, pod) {
            return Err(Rejection::lasting(made_for_other(claim, pod)));
        }
        found.extend(csi_volume(claim, objects, migrated));
    }
    Ok(found)
}

/// The volumes of a pod, on a node that tells of CSI drivers, and on one that does not.
#[derive(Clone)]
struct Known {
    migrated: Result<Volumes, Rejection>,
    plain: Result<Volumes, Rejection>,
}

impl Plugin for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        "NodeVolumeLimits"
    }

    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>, _: &Snapshot) -> bool {
        match event {
            ClusterEvent::PodGone { pod: gone, .. } => counts(gone),
            ClusterEvent::Object { before, after: Some(Object::CsiNode(after)), .. } => {
                let limit = |drivers: &crate::objects::CsiNode, name: &str| {
                    drivers.get(name).copied().flatten().unwrap_or(0)
                };
                match before {
                    Some(Object::CsiNode(before)) => {
                        after.keys().any(|name| limit(after, name) > limit(before, name))
                    }
                    _ => true,
                }
            }
            ClusterEvent::Object { name, before: None, after: Some(Object::PersistentVolumeClaim(_)) } => {
                pod.claims().any(|(claim, _)| claim_name(pod, &claim) == *name)
            }
            ClusterEvent::Object { before: Some(Object::VolumeAttachment(_)), after: None, .. } => {
                pod.volumes.iter().any(|v| v.persistent_volume_claim.is_some() || migration::is_inline(v))
            }
            _ => false,
        }
    }
}

impl Filter for NodeVolumeLimits {
    fn prepare(&self, pod: &PodInfo, snapshot: &Snapshot, _: Option<Box<dyn State>>) -> Prepared {
        if !counts(pod) {
            return Prepared::Skip;
        }
        let volumes = |migrated| volumes(pod, &snapshot.objects, true, migrated);
        Prepared::Look(Box::new(Known { migrated: volumes(true), plain: volumes(false) }))
    }

    fn filter(
        &self,
        known: &dyn State,
        _: &PodInfo,
        node: &NodeInfo,
        snapshot: &Snapshot,
    ) -> Result<(), Rejection> {
        let (known, objects) = (state::<Known>(known), &snapshot.objects);
        let Some(limits) = objects.csi_nodes.get(&node.name) else {
            return known.plain.clone().map(|_| ());
        };
        let mut new = known.migrated.clone()?;
        if new.is_empty() || limits.values().all(Option::is_none) {
            return Ok(());
        }
        let mut there = Volumes::new();
        for resident in node.residents().iter().filter(|pod| counts(pod)) {
            there.extend(volumes(resident, objects, false, true)?);
        }
        new.retain(|volume| !there.contains(volume));
        for name in objects.attached_to.get(&*node.name).into_iter().flatten() {
            let Some(attachment) = objects.attachments.get(name) else { continue };
            let volume = attachment.volume.as_deref().and_then(|name| objects.volumes.get(name));
            if let Some(csi) = volume.and_then(|v| v.spec.as_ref()?.csi.as_ref()) {
                there.insert((attachment.attacher.clone(), csi.volume_handle.clone()));
            }
        }
        let mut counts: HashMap<&str, (i64, i64)> = HashMap::new();
        for (driver, _) in &there {
            counts.entry(driver).or_default().0 += 1;
        }
        for (driver, _) in &new {
            counts.entry(driver).or_default().1 += 1;
        }
        let over = |(driver, (there, new)): (&str, (i64, i64))| {
            let limit = limits.get(driver).copied().flatten();
            new > 0 && limit.is_some_and(|limit| there + new > limit)
        };
        if counts.into_iter().any(over) {
            return Err(Rejection::resolvable("node(s) exceed max volume count"));
        }
        Ok(())
    }

    fn is_local(&self) -> bool {
        false
    }
}
