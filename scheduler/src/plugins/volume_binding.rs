//! VolumeBinding: the pod's claims are bound, or can be bound to volumes that the node reaches, or provisioned for it.
//!
//! Claims of a class with `WaitForFirstConsumer` are decided about here: the volume gets its `claimRef`, or the claim the
//! annotation with the chosen node, and the pod is bound once the volume controller has bound the claim.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hawser_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};

use super::claims::{
    claim_name, is_bound, made_for, made_for_other, not_found, reachable, volume_name, waits_for_consumer,
};
use crate::framework::{
    ClusterEvent, Filter, Plugin, PreBind, Prepared, Readiness, Reason, Rejection, Reserve, State, Wait,
    Write, state,
};
use crate::objects::{Kind, Name, Object, Objects, Reserved, class_of_claim, class_of_volume};
use crate::pod::PodInfo;
use crate::selector::{compile, selects};
use crate::snapshot::{NodeInfo, Snapshot};

const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BOUND_BY: &str = "pv.kubernetes.io/bound-by-controller";
/// A class of this provisioner has only volumes that are there already.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// VolumeBindingArgs: how long binding may take.
pub struct VolumeBinding {
    pub timeout: Duration,
}

impl Default for VolumeBinding {
    fn default() -> Self {
        VolumeBinding { timeout: Duration::from_secs(600) }
    }
}

type Claim = Arc<PersistentVolumeClaim>;

/// A pod's claims.
#[derive(Clone, Debug, Default)]
struct Claims {
    bound: Vec<Claim>,
    /// To be bound when the node is known.
    waiting: Vec<Claim>,
}

/// What is to be done about claims on a node.
#[derive(Default)]
struct Plan {
    bindings: Vec<(Claim, Arc<PersistentVolume>)>,
    provisions: Vec<Claim>,
}

fn claims(pod: &PodInfo, objects: &Objects) -> Result<Claims, Rejection> {
    let mut found = Claims::default();
    let mut immediate = false;
    for (name, ephemeral) in pod.claims() {
        let Some(claim) = objects.claim(&claim_name(pod, &name)) else {
            let text = if ephemeral {
                let quoted = hawser_api::text::quote(&name);
                format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim {quoted}"
                )
            } else {
                not_found("persistentvolumeclaim", &name)
            };
            return Err(Rejection::lasting(text));
        };
        let quoted = hawser_api::text::quote(&name);
        if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost") {
            let volume = hawser_api::text::quote(volume_name(claim));
            let text =
                format!("persistentvolumeclaim {quoted} bound to non-existent persistentvolume {volume}");
            return Err(Rejection::lasting(text));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(Rejection::lasting(format!("persistentvolumeclaim {quoted} is being deleted")));
        }
        if ephemeral && !made_for(claim, pod) {
            return Err(Rejection::lasting(made_for_other(claim, pod)));
        }
        if is_bound(claim) {
            found.bound.push(claim.clone());
        } else if waits_for_consumer(claim, objects).map_err(Rejection::lasting)?
            && volume_name(claim).is_empty()
        {
            found.waiting.push(claim.clone());
        } else {
            immediate = true;
        }
    }
    if immediate {
        return Err(Rejection::lasting("pod has unbound immediate PersistentVolumeClaims"));
    }
    Ok(found)
}

fn storage(list: Option<&BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>) -> i64 {
    let amount = list.and_then(|list| list.get("storage"));
    amount.and_then(|q| q.0.parse::<Quantity>().ok()).map_or(0, |q| q.value())
}

fn requested(claim: &PersistentVolumeClaim) -> i64 {
    storage(claim.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.as_ref()))
}

fn capacity(volume: &PersistentVolume) -> i64 {
    storage(volume.spec.as_ref().and_then(|s| s.capacity.as_ref()))
}

