//! What was allocated to a claim, and who uses it.

use super::claim::{LIST_MAX, Requests, configuration};
use super::{binding_conditions, driver, each, given, label, pool, raw_object, set};
use crate::object::ObjectExt as _;
use crate::status::{BadValue, FieldError, Path};
use crate::validation::checks::{Errors, IMMUTABLE};
use crate::validation::{conditions, scheduling};
use serde_json::Value;

const RESERVED_MAX: usize = 256;
const CONDITIONS_MAX: usize = 8;
const ADDRESSES_MAX: usize = 16;
const INTERFACE_MAX: usize = 256;
const HARDWARE_MAX: usize = 128;

/// An update of a claim's status.
pub fn claim_status(o: &Value, old: &Value, e: &mut Errors) {
    let empty = Value::Null;
    let (s, before) = (o.get("status").unwrap_or(&empty), old.get("status").unwrap_or(&empty));
    let at = Path::new("status");
    set(s, "reservedFor", RESERVED_MAX, at, e, consumer, |c| c.str_at("uid").to_owned());
    let allocation = given(s, "allocation");
    let allocated: Vec<BadValue> =
        allocation.map_or(&[][..], |a| a.items_at("devices.results")).iter().map(shared_id).collect();
    let judge = |d: &Value, at: Path<'_>, e: &mut Errors| device(d, &allocated, at, e);
    set(s, "devices", usize::MAX, at, e, judge, shared_id);
    let reserved = s.items_at("reservedFor");
    if !reserved.is_empty() {
        let at = at.child("reservedFor");
        if allocation.is_none() {
            e.forbidden(at, "may not be specified when `allocated` is not set");
        } else if o.deletion_timestamp().is_some()
            && reserved.iter().any(|r| !before.items_at("reservedFor").contains(r))
        {
            let detail =
                "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
            e.forbidden(at, detail);
        }
    }
    match (given(before, "allocation"), allocation) {
        (Some(old), Some(new)) if old != new => e.invalid(
            at.child("allocation"),
            BadValue::internal("resource.AllocationResult", Some(new)),
            IMMUTABLE,
        ),
        (None, Some(new)) => {
            let requests = o.at("spec.devices").unwrap_or(&empty);
            result(new, &Requests(requests), at.child("allocation"), e);
        }
        _ => {}
    }
}

/// What tells an allocated device from others, as it is shown.
fn shared_id(d: &Value) -> BadValue {
    BadValue::internal("resource.SharedDeviceID", Some(d))
}

fn consumer(c: &Value, at: Path<'_>, e: &mut Errors) {
    for field in ["resource", "name", "uid"].into_iter().filter(|f| c.str_at(f).is_empty()) {
        e.required(at.child(field), "");
    }
}

fn result(a: &Value, requests: &Requests<'_>, at: Path<'_>, e: &mut Errors) {
    let empty = Value::Null;
    let devices = a.get("devices").unwrap_or(&empty);
    let below = at.child("devices");
    each(devices, "results", LIST_MAX, below, e, |r, at, e| {
        requests.reference(r.str_at("request"), at.child("request"), e);
        identity(r, at, e);
        binding_conditions(r, at, e);
        share(r, at, e);
    });
    each(devices, "config", 2 * LIST_MAX, below, e, |c, at, e| {
        e.one_of(at.child("source"), c.str_at("source"), &["FromClaim", "FromClass"]);
        requests.references(c, at, e);
        configuration(c, at, e);
    });
    if let Some(selector) = given(a, "nodeSelector") {
        scheduling::node_selector(selector, at.child("nodeSelector"), e);
    }
}

fn identity(d: &Value, at: Path<'_>, e: &mut Errors) {
    driver(at.child("driver"), d.str_at("driver"), e);
    pool(at.child("pool"), d.str_at("pool"), e);
    label(at.child("device"), d.str_at("device"), e);
}

fn share(d: &Value, at: Path<'_>, e: &mut Errors) {
    let Some(id) = given(d, "shareID").and_then(Value::as_str) else { return };
    let at = at.child("shareID");
    if let Err(why) = uuid_form(id) {
        e.invalid(at, id, why);
    }
}

/// Whether a text is a UUID in its normal form (RFC 9562).
fn uuid_form(id: &str) -> Result<(), String> {
    let hex = |s: &str| s.bytes().all(|b| b.is_ascii_hexdigit());
    let dashed = |s: &str| {
        let parts: Vec<&str> = s.split('-').collect();
        parts.iter().map(|p| p.len()).eq([8, 4, 4, 4, 12]) && parts.iter().all(|p| hex(p))
    };
    let good = match id.len() {
        36 => dashed(id),
        45 => {
            id.get(..9).is_some_and(|p| p.eq_ignore_ascii_case("urn:uuid:"))
                && id.get(9..).is_some_and(dashed)
        }
        38 => id.get(1..37).is_some_and(dashed),
        32 => hex(id),
        n => return Err(format!("error validating uid: invalid UUID length: {n}")),
    };
    if !good {
        return Err("error validating uid: invalid UUID format".into());
    }
    if id.len() != 36 || id.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal characters".into());
    }
    Ok(())
}

fn device(d: &Value, allocated: &[BadValue], at: Path<'_>, e: &mut Errors) {
    identity(d, at, e);
    share(d, at, e);
    let id = shared_id(d);
    if !allocated.contains(&id) {
        e.invalid(at, id, "must be an allocated device in the claim");
    }
    let list = d.items_at("conditions");
    if list.len() > CONDITIONS_MAX {
        e.push(FieldError::too_many(at.child("conditions"), list.len(), CONDITIONS_MAX));
    }
    conditions::judge(list, at.child("conditions"), e);
    if let Some(data) = given(d, "data") {
        raw_object(at.child("data"), Some(data), super::OPAQUE_MAX, e);
    }
    let Some(network) = given(d, "networkData") else { return };
    let at = at.child("networkData");
    for (field, max) in [("interfaceName", INTERFACE_MAX), ("hardwareAddress", HARDWARE_MAX)] {
        if network.str_at(field).len() > max {
            e.push(FieldError::too_long(at.child(field), max));
        }
    }
    set(network, "ips", ADDRESSES_MAX, at, e, address, Value::clone);
}

/// An address with the length of its network's prefix, in canonical form.
fn address(v: &Value, at: Path<'_>, e: &mut Errors) {
    let text = v.as_str().unwrap_or("");
    let detail = match text.parse::<ipnet::IpNet>() {
        Err(_) => "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)".to_owned(),
        Ok(net) if net.to_string() != text => {
            format!("must be in canonical form ({})", crate::text::quote(&net.to_string()))
        }
        Ok(_) => return,
    };
    e.invalid(at, text, detail);
}
