//! What is written to ResourceClaims: devices and the pods that may use them.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodExtendedResourceClaimStatus};
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim, ResourceClaimConsumerReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;
use uuid::Uuid;

use crate::devices::SHARE;
use crate::devices::extended::Plan;
use crate::pod::PodKey;

/// Keeps a claim with devices from going before they are given back.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// How often a write is tried that meets another one's.
const TRIES: usize = 5;

fn claims(client: &Client, claim: &ResourceClaim) -> Api<ResourceClaim> {
    Api::namespaced(client.clone(), claim.metadata.namespace.as_deref().unwrap_or_default())
}

fn name(claim: &ResourceClaim) -> &str {
    claim.metadata.name.as_deref().unwrap_or_default()
}

/// Reserves a claim for a pod, with these devices if it has none. A claim that was changed meanwhile is read anew.
///
/// # Errors
/// If it is gone, has other devices now, or may not be reserved.
pub async fn reserve(
    client: &Client,
    claim: &ResourceClaim,
    allocation: Option<&AllocationResult>,
    consumer: &ResourceClaimConsumerReference,
) -> Result<(), String> {
    let (api, mut latest) = (claims(client, claim), claim.clone());
    let full = format!("{}/{}", claim.metadata.namespace.as_deref().unwrap_or_default(), name(claim));
    for attempt in 1.. {
        match reserve_once(&api, latest, &full, allocation, consumer).await {
            Ok(()) => return Ok(()),
            Err(Refused::Conflict) if attempt < TRIES => {
                let read = api.get(name(claim)).await;
                latest = read.map_err(|e| format!("get updated claim {full} after conflict: {e}"))?;
            }
            Err(Refused::Conflict) => break,
            Err(Refused::Other(text)) => return Err(text),
        }
    }
    Err(format!("claim {full} is changed by others again and again"))
}

enum Refused {
    Conflict,
    Other(String),
}

async fn reserve_once(
    api: &Api<ResourceClaim>,
    mut claim: ResourceClaim,
    full: &str,
    allocation: Option<&AllocationResult>,
    consumer: &ResourceClaimConsumerReference,
) -> Result<(), Refused> {
    let name = name(&claim).to_owned();
    let refused = |what: String| {
        move |error: kube::Error| match error {
            kube::Error::Api(status) if status.code == 409 => Refused::Conflict,
            error => Refused::Other(format!("{what}: {error}")),
        }
    };
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(Refused::Other(format!("claim {full} got deleted in the meantime")));
    }
    let allocated = claim.status.as_ref().is_some_and(|status| status.allocation.is_some());
    match allocation {
        Some(_) if allocated => {
            return Err(Refused::Other(format!("claim {full} got allocated elsewhere in the meantime")));
        }
        None if !allocated => {
            return Err(Refused::Other(format!("claim {full} got deallocated elsewhere in the meantime")));
        }
        Some(_) if !claim.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER) => {
            claim.metadata.finalizers.get_or_insert_default().push(FINALIZER.into());
            let replaced = api.replace(&name, &PostParams::default(), &claim).await;
            claim = replaced.map_err(refused(format!("add finalizer to claim {full}")))?;
        }
        _ => {}
    }
    let status = claim.status.get_or_insert_default();
    if let Some(allocation) = allocation {
        status.allocation = Some(with_shares(allocation.clone(), &mut || Uuid::new_v4().to_string()));
    }
    if let Some(allocation) = &mut status.allocation {
        allocation.allocation_timestamp.get_or_insert_with(|| Time(Timestamp::now()));
    }
    status.reserved_for.get_or_insert_default().push(consumer.clone());
    let what = if allocation.is_some() { "allocation and reservation" } else { "reservation" };
    let written = api.replace_status(&name, &PostParams::default(), &claim).await;
    written.map(|_| ()).map_err(refused(format!("add {what} to claim {full}")))
}