/// What is to be done about the claims on a node, or everything that speaks against it.
fn plan(known: &Claims, node: &NodeInfo, objects: &Objects) -> Result<Plan, Rejection> {
    let mut reasons: Vec<&'static str> = Vec::new();
    let mut plan = Plan::default();
    let mut lost = false;
    for claim in &known.bound {
        match objects.volume(volume_name(claim)) {
            None => {
                lost = true;
                break;
            }
            Some(volume) if !reachable(volume, node) => {
                reasons.push("node(s) didn't match PersistentVolume's node affinity");
                break;
            }
            Some(_) => {}
        }
    }
    let mut full = false;
    match unbound(known, node, objects, &mut plan) {
        Ok(enough) => full = !enough,
        Err(None) => reasons.push("node(s) didn't find available persistent volumes to bind"),
        Err(Some(rejection)) => return Err(rejection),
    }
    if full {
        reasons.push("node(s) did not have enough free storage");
    }
    if lost {
        reasons.push("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)");
    }
    if reasons.is_empty() {
        return Ok(plan);
    }
    let reasons = reasons.into_iter().map(Reason::new).collect();
    Err(Rejection { plugin: "", resolvable: false, failed: false, reasons })
}

/// Finds volumes for claims that wait for the node, or sees that they can be provisioned for it; whether there is storage
/// enough. `Err(None)`: there is no volume.
fn unbound(
    known: &Claims,
    node: &NodeInfo,
    objects: &Objects,
    plan: &mut Plan,
) -> Result<bool, Option<Rejection>> {
    let mut to_match = Vec::new();
    for claim in &known.waiting {
        let selected = claim.metadata.annotations.as_ref().and_then(|a| a.get(SELECTED_NODE));
        match selected {
            Some(selected) if **selected != *node.name => return Err(None),
            Some(_) => plan.provisions.push(claim.clone()),
            None => to_match.push(claim),
        }
    }
    to_match.sort_by_key(|claim| requested(claim));
    for claim in to_match {
        match find(claim, node, objects, &plan.bindings) {
            Some(volume) => plan.bindings.push((claim.clone(), volume)),
            None => plan.provisions.push(claim.clone()),
        }
    }
    for claim in &plan.provisions {
        let Some(class) = objects.classes.get(class_of_claim(claim)) else {
            let quoted = hawser_api::text::quote(class_of_claim(claim));
            return Err(Some(Rejection::lasting(format!("failed to find storage class {quoted}"))));
        };
        if class.provisioner.is_empty() || class.provisioner == NO_PROVISIONER {
            return Err(None);
        }
        let topologies = class.allowed_topologies.as_deref().unwrap_or_default();
        let allowed = |term: &k8s_openapi::api::core::v1::TopologySelectorTerm| {
            let mut labels = term.match_label_expressions.iter().flatten();
            labels.all(|e| node.labels.get(&e.key).is_some_and(|value| e.values.contains(value)))
        };
        if !topologies.is_empty() && !topologies.iter().any(allowed) {
            return Err(None);
        }
        if !has_capacity(claim, class, node, objects) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The smallest volume that will do.
fn find(
    claim: &Claim,
    node: &NodeInfo,
    objects: &Objects,
    taken: &[(Claim, Arc<PersistentVolume>)],
) -> Option<Arc<PersistentVolume>> {
    let spec = claim.spec.as_ref()?;
    let selector = spec.selector.as_ref().map(|s| compile(Some(s)));
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".into());
    let class = class_of_claim(claim);
    let mut smallest: Option<(i64, Arc<PersistentVolume>)> = None;
    for name in objects.volumes_of_class.get(class).into_iter().flatten() {
        let Some(volume) = objects.volume(name) else { continue };
        let Some(of) = &volume.spec else { continue };
        let bound = of.claim_ref.as_ref().map(|r| refers(r, claim));
        if bound == Some(false)
            || taken.iter().any(|(_, t)| t.metadata.name == volume.metadata.name)
            || capacity(volume) < requested(claim)
            || mode(&of.volume_mode) != mode(&spec.volume_mode)
            || of.volume_attributes_class_name.as_deref().unwrap_or_default()
                != spec.volume_attributes_class_name.as_deref().unwrap_or_default()
            || volume.metadata.deletion_timestamp.is_some()
        {
            continue;
        }
        if bound == Some(true) {
            return reachable(volume, node).then(|| volume.clone());
        }
        let labels = volume.metadata.labels.clone().unwrap_or_default();
        let modes = |modes: &Option<Vec<String>>| modes.clone().unwrap_or_default();
        if volume.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Available")
            || selector.as_ref().is_some_and(|s| !selects(s, &labels))
            || *class_of_volume(volume) != *class
            || !reachable(volume, node)
            || !modes(&spec.access_modes).iter().all(|mode| modes(&of.access_modes).contains(mode))
        {
            continue;
        }
        let size = capacity(volume);
        if smallest.as_ref().is_none_or(|(least, _)| size < *least) {
            smallest = Some((size, volume.clone()));
        }
    }
    smallest.map(|(_, volume)| volume)
}

/// Whether a volume's reference is to a claim.
fn refers(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && reference.uid.as_ref().is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_ref())
}

fn has_capacity(
    claim: &PersistentVolumeClaim,
    class: &k8s_openapi::api::storage::v1::StorageClass,
    node: &NodeInfo,
    objects: &Objects,
) -> bool {
    if objects.csi_drivers.get(class.provisioner.as_str()) != Some(&true) {
        return true;
    }
    let size = requested(claim);
    objects.capacities.values().any(|known| {
        let limit = known.maximum_volume_size.as_ref().or(known.capacity.as_ref());
        let limit = limit.and_then(|q| q.0.parse::<Quantity>().ok()).map(|q| q.value());
        known.storage_class_name == class.metadata.name.as_deref().unwrap_or_default()
            && limit.is_some_and(|limit| limit >= size)
            && known.node_topology.as_ref().is_some_and(|t| selects(&compile(Some(t)), &node.labels))
    })
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>, _: &Snapshot) -> bool {
        match event {
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::NodeChanged { before, after } => before.labels != after.labels,
            ClusterEvent::Object { name, before, after: Some(after) } => match (before, after) {
                (None, Object::StorageClass(_) | Object::CsiStorageCapacity(_)) => true,
                (Some(Object::StorageClass(before)), Object::StorageClass(after)) => {
                    before.allowed_topologies != after.allowed_topologies
                }
                (_, Object::PersistentVolumeClaim(_)) => {
                    pod.claims().any(|(claim, _)| claim_name(pod, &claim) == *name)
                }
                (_, Object::PersistentVolume(_)) => true,
                (Some(Object::CsiDriver(before)), Object::CsiDriver(after)) => *before && !after,
                (Some(Object::CsiStorageCapacity(before)), Object::CsiStorageCapacity(after)) => {
                    let limit = |c: &k8s_openapi::api::storage::v1::CSIStorageCapacity| {
                        let limit = c.maximum_volume_size.as_ref().or(c.capacity.as_ref());
                        limit.and_then(|q| q.0.parse::<Quantity>().ok()).map(|q| q.value())
                    };
                    limit(after) > limit(before)
                }
                _ => false,
            },
            _ => false,
        }
    }
}

