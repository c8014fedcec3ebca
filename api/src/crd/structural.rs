//! Whether a schema is structural (KEP-1693): every field's type is told outside of value validations.
//!
//! Works on `JSONSchemaProps` as they are in the definition, because an error names what is there.

use serde_json::{Map, Value, json};

use super::pattern;
use super::schema::is_set;
use crate::object::ObjectExt as _;
use crate::status::{FieldError, Path};

/// Where a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Every rule of structural schemas that a schema breaks, sorted by text.
pub fn validate(at: Path<'_>, schema: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    invariants(at, schema, Level::Root, &mut errors);
    complete(schema, schema, at, at, &mut errors);
    errors.sort_by_cached_key(ToString::to_string);
    errors
}

pub(super) fn flag(schema: &Value, field: &str) -> bool {
    schema.get(field).and_then(Value::as_bool).unwrap_or_default()
}

pub(super) fn object<'v>(schema: &'v Value, field: &str) -> Option<&'v Map<String, Value>> {
    schema.get(field).and_then(Value::as_object)
}

pub(super) fn text<'v>(schema: &'v Value, field: &str) -> &'v str {
    schema.get(field).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn list<'v>(schema: &'v Value, field: &str) -> &'v [Value] {
    schema.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn child<'v>(schema: &'v Value, field: &str) -> Option<&'v Value> {
    schema.get(field).filter(|v| v.is_object())
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object(schema, "properties").into_iter().flatten()
}

fn invariants(at: Path<'_>, s: &Value, level: Level, errors: &mut Vec<FieldError>) {
    let ty = text(s, "type");
    let (embedded, preserves, int_or_string) = (
        flag(s, "x-kubernetes-embedded-resource"),
        flag(s, "x-kubernetes-preserve-unknown-fields"),
        flag(s, "x-kubernetes-int-or-string"),
    );
    let items = child(s, "items");
    if ty == "array" && items.is_none() {
        errors.push(FieldError::required(at.child("items"), "must be specified"));
    }
    if let Some(items) = items {
        invariants(at.child("items"), items, Level::Item, errors);
    }
    let below = at.child("properties");
    for (name, property) in properties(s) {
        invariants(below.key(name), property, Level::Field, errors);
    }
    let additional = s.get("additionalProperties").filter(|a| !a.is_null());
    if let Some(additional) = additional {
        let at = at.child("additionalProperties");
        if level == Level::Root {
            errors.push(FieldError::forbidden(at, "must not be used at the root"));
        }
        if additional.is_object() {
            invariants(at, additional, Level::Field, errors);
        }
    }
    if int_or_string && preserves {
        let at = at.child("x-kubernetes-preserve-unknown-fields");
        errors.push(FieldError::invalid(at, true, "must be false if x-kubernetes-int-or-string is true"));
    }
    if int_or_string && embedded {
        let at = at.child("x-kubernetes-embedded-resource");
        errors.push(FieldError::invalid(at, true, "must be false if x-kubernetes-int-or-string is true"));
    }
    let first_any_of = list(s, "allOf").first().is_some_and(is_int_or_string_pattern);
    value_validation(at, s, is_int_or_string_pattern(s), first_any_of, errors);
    if embedded && ty != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(if ty.is_empty() {
            FieldError::required(at.child("type"), detail)
        } else {
            FieldError::invalid(at.child("type"), ty, detail)
        });
    } else if ty.is_empty() && !int_or_string && !preserves {
        let detail = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(FieldError::required(at.child("type"), detail));
    }
    if embedded && additional.is_some() {
        let detail = "must not be used if x-kubernetes-embedded-resource is set";
        errors.push(FieldError::forbidden(at.child("additionalProperties"), detail));
    }
    if level == Level::Root && !ty.is_empty() && ty != "object" {
        errors.push(FieldError::invalid(at.child("type"), ty, "must be object at the root"));
    }
    let own_metadata = level == Level::Root || embedded;
    for field in ["kind", "apiVersion"] {
        if let Some(property) = object(s, "properties").and_then(|p| p.get(field))
            && own_metadata
            && text(property, "type") != "string"
        {
            let here = below.key(field);
            errors.push(FieldError::invalid(here.child("type"), text(property, "type"), "must be string"));
        }
    }
    if let Some(metadata) = object(s, "properties").and_then(|p| p.get("metadata")) {
        let here = below.key("metadata");
        if own_metadata && text(metadata, "type") != "object" {
            errors.push(FieldError::invalid(here.child("type"), text(metadata, "type"), "must be object"));
        }
        if level == Level::Root && !restricts_names_only(metadata) {
            let detail = "must not specify anything other than name and generateName, but metadata is implicitly \
                          specified";
            errors.push(FieldError::forbidden(here, detail));
        }
    }
    if embedded && !preserves && object(s, "properties").is_none_or(Map::is_empty) {
        let detail = "must not be empty if x-kubernetes-embedded-resource is true without \
                      x-kubernetes-preserve-unknown-fields";
        errors.push(FieldError::required(at.child("properties"), detail));
    }
}

