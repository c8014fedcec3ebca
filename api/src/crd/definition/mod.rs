//! What a CustomResourceDefinition itself must satisfy, on creation and on update.
//!
//! Kubernetes judges its internal form of a definition, in which what all versions have in common is at the top:
//! errors name `spec.validation`, `spec.subresources` and so on then. What an object broke already before an update
//! is not held against the update ([`Strictness`]).

mod schema;
mod spec;

use serde_json::{Value, json};

use super::structural;
use super::{defaults, schema::Schema};
use crate::object::ObjectExt as _;
use crate::status::{FieldError, Path};

/// Annotation that approves of a definition in a group of the Kubernetes community.
pub const APPROVED: &str = "api-approved.kubernetes.io";

/// Which rules hold; on an update not those that the old object broke already.
#[derive(Debug, Clone)]
struct Strictness {
    /// Every version has a schema.
    schemas: bool,
    /// Types are those of OpenAPI v3.
    types: bool,
    structural: bool,
    pruned_defaults: bool,
    atomic_sets: bool,
    list_keys: bool,
    /// A known version of ConversionReview is named.
    review_versions: bool,
    ca_bundle: bool,
    /// Scope and kind stay.
    names_stay: bool,
}

impl Strictness {
    const CREATE: Self = Self {
        schemas: true,
        types: true,
        structural: true,
        pruned_defaults: true,
        atomic_sets: true,
        list_keys: true,
        review_versions: true,
        // The definition is not established yet, and says so in its conditions.
        ca_bundle: false,
        names_stay: false,
    };

    fn update(old: &Value) -> Self {
        let schemas: Vec<Option<&Value>> =
            old.items_at("spec.versions").iter().map(|v| v.at("schema.openAPIV3Schema")).collect();
        let all = |holds: &dyn Fn(&Value) -> bool| schemas.iter().flatten().all(|s| holds(s));
        let no_node = |broken: &dyn Fn(&Value) -> bool| all(&|s| !any_node(s, broken));
        let reviews = old.items_at("spec.conversion.webhook.conversionReviewVersions");
        let established = is_true(old, "Established");
        let bundle = old.str_at("spec.conversion.webhook.clientConfig.caBundle");
        Self {
            schemas: schemas.iter().all(Option::is_some),
            types: no_node(&|s| {
                let ty = structural::text(s, "type");
                !ty.is_empty() && super::schema::Type::parse(ty).is_none()
            }),
            structural: all(&|s| Schema::parse(s).is_ok() && structural::validate(Path::ROOT, s).is_empty()),
            pruned_defaults: all(&|s| {
                Schema::parse(s).is_ok_and(|read| {
                    let complaints = defaults::validate(Path::ROOT, &read, true);
                    !complaints.iter().any(|e| e.detail == "must not have unknown fields")
                })
            }),
            atomic_sets: no_node(&|s| {
                let item = s.get("items").cloned().unwrap_or_default();
                let (list, map) = (
                    structural::text(&item, "x-kubernetes-list-type"),
                    structural::text(&item, "x-kubernetes-map-type"),
                );
                structural::text(s, "x-kubernetes-list-type") == "set"
                    && match structural::text(&item, "type") {
                        "array" => !matches!(list, "" | "atomic"),
                        "object" => map != "atomic",
                        _ => false,
                    }
            }),
            list_keys: no_node(&|s| !schema::list_items(Path::ROOT, s).is_empty()),
            review_versions: reviews.is_empty() || reviews.iter().any(spec::is_known_review),
            ca_bundle: established && (bundle.is_empty() || spec::is_bundle(bundle)),
            names_stay: established,
        }
    }
}

/// Whether a definition has a condition with the status True.
pub fn is_true(crd: &Value, condition: &str) -> bool {
    crd.items_at("status.conditions")
        .iter()
        .any(|c| c.str_at("type") == condition && c.str_at("status") == "True")
}

/// Whether a predicate holds for a node of `JSONSchemaProps` or one below it.
fn any_node(schema: &Value, holds: &dyn Fn(&Value) -> bool) -> bool {
    if !schema.is_object() {
        return false;
    }
    let below = |v: &Value| any_node(v, holds);
    holds(schema)
        || ["properties", "patternProperties", "definitions", "dependencies"]
            .iter()
            .any(|f| structural::object(schema, f).is_some_and(|m| m.values().any(below)))
        || ["allOf", "anyOf", "oneOf", "items"].iter().any(|f| structural::list(schema, f).iter().any(below))
        || ["not", "items", "additionalProperties", "additionalItems"]
            .iter()
            .any(|f| schema.get(*f).is_some_and(below))
}