impl Filter for VolumeBinding {
    fn prepare(&self, pod: &PodInfo, snapshot: &Snapshot, _: Option<Box<dyn State>>) -> Prepared {
        match claims(pod, &snapshot.objects) {
            Err(rejection) => Prepared::Reject(rejection),
            Ok(known) if known.bound.is_empty() && known.waiting.is_empty() => Prepared::Skip,
            Ok(known) => Prepared::Look(Box::new(known)),
        }
    }

    fn filter(
        &self,
        known: &dyn State,
        _: &PodInfo,
        node: &NodeInfo,
        snapshot: &Snapshot,
    ) -> Result<(), Rejection> {
        plan(state(known), node, &snapshot.objects).map(|_| ())
    }

    fn is_local(&self) -> bool {
        false
    }
}

impl Reserve for VolumeBinding {
    fn reserve(&self, pod: &PodInfo, node: &NodeInfo, objects: &mut Objects) -> Result<(), Rejection> {
        if pod.volumes.is_empty() {
            return Ok(());
        }
        let plan = plan(&claims(pod, objects)?, node, objects)?;
        let mut reserved = Reserved::default();
        for (claim, volume) in plan.bindings {
            let mut volume = PersistentVolume::clone(&volume);
            let name: Name = volume.metadata.name.as_deref().unwrap_or_default().into();
            let spec = volume.spec.get_or_insert_default();
            if spec.claim_ref.as_ref().is_none_or(|r| !refers(r, &claim)) {
                volume.metadata.annotations.get_or_insert_default().insert(BOUND_BY.into(), "yes".into());
            }
            spec.claim_ref = Some(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("PersistentVolumeClaim".into()),
                name: claim.metadata.name.clone(),
                namespace: claim.metadata.namespace.clone(),
                uid: claim.metadata.uid.clone(),
                resource_version: claim.metadata.resource_version.clone(),
                field_path: None,
            });
            objects.assumed_volumes.insert(name.clone(), Arc::new(volume));
            reserved.volumes.push(name);
        }
        for claim in plan.provisions {
            let mut claim = PersistentVolumeClaim::clone(&claim);
            let name = claim_name(pod, claim.metadata.name.as_deref().unwrap_or_default());
            let annotations = claim.metadata.annotations.get_or_insert_default();
            annotations.insert(SELECTED_NODE.into(), node.name.to_string());
            objects.assumed_claims.insert(name.as_str().into(), Arc::new(claim));
            reserved.claims.push(name.into());
        }
        if !reserved.volumes.is_empty() || !reserved.claims.is_empty() {
            objects.reserved.insert(pod.key.uid.clone(), reserved);
            objects.touch(Kind::PersistentVolume);
        }
        Ok(())
    }

    fn unreserve(&self, pod: &PodInfo, _: &str, objects: &mut Objects) {
        let Some(reserved) = objects.reserved.remove(&pod.key.uid) else { return };
        for name in &reserved.volumes {
            objects.assumed_volumes.remove(name);
        }
        for name in &reserved.claims {
            objects.assumed_claims.remove(name);
        }
        objects.touch(Kind::PersistentVolume);
    }
}

