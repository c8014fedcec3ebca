//! NodeRestriction: what a node writes concerns itself and the pods bound to it. The Node authorizer lets the
//! request pass by its path; here the object is looked at.

use async_trait::async_trait;
use hawser_api::object::ObjectExt;
use hawser_api::references::{Reference, references};
use hawser_api::status::Status;
use hawser_api::text::quote;
use serde_json::Value;

use super::node_csr::{NODE_CLIENT_SIGNER, NODE_SERVING_SIGNER, subject};
use super::{Lookup, forbidden, name_of};
use crate::access::{Admission, AdmissionRequest, Operation};
use crate::authz::node::graph::MIRROR_ANNOTATION;
use crate::authz::node::{NODE_LEASE_NAMESPACE, node_of};
use crate::bootstrap::policy::NODE_ACCOUNTS;
use crate::request_info::RequestInfo;

pub(super) struct NodeRestriction {
    pub(super) reader: Lookup,
}

#[async_trait]
impl Admission for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        operation != Operation::Connect
            && matches!(
                (info.group.as_str(), info.resource.as_str()),
                ("", "pods" | "nodes" | "persistentvolumeclaims" | "serviceaccounts")
                    | ("coordination.k8s.io", "leases")
                    | ("storage.k8s.io", "csinodes")
                    | ("resource.k8s.io", "resourceslices")
                    | ("certificates.k8s.io", "certificatesigningrequests")
            )
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(node) = node_of(request.user) else { return Ok(()) };
        let request = &*request;
        if node.is_empty() {
            let why = format!("could not determine node from user {}", quote(&request.user.username));
            return Err(forbidden(request, why));
        }
        let info = request.info;
        match (info.resource.as_str(), info.subresource.as_str()) {
            ("pods", "") => self.pod(request, node).await,
            ("pods", "status") => self.pod_status(request, node),
            ("pods", "eviction") => self.eviction(request, node).await,
            ("pods", other) => {
                let other = quote(other);
                Err(format!("unexpected pod subresource {other}, only 'status' and 'eviction' are allowed")
                    .into())
            }
            ("nodes", _) => node_object(request, node),
            ("persistentvolumeclaims", "status") => Ok(()),
            ("persistentvolumeclaims", _) => Err("may only update PVC status".to_owned().into()),
            ("serviceaccounts", "token") => self.token(request, node).await,
            ("leases", _) => lease(request, node),
            ("csinodes", _) => {
                own_name(request, node, "can only access CSINode with the same name as the requesting node")
            }
            ("resourceslices", _) => resource_slice(request, node),
            ("certificatesigningrequests", "") => certificate_request(request),
            _ => Ok(()),
        }
        .map_err(|refusal| match refusal {
            Refusal::Why(why) => forbidden(request, why),
            Refusal::Status(status) => status,
        })
    }
}

enum Refusal {
    Why(String),
    Status(Status),
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self::Why(why)
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

type Answer = Result<(), Refusal>;

fn refuse(why: impl Into<String>) -> Answer {
    Err(Refusal::Why(why.into()))
}

impl NodeRestriction {
    async fn pod(&self, request: &AdmissionRequest<'_>, node: &str) -> Answer {
        let quoted = quote(node);
        match (request.operation, request.object.as_deref()) {
            (Operation::Create, Some(pod)) => self.mirror_pod(pod, node).await,
            (Operation::Delete, _) => {
                let bound = request.old_object.is_some_and(|pod| pod.str_at("spec.nodeName") == node);
                if bound {
                    return Ok(());
                }
                refuse(format!("node {quoted} can only delete pods with spec.nodeName set to itself"))
            }
            (operation, _) => {
                let operation = format!("{operation:?}").to_uppercase();
                refuse(format!(
                    "unexpected operation {operation:?}, node {quoted} can only create and delete mirror pods"
                ))
            }
        }
    }

