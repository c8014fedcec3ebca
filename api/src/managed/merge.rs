//! The structured merge of server-side apply: an object and what somebody wants it to be, along the schema (KEP-555).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::model::{ListLook, Look, MapLook, Node};
use super::path::Element;
use super::typed::{Misfits, element_of};
use crate::schema::ListType;

/// Merges what is wanted into what is there. Nothing is removed. Items of lists come in the order that is wanted, as
/// far as one is; the others stay where they are among them.
///
/// # Errors
/// When items of a list that is wanted cannot be told apart.
pub fn merge(node: Node<'_>, live: &Value, wanted: &Value) -> Result<Value, Misfits> {
    let mut merger = Merger { path: Vec::new(), out: Misfits::default() };
    let merged = merger.node(node, Some(live), Some(wanted));
    if merger.out == Misfits::default() { Ok(merged.unwrap_or(Value::Null)) } else { Err(merger.out) }
}

struct Merger {
    path: Vec<String>,
    out: Misfits,
}

impl Merger {
    /// What comes of two sides, of which one may be absent. None for what is empty on both.
    fn node(&mut self, node: Node<'_>, live: Option<&Value>, wanted: Option<&Value>) -> Option<Value> {
        let leaf = || wanted.or(live).cloned();
        match node.look(wanted.or(live)) {
            Look::Map(map) if !map.atomic => {
                let (l, w) = (live.and_then(Value::as_object), wanted.and_then(Value::as_object));
                if l.is_none_or(Map::is_empty) && w.is_none_or(Map::is_empty) {
                    return leaf();
                }
                self.fields(map, l, w)
            }
            Look::List(list) if list.relation != ListType::Atomic => {
                let (l, w) = (live.and_then(Value::as_array), wanted.and_then(Value::as_array));
                if l.is_none_or(Vec::is_empty) && w.is_none_or(Vec::is_empty) {
                    return leaf();
                }
                self.items(list, l.map_or(&[], Vec::as_slice), w.map_or(&[], Vec::as_slice))
            }
            _ => leaf(),
        }
    }

    fn fields(
        &mut self,
        look: MapLook<'_>,
        live: Option<&Map<String, Value>>,
        wanted: Option<&Map<String, Value>>,
    ) -> Option<Value> {
        let mut out = Map::new();
        let keys = live.into_iter().flat_map(Map::keys);
        let more =
            wanted.into_iter().flat_map(Map::keys).filter(|k| live.is_none_or(|l| !l.contains_key(*k)));
        for key in keys.chain(more) {
            let (l, w) = (live.and_then(|m| m.get(key)), wanted.and_then(|m| m.get(key)));
            self.path.push(format!(".{key}"));
            if let Some(value) = self.node(look.child(key).unwrap_or(Node::Deduced), l, w) {
                out.insert(key.clone(), value);
            }
            self.path.pop();
        }
        (!out.is_empty()).then_some(Value::Object(out))
    }