/// Gives the schemas their canonical form where a field holds a schema or something else (`items`,
/// `additionalProperties`, …), which decoding by types leaves as it came.
pub fn canonical(crd: &mut crate::object::Object) {
    let versions = crd.get_mut("spec").and_then(|s| s.get_mut("versions")).and_then(Value::as_array_mut);
    for version in versions.into_iter().flatten() {
        if let Some(schema) = version.get_mut("schema").and_then(|s| s.get_mut("openAPIV3Schema")) {
            canonical_schema(schema, false, 0);
        }
    }
}

fn canonical_schema(schema: &mut Value, raw: bool, depth: usize) {
    let Some(ty) = crate::schema::find("apiextensions.v1.JSONSchemaProps") else { return };
    if depth > super::MAX_DEPTH || !schema.is_object() {
        return;
    }
    if raw {
        // What is of the wrong type stays and is found by validation.
        let mut copy = schema.clone();
        if crate::decode::normalize(ty, &mut copy, &mut crate::decode::Dropped::default()).is_ok() {
            *schema = copy;
        }
    }
    let Some(map) = schema.as_object_mut() else { return };
    for (field, value) in map {
        match field.as_str() {
            "items" | "additionalProperties" | "additionalItems" => match value {
                Value::Array(all) => all.iter_mut().for_each(|s| canonical_schema(s, true, depth + 1)),
                one => canonical_schema(one, true, depth + 1),
            },
            "not" => canonical_schema(value, false, depth + 1),
            "allOf" | "anyOf" | "oneOf" => {
                value
                    .as_array_mut()
                    .into_iter()
                    .flatten()
                    .for_each(|s| canonical_schema(s, false, depth + 1));
            }
            "properties" | "patternProperties" | "definitions" => {
                let all = value.as_object_mut().into_iter().flatten();
                all.for_each(|(_, s)| canonical_schema(s, false, depth + 1));
            }
            _ => {}
        }
    }
}

/// What is wrong with a new definition, metadata apart.
pub fn validate_create(crd: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let wanted = format!("{}.{}", crd.str_at("spec.names.plural"), crd.str_at("spec.group"));
    if crd.name() != wanted {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid("metadata.name", crd.name(), detail));
    }
    spec::validate(crd, None, &Strictness::CREATE, &mut errors);
    status(crd, &mut errors);
    approval(crd, None, &mut errors);
    preserve(crd, None, &mut errors);
    errors
}

/// What is wrong with a changed definition, metadata apart.
pub fn validate_update(crd: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let strict = Strictness::update(old);
    spec::validate(crd, Some(old), &strict, &mut errors);
    let stay = |field: &str, errors: &mut Vec<FieldError>| {
        if crd.str_at(field) != old.str_at(field) {
            errors.push(FieldError::invalid(field, crd.str_at(field), "field is immutable"));
        }
    };
    if strict.names_stay {
        stay("spec.scope", &mut errors);
        stay("spec.names.kind", &mut errors);
    }
    stay("spec.group", &mut errors);
    stay("spec.names.plural", &mut errors);
    status(crd, &mut errors);
    approval(crd, Some(old), &mut errors);
    preserve(crd, Some(old), &mut errors);
    errors
}

/// What is wrong with a status that is written by itself.
pub fn validate_status(crd: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    spec::names(crd.at("status.acceptedNames"), Path::new("status.acceptedNames"), &mut errors);
    errors
}

fn status(crd: &Value, errors: &mut Vec<FieldError>) {
    spec::names(crd.at("status.acceptedNames"), Path::new("status.acceptedNames"), errors);
    let at = Path::new("status.storedVersions");
    let stored = crd.items_at("status.storedVersions");
    if stored.is_empty() {
        errors.push(FieldError::invalid(at, Value::Null, "must have at least one stored version"));
        return;
    }
    let versions = crd.items_at("spec.versions");
    for version in versions.iter().filter(|v| v.bool_at("storage") == Some(true)) {
        let name = version.str_at("name");
        if !stored.contains(&json!(name)) {
            let detail = format!("must have the storage version {name}");
            errors.push(FieldError::invalid(at, stored.to_vec(), detail));
        }
    }
    for (i, name) in stored.iter().enumerate() {
        let name = name.as_str().unwrap_or_default();
        if !versions.iter().any(|v| v.str_at("name") == name) {
            let detail = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions \
                 until a storage migration ensures no data remains persisted in {name} and removes {name} from \
                 status.storedVersions"
            );
            errors.push(FieldError::invalid(at.index(i), name, detail));
        }
    }
}