/// Whether a schema of metadata speaks of `name` and `generateName` alone.
fn restricts_names_only(metadata: &Value) -> bool {
    metadata.as_object().into_iter().flatten().all(|(field, value)| match field.as_str() {
        "type" | "default" => true,
        "properties" => properties(metadata).all(|(name, _)| name == "name" || name == "generateName"),
        _ => !is_set(value),
    })
}

/// The way to say "an integer or a string" besides the extension.
fn is_int_or_string_pattern(schema: &Value) -> bool {
    list(schema, "anyOf") == [json!({"type": "integer"}), json!({"type": "string"})]
}

fn value_validation(
    at: Path<'_>,
    v: &Value,
    skip_any_of: bool,
    skip_first_any_of: bool,
    errors: &mut Vec<FieldError>,
) {
    if !skip_any_of {
        let below = at.child("anyOf");
        for (i, schema) in list(v, "anyOf").iter().enumerate() {
            nested(below.index(i), schema, false, errors);
        }
    }
    let below = at.child("allOf");
    for (i, schema) in list(v, "allOf").iter().enumerate() {
        nested(below.index(i), schema, skip_first_any_of && i == 0, errors);
    }
    let below = at.child("oneOf");
    for (i, schema) in list(v, "oneOf").iter().enumerate() {
        nested(below.index(i), schema, false, errors);
    }
    if let Some(not) = child(v, "not") {
        nested(at.child("not"), not, false, errors);
    }
    let expression = text(v, "pattern");
    if !expression.is_empty()
        && let Err(why) = pattern::compile(expression)
    {
        let detail = format!("must be a valid regular expression, but isn't: {why}");
        errors.push(FieldError::invalid(at.child("pattern"), expression, detail));
    }
}

/// Fields that a value validation must leave to the structure, and what Kubernetes says of each.
const NOT_NESTED: [(&str, &str); 11] = [
    ("type", "must be empty to be structural"),
    ("default", "must be undefined to be structural"),
    ("title", "must be empty to be structural"),
    ("description", "must be empty to be structural"),
    ("nullable", "must be false to be structural"),
    ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
    ("x-kubernetes-embedded-resource", "must be false to be structural"),
    ("x-kubernetes-int-or-string", "must be false to be structural"),
    ("x-kubernetes-list-map-keys", "must be empty to be structural"),
    ("x-kubernetes-list-type", "must be undefined to be structural"),
    ("x-kubernetes-map-type", "must be undefined to be structural"),
];

fn nested(at: Path<'_>, v: &Value, skip_any_of: bool, errors: &mut Vec<FieldError>) {
    value_validation(at, v, skip_any_of, false, errors);
    if let Some(items) = child(v, "items") {
        nested(at.child("items"), items, false, errors);
    }
    let below = at.child("properties");
    for (name, property) in properties(v) {
        nested(below.key(name), property, false, errors);
    }
    for (field, detail) in NOT_NESTED {
        let there = match v.get(field) {
            Some(value) if field == "default" => !value.is_null(),
            Some(value) => is_set(value),
            None => false,
        };
        if there {
            errors.push(FieldError::forbidden(at.child(field), detail));
        }
    }
    if v.get("additionalProperties").is_some_and(|a| a.is_object() || *a == json!(true)) {
        errors.push(FieldError::forbidden(
            at.child("additionalProperties"),
            "must be undefined to be structural",
        ));
    }
    if !list(v, "x-kubernetes-validations").is_empty() {
        let at = at.child("x-kubernetes-validations");
        errors.push(FieldError::forbidden(at, "must be empty to be structural"));
    }
    if object(v, "properties").is_some_and(|p| p.contains_key("metadata")) {
        let detail = "must not be specified in a nested context";
        errors.push(FieldError::forbidden(below.key("metadata"), detail));
    }
}

