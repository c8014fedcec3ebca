//! Validation: what is wrong with an object, field by field, in Kubernetes' words and order.
//!
//! Objects are well-typed, defaulted and prepared (see [`crate::strategy`]) when they come here.

mod addresses;
mod admission;
mod autoscaling;
mod checks;
mod conditions;
mod containers;
mod contexts;
mod core;
mod cron;
mod devices;
mod env;
mod expressions;
mod flowcontrol;
mod groups;
mod handlers;
mod job_updates;
mod jobs;
mod meta;
mod networking;
mod persistent;
mod platform;
mod pod_status;
mod pod_updates;
mod pods;
mod profiles;
mod quotas;
#[cfg(test)]
mod recorded;
mod scheduling;
mod service;
mod sources;
mod statuses;
mod storage;
mod volumes;
mod warnings;
mod workloads;

pub use addresses::sloppy as sloppy_ip;
pub(crate) use admission::webhook_url;
pub use service::addresses_wanted as service_addresses;

use crate::crd::definition;
use crate::kinds::Kind;
use crate::status::{FieldError, Path, Status};
use checks::Errors;
use serde_json::Value;

/// What is wrong with an object that is to be created. Empty when nothing is.
pub fn validate_create(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let mut e = Errors::default();
    meta::on_create(kind, object, &mut e);
    if kind.builtin {
        whole(kind, object, None, &mut e);
    }
    let mut errors = e.into_vec();
    errors.extend(kind.custom.iter().flat_map(|c| c.validate_create(object)));
    errors
}

/// What is wrong with a new object that came in a version which demands more than the stored one: `object` is in the
/// stored version.
pub fn validate_create_as(served: &Kind, stored: &Kind, object: &Value) -> Vec<FieldError> {
    let mut found = validate_create(stored, object);
    if served.group == "events.k8s.io" && served.kind == "Event" {
        as_reporting_controller(&mut found);
        let mut e = Errors::default();
        core::strict_event(object, &mut e);
        found.extend(e.into_vec());
    }
    found
}

/// What is wrong with an update that came in a version which demands more than the stored one.
pub fn validate_update_as(served: &Kind, stored: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut found = validate_update(stored, new, old);
    if served.group == "events.k8s.io" && served.kind == "Event" {
        let mut e = Errors::default();
        core::strict_event_update(new, old, &mut e);
        found.extend(e.into_vec());
        as_reporting_controller(&mut found);
    }
    found
}

/// The group `events.k8s.io` has a name of its own for who reports.
fn as_reporting_controller(found: &mut [FieldError]) {
    for error in found.iter_mut().filter(|e| e.field == "reportingComponent") {
        error.field = "reportingController".into();
    }
}

/// What is wrong with an update of a whole object; rules of a kind defined at run time are [`custom_update`]'s.
pub fn validate_update(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut e = Errors::default();
    meta::on_update(kind, new, old, &mut e);
    if kind.builtin {
        whole(kind, new, Some(old), &mut e);
    }
    e.into_vec()
}

/// What the schema of a kind defined at run time finds wrong with an update of a whole object or of its status, and
/// what it only warns of because the update left it alone.
pub fn custom_update(
    kind: &Kind,
    subresource: &str,
    new: &Value,
    old: &Value,
) -> (Vec<FieldError>, Vec<String>) {
    match (&kind.custom, subresource) {
        (Some(custom), "") => custom.validate_update(new, old),
        (Some(custom), "status") => custom.validate_status(new, old),
        _ => Default::default(),
    }
}

