//! Plugins that only fill something in: TaintNodesByCondition, DefaultTolerationSeconds, DefaultStorageClass,
//! StorageObjectInUseProtection, DefaultIngressClass.

use async_trait::async_trait;
use hawser_api::object::ObjectExt;
use hawser_api::status::Status;
use serde_json::{Value, json};

use super::{Lookup, array_mut, is};
use crate::access::{Admission, AdmissionRequest, Operation};
use crate::request_info::RequestInfo;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// A new Node takes no pods until it is ready.
pub(super) struct TaintNodesByCondition;

#[async_trait]
impl Admission for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        operation == Operation::Create && is(info, "", "nodes")
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(taints) = request.object.as_deref_mut().and_then(|o| array_mut(o, &["spec", "taints"]))
        else {
            return Ok(());
        };
        if !taints.iter().any(|t| t.str_at("key") == NOT_READY && t.str_at("effect") == "NoSchedule") {
            taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        }
        Ok(())
    }
}

/// A pod stays for five minutes on a node that is not ready or cannot be reached.
pub(super) struct DefaultTolerationSeconds;

/// Whether a toleration covers the NoExecute taint `key` (with any value or with none).
fn tolerates(toleration: &Value, key: &str) -> bool {
    matches!(toleration.str_at("effect"), "NoExecute" | "")
        && matches!(toleration.str_at("key"), k if k == key || k.is_empty())
}

#[async_trait]
impl Admission for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        matches!(operation, Operation::Create | Operation::Update) && is(info, "", "pods")
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(object) = request.object.as_deref_mut() else { return Ok(()) };
        let missing: Vec<_> = [NOT_READY, UNREACHABLE]
            .into_iter()
            .filter(|key| !object.items_at("spec.tolerations").iter().any(|t| tolerates(t, key)))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let Some(tolerations) = array_mut(object, &["spec", "tolerations"]) else { return Ok(()) };
        tolerations.extend(missing.into_iter().map(
            |key| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}),
        ));
        Ok(())
    }
}

/// The class that carries a default annotation; of several the newest, then the first by name.
async fn default_class(
    reader: &Lookup,
    group: &str,
    resource: &str,
    annotations: &[&str],
) -> Result<Option<String>, Status> {
    let classes = reader.list(group, resource).await?;
    let is_default = |class: &&Value| annotations.iter().any(|a| class.annotation(a) == Some("true"));
    let newest = classes.iter().filter(is_default).max_by(|a, b| {
        let by_age = a.creation_timestamp().cmp(b.creation_timestamp());
        by_age.then_with(|| b.name().cmp(a.name()))
    });
    Ok(newest.map(|class| class.name().to_owned()))
}

/// A claim without a class gets the default one.
pub(super) struct DefaultStorageClass {
    pub(super) reader: Lookup,
}

#[async_trait]
impl Admission for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        operation == Operation::Create && is(info, "", "persistentvolumeclaims")
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(object) = request.object.as_deref_mut() else { return Ok(()) };
        let named = object.at("spec.storageClassName").is_some_and(|class| !class.is_null());
        if named || object.annotation("volume.beta.kubernetes.io/storage-class").is_some() {
            return Ok(());
        }
        let annotations = [
            "storageclass.kubernetes.io/is-default-class",
            "storageclass.beta.kubernetes.io/is-default-class",
        ];
        if let Some(name) =
            default_class(&self.reader, "storage.k8s.io", "storageclasses", &annotations).await?
        {
            object.set_path(&["spec", "storageClassName"], json!(name));
        }
        Ok(())
    }
}

/// Volumes and claims are not deleted under those that use them: a controller takes the finalizer away.
pub(super) struct StorageObjectInUseProtection;