    /// The elements of a list's items, and each item by its element: None where several share one.
    fn index<'v>(
        &mut self,
        look: ListLook<'_>,
        items: &'v [Value],
        duplicates: bool,
    ) -> (Vec<Element>, BTreeMap<Element, Option<&'v Value>>) {
        let (keys, mut order, mut by_element) = (look.keys(), Vec::new(), BTreeMap::new());
        for (i, item) in items.iter().enumerate() {
            match element_of(&keys, item) {
                Err(why) => self.out.add(&self.path, format!("element {i}: {why}")),
                Ok(element) => {
                    if by_element.contains_key(&element) {
                        if !duplicates {
                            self.out.add(&self.path, format!("duplicate entries for key {element}"));
                            continue;
                        }
                        by_element.insert(element.clone(), None);
                    } else {
                        by_element.insert(element.clone(), Some(item));
                    }
                    order.push(element);
                }
            }
        }
        (order, by_element)
    }

    fn items(&mut self, look: ListLook<'_>, live: &[Value], wanted: &[Value]) -> Option<Value> {
        let (want_order, want) = self.index(look, wanted, false);
        let (live_order, have) = self.index(look, live, true);
        if live_order.len() != live.len() || want_order.len() != wanted.len() {
            return None;
        }
        let mut out: Vec<Value> = Vec::with_capacity(live.len().max(wanted.len()));
        let mut shared = want_order.iter().filter(|e| have.contains_key(*e));
        let mut next_shared = shared.next();
        let mut done: BTreeSet<&Element> = BTreeSet::new();
        let (mut l, mut w) = (0, 0);
        while l < live_order.len() || w < want_order.len() {
            if let (Some(le), Some(we)) = (live_order.get(l), want_order.get(w)) {
                if le == we {
                    done.insert(le);
                    out.extend(self.item(
                        look,
                        le,
                        have.get(le).copied().flatten(),
                        want.get(le).copied().flatten(),
                    ));
                    l += 1;
                    w += 1;
                    next_shared = shared.next();
                    continue;
                }
                if want.contains_key(le) && next_shared.is_some_and(|n| n != le) {
                    // It comes later, where it is wanted.
                    l += 1;
                    continue;
                }
            }
            if let Some(le) = live_order.get(l) {
                if !want.contains_key(le) {
                    out.extend(self.item(look, le, live.get(l), None));
                    l += 1;
                    continue;
                }
                if done.contains(le) {
                    l += 1;
                }
            }
            if let Some(we) = want_order.get(w) {
                done.insert(we);
                out.extend(self.item(
                    look,
                    we,
                    have.get(we).copied().flatten(),
                    want.get(we).copied().flatten(),
                ));
                w += 1;
                if next_shared == Some(we) {
                    next_shared = shared.next();
                }
            }
        }
        (!out.is_empty()).then_some(Value::Array(out))
    }

    fn item(
        &mut self,
        look: ListLook<'_>,
        element: &Element,
        live: Option<&Value>,
        wanted: Option<&Value>,
    ) -> Option<Value> {
        self.path.push(element.to_string());
        let merged = self.node(look.item, live, wanted);
        self.path.pop();
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn pod() -> Node<'static> {
        Node::of(crate::schema::find_kind("v1", "Pod"))
    }

    fn finalizers(live: &[&str], wanted: &[&str]) -> Vec<String> {
        let object = |names: &[&str]| json!({"metadata": {"finalizers": names}});
        let merged = merge(pod(), &object(live), &object(wanted)).expect("merged");
        let items = merged["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    #[test]
    fn maps_are_merged_and_atomic_ones_replaced() {
        let live = json!({"metadata": {"labels": {"a": "1", "b": "1"}}, "spec": {"nodeSelector": {"x": "1"},
            "containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b"}]}});
        let wanted = json!({"metadata": {"labels": {"b": "2", "c": "2"}}, "spec": {"nodeSelector": {"y": "2"},
            "containers": [{"name": "c"}, {"name": "a", "args": ["y"]}]}});
        let want = json!({"metadata": {"labels": {"a": "1", "b": "2", "c": "2"}}, "spec": {"nodeSelector": {"y": "2"},
            "containers": [{"name": "c"}, {"name": "a", "image": "1", "args": ["y"]}, {"name": "b"}]}});
        assert_eq!(merge(pod(), &live, &wanted), Ok(want));
    }

    #[test]
    fn keys_with_defaults() {
        let pod_with = |ports: Value| json!({"spec": {"containers": [{"name": "c", "ports": ports}]}});
        let live = pod_with(
            json!([{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "UDP"}]),
        );
        let wanted = pod_with(json!([{"containerPort": 80, "name": "x"}]));
        let want = pod_with(
            json!([{"containerPort": 80, "protocol": "TCP", "name": "x"}, {"containerPort": 80, "protocol": "UDP"}]),
        );
        assert_eq!(merge(pod(), &live, &wanted), Ok(want));
        let twice = pod_with(json!([{"containerPort": 80}, {"containerPort": 80}]));
        assert!(merge(pod(), &live, &twice).is_err());
        let merged = merge(pod(), &twice, &wanted).expect("duplicates that are there are replaced");
        assert_eq!(merged, wanted);
    }

    #[test]
    fn orders() {
        for (live, wanted, want) in [
            (&["a", "b", "c"][..], &["c", "a"][..], &["b", "c", "a"][..]),
            (&["a", "b", "c"], &["a", "x", "c"], &["a", "b", "x", "c"]),
            (&["a", "b"], &["x"], &["a", "b", "x"]),
            (&["b", "a"], &["a", "b"], &["a", "b"]),
            (&[], &["b", "a"], &["b", "a"]),
            (&["a"], &[], &["a"]),
        ] {
            assert_eq!(finalizers(live, wanted), want, "{live:?} + {wanted:?}");
        }
    }

    #[test]
    fn null_and_empty_are_kept_apart() {
        let merged = merge(Node::Deduced, &json!({"a": {}, "b": null}), &json!({"a": null, "c": {}}));
        assert_eq!(merged, Ok(json!({"a": null, "b": null, "c": {}})));
        let merged = merge(Node::Deduced, &json!({"a": {"x": 1}}), &json!({"a": "text"}));
        assert_eq!(merged, Ok(json!({"a": "text"})));
    }

    fn names() -> impl Strategy<Value = Vec<&'static str>> {
        Just(vec!["a", "b", "c", "d", "e"])
            .prop_shuffle()
            .prop_flat_map(|v| (0..6usize).prop_map(move |n| v[..n].to_vec()))
    }

    proptest! {
        #[test]
        fn a_merged_list_has_every_item_once_in_the_wanted_order(live in names(), wanted in names()) {
            let got = finalizers(&live, &wanted);
            let mut all: Vec<&str> = live.iter().chain(&wanted).copied().collect();
            all.sort_unstable();
            all.dedup();
            let mut sorted: Vec<&str> = got.iter().map(String::as_str).collect();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, all);
            let order: Vec<&str> = got.iter().map(String::as_str).filter(|g| wanted.contains(g)).collect();
            prop_assert_eq!(order, wanted.clone());
            let again = finalizers(&got.iter().map(String::as_str).collect::<Vec<_>>(), &wanted);
            prop_assert_eq!(again, got);
        }
    }
}
