//! What a definition's `openAPIV3Schema` may say, beyond being structural.

use serde_json::Value;

use super::Strictness;
use crate::crd::field_path;
use crate::crd::schema::{Schema, is_set};
use crate::crd::structural::{flag, list, object, text};
use crate::crd::{MAX_DEPTH, defaults, rules, structural};
use crate::status::{FieldError, Path};

/// Types of OpenAPI v3, as messages list them.
const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// Fields that the root may have when the status is a subresource, so that the status can be validated by itself.
const AT_ROOT: [(&str, &str); 22] = [
    ("description", "Description"),
    ("type", "Type"),
    ("format", "Format"),
    ("title", "Title"),
    ("maximum", "Maximum"),
    ("exclusiveMaximum", "ExclusiveMaximum"),
    ("minimum", "Minimum"),
    ("exclusiveMinimum", "ExclusiveMinimum"),
    ("maxLength", "MaxLength"),
    ("minLength", "MinLength"),
    ("pattern", "Pattern"),
    ("maxItems", "MaxItems"),
    ("minItems", "MinItems"),
    ("uniqueItems", "UniqueItems"),
    ("multipleOf", "MultipleOf"),
    ("required", "Required"),
    ("items", "Items"),
    ("properties", "Properties"),
    ("externalDocs", "ExternalDocs"),
    ("example", "Example"),
    ("x-kubernetes-preserve-unknown-fields", "XPreserveUnknownFields"),
    ("x-kubernetes-validations", "XValidations"),
];

/// Why defaults are refused below a node; None where they are allowed.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    no_defaults: Option<&'a str>,
    inside_meta: bool,
    root: bool,
}

/// What is wrong with the schema at `at`. `old` is the same version's schema before an update.
pub fn validate(
    at: Path<'_>,
    schema: &Value,
    status: bool,
    strict: &Strictness,
    old: Option<&Value>,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let here = at.child("openAPIV3Schema");
    if status {
        check_root(here, schema, &mut errors);
    }
    if flag(schema, "nullable") {
        errors.push(FieldError::forbidden(here.child("nullable"), "nullable cannot be true at the root"));
    }
    let mut unreadable = None;
    let mut parsed = None;
    if strict.structural {
        match Schema::parse(schema) {
            Err(e) => unreadable = Some(FieldError::invalid(here, "", e.to_string())),
            Ok(read) => {
                let found = structural::validate(here, schema);
                if found.is_empty() {
                    let wrong = defaults::validate(here, &read, strict.pruned_defaults);
                    if wrong.is_empty() {
                        parsed = Some(read);
                    }
                    errors.extend(wrong);
                } else {
                    errors.extend(found);
                }
            }
        }
    }
    let place = Place { no_defaults: None, inside_meta: false, root: true };
    node(here, schema, place, strict, 0, &mut errors);
    if errors.is_empty() {
        errors.extend(unreadable);
    }
    if errors.is_empty()
        && let Some(parsed) = &parsed
    {
        let old = old.and_then(|o| Schema::parse(o).ok());
        errors.extend(rules::validate_definition(here, parsed, old.as_ref()));
    }
    errors
}

fn check_root(at: Path<'_>, schema: &Value, errors: &mut Vec<FieldError>) {
    let ty = text(schema, "type");
    if !ty.is_empty() && ty != "object" {
        let detail = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        errors.push(FieldError::invalid(at.child("type"), ty, detail));
        return;
    }
    let allowed = |field: &str| AT_ROOT.iter().any(|(f, _)| *f == field);
    let other = schema.as_object().into_iter().flatten().any(|(f, v)| is_set(v) && !allowed(f));
    if other {
        let names: Vec<&str> = AT_ROOT.iter().map(|(_, name)| *name).collect();
        let detail = format!(
            "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
            names.join(" ")
        );
        errors.push(FieldError::invalid(at, schema.clone(), detail));
    }
}

