//! DynamicResources: the devices that a pod's ResourceClaims ask for are there, and are allocated to it (KEP-4381).
//!
//! A claim that has devices says itself where it can be used. For the others devices are looked for on each node; those of
//! the chosen node are decided on when the pod is reserved, and written to the claims before it is bound.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim, ResourceClaimConsumerReference};

use super::normalize_by_highest;
use crate::devices::{self, Failure, Inventory, Pending, conditions, extended};
use crate::framework::{
    ClusterEvent, Filter, Plugin, PostFilter, PreBind, PreEnqueue, Prepared, Readiness, Reason, Rejection,
    Remedy, Reserve, Score, State, Wait, Write, state,
};
use crate::objects::{Name, Object, Objects};
use crate::pod::PodInfo;
use crate::selector::NodeTerms;
use crate::snapshot::{NodeInfo, Slot, Snapshot};

/// Most alternatives of a request.
const MAX_ALTERNATIVES: usize = 8;
/// Most pods of a claim.
const MAX_CONSUMERS: usize = 256;
/// How long devices that have binding conditions are waited for if the configuration says nothing.
const BINDING_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a claim that was made is waited for.
const SEEN_TIMEOUT: Duration = Duration::from_secs(120);
const ELSEWHERE: &str = "resourceclaim not available on the node";

/// What a pod gets on a node: allocations for its claims that have none, in their order, the last one of them for the
/// claim that is made for its extended resources.
#[derive(Default)]
struct Found {
    allocations: Vec<Arc<AllocationResult>>,
    plan: Option<Arc<extended::Plan>>,
}

/// The plugin, with what it found for the pod whose cycle is under way: the filter looks for devices on a node, and the
/// score and the reservation, which follow it, go by what it found.
pub struct DynamicResources {
    /// How long devices that have binding conditions are waited for.
    pub binding_timeout: Duration,
    under_way: Mutex<UnderWay>,
}

impl Default for DynamicResources {
    fn default() -> Self {
        DynamicResources { binding_timeout: BINDING_TIMEOUT, under_way: Mutex::default() }
    }
}

/// Between the beginning of a pod's cycle and its reservation no claim, slice or node changes.
#[derive(Default)]
struct UnderWay {
    /// The pod's uid.
    pod: Option<Arc<str>>,
    found: HashMap<Slot, Arc<Found>>,
}

/// A pod's claims, and whether one of them leaves a choice of alternatives.
#[derive(Clone)]
struct Scored {
    known: Vec<Known>,
    has_choice: bool,
}

/// A claim of a pod.
#[derive(Clone, Debug)]
struct Known {
    name: Name,
    claim: Arc<ResourceClaim>,
    /// Where its devices can be used, if it has some and they cannot be used everywhere.
    nodes: Option<NodeTerms>,
}

impl Known {
    fn is_allocated(&self) -> bool {
        allocated(&self.claim)
    }
}

fn allocated(claim: &ResourceClaim) -> bool {
    claim.status.as_ref().is_some_and(|status| status.allocation.is_some())
}

fn is_reserved_for(claim: &ResourceClaim, pod: &PodInfo) -> bool {
    let reserved = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
    reserved.into_iter().any(|consumer| *consumer.uid == *pod.key.uid)
}

/// The claims of a pod.
///
/// # Errors
/// Why one of them cannot be used.
fn claims(pod: &PodInfo, objects: &Objects) -> Result<Vec<Known>, String> {
    let mut found = Vec::new();
    let (namespace, of) = (&pod.key.namespace, format!("{}/{}", pod.key.namespace, pod.key.name));
    for asked in &pod.resource_claims {
        let generated = asked.resource_claim_name.is_none();
        let name = match (&asked.resource_claim_name, &asked.resource_claim_template_name) {
            (Some(name), _) => name.as_str(),
            (None, Some(_)) => match pod.generated_claims.iter().find(|(entry, _)| **entry == asked.name) {
                Some((_, Some(name))) => name,
                // Nothing was generated because nothing is needed.
                Some((_, None)) => continue,
                None => return Err(format!("pod \"{of}\": ResourceClaim not created yet")),
            },
            (None, None) => {
                let quoted = hawser_api::text::quote(&asked.name);
                return Err(format!(
                    "pod \"{of}\", spec.resourceClaim {quoted}: none of the supported fields are set"
                ));
            }
        };
        let key: Name = format!("{namespace}/{name}").into();
        let Some(claim) = objects.devices.claim(&key) else {
            return Err(format!("could not find ResourceClaim {}", hawser_api::text::quote(&key)));
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("resourceclaim {} is being deleted", hawser_api::text::quote(name)));
        }
        let owner = claim.metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true));
        if generated && owner.is_none_or(|owner| *owner.uid != *pod.key.uid) {
            return Err(format!("ResourceClaim {key} was not created for Pod {of} (Pod is not owner)"));
        }
        let selector = claim.status.as_ref().and_then(|s| s.allocation.as_ref()?.node_selector.as_ref());
        found.push(Known { name: key, claim: claim.clone(), nodes: selector.map(NodeTerms::new) });
    }
    Ok(found)
}

