//! What a claim asks for, and classes of devices.

use super::{driver, each, given, label, name_key, raw_object, set, toleration};
use crate::cel::decl::{Decl, Shape};
use crate::cel::{Env, Type};
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::{FieldError, Path};
use crate::validation::checks::Errors;
use serde_json::Value;
use std::sync::{Arc, LazyLock};

/// Most requests, constraints, configurations and selectors.
pub const LIST_MAX: usize = 32;
const ALTERNATIVES_MAX: usize = 8;
const EXPRESSION_MAX: usize = 10 * 1024;
/// In CEL's cost units, for one device.
const COST_MAX: u64 = 1_000_000;

/// The spec of a claim.
pub fn spec(s: &Value, at: Path<'_>, e: &mut Errors) {
    let empty = Value::Null;
    let devices = s.get("devices").unwrap_or(&empty);
    let at = at.child("devices");
    let known = Requests(devices);
    set(devices, "requests", LIST_MAX, at, e, request, name_key);
    each(devices, "constraints", LIST_MAX, at, e, |c, at, e| constraint(c, &known, at, e));
    each(devices, "config", LIST_MAX, at, e, |c, at, e| {
        known.references(c, at, e);
        configuration(c, at, e);
    });
}

/// The requests of a claim, which other parts refer to by name.
pub struct Requests<'a>(pub &'a Value);

const UNKNOWN: &str =
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

impl Requests<'_> {
    fn has(&self, name: &str, sub: Option<&str>) -> bool {
        self.0.items_at("requests").iter().rev().find(|r| r.str_at("name") == name).is_some_and(|r| {
            sub.is_none_or(|sub| r.items_at("firstAvailable").iter().any(|s| s.str_at("name") == sub))
        })
    }

    /// A reference to a request: its name, or `name/subrequest`.
    pub fn reference(&self, name: &str, at: Path<'_>, e: &mut Errors) {
        let segments: Vec<&str> = name.split('/').collect();
        let (first, sub) = match segments.as_slice() {
            [first] => (*first, None),
            [first, sub] => (*first, Some(*sub)),
            _ => return e.invalid(at, name, UNKNOWN),
        };
        for segment in segments {
            label(at, segment, e);
        }
        if !self.has(first, sub) {
            e.invalid(at, name, UNKNOWN);
        }
    }

    /// The `requests` of a constraint or a configuration.
    pub fn references(&self, o: &Value, at: Path<'_>, e: &mut Errors) {
        let judge = |v: &Value, at: Path<'_>, e: &mut Errors| self.reference(v.as_str().unwrap_or(""), at, e);
        set(o, "requests", LIST_MAX, at, e, judge, Value::clone);
    }
}

fn request(r: &Value, at: Path<'_>, e: &mut Errors) {
    label(at.child("name"), r.str_at("name"), e);
    let several = !r.items_at("firstAvailable").is_empty();
    match (given(r, "exactly"), several) {
        (None, false) => e.required(at, "exactly one of `exactly` or `firstAvailable` is required"),
        (Some(_), true) => {
            let detail =
                "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            e.invalid(at, Value::Null, detail);
        }
        (Some(exactly), false) => exact(exactly, at.child("exactly"), e),
        (None, true) => {
            let judge = |s: &Value, at: Path<'_>, e: &mut Errors| {
                label(at.child("name"), s.str_at("name"), e);
                exact(s, at, e);
            };
            set(r, "firstAvailable", ALTERNATIVES_MAX, at, e, judge, name_key);
        }
    }
}