fn node(
    at: Path<'_>,
    s: &Value,
    place: Place<'_>,
    strict: &Strictness,
    depth: usize,
    errors: &mut Vec<FieldError>,
) {
    if depth > MAX_DEPTH {
        return;
    }
    standard(at, s, place, strict, errors);
    if flag(s, "uniqueItems") {
        let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(FieldError::forbidden(at.child("uniqueItems"), detail));
    }
    let below = Place { root: false, ..place };
    if let Some(additional) = s.get("additionalProperties").filter(|a| !a.is_null()) {
        let here = at.child("additionalProperties");
        if object(s, "properties").is_some_and(|p| !p.is_empty()) && *additional != Value::Bool(true) {
            let detail = "additionalProperties and properties are mutual exclusive";
            errors.push(FieldError::forbidden(here, detail));
        }
        let reason = "inside additionalProperties applying to object metadata";
        let no_defaults = if place.inside_meta { Some(reason) } else { place.no_defaults };
        if additional.is_object() {
            node(here, additional, Place { no_defaults, ..below }, strict, depth + 1, errors);
        }
    }
    let properties = at.child("properties");
    for (name, property) in object(s, "properties").into_iter().flatten() {
        let mut here = below;
        let reason = format!("in top-level {name}");
        if (place.root || flag(s, "x-kubernetes-embedded-resource"))
            && matches!(name.as_str(), "metadata" | "kind" | "apiVersion")
        {
            here.inside_meta = true;
            if place.root {
                here.no_defaults = Some(&reason);
            }
        }
        node(properties.key(name), property, here, strict, depth + 1, errors);
    }
    if let Some(not) = s.get("not").filter(|n| n.is_object()) {
        node(at.child("not"), not, below, strict, depth + 1, errors);
    }
    for junctor in ["allOf", "oneOf", "anyOf"] {
        let here = at.child(junctor);
        for (i, schema) in list(s, junctor).iter().enumerate() {
            node(here.index(i), schema, below, strict, depth + 1, errors);
        }
    }
    let here = at.child("definitions");
    for (name, schema) in object(s, "definitions").into_iter().flatten() {
        node(here.key(name), schema, below, strict, depth + 1, errors);
    }
    let here = at.child("items");
    match s.get("items") {
        Some(items @ Value::Object(_)) => node(here, items, below, strict, depth + 1, errors),
        Some(Value::Array(all)) => {
            for (i, items) in all.iter().enumerate() {
                node(here.index(i), items, below, strict, depth + 1, errors);
            }
        }
        _ => {}
    }
    extensions(at, s, strict, errors);
    validation_rules(at, s, errors);
}

/// What structural schemas leave out of OpenAPI.
fn standard(at: Path<'_>, s: &Value, place: Place<'_>, strict: &Strictness, errors: &mut Vec<FieldError>) {
    let ty = text(s, "type");
    if strict.types && !ty.is_empty() && !TYPES.contains(&ty) {
        errors.push(FieldError::not_supported(at.child("type"), ty, &TYPES));
    }
    if let Some(reason) = place.no_defaults
        && s.get("default").is_some_and(|d| !d.is_null())
    {
        errors.push(FieldError::forbidden(at.child("default"), format!("must not be set {reason}")));
    }
    for (field, detail) in [
        ("id", "id is not supported"),
        ("additionalItems", "additionalItems is not supported"),
        ("patternProperties", "patternProperties is not supported"),
        ("definitions", "definitions is not supported"),
        ("dependencies", "dependencies is not supported"),
        ("$ref", "$ref is not supported"),
    ] {
        let there = match (field, s.get(field)) {
            (_, None | Some(Value::Null)) => false,
            ("additionalItems" | "dependencies" | "$ref", Some(_)) => true,
            (_, Some(value)) => is_set(value),
        };
        if there {
            errors.push(FieldError::forbidden(at.child(field), detail));
        }
    }
    if ty == "null" {
        let detail = "type cannot be set to null, use nullable as an alternative";
        errors.push(FieldError::forbidden(at.child("type"), detail));
    }
    if s.get("items").and_then(Value::as_array).is_some_and(|a| !a.is_empty()) {
        let detail = "items must be a schema object and not an array";
        errors.push(FieldError::forbidden(at.child("items"), detail));
    }
    if place.inside_meta && flag(s, "x-kubernetes-embedded-resource") {
        let here = at.child("x-kubernetes-embedded-resource");
        errors.push(FieldError::forbidden(here, "must not be used inside of resource meta"));
    }
}

