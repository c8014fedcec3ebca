//! Validation of the core group's smaller kinds.

use super::checks::{Errors, quantity};
use super::scheduling;
use super::workloads::same_but;
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::{FieldError, Path};
use base64::Engine as _;
use serde_json::Value;

const SPEC: Path<'static> = Path::new("spec");
const ROOT: Path<'static> = Path::ROOT;
/// Most bytes that a config map or secret may hold.
const DATA_MAX: usize = 1024 * 1024;
const FIXED: &str = "field is immutable when `immutable` is set";
const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn entries<'a>(o: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a str)> {
    o.get(field).and_then(Value::as_object).into_iter().flatten().map(|(k, v)| (k, v.as_str().unwrap_or("")))
}

fn decoded_len(s: &str) -> usize {
    s.len() / 4 * 3 - s.bytes().rev().take_while(|b| *b == b'=').count().min(2)
}

pub fn config_map(o: &Value, old: Option<&Value>, e: &mut Errors) {
    let mut size = 0;
    for (key, value) in entries(o, "data") {
        e.all(ROOT.child("data").key(key), key, names::config_map_key(key));
        if o.get("binaryData").is_some_and(|b| b.get(key).is_some()) {
            e.invalid(ROOT.child("data").key(key), key.as_str(), "duplicate of key present in binaryData");
        }
        size += value.len();
    }
    for (key, value) in entries(o, "binaryData") {
        e.all(ROOT.child("binaryData").key(key), key, names::config_map_key(key));
        size += decoded_len(value);
    }
    if size > DATA_MAX {
        e.push(FieldError::too_long("[]", DATA_MAX));
    }
    fixed(o, old, &["data", "binaryData"], e);
}

/// What an immutable config map or secret may not change.
fn fixed(o: &Value, old: Option<&Value>, fields: &[&str], e: &mut Errors) {
    let Some(old) = old.filter(|o| o.bool_at("immutable") == Some(true)) else { return };
    if o.bool_at("immutable") != Some(true) {
        e.forbidden(ROOT.child("immutable"), FIXED);
    }
    for field in fields.iter().filter(|f| o.get(**f) != old.get(**f)) {
        e.forbidden(ROOT.child(field), FIXED);
    }
}

pub fn secret(o: &Value, old: Option<&Value>, e: &mut Errors) {
    let data = ROOT.child("data");
    let mut size = 0;
    for (key, value) in entries(o, "data") {
        e.all(data.key(key), key, names::config_map_key(key));
        size += decoded_len(value);
    }
    if size > DATA_MAX {
        e.push(FieldError::too_long(data, DATA_MAX));
    }
    let has = |key: &str| o.get("data").is_some_and(|d| d.get(key).is_some());
    let content = |key: &str| {
        let text = o.get("data").map_or("", |d| d.get(key).and_then(Value::as_str).unwrap_or(""));
        base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default()
    };
    let json_key = match o.str_at("type") {
        "kubernetes.io/dockercfg" => Some(".dockercfg"),
        "kubernetes.io/dockerconfigjson" => Some(".dockerconfigjson"),
        _ => None,
    };
    if let Some(key) = json_key {
        let parsed = crate::decode::parse_json(&content(key), &mut crate::decode::Dropped::default());
        match parsed {
            _ if !has(key) => e.required(data.key(key), ""),
            Err(why) => e.invalid(data.key(key), "<secret contents redacted>", why.0),
            Ok(_) => {}
        }
    }
    match o.str_at("type") {
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            e.required(data.key("username"), "");
            e.required(data.key("password"), "");
        }
        "kubernetes.io/ssh-auth" if content("ssh-privatekey").is_empty() => {
            e.required(data.key("ssh-privatekey"), "");
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"].into_iter().filter(|k| !has(k)) {
                e.required(data.key(key), "");
            }
        }
        "kubernetes.io/service-account-token"
            if o.annotation("kubernetes.io/service-account.name").unwrap_or("").is_empty() =>
        {
            let at = Path::new("metadata.annotations");
            e.required(at.key("kubernetes.io/service-account.name"), "");
        }
        _ => {}
    }
    if let Some(old) = old {
        e.immutable(ROOT, o, old, "type");
    }
    fixed(o, old, &["data"], e);
}