impl PreBind for VolumeBinding {
    fn writes(&self, pod: &PodInfo, _: &str, objects: &Objects) -> Vec<Write> {
        let Some(reserved) = objects.reserved.get(&pod.key.uid) else { return Vec::new() };
        let volumes = reserved.volumes.iter().filter_map(|name| objects.assumed_volumes.get(name));
        let claims = reserved.claims.iter().filter_map(|name| objects.assumed_claims.get(name));
        volumes.cloned().map(Write::Volume).chain(claims.cloned().map(Write::Claim)).collect()
    }

    fn ready(&self, pod: &PodInfo, node: &NodeInfo, objects: &Objects) -> Readiness {
        let Some(reserved) = objects.reserved.get(&pod.key.uid) else { return Readiness::Ready };
        let failed = |text: String| Readiness::Failed(Reason::new(format!("binding volumes: {text}")));
        let quoted = hawser_api::text::quote;
        let mut waiting = Vec::new();
        for name in reserved.volumes.iter().filter(|name| !objects.assumed_volumes.contains_key(*name)) {
            let Some(volume) = objects.volumes.get(name) else {
                return failed(not_found("persistentvolume", name));
            };
            let claim_ref = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
            if claim_ref.is_none_or(|r| r.uid.as_ref().is_none_or(String::is_empty)) {
                return failed(format!("ClaimRef got reset for pv {}", quoted(name)));
            }
        }
        waiting.extend(reserved.volumes.iter().cloned());
        let mut all = true;
        for (name, _) in pod.claims() {
            let key = claim_name(pod, &name);
            let Some(claim) = objects.claims.get(key.as_str()) else {
                return failed(not_found("persistentvolumeclaim", &name));
            };
            let ours = reserved.claims.iter().any(|c| **c == *key);
            if ours && !objects.assumed_claims.contains_key(key.as_str()) {
                let annotations = claim.metadata.annotations.clone().unwrap_or_default();
                match annotations.get(SELECTED_NODE) {
                    None if !is_bound(claim) => {
                        return failed(format!("provisioning failed for PVC {}", quoted(&name)));
                    }
                    Some(selected) if **selected != *node.name => {
                        return failed(format!("provisioning failed for PVC {}", quoted(&name)));
                    }
                    _ => {}
                }
            }
            all &= is_bound(claim);
            waiting.push(key.as_str().into());
        }
        if all {
            return Readiness::Ready;
        }
        let late = "binding volumes: context deadline exceeded".into();
        Readiness::Wait(Wait { objects: waiting, longest: self.timeout, late, for_devices: false })
    }
}
