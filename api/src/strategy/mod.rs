//! What happens to an object between decoding and storing: the rules of each kind, as tables, and the steps
//! of create, update and status update that follow them.
//!
//! Order of a create: decode, default, admission, [`prepare_for_create`], validation, store. Of an update:
//! decode, default, [`prepare_for_update`] (or [`prepare_for_subresource_update`]), validation, store.

mod apparmor;
mod families;
mod gated;
mod service;
mod special;

pub use families::settle as service_families;
pub use gated::{Feature, switched_on};
pub use special::{pod_addresses, qos_class};

use crate::kinds::Kind;
use crate::names::NameRule;
use crate::object::{Object, ObjectExt as _};
use crate::time::rfc3339;
use jiff::Timestamp;
use serde_json::{Value, json};

/// Characters of a name that `generateName` leaves before the random part.
const GENERATED_PREFIX_MAX: usize = 58;

/// What deleting does to dependents when the request does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultPropagation {
    Background,
    Orphan,
}

/// The rules of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    pub name_rule: NameRule,
    /// `metadata.generation` starts at 1 and counts changes of what is desired.
    pub generation: bool,
    /// PUT of a missing object creates it.
    pub allow_create_on_update: bool,
    /// An update without resourceVersion overwrites.
    pub allow_unconditional_update: bool,
    pub default_propagation: DefaultPropagation,
    /// Deletion waits for a grace period (pods).
    pub graceful_deletion: bool,
}

/// The rules of a row.
pub fn rules(kind: &Kind) -> Rules {
    let name = kind.kind.as_str();
    let group = kind.group.as_str();
    if !kind.builtin {
        return Rules {
            name_rule: NameRule::Subdomain,
            generation: true,
            allow_create_on_update: false,
            allow_unconditional_update: false,
            default_propagation: DefaultPropagation::Background,
            graceful_deletion: false,
        };
    }
    Rules {
        name_rule: match (group, name) {
            ("", "Namespace" | "Service") => NameRule::Label,
            ("rbac.authorization.k8s.io", _) | ("apiregistration.k8s.io", _) => NameRule::PathSegment,
            ("networking.k8s.io", "IPAddress") => NameRule::IpAddress,
            _ => NameRule::Subdomain,
        },
        generation: matches!(
            (group, name),
            ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet")
                | ("", "Pod" | "PodTemplate" | "ReplicationController")
                | ("batch", _)
                | ("networking.k8s.io", "Ingress" | "IngressClass" | "NetworkPolicy")
                | ("policy", _)
                | ("discovery.k8s.io", _)
                | ("flowcontrol.apiserver.k8s.io", _)
                | ("admissionregistration.k8s.io", _)
                | ("apiextensions.k8s.io", _)
                | ("scheduling.k8s.io", _)
                | ("resource.k8s.io", "DeviceClass" | "ResourceSlice" | "DeviceTaintRule")
        ),
        allow_create_on_update: matches!(
            (group, name),
            ("", "Event" | "Endpoints" | "LimitRange" | "Service")
                | ("events.k8s.io" | "rbac.authorization.k8s.io", _)
                | ("coordination.k8s.io", "Lease")
        ),
        allow_unconditional_update: !matches!(
            (group, name),
            ("policy" | "coordination.k8s.io" | "apiextensions.k8s.io" | "apiregistration.k8s.io", _)
                | ("admissionregistration.k8s.io" | "node.k8s.io", _)
                | ("storage.k8s.io", "CSIDriver" | "CSINode" | "CSIStorageCapacity" | "VolumeAttachment")
        ),
        default_propagation: match (group, name) {
            ("batch", "Job") | ("", "ReplicationController") => DefaultPropagation::Orphan,
            _ => DefaultPropagation::Background,
        },
        graceful_deletion: (group, name) == ("", "Pod"),
    }
}

/// What a create needs from outside.
#[derive(Debug, Clone, Copy)]
pub struct CreateContext<'a> {
    pub now: Timestamp,
    /// A fresh UID.
    pub uid: &'a str,
    /// Five characters of `bcdfghjklmnpqrstvwxz2456789`, for `generateName`.
    pub suffix: &'a str,
    /// The request's namespace; empty for cluster-scoped kinds.
    pub namespace: &'a str,
}