/// Whether a pod has anything to do with devices.
fn concerns(pod: &PodInfo, inventory: &Inventory) -> bool {
    !pod.resource_claims.is_empty() || extended::concerns(pod, inventory)
}

/// Whether a pod asks for nothing that could be a device.
fn is_plain(pod: &PodInfo) -> bool {
    pod.resource_claims.is_empty() && pod.extended.is_empty()
}

/// Checks what holds for all nodes.
fn check(pod: &PodInfo, objects: &Objects) -> Result<Vec<Known>, String> {
    let known = claims(pod, objects)?;
    for Known { claim, .. } in known.iter().filter(|known| known.is_allocated()) {
        let consumers = claim.status.iter().flat_map(|s| s.reserved_for.iter().flatten()).count();
        if consumers >= MAX_CONSUMERS && !is_reserved_for(claim, pod) {
            return Err("resourceclaim in use".into());
        }
    }
    for Known { name, claim, .. } in known.iter().filter(|known| !known.is_allocated()) {
        if objects.devices.pending(name).is_some_and(|pending| *pending.pod != *pod.key.uid) {
            return Err(format!("resource claim {name} is in the process of being allocated"));
        }
        for request in claim.spec.devices.iter().flat_map(|devices| devices.requests.iter().flatten()) {
            let exact = request.exactly.iter().map(|exact| (request.name.clone(), &exact.device_class_name));
            let alternatives = request.first_available.iter().flatten();
            let alternatives =
                alternatives.map(|sub| (format!("{}/{}", request.name, sub.name), &sub.device_class_name));
            let mut any = false;
            for (request, class) in exact.chain(alternatives) {
                any = true;
                if objects.devices.class(class).is_none() {
                    return Err(format!("request {request}: device class {class} does not exist"));
                }
            }
            if !any {
                return Err(format!("resource claim {name}, request {}: unknown request type", request.name));
            }
        }
    }
    Ok(known)
}

/// Looks for devices on a node.
fn allocate(pod: &PodInfo, known: &[Known], node: &NodeInfo, objects: &Objects) -> Result<Found, Rejection> {
    let plan = extended::plan(pod, node, &objects.devices).map_err(Rejection::lasting)?;
    let open = known.iter().filter(|k| !k.is_allocated()).map(|k| &*k.claim);
    let open: Vec<&ResourceClaim> = open.chain(plan.iter().map(|plan| &plan.claim)).collect();
    if open.is_empty() {
        return Ok(Found::default());
    }
    let found = devices::allocate(&objects.devices, node, &open).map_err(|failure| match failure {
        Failure::Node(None) => Rejection::lasting("cannot allocate all claims"),
        Failure::Node(Some(text)) => Rejection::lasting(text),
        Failure::Fatal(text) => Rejection::failure(text),
    })?;
    Ok(Found { allocations: found.into_iter().map(Arc::new).collect(), plan: plan.map(Arc::new) })
}