    async fn mirror_pod(&self, pod: &Value, node: &str) -> Answer {
        let quoted = quote(node);
        if pod.annotation(MIRROR_ANNOTATION).is_none() {
            let annotation = quote(MIRROR_ANNOTATION);
            return refuse(format!(
                "pod does not have {annotation} annotation, node {quoted} can only create mirror pods"
            ));
        }
        if pod.str_at("spec.nodeName") != node {
            return refuse(format!("node {quoted} can only create pods with spec.nodeName set to itself"));
        }
        let owners = pod.owner_references();
        let itself =
            || refuse(format!("node {quoted} can only create pods with an owner reference set to itself"));
        let [owner] = owners.as_slice() else {
            if owners.is_empty() {
                return itself();
            }
            return refuse(format!(
                "node {quoted} can only create pods with a single owner reference set to itself"
            ));
        };
        if owner.api_version != "v1" || owner.kind != "Node" || owner.name != node {
            return itself();
        }
        if owner.controller != Some(true) {
            return refuse(format!(
                "node {quoted} can only create pods with a controller owner reference set to itself"
            ));
        }
        if owner.block_owner_deletion == Some(true) {
            return refuse(format!("node {quoted} must not set blockOwnerDeletion on an owner reference"));
        }
        let found = self.reader.get("", "nodes", "", node).await?;
        let uid = found.as_ref().map_or("", |n| n.uid());
        if owner.uid != uid {
            let given = &owner.uid;
            return refuse(format!("node {node} UID mismatch: expected {uid} got {given}"));
        }
        let mut named = None;
        references(pod, &mut |reference| {
            let word = match reference {
                Reference::ServiceAccount(_) => "a service account",
                Reference::Secret(_) => "secrets",
                Reference::ConfigMap(_) => "configmaps",
                Reference::Claim(_) => "persistentvolumeclaims",
                Reference::ResourceClaim(_) => "resourceclaims",
            };
            named = named.or(Some(word));
        });
        match named {
            Some(word) => refuse(format!("node {quoted} can not create pods that reference {word}")),
            None => Ok(()),
        }
    }

    fn pod_status(&self, request: &AdmissionRequest<'_>, node: &str) -> Answer {
        let quoted = quote(node);
        let (Operation::Update, Some(old), Some(new)) =
            (request.operation, request.old_object, request.object.as_deref())
        else {
            return refuse(format!("unexpected operation on pod status, node {quoted} can only update it"));
        };
        if old.str_at("spec.nodeName") != node {
            return refuse(format!(
                "node {quoted} can only update pod status for pods with spec.nodeName set to itself"
            ));
        }
        if old.labels().to_map() != new.labels().to_map() {
            return refuse(format!("node {quoted} cannot update labels through pod status"));
        }
        if old.at("status.resourceClaimStatuses") != new.at("status.resourceClaimStatuses") {
            return refuse(format!("node {quoted} cannot update resource claim statuses"));
        }
        if old.at("status.extendedResourceClaimStatus") != new.at("status.extendedResourceClaimStatus") {
            return refuse(format!("node {quoted} cannot update extended resource claim status"));
        }
        Ok(())
    }

    async fn eviction(&self, request: &AdmissionRequest<'_>, node: &str) -> Answer {
        let name = name_of(request);
        let Some(pod) = self.reader.get("", "pods", &request.info.namespace, &name).await? else {
            return Err(Status::not_found("", "pods", &name).into());
        };
        if pod.str_at("spec.nodeName") == node {
            return Ok(());
        }
        refuse(format!("node {node} can only evict pods with spec.nodeName set to itself"))
    }

    async fn token(&self, request: &AdmissionRequest<'_>, node: &str) -> Answer {
        let (Operation::Create, Some(object)) = (request.operation, request.object.as_deref()) else {
            return Ok(());
        };
        let info = request.info;
        let Some(bound) = object.at("spec.boundObjectRef").filter(|b| b.is_object()) else {
            return refuse("node requested token not bound to a pod");
        };
        let (kind, version, name, uid) =
            (bound.str_at("kind"), bound.str_at("apiVersion"), bound.str_at("name"), bound.str_at("uid"));
        // Hawser's own: the dataplane and the DNS server of a node act under tokens bound to that Node.
        let own = info.namespace == "kube-system" && NODE_ACCOUNTS.contains(&info.name.as_str());
        if own && (kind, version, name) == ("Node", "v1", node) {
            return Ok(());
        }
        if kind != "Pod" || version != "v1" {
            return refuse("node requested token not bound to a pod");
        }
        if uid.is_empty() {
            return refuse("node requested token with a pod binding without a uid");
        }
        let Some(pod) = self.reader.get("", "pods", &info.namespace, name).await? else {
            return Err(Status::not_found("", "pods", name).into());
        };
        if pod.uid() != uid {
            let found = pod.uid();
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record ({found}). The object might have been deleted and then recreated"
            );
            return Err(Status::conflict("", "pods", name, why).into());
        }
        if pod.str_at("spec.nodeName") != node {
            return refuse("node requested token bound to a pod scheduled on a different node");
        }
        Ok(())
    }
}

