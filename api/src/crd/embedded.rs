//! `apiVersion`, `kind` and `metadata` of an object and of the resources embedded in it.

use serde_json::Value;

use super::prune::{Step, position};
use super::schema::Schema;
use crate::decode::{self, Dropped};
use crate::names;
use crate::object::split_api_version;
use crate::status::{FieldError, Path};
use crate::validation::embedded_metadata;

/// What to do with metadata of the wrong type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// It is an error.
    Refuse,
    /// It is taken away.
    Drop,
}

/// Gives metadata its canonical form and takes unknown fields out of it; answers the positions of those, sorted.
///
/// # Errors
/// The first field of the wrong type.
pub fn coerce(
    value: &mut Value,
    schema: &Schema,
    resource: bool,
    malformed: Malformed,
) -> Result<Vec<String>, FieldError> {
    let mut dropped = Vec::new();
    walk(value, schema, resource, malformed, &mut Vec::new(), &mut dropped)?;
    dropped.sort();
    Ok(dropped)
}

fn walk(
    value: &mut Value,
    schema: &Schema,
    resource: bool,
    malformed: Malformed,
    path: &mut Vec<Step<'_>>,
    dropped: &mut Vec<String>,
) -> Result<(), FieldError> {
    match value {
        Value::Object(map) => {
            if resource || schema.embedded_resource {
                for field in ["apiVersion", "kind"] {
                    match map.get(field) {
                        None | Some(Value::String(_)) => {}
                        Some(_) if malformed == Malformed::Drop => {
                            map.remove(field);
                        }
                        Some(other) => {
                            let at = position(path, field);
                            return Err(FieldError::invalid(at, other.clone(), "must be a string"));
                        }
                    }
                }
                if let Some(meta) = map.get_mut("metadata")
                    && let Err(why) = metadata(meta, &position(path, "metadata"), malformed, dropped)
                {
                    return Err(FieldError::invalid(position(path, "metadata"), meta.clone(), why));
                }
            }
            // Names are borrowed for the path while values change.
            let names: Vec<String> = map.keys().cloned().collect();
            for name in &names {
                let Some(below) = schema.field(name) else { continue };
                let Some(value) = map.get_mut(name) else { continue };
                let mut path: Vec<Step<'_>> = path.clone();
                path.push(Step::Field(name));
                walk(value, below, false, malformed, &mut path, dropped)?;
            }
        }
        Value::Array(items) => {
            let Some(below) = schema.items.as_deref() else { return Ok(()) };
            for (i, item) in items.iter_mut().enumerate() {
                path.push(Step::Index(i));
                walk(item, below, false, malformed, path, dropped)?;
                path.pop();
            }
        }
        _ => {}
    }
    Ok(())
}

/// Makes a value a well-typed `ObjectMeta`.
fn metadata(
    meta: &mut Value,
    at: &str,
    malformed: Malformed,
    dropped: &mut Vec<String>,
) -> Result<(), String> {
    let Some(ty) = crate::schema::find("meta.v1.ObjectMeta") else { return Ok(()) };
    if meta.is_null() {
        *meta = Value::Object(serde_json::Map::new());
    }
    let mut whole = meta.clone();
    let mut unknown = Dropped::default();
    match decode::normalize(ty, &mut whole, &mut unknown) {
        Ok(()) => *meta = whole,
        Err(e) if malformed == Malformed::Refuse => return Err(e.0),
        Err(_) => {
            // Field by field: what cannot be read is left out.
            let mut kept = serde_json::Map::new();
            for (name, value) in meta.as_object().into_iter().flatten() {
                let mut one = Value::Object([(name.clone(), value.clone())].into_iter().collect());
                if decode::normalize(ty, &mut one, &mut unknown).is_ok()
                    && let Value::Object(one) = one
                {
                    kept.extend(one);
                }
            }
            *meta = Value::Object(kept);
        }
    }
    dropped.extend(unknown.messages.iter().map(|m| {
        let field = m.trim_start_matches("unknown field ").trim_matches('"');
        format!("{at}.{field}")
    }));
    Ok(())
}

