//! Pods as they are read from a watch, without who wrote what of them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use serde::Deserialize;

/// A pod whose `managedFields` were passed over, not read: they are much of its text.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Parts")]
pub struct LeanPod(pub Pod);

#[derive(Deserialize)]
struct Parts {
    metadata: Meta,
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generate_name: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    deletion_grace_period_seconds: Option<i64>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
    finalizers: Option<Vec<String>>,
}

impl From<Parts> for LeanPod {
    fn from(Parts { metadata, spec, status }: Parts) -> Self {
        let metadata = ObjectMeta {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            generate_name: metadata.generate_name,
            generation: metadata.generation,
            creation_timestamp: metadata.creation_timestamp,
            deletion_timestamp: metadata.deletion_timestamp,
            deletion_grace_period_seconds: metadata.deletion_grace_period_seconds,
            labels: metadata.labels,
            annotations: metadata.annotations,
            owner_references: metadata.owner_references,
            finalizers: metadata.finalizers,
            managed_fields: None,
            self_link: None,
        };
        LeanPod(Pod { metadata, spec, status })
    }
}

impl From<LeanPod> for Pod {
    fn from(LeanPod(pod): LeanPod) -> Self {
        pod
    }
}

impl Resource for LeanPod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        Pod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        Pod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        Pod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        Pod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.0.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nothing_else_is_lost() {
        let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r1", "controller": true});
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "7", "generation": 3,
                "generateName": "p-", "deletionGracePeriodSeconds": 30, "finalizers": ["a/b"],
                "creationTimestamp": "2026-11-21T00:00:00Z", "deletionTimestamp": "2026-11-21T00:00:00Z",
                "labels": {"a": "b"}, "annotations": {"c": "d"}, "ownerReferences": [owner],
                "managedFields": [{"manager": "m", "operation": "Update", "fieldsV1": {"f:spec": {}}}]},
            "spec": {"nodeName": "node", "priority": 5, "schedulerName": "s", "containers": [{"name": "c", "image": "i",
                "resources": {"requests": {"cpu": "1"}}}]},
            "status": {"phase": "Running", "nominatedNodeName": "other", "startTime": "2026-11-21T00:00:00Z",
                "conditions": [{"type": "PodScheduled", "status": "False", "reason": "r", "message": "m"}]},
        });
        let text = object.to_string();
        let mut whole: Pod = serde_json::from_str(&text).expect("a pod");
        let lean: LeanPod = serde_json::from_str(&text).expect("a lean pod");
        assert!(whole.metadata.managed_fields.take().is_some());
        assert_eq!(Pod::from(lean), whole);
    }
}