/// Fields of a volume's spec that are not its source.
const NOT_SOURCES: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// The sources in a volume's spec; there should be one.
fn sources(volume: &Value) -> Vec<(&String, &Value)> {
    let spec = volume.get("spec").and_then(Value::as_object);
    let source = |(k, v): &(&String, &Value)| !NOT_SOURCES.contains(&k.as_str()) && !v.is_null();
    spec.into_iter().flatten().filter(source).collect()
}

pub fn persistent_volume(o: &Value, old: Option<&Value>, e: &mut Errors) {
    if let Some(old) = old
        && sources(o) != sources(old)
    {
        let detail = "spec.persistentvolumesource is immutable after creation";
        e.forbidden(SPEC.child("persistentvolumesource"), detail);
    }
    let empty = Value::Null;
    let s = o.get("spec").unwrap_or(&empty);
    modes(s, SPEC, "", e);
    let capacity = SPEC.child("capacity");
    match s.get("capacity").and_then(Value::as_object).filter(|c| !c.is_empty()) {
        None => {
            e.required(capacity, "");
            e.unsupported(capacity, "", &["storage"]);
        }
        Some(c) => {
            if !c.contains_key("storage") || c.len() > 1 {
                let found: Vec<&str> = c.keys().map(String::as_str).collect();
                e.unsupported(capacity, &found.join(","), &["storage"]);
            }
            for (name, value) in c {
                if let Some(q) = quantity(Some(value)).filter(|q| q.is_negative() || q.is_zero()) {
                    e.invalid(capacity.key(name), q.to_string(), "must be greater than zero");
                }
            }
        }
    }
    let policy = s.str_at("persistentVolumeReclaimPolicy");
    e.optional_one_of(SPEC.child("persistentVolumeReclaimPolicy"), policy, &["Delete", "Recycle", "Retain"]);
    if let Some(affinity) = s.get("nodeAffinity").filter(|a| !a.is_null()) {
        let at = SPEC.child("nodeAffinity.required");
        match affinity.get("required").filter(|r| !r.is_null()) {
            Some(required) => scheduling::node_selector(required, at, e),
            None => e.required(at, "must specify required node constraints"),
        }
    }
    let mut count = 0;
    for (name, _) in sources(o) {
        count += 1;
        if count > 1 {
            e.forbidden(SPEC.child(name), "may not specify more than 1 volume type");
        }
    }
    if let Some((name, source)) = sources(o).first() {
        volume_source(name, source, SPEC.child(name), e);
    }
    let root =
        s.get("hostPath").is_some() && s.str_at("hostPath.path").trim_end_matches(['/', '.']).is_empty();
    if root && !s.str_at("hostPath.path").is_empty() && policy == "Recycle" {
        let detail = "may not be 'recycle' for a hostPath mount of '/'";
        e.forbidden(SPEC.child("persistentVolumeReclaimPolicy"), detail);
    }
    let class = s.str_at("storageClassName");
    if !class.is_empty() {
        e.all(SPEC.child("storageClassName"), class, names::dns1123_subdomain(class));
    }
    if let Some(class) = s.get("volumeAttributesClassName").and_then(Value::as_str) {
        let at = SPEC.child("volumeAttributesClassName");
        if class.is_empty() {
            e.required(at, "an empty string is disallowed");
        } else {
            e.all(at, class, names::dns1123_subdomain(class));
        }
        if s.get("csi").is_none_or(Value::is_null) {
            e.required(SPEC.child("csi"), "has to be specified when using volumeAttributesClassName");
        }
    }
    if s.get("local").is_some_and(|l| !l.is_null()) && s.at("nodeAffinity.required").is_none() {
        e.required(SPEC.child("nodeAffinity"), "Local volume requires node affinity");
    }
    if count == 0 {
        e.required(SPEC, "must specify a volume type");
    }
    e.optional_one_of(SPEC.child("volumeMode"), s.str_at("volumeMode"), &["Block", "Filesystem"]);
}