/// How a definition in a community group is approved of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Approval {
    Invalid,
    Approved,
    Bypassed,
    Missing,
}

/// Whether a group belongs to the Kubernetes community (KEP-1111).
pub fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|g| group.strip_suffix(g).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

/// The approval of a definition, and what is to be said about it.
pub fn approval_of(crd: &Value) -> (Approval, String) {
    let text = crd.annotation(APPROVED).unwrap_or_default();
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    let is_url = text.split_once("://").is_some_and(|(scheme, rest)| {
        scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
            && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && !rest.is_empty()
            && !rest.starts_with('/')
            && !text.contains(char::is_whitespace)
    });
    if text.is_empty() {
        let why = format!("protected groups must have approval annotation \"{APPROVED}\", {see}");
        (Approval::Missing, why)
    } else if text.starts_with("unapproved") {
        (Approval::Bypassed, format!("not approved: {}", crate::text::quote(text)))
    } else if is_url {
        (Approval::Approved, format!("approved in {text}"))
    } else {
        let why = format!(
            "protected groups must have approval annotation \"{APPROVED}\" with either a URL or a reason starting with \
             \"unapproved\", {see}"
        );
        (Approval::Invalid, why)
    }
}

fn approval(crd: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    if !is_protected(crd.str_at("spec.group")) {
        return;
    }
    let (state, reason) = approval_of(crd);
    if old.is_some_and(|o| approval_of(o).0 == state) {
        return;
    }
    let annotations = Path::new("metadata.annotations");
    let at = annotations.key(APPROVED);
    match state {
        Approval::Approved | Approval::Bypassed => {}
        Approval::Missing => errors.push(FieldError::required(at, reason)),
        Approval::Invalid => {
            let value = crd.annotation(APPROVED).unwrap_or_default();
            errors.push(FieldError::invalid(at, value, reason));
        }
    }
}

fn preserve(crd: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let preserves = |c: &Value| c.bool_at("spec.preserveUnknownFields") == Some(true);
    if preserves(crd) && !old.is_some_and(preserves) {
        let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in \
                      spec.versions[*].schema instead";
        errors.push(FieldError::invalid("spec.preserveUnknownFields", true, detail));
    }
}

/// Formats that nobody checks, which a new definition, or a changed one that did not have them, is warned about.
pub fn warnings(crd: &Value, old: Option<&Value>) -> Vec<String> {
    fn unknown(schema: &Value, out: &mut Vec<String>) {
        let ty = structural::text(schema, "type");
        let format = structural::text(schema, "format");
        let types: Vec<&str> = Some(ty).filter(|t| !t.is_empty()).into_iter().collect();
        if !format.is_empty() && !super::formats::is_known(&types, format) {
            out.push(format.to_owned());
        }
        for field in ["items", "not", "additionalProperties"] {
            if let Some(below) = schema.get(field).filter(|s| s.is_object()) {
                unknown(below, out);
            }
        }
        for field in ["allOf", "anyOf", "oneOf"] {
            structural::list(schema, field).iter().for_each(|s| unknown(s, out));
        }
        structural::object(schema, "properties").into_iter().flatten().for_each(|(_, s)| unknown(s, out));
    }
    let all = |crd: &Value| {
        let mut out = Vec::new();
        for version in crd.items_at("spec.versions") {
            if let Some(schema) = version.at("schema.openAPIV3Schema") {
                unknown(schema, &mut out);
            }
        }
        out
    };
    let known = old.map(all).unwrap_or_default();
    let mut seen = Vec::new();
    for format in all(crd).into_iter().filter(|f| !known.contains(f)) {
        let text = format!("unrecognized format {}", crate::text::quote(&format));
        if !seen.contains(&text) {
            seen.push(text);
        }
    }
    seen
}

#[cfg(test)]
mod tests;