/// An error about a value that is not what an extension needs: `Required` when it is absent.
fn needs(at: Path<'_>, value: &str, detail: &str) -> FieldError {
    if value.is_empty() { FieldError::required(at, detail) } else { FieldError::invalid(at, value, detail) }
}

fn extensions(at: Path<'_>, s: &Value, strict: &Strictness, errors: &mut Vec<FieldError>) {
    let (ty, list_type, map_type) =
        (text(s, "type"), text(s, "x-kubernetes-list-type"), text(s, "x-kubernetes-map-type"));
    if s.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        let here = at.child("x-kubernetes-preserve-unknown-fields");
        errors.push(FieldError::invalid(here, false, "must be true or undefined"));
    }
    if !map_type.is_empty() && ty != "object" {
        errors.push(needs(at.child("type"), ty, "must be object if x-kubernetes-map-type is specified"));
    }
    if !matches!(map_type, "" | "atomic" | "granular") {
        let here = at.child("x-kubernetes-map-type");
        errors.push(FieldError::not_supported(here, map_type, &["atomic", "granular"]));
    }
    let items = s.get("items").filter(|i| !i.is_null());
    let item = items.filter(|i| i.is_object());
    let here = at.child("items");
    if !list_type.is_empty() && ty != "array" {
        errors.push(needs(at.child("type"), ty, "must be array if x-kubernetes-list-type is specified"));
    } else if strict.atomic_sets
        && list_type == "set"
        && let Some(item) = item
    {
        let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let (own_list, own_map) = (text(item, "x-kubernetes-list-type"), text(item, "x-kubernetes-map-type"));
        let value = |t: &str| if t.is_empty() { Value::Null } else { Value::from(t) };
        match text(item, "type") {
            "array" if !matches!(own_list, "" | "atomic") => {
                let here = here.child("x-kubernetes-list-type");
                errors.push(FieldError::invalid(here, own_list, detail));
            }
            "object" if own_map != "atomic" => {
                let here = here.child("x-kubernetes-map-type");
                errors.push(FieldError::invalid(here, value(own_list), detail));
            }
            _ => {}
        }
    }
    if !matches!(list_type, "" | "atomic" | "set" | "map") {
        let here = at.child("x-kubernetes-list-type");
        errors.push(FieldError::not_supported(here, list_type, &["atomic", "set", "map"]));
    }
    let keys = list(s, "x-kubernetes-list-map-keys");
    if !keys.is_empty() && list_type != "map" {
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        errors.push(needs(at.child("x-kubernetes-list-type"), list_type, detail));
    }
    if list_type == "map" {
        list_map(at, s, keys, items, errors);
    }
    if strict.list_keys {
        errors.extend(list_items(at, s));
    }
}

fn list_map(at: Path<'_>, s: &Value, keys: &[Value], items: Option<&Value>, errors: &mut Vec<FieldError>) {
    let (keys_at, items_at) = (at.child("x-kubernetes-list-map-keys"), at.child("items"));
    if keys.is_empty() {
        errors.push(FieldError::required(keys_at, "must not be empty if x-kubernetes-list-type is map"));
    }
    let Some(items) = items else {
        let detail = "must have a schema if x-kubernetes-list-type is map";
        errors.push(FieldError::required(items_at, detail));
        return;
    };
    if !items.is_object() {
        let detail = "must only have a single schema if x-kubernetes-list-type is map";
        errors.push(FieldError::invalid(items_at, items.clone(), detail));
        return;
    }
    let ty = text(items, "type");
    if ty != "object" {
        let detail = "must be object if parent array's x-kubernetes-list-type is map";
        errors.push(FieldError::invalid(items_at.child("type"), ty, detail));
        return;
    }
    let all = || Value::Array(list(s, "x-kubernetes-list-map-keys").to_vec());
    let below = items_at.child("properties");
    for (i, key) in keys.iter().enumerate() {
        let name = key.as_str().unwrap_or_default();
        match object(items, "properties").and_then(|p| p.get(name)) {
            Some(property) if matches!(text(property, "type"), "array" | "object") => {
                let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                let here = below.key(name);
                errors.push(FieldError::invalid(here.child("type"), ty, detail));
            }
            Some(_) => {}
            None => {
                errors.push(FieldError::invalid(
                    keys_at,
                    all(),
                    "entries must all be names of item properties",
                ));
            }
        }
        if keys[..i].contains(key) {
            errors.push(FieldError::invalid(keys_at, all(), "must not contain duplicate entries"));
        }
    }
}

