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
    modes(s, SPEC, e);
    let capacity = SPEC.child("capacity");
    match s.get("capacity").and_then(Value::as_object).filter(|c| !c.is_empty()) {
        None => e.required(capacity, ""),
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
    if let Some(required) = s.at("nodeAffinity.required").filter(|r| !r.is_null()) {
        scheduling::node_selector(required, SPEC.child("nodeAffinity.required"), e);
    }
    let mut count = 0;
    for (name, _) in sources(o) {
        count += 1;
        if count > 1 {
            e.forbidden(SPEC.child(name), "may not specify more than 1 volume type");
        }
    }
    if s.get("hostPath").is_some() && s.str_at("hostPath.path").is_empty() {
        e.required(SPEC.child("hostPath.path"), "");
    }
    if s.get("local").is_some_and(|l| !l.is_null()) && s.at("nodeAffinity.required").is_none() {
        e.required(SPEC.child("nodeAffinity"), "Local volume requires node affinity");
    }
    if count == 0 {
        e.required(SPEC, "must specify a volume type");
    }
    e.optional_one_of(SPEC.child("volumeMode"), s.str_at("volumeMode"), &["Block", "Filesystem"]);
}

fn modes(s: &Value, at: Path<'_>, e: &mut Errors) {
    let list = at.child("accessModes");
    let all = s.items_at("accessModes");
    if all.is_empty() {
        e.required(list, "at least 1 access mode is required");
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
    let Some(old) = old.and_then(|o| o.get("spec")) else { return };
    let mut ours = s.clone();
    // Binding fills in the volume and the class; a bound claim may ask for more.
    for field in ["volumeName", "storageClassName"] {
        if old.get(field).is_none() {
            ours.remove_path(&[field]);
        }
    }
    if !same_but(Some(&ours), Some(old), &["resources", "volumeAttributesClassName"])
        || s.at("resources.limits") != old.at("resources.limits")
    {
        e.forbidden(SPEC, "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims");
    }
    let size = |s: &Value| quantity(s.at("resources.requests.storage"));
    if let (Some(new), Some(before)) = (size(s), size(old))
        && new < before
    {
        e.forbidden(SPEC.child("resources.requests.storage"), "field can not be less than previous value");
    }
}

/// The spec of a claim or of a claim template.
pub fn claim_spec(s: &Value, at: Path<'_>, e: &mut Errors) {
    modes(s, at, e);
    e.selector(at.child("selector"), s.get("selector"));
    let resources = at.child("resources");
    match quantity(s.at("resources.requests.storage")) {
        None => e.required(resources.key("storage"), ""),
        Some(q) if q.is_zero() || q.is_negative() => {
            let requests = resources.child("requests");
            e.invalid(requests.key("storage"), q.to_string(), "must be greater than zero");
        }
        Some(_) => {}
    }
    let class = s.str_at("storageClassName");
    if !class.is_empty() {
        e.all(at.child("storageClassName"), class, names::dns1123_subdomain(class));
    }
    e.optional_one_of(at.child("volumeMode"), s.str_at("volumeMode"), &["Block", "Filesystem"]);
    if let (Some(source), Some(reference)) =
        (s.get("dataSource").filter(|d| !d.is_null()), s.get("dataSourceRef").filter(|d| !d.is_null()))
    {
        let same = |f: &str| source.str_at(f) == reference.str_at(f);
        if !(same("apiGroup") && same("kind") && same("name")) {
            e.invalid(at, serde_json::json!({}), "must match dataSourceRef");
        }
    }
}

pub fn limit_range(o: &Value, e: &mut Errors) {
    let list = SPEC.child("limits");
    let mut types = Vec::new();
    for (i, limit) in o.items_at("spec.limits").iter().enumerate() {
        let item = list.index(i);
        let ty = limit.str_at("type");
        if ty.is_empty() {
            e.required(item.child("type"), "");
        } else if types.contains(&ty) {
            e.duplicate(item.child("type"), ty);
        }
        types.push(ty);
        let amount = |field: &str, name: &str| quantity(limit.get(field).and_then(|l| l.get(name)));
        let mut resources: Vec<&String> = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"]
            .iter()
            .filter_map(|f| limit.get(*f).and_then(Value::as_object))
            .flat_map(|m| m.keys())
            .collect();
        resources.sort();
        resources.dedup();
        for name in resources {
            let (min, max) = (amount("min", name), amount("max", name));
            let (default, request) = (amount("default", name), amount("defaultRequest", name));
            let above = |a: Option<crate::quantity::Quantity>, b: Option<crate::quantity::Quantity>| {
                a.zip(b).filter(|(a, b)| a > b)
            };
            if let Some((min, max)) = above(min, max) {
                let detail = format!("min value {min} is greater than max value {max}");
                e.invalid(item.child("min").key(name), min.to_string(), detail);
            }
            if let Some((min, request)) = above(min, request) {
                let detail = format!("min value {min} is greater than default request value {request}");
                e.invalid(item.child("defaultRequest").key(name), request.to_string(), detail);
            }
            if let Some((request, max)) = above(request, max) {
                let detail = format!("default request value {request} is greater than max value {max}");
                e.invalid(item.child("defaultRequest").key(name), request.to_string(), detail);
            }
            if let Some((request, default)) = above(request, default) {
                let detail =
                    format!("default request value {request} is greater than default limit value {default}");
                e.invalid(item.child("defaultRequest").key(name), request.to_string(), detail);
            }
            if let Some((min, default)) = above(min, default) {
                let detail = format!("min value {min} is greater than default value {default}");
                e.invalid(item.child("default").key(name), min.to_string(), detail);
            }
            if let Some((default, max)) = above(default, max) {
                let detail = format!("default value {default} is greater than max value {max}");
                e.invalid(item.child("default").key(name), max.to_string(), detail);
            }
        }
    }
}

/// Resources that are counted in whole numbers.
fn is_count(name: &str) -> bool {
    matches!(
        name,
        "pods"
            | "services"
            | "replicationcontrollers"
            | "resourcequotas"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "services.nodeports"
            | "services.loadbalancers"
    ) || name.starts_with("count/")
}

pub fn resource_quota(o: &Value, e: &mut Errors) {
    let hard = SPEC.child("hard");
    for (name, value) in o.at("spec.hard").and_then(Value::as_object).into_iter().flatten() {
        e.all(hard.key(name), name, names::qualified_name(name));
        let Some(q) = quantity(Some(value)) else { continue };
        if q.is_negative() {
            e.invalid(hard.key(name), q.to_string(), "must be greater than or equal to 0");
        }
        if is_count(name) && !q.is_integer() {
            e.invalid(hard.key(name), q.to_string(), "must be an integer");
        }
    }
}

/// An event about something in a namespace lives in that namespace.
pub fn event(o: &Value, e: &mut Errors) {
    let about = ["involvedObject", "regarding"].into_iter().find(|f| o.get(*f).is_some());
    let Some(field) = about else { return };
    let namespace = o.get(field).map_or("", |a| a.str_at("namespace"));
    let expected = if namespace.is_empty() { "default" } else { namespace };
    if o.namespace() != expected && !(namespace.is_empty() && o.namespace() == "kube-system") {
        let at = ROOT.child(field);
        e.invalid(at.child("namespace"), namespace, "does not match event.namespace");
    }
}

pub fn node(o: &Value, old: Option<&Value>, e: &mut Errors) {
    let list = SPEC.child("taints");
    let mut seen = Vec::new();
    for (i, taint) in o.items_at("spec.taints").iter().enumerate() {
        let item = list.index(i);
        let (key, effect) = (taint.str_at("key"), taint.str_at("effect"));
        e.all(item.child("key"), key, names::qualified_name(key));
        let value = taint.str_at("value");
        if !value.is_empty() {
            e.all(item.child("value"), value, names::label_value(value));
        }
        e.one_of(item.child("effect"), effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        if seen.contains(&(key, effect)) {
            e.duplicate(item, taint.clone());
        }
        seen.push((key, effect));
    }
    let list = SPEC.child("podCIDRs");
    for (i, cidr) in o.items_at("spec.podCIDRs").iter().filter_map(Value::as_str).enumerate() {
        if cidr.parse::<ipnet::IpNet>().is_err() {
            e.invalid(list.index(i), cidr, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
        }
    }
    let Some(old) = old else { return };
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
