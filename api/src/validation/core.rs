//! Validation of the core group's smaller kinds.

use super::checks::Errors;
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::{BadValue, FieldError, Path};
use crate::text::quote;
use base64::Engine as _;
use serde_json::Value;

const SPEC: Path<'static> = Path::new("spec");
const ROOT: Path<'static> = Path::ROOT;
/// Most bytes that a config map or secret may hold.
const DATA_MAX: usize = 1024 * 1024;
const FIXED: &str = "field is immutable when `immutable` is set";

fn entries<'a>(o: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a str)> {
    o.get(field).and_then(Value::as_object).into_iter().flatten().map(|(k, v)| (k, v.as_str().unwrap_or("")))
}

fn decoded_len(s: &str) -> usize {
    s.len() / 4 * 3 - s.bytes().rev().take_while(|b| *b == b'=').count().min(2)
}

pub fn config_map(o: &Value, old: Option<&Value>, e: &mut Errors) {
    fixed(o, old, &["data", "binaryData"], e);
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
        e.immutable(ROOT, "string", o, old, "type");
    }
    fixed(o, old, &["data"], e);
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
            e.required(ROOT.child("reportingComponent"), "");
        }
        e.all(ROOT.child("reportingComponent"), reporter, names::qualified_name(reporter));
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
    series(o, e);
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

/// Fields of an event that an update may not change, under the core group's names, with their internal types.
const EVENT_FIXED: [(&str, &str); 14] = [
    ("involvedObject", "core.ObjectReference"),
    ("reason", "string"),
    ("message", "string"),
    ("source", "core.EventSource"),
    ("firstTimestamp", "time"),
    ("lastTimestamp", "time"),
    ("count", "int"),
    ("reason", "string"),
    ("type", "string"),
    ("eventTime", "time"),
    ("action", "string"),
    ("related", "*core.ObjectReference"),
    ("reportingComponent", "string"),
    ("reportingInstance", "string"),
];

/// What an update of an event through the group `events.k8s.io` may not change.
pub fn strict_event_update(o: &Value, old: &Value, e: &mut Errors) {
    if o.get("series") != old.get("series") {
        series(o, e);
    }
    for (field, ty) in EVENT_FIXED {
        e.immutable(ROOT, ty, o, old, field);
    }
}

fn series(o: &Value, e: &mut Errors) {
    let Some(series) = o.get("series").filter(|s| !s.is_null()) else { return };
    if series.int_at("count").unwrap_or(0) < 2 {
        e.invalid(ROOT.child("series.count"), "", "should be at least 2");
    }
    if series.str_at("lastObservedTime").is_empty() {
        e.required(ROOT.child("series.lastObservedTime"), "");
    }
}

/// A node; of an update Kubernetes judges the taints and what there is of resources once more.
pub fn node(o: &Value, old: Option<&Value>, e: &mut Errors) {
    taints(o, e);
    node_resources(o, e);
    declared_features(o, e);
    pod_cidrs(o, e);
    let Some(old) = old else { return };
    node_resources(o, e);
    declared_features(o, e);
    let mut addresses = Vec::new();
    let places = Path::new("status.addresses");
    for (i, address) in o.items_at("status.addresses").iter().enumerate() {
        if addresses.contains(&address) {
            e.duplicate(places.index(i), BadValue::internal("core.NodeAddress", Some(address)));
        }
        addresses.push(address);
    }
    let (before, now) = (old.items_at("spec.podCIDRs"), o.items_at("spec.podCIDRs"));
    if !before.is_empty() {
        let changed = if before.len() == now.len() {
            before.iter().zip(now).filter(|(a, b)| a != b).count()
        } else {
            1
        };
        for _ in 0..changed {
            let detail = "node updates may not change podCIDR except from \"\" to valid";
            e.forbidden(SPEC.child("podCIDRs"), detail);
        }
    }
    let (a, b) = (o.str_at("spec.providerID"), old.str_at("spec.providerID"));
    if !b.is_empty() && a != b {
        e.forbidden(
            SPEC.child("providerID"),
            "node updates may not change providerID except from \"\" to valid",
        );
    }
    taints(o, e);
    if o.str_at("spec.externalID") != old.str_at("spec.externalID") {
        e.forbidden(SPEC.child("externalID"), "may not be updated");
    }
}