/// Sets the metadata that the server owns, drops what clients may not set, and fills in what each kind starts
/// with.
pub fn prepare_for_create(kind: &Kind, object: &mut Value, ctx: &CreateContext<'_>) {
    let rules = rules(kind);
    let meta = object.metadata_mut();
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
        meta.remove(field);
    }
    meta.insert("creationTimestamp".into(), json!(rfc3339(ctx.now)));
    meta.insert("uid".into(), json!(ctx.uid));
    if kind.namespaced {
        meta.insert("namespace".into(), json!(ctx.namespace));
    } else {
        meta.remove("namespace");
    }
    let named = meta.get("name").and_then(Value::as_str).is_some_and(|n| !n.is_empty());
    if let (false, Some(prefix)) = (named, meta.get("generateName").and_then(Value::as_str)) {
        let name = generated_name(prefix, ctx.suffix);
        meta.insert("name".into(), json!(name));
    }
    if rules.generation {
        meta.insert("generation".into(), json!(1));
    }
    if drops_status(kind) {
        reset_status(kind, object, None);
    }
    gated::drop_fields(kind, object, None);
    special::create(kind, object, ctx);
}

/// The name made of a prefix and a random suffix.
pub fn generated_name(prefix: &str, suffix: &str) -> String {
    let mut end = prefix.len().min(GENERATED_PREFIX_MAX);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &prefix[..end])
}

/// Whether only the status subresource may change the status. Nodes may come with one.
fn drops_status(kind: &Kind) -> bool {
    kind.has_status()
}

/// Puts the status of the stored object, or an empty one, in place of what the request had.
fn reset_status(kind: &Kind, object: &mut Value, old: Option<&Value>) {
    let Some(o) = object.as_object_mut() else { return };
    if old.is_none() && (kind.group.as_str(), kind.kind.as_str()) == ("", "Node") {
        return;
    }
    match old {
        Some(old) => match old.get("status") {
            Some(status) => {
                o.insert("status".into(), status.clone());
            }
            None => {
                o.remove("status");
            }
        },
        None => {
            o.remove("status");
            let status = crate::schema::of(kind)
                .and_then(|t| t.field("status"))
                .filter(|f| f.presence == crate::schema::Presence::Always)
                .and_then(|f| f.ty.inner_struct());
            if let Some(ty) = status {
                o.insert("status".into(), crate::decode::empty(ty));
            }
        }
    }
}

/// Keeps what an update may not change, drops a changed status, counts the generation.
///
/// `new` has been decoded and defaulted; `old` is the stored object in the same version.
pub fn prepare_for_update(kind: &Kind, new: &mut Value, old: &Value, now: Timestamp) {
    keep_metadata(new, old);
    if drops_status(kind) {
        reset_status(kind, new, Some(old));
    }
    gated::drop_fields(kind, new, Some(old));
    special::update(kind, new, old, now);
    if rules(kind).generation {
        let generation = old.generation().unwrap_or(0) + i64::from(desired_changed(kind, new, old));
        if generation > 0 {
            new.metadata_mut().insert("generation".into(), json!(generation));
        }
    }
}

/// Metadata that only the server changes.
fn keep_metadata(new: &mut Value, old: &Value) {
    let old_meta = old.get("metadata").and_then(Value::as_object);
    let get = |field: &str| old_meta.and_then(|m| m.get(field)).cloned();
    let meta = new.metadata_mut();
    meta.remove("selfLink");
    for field in ["creationTimestamp", "generation"] {
        match get(field) {
            Some(v) => meta.insert(field.into(), v),
            None => meta.remove(field),
        };
    }
    for field in ["uid", "deletionGracePeriodSeconds"] {
        if let (true, Some(v)) = (crate::defaults::absent(meta, field), get(field)) {
            meta.insert(field.into(), v);
        }
    }
    if let Some(v) = get("deletionTimestamp") {
        meta.insert("deletionTimestamp".into(), v);
    }
}

/// Whether what is desired changed: everything but metadata and status, plus what some kinds count besides.
fn desired_changed(kind: &Kind, new: &Value, old: &Value) -> bool {
    let (Some(new_fields), Some(old_fields)) = (new.as_object(), old.as_object()) else { return false };
    let differs = |key: &String| {
        // A custom resource without a status subresource has a status like any other field.
        let desired = match key.as_str() {
            "metadata" | "apiVersion" | "kind" => false,
            "status" => kind.custom.is_some() && !kind.has_status(),
            _ => true,
        };
        desired && new_fields.get(key) != old_fields.get(key)
    };
    let spec = new_fields.keys().chain(old_fields.keys()).any(differs);
    let meta = |field: &str| new.get_path(&["metadata", field]) != old.get_path(&["metadata", field]);
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("apps", "Deployment") => spec || meta("annotations"),
        // A class never changes in what it asks for.
        ("scheduling.k8s.io", "PriorityClass") => false,
        ("discovery.k8s.io", "EndpointSlice") => spec || meta("labels"),
        _ => spec,
    }
}

