//! Validation of metadata.

use super::checks::{Errors, IMMUTABLE, NOT_NEGATIVE};
use crate::kinds::Kind;
use crate::names;
use crate::object::{ObjectExt as _, split_api_version};
use crate::status::{BadValue, FieldError, Path};
use crate::strategy::rules;
use serde_json::Value;

/// Most bytes that the keys and values of all annotations may have.
const ANNOTATIONS_MAX: usize = 256 * 1024;
const META: Path<'static> = Path::new("metadata");

pub fn on_create(kind: &Kind, o: &Value, e: &mut Errors) {
    let rule = rules(kind).name_rule;
    let prefix = o.generate_name();
    if !prefix.is_empty() {
        e.all(META.child("generateName"), prefix, names::object_name(rule, prefix, true));
    }
    let name = o.name();
    if name.is_empty() {
        e.required(META.child("name"), "name or generateName is required");
    } else {
        e.all(META.child("name"), name, names::object_name(rule, name, false));
    }
    let namespace = o.namespace();
    match (kind.namespaced, namespace.is_empty()) {
        (true, true) => e.required(META.child("namespace"), ""),
        (true, false) => e.all(META.child("namespace"), namespace, names::dns1123_label(namespace)),
        (false, false) => e.forbidden(META.child("namespace"), "not allowed on this type"),
        (false, true) => {}
    }
    common(o, e);
}

/// What create and update check alike.
fn common(o: &Value, e: &mut Errors) {
    if let Some(n) = o.generation().filter(|n| *n < 0) {
        e.invalid(META.child("generation"), n, NOT_NEGATIVE);
    }
    labelled(o, e);
    finalizers(o, e);
}

fn labelled(o: &Value, e: &mut Errors) {
    e.label_map(META.child("labels"), o.labels());
    annotations(META.child("annotations"), o, e);
    owners(o, e);
}

/// Annotations: keys like labels' (their case is of no account), and a bound on the whole.
pub fn annotations(at: Path<'_>, o: &Value, e: &mut Errors) {
    let mut size = 0;
    for (key, value) in o.annotations().iter() {
        e.all(at, key, names::qualified_name(&key.to_lowercase()));
        size += key.len() + value.len();
    }
    if size > ANNOTATIONS_MAX {
        e.push(FieldError::too_long(at, ANNOTATIONS_MAX));
    }
}

fn owners(o: &Value, e: &mut Errors) {
    let at = META.child("ownerReferences");
    let owners = o.owner_references();
    let shown = || {
        let all = o.at("metadata.ownerReferences");
        BadValue::Internal(crate::internal::compact("[]meta.v1.OwnerReference", all))
    };
    for owner in &owners {
        let (group, version) = split_api_version(&owner.api_version);
        if version.is_empty() {
            e.invalid(at.child("apiVersion"), owner.api_version.as_str(), "version must not be empty");
        }
        let fields = [("kind", &owner.kind), ("name", &owner.name), ("uid", &owner.uid)];
        for (field, _) in fields.iter().filter(|(_, v)| v.is_empty()) {
            e.invalid(at.child(field), "", "must not be empty");
        }
        if owner.kind == "Event" && matches!(group, "" | "events.k8s.io") {
            e.invalid(at, shown(), "events are disallowed from being an owner");
        }
    }
    let controllers: Vec<&str> =
        owners.iter().filter(|r| r.controller == Some(true)).map(|r| r.name.as_str()).collect();
    if let [first, second, ..] = controllers.as_slice() {
        let detail = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
        );
        e.invalid(at, shown(), detail);
    }
}

/// The metadata of a template that is only labels and annotations; everything else may not be set.
pub fn of_template(at: Path<'_>, template: &Value, e: &mut Errors) {
    annotations(at.child("annotations"), template, e);
    e.label_map(at.child("labels"), template.labels());
    // The names and the order are those of Go's struct.
    const OTHERS: [(&str, &str); 13] = [
        ("name", "name"),
        ("generateName", "generateName"),
        ("namespace", "namespace"),
        ("selfLink", "selfLink"),
        ("uid", "uID"),
        ("resourceVersion", "resourceVersion"),
        ("generation", "generation"),
        ("creationTimestamp", "creationTimestamp"),
        ("deletionTimestamp", "deletionTimestamp"),
        ("deletionGracePeriodSeconds", "deletionGracePeriodSeconds"),
        ("ownerReferences", "ownerReferences"),
        ("finalizers", "finalizers"),
        ("managedFields", "managedFields"),
    ];
    for (field, shown) in OTHERS {
        if template.get_path(&["metadata", field]).is_some_and(|v| !v.is_null()) {
            e.forbidden(at.child(shown), "cannot be set");
        }
    }
}