/// What is wrong with `apiVersion`, `kind` and `metadata`.
pub fn validate(at: Path<'_>, value: &Value, schema: &Schema, resource: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    check(at, value, schema, resource, &mut errors);
    errors
}

fn check(at: Path<'_>, value: &Value, schema: &Schema, resource: bool, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(map) => {
            if resource || schema.embedded_resource {
                check_type(at, map, errors);
                if let Some(meta) = map.get("metadata") {
                    errors.extend(embedded_metadata(at.child("metadata"), meta));
                }
            }
            for (name, value) in map {
                if let Some(below) = schema.properties.get(name) {
                    check(at.child(name), value, below, false, errors);
                } else if let Some(below) = schema.additional_schema() {
                    check(at.key(name), value, below, false, errors);
                }
            }
        }
        Value::Array(items) => {
            let Some(below) = schema.items.as_deref() else { return };
            for (i, item) in items.iter().enumerate() {
                check(at.index(i), item, below, false, errors);
            }
        }
        _ => {}
    }
}

fn check_type(at: Path<'_>, map: &serde_json::Map<String, Value>, errors: &mut Vec<FieldError>) {
    for field in ["apiVersion", "kind"] {
        if !map.contains_key(field) {
            errors.push(FieldError::required(at.child(field), ""));
        }
    }
    for field in ["apiVersion", "kind"] {
        let here = at.child(field);
        match map.get(field) {
            None => {}
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(FieldError::invalid(here, "", "must not be empty"));
            }
            Some(Value::String(text)) if field == "kind" => {
                let wrong = names::dns1035_label(&text.to_lowercase());
                if !wrong.is_empty() {
                    let detail =
                        format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
                    errors.push(FieldError::invalid(here, text.as_str(), detail));
                }
            }
            Some(Value::String(text))
                if text.matches('/').count() > 1 || split_api_version(text).1.is_empty() =>
            {
                let detail = format!("unexpected GroupVersion string: {text}");
                errors.push(FieldError::invalid(here, text.as_str(), detail));
            }
            Some(Value::String(_)) => {}
            Some(other) => errors.push(FieldError::invalid(here, other.clone(), "must be a string")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Schema {
        Schema::parse(&json!({"type": "object", "properties": {"e": {"type": "object",
            "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}}}))
        .expect("schema")
    }

    #[test]
    fn metadata_is_coerced() {
        let mut object = json!({"metadata": {"name": "a", "odd": 1, "labels": {}},
            "e": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "odd": 1}, "any": 1}});
        let dropped = coerce(&mut object, &schema(), true, Malformed::Refuse).expect("coerced");
        assert_eq!(dropped, ["e.metadata.odd", "metadata.odd"]);
        assert_eq!(
            object,
            json!({"metadata": {"name": "a"},
            "e": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "any": 1}})
        );
        let mut bad = json!({"metadata": {"name": 1, "generateName": "g"}});
        assert!(coerce(&mut bad.clone(), &schema(), true, Malformed::Refuse).is_err());
        coerce(&mut bad, &schema(), true, Malformed::Drop).expect("dropped");
        assert_eq!(bad, json!({"metadata": {"generateName": "g"}}));
    }

    #[test]
    fn embedded_resources_are_checked() {
        let texts = |v: Value| -> Vec<String> {
            validate(Path::ROOT, &v, &schema(), false).iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            texts(json!({"e": {"metadata": {"name": "Any Name"}}})),
            ["e.apiVersion: Required value", "e.kind: Required value"]
        );
        assert_eq!(texts(json!({"e": {"apiVersion": "a/b/c", "kind": ""}})).len(), 2);
        assert!(texts(json!({"e": {"apiVersion": "apps/v1", "kind": "Deployment"}})).is_empty());
    }
}