/// Every field that a value validation speaks of has to be specified in the structure `s`.
fn complete(v: &Value, s: &Value, s_at: Path<'_>, v_at: Path<'_>, errors: &mut Vec<FieldError>) {
    if let Some(not) = child(v, "not") {
        nested_complete(not, Some(s), s_at, v_at.child("not"), errors);
    }
    for junctor in ["allOf", "anyOf", "oneOf"] {
        let below = v_at.child(junctor);
        for (i, schema) in list(v, junctor).iter().enumerate() {
            nested_complete(schema, Some(s), s_at, below.index(i), errors);
        }
    }
}

fn nested_complete(
    v: &Value,
    s: Option<&Value>,
    s_at: Path<'_>,
    v_at: Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    let Some(s) = s else {
        errors.push(FieldError::required(s_at, format!("because it is defined in {v_at}")));
        return;
    };
    complete(v, s, s_at, v_at, errors);
    if let Some(items) = child(v, "items") {
        nested_complete(items, child(s, "items"), s_at.child("items"), v_at.child("items"), errors);
    }
    let (s_below, v_below) = (s_at.child("properties"), v_at.child("properties"));
    for (name, property) in properties(v) {
        let structure = object(s, "properties").and_then(|p| p.get(name));
        nested_complete(property, structure, s_below.key(name), v_below.key(name), errors);
    }
}

/// A field of `spec.versions`, as text: what the sentences of conditions begin with.
pub fn of_definition(crd: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if crd.bool_at("spec.preserveUnknownFields") == Some(true) {
        errors.push(FieldError::invalid("spec.preserveUnknownFields", true, "must be false"));
    }
    let versions = Path::new("spec.versions");
    for (i, version) in crd.items_at("spec.versions").iter().enumerate() {
        let at = versions.index(i);
        if let Some(schema) = version.at("schema.openAPIV3Schema") {
            errors.extend(validate(at.child("schema.openAPIV3Schema"), schema));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(schema: &Value) -> Vec<String> {
        validate(Path::new("s"), schema).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn structural_schemas_pass() {
        for schema in [
            json!({"type": "object"}),
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
            json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"name": {"type": "string", "pattern": "^a"}}},
                "a": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                "b": {"x-kubernetes-int-or-string": true, "allOf": [{"anyOf": [{"type": "integer"}, {"type": "string"}]}, {"maximum": 3}]},
                "c": {"type": "object", "properties": {"x": {"type": "string"}}, "oneOf": [{"required": ["x"], "properties": {"x": {"minLength": 1}}}]}}}),
        ] {
            assert_eq!(texts(&schema), Vec::<String>::new(), "{schema}");
        }
    }

    #[test]
    fn what_breaks_a_rule_is_named() {
        for (schema, want) in [
            (json!({}), vec!["s.type: Required value: must not be empty at the root"]),
            (
                json!({"type": "array", "items": {"type": "string"}}),
                vec!["s.type: Invalid value: \"array\": must be object at the root"],
            ),
            (
                json!({"type": "object", "properties": {"a": {}}}),
                vec!["s.properties[a].type: Required value: must not be empty for specified object fields"],
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "array"}}}),
                vec!["s.properties[a].items: Required value: must be specified"],
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "array", "items": {}}}}),
                vec![
                    "s.properties[a].items.type: Required value: must not be empty for specified array items",
                ],
            ),
            (
                json!({"type": "object", "additionalProperties": {"type": "string"}}),
                vec!["s.additionalProperties: Forbidden: must not be used at the root"],
            ),
            (
                json!({"type": "object", "anyOf": [{"type": "object", "description": "x"}]}),
                vec![
                    "s.anyOf[0].description: Forbidden: must be empty to be structural",
                    "s.anyOf[0].type: Forbidden: must be empty to be structural",
                ],
            ),
            (
                json!({"type": "object", "not": {"properties": {"a": {"minimum": 1}, "metadata": {}}}}),
                vec![
                    "s.not.properties[metadata]: Forbidden: must not be specified in a nested context",
                    "s.properties[a]: Required value: because it is defined in s.not.properties[a]",
                    "s.properties[metadata]: Required value: because it is defined in s.not.properties[metadata]",
                ],
            ),
            (
                json!({"type": "object", "properties": {"e": {"type": "object", "x-kubernetes-embedded-resource": true}}}),
                vec![
                    "s.properties[e].properties: Required value: must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
                ],
            ),
            (
                json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
                vec![
                    "s.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified",
                ],
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "["}}}),
                vec![
                    "s.properties[a].pattern: Invalid value: \"[\": must be a valid regular expression, but isn't: error parsing regexp: missing closing ]: `[`",
                ],
            ),
        ] {
            assert_eq!(texts(&schema), want, "{schema}");
        }
    }
}
