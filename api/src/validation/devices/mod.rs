//! Validation of dynamic resource allocation (`resource.k8s.io`, KEP-4381 and those that build on it).
//!
//! Objects come in the stored version. `claim` is what is asked for, `slice` what nodes have, `capacity` how a device
//! is shared, `status` what was allocated.

mod capacity;
mod claim;
mod slice;
mod status;

pub use status::claim_status;

use super::checks::Errors;
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::{BadValue, FieldError, Path};
use serde_json::Value;

const SPEC: Path<'static> = Path::new("spec");
/// Most bytes of opaque parameters and of a device's data.
const OPAQUE_MAX: usize = 10 * 1024;

/// An object of the group, `old` being the stored one of an update.
pub fn kind(kind: &str, o: &Value, old: Option<&Value>, e: &mut Errors) {
    let empty = Value::Null;
    let spec = o.get("spec").unwrap_or(&empty);
    match kind {
        "ResourceClaim" => match old {
            None => claim::spec(spec, SPEC, e),
            Some(old) => e.immutable(Path::ROOT, "resource.ResourceClaimSpec", o, old, "spec"),
        },
        "ResourceClaimTemplate" => {
            super::meta::of_template(SPEC.child("metadata"), spec, e);
            claim::spec(spec.get("spec").unwrap_or(&empty), SPEC.child("spec"), e);
            if let Some(old) = old {
                e.immutable(Path::ROOT, "resource.ResourceClaimTemplateSpec", o, old, "spec");
            }
        }
        "DeviceClass" => claim::class(spec, e),
        "ResourceSlice" => slice::spec(spec, old.and_then(|o| o.get("spec")), e),
        "DeviceTaintRule" => slice::taint_rule(spec, old.and_then(|o| o.get("spec")), e),
        _ => {}
    }
}

/// Warnings that go with an accepted object.
pub fn warnings(kind: &str, o: &Value) -> Vec<String> {
    let driver = o.str_at("spec.driver");
    if kind == "ResourceSlice" && driver.chars().any(char::is_uppercase) {
        let driver = crate::text::quote(driver);
        return vec![format!(
            "spec.driver: driver names should be lowercase; {driver} contains uppercase characters"
        )];
    }
    Vec::new()
}

/// The value of a field that is there.
fn given<'a>(o: &'a Value, field: &str) -> Option<&'a Value> {
    o.get(field).filter(|v| !v.is_null())
}

/// Judges the items of a list, unless there are too many of them.
fn each(
    o: &Value,
    field: &str,
    max: usize,
    at: Path<'_>,
    e: &mut Errors,
    mut judge: impl FnMut(&Value, Path<'_>, &mut Errors),
) -> bool {
    let items = o.items_at(field);
    let list = at.child(field);
    if items.len() > max {
        e.push(FieldError::too_many(list, items.len(), max));
        return false;
    }
    for (i, item) in items.iter().enumerate() {
        judge(item, list.index(i), e);
    }
    true
}

/// As [`each`], and then no two items may have the same key.
fn set<K: Into<BadValue>>(
    o: &Value,
    field: &str,
    max: usize,
    at: Path<'_>,
    e: &mut Errors,
    judge: impl FnMut(&Value, Path<'_>, &mut Errors),
    key: impl Fn(&Value) -> K,
) {
    if !each(o, field, max, at, e, judge) {
        return;
    }
    let list = at.child(field);
    let keys: Vec<BadValue> = o.items_at(field).iter().map(|item| key(item).into()).collect();
    for (i, key) in keys.iter().enumerate().filter(|(i, key)| keys[..*i].contains(key)) {
        e.duplicate(list.index(i), key.clone());
    }
}

/// The key of an item that has a name.
fn name_key(item: &Value) -> Value {
    item.str_at("name").into()
}

/// A name that is a DNS label: of a request, a device or a counter.
fn label(at: Path<'_>, name: &str, e: &mut Errors) {
    e.all(at, name, names::dns1123_label(name));
}

/// The name of a driver: a DNS subdomain in any case, of at most 63 bytes.
fn driver(at: Path<'_>, name: &str, e: &mut Errors) {
    if name.is_empty() {
        e.required(at, "");
        return;
    }
    if name.len() > names::LABEL_MAX {
        e.push(FieldError::too_long(at, names::LABEL_MAX));
    }
    e.all(at, name, names::dns1123_subdomain(&name.to_lowercase()));
}

/// The name of a pool: DNS subdomains separated by slashes.
fn pool(at: Path<'_>, name: &str, e: &mut Errors) {
    if name.is_empty() {
        e.required(at, "");
        return;
    }
    if name.len() > names::SUBDOMAIN_MAX {
        e.push(FieldError::too_long(at, names::SUBDOMAIN_MAX));
    }
    for part in name.split('/') {
        e.all(at, part, names::dns1123_subdomain(part));
    }
}

/// `[domain/]identifier`, of an attribute or a capacity.
fn qualified(at: Path<'_>, name: &str, e: &mut Errors) {
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        [id] => identifier(at, id, e),
        [domain, id] => {
            if domain.is_empty() {
                e.invalid(at, "", "the domain must not be empty");
            } else {
                driver(at, domain, e);
            }
            if id.is_empty() {
                e.invalid(at, "", "the name must not be empty");
            } else {
                identifier(at, id, e);
            }
        }
        _ => {}
    }
}

/// Most bytes of the identifier of an attribute or a capacity.
const IDENTIFIER_MAX: usize = 32;

fn identifier(at: Path<'_>, id: &str, e: &mut Errors) {
    if id.len() > IDENTIFIER_MAX {
        e.push(FieldError::too_long(at, IDENTIFIER_MAX));
    }
    e.all(at, id, names::c_identifier(id));
}

/// Any JSON object of a bounded size.
fn raw_object(at: Path<'_>, value: Option<&Value>, max: usize, e: &mut Errors) {
    match value {
        None | Some(Value::Null) => e.required(at, ""),
        Some(v) if v.to_string().len() > max => e.push(FieldError::too_long(at, max)),
        Some(Value::Object(_)) => {}
        Some(_) => e.invalid(at, "<value omitted>", "must be a valid JSON object"),
    }
}

const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];