#[async_trait]
impl Admission for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        operation == Operation::Create
            && (is(info, "", "persistentvolumeclaims")
                || is(info, "", "persistentvolumes")
                || is(info, "storage.k8s.io", "volumeattributesclasses"))
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let finalizer = match request.info.resource.as_str() {
            "persistentvolumeclaims" => "kubernetes.io/pvc-protection",
            "persistentvolumes" => "kubernetes.io/pv-protection",
            _ => "kubernetes.io/vac-protection",
        };
        let Some(finalizers) =
            request.object.as_deref_mut().and_then(|o| array_mut(o, &["metadata", "finalizers"]))
        else {
            return Ok(());
        };
        if !finalizers.iter().any(|f| f == finalizer) {
            finalizers.push(json!(finalizer));
        }
        Ok(())
    }
}

/// An Ingress without a class gets the default one.
pub(super) struct DefaultIngressClass {
    pub(super) reader: Lookup,
}

#[async_trait]
impl Admission for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        operation == Operation::Create && is(info, "networking.k8s.io", "ingresses")
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(object) = request.object.as_deref_mut() else { return Ok(()) };
        let named = object.at("spec.ingressClassName").is_some_and(|class| !class.is_null());
        if named || object.annotation("kubernetes.io/ingress.class").is_some() {
            return Ok(());
        }
        let annotations = ["ingressclass.kubernetes.io/is-default-class"];
        if let Some(name) =
            default_class(&self.reader, "networking.k8s.io", "ingressclasses", &annotations).await?
        {
            object.set_path(&["spec", "ingressClassName"], json!(name));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::World;
    use super::*;

    #[tokio::test]
    async fn tolerations_are_added_once() {
        let world = World::new();
        let seconds = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
        let own =
            json!({"key": NOT_READY, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5});
        let everything = json!({"operator": "Exists"});
        for (given, expected) in [
            (json!({}), json!([seconds(NOT_READY), seconds(UNREACHABLE)])),
            (json!({"tolerations": [own]}), json!([own, seconds(UNREACHABLE)])),
            (json!({"tolerations": [everything]}), json!([everything])),
        ] {
            let pod = world.post("/api/v1/namespaces/a/pods", json!({"spec": given}));
            let pod = pod.admit(&DefaultTolerationSeconds).await.expect("admitted");
            assert_eq!(pod["spec"]["tolerations"], expected);
        }
    }

    #[tokio::test]
    async fn classes_and_finalizers_are_filled_in() {
        let world = World::new();
        let class = |name: &str, at: &str| {
            json!({"metadata": {"name": name, "creationTimestamp": at, "annotations": {
                "storageclass.kubernetes.io/is-default-class": "true", "ingressclass.kubernetes.io/is-default-class": "true"}}})
        };
        let claim =
            |spec: Value| world.post("/api/v1/namespaces/a/persistentvolumeclaims", json!({"spec": spec}));
        let storage = DefaultStorageClass { reader: world.lookup() };
        assert_eq!(claim(json!({})).admit(&storage).await.expect("admitted")["spec"], json!({}));
        world.put("storage.k8s.io", "storageclasses", class("old", "2020-01-01T00:00:00Z"));
        world.put("storage.k8s.io", "storageclasses", class("new", "2021-01-01T00:00:00Z"));
        world.put("networking.k8s.io", "ingressclasses", class("i", "2021-01-01T00:00:00Z"));
        for (given, expected) in [
            (json!({}), "new"),
            (json!({"storageClassName": ""}), ""),
            (json!({"storageClassName": "x"}), "x"),
        ] {
            assert_eq!(
                claim(given).admit(&storage).await.expect("admitted")["spec"]["storageClassName"],
                expected
            );
        }
        let protected = claim(json!({})).admit(&StorageObjectInUseProtection).await.expect("admitted");
        assert_eq!(protected["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
        let ingress = world.post("/apis/networking.k8s.io/v1/namespaces/a/ingresses", json!({"spec": {}}));
        let ingress = ingress.admit(&DefaultIngressClass { reader: world.lookup() }).await.expect("admitted");
        assert_eq!(ingress["spec"]["ingressClassName"], "i");
        let node =
            world.post("/api/v1/nodes", json!({})).admit(&TaintNodesByCondition).await.expect("admitted");
        assert_eq!(node["spec"]["taints"], json!([{"key": NOT_READY, "effect": "NoSchedule"}]));
    }
}