impl DynamicResources {
    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        // An entry is put in, or taken out, at once.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is on a node, as it was found before in the pod's cycle, or is found now.
    fn found(
        &self,
        pod: &PodInfo,
        known: &[Known],
        node: &NodeInfo,
        objects: &Objects,
    ) -> Result<Arc<Found>, Rejection> {
        let own = |under_way: &UnderWay| under_way.pod.as_ref() == Some(&pod.key.uid);
        if let Some(found) =
            Some(self.under_way()).filter(|u| own(u)).and_then(|u| u.found.get(&node.slot).cloned())
        {
            return Ok(found);
        }
        let found = Arc::new(allocate(pod, known, node, objects)?);
        let mut under_way = self.under_way();
        if own(&under_way) {
            under_way.found.insert(node.slot, found.clone());
        }
        Ok(found)
    }

    /// Whether a claim with devices cannot be used on a node: it is elsewhere, or its devices failed.
    fn is_unavailable(&self, known: &Known, node: &NodeInfo, objects: &Objects) -> bool {
        let elsewhere = |nodes: &NodeTerms| !nodes.matches(&node.name, &node.labels);
        known.nodes.as_ref().is_some_and(elsewhere)
            || known.is_allocated() && conditions::is_lost(&known.claim, self.binding_timeout, objects.now)
    }
}

impl Plugin for DynamicResources {
    fn name(&self) -> &'static str {
        "DynamicResources"
    }

    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>, snapshot: &Snapshot) -> bool {
        match event {
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::NodeChanged { before, after } => {
                before.labels != after.labels || before.allocatable != after.allocatable
            }
            ClusterEvent::Object { name, before, after: Some(Object::ResourceClaim(after)) } => {
                let Ok(known) = claims(pod, &snapshot.objects) else { return false };
                let before = match before {
                    Some(Object::ResourceClaim(before)) => Some(before),
                    _ => None,
                };
                if before.is_some_and(|before| allocated(before)) && !allocated(after) {
                    return true;
                }
                let own = known.iter().any(|known| *known.name == **name);
                own && before.is_none_or(|before| before.status != after.status)
            }
            // It leaves its devices, or was in the way of a new one for the pod's extended resources.
            ClusterEvent::Object { before: Some(Object::ResourceClaim(gone)), after: None, .. } => {
                allocated(gone) || extended::made_for(gone) == Some(&*pod.key.uid)
            }
            ClusterEvent::Object {
                after: Some(Object::DeviceClass(_) | Object::ResourceSlice(_)), ..
            } => true,
            // An older class may stand for a resource now.
            ClusterEvent::Object { before: Some(Object::DeviceClass(_)), .. } => {
                extended::concerns(pod, &snapshot.objects.devices)
            }
            _ => false,
        }
    }
}

impl PreEnqueue for DynamicResources {
    fn admit(&self, pod: &PodInfo, objects: &Objects) -> Result<(), Reason> {
        if pod.resource_claims.is_empty() {
            return Ok(());
        }
        claims(pod, objects).map(|_| ()).map_err(Reason::new)
    }
}

impl Filter for DynamicResources {
    fn prepare(&self, pod: &PodInfo, snapshot: &Snapshot, _: Option<Box<dyn State>>) -> Prepared {
        let objects = &snapshot.objects;
        if !concerns(pod, &objects.devices) {
            return Prepared::Skip;
        }
        *self.under_way() = UnderWay { pod: Some(pod.key.uid.clone()), found: HashMap::new() };
        match check(pod, objects) {
            Err(text) => Prepared::Reject(Rejection::lasting(text)),
            Ok(known) if known.is_empty() && !extended::concerns(pod, &objects.devices) => Prepared::Skip,
            Ok(known) => Prepared::Look(Box::new(known)),
        }
    }

    fn filter(
        &self,
        known: &dyn State,
        pod: &PodInfo,
        node: &NodeInfo,
        snapshot: &Snapshot,
    ) -> Result<(), Rejection> {
        let (known, objects) = (state::<Vec<Known>>(known), &snapshot.objects);
        if extended::concerns(pod, &objects.devices) && objects.devices.made_for(&pod.key.uid).is_some() {
            // It is of an attempt before; nobody knows whether its devices are still right.
            return Err(Rejection::lasting("cannot schedule extended resource claim"));
        }
        self.found(pod, known, node, objects)?;
        if known.iter().any(|known| self.is_unavailable(known, node, objects)) {
            return Err(Rejection::lasting(ELSEWHERE));
        }
        Ok(())
    }

    fn is_local(&self) -> bool {
        false
    }
}