/// Items of sets and maps are no nulls, and keys of maps are always there.
pub(super) fn list_items(at: Path<'_>, s: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let list_type = text(s, "x-kubernetes-list-type");
    let Some(items) = s.get("items").filter(|i| i.is_object()) else { return errors };
    if !matches!(list_type, "set" | "map") {
        return errors;
    }
    let here = at.child("items");
    if flag(items, "nullable") {
        let detail = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        errors.push(FieldError::forbidden(here.child("nullable"), detail));
    }
    if list_type == "set" {
        return errors;
    }
    let below = here.child("properties");
    for key in list(s, "x-kubernetes-list-map-keys").iter().filter_map(Value::as_str) {
        let Some(property) = object(items, "properties").and_then(|p| p.get(key)) else { continue };
        let here = below.key(key);
        let required = list(items, "required").iter().any(|r| r.as_str() == Some(key));
        if !required && property.get("default").is_none_or(Value::is_null) {
            let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a \
                          required property";
            errors.push(FieldError::required(here.child("default"), detail));
        }
        if flag(property, "nullable") {
            let detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(FieldError::forbidden(here.child("nullable"), detail));
        }
    }
    errors
}

/// The form of `x-kubernetes-validations`; what the expressions mean is looked at elsewhere.
fn validation_rules(at: Path<'_>, s: &Value, errors: &mut Vec<FieldError>) {
    const REASONS: [&str; 4] =
        ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
    let all = at.child("x-kubernetes-validations");
    let breaks = |t: &str| t.contains(['\n', '\r']);
    let schema = Schema::parse(s).ok();
    for (i, rule) in list(s, "x-kubernetes-validations").iter().enumerate() {
        let at = all.index(i);
        let (expression, message) = (text(rule, "rule").trim(), text(rule, "message"));
        let (message_expression, field_path) = (text(rule, "messageExpression"), text(rule, "fieldPath"));
        if expression.is_empty() {
            errors.push(FieldError::required(at.child("rule"), "rule is not specified"));
        } else if !message.is_empty() && message.trim().is_empty() {
            errors.push(FieldError::invalid(at.child("message"), message, "must be non-empty if specified"));
        } else if breaks(message.trim()) {
            errors.push(FieldError::invalid(at.child("message"), message, "must not contain line breaks"));
        } else if breaks(expression) && message.trim().is_empty() {
            let detail = "message must be specified if rule contains line breaks";
            errors.push(FieldError::required(at.child("message"), detail));
        }
        if !message_expression.is_empty() && message_expression.trim().is_empty() {
            let detail = "messageExpression must be non-empty if specified";
            errors.push(FieldError::required(at.child("messageExpression"), detail));
        }
        let reason = text(rule, "reason");
        if !reason.is_empty() && !REASONS.contains(&reason) {
            errors.push(FieldError::not_supported(at.child("reason"), reason, &REASONS));
        }
        if field_path.is_empty() {
            continue;
        }
        let here = at.child("fieldPath");
        if field_path.trim().is_empty() {
            errors.push(FieldError::invalid(here, field_path, "must be non-empty if specified"));
        }
        if breaks(field_path) {
            errors.push(FieldError::invalid(here, field_path, "must not contain line breaks"));
        }
        if schema.as_ref().is_some_and(|s| field_path::resolve(field_path, s, true).is_err()) {
            errors.push(FieldError::invalid(here, field_path, "must be a valid path"));
        }
    }
}
