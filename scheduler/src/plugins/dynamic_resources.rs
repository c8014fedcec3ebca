//! DynamicResources: the devices that a pod's ResourceClaims ask for are there, and are allocated to it (KEP-4381).
//!
//! A claim that has devices says itself where it can be used. For the others devices are looked for on each node; those of
//! the chosen node are decided on when the pod is reserved, and written to the claims before it is bound.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim, ResourceClaimConsumerReference};

use super::normalize_by_highest;
use crate::devices::{self, Failure, Pending};
use crate::framework::{
    ClusterEvent, Filter, Plugin, PostFilter, PreBind, PreEnqueue, Prepared, Readiness, Reason, Rejection,
    Remedy, Reserve, Score, State, Write, state,
};
use crate::objects::{Name, Object, Objects};
use crate::pod::PodInfo;
use crate::selector::NodeTerms;
use crate::snapshot::{NodeInfo, Slot, Snapshot};

/// Most alternatives of a request.
const MAX_ALTERNATIVES: usize = 8;
const ELSEWHERE: &str = "resourceclaim not available on the node";

/// Allocations for the claims of a pod that have none, in their order.
type Allocations = Arc<[Arc<AllocationResult>]>;

/// The plugin, with what it found for the pod whose cycle is under way: the filter looks for devices on a node, and the
/// score and the reservation, which follow it, go by what it found.
#[derive(Default)]
pub struct DynamicResources {
    under_way: Mutex<UnderWay>,
}

/// Between the beginning of a pod's cycle and its reservation no claim, slice or node changes.
#[derive(Default)]
struct UnderWay {
    /// The pod's uid.
    pod: Option<Arc<str>>,
    found: HashMap<Slot, Allocations>,
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

/// Checks what holds for all nodes.
fn check(pod: &PodInfo, objects: &Objects) -> Result<Vec<Known>, String> {
    let known = claims(pod, objects)?;
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
                if !objects.devices.classes.contains_key(class.as_str()) {
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

fn allocate(known: &[Known], node: &NodeInfo, objects: &Objects) -> Result<Allocations, Rejection> {
    let open: Vec<&ResourceClaim> = known.iter().filter(|k| !k.is_allocated()).map(|k| &*k.claim).collect();
    if open.is_empty() {
        return Ok(Arc::default());
    }
    let found = devices::allocate(&objects.devices, node, &open).map_err(|failure| match failure {
        Failure::Node(None) => Rejection::lasting("cannot allocate all claims"),
        Failure::Node(Some(text)) => Rejection::lasting(text),
        Failure::Fatal(text) => Rejection::failure(text),
    })?;
    Ok(found.into_iter().map(Arc::new).collect())
}

impl DynamicResources {
    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        // An entry is put in, or taken out, at once.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocations on a node, as they were found before in the pod's cycle, or found now.
    fn allocations(
        &self,
        pod: &PodInfo,
        known: &[Known],
        node: &NodeInfo,
        objects: &Objects,
    ) -> Result<Allocations, Rejection> {
        let own = |under_way: &UnderWay| under_way.pod.as_ref() == Some(&pod.key.uid);
        if let Some(found) =
            Some(self.under_way()).filter(|u| own(u)).and_then(|u| u.found.get(&node.slot).cloned())
        {
            return Ok(found);
        }
        let found = allocate(known, node, objects)?;
        let mut under_way = self.under_way();
        if own(&under_way) {
            under_way.found.insert(node.slot, found.clone());
        }
        Ok(found)
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
            ClusterEvent::Object {
                after: Some(Object::DeviceClass(_) | Object::ResourceSlice(_)), ..
            } => true,
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
        if pod.resource_claims.is_empty() {
            return Prepared::Skip;
        }
        *self.under_way() = UnderWay { pod: Some(pod.key.uid.clone()), found: HashMap::new() };
        match check(pod, &snapshot.objects) {
            Err(text) => Prepared::Reject(Rejection::lasting(text)),
            Ok(known) if known.is_empty() => Prepared::Skip,
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
        let known = state::<Vec<Known>>(known);
        self.allocations(pod, known, node, &snapshot.objects)?;
        let usable = |k: &Known| k.nodes.as_ref().is_none_or(|nodes| nodes.matches(&node.name, &node.labels));
        if !known.iter().all(usable) {
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
        let known = check(pod, &snapshot.objects).unwrap_or_default();
        if known.is_empty() {
            return Remedy { text: "no new claims to deallocate", write: None };
        }
        let elsewhere = rejected.iter().filter(|(_, r)| r.reasons.iter().any(|reason| reason.0 == ELSEWHERE));
        let nodes: Vec<&NodeInfo> = elsewhere.filter_map(|(slot, _)| snapshot.at(*slot)).collect();
        let idle = known.iter().find(|known| {
            let consumers = known.claim.status.iter().flat_map(|s| s.reserved_for.iter().flatten());
            let idle = { consumers }.all(|consumer| *consumer.uid == *pod.key.uid);
            let terms = known.nodes.as_ref().filter(|_| idle);
            terms.is_some_and(|terms| nodes.iter().any(|node| !terms.matches(&node.name, &node.labels)))
        });
        match idle {
            Some(known) => Remedy {
                text: "deallocation of ResourceClaim completed",
                write: Some(Write::Deallocate(known.claim.clone())),
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
        let Ok(new) = self.allocations(pod, known, node, &snapshot.objects) else { return 0 };
        let mut new = new.iter();
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
        if pod.resource_claims.is_empty() {
            return Ok(());
        }
        let known = check(pod, objects).map_err(Rejection::lasting)?;
        let allocations = self.allocations(pod, &known, node, objects)?;
        // What is decided now changes what is there.
        *self.under_way() = UnderWay::default();
        let open = known.into_iter().filter(|known| !known.is_allocated());
        for (known, allocation) in open.zip(allocations.iter()) {
            let pending = Pending { pod: pod.key.uid.clone(), allocation: allocation.clone() };
            objects.devices.decide(known.name, pending);
        }
        Ok(())
    }

    fn unreserve(&self, pod: &PodInfo, _: &str, objects: &mut Objects) {
        for known in claims(pod, objects).unwrap_or_default() {
            objects.devices.give_back(&known.name, &pod.key.uid);
        }
    }
}

impl PreBind for DynamicResources {
    fn writes(&self, pod: &PodInfo, _: &str, objects: &Objects) -> Vec<Write> {
        if pod.resource_claims.is_empty() {
            return Vec::new();
        }
        let known = claims(pod, objects).unwrap_or_default();
        let open = known.into_iter().filter(|known| !is_reserved_for(&known.claim, pod));
        let write = |known: Known| Write::ResourceClaim {
            allocation: objects.devices.pending(&known.name).map(|pending| pending.allocation.clone()),
            claim: known.claim,
            consumer: ResourceClaimConsumerReference {
                api_group: None,
                resource: "pods".into(),
                name: pod.key.name.to_string(),
                uid: pod.key.uid.to_string(),
            },
        };
        open.map(write).collect()
    }

    fn ready(&self, _: &PodInfo, _: &NodeInfo, _: &Objects) -> Readiness {
        Readiness::Ready
    }

    fn undo(&self, pod: &PodInfo, objects: &Objects) -> Vec<Write> {
        if pod.resource_claims.is_empty() {
            return Vec::new();
        }
        let known = claims(pod, objects).unwrap_or_default();
        let reserved =
            known.into_iter().filter(|known| known.is_allocated() && is_reserved_for(&known.claim, pod));
        reserved.map(|known| Write::Unreserve(known.claim, pod.key.uid.clone())).collect()
    }
}