/// What `exactly` and each of `firstAvailable` have in common.
fn exact(r: &Value, at: Path<'_>, e: &mut Errors) {
    match r.str_at("deviceClassName") {
        "" => e.required(at.child("deviceClassName"), ""),
        class => e.all(at.child("deviceClassName"), class, names::dns1123_subdomain(class)),
    }
    each(r, "selectors", LIST_MAX, at, e, selector);
    let count = r.int_at("count").unwrap_or(0);
    match r.str_at("allocationMode") {
        "All" if count != 0 => {
            e.invalid(at.child("count"), count, "must not be specified when allocationMode is 'All'");
        }
        "All" => {}
        "ExactCount" if count <= 0 => e.invalid(at.child("count"), count, "must be greater than zero"),
        "ExactCount" => {}
        other => e.unsupported(at.child("allocationMode"), other, &["All", "ExactCount"]),
    }
    let list = at.child("tolerations");
    for (i, t) in r.items_at("tolerations").iter().enumerate() {
        toleration(t, list.index(i), e);
    }
}

fn constraint(c: &Value, known: &Requests<'_>, at: Path<'_>, e: &mut Errors) {
    known.references(c, at, e);
    let attribute =
        ["matchAttribute", "distinctAttribute"].into_iter().find_map(|f| Some((f, given(c, f)?.as_str()?)));
    let Some((field, name)) = attribute else {
        let detail = "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set";
        return e.required(at, detail);
    };
    let at = at.child(field);
    super::qualified(at, name, e);
    if !name.contains('/') {
        let detail = "a fully qualified name must be a domain and a name separated by a slash";
        e.invalid(at, name, detail);
    }
}

/// Parameters for a driver.
pub fn configuration(c: &Value, at: Path<'_>, e: &mut Errors) {
    let at = at.child("opaque");
    let Some(opaque) = given(c, "opaque") else { return e.required(at, "") };
    driver(at.child("driver"), opaque.str_at("driver"), e);
    raw_object(at.child("parameters"), opaque.get("parameters"), super::OPAQUE_MAX, e);
}

pub fn class(s: &Value, e: &mut Errors) {
    let at = super::SPEC;
    each(s, "selectors", LIST_MAX, at, e, selector);
    each(s, "config", LIST_MAX, at, e, configuration);
    if let Some(name) = given(s, "extendedResourceName").and_then(Value::as_str)
        && !is_extended_resource(name)
    {
        e.invalid(at.child("extendedResourceName"), name, "must be a valid extended resource name");
    }
}

/// Whether a resource is one that Kubernetes itself knows nothing of.
pub fn is_extended_resource(name: &str) -> bool {
    name.contains('/')
        && !name.contains("kubernetes.io/")
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// What the expression of a selector knows: a device of one of the slices.
static DEVICE: LazyLock<Env> = LazyLock::new(|| {
    let text = |max| Decl::scalar(Shape::String, max, 2);
    let by_domain = |value: Decl| Decl::map(Decl::map(value, Some(32)), Some(32));
    let device = Decl::object(vec![
        ("driver", text(63)),
        ("allowMultipleAllocations", Decl::scalar(Shape::Bool, 1, 4)),
        ("attributes", by_domain(Decl::scalar(Shape::Dyn, 64, 1))),
        ("capacity", by_domain(Decl::scalar(Shape::Dyn, 64, 1))),
    ]);
    Env::new().declare("device", &Arc::new(device.named("kubernetes.DRADevice")))
});

fn selector(s: &Value, at: Path<'_>, e: &mut Errors) {
    let at = at.child("cel");
    let Some(cel) = given(s, "cel") else { return e.required(at, "") };
    let source = cel.str_at("expression");
    let at = at.child("expression");
    if source.len() > EXPRESSION_MAX {
        return e.push(FieldError::too_long(at, EXPRESSION_MAX));
    }
    match DEVICE.compile(source) {
        Err(issues) => e.invalid(at, source, format!("compilation failed: {issues}")),
        Ok(program) if !matches!(program.result_type(), Type::Bool | Type::Dyn) => {
            let ty = program.result_type();
            let detail = format!("must evaluate to bool or the unknown type, not {ty}");
            e.invalid(at, source, detail);
        }
        Ok(program) if DEVICE.estimate(&program).max > COST_MAX => {
            e.forbidden(at, "too complex, exceeds cost limit");
        }
        Ok(_) => {}
    }
}
