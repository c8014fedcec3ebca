//! What nodes have: slices of devices, and rules that taint them.

use super::{
    binding_conditions, capacity, driver, each, given, label, name_key, pool, qualified, set, taint,
};
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::{BadValue, FieldError, Path};
use crate::validation::checks::{Errors, IMMUTABLE, quantity};
use crate::validation::scheduling;
use serde_json::{Map, Value};

const DEVICES_MAX: usize = 128;
/// With taints, counters or lists as attributes.
const DEVICES_MAX_ADVANCED: usize = 64;
const COUNTER_SETS_MAX: usize = 8;
const COUNTERS_MAX: usize = 32;
const CONSUMPTIONS_MAX: usize = 2;
const TAINTS_MAX: usize = 16;
/// Attributes and capacities of one device.
const PROPERTIES_MAX: usize = 32;
const VALUES_MAX: usize = 48;
const VALUE_MAX: usize = 64;
/// Longest key of an attribute that a path shows whole: a domain, a slash and an identifier.
const KEY_SHOWN: usize = 63 + 1 + super::IDENTIFIER_MAX;
const LISTS: [&str; 4] = ["bools", "ints", "strings", "versions"];

pub fn spec(s: &Value, old: Option<&Value>, e: &mut Errors) {
    let at = super::SPEC;
    driver(at.child("driver"), s.str_at("driver"), e);
    let own = at.child("pool");
    pool(own.child("name"), s.str_at("pool.name"), e);
    let n = |path: &str| s.int_at(path).unwrap_or(0);
    if n("pool.resourceSliceCount") <= 0 {
        let count = n("pool.resourceSliceCount");
        e.invalid(own.child("resourceSliceCount"), count, "must be greater than zero");
    }
    if n("pool.generation") < 0 {
        let generation = n("pool.generation");
        e.invalid(own.child("generation"), generation, "must be greater than or equal to zero");
    }
    if let Some(old) = old {
        for path in ["pool.name", "driver", "nodeName"] {
            if s.at(path) != old.at(path) {
                e.invalid(at.child(path), s.at(path).cloned().unwrap_or(Value::Null), IMMUTABLE);
            }
        }
    }
    nodes(s, at, e);
    if given(s, "sharedCounters").is_some() && given(s, "devices").is_some() {
        e.invalid(at, "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let advanced = s.items_at("devices").iter().any(|d| {
        !d.items_at("taints").is_empty()
            || !d.items_at("consumesCounters").is_empty()
            || entries(d, "attributes").any(|(_, a)| LISTS.iter().any(|l| given(a, l).is_some()))
    });
    let most = if advanced { DEVICES_MAX_ADVANCED } else { DEVICES_MAX };
    let per_device = s.bool_at("perDeviceNodeSelection") == Some(true);
    let before = old.map_or(&[][..], |o| o.items_at("devices"));
    let judge = |d: &Value, at: Path<'_>, e: &mut Errors| {
        let before = before.iter().find(|b| b.str_at("name") == d.str_at("name"));
        device(d, before, per_device, at, e);
    };
    set(s, "devices", most, at, e, judge, name_key);
    set(s, "sharedCounters", COUNTER_SETS_MAX, at, e, |c, at, e| counters(c, "name", at, e), name_key);
}

fn entries<'a>(o: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    o.get(field).and_then(Value::as_object).into_iter().flatten()
}

/// Which nodes can reach all devices of a slice.
fn nodes(s: &Value, at: Path<'_>, e: &mut Errors) {
    let mut set = Vec::new();
    match given(s, "nodeName").and_then(Value::as_str) {
        Some("") => {
            e.invalid(at.child("nodeName"), "", "must be either unset or set to a non-empty string");
        }
        Some(name) => {
            set.push("`nodeName`");
            e.all(at.child("nodeName"), name, names::dns1123_subdomain(name));
        }
        None => {}
    }
    if let Some(selector) = given(s, "nodeSelector") {
        set.push("`nodeSelector`");
        let at = at.child("nodeSelector");
        scheduling::node_selector(selector, at, e);
        if selector.items_at("nodeSelectorTerms").len() != 1 {
            let terms = match selector.items_at("nodeSelectorTerms") {
                [] => Value::Null,
                _ => Value::Array(scheduling::terms_in_memory(selector)),
            };
            e.invalid(at.child("nodeSelectorTerms"), terms, "must have exactly one node selector term");
        }
    }
    for (field, shown) in [("allNodes", "`allNodes`"), ("perDeviceNodeSelection", "`perDeviceNodeSelection`")]
    {
        match s.bool_at(field) {
            Some(true) => set.push(shown),
            Some(false) => e.invalid(at.child(field), false, "must be either unset or set to true"),
            None => {}
        }
    }
    const ONE: &str =
        "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match set.len() {
        0 => e.required(at, ONE),
        1 => {}
        _ => {
            let detail = format!("{ONE}, but multiple fields are set");
            e.invalid(at, format!("{{{}}}", set.join(", ")), detail);
        }
    }
}

