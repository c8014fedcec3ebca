//! Validation of persistent volumes and claims.

use super::checks::{Errors, NOT_NEGATIVE, quantity};
use super::scheduling;
use super::sources::{self, Scope, no_backsteps};
use crate::internal;
use crate::names;
use crate::object::ObjectExt as _;
use crate::quantity::Quantity;
use crate::status::{BadValue, Path};
use serde_json::{Value, json};

const SPEC: Path<'static> = Path::new("spec");
const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: [&str; 2] = ["Block", "Filesystem"];
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// The sources in the order in which they are judged: the first counts, the others are too many.
const ORDER: [&str; 22] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

fn given<'a>(o: &'a Value, field: &str) -> Option<&'a Value> {
    o.get(field).filter(|v| !v.is_null())
}

/// A persistent volume, `old` being the stored one of an update.
pub fn volume(o: &Value, old: Option<&Value>, e: &mut Errors) {
    let empty = Value::Null;
    let s = o.get("spec").unwrap_or(&empty);
    volume_spec(s, o.name(), false, SPEC, e);
    let Some(before) = old.and_then(|o| o.get("spec")) else { return };
    // Kubernetes judges the volume by itself, and once more as the new state of an old one.
    volume_spec(s, o.name(), false, SPEC, e);
    let mut ours = s.clone();
    // The secret for growing may be given later.
    const EXPAND: [&str; 2] = ["csi", "controllerExpandSecretRef"];
    if before.get_path(&EXPAND).is_none() {
        ours.remove_path(&EXPAND);
    }
    const SOURCE: &str = "core.PersistentVolumeSource";
    if !internal::same(SOURCE, Some(&ours), Some(before)) {
        let changed = internal::difference(SOURCE, Some(before), Some(&ours));
        let detail = format!("spec.persistentvolumesource is immutable after creation\n{changed}");
        e.forbidden(SPEC.child("persistentvolumesource"), &detail);
    }
    e.immutable(Path::ROOT, "*string", s, before, "volumeMode");
    if let Some(affinity) = given(before, "nodeAffinity")
        && given(s, "nodeAffinity") != Some(affinity)
    {
        let shown = BadValue::internal("*core.VolumeNodeAffinity", s.get("nodeAffinity"));
        let detail = "field is immutable, except for updating from beta label to GA";
        e.invalid(Path::new("nodeAffinity"), shown, detail);
    }
    let class = |s: &Value| given(s, "volumeAttributesClassName").is_some();
    if class(before) && !class(s) {
        let at = SPEC.child("volumeAttributesClassName");
        e.forbidden(at, "update from non-nil value to nil is forbidden");
    }
}