/// What is wrong with an update through a subresource (`status`, `ephemeralcontainers`, …).
pub fn validate_subresource_update(
    kind: &Kind,
    subresource: &str,
    new: &Value,
    old: &Value,
) -> Vec<FieldError> {
    let mut e = Errors::default();
    meta::on_update(kind, new, old, &mut e);
    match (kind.kind.as_str(), subresource) {
        ("Pod", "ephemeralcontainers") => pod_updates::ephemeral(new, old, &mut e),
        ("Pod", "resize") => pod_updates::resize(new, old, &mut e),
        ("Job", "status") => job_updates::status(new, old, &mut e),
        ("Pod", "status") => pod_status::status(new, old, &mut e),
        ("PersistentVolumeClaim", "status") => persistent::claim_status(new, &mut e),
        ("Service", "status") => service::status(new, &mut e),
        ("ResourceClaim", "status") => devices::claim_status(new, old, &mut e),
        ("ResourceQuota", "status") => quotas::quota_status(new, &mut e),
        ("CertificateSigningRequest", "approval" | "status") => {
            groups::request_conditions(new, &mut e);
            groups::request_update(new, old, subresource, &mut e);
        }
        ("CustomResourceDefinition", "status") if kind.builtin => {
            definition::validate_status(new).into_iter().for_each(|error| e.push(error));
        }
        (name, "status") if kind.builtin => statuses::judge(name, new, old, &mut e),
        _ => {}
    }
    e.into_vec()
}

/// What is wrong with the metadata of a resource that is embedded in another one, at the position `at`.
pub(crate) fn embedded_metadata(at: Path<'_>, metadata: &Value) -> Vec<FieldError> {
    let mut errors = meta::embedded(metadata);
    for error in &mut errors {
        error.field = format!("{at}{}", error.field.strip_prefix("metadata").unwrap_or_default());
    }
    errors
}

/// Warnings that go with an accepted object.
pub fn warnings(kind: &Kind, object: &Value, old: Option<&Value>) -> Vec<String> {
    if kind.custom.is_some() {
        return meta::finalizer_warnings(object, old);
    }
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("apiextensions.k8s.io", "CustomResourceDefinition") => definition::warnings(object, old),
        _ => warnings::of(kind, object, old),
    }
}

/// The answer for the errors found; `None` when there are none.
pub fn to_status(kind: &Kind, name: &str, errors: &[FieldError]) -> Option<Status> {
    (!errors.is_empty()).then(|| Status::invalid(&kind.group, &kind.kind, name, errors))
}