impl PostFilter for DynamicResources {
    /// Devices that nobody uses and that keep the pod from every node are given up.
    fn remedy(&self, pod: &PodInfo, rejected: &[(Slot, &Rejection)], snapshot: &Snapshot) -> Remedy {
        let objects = &snapshot.objects;
        let known = check(pod, objects).ok();
        let extended = extended::concerns(pod, &objects.devices);
        let Some(known) = known.filter(|known| !known.is_empty() || extended) else {
            return Remedy { text: "no new claims to deallocate", write: None };
        };
        let elsewhere = rejected.iter().filter(|(_, r)| r.reasons.iter().any(|reason| reason.0 == ELSEWHERE));
        let nodes: Vec<&NodeInfo> = elsewhere.filter_map(|(slot, _)| snapshot.at(*slot)).collect();
        let idle = known.iter().find(|known| {
            let consumers = known.claim.status.iter().flat_map(|s| s.reserved_for.iter().flatten());
            let idle = { consumers }.all(|consumer| *consumer.uid == *pod.key.uid);
            idle && nodes.iter().any(|node| self.is_unavailable(known, node, objects))
        });
        if let Some(known) = idle {
            return Remedy {
                text: "deallocation of ResourceClaim completed",
                write: Some(Write::Deallocate(known.claim.clone())),
            };
        }
        match objects.devices.made_for(&pod.key.uid).filter(|_| extended) {
            Some((_, claim)) => Remedy {
                text: "deletion of ResourceClaim completed",
                write: Some(Write::DeleteClaim(claim.clone())),
            },
            None => Remedy { text: "still not schedulable", write: None },
        }
    }
}

impl Score for DynamicResources {
    fn prepare_score(
        &self,
        pod: &PodInfo,
        snapshot: &Snapshot,
        _: &[Slot],
        _: Option<Box<dyn State>>,
    ) -> Option<Box<dyn State>> {
        if pod.resource_claims.is_empty() {
            return None;
        }
        let known = claims(pod, &snapshot.objects).ok().filter(|known| !known.is_empty())?;
        let has_choice = known.iter().any(|known| {
            let requests = known.claim.spec.devices.iter().flat_map(|d| d.requests.iter().flatten());
            { requests }.any(|request| request.first_available.is_some())
        });
        Some(Box::new(Scored { known, has_choice }))
    }

    /// The earlier the alternative that is taken, the better.
    fn score(&self, scored: &dyn State, pod: &PodInfo, node: &NodeInfo, snapshot: &Snapshot) -> i64 {
        let Scored { known, has_choice } = state(scored);
        if !has_choice {
            return 0;
        }
        let Ok(found) = self.found(pod, known, node, &snapshot.objects) else { return 0 };
        let mut new = found.allocations.iter();
        let mut score = 0;
        for Known { claim, .. } in known {
            let allocation = match claim.status.as_ref().and_then(|status| status.allocation.as_ref()) {
                Some(allocation) => allocation,
                None => match new.next() {
                    Some(allocation) => &**allocation,
                    None => return 0,
                },
            };
            let results = allocation.devices.iter().flat_map(|d| d.results.iter().flatten());
            let taken: Vec<&str> = results.map(|result| result.request.as_str()).collect();
            for request in claim.spec.devices.iter().flat_map(|d| d.requests.iter().flatten()) {
                for (at, sub) in request.first_available.iter().flatten().enumerate() {
                    if taken.contains(&format!("{}/{}", request.name, sub.name).as_str()) {
                        score += MAX_ALTERNATIVES.saturating_sub(at) as i64;
                    }
                }
            }
        }
        score
    }

    fn normalize(&self, _: &dyn State, _: &[Slot], scores: &mut [i64]) {
        normalize_by_highest(scores, false);
    }
}

impl Reserve for DynamicResources {
    fn reserve(&self, pod: &PodInfo, node: &NodeInfo, objects: &mut Objects) -> Result<(), Rejection> {
        if !concerns(pod, &objects.devices) {
            return Ok(());
        }
        let known = check(pod, objects).map_err(Rejection::lasting)?;
        let found = self.found(pod, &known, node, objects)?;
        // What is decided now changes what is there.
        *self.under_way() = UnderWay::default();
        let open = known.into_iter().filter(|known| !known.is_allocated()).map(|known| (known.name, None));
        let made = found.plan.iter().map(|plan| (in_memory_name(pod), Some(plan.clone())));
        for ((name, plan), allocation) in open.chain(made).zip(&found.allocations) {
            let pending = Pending { pod: pod.key.uid.clone(), allocation: allocation.clone(), plan };
            objects.devices.decide(name, pending);
        }
        Ok(())
    }