/// What is wrong with the metadata of an embedded resource.
pub fn embedded(metadata: &Value) -> Vec<FieldError> {
    let mut e = Errors::default();
    let object = serde_json::json!({"metadata": metadata});
    for (field, value, prefix) in
        [("generateName", object.generate_name(), true), ("name", object.name(), false)]
    {
        if !value.is_empty() {
            e.all(META.child(field), value, names::object_name(names::NameRule::PathSegment, value, prefix));
        }
    }
    let namespace = object.namespace();
    if !namespace.is_empty() {
        e.all(META.child("namespace"), namespace, names::dns1123_label(namespace));
    }
    common(&object, &mut e);
    e.into_vec()
}

/// Advice on the names of finalizers that a write adds to a custom resource.
pub fn finalizer_warnings(object: &Value, old: Option<&Value>) -> Vec<String> {
    const STANDARD: [&str; 3] = ["orphan", "foregroundDeletion", "kubernetes"];
    let known = old.map(|o| o.finalizers()).unwrap_or_default();
    let mut added: Vec<&str> = object.finalizers().into_iter().filter(|f| !known.contains(f)).collect();
    added.sort_unstable();
    let mut out = Vec::new();
    for name in added {
        let quoted = crate::text::quote(name);
        out.extend(
            names::qualified_name(name)
                .into_iter()
                .map(|why| format!("metadata.finalizers: {quoted}: {why}")),
        );
        if !name.contains('/') && !STANDARD.contains(&name) {
            let path = if name.contains('.') { " including a path (/)" } else { "" };
            out.push(format!(
                "metadata.finalizers: {quoted}: prefer a domain-qualified finalizer name{path} to avoid accidental \
                 conflicts with other finalizer writers"
            ));
        }
    }
    out
}

fn finalizers(o: &Value, e: &mut Errors) {
    let at = META.child("finalizers");
    let all = o.finalizers();
    for name in &all {
        e.all(at, name, names::qualified_name(name));
    }
    if all.contains(&"orphan") && all.contains(&"foregroundDeletion") {
        let value = o.at("metadata.finalizers").cloned().unwrap_or_default();
        e.invalid(at, value, "finalizer orphan and finalizer foregroundDeletion cannot be both set");
    }
}

pub fn on_update(kind: &Kind, new: &Value, old: &Value, e: &mut Errors) {
    let old_finalizers = old.finalizers();
    if old.deletion_timestamp().is_some() {
        let extra: Vec<&str> = new.finalizers().into_iter().filter(|f| !old_finalizers.contains(f)).collect();
        if !extra.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                extra.iter().map(|f| crate::text::quote(f)).collect::<Vec<_>>().join(", ")
            );
            e.forbidden(META.child("finalizers"), &detail);
        }
    }
    let (whole, changes) = rounds(kind);
    for _ in 0..changes {
        for field in [
            "name",
            "namespace",
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        ] {
            let (a, b) = (new.get_path(&["metadata", field]), old.get_path(&["metadata", field]));
            if a != b {
                e.invalid(META.child(field), a.cloned().unwrap_or(Value::Null), IMMUTABLE);
            }
        }
    }
    if new.generation().unwrap_or(0) < old.generation().unwrap_or(0) {
        e.invalid(META.child("generation"), new.generation().unwrap_or(0), "must not be decremented");
    }
    if !rules(kind).allow_unconditional_update && new.resource_version().is_empty() {
        e.invalid(META.child("resourceVersion"), 0, "must be specified for an update");
    }
    for _ in 0..whole {
        common(new, e);
    }
    for _ in 0..if kind.builtin { changes } else { 0 } {
        labelled(new, e);
    }
}

/// How often Kubernetes checks the metadata of an update, each time telling what it finds: as a whole, and what changed
/// (which looks at labels, annotations and owners again). The generic registry does both once for every kind, most kinds'
/// own checks do the latter again, some both, some only the former.
fn rounds(kind: &Kind) -> (usize, usize) {
    if !kind.builtin {
        return (1, 1);
    }
    match kind.kind.as_str() {
        "ClusterRole"
        | "ClusterRoleBinding"
        | "ClusterTrustBundle"
        | "CertificateSigningRequest"
        | "ConfigMap"
        | "ControllerRevision"
        | "Endpoints"
        | "Ingress"
        | "IngressClass"
        | "Node"
        | "PersistentVolumeClaim"
        | "Pod"
        | "ResourceClaim"
        | "Role"
        | "RoleBinding"
        | "Secret"
        | "ServiceAccount"
        | "StatefulSet"
        | "StorageVersionMigration"
        | "VolumeAttributesClass" => (2, 2),
        "CSINode"
        | "EndpointSlice"
        | "FlowSchema"
        | "LimitRange"
        | "MutatingAdmissionPolicy"
        | "MutatingAdmissionPolicyBinding"
        | "MutatingWebhookConfiguration"
        | "PersistentVolume"
        | "PriorityLevelConfiguration"
        | "ValidatingAdmissionPolicy"
        | "ValidatingAdmissionPolicyBinding"
        | "ValidatingWebhookConfiguration"
        | "VolumeAttachment" => (2, 1),
        _ => (1, 2),
    }
}