/// Counters of a set, or those that a device takes from one.
fn counters(c: &Value, name: &str, at: Path<'_>, e: &mut Errors) {
    match c.str_at(name) {
        "" => e.required(at.child(name), ""),
        set => label(at.child(name), set, e),
    }
    let list = at.child("counters");
    let count = entries(c, "counters").count();
    if count == 0 {
        e.required(list, "");
    } else if count > COUNTERS_MAX {
        e.push(FieldError::too_many(list, count, COUNTERS_MAX));
    } else {
        entries(c, "counters").for_each(|(key, _)| label(list, key, e));
    }
}

fn device(d: &Value, old: Option<&Value>, per_device: bool, at: Path<'_>, e: &mut Errors) {
    label(at.child("name"), d.str_at("name"), e);
    let count = entries(d, "attributes").count() + entries(d, "capacity").count();
    if count > PROPERTIES_MAX {
        let detail =
            format!("the total number of attributes and capacities must not exceed {PROPERTIES_MAX}");
        e.invalid(at, count, detail);
    }
    let values: usize = entries(d, "attributes")
        .map(|(_, a)| LISTS.iter().map(|l| a.items_at(l).len()).sum::<usize>().max(1))
        .sum();
    if values > VALUES_MAX {
        e.invalid(at, values, format!("the total number of attribute values must not exceed {VALUES_MAX}"));
    }
    let list = at.child("attributes");
    for (key, a) in entries(d, "attributes") {
        qualified(list, key, e);
        attribute(a, list.key(&shortened(key)), e);
    }
    let shared = d.bool_at("allowMultipleAllocations") == Some(true);
    let list = at.child("capacity");
    for (key, c) in entries(d, "capacity") {
        qualified(list, key, e);
        let shown = shortened(key);
        let at = list.key(&shown);
        let Some(policy) = given(c, "requestPolicy") else { continue };
        if shared {
            capacity::policy(quantity(c.get("value")), policy, at.child("requestPolicy"), e);
        } else {
            e.forbidden(at.child("requestPolicy"), "allowMultipleAllocations must be true");
        }
    }
    if old.is_none_or(|old| old.get("taints") != d.get("taints")) {
        each(d, "taints", TAINTS_MAX, at, e, |t, at, e| taint(t, None, at, e));
    }
    set(
        d,
        "consumesCounters",
        CONSUMPTIONS_MAX,
        at,
        e,
        |c, at, e| counters(c, "counterSet", at, e),
        |c| c.str_at("counterSet").to_owned(),
    );
    device_nodes(d, per_device, at, e);
    binding_conditions(d, at, e);
    mappings(d, at.child("nodeAllocatableResourceMappings"), e);
}

/// A key that is too long, without its middle.
fn shortened(key: &str) -> String {
    if key.len() <= KEY_SHOWN || !key.is_ascii() {
        return key.to_owned();
    }
    let left = KEY_SHOWN - 3;
    format!("{}...{}", &key[..left.div_ceil(2)], &key[key.len() - left / 2..])
}

