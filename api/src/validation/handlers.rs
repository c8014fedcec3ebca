//! Validation of containers' resources, probes and lifecycle hooks.

use super::checks::{Errors, quantity};
use super::containers::port_number;
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::Path;
use serde_json::Value;

/// Whether a resource belongs to Kubernetes itself.
fn native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Requests and limits.
pub fn requirements(r: &Value, at: Path<'_>, e: &mut Errors) {
    for list in ["limits", "requests"] {
        let path = at.child(list);
        let amounts = r.get(list).and_then(Value::as_object);
        for (name, value) in amounts.into_iter().flatten() {
            let item = path.key(name);
            e.all(item, name, names::qualified_name(name));
            let Some(q) = quantity(Some(value)) else { continue };
            if q.is_negative() {
                e.invalid(item, q.to_string(), "must be greater than or equal to 0");
            }
            if !native(name) && !q.is_integer() {
                e.invalid(item, q.to_string(), "must be an integer");
            }
            if list == "requests" {
                against_limit(r, name, q, path, at, e);
            }
        }
    }
}

fn against_limit(
    r: &Value,
    name: &str,
    q: crate::quantity::Quantity,
    at: Path<'_>,
    whole: Path<'_>,
    e: &mut Errors,
) {
    let overcommit = native(name) && !name.starts_with("hugepages-");
    match quantity(r.get("limits").and_then(|l| l.get(name))) {
        Some(limit) if !overcommit && q != limit => {
            e.invalid(at, q.to_string(), format!("must be equal to {name} limit of {limit}"));
        }
        Some(limit) if q > limit => {
            e.invalid(at, q.to_string(), format!("must be less than or equal to {name} limit of {limit}"));
        }
        None if !overcommit => {
            e.required(whole.child("limits"), "Limit must be set for non overcommitable resources");
        }
        _ => {}
    }
}

/// The one handler of a probe or hook.
fn handler(h: &Value, at: Path<'_>, grace: i64, e: &mut Errors) {
    let mut count = 0;
    let present = |name: &str| h.get(name).filter(|v| !v.is_null());
    if let Some(exec) = present("exec") {
        count += 1;
        if exec.items_at("command").is_empty() {
            let exec = at.child("exec");
            e.required(exec.child("command"), "");
        }
    }
    if let Some(get) = present("httpGet") {
        count += 1;
        let at = at.child("httpGet");
        if get.str_at("path").is_empty() {
            e.required(at.child("path"), "");
        }
        e.port_or_name(at.child("port"), get.get("port"));
        e.one_of(at.child("scheme"), get.str_at("scheme"), &["HTTP", "HTTPS"]);
        let list = at.child("httpHeaders");
        for header in get.items_at("httpHeaders") {
            let name = header.str_at("name");
            e.all(list.child("name"), name, names::http_header_name(name));
        }
    }
    if let Some(tcp) = present("tcpSocket") {
        count += 1;
        let at = at.child("tcpSocket");
        e.port_or_name(at.child("port"), tcp.get("port"));
    }
    if let Some(grpc) = present("grpc") {
        count += 1;
        let at = at.child("grpc");
        port_number(at.child("port"), grpc.int_at("port").unwrap_or(0), e);
    }
    if let Some(sleep) = present("sleep") {
        count += 1;
        let seconds = sleep.int_at("seconds").unwrap_or(0);
        if seconds < 0 || seconds > grace {
            let detail =
                format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
            e.invalid(at.child("sleep"), seconds, detail);
        }
    }
    match count {
        0 => e.required(at, "must specify a handler type"),
        1 => {}
        _ => e.forbidden(at, "may not specify more than 1 handler type"),
    }
}

pub fn hooks(lifecycle: &Value, at: Path<'_>, grace: i64, e: &mut Errors) {
    for name in ["postStart", "preStop"] {
        if let Some(hook) = lifecycle.get(name).filter(|h| !h.is_null()) {
            handler(hook, at.child(name), grace, e);
        }
    }
}

pub fn probe(name: &str, probe: Option<&Value>, at: Path<'_>, grace: i64, e: &mut Errors) {
    let Some(probe) = probe.filter(|p| !p.is_null()) else { return };
    handler(probe, at, grace, e);
    for field in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        e.not_negative(at, probe, field);
    }
    if let Some(seconds) = probe.int_at("terminationGracePeriodSeconds") {
        let field = at.child("terminationGracePeriodSeconds");
        if name == "readinessProbe" {
            e.invalid(field, seconds, "must not be set for readinessProbes");
        } else if seconds <= 0 {
            e.invalid(field, seconds, "must be greater than 0");
        }
    }
    if name != "readinessProbe"
        && let Some(n) = probe.int_at("successThreshold").filter(|n| *n != 1)
    {
        e.invalid(at.child("successThreshold"), n, "must be 1");
    }
}
