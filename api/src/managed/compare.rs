//! Which fields differ between two objects, walked along the schema: lists by their keys, atomic values whole.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::{Map, Value};

use super::model::{ListLook, Look, MapLook, Node};
use super::path::{Element, same};
use super::set::FieldSet;
use super::typed::element_of;
use crate::schema::ListType;

/// Paths by what happened to them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Only in the new object.
    pub added: FieldSet,
    /// In both, with another value.
    pub modified: FieldSet,
    /// Only in the old object.
    pub removed: FieldSet,
}

impl Comparison {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }
}

/// A list whose items cannot be told apart: they have no keys, or are nothing that a set can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unkeyed(String);

/// Compares two objects of a kind.
///
/// # Errors
/// [`Unkeyed`].
pub fn compare(node: Node<'_>, old: &Value, new: &Value) -> Result<Comparison, Unkeyed> {
    let mut walk = Walk { out: Comparison::default() };
    walk.node(node, Some(old), Some(new), None)?;
    for set in [&mut walk.out.added, &mut walk.out.modified, &mut walk.out.removed] {
        set.member = false;
    }
    Ok(walk.out)
}

/// Where the walk is. A path is only built for what differs.
struct Trail<'a> {
    parent: Option<&'a Trail<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Field(&'a str),
    Item(&'a Element),
}

struct Walk {
    out: Comparison,
}

fn place<'s>(set: &'s mut FieldSet, trail: Option<&Trail<'_>>) -> &'s mut FieldSet {
    let Some(trail) = trail else { return set };
    let at = place(set, trail.parent);
    let element = match trail.step {
        Step::Field(name) => Element::field(name),
        Step::Item(element) => element.clone(),
    };
    at.children.entry(element).or_default()
}

/// Everything that is in a value.
fn whole(node: Node<'_>, value: &Value) -> Result<FieldSet, Unkeyed> {
    let mut set = FieldSet { member: true, children: BTreeMap::new() };
    match (node.look(Some(value)), value) {
        (Look::Map(map), Value::Object(fields)) if !map.atomic => {
            for (key, field) in fields {
                let child = whole(map.child(key).unwrap_or(Node::Deduced), field)?;
                set.children.insert(Element::field(key), child);
            }
        }
        (Look::List(list), Value::Array(items)) if list.relation != ListType::Atomic => {
            let keys = list.keys();
            for item in items {
                match set.children.entry(element_of(&keys, item).map_err(Unkeyed)?) {
                    Entry::Vacant(free) => drop(free.insert(whole(list.item, item)?)),
                    // Items with the same keys are one thing together.
                    Entry::Occupied(mut held) => {
                        *held.get_mut() = FieldSet { member: true, ..FieldSet::default() }
                    }
                }
            }
        }
        _ => {}
    }
    Ok(set)
}

impl Walk {
    fn leaf(&mut self, old: &Value, new: &Value, trail: Option<&Trail<'_>>) {
        if !same(old, new) {
            place(&mut self.out.modified, trail).member = true;
        }
    }

    fn node(
        &mut self,
        node: Node<'_>,
        old: Option<&Value>,
        new: Option<&Value>,
        trail: Option<&Trail<'_>>,
    ) -> Result<(), Unkeyed> {
        // What is on one side only is there as a whole.
        let (set, value) = match (old, new) {
            (Some(value), None) => (&mut self.out.removed, value),
            (None, Some(value)) => (&mut self.out.added, value),
            (Some(old), Some(new)) => return self.both(node, old, new, trail),
            (None, None) => return Ok(()),
        };
        let all = whole(node, value)?;
        place(set, trail).union(all);
        Ok(())
    }

    fn both(
        &mut self,
        node: Node<'_>,
        old: &Value,
        new: &Value,
        trail: Option<&Trail<'_>>,
    ) -> Result<(), Unkeyed> {
        let (before, look) = (node.look(Some(old)), node.look(Some(new)));
        // A value that has become one of another form is both: what was in it is gone, and it has changed as a whole.
        if std::mem::discriminant(&before) != std::mem::discriminant(&look) {
            self.form(before, old, new, trail)?;
        }
        self.form(look, old, new, trail)
    }

    fn form(
        &mut self,
        look: Look<'_>,
        old: &Value,
        new: &Value,
        trail: Option<&Trail<'_>>,
    ) -> Result<(), Unkeyed> {
        match look {
            Look::Map(map) if !map.atomic => {
                let (o, n) = (old.as_object(), new.as_object());
                if o.is_some_and(|o| !o.is_empty()) || n.is_some_and(|n| !n.is_empty()) {
                    return self.fields(map, o, n, trail);
                }
            }
            Look::List(list) if list.relation != ListType::Atomic => {
                let (o, n) = (old.as_array(), new.as_array());
                let (o, n) = (o.map_or(&[][..], Vec::as_slice), n.map_or(&[][..], Vec::as_slice));
                if !o.is_empty() || !n.is_empty() {
                    return self.items(list, o, n, trail);
                }
            }
            _ => {}
        }
        self.leaf(old, new, trail);
        Ok(())
    }

    fn fields(
        &mut self,
        look: MapLook<'_>,
        old: Option<&Map<String, Value>>,
        new: Option<&Map<String, Value>>,
        trail: Option<&Trail<'_>>,
    ) -> Result<(), Unkeyed> {
        let keys = old.into_iter().flat_map(Map::keys);
        let more = new.into_iter().flat_map(Map::keys).filter(|k| old.is_none_or(|o| !o.contains_key(*k)));
        for key in keys.chain(more) {
            let (o, n) = (old.and_then(|m| m.get(key)), new.and_then(|m| m.get(key)));
            let node = look.child(key).unwrap_or(Node::Deduced);
            let here = Trail { parent: trail, step: Step::Field(key) };
            self.node(node, o, n, Some(&here))?;
        }
        Ok(())
    }