fn attribute(a: &Value, at: Path<'_>, e: &mut Errors) {
    let mut set = ["bool", "int"].iter().filter(|f| given(a, f).is_some()).count();
    let text = |at: Path<'_>, text: &str, version: bool, e: &mut Errors| {
        if version && semver::Version::parse(text).is_err() {
            e.invalid(at, text, "must be a string compatible with semver.org spec 2.0.0");
        }
        if text.len() > VALUE_MAX {
            e.push(FieldError::too_long(at, VALUE_MAX));
        }
    };
    for field in ["string", "version"] {
        if let Some(value) = given(a, field).and_then(Value::as_str) {
            set += 1;
            text(at.child(field), value, field == "version", e);
        }
    }
    for field in LISTS {
        let Some(list) = given(a, field) else { continue };
        set += 1;
        let at = at.child(field);
        if a.items_at(field).is_empty() {
            e.invalid(at, list.clone(), "must not be empty if specified");
        }
        for (i, value) in a.items_at(field).iter().enumerate() {
            if let Some(value) = value.as_str() {
                text(at.index(i), value, field == "versions", e);
            }
        }
    }
    if set != 1 {
        let shown = if set == 0 {
            Value::from("").into()
        } else {
            BadValue::internal("resource.DeviceAttribute", Some(a))
        };
        e.invalid(at, shown, "exactly one value must be specified");
    }
}

fn device_nodes(d: &Value, per_device: bool, at: Path<'_>, e: &mut Errors) {
    if !per_device {
        if ["nodeName", "nodeSelector", "allNodes"].iter().any(|f| given(d, f).is_some()) {
            let detail = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
            e.invalid(at, Value::Null, detail);
        }
        return;
    }
    let mut set = Vec::new();
    match given(d, "nodeName").and_then(Value::as_str) {
        Some("") => e.invalid(at.child("nodeName"), "", "must not be empty"),
        Some(name) => {
            set.push("`nodeName`");
            e.all(at.child("nodeName"), name, names::dns1123_subdomain(name));
        }
        None => {}
    }
    if let Some(selector) = given(d, "nodeSelector") {
        set.push("`nodeSelector`");
        scheduling::node_selector(selector, at.child("nodeSelector"), e);
    }
    match d.bool_at("allNodes") {
        Some(true) => set.push("`allNodes`"),
        Some(false) => e.invalid(at.child("allNodes"), false, "must be either unset or set to true"),
        None => {}
    }
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
    match set.len() {
        0 => e.required(at, ONE),
        1 => {}
        _ => e.invalid(at, format!("{{{}}}", set.join(", ")), ONE),
    }
}

/// What of the node's own resources a device takes (KEP-5517).
fn mappings(d: &Value, at: Path<'_>, e: &mut Errors) {
    let none = Map::new();
    let capacities = d.get("capacity").and_then(Value::as_object).unwrap_or(&none);
    for (resource, m) in entries(d, "nodeAllocatableResourceMappings") {
        let at = at.key(resource);
        if resource.contains('/') && !resource.contains("kubernetes.io/") {
            e.invalid(at, resource.as_str(), "must be a node allocatable resource name");
        }
        let (factor, key) =
            (quantity(m.get("allocationMultiplier")), given(m, "capacityKey").and_then(Value::as_str));
        if factor.is_none() && key.is_none() {
            e.invalid(at, "", "at least one of allocationMultiplier or capacityKey must be set");
        }
        if let Some(q) = factor.filter(|q| q.is_zero() || q.is_negative()) {
            e.invalid(at.child("allocationMultiplier"), q.to_string(), "must be positive");
        }
        match key {
            Some("") => e.invalid(at.child("capacityKey"), "", "capacityKey must not be an empty string"),
            Some(key) if !capacities.contains_key(key) => {
                e.push(FieldError::not_found(at.child("capacityKey"), key));
            }
            _ => {}
        }
    }
}

/// A rule that taints devices (KEP-5055).
pub fn taint_rule(s: &Value, old: Option<&Value>, e: &mut Errors) {
    let at = super::SPEC;
    if let Some(selector) = given(s, "deviceSelector") {
        let at = at.child("deviceSelector");
        let text = |field: &str| given(selector, field).and_then(Value::as_str);
        if let Some(name) = text("driver") {
            driver(at.child("driver"), name, e);
        }
        if let Some(name) = text("pool") {
            pool(at.child("pool"), name, e);
        }
        if let Some(name) = text("device") {
            label(at.child("device"), name, e);
        }
    }
    let empty = Value::Null;
    taint(s.get("taint").unwrap_or(&empty), old.and_then(|o| o.get("taint")), at.child("taint"), e);
}
