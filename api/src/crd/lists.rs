//! `x-kubernetes-list-type`: items of sets and keys of maps are there once.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::schema::{ListType, Schema};
use crate::status::{FieldError, Path};

/// Every item that is there twice, and every item of a list map that is no object.
pub fn validate(at: Path<'_>, schema: &Schema, value: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    node(at, schema, value, &mut errors);
    errors
}

fn node(at: Path<'_>, schema: &Schema, value: &Value, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                if let Some(below) = schema.properties.get(name) {
                    node(at.child(name), below, value, errors);
                } else if let Some(below) = schema.additional_schema() {
                    node(at.key(name), below, value, errors);
                }
            }
        }
        Value::Array(items) => {
            match schema.list_type {
                Some(ListType::Set) => twice(at, items.iter().map(|i| (i.clone(), i.clone())), errors),
                Some(ListType::Map) => list_map(at, schema, items, errors),
                Some(ListType::Atomic) | None => {}
            }
            if let Some(below) = schema.items.as_deref() {
                for (i, item) in items.iter().enumerate() {
                    node(at.index(i), below, item, errors);
                }
            }
        }
        _ => {}
    }
}

fn list_map(at: Path<'_>, schema: &Schema, items: &[Value], errors: &mut Vec<FieldError>) {
    if let Some((i, item)) = items.iter().enumerate().find(|(_, v)| !v.is_null() && !v.is_object()) {
        let detail = "must be an object for an array of list-type map";
        errors.push(FieldError::invalid(at.index(i), item.clone(), detail));
        return;
    }
    let keys = items.iter().map(|item| {
        let mut key = Map::new();
        for name in &schema.list_map_keys {
            if let Some(value) = item.get(&**name) {
                key.insert((**name).to_owned(), value.clone());
            }
        }
        (json!(key), json!(key))
    });
    twice(at, keys, errors);
}

/// Blames the second appearance of each value, and no later one.
fn twice(at: Path<'_>, items: impl Iterator<Item = (Value, Value)>, errors: &mut Vec<FieldError>) {
    let (mut once, mut more) = (HashSet::new(), HashSet::new());
    for (i, (key, shown)) in items.enumerate() {
        let text = key.to_string();
        if !once.insert(text.clone()) && more.insert(text) {
            errors.push(FieldError::duplicate(at.index(i), shown));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_found() {
        let schema = Schema::parse(&json!({"type": "object", "properties": {
            "s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "m": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object"}},
            "v": {"type": "object", "additionalProperties": {"type": "array", "x-kubernetes-list-type": "set"}}}}))
        .expect("schema");
        let texts = |v: Value| -> Vec<String> {
            validate(Path::ROOT, &schema, &v).iter().map(ToString::to_string).collect()
        };
        assert_eq!(texts(json!({"s": ["a", "b", "a", "a"]})), ["s[2]: Duplicate value: \"a\""]);
        assert_eq!(
            texts(json!({"m": [{"k": "a", "x": 1}, {"k": "a"}]})),
            ["m[1]: Duplicate value: {\"k\":\"a\"}"]
        );
        assert_eq!(texts(json!({"m": [{}, {"x": 1}]})), ["m[1]: Duplicate value: {}"]);
        assert_eq!(
            texts(json!({"m": [1]})),
            ["m[0]: Invalid value: 1: must be an object for an array of list-type map"]
        );
        assert_eq!(texts(json!({"v": {"z": [1, 1]}})), ["v[z][1]: Duplicate value: 1"]);
        assert!(texts(json!({"s": ["a", "b"], "m": [{"k": "a"}, {"k": "b"}]})).is_empty());
    }
}