    fn items(
        &mut self,
        look: ListLook<'_>,
        old: &[Value],
        new: &[Value],
        trail: Option<&Trail<'_>>,
    ) -> Result<(), Unkeyed> {
        if old.len() == new.len() && old.iter().zip(new).all(|(a, b)| same(a, b)) {
            return Ok(());
        }
        let keys = look.keys();
        let mut sides: BTreeMap<Element, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
        for item in old {
            sides.entry(element_of(&keys, item).map_err(Unkeyed)?).or_default().0.push(item);
        }
        for item in new {
            sides.entry(element_of(&keys, item).map_err(Unkeyed)?).or_default().1.push(item);
        }
        for (element, (o, n)) in &sides {
            let here = Trail { parent: trail, step: Step::Item(element) };
            let here = Some(&here);
            match (o.as_slice(), n.as_slice()) {
                ([] | [_], [] | [_]) => self.node(look.item, o.first().copied(), n.first().copied(), here)?,
                // Items with the same keys are one thing together.
                ([_, _, ..], [_, _, ..]) => {
                    if o.len() != n.len() || o.iter().zip(n).any(|(a, b)| !same(a, b)) {
                        place(&mut self.out.modified, here).member = true;
                    }
                }
                ([_, _, ..], _) => {
                    if let Some(item) = n.first() {
                        self.node(look.item, None, Some(item), here)?;
                    }
                    place(&mut self.out.removed, here).member = true;
                }
                (_, _) => {
                    if let Some(item) = o.first() {
                        self.node(look.item, Some(item), None, here)?;
                    }
                    place(&mut self.out.added, here).member = true;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment() -> Node<'static> {
        Node::of(crate::schema::find_kind("apps/v1", "Deployment"))
    }

    #[test]
    fn keyed_lists_atomic_values_and_empty_ones() {
        let old = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers": [
            {"name": "a", "image": "1", "resources": {}}, {"name": "b", "image": "1"}]}}}});
        let new = json!({"spec": {"selector": {"matchLabels": {"a": "c"}}, "template": {"spec": {"containers": [
            {"name": "c", "image": "1", "resources": {}}, {"name": "a", "image": "2", "resources": {}}]}}}});
        let got = compare(deployment(), &old, &new).expect("keyed");
        let containers =
            |inner: Value| json!({"f:spec": {"f:template": {"f:spec": {"f:containers": inner}}}});
        assert_eq!(
            got.added.to_value(),
            containers(
                json!({"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:image": {}, "f:resources": {}}})
            )
        );
        assert_eq!(
            got.removed.to_value(),
            containers(json!({"k:{\"name\":\"b\"}": {".": {}, "f:name": {}, "f:image": {}}}))
        );
        let mut modified = containers(json!({"k:{\"name\":\"a\"}": {"f:image": {}}}));
        modified["f:spec"]["f:selector"] = json!({});
        assert_eq!(got.modified.to_value(), modified);
    }

    #[test]
    fn no_schema_means_granular_maps_and_whole_lists() {
        let old = json!({"spec": {"a": [1], "d": {"e": 1}}});
        let new = json!({"spec": {"a": [2], "b": {"c": 1}, "d": "now text"}});
        let got = compare(Node::Deduced, &old, &new).expect("keyed");
        assert_eq!(got.modified.to_value(), json!({"f:spec": {"f:a": {}, "f:d": {}}}));
        assert_eq!(got.added.to_value(), json!({"f:spec": {"f:b": {".": {}, "f:c": {}}}}));
        assert_eq!(got.removed.to_value(), json!({"f:spec": {"f:d": {"f:e": {}}}}));
    }

    #[test]
    fn raw_fields_are_one_leaf() {
        let node = Node::of(crate::schema::find_kind("apps/v1", "ControllerRevision"));
        let (old, new) = (json!({"data": {"a": 1, "b": {}}}), json!({"data": {"a": 2, "c": {}}}));
        let got = compare(node, &old, &new).expect("keyed");
        assert_eq!(got.modified.to_value(), json!({"f:data": {}}));
        assert!(got.added.is_empty() && got.removed.is_empty());
    }

    #[test]
    fn items_that_cannot_be_told_apart() {
        let pod = |ports: Value| json!({"spec": {"containers": [{"name": "c", "ports": ports}]}});
        let node = Node::of(crate::schema::find_kind("v1", "Pod"));
        let one = json!({"containerPort": 80});
        let two = json!({"containerPort": 80, "name": "x"});
        let (single, double) = (pod(json!([one])), pod(json!([one, two])));
        let got = compare(node, &single, &double).expect("keyed");
        let at = |inner: Value| {
            json!({"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {"f:ports":
                {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": inner}}}}})
        };
        assert_eq!(got.added.to_value(), at(json!({})));
        assert_eq!(got.removed.to_value(), at(json!({".": {}, "f:containerPort": {}})));
        let got = compare(node, &double, &single).expect("keyed");
        assert_eq!(got.added.to_value(), at(json!({".": {}, "f:containerPort": {}})));
        assert_eq!(got.removed.to_value(), at(json!({})));
        assert!(compare(node, &double, &double).expect("keyed").is_empty());
    }

    proptest::proptest! {
        #[test]
        fn equal_objects_do_not_differ(a: u8, b in ".{0,4}") {
            let object = serde_json::json!({"metadata": {"labels": {b.clone(): "x"}}, "spec": {"replicas": a, b: [a]}});
            proptest::prop_assert!(compare(deployment(), &object, &object).expect("keyed").is_empty());
        }
    }
}
