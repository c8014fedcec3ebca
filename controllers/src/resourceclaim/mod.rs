//! Resource claims (dynamic resource allocation): made from templates for pods, reserved for pods that were placed without
//! the scheduler, and given back when nobody uses them; and pods that leave tainted devices.

pub mod cleanup;
pub mod eviction;
pub mod pods;
#[cfg(test)]
mod tests;

use k8s_openapi::api::core::v1::PodResourceClaim;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference};

use crate::cache::Pod;
use crate::object;

/// What holds a claim that the scheduler has allocated.
pub const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// On a claim made from a template: the name of the pod's claim.
pub const POD_CLAIM: &str = "resource.kubernetes.io/pod-claim-name";
/// How many consumers a claim has at most.
const MAX_CONSUMERS: usize = 256;

/// Which claim an entry of a pod means.
#[derive(Debug, PartialEq, Eq)]
pub enum Meant<'a> {
    /// None is needed.
    None,
    /// It is still to be made.
    Unknown,
    /// This one; `generated` says whether it must be the pod's own.
    Claim {
        /// Its name.
        name: &'a str,
        /// Whether it was made from a template.
        generated: bool,
    },
}

/// Which claim an entry of a pod means.
pub fn meant<'a>(pod: &'a Pod, entry: &'a PodResourceClaim) -> Meant<'a> {
    if let Some(name) = &entry.resource_claim_name {
        return Meant::Claim { name, generated: false };
    }
    if entry.resource_claim_template_name.is_none() {
        return Meant::None;
    }
    let mut said = pod.status.resource_claim_statuses.iter().flat_map(|said| said.iter());
    match said.find(|s| s.name == entry.name) {
        None => Meant::Unknown,
        Some(status) => match &status.resource_claim_name {
            None => Meant::None,
            Some(name) => Meant::Claim { name, generated: true },
        },
    }
}

/// Whether a claim was made for this very pod.
pub fn is_for(pod: &Pod, claim: &ResourceClaim) -> bool {
    object::controller_ref(&claim.metadata).is_some_and(|r| r.uid == object::uid(pod))
}

/// Whether a pod will not run (again).
pub fn is_done(pod: &Pod) -> bool {
    crate::pods::is_terminal(pod) || (object::is_deleting(pod) && crate::pods::node(pod).is_empty())
}

/// The consumers of a claim.
pub fn consumers(claim: &ResourceClaim) -> &[ResourceClaimConsumerReference] {
    claim.status.as_ref().and_then(|s| s.reserved_for.as_deref()).unwrap_or_default()
}

/// Index: claims by the pod that they were made for.
pub fn owner(claim: &ResourceClaim) -> Vec<String> {
    let owner = object::controller_ref(&claim.metadata).filter(|r| r.kind == "Pod");
    owner.map(|r| r.uid.clone()).into_iter().collect()
}

/// Index: pods by `namespace/claim` of the resource claims that they use.
pub fn claims_of(pod: &Pod) -> Vec<String> {
    let entries = pod.spec.iter().flat_map(|s| s.resource_claims.iter().flatten());
    let named = entries.filter_map(|entry| match meant(pod, entry) {
        Meant::Claim { name, .. } => Some(name),
        _ => None,
    });
    let names = named.chain(pod.status.extended_resource_claim.as_deref());
    names.map(|name| format!("{}/{name}", object::namespace(pod))).collect()
}

/// Index: pods by `namespace/template` of templates of which they still need a claim.
pub fn templates_of(pod: &Pod) -> Vec<String> {
    let entries = pod.spec.iter().flat_map(|s| s.resource_claims.iter().flatten());
    entries
        .filter(|entry| meant(pod, entry) == Meant::Unknown)
        .filter_map(|entry| entry.resource_claim_template_name.as_ref())
        .map(|name| format!("{}/{name}", object::namespace(pod)))
        .collect()
}