/// Fields that the sources of volumes have to have.
const SOURCE_FIELDS: [(&str, &[&str]); 14] = [
    ("awsElasticBlockStore", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("azureFile", &["secretName", "shareName"]),
    ("cinder", &["volumeID"]),
    ("csi", &["volumeHandle"]),
    ("flexVolume", &["driver"]),
    ("gcePersistentDisk", &["pdName"]),
    ("glusterfs", &["endpoints", "path"]),
    ("hostPath", &["path"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("local", &["path"]),
    ("nfs", &["server", "path"]),
    ("rbd", &["image"]),
    ("vsphereVolume", &["volumePath"]),
];

fn volume_source(name: &str, source: &Value, at: Path<'_>, e: &mut Errors) {
    if name == "csi" {
        super::storage::driver_name(source.str_at("driver"), at.child("driver"), e);
    }
    let fields = SOURCE_FIELDS.iter().find(|(n, _)| *n == name).map_or(&[][..], |(_, fields)| fields);
    for field in fields.iter().filter(|f| source.str_at(f).is_empty()) {
        e.required(at.child(field), "");
    }
    let path = source.str_at("path");
    if matches!(name, "hostPath" | "local") && path.split('/').any(|p| p == "..") {
        e.invalid(at.child("path"), path, "must not contain '..'");
    }
    if name == "nfs" && !path.starts_with('/') {
        e.invalid(at.child("path"), path, "must be an absolute path");
    }
    let secrets = [
        "controllerPublishSecretRef",
        "controllerExpandSecretRef",
        "nodePublishSecretRef",
        "nodeExpandSecretRef",
    ];
    for field in secrets {
        let Some(secret) = source.get(field).filter(|r| name == "csi" && !r.is_null()) else { continue };
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

fn modes(s: &Value, at: Path<'_>, missing: &str, e: &mut Errors) {
    let list = at.child("accessModes");
    let all = s.items_at("accessModes");
    if all.is_empty() {
        e.required(list, missing);
    }
    for mode in all.iter().filter_map(Value::as_str).filter(|m| !MODES.contains(m)) {
        e.unsupported(list, mode, &MODES);
    }
    if all.len() > 1 && all.iter().any(|m| m == "ReadWriteOncePod") {
        e.forbidden(list, "may not use ReadWriteOncePod with other access modes");
    }
}

pub fn claim(o: &Value, old: Option<&Value>, e: &mut Errors) {
    let empty = Value::Null;
    let s = o.get("spec").unwrap_or(&empty);
    claim_spec(s, SPEC, e);
    let before_status = old.and_then(|o| o.get("status"));
    let Some(old) = old.and_then(|o| o.get("spec")) else { return };
    let mut ours = s.clone();
    // Binding fills in the volume and the class; a bound claim may ask for more.
    for field in ["volumeName", "storageClassName"] {
        if old.get(field).is_none() {
            ours.remove_path(&[field]);
        }
    }
    let bound = o.str_at("status.phase") == "Bound";
    if bound {
        for path in [&["volumeAttributesClassName"][..], &["resources", "requests", "storage"]] {
            match old.get_path(path) {
                Some(value) => ours.set_path(path, value.clone()),
                None => drop(ours.remove_path(path)),
            }
        }
    }
    if !same_but(Some(&ours), Some(old), &[]) {
        e.forbidden(SPEC, "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims");
    }
    let size = |s: &Value| quantity(s.at("resources.requests.storage"));
    if let (Some(new), Some(before)) = (size(s), size(old))
        && new < before
    {
        // What was asked for in vain may be taken back, as far as the volume already is (KEP-1790).
        let there = quantity(before_status.and_then(|s| s.at("capacity.storage")));
        if there.is_none_or(|there| new <= there) && (there.is_some() || new.is_zero() || new.is_negative()) {
            e.forbidden(
                SPEC.child("resources.requests.storage"),
                "field can not be less than status.capacity",
            );
        }
    }
    e.immutable(Path::ROOT, s, old, "volumeMode");
    let class = s.get("volumeAttributesClassName").and_then(Value::as_str);
    let changed = class != old.get("volumeAttributesClassName").and_then(Value::as_str);
    let current = before_status
        .is_some_and(|s| s.get("currentVolumeAttributesClassName").is_some_and(|c| !c.is_null()));
    if changed && current && class.is_none_or(str::is_empty) {
        let to = if class.is_none() { "nil" } else { "empty string" };
        let detail =
            format!("update to {to} is forbidden when status.currentVolumeAttributesClassName is not nil");
        e.forbidden(SPEC.child("volumeAttributesClassName"), &detail);
    }
}

/// The spec of a claim or of a claim template.
pub fn claim_spec(s: &Value, at: Path<'_>, e: &mut Errors) {
    modes(s, at, "at least 1 access mode is required", e);
    e.selector(at.child("selector"), s.get("selector"));
    let resources = at.child("resources");
    match quantity(s.at("resources.requests.storage")) {
        None => e.required(resources.key("storage"), ""),
        Some(q) if q.is_zero() || q.is_negative() => {
            e.invalid(resources.key("storage"), q.to_string(), "must be greater than zero");
        }
        Some(_) => {}
    }
    let class = s.str_at("storageClassName");
    if !class.is_empty() {
        e.all(at.child("storageClassName"), class, names::dns1123_subdomain(class));
    }
    e.optional_one_of(at.child("volumeMode"), s.str_at("volumeMode"), &["Block", "Filesystem"]);
    for field in ["dataSource", "dataSourceRef"] {
        let Some(source) = s.get(field).filter(|d| !d.is_null()) else { continue };
        let at = at.child(field);
        for part in ["name", "kind"].into_iter().filter(|f| source.str_at(f).is_empty()) {
            e.required(at.child(part), "");
        }
        let group = source.str_at("apiGroup");
        if group.is_empty() {
            if source.str_at("kind") != "PersistentVolumeClaim" {
                e.invalid(
                    at,
                    source.str_at("kind"),
                    "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
                );
            }
        } else {
            e.all(at.child("apiGroup"), group, names::dns1123_subdomain(group));
        }
        let namespace = source.str_at("namespace");
        if field == "dataSourceRef" && !namespace.is_empty() {
            e.all(at.child("namespace"), namespace, names::dns1123_label(namespace));
        }
    }
    let class = s.str_at("volumeAttributesClassName");
    if !class.is_empty() {
        e.all(at.child("volumeAttributesClassName"), class, names::dns1123_subdomain(class));
    }
    if let (Some(source), Some(reference)) =
        (s.get("dataSource").filter(|d| !d.is_null()), s.get("dataSourceRef").filter(|d| !d.is_null()))
    {
        let same = |f: &str| source.str_at(f) == reference.str_at(f);
        if !(same("apiGroup") && same("kind") && same("name")) {
            e.invalid(at, serde_json::json!({}), "must match dataSourceRef");
        }
    }
}

/// Longest parts of an event, in bytes.
const EVENT_PARTS: [(&str, usize); 4] =
    [("reportingInstance", 128), ("action", 128), ("reason", 128), ("message", 1024)];

/// An event in the core group's version: about what is in its namespace; those with a microtime say who reports.
pub fn event(o: &Value, e: &mut Errors) {
    let (own, about) = (o.namespace(), o.str_at("involvedObject.namespace"));
    let timed = o.get("eventTime").is_some_and(|t| !t.is_null());
    let fits = match (timed, about.is_empty()) {
        (false, true) => matches!(own, "" | "default"),
        (false, false) => own == about,
        (true, true) => matches!(own, "default" | "kube-system"),
        (true, false) => true,
    };
    if !fits {
        e.invalid(ROOT.child("involvedObject.namespace"), about, "does not match event.namespace");
    }
    if timed {
        let reporter = o.str_at("reportingComponent");
        if reporter.is_empty() {
            e.required(ROOT.child("reportingController"), "");
        }
        e.all(ROOT.child("reportingController"), reporter, names::qualified_name(reporter));
        for (field, most) in EVENT_PARTS {
            let text = o.str_at(field);
            if text.is_empty() && field != "message" {
                e.required(ROOT.child(field), "");
            }
            if text.len() > most {
                e.invalid(ROOT.child(field), "", format!("can have at most {most} characters"));
            }
        }
    }
    e.all(ROOT.child("namespace"), own, names::dns1123_subdomain(own));
}

/// What `events.k8s.io/v1` demands of a new event beyond that; fields are told by the core group's names.
pub fn strict_event(o: &Value, e: &mut Errors) {
    if let Some(series) = o.get("series").filter(|s| !s.is_null()) {
        if series.int_at("count").unwrap_or(0) < 2 {
            e.invalid(ROOT.child("series.count"), "", "should be at least 2");
        }
        if series.str_at("lastObservedTime").is_empty() {
            e.required(ROOT.child("series.lastObservedTime"), "");
        }
    }
    if o.str_at("eventTime").is_empty() {
        e.required(ROOT.child("eventTime"), "");
    }
    let kind = o.str_at("type");
    if !matches!(kind, "Normal" | "Warning") {
        e.invalid(ROOT.child("type"), "", format!("has invalid value: {kind}"));
    }
    let source = !o.str_at("source.component").is_empty() || !o.str_at("source.host").is_empty();
    for (field, set) in [
        ("firstTimestamp", !o.str_at("firstTimestamp").is_empty()),
        ("lastTimestamp", !o.str_at("lastTimestamp").is_empty()),
        ("count", o.int_at("count").unwrap_or(0) != 0),
        ("source", source),
    ] {
        if set {
            e.invalid(ROOT.child(field), "", "needs to be unset");
        }
    }
}

pub fn node(o: &Value, old: Option<&Value>, e: &mut Errors) {
    // Kubernetes says metadata where it means spec.
    let list = Path::new("metadata.taints");
    let mut seen = Vec::new();
    for (i, taint) in o.items_at("spec.taints").iter().enumerate() {
        let item = list.index(i);
        let (key, effect) = (taint.str_at("key"), taint.str_at("effect"));
        e.all(item.child("key"), key, names::qualified_name(key));
        let value = taint.str_at("value");
        let messages = names::label_value(value);
        if !messages.is_empty() {
            e.invalid(item.child("value"), value, messages.join(";"));
        }
        e.one_of(item.child("effect"), effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        if seen.contains(&(key, effect)) {
            let mut error = FieldError::duplicate(item, taint.clone());
            error.detail = "taints must be unique by key and effect pair".into();
            e.push(error);
        }
        seen.push((key, effect));
    }
    let status = Path::new("status");
    for field in ["capacity", "allocatable"] {
        for (name, q) in crate::resources::list(o.get("status").and_then(|s| s.get(field))) {
            let at = status.child(field);
            let at = at.child(&name);
            if q.is_negative() {
                e.invalid(at, q.to_string(), super::checks::NOT_NEGATIVE);
            }
            if name == "pods" && !q.is_integer() {
                e.invalid(at, q.to_string(), "must be an integer");
            }
        }
    }
    let list = SPEC.child("podCIDRs");
    for (i, cidr) in o.items_at("spec.podCIDRs").iter().filter_map(Value::as_str).enumerate() {
        if cidr.parse::<ipnet::IpNet>().is_err() {
            e.invalid(list.index(i), cidr, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
        }
    }
    let families: Vec<bool> = o
        .items_at("spec.podCIDRs")
        .iter()
        .filter_map(|c| c.as_str()?.parse::<ipnet::IpNet>().ok())
        .map(|c| c.network().is_ipv4())
        .collect();
    if families.len() > 2 || matches!(families.as_slice(), [a, b] if a == b) {
        let value = o.at("spec.podCIDRs").cloned().unwrap_or(Value::Null);
        e.invalid(list, value, "may specify no more than one CIDR for each IP family");
    }
    let Some(old) = old else { return };
    let mut addresses = Vec::new();
    let places = Path::new("status.addresses");
    for (i, address) in o.items_at("status.addresses").iter().enumerate() {
        if addresses.contains(&address) {
            e.duplicate(places.index(i), address.clone());
        }
        addresses.push(address);
    }
    let before = old.items_at("spec.podCIDRs");
    if !before.is_empty() && before != o.items_at("spec.podCIDRs") {
        e.forbidden(list, "node updates may not change podCIDR except from \"\" to valid");
    }
    let (a, b) = (o.str_at("spec.providerID"), old.str_at("spec.providerID"));
    if !b.is_empty() && a != b {
        e.forbidden(
            SPEC.child("providerID"),
            "node updates may not change providerID except from \"\" to valid",
        );
    }
}
