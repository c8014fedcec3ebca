//! VolumeZone: a volume whose labels name a zone or a region can only be used there.

use super::claims::{claim_name, not_found, volume_name};
use crate::framework::{ClusterEvent, Filter, Plugin, Prepared, Rejection, State, state};
use crate::objects::{Object, class_of_claim};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};
use k8s_openapi::api::core::v1::PersistentVolume;

/// Labels that tell where something is, and the names that the older ones have now.
const LABELS: [(&str, &str); 4] = [
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("topology.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("topology.kubernetes.io/region", "topology.kubernetes.io/region"),
];

/// The labels of bound volumes.
pub struct VolumeZone;

/// A label, its present name, and the values that will do.
type Places = Vec<(&'static str, &'static str, Vec<String>)>;

fn places(volume: &PersistentVolume) -> Places {
    let labels = volume.metadata.labels.as_ref();
    let of = |(old, new): (&'static str, &'static str)| {
        let value = labels?.get(old)?;
        // Several zones are written a__b.
        let values: Vec<String> = value.split("__").map(|v| v.trim().to_owned()).collect();
        values.iter().all(|v| !v.is_empty()).then_some((old, new, values))
    };
    LABELS.into_iter().filter_map(of).collect()
}

impl VolumeZone {
    fn of_pod(&self, pod: &PodInfo, snapshot: &Snapshot) -> Result<Places, Rejection> {
        let objects = &snapshot.objects;
        let mut found = Vec::new();
        let named = pod.volumes.iter().filter_map(|v| v.persistent_volume_claim.as_ref());
        for claim in named {
            let name = claim.claim_name.as_str();
            if name.is_empty() {
                return Err(Rejection::lasting("PersistentVolumeClaim had no name"));
            }
            let Some(claim) = objects.claims.get(claim_name(pod, name).as_str()) else {
                return Err(Rejection::lasting(not_found("persistentvolumeclaim", name)));
            };
            let volume = volume_name(claim);
            if !volume.is_empty() {
                let Some(volume) = objects.volumes.get(volume) else {
                    return Err(Rejection::lasting(not_found("persistentvolume", volume)));
                };
                found.extend(places(volume));
                continue;
            }
            let class = class_of_claim(claim);
            if class.is_empty() {
                return Err(Rejection::lasting("PersistentVolumeClaim had no pv name and storageClass name"));
            }
            let Some(known) = objects.classes.get(class) else {
                return Err(Rejection::lasting(not_found("storageclass.storage.k8s.io", class)));
            };
            match known.volume_binding_mode.as_deref() {
                None => {
                    let quoted = hawser_api::text::quote(class);
                    return Err(Rejection::lasting(format!(
                        "VolumeBindingMode not set for StorageClass {quoted}"
                    )));
                }
                Some("WaitForFirstConsumer") => {}
                Some(_) => return Err(Rejection::lasting("PersistentVolume had no name")),
            }
        }
        Ok(found)
    }
}

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>, _: &Snapshot) -> bool {
        match event {
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::NodeChanged { before, after } => before.labels != after.labels,
            ClusterEvent::Object { before: None, after: Some(Object::StorageClass(class)), .. } => {
                class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
            }
            ClusterEvent::Object { name, after: Some(Object::PersistentVolumeClaim(_)), .. } => {
                let mut named = pod.volumes.iter().filter_map(|v| v.persistent_volume_claim.as_ref());
                named.any(|claim| claim_name(pod, &claim.claim_name) == *name)
            }
            ClusterEvent::Object { before, after: Some(Object::PersistentVolume(after)), .. } => match before
            {
                Some(Object::PersistentVolume(before)) => places(before) != places(after),
                _ => true,
            },
            _ => false,
        }
    }
}

impl Filter for VolumeZone {
    fn prepare(&self, pod: &PodInfo, snapshot: &Snapshot, _: Option<Box<dyn State>>) -> Prepared {
        if pod.volumes.is_empty() {
            return Prepared::Skip;
        }
        match self.of_pod(pod, snapshot) {
            Err(rejection) => Prepared::Reject(rejection),
            Ok(places) if places.is_empty() => Prepared::Skip,
            Ok(places) => Prepared::Look(Box::new(places)),
        }
    }

    fn filter(&self, known: &dyn State, _: &PodInfo, node: &NodeInfo, _: &Snapshot) -> Result<(), Rejection> {
        if !LABELS.iter().any(|(label, _)| node.labels.contains_key(*label)) {
            return Ok(());
        }
        for (label, now, values) in state::<Places>(known) {
            let value = node.labels.get(*label).or_else(|| node.labels.get(*now));
            if value.is_none_or(|value| !values.contains(value)) {
                return Err(Rejection::lasting("node(s) had no available volume zone"));
            }
        }
        Ok(())
    }

    fn is_local(&self) -> bool {
        false
    }
}
