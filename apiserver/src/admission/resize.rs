//! Things that grow: PersistentVolumeClaimResize and PodResizeValidator.

use async_trait::async_trait;
use hawser_api::object::ObjectExt;
use hawser_api::resources::{self, Half};
use hawser_api::status::Status;
use serde_json::Value;

use super::{Lookup, forbidden, is};
use crate::access::{Admission, AdmissionRequest, Operation};
use crate::request_info::RequestInfo;

/// A claim grows only if its class allows it.
pub(super) struct ClaimResize {
    pub(super) reader: Lookup,
}

fn class(claim: &Value) -> &str {
    let annotated = claim.annotation("volume.beta.kubernetes.io/storage-class");
    annotated.unwrap_or_else(|| claim.str_at("spec.storageClassName"))
}

#[async_trait]
impl Admission for ClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        operation == Operation::Update && is(info, "", "persistentvolumeclaims")
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let Some((new, old)) = request.object.as_deref().zip(request.old_object) else { return Ok(()) };
        let size = |o: &Value| resources::list(o.at("spec.resources.requests")).get("storage").copied();
        if size(new).unwrap_or(hawser_api::quantity::Quantity::ZERO)
            <= size(old).unwrap_or(hawser_api::quantity::Quantity::ZERO)
        {
            return Ok(());
        }
        if old.str_at("status.phase") != "Bound" {
            return Err(forbidden(request, "Only bound persistent volume claims can be expanded"));
        }
        let name = class(new);
        let mut allowed = false;
        if !name.is_empty() && name == class(old) {
            let found = self.reader.get("storage.k8s.io", "storageclasses", "", name).await?;
            allowed = found.is_some_and(|c| c.bool_at("allowVolumeExpansion") == Some(true));
        }
        if allowed {
            return Ok(());
        }
        let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must \
                   support resize";
        Err(forbidden(request, why))
    }
}

/// A running pod grows only as far as its node reaches.
pub(super) struct PodResize {
    pub(super) reader: Lookup,
}

#[async_trait]
impl Admission for PodResize {
    fn name(&self) -> &'static str {
        "PodResizeValidator"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        operation == Operation::Update
            && info.group.is_empty()
            && info.resource == "pods"
            && info.subresource == "resize"
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let Some((pod, old)) = request.object.as_deref().zip(request.old_object) else { return Ok(()) };
        let name = pod.str_at("spec.nodeName");
        if name.is_empty() || pod.generation() == old.generation() {
            return Ok(());
        }
        let Some(node) = self.reader.get("", "nodes", "", name).await? else {
            return Err(forbidden(request, format!("node \"{name}\" not found")));
        };
        if let Some(os) = node.label("kubernetes.io/os").filter(|os| *os != "linux") {
            let why = format!("pod resize is only supported on linux nodes, node \"{name}\" is \"{os}\"");
            return Err(forbidden(request, why).with_cause("UnsupportedPlatform", "", ""));
        }
        let (asked, there) =
            (resources::cost_of_pod(pod, Half::Requests), resources::list(node.at("status.allocatable")));
        let mut short = Vec::new();
        for (resource, milli) in [("cpu", true), ("memory", false)] {
            let zero = hawser_api::quantity::Quantity::ZERO;
            let of = |list: &resources::ResourceList| list.get(resource).copied().unwrap_or(zero);
            if of(&asked) > of(&there) {
                let n = |q: hawser_api::quantity::Quantity| if milli { q.milli_value() } else { q.value() };
                let (asked, there) = (n(of(&asked)), n(of(&there)));
                short.push(format!("{resource}, requested: {asked}, allocatable: {there}"));
            }
        }
        if short.is_empty() {
            return Ok(());
        }
        let why = format!("node didn't have enough allocatable resources: {}", short.join("; "));
        Err(forbidden(request, why).with_cause("NodeCapacity", "", ""))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::World;
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn claims_grow_if_their_class_allows_it() {
        let world = World::new();
        let plugin = ClaimResize { reader: world.lookup() };
        let claim = |size: &str, phase: &str| json!({"metadata": {"name": "c"}, "spec": {"storageClassName": "s", "resources": {"requests": {"storage": size}}}, "status": {"phase": phase}});
        let path = "/api/v1/namespaces/a/persistentvolumeclaims/c";
        let grow = |phase: &str| world.put_request(path, claim("2Gi", phase), claim("1Gi", phase));
        assert!(
            grow("Pending")
                .answer(&plugin)
                .await
                .ends_with("Only bound persistent volume claims can be expanded")
        );
        assert!(grow("Bound").answer(&plugin).await.contains("must support resize"));
        world.put(
            "storage.k8s.io",
            "storageclasses",
            json!({"metadata": {"name": "s"}, "allowVolumeExpansion": true}),
        );
        assert_eq!(grow("Bound").answer(&plugin).await, "ok");
    }

    #[tokio::test]
    async fn pods_grow_as_far_as_their_node() {
        let world = World::new();
        let plugin = PodResize { reader: world.lookup() };
        let pod = |cpu: &str, generation: i64| json!({"metadata": {"name": "p", "generation": generation}, "spec": {"nodeName": "n", "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
        let resize =
            |cpu: &str| world.put_request("/api/v1/namespaces/a/pods/p/resize", pod(cpu, 2), pod("1", 1));
        assert!(resize("2").answer(&plugin).await.ends_with("node \"n\" not found"));
        world.put(
            "",
            "nodes",
            json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "2", "memory": "1Gi"}}}),
        );
        assert_eq!(resize("2").answer(&plugin).await, "ok");
        assert!(resize("3").answer(&plugin).await.ends_with(
            "node didn't have enough allocatable resources: cpu, requested: 3000, allocatable: 2000"
        ));
    }
}
