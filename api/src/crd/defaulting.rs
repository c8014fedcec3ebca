//! Defaulting: absent fields become what the schema says, and nulls that are no values vanish (KEP-575).

use serde_json::Value;

use super::schema::Schema;

/// Fills in defaults and takes out nulls where null is no value.
pub fn apply(value: &mut Value, schema: &Schema) {
    drop_nulls(value, Some(schema));
    fill(value, schema);
}

/// Whether [`apply`] has anything to do for any object but one with nulls.
pub fn has_defaults(schema: &Schema) -> bool {
    schema.any(&mut |s| s.default.is_some())
}

/// Removes nulls of fields that may not be null and have no default. Those with one are left for [`fill`].
fn drop_nulls(value: &mut Value, schema: Option<&Schema>) {
    match value {
        Value::Object(map) => {
            map.retain(|name, value| {
                let below = schema.and_then(|s| s.field(name));
                !(value.is_null() && below.is_some_and(|s| !s.nullable && s.default.is_none()))
            });
            for (name, value) in map.iter_mut() {
                drop_nulls(value, schema.and_then(|s| s.field(name)));
            }
        }
        Value::Array(items) => {
            let below = schema.and_then(|s| s.items.as_deref());
            items.iter_mut().for_each(|item| drop_nulls(item, below));
        }
        _ => {}
    }
}

fn fill(value: &mut Value, schema: &Schema) {
    let wanting = |value: &Value, s: &Schema| value.is_null() && !s.nullable;
    match value {
        Value::Object(map) => {
            for (name, below) in schema.properties.iter() {
                if let Some(default) = &below.default
                    && map.get(name).is_none_or(|v| wanting(v, below))
                {
                    map.insert(name.to_owned(), (**default).clone());
                }
            }
            for (name, value) in map.iter_mut() {
                if let Some(below) = schema.field(name) {
                    if wanting(value, below)
                        && let Some(default) = &below.default
                    {
                        *value = (**default).clone();
                    }
                    fill(value, below);
                }
            }
        }
        Value::Array(items) => {
            let Some(below) = schema.items.as_deref() else { return };
            for item in items {
                if wanting(item, below)
                    && let Some(default) = &below.default
                {
                    *item = (**default).clone();
                }
                fill(item, below);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_and_nulls() {
        let schema = Schema::parse(
            &json!({"type": "object", "properties": {"spec": {"type": "object", "default": {"a": 1},
            "properties": {"a": {"type": "integer"}, "b": {"type": "string", "default": "x"},
                "n": {"type": "string", "nullable": true, "default": "y"}, "p": {"type": "string"},
                "l": {"type": "array", "items": {"type": "object", "default": {"k": 2},
                    "properties": {"v": {"type": "string", "default": "dv"}}}},
                "m": {"type": "object", "additionalProperties": {"type": "string"}}}}}}),
        )
        .expect("schema");
        for (given, want) in [
            (json!({}), json!({"spec": {"a": 1, "b": "x", "n": "y"}})),
            (json!({"spec": null}), json!({"spec": {"a": 1, "b": "x", "n": "y"}})),
            (json!({"spec": {"b": null, "n": null, "p": null}}), json!({"spec": {"b": "x", "n": null}})),
            (
                json!({"spec": {"l": [{}, {"v": "own"}, null], "m": {"k": null, "j": "v"}, "unknown": null}}),
                json!({"spec": {"b": "x", "n": "y", "l": [{"v": "dv"}, {"v": "own"}, {"k": 2, "v": "dv"}],
                    "m": {"j": "v"}, "unknown": null}}),
            ),
        ] {
            let mut value = given;
            apply(&mut value, &schema);
            assert_eq!(value, want);
            apply(&mut value, &schema);
            assert_eq!(value, want, "a second time changes nothing");
        }
        assert!(has_defaults(&schema));
    }
}