/// The spec of a volume. `inline` is one in an attachment, which is only what a driver needs.
pub fn volume_spec(s: &Value, name: &str, inline: bool, at: Path<'_>, e: &mut Errors) {
    const INLINE: &str = "may not be specified in the context of inline volumes";
    let forbid = |field: &str, e: &mut Errors| e.forbidden(at.child(field), INLINE);
    if inline {
        if given(s, "claimRef").is_some() {
            forbid("claimRef", e);
        }
        if s.get("capacity").and_then(Value::as_object).is_some_and(|c| !c.is_empty()) {
            forbid("capacity", e);
        }
        if given(s, "csi").is_none() {
            e.required(at.child("csi"), "has to be specified in the context of inline volumes");
        }
    }
    access_modes(s, at, "", e);
    if !inline {
        capacity(s, at.child("capacity"), e);
    }
    let policy = s.str_at("persistentVolumeReclaimPolicy");
    let policy_at = at.child("persistentVolumeReclaimPolicy");
    if inline && !matches!(policy, "" | "Retain") {
        e.forbidden(policy_at, "may only be Retain in the context of inline volumes");
    } else if !inline {
        e.optional_one_of(policy_at, policy, &["Delete", "Recycle", "Retain"]);
    }
    match given(s, "nodeAffinity") {
        Some(_) if inline => forbid("nodeAffinity", e),
        Some(affinity) => {
            let at = at.child("nodeAffinity.required");
            match given(affinity, "required") {
                Some(required) => scheduling::node_selector(required, at, e),
                None => e.required(at, "must specify required node constraints"),
            }
        }
        None => {}
    }
    if volume_source(s, name, inline, at, e) == 0 {
        e.required(at, "must specify a volume type");
    }
    let path = s.str_at("hostPath.path");
    if path.starts_with('/') && path.split('/').all(|p| matches!(p, "" | ".")) && policy == "Recycle" {
        e.forbidden(policy_at, "may not be 'recycle' for a hostPath mount of '/'");
    }
    let class = s.str_at("storageClassName");
    if !class.is_empty() && inline {
        forbid("storageClassName", e);
    } else if !class.is_empty() {
        e.all(at.child("storageClassName"), class, names::dns1123_subdomain(class));
    }
    if !inline {
        e.known(at.child("volumeMode"), s.get("volumeMode"), &VOLUME_MODES);
    } else if given(s, "volumeMode").is_some_and(|m| m != "Filesystem") {
        let detail = "may not specify volumeMode other than Filesystem in the context of inline volumes";
        e.forbidden(at.child("volumeMode"), detail);
    }
    if let Some(class) = given(s, "volumeAttributesClassName").and_then(Value::as_str).filter(|_| !inline) {
        let field = at.child("volumeAttributesClassName");
        if class.is_empty() {
            e.required(field, "an empty string is disallowed");
        } else {
            e.all(field, class, names::dns1123_subdomain(class));
        }
        if given(s, "csi").is_none() {
            e.required(at.child("csi"), "has to be specified when using volumeAttributesClassName");
        }
    }
}

fn capacity(s: &Value, at: Path<'_>, e: &mut Errors) {
    let none = serde_json::Map::new();
    let all = s.get("capacity").and_then(Value::as_object);
    let c = all.unwrap_or(&none);
    if c.is_empty() {
        e.required(at, "");
    }
    if !c.contains_key("storage") || c.len() > 1 {
        let shown = all.map_or(Value::Null, |c| Value::Object(c.clone()));
        e.push(crate::status::FieldError::not_supported(at, shown, &["storage"]));
    }
    for (name, value) in c {
        let Some(q) = quantity(Some(value)) else { continue };
        if q.is_negative() {
            e.invalid(at.key(name), json!(q.value()), "must be a valid resource quantity");
        }
        if q.is_negative() || q.is_zero() {
            e.invalid(at.key(name), q.to_string(), "must be greater than zero");
        }
    }
}

/// Judges the sources and answers how many there are.
fn volume_source(s: &Value, name: &str, inline: bool, at: Path<'_>, e: &mut Errors) -> usize {
    let mut count = 0;
    for (field, source) in ORDER.iter().filter_map(|f| Some((*f, given(s, f)?))) {
        count += 1;
        // This one is judged even after another.
        if count > 1 && field != "flexVolume" {
            let shown = if field == "cephfs" { "cephFS" } else { field };
            e.forbidden(at.child(shown), "may not specify more than 1 volume type");
            continue;
        }
        sources::shared(field, source, at, &Scope { persistent: true, volume: name }, e);
        match field {
            "local" => {
                let path = source.str_at("path");
                if path.is_empty() {
                    e.required(at.child("local.path"), "");
                } else {
                    no_backsteps(at.child("local.path"), path, e);
                }
                if inline || given(s, "nodeAffinity").is_none() {
                    e.required(at.child("nodeAffinity"), "Local volume requires node affinity");
                }
            }
            "csi" => csi(source, at.child("csi"), e),
            _ => {}
        }
    }
    count
}

fn csi(source: &Value, at: Path<'_>, e: &mut Errors) {
    super::storage::driver_name(source.str_at("driver"), at.child("driver"), e);
    if source.str_at("volumeHandle").is_empty() {
        e.required(at.child("volumeHandle"), "");
    }
    let secrets = [
        "controllerPublishSecretRef",
        "controllerExpandSecretRef",
        "nodePublishSecretRef",
        "nodeExpandSecretRef",
    ];
    for (field, secret) in secrets.iter().filter_map(|f| Some((*f, given(source, f)?))) {
        let at = at.child(field);
        for part in ["name", "namespace"] {
            match secret.str_at(part) {
                "" => e.required(at.child(part), ""),
                text if part == "name" => e.all(at.child(part), text, names::dns1123_subdomain(text)),
                text => e.all(at.child(part), text, names::dns1123_label(text)),
            }
        }
    }
}