fn node_object(request: &AdmissionRequest<'_>, node: &str) -> Answer {
    let quoted = quote(node);
    let name = name_of(request);
    if name != node {
        return refuse(format!("node {quoted} is not allowed to modify node {}", quote(&name)));
    }
    let Some(new) = request.object.as_deref() else { return Ok(()) };
    match (request.operation, request.old_object) {
        (Operation::Create, _) => {
            let forbidden = changed_labels(new, None);
            if !forbidden.is_empty() {
                let labels = forbidden.join(", ");
                return refuse(format!("node {quoted} is not allowed to set the following labels: {labels}"));
            }
        }
        (Operation::Update, Some(old)) => {
            let part = |o: &Value, field: &str| o.at(field).filter(|v| !v.is_null()).cloned();
            if part(new, "spec.taints") != part(old, "spec.taints") {
                return refuse(format!("node {quoted} is not allowed to modify taints"));
            }
            if part(new, "metadata.ownerReferences") != part(old, "metadata.ownerReferences") {
                return refuse(format!("node {quoted} is not allowed to modify ownerReferences"));
            }
            let forbidden = changed_labels(new, Some(old));
            if !forbidden.is_empty() {
                let labels = forbidden.join(", ");
                return refuse(format!("is not allowed to modify labels: {labels}"));
            }
        }
        _ => {}
    }
    Ok(())
}

/// Labels that differ and that a node may not touch, sorted.
fn changed_labels(new: &Value, old: Option<&Value>) -> Vec<String> {
    let new = new.labels().to_map();
    let old = old.map(|o| o.labels().to_map()).unwrap_or_default();
    let keys: std::collections::BTreeSet<_> = new.keys().chain(old.keys()).collect();
    keys.into_iter().filter(|key| new.get(*key) != old.get(*key) && !may_set(key)).cloned().collect()
}

/// Labels of Kubernetes' domains that a node may set on itself.
const OWN_LABELS: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

fn may_set(label: &str) -> bool {
    let Some((domain, _)) = label.split_once('/') else { return true };
    let within =
        |parent: &str| domain == parent || domain.strip_suffix(parent).is_some_and(|d| d.ends_with('.'));
    if within("node-restriction.kubernetes.io") {
        return false;
    }
    if within("kubernetes.io") || within("k8s.io") {
        return OWN_LABELS.contains(&label)
            || within("kubelet.kubernetes.io")
            || within("node.kubernetes.io");
    }
    true
}

fn own_name(request: &AdmissionRequest<'_>, node: &str, why: &str) -> Answer {
    if name_of(request) == node { Ok(()) } else { refuse(why) }
}

fn lease(request: &AdmissionRequest<'_>, node: &str) -> Answer {
    if request.info.namespace != NODE_LEASE_NAMESPACE {
        return refuse(format!(
            "can only access leases in the {} system namespace",
            quote(NODE_LEASE_NAMESPACE)
        ));
    }
    own_name(request, node, "can only access node lease with the same name as the requesting node")
}

fn resource_slice(request: &AdmissionRequest<'_>, node: &str) -> Answer {
    let (object, verb) = match request.operation {
        Operation::Create => (request.object.as_deref(), "create"),
        Operation::Delete => (request.old_object, "delete"),
        // The name of its node never changes.
        _ => return Ok(()),
    };
    if object.is_none_or(|slice| slice.str_at("spec.nodeName") == node) {
        return Ok(());
    }
    refuse(format!("can only {verb} ResourceSlice with the same NodeName as the requesting node"))
}

fn certificate_request(request: &AdmissionRequest<'_>) -> Answer {
    let (Operation::Create, Some(object)) = (request.operation, request.object.as_deref()) else {
        return Ok(());
    };
    if !matches!(object.str_at("spec.signerName"), NODE_CLIENT_SIGNER | NODE_SERVING_SIGNER) {
        return Ok(());
    }
    let user = &request.user.username;
    match subject(object) {
        Some(subject) if subject.common_name == *user => Ok(()),
        Some(_) => refuse(format!("can only create a node CSR with CN={user}")),
        None => refuse("unable to parse csr: PEM block type must be CERTIFICATE REQUEST"),
    }
}

#[cfg(test)]
#[path = "node_restriction_tests.rs"]
mod tests;
