//! Defaulting: what the server fills into an object that leaves it out, per kind and version.
//!
//! Defaulting is idempotent and is applied to well-typed objects (see [`crate::decode::normalize`]).

mod autoscaling;
mod core;
mod groups;
mod pod;
mod service;
mod workloads;

pub use pod::image_pull_policy;
pub use workloads::TEMPLATE_GENERATION;

use crate::kinds::Kind;
use crate::object::Object;
use serde_json::Value;

/// Fills in the defaults of a kind, in the row's version. Kinds defined at run time have theirs in their own schema.
pub fn apply(kind: &Kind, object: &mut Value) {
    if let Some(custom) = &kind.custom {
        crate::crd::defaulting::apply(object, custom.schema());
    }
    let Value::Object(o) = object else { return };
    if !kind.builtin {
        return;
    }
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => pod::pod(o),
        ("", "PodTemplate") => pod::template(o),
        ("", "ReplicationController") => workloads::replication_controller(o),
        ("", "Service") => service::service(o),
        ("", "Endpoints") => service::endpoints(o),
        ("", "Secret") => core::secret(o),
        ("", "PersistentVolume") => core::persistent_volume(o),
        ("", "PersistentVolumeClaim") => core::persistent_volume_claim(o),
        ("", "Namespace") => core::namespace(o),
        ("", "Node") => core::node(o),
        ("", "LimitRange") => core::limit_range(o),
        ("", "ResourceQuota") => core::resource_quota(o),
        ("apps", "Deployment") => workloads::deployment(o),
        ("apps", "ReplicaSet") => workloads::replica_set(o),
        ("apps", "StatefulSet") => workloads::stateful_set(o, &kind.features),
        ("apps", "DaemonSet") => workloads::daemon_set(o),
        ("batch", "Job") => workloads::job(o),
        ("batch", "CronJob") => workloads::cron_job(o),
        ("autoscaling", "HorizontalPodAutoscaler") if kind.version == "v1" => autoscaling::v1(o),
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaling::v2(o),
        ("discovery.k8s.io", "EndpointSlice") => service::endpoint_slice(o),
        ("networking.k8s.io", "NetworkPolicy") => groups::network_policy(o),
        ("networking.k8s.io", "IngressClass") => groups::ingress_class(o),
        ("networking.k8s.io", "Ingress") => groups::ingress(o),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => groups::role_binding(o),
        ("storage.k8s.io", "StorageClass") => groups::storage_class(o),
        ("storage.k8s.io", "CSIDriver") => groups::csi_driver(o),
        ("scheduling.k8s.io", "PriorityClass") => groups::priority_class(o),
        ("apiregistration.k8s.io", "APIService") => groups::api_service(o),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => groups::custom_resource_definition(o),
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => groups::flow_schema(o),
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => groups::priority_level(o),
        ("admissionregistration.k8s.io", name) => groups::admission(name, o),
        ("resource.k8s.io", name) => groups::resource(name, o),
        _ => {}
    }
}

/// Sets a field that is absent (or null).
pub(crate) fn set(o: &mut Object, key: &str, value: impl Into<Value>) {
    let slot = o.entry(key).or_insert(Value::Null);
    if slot.is_null() {
        *slot = value.into();
    }
}

/// The object in a field, when it is there.
pub(crate) fn child<'a>(o: &'a mut Object, key: &str) -> Option<&'a mut Object> {
    o.get_mut(key)?.as_object_mut()
}

/// The object in a field, made when it is absent. `None` only when something else is there.
pub(crate) fn ensure<'a>(o: &'a mut Object, key: &str) -> Option<&'a mut Object> {
    set(o, key, Object::new());
    child(o, key)
}

/// Calls `f` with every object of a list field.
pub(crate) fn each(o: &mut Object, key: &str, mut f: impl FnMut(&mut Object)) {
    if let Some(Value::Array(items)) = o.get_mut(key) {
        items.iter_mut().filter_map(Value::as_object_mut).for_each(&mut f);
    }
}

/// The string in a field; empty when absent.
pub(crate) fn text<'a>(o: &'a Object, key: &str) -> &'a str {
    o.get(key).and_then(Value::as_str).unwrap_or("")
}

/// Whether a field is absent or null.
pub(crate) fn absent(o: &Object, key: &str) -> bool {
    o.get(key).is_none_or(Value::is_null)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaulting_is_idempotent_for_every_kind() {
        for kind in crate::kinds::builtin() {
            let ty = crate::schema::of(kind).expect("type");
            let mut once = crate::decode::empty(ty);
            apply(kind, &mut once);
            let mut twice = once.clone();
            apply(kind, &mut twice);
            assert_eq!(once, twice, "{}", kind.kind);
            let mut dropped = crate::decode::Dropped::default();
            crate::decode::normalize(ty, &mut twice, &mut dropped).expect("defaults are well-typed");
            assert_eq!(dropped.messages, Vec::<String>::new(), "{}", kind.kind);
        }
    }

    #[test]
    fn helpers() {
        let mut v = json!({"a": null, "l": [{}, 1]});
        let o = v.as_object_mut().expect("object");
        set(o, "a", 1);
        set(o, "a", 2);
        each(o, "l", |i| set(i, "x", true));
        assert_eq!(v, json!({"a": 1, "l": [{"x": true}, 1]}));
    }
}
