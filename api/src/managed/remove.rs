//! Takes fields out of an object: what a manager has owned and no longer wants (KEP-555).

use serde_json::{Map, Value};

use super::model::{Look, Node};
use super::path::Element;
use super::set::FieldSet;
use super::typed::element_of;
use crate::schema::ListType;

/// Takes every field and item of the set away, with everything below. Nothing is taken out of atomic values. An object
/// or list that loses all that was in it stays and is empty.
pub fn remove(node: Node<'_>, value: Value, gone: &FieldSet) -> Value {
    match (node.look(Some(&value)), value) {
        (Look::Map(look), Value::Object(map)) if !look.atomic => {
            let mut out = Map::new();
            for (name, value) in map {
                match gone.children.get(&Element::field(&name)) {
                    Some(set) if set.member => {}
                    Some(set) => {
                        let node = look.child(&name).unwrap_or(Node::Deduced);
                        let value = below(node, value, set);
                        out.insert(name, value);
                    }
                    None => {
                        out.insert(name, value);
                    }
                }
            }
            Value::Object(out)
        }
        (Look::List(look), Value::Array(items)) if look.relation != ListType::Atomic => {
            let keys = look.keys();
            let mut out = Vec::with_capacity(items.len());
            for item in items {
                let set = element_of(&keys, &item).ok().and_then(|e| gone.children.get(&e));
                match set {
                    Some(set) if set.member => {}
                    Some(set) => out.push(below(look.item, item, set)),
                    None => out.push(item),
                }
            }
            Value::Array(out)
        }
        (_, value) => value,
    }
}

/// What is left of a value of which only a part goes. In an atomic one no part can: it goes empty.
fn below(node: Node<'_>, value: Value, gone: &FieldSet) -> Value {
    let atomic = match node.look(Some(&value)) {
        Look::Map(look) => look.atomic,
        Look::List(look) => look.relation == ListType::Atomic,
        Look::Scalar(_) => false,
    };
    match value {
        Value::Object(_) if atomic => Value::Object(Map::new()),
        Value::Array(_) if atomic => Value::Array(Vec::new()),
        value => remove(node, value, gone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_and_items() {
        let node = Node::of(crate::schema::find_kind("v1", "Pod"));
        let value = json!({"metadata": {"labels": {"a": "1"}, "finalizers": ["x", "y"]},
            "spec": {"nodeSelector": {"a": "b"}, "restartPolicy": "Never",
            "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]}});
        let gone = FieldSet::parse(
            &json!({"f:metadata": {"f:labels": {"f:a": {}}, "f:finalizers": {"v:\"x\"": {}}},
            "f:spec": {"f:restartPolicy": {}, "f:containers": {"k:{\"name\":\"a\"}": {"f:image": {}},
                "k:{\"name\":\"b\"}": {}}}}),
        )
        .expect("set");
        let want = json!({"metadata": {"labels": {}, "finalizers": ["y"]},
            "spec": {"nodeSelector": {"a": "b"}, "containers": [{"name": "a"}]}});
        assert_eq!(remove(node, value, &gone), want);
    }

    proptest::proptest! {
        #[test]
        fn what_is_removed_is_no_longer_set(gone in super::super::set::tests::sets()) {
            let value = json!({"a": {"a": {"a": 1}, "b": 2}, "b": [1]});
            let set = super::super::typed::field_set(Node::Deduced, &value);
            let left = super::super::typed::field_set(Node::Deduced, &remove(Node::Deduced, value, &gone));
            let mut expected = set;
            expected.subtract_deep(&gone);
            // Emptied objects own themselves.
            let mut more = left.clone();
            more.subtract(&expected);
            more.each(&mut |path| assert!(!gone.contains(path), "{path:?} is still there"));
        }
    }
}
