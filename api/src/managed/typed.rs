//! What a value says of itself along a schema: whether it fits, which fields it sets, which item of a list is which.

use std::collections::BTreeSet;
use std::collections::btree_map::Entry;

use serde_json::Value;

use super::model::{ListLook, Look, MapLook, Node, Scalar};
use super::path::Element;
use super::set::FieldSet;
use crate::schema::ListType;
use crate::text::quote;

/// A value that does not fit its schema, in the words of kube-apiserver.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Misfits(Vec<(String, String)>);

impl Misfits {
    pub(super) fn add(&mut self, path: &[String], text: impl Into<String>) {
        self.0.push((path.concat(), text.into()));
    }
}

impl std::error::Error for Misfits {}

impl std::fmt::Display for Misfits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let line = |(path, text): &(String, String)| {
            if path.is_empty() { text.clone() } else { format!("{path}: {text}") }
        };
        match self.0.as_slice() {
            [one] => f.write_str(&line(one)),
            many => {
                f.write_str("errors:")?;
                many.iter().try_for_each(|m| write!(f, "\n  {}", line(m)))
            }
        }
    }
}

/// Which item of a list this is: its keys, or itself in a set.
///
/// # Errors
/// When it has none of the keys, or is nothing that a set can hold.
pub(super) fn element_of(keys: &[(&str, Option<Value>)], item: &Value) -> Result<Element, String> {
    if keys.is_empty() {
        return match item {
            Value::Object(_) => Err("associative list without keys has an element that's a map type".into()),
            Value::Array(_) => Err("not supported: associative list with lists as elements".into()),
            Value::Null => Err("associative list without keys has an element that's an explicit null".into()),
            value => Ok(Element::Value(value.clone())),
        };
    }
    let map = match item {
        Value::Object(map) => map,
        Value::Null => return Err("associative list with keys may not have a null element".into()),
        _ => return Err("associative list with keys may not have non-map elements".into()),
    };
    let mut out: Vec<(Box<str>, Value)> = Vec::with_capacity(keys.len());
    for (name, default) in keys {
        if let Some(value) = map.get(*name).or(default.as_ref()) {
            out.push(((*name).into(), value.clone()));
        }
    }
    if out.is_empty() {
        let names: Vec<String> = keys.iter().map(|(k, _)| quote(k)).collect();
        return Err(format!(
            "associative list with keys has an element that omits all key fields [{}] (and doesn't have default \
             values for any key fields)",
            names.join(" ")
        ));
    }
    out.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(Element::Key(out))
}

/// Checks a value against its schema. `duplicates` says whether items of lists may share their keys.
///
/// # Errors
/// Everything that does not fit.
pub fn check(node: Node<'_>, value: &Value, duplicates: bool) -> Result<(), Misfits> {
    let mut checker = Checker { path: Vec::new(), out: Misfits::default(), duplicates };
    checker.node(node, value);
    if checker.out.0.is_empty() { Ok(()) } else { Err(checker.out) }
}

struct Checker {
    path: Vec<String>,
    out: Misfits,
    duplicates: bool,
}

impl Checker {
    fn problem(&mut self, text: String) {
        self.out.add(&self.path, text);
    }

    fn below(&mut self, step: String, f: impl FnOnce(&mut Self)) {
        self.path.push(step);
        f(self);
        self.path.pop();
    }

    fn node(&mut self, node: Node<'_>, value: &Value) {
        if value.is_null() {
            return;
        }
        match node.look(Some(value)) {
            Look::Scalar(scalar) => {
                if let Some(text) = scalar_problem(scalar, value) {
                    self.problem(text);
                }
            }
            Look::Map(look) => match value {
                Value::Object(map) => self.map(look, map),
                other => self.problem(format!("expected map, got {}", pointer(other))),
            },
            Look::List(look) => match value {
                Value::Array(items) => self.list(look, items),
                other => self.problem(format!("expected list, got {}", pointer(other))),
            },
        }
    }

    fn map(&mut self, look: MapLook<'_>, map: &serde_json::Map<String, Value>) {
        for (name, value) in map {
            match look.child(name) {
                Some(node) => self.below(format!(".{name}"), |c| c.node(node, value)),
                None => self.below(format!(".{name}"), |c| c.problem("field not declared in schema".into())),
            }
        }
    }

    fn list(&mut self, look: ListLook<'_>, items: &[Value]) {
        if look.relation == ListType::Atomic {
            for (i, item) in items.iter().enumerate() {
                self.below(format!("[{i}]"), |c| c.node(look.item, item));
            }
            return;
        }
        let (keys, mut seen) = (look.keys(), BTreeSet::new());
        for (i, item) in items.iter().enumerate() {
            match element_of(&keys, item) {
                Err(why) => return self.problem(format!("element {i}: {why}")),
                Ok(element) => {
                    if seen.contains(&element) && !self.duplicates {
                        self.problem(format!("duplicate entries for key {element}"));
                    }
                    self.below(element.to_string(), |c| c.node(look.item, item));
                    seen.insert(element);
                }
            }
        }
    }
}

fn scalar_problem(scalar: Scalar, value: &Value) -> Option<String> {
    match (scalar, value) {
        (Scalar::Numeric, Value::Number(_))
        | (Scalar::String, Value::String(_))
        | (Scalar::Boolean, Value::Bool(_))
        | (Scalar::Untyped, Value::Number(_) | Value::String(_) | Value::Bool(_)) => None,
        (Scalar::Numeric, other) => Some(format!("expected numeric (int or float), got {}", go_type(other))),
        (Scalar::String, other) => {
            Some(format!("expected string, got &value.valueUnstructured{{Value:{}}}", go_syntax(other)))
        }
        (Scalar::Boolean, other) => Some(format!("expected boolean, got {}", pointer(other))),
        (Scalar::Untyped, other) => Some(format!("expected any scalar, got {}", pointer(other))),
    }
}