/// Names the shares of an allocation.
fn with_shares(mut allocation: AllocationResult, draw: &mut impl FnMut() -> String) -> AllocationResult {
    let results = allocation.devices.iter_mut().flat_map(|devices| devices.results.iter_mut().flatten());
    for share in results.filter_map(|result| result.share_id.as_mut()).filter(|share| *share == SHARE) {
        *share = draw();
    }
    allocation
}

/// Makes the claim for a pod's extended resources, gives it its devices and tells the pod of it. What was made is deleted
/// if that does not work out.
///
/// # Errors
/// If any of it is refused.
pub async fn make(
    client: &Client,
    pod: &PodKey,
    plan: &Plan,
    allocation: &AllocationResult,
    consumer: &ResourceClaimConsumerReference,
) -> Result<(), String> {
    let created = claims(client, &plan.claim).create(&PostParams::default(), &plan.claim).await;
    let claim = created.map_err(|e| format!("create claim for extended resources: {e}"))?;
    let given = match reserve(client, &claim, Some(allocation), consumer).await {
        Ok(()) => tell(client, pod, plan, name(&claim)).await,
        refused => refused,
    };
    if given.is_err()
        && let Err(error) = delete(client, &claim).await
    {
        // The next attempt finds it.
        tracing::warn!(%error, namespace = %pod.namespace, claim = name(&claim), "claim not deleted");
    }
    given
}

/// Says in a pod's status which claim has the devices that it asks for as extended resources.
async fn tell(client: &Client, pod: &PodKey, plan: &Plan, claim: &str) -> Result<(), String> {
    let status = PodExtendedResourceClaimStatus {
        request_mappings: plan.mappings.clone(),
        resource_claim_name: claim.to_owned(),
    };
    let patch = json!({"metadata": {"uid": *pod.uid}, "status": {"extendedResourceClaimStatus": status}});
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let told = pods.patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(patch)).await;
    let what = || format!("update pod {}/{} ExtendedResourceClaimStatus", pod.namespace, pod.name);
    told.map(|_| ()).map_err(|e| format!("{}: {e}", what()))
}

/// Deletes a claim that the scheduler made. One that is gone is as good.
pub async fn delete(client: &Client, claim: &ResourceClaim) -> Result<(), kube::Error> {
    let (api, mut latest) = (claims(client, claim), claim.clone());
    for attempt in 1.. {
        let guarded = latest.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER);
        if !guarded {
            break;
        }
        latest.metadata.finalizers.get_or_insert_default().retain(|f| f != FINALIZER);
        match api.replace(name(claim), &PostParams::default(), &latest).await {
            Ok(_) => break,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 && attempt < TRIES => {
                match api.get_opt(name(claim)).await? {
                    Some(read) if read.metadata.uid == claim.metadata.uid => latest = read,
                    _ => return Ok(()),
                }
            }
            Err(error) => return Err(error),
        }
    }
    let of = Preconditions { uid: claim.metadata.uid.clone(), resource_version: None };
    let params = DeleteParams { preconditions: Some(of), ..DeleteParams::default() };
    match api.delete(name(claim), &params).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        deleted => deleted.map(|_| ()),
    }
}

/// Reserves a claim no longer for the pod with this uid.
pub async fn unreserve(client: &Client, claim: &ResourceClaim, pod: &str) -> Result<(), kube::Error> {
    let patch = json!({"metadata": {"uid": claim.metadata.uid},
        "status": {"reservedFor": [{"$patch": "delete", "uid": pod}]}});
    let params = PatchParams::default();
    claims(client, claim).patch_status(name(claim), &params, &Patch::Strategic(patch)).await.map(|_| ())
}

/// Takes a claim's devices away, unless it has changed.
pub async fn deallocate(client: &Client, claim: &ResourceClaim) -> Result<(), kube::Error> {
    let claim = ResourceClaim { status: None, ..claim.clone() };
    claims(client, &claim).replace_status(name(&claim), &PostParams::default(), &claim).await.map(|_| ())
}