    fn unreserve(&self, pod: &PodInfo, _: &str, objects: &mut Objects) {
        objects.devices.give_back(&pod.key.uid);
    }
}

impl PreBind for DynamicResources {
    fn writes(&self, pod: &PodInfo, _: &str, objects: &Objects) -> Vec<Write> {
        if is_plain(pod) {
            return Vec::new();
        }
        let known = claims(pod, objects).unwrap_or_default();
        let open = known.into_iter().filter(|known| !is_reserved_for(&known.claim, pod));
        let consumer = || ResourceClaimConsumerReference {
            api_group: None,
            resource: "pods".into(),
            name: pod.key.name.to_string(),
            uid: pod.key.uid.to_string(),
        };
        let write = |known: Known| Write::ResourceClaim {
            allocation: objects.devices.pending(&known.name).map(|pending| pending.allocation.clone()),
            claim: known.claim,
            consumer: consumer(),
        };
        let made = objects.devices.pending(&in_memory_name(pod));
        let made = made.and_then(|pending| {
            let (plan, allocation) = (pending.plan.clone()?, pending.allocation.clone());
            Some(Write::ExtendedClaim { plan, allocation, consumer: consumer() })
        });
        open.map(write).chain(made).collect()
    }

    /// The claim that was made must have been seen, so that it is known what to take back; and devices must be there.
    fn ready(&self, pod: &PodInfo, _: &NodeInfo, objects: &Objects) -> Readiness {
        if is_plain(pod) {
            return Readiness::Ready;
        }
        let own = in_memory_name(pod);
        if objects.devices.pending(&own).is_some() {
            let late = "claim for extended resources was not seen".into();
            let (objects, longest) = (vec![own], SEEN_TIMEOUT);
            return Readiness::Wait(Wait { objects, longest, late, for_devices: false });
        }
        let known = claims(pod, objects).unwrap_or_default();
        let made = objects.devices.made_for(&pod.key.uid).map(|(name, claim)| (name.clone(), claim.clone()));
        for (name, claim) in known.into_iter().map(|known| (known.name, known.claim)).chain(made) {
            let seen = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
            let pending = objects.devices.pending(&name).map(|pending| &*pending.allocation);
            let Some(allocation) = seen.or(pending).filter(|allocation| conditions::any(allocation)) else {
                continue;
            };
            let claim_name = claim.metadata.name.as_deref().unwrap_or_default();
            let late: Reason = Reason::new(format!("device binding timeout: claim={claim_name}"));
            match conditions::state(&claim) {
                conditions::State::Ready => {}
                conditions::State::Failed(text) => return Readiness::Failed(Reason::new(text)),
                conditions::State::Pending => {
                    match conditions::time_left(allocation, self.binding_timeout, objects.now) {
                        None => return Readiness::Failed(late),
                        Some(longest) => {
                            let (objects, late) = (vec![name], late.0);
                            return Readiness::Wait(Wait { objects, longest, late, for_devices: true });
                        }
                    }
                }
            }
        }
        Readiness::Ready
    }

    fn undo(&self, pod: &PodInfo, objects: &Objects) -> Vec<Write> {
        if is_plain(pod) {
            return Vec::new();
        }
        let known = claims(pod, objects).unwrap_or_default();
        let reserved =
            known.into_iter().filter(|known| known.is_allocated() && is_reserved_for(&known.claim, pod));
        let made = objects.devices.made_for(&pod.key.uid).map(|(_, claim)| Write::DeleteClaim(claim.clone()));
        reserved.map(|known| Write::Unreserve(known.claim, pod.key.uid.clone())).chain(made).collect()
    }
}

/// The key of what was decided about the claim that is made for a pod.
fn in_memory_name(pod: &PodInfo) -> Name {
    extended::in_memory(&pod.key.namespace, &pod.key.uid)
}