/// The way Go prints a pointer to a struct that holds the value: `&{[a b]}`.
fn pointer(value: &Value) -> String {
    format!("&{{{}}}", go_plain(value))
}

fn go_plain(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(s) => s.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_plain).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let parts: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", go_plain(v))).collect();
            format!("map[{}]", parts.join(" "))
        }
        other => other.to_string(),
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

fn go_syntax(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".into(),
        Value::String(s) => quote(s),
        Value::Array(items) => {
            format!("[]interface {{}}{{{}}}", items.iter().map(go_syntax).collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let parts: Vec<String> =
                map.iter().map(|(k, v)| format!("{}:{}", quote(k), go_syntax(v))).collect();
            format!("map[string]interface {{}}{{{}}}", parts.join(", "))
        }
        other => other.to_string(),
    }
}

/// Every field and item that a value sets.
pub fn field_set(node: Node<'_>, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    collect(node, value, &mut set);
    set.member = false;
    set
}

fn collect(node: Node<'_>, value: &Value, set: &mut FieldSet) {
    match (node.look(Some(value)), value) {
        (Look::Map(look), Value::Object(map)) if !look.atomic => {
            for (name, value) in map {
                let child = set.children.entry(Element::field(name)).or_default();
                collect(look.child(name).unwrap_or(Node::Deduced), value, child);
                let empty = value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty);
                child.member |= empty || look.declared(name).is_none();
                if child.is_empty() {
                    set.children.remove(&Element::field(name));
                }
            }
        }
        (Look::List(look), Value::Array(items)) if look.relation != ListType::Atomic => {
            let keys = look.keys();
            for item in items {
                let Ok(element) = element_of(&keys, item) else { continue };
                match set.children.entry(element) {
                    // Items that cannot be told apart are owned whole.
                    Entry::Occupied(mut twice) => {
                        twice.insert(FieldSet { member: true, ..FieldSet::default() });
                    }
                    Entry::Vacant(new) => {
                        let child = new.insert(FieldSet::default());
                        collect(look.item, item, child);
                        child.member = true;
                    }
                }
            }
        }
        // An explicit null of a merged list or object owns nothing by itself.
        (Look::Map(look), Value::Null) if !look.atomic => {}
        (Look::List(look), Value::Null) if look.relation != ListType::Atomic => {}
        _ => set.member = true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(kind: &str) -> Node<'static> {
        Node::of(crate::schema::find_kind("v1", kind))
    }

    #[test]
    fn misfits_speak_as_kubernetes() {
        for (kind, value, want) in [
            ("ConfigMap", json!({"data": ["a"]}), ".data: expected map, got &{[a]}"),
            ("ConfigMap", json!({"nope": 1}), ".nope: field not declared in schema"),
            (
                "ConfigMap",
                json!({"data": {"a": 1, "b": true}}),
                "errors:\n  .data.a: expected string, got &value.valueUnstructured{Value:1}\n  .data.b: expected \
                 string, got &value.valueUnstructured{Value:true}",
            ),
            (
                "Pod",
                json!({"spec": {"containers": [{"name": "c"}, {"name": "c"}]}}),
                ".spec.containers: duplicate entries for key [name=\"c\"]",
            ),
            (
                "Pod",
                json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": "x"}]}]}}),
                ".spec.containers[name=\"c\"].ports[containerPort=\"x\",protocol=\"TCP\"].containerPort: expected \
                 numeric (int or float), got string",
            ),
            (
                "Pod",
                json!({"spec": {"containers": ["c"]}}),
                ".spec.containers: element 0: associative list with keys may not have non-map elements",
            ),
            (
                "Pod",
                json!({"metadata": {"finalizers": [null]}}),
                ".metadata.finalizers: element 0: associative list without keys has an element that's an explicit null",
            ),
        ] {
            assert_eq!(check(node(kind), &value, false).expect_err("misfit").to_string(), want);
        }
        assert_eq!(check(node("Pod"), &json!({"spec": {"containers": [{}, {}]}}), true), Ok(()));
    }

    #[test]
    fn what_is_set() {
        let value = json!({"metadata": {"labels": {"a": "b"}, "annotations": {}},
            "spec": {"nodeSelector": {"x": "y"}, "securityContext": {}, "restartPolicy": null,
            "containers": [{"name": "c", "args": ["a"], "ports": [{"containerPort": 80}]}]}});
        let want = json!({"f:metadata": {"f:labels": {"f:a": {}}, "f:annotations": {}},
            "f:spec": {"f:nodeSelector": {}, "f:securityContext": {}, "f:restartPolicy": {},
            "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:args": {},
                "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}});
        assert_eq!(field_set(node("Pod"), &value).to_value(), want);
        let twice = json!({"spec": {"containers": [{"name": "c"}, {"name": "c"}, {"name": "c"}]}});
        let want = json!({"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {}}}});
        assert_eq!(field_set(node("Pod"), &twice).to_value(), want);
        let free = json!({"a": {"b": [1], "c": {}}});
        assert_eq!(
            field_set(Node::Deduced, &free).to_value(),
            json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}})
        );
    }
}
