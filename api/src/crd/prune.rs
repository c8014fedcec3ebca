//! Pruning: fields that a schema does not know are dropped (KEP-709).

use serde_json::Value;

use super::schema::{Additional, Schema};

/// Fields that every object has, whatever its schema says.
pub const META_FIELDS: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Where a walk through an object is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step<'a> {
    Field(&'a str),
    Index(usize),
}

/// Renders a position as `spec.items[0].name`.
pub(super) fn position(steps: &[Step<'_>], last: &str) -> String {
    let mut out = String::new();
    for step in steps.iter().chain([&Step::Field(last)]) {
        match step {
            Step::Index(i) => out.push_str(&format!("[{i}]")),
            Step::Field(name) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(name);
            }
        }
    }
    out
}

/// Drops what a schema does not know; answers the positions of what was dropped, sorted. At the root of an object
/// (`resource`) and of an embedded resource, `apiVersion`, `kind` and `metadata` stay.
pub fn prune(value: &mut Value, schema: &Schema, resource: bool) -> Vec<String> {
    let mut walk = Walk { dropped: Vec::new() };
    walk.node(value, Some(schema), resource, &mut Vec::new());
    walk.dropped.sort();
    walk.dropped
}

struct Walk {
    dropped: Vec<String>,
}

impl Walk {
    fn node<'v>(
        &mut self,
        value: &'v mut Value,
        schema: Option<&Schema>,
        resource: bool,
        path: &mut Vec<Step<'v>>,
    ) {
        let keeps = schema.is_some_and(|s| s.preserve_unknown_fields);
        match value {
            Value::Object(map) => {
                let embedded = resource || schema.is_some_and(|s| s.embedded_resource);
                if !keeps {
                    map.retain(|name, _| {
                        let known = schema.is_some_and(|s| {
                            s.properties.get(name).is_some() || s.additional_properties.is_some()
                        });
                        let meta = META_FIELDS.contains(&name.as_str());
                        let kept = known || (embedded && meta);
                        let silent = meta && path.is_empty();
                        if !kept && !silent {
                            self.dropped.push(position(path, name));
                        }
                        kept
                    });
                }
                let Some(schema) = schema else { return };
                for (name, value) in map.iter_mut() {
                    if embedded && META_FIELDS.contains(&name.as_str()) {
                        continue;
                    }
                    let below = match schema.properties.get(name) {
                        Some(s) => Some(s),
                        None => match schema.additional_properties.as_deref() {
                            Some(Additional::Schema(s)) => Some(s),
                            // Kubernetes knows nothing of what is below `additionalProperties: true`.
                            Some(Additional::Any(_)) => None,
                            None => continue,
                        },
                    };
                    path.push(Step::Field(name));
                    self.node(value, below, false, path);
                    path.pop();
                }
            }
            Value::Array(items) => {
                let below = schema.and_then(|s| s.items.as_deref());
                if keeps && below.is_none() {
                    return;
                }
                for (i, item) in items.iter_mut().enumerate() {
                    path.push(Step::Index(i));
                    self.node(item, below, false, path);
                    path.pop();
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_fields_go() {
        let schema = Schema::parse(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "a": {"type": "string"},
            "list": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "integer"}}}},
            "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"y": {}}}},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"known": {"type": "object", "properties": {"z": {}}}}},
            "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}}}}}}))
        .expect("schema");
        let mut object = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n", "odd": 1}, "top": 1,
            "spec": {"a": "a", "b": 1, "list": [{"x": 1, "w": 2}], "map": {"k": {"y": 1, "n": 2}},
                "free": {"any": {"thing": 1}, "known": {"z": 1, "q": 2}},
                "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"x": 1}, "spec": {"s": 1}, "status": {}}}});
        let dropped = prune(&mut object, &schema, true);
        assert_eq!(
            dropped,
            [
                "spec.b",
                "spec.free.known.q",
                "spec.list[0].w",
                "spec.map.k.n",
                "spec.pod.spec.s",
                "spec.pod.status",
                "top"
            ]
        );
        assert_eq!(
            object,
            json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n", "odd": 1},
            "spec": {"a": "a", "list": [{"x": 1}], "map": {"k": {"y": 1}}, "free": {"any": {"thing": 1}, "known": {"z": 1}},
                "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"x": 1}, "spec": {}}}})
        );
        assert!(prune(&mut object, &schema, true).is_empty());
    }
}