fn access_modes(s: &Value, at: Path<'_>, missing: &str, e: &mut Errors) {
    let list = at.child("accessModes");
    let all = s.items_at("accessModes");
    if all.is_empty() {
        e.required(list, missing);
    }
    mode_values(s, list, e);
}

fn mode_values(s: &Value, list: Path<'_>, e: &mut Errors) {
    let all = || s.items_at("accessModes").iter().filter_map(Value::as_str);
    for mode in all().filter(|m| !MODES.contains(m)) {
        e.unsupported(list, mode, &MODES);
    }
    let single = |m: &str| m == "ReadWriteOncePod";
    if all().any(single) && all().any(|m| !single(m) && MODES.contains(&m)) {
        e.forbidden(list, "may not use ReadWriteOncePod with other access modes");
    }
}

/// A claim, `old` being the stored one of an update.
pub fn claim(o: &Value, old: Option<&Value>, e: &mut Errors) {
    let empty = Value::Null;
    let s = o.get("spec").unwrap_or(&empty);
    claim_spec(s, SPEC, e);
    let Some(old_claim) = old else { return };
    let before_status = old_claim.get("status");
    let old = old_claim.get("spec").unwrap_or(&empty);
    if o.annotation(CLASS) != old_claim.annotation(CLASS) {
        let at = Path::new("metadata.annotations");
        e.invalid(at.key(CLASS), o.annotation(CLASS).unwrap_or(""), super::checks::IMMUTABLE);
    }
    let mut ours = s.clone();
    // Binding fills in the volume and the class; a bound claim may ask for more.
    if old.get("storageClassName").is_none() {
        ours.remove_path(&["storageClassName"]);
    }
    if o.str_at("status.phase") == "Bound" {
        for path in [&["volumeAttributesClassName"][..], &["resources", "requests", "storage"]] {
            match old.get_path(path) {
                Some(value) => ours.set_path(path, value.clone()),
                None => drop(ours.remove_path(path)),
            }
        }
    }
    let mut before = old.clone();
    if let (None, Some(volume)) = (old.get("volumeName"), s.get("volumeName")) {
        before.set_path(&["volumeName"], volume.clone());
    }
    const TYPE: &str = "core.PersistentVolumeClaimSpec";
    if !internal::same(TYPE, Some(&ours), Some(&before)) {
        let changed = internal::difference(TYPE, Some(&before), Some(&ours));
        e.forbidden(SPEC, &format!("spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{changed}"));
    }
    let size = |s: &Value| quantity(s.at("resources.requests.storage"));
    let new = size(s).unwrap_or(Quantity::from_int(0));
    if size(old).is_some_and(|before| new < before) {
        // What was asked for in vain may be taken back, as far as the volume already is (KEP-1790).
        let there = quantity(before_status.and_then(|s| s.at("capacity.storage")));
        if there.is_none_or(|there| new <= there) && (there.is_some() || new.is_zero() || new.is_negative()) {
            e.forbidden(
                SPEC.child("resources.requests.storage"),
                "field can not be less than status.capacity",
            );
        }
    }
    e.immutable(Path::ROOT, "*string", s, old, "volumeMode");
    let class = s.get("volumeAttributesClassName").and_then(Value::as_str);
    let changed = class != old.get("volumeAttributesClassName").and_then(Value::as_str);
    let current = before_status.is_some_and(|s| given(s, "currentVolumeAttributesClassName").is_some());
    if changed && current && class.is_none_or(str::is_empty) {
        let to = if class.is_none() { "nil" } else { "empty string" };
        let detail =
            format!("update to {to} is forbidden when status.currentVolumeAttributesClassName is not nil");
        e.forbidden(SPEC.child("volumeAttributesClassName"), &detail);
    }
}