fn taints(o: &Value, e: &mut Errors) {
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
            let mut error = FieldError::duplicate(item, BadValue::internal("core.Taint", Some(taint)));
            error.detail = "taints must be unique by key and effect pair".into();
            e.push(error);
        }
        seen.push((key, effect));
    }
}

pub fn node_resources(o: &Value, e: &mut Errors) {
    let status = Path::new("status");
    for field in ["capacity", "allocatable"] {
        for (name, q) in crate::resources::list(o.get("status").and_then(|s| s.get(field))) {
            let at = status.child(field);
            let at = at.child(&name);
            if q.is_negative() {
                e.invalid(at, q.to_string(), super::checks::NOT_NEGATIVE);
            }
            let counted = name == "pods" || name.contains('/') && !name.contains("kubernetes.io/");
            if counted && !q.is_integer() {
                e.invalid(at, q.to_string(), "must be an integer");
            }
        }
    }
}

/// Features that a node says it has (KEP-5328): names in order, each once.
fn declared_features(o: &Value, e: &mut Errors) {
    let list = Path::new("status.declaredFeatures");
    let all: Vec<&str> = o.items_at("status.declaredFeatures").iter().filter_map(Value::as_str).collect();
    for (i, name) in all.iter().enumerate() {
        if let Some(why) = feature_name(name) {
            e.invalid(list.index(i), *name, format!("invalid feature name {}: {why}", quote(name)));
        }
        match all.get(i + 1) {
            Some(next) if next == name => e.duplicate(list.index(i + 1), *next),
            Some(next) if *next < *name => {
                e.invalid(list.index(i + 1), *next, "list must be sorted alphabetically");
            }
            _ => {}
        }
    }
}

/// What is wrong with the name of a feature.
fn feature_name(name: &str) -> Option<&'static str> {
    if name.len() > 253 {
        return Some("must be no more than 253 characters");
    }
    let good = |(i, part): (usize, &str)| {
        let first = part.bytes().next().unwrap_or(b'/');
        let begins = if i == 0 { first.is_ascii_uppercase() } else { first.is_ascii_alphabetic() };
        begins && part.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    (!name.split('/').enumerate().all(good)).then_some(
        "must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or \
         MyFeature/mySubFeature), and contain only alphanumeric characters and slashes",
    )
}

fn pod_cidrs(o: &Value, e: &mut Errors) {
    let list = SPEC.child("podCIDRs");
    for (i, cidr) in o.items_at("spec.podCIDRs").iter().filter_map(Value::as_str).enumerate() {
        super::addresses::cidr(list.index(i), cidr, e);
    }
    let all = o.items_at("spec.podCIDRs");
    let family = |c: &Value| Some(c.as_str()?.parse::<ipnet::IpNet>().ok()?.network().is_ipv4());
    let families: Vec<Option<bool>> = all.iter().map(family).collect();
    let unread = families.iter().position(Option::is_none).filter(|_| all.len() > 1);
    if let Some(i) = unread {
        let text = all[i].as_str().unwrap_or_default();
        e.push(crate::status::FieldError::internal(
            list,
            format!(
                "invalid PodCIDRs. failed to check with dual stack with error:\
                 invalid CIDR[{i}]: <nil> (invalid CIDR address: {text})"
            ),
        ));
    }
    if all.len() > 2 || unread.is_some() || matches!(families.as_slice(), [a, b] if a == b) {
        let value = o.at("spec.podCIDRs").cloned().unwrap_or(Value::Null);
        e.invalid(list, value, "may specify no more than one CIDR for each IP family");
    }
}

/// A namespace's own finalizers: standard or with a domain.
pub fn namespace(o: &Value, e: &mut Errors) {
    let at = SPEC.child("finalizers");
    for name in o.items_at("spec.finalizers").iter().filter_map(Value::as_str) {
        let messages = names::qualified_name(name);
        e.all(at, name, messages);
        if !name.contains('/') && !matches!(name, "kubernetes" | "orphan" | "foregroundDeletion") {
            e.invalid(at, name, "name is neither a standard finalizer name nor is it fully qualified");
        }
    }
}