/// Keeps everything but what the subresource is for: `status`, `approval` and `finalize`,
/// `ephemeralcontainers` and `resize`.
pub fn prepare_for_subresource_update(
    kind: &Kind,
    subresource: &str,
    new: &mut Value,
    old: &Value,
    now: Timestamp,
) {
    match subresource {
        "status" => prepare_for_status_update(kind, new, old, now),
        "approval" => special::approval(new, old, now),
        "finalize" => {
            let finalizers = new.at("spec.finalizers").cloned();
            keep_but(new, old, &["metadata"]);
            match finalizers {
                Some(f) => new.set_path(&["spec", "finalizers"], f),
                None => {
                    new.remove_path(&["spec", "finalizers"]);
                }
            }
        }
        "ephemeralcontainers" => {
            let containers = new.at("spec.ephemeralContainers").cloned();
            *new = with_spec_field(old, new, "ephemeralContainers", containers);
            bump(kind, new, old);
        }
        "resize" => {
            special::resize(new, old);
            bump(kind, new, old);
        }
        _ => keep_but(new, old, &["metadata"]),
    }
}

fn bump(kind: &Kind, new: &mut Value, old: &Value) {
    if desired_changed(kind, new, old) {
        let generation = old.generation().unwrap_or(0) + 1;
        new.metadata_mut().insert("generation".into(), json!(generation));
    }
}

/// The stored object with one field of the spec, and the metadata's resourceVersion, of the request.
fn with_spec_field(old: &Value, new: &Value, field: &str, value: Option<Value>) -> Value {
    let mut out = old.clone();
    if let Some(rv) = new.at("metadata.resourceVersion") {
        out.set_meta("resourceVersion", rv.clone());
    }
    match value {
        Some(v) => out.set_path(&["spec", field], v),
        None => {
            out.remove_path(&["spec", field]);
        }
    }
    out
}

/// Keeps everything of the stored object but its metadata (server-owned parts excepted) and status.
pub fn prepare_for_status_update(kind: &Kind, new: &mut Value, old: &Value, now: Timestamp) {
    keep_but(new, old, &["metadata", "status"]);
    if !kind.builtin
        || matches!(
            kind.kind.as_str(),
            "CustomResourceDefinition" | "ValidatingAdmissionPolicy" | "APIService"
        )
    {
        let (managed, rv) =
            (new.at("metadata.managedFields").cloned(), new.at("metadata.resourceVersion").cloned());
        new.set_path(&["metadata"], old.get("metadata").cloned().unwrap_or(Value::Null));
        new.set_meta("managedFields", managed.unwrap_or(Value::Null));
        new.set_meta("resourceVersion", rv.unwrap_or(Value::Null));
    }
    special::status(kind, new, old, now);
}

/// Takes every top-level field but the given ones from the stored object.
fn keep_but(new: &mut Value, old: &Value, but: &[&str]) {
    keep_metadata(new, old);
    let (Some(new), Some(old)) = (new.as_object_mut(), old.as_object()) else { return };
    new.retain(|k, _| but.contains(&k.as_str()) || matches!(k.as_str(), "apiVersion" | "kind"));
    for (key, value) in old {
        if !but.contains(&key.as_str()) {
            new.insert(key.clone(), value.clone());
        }
    }
}

/// Marks an object as being deleted: the times, and one more generation where it is counted.
pub fn mark_deleted(object: &mut Value, at: Timestamp, grace_seconds: i64) {
    let meta = object.metadata_mut();
    if crate::defaults::absent(meta, "deletionTimestamp")
        && let Some(generation) = meta.get("generation").and_then(Value::as_i64).filter(|g| *g > 0)
    {
        meta.insert("generation".into(), json!(generation + 1));
    }
    meta.insert("deletionTimestamp".into(), json!(rfc3339(at)));
    meta.insert("deletionGracePeriodSeconds".into(), json!(grace_seconds));
}

pub(crate) fn object_at<'a>(v: &'a Value, dotted: &str) -> Option<&'a Object> {
    v.at(dotted)?.as_object()
}