/// The kind's own rules, `old` being the stored object of an update.
fn whole(kind: &Kind, o: &Value, old: Option<&Value>, e: &mut Errors) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("apiextensions.k8s.io", "CustomResourceDefinition") => match old {
            None => definition::validate_create(o).into_iter().for_each(|error| e.push(error)),
            Some(old) => definition::validate_update(o, old).into_iter().for_each(|error| e.push(error)),
        },
        ("", "Pod") => match old {
            None => pods::pod(o, e),
            Some(old) => pod_updates::update(o, old, e),
        },
        ("", "PodTemplate") => pods::template(o.get("template"), "template", e),
        ("", "Service") => service::service(o, old, e),
        ("", "Endpoints") => service::endpoints(o, e),
        ("", "ConfigMap") => core::config_map(o, old, e),
        ("", "Secret") => core::secret(o, old, e),
        ("", "PersistentVolume") => persistent::volume(o, old, e),
        ("", "PersistentVolumeClaim") => persistent::claim(o, old, e),
        ("", "LimitRange") => quotas::limit_range(o, e),
        ("", "ResourceQuota") => quotas::resource_quota(o, old, e),
        ("", "Event") => core::event(o, e),
        ("", "Node") => core::node(o, old, e),
        ("", "Namespace") => core::namespace(o, e),
        ("", "ReplicationController") => workloads::replication_controller(o, e),
        ("apps", "Deployment") => workloads::deployment(o, old, e),
        ("apps", "ReplicaSet") => workloads::replica_set(o, old, e),
        ("apps", "StatefulSet") => workloads::stateful_set(o, old, e),
        ("apps", "DaemonSet") => workloads::daemon_set(o, old, e),
        ("apps", "ControllerRevision") => workloads::controller_revision(o, old, e),
        ("batch", "Job") => jobs::job(o, old, e),
        ("batch", "CronJob") => jobs::cron_job(o, e),
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaling::autoscaler(o, old, e),
        ("discovery.k8s.io", "EndpointSlice") => service::endpoint_slice(o, old, e),
        ("networking.k8s.io", name) => networking::kind(name, o, old, e),
        ("policy", "PodDisruptionBudget") => groups::disruption_budget(o, e),
        ("coordination.k8s.io", "Lease") => groups::lease(o, e),
        ("rbac.authorization.k8s.io", name) => groups::rbac(name, o, old, e),
        ("scheduling.k8s.io", "PriorityClass") => groups::priority_class(o, old, e),
        ("node.k8s.io", "RuntimeClass") => groups::runtime_class(o, old, e),
        ("storage.k8s.io", name) => storage::kind(name, o, old, e),
        ("admissionregistration.k8s.io", name) => admission::kind(name, o, e),
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => flowcontrol::flow_schema(o, e),
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => flowcontrol::priority_level(o, e),
        ("apiregistration.k8s.io", "APIService") => groups::api_service(o, e),
        ("certificates.k8s.io", "CertificateSigningRequest") => groups::signing_request(o, e),
        ("resource.k8s.io", name) => devices::kind(name, o, old, e),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn empty_objects_of_every_kind_are_judged() {
        for kind in crate::kinds::builtin() {
            let ty = crate::schema::of(kind).expect("type");
            let mut o = crate::decode::empty(ty);
            crate::defaults::apply(kind, &mut o);
            let errors = validate_create(kind, &o);
            assert!(errors.iter().any(|e| e.field == "metadata.name"), "{}", kind.kind);
            assert!(to_status(kind, "", &errors).is_some());
        }
    }

    #[test]
    fn warnings_of_what_is_accepted() {
        let kind = |group: &str, plural: &str| crate::kinds::find(group, "v1", plural).expect("row");
        let pod = json!({"metadata": {"name": "p", "annotations": {"container.apparmor.security.beta.kubernetes.io/c": "x"}},
            "spec": {"nodeSelector": {"beta.kubernetes.io/os": "linux"}, "containers": [{"name": "c", "env": [{"name": "A"}, {"name": "A"}]}]}});
        assert_eq!(
            warnings(kind("", "pods"), &pod, None),
            [
                "metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]: deprecated since v1.30; use the \"appArmorProfile\" field instead",
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
            ]
        );
        let service = json!({"spec": {"type": "ClusterIP", "externalName": "a.b"}});
        assert_eq!(warnings(kind("", "services"), &service, None).len(), 1);
        assert_eq!(
            warnings(kind("discovery.k8s.io", "endpointslices"), &json!({"addressType": "FQDN"}), None).len(),
            1
        );
        assert!(warnings(kind("", "configmaps"), &json!({}), None).is_empty());
    }

    proptest! {
        #[test]
        fn no_well_typed_pod_panics(name in ".{0,8}", port in any::<i32>(), key in ".{0,6}", op in "(In|Exists|Gt|)") {
            let kind = crate::kinds::find("", "v1", "pods").expect("pods");
            let mut pod = json!({"metadata": {"name": name, "labels": {key.clone(): name}}, "spec": {
                "containers": [{"name": name, "image": key, "ports": [{"containerPort": port, "hostPort": port}],
                    "env": [{"name": key, "valueFrom": {"fieldRef": {"fieldPath": key}}}], "volumeMounts": [{"name": key, "mountPath": name}]}],
                "volumes": [{"name": key}], "tolerations": [{"key": key, "operator": op}],
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": key, "operator": op}]}]}}}}});
            crate::defaults::apply(kind, &mut pod);
            let errors = validate_create(kind, &pod);
            let _ = validate_update(kind, &pod, &json!({}));
            let _ = to_status(kind, "x", &errors);
        }
    }
}