fn toleration(t: &Value, at: Path<'_>, e: &mut Errors) {
    let (key, value) = (t.str_at("key"), t.str_at("value"));
    if !key.is_empty() {
        e.all(at.child("key"), key, names::qualified_name(key));
    }
    match t.str_at("operator") {
        "Exists" if !value.is_empty() => {
            e.invalid(at.child("value"), value, "must be empty for operator `Exists`");
        }
        "Exists" => {}
        "Equal" => e.all(at.child("value"), value, names::label_value(value)),
        other => e.one_of(at.child("operator"), other, &["Equal", "Exists"]),
    }
    e.optional_one_of(at.child("effect"), t.str_at("effect"), &EFFECTS);
}

fn taint(t: &Value, old: Option<&Value>, at: Path<'_>, e: &mut Errors) {
    let (key, value, effect) = (t.str_at("key"), t.str_at("value"), t.str_at("effect"));
    e.all(at.child("key"), key, names::qualified_name(key));
    if !value.is_empty() {
        e.all(at.child("value"), value, names::label_value(value));
    }
    if old.is_none_or(|old| old.str_at("effect") != effect) {
        e.one_of(at.child("effect"), effect, &EFFECTS);
    }
}

/// The conditions that an allocated device waits for, and those that end the wait (KEP-5007).
fn binding_conditions(o: &Value, at: Path<'_>, e: &mut Errors) {
    const FIELDS: [&str; 2] = ["bindingConditions", "bindingFailureConditions"];
    for field in FIELDS {
        each(o, field, 4, at, e, |v, at, e| {
            let key = v.as_str().unwrap_or("");
            e.all(at, key, names::qualified_name(key));
        });
    }
    let [wanted, failed] = FIELDS.map(|f| o.items_at(f));
    let list = at.child(FIELDS[0]);
    for (i, c) in wanted.iter().enumerate().filter(|(i, c)| wanted[..*i].contains(c)) {
        e.duplicate(list.index(i), c.clone());
    }
    let list = at.child(FIELDS[1]);
    for (i, c) in failed.iter().enumerate() {
        if failed[..i].contains(c) {
            e.duplicate(list.index(i), c.clone());
        }
        if wanted.contains(c) {
            let detail = "bindingFailureConditions must not overlap with bindingConditions";
            e.invalid(list.index(i), c.clone(), detail);
        }
    }
    let of = |field: &str| o.get(field).cloned().unwrap_or(Value::Null);
    if wanted.is_empty() && !failed.is_empty() {
        let detail = "bindingConditions are required to use bindingFailureConditions";
        e.invalid(at.child(FIELDS[0]), of(FIELDS[0]), detail);
    }
    if failed.is_empty() && !wanted.is_empty() {
        let detail = "bindingFailureConditions are required to use bindingConditions";
        e.invalid(at.child(FIELDS[1]), of(FIELDS[1]), detail);
    }
}