/// The spec of a claim or of a claim template.
pub fn claim_spec(s: &Value, at: Path<'_>, e: &mut Errors) {
    let modes = at.child("accessModes");
    if s.items_at("accessModes").is_empty() {
        e.required(modes, "at least 1 access mode is required");
    }
    e.selector(at.child("selector"), s.get("selector"));
    mode_values(s, modes, e);
    let resources = at.child("resources");
    let storage = resources.key("storage");
    match quantity(s.at("resources.requests.storage")) {
        None => e.required(storage, ""),
        Some(q) if q.is_zero() || q.is_negative() => {
            e.invalid(storage, q.to_string(), "must be greater than zero");
        }
        Some(_) => {}
    }
    let class = s.str_at("storageClassName");
    if !class.is_empty() {
        e.all(at.child("storageClassName"), class, names::dns1123_subdomain(class));
    }
    e.known(at.child("volumeMode"), s.get("volumeMode"), &VOLUME_MODES);
    let (source, reference) = (given(s, "dataSource"), given(s, "dataSourceRef"));
    for (field, source) in [("dataSource", source), ("dataSourceRef", reference)] {
        if let Some(source) = source {
            data_source(source, at.child(field), e);
        }
    }
    if let (Some(source), Some(reference)) = (source, reference) {
        let same = |f: &str| source.str_at(f) == reference.str_at(f);
        if !reference.str_at("namespace").is_empty() {
            e.invalid(at, json!({}), "may not be specified when dataSourceRef.namespace is specified");
        } else if !(same("apiGroup") && same("kind") && same("name")) {
            e.invalid(at, json!({}), "must match dataSourceRef");
        }
    }
    let class = s.str_at("volumeAttributesClassName");
    if !class.is_empty() {
        e.all(at.child("volumeAttributesClassName"), class, names::dns1123_subdomain(class));
    }
}

/// What a claim's volume is filled with at first.
fn data_source(source: &Value, at: Path<'_>, e: &mut Errors) {
    for part in ["name", "kind"].into_iter().filter(|f| source.str_at(f).is_empty()) {
        e.required(at.child(part), "");
    }
    let (group, kind) = (source.str_at("apiGroup"), source.str_at("kind"));
    if !group.is_empty() {
        e.all(at.child("apiGroup"), group, names::dns1123_subdomain(group));
    } else if kind != "PersistentVolumeClaim" {
        let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        e.invalid(at, kind, detail);
    }
    let namespace = source.str_at("namespace");
    if !namespace.is_empty() {
        e.all(at.child("namespace"), namespace, names::dns1123_label(namespace));
    }
}

/// What a claim's status says about sizes.
pub fn claim_status(o: &Value, e: &mut Errors) {
    let status = Path::new("status");
    let at = status.child("capacity");
    for (name, q) in crate::resources::list(o.at("status.capacity")) {
        if q.is_negative() {
            e.bare_value(at.key(&name), &q.to_string(), "must be a valid resource quantity");
        }
    }
    let allocated = status.child("allocatedResources");
    let at = status.child("allocatedResourceStatuses");
    let known = [
        "ControllerResizeInProgress",
        "ControllerResizeInfeasible",
        "NodeResizeInProgress",
        "NodeResizeInfeasible",
        "NodeResizePending",
    ];
    for (name, state) in
        o.at("status.allocatedResourceStatuses").and_then(Value::as_object).into_iter().flatten()
    {
        resource_key(name, at, e);
        let state = state.as_str().unwrap_or("");
        if !known.contains(&state) {
            e.unsupported(at, name, &known);
        }
    }
    for (name, q) in crate::resources::list(o.at("status.allocatedResources")) {
        if resource_key(&name, allocated, e) && q.is_negative() {
            e.invalid(allocated.key(&name), q.to_string(), NOT_NEGATIVE);
        }
    }
}

/// Whether the name is that of a resource which a claim may have.
fn resource_key(name: &str, at: Path<'_>, e: &mut Errors) -> bool {
    let messages = names::qualified_name(name);
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    let other = messages.is_empty() && native && name != "storage";
    if other {
        e.unsupported(at, name, &["storage"]);
    }
    let good = messages.is_empty() && !other;
    e.all(at, name, messages);
    good
}
