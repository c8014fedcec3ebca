//! Sets of field paths, as `metadata.managedFields` writes them (FieldsV1 of KEP-555).
//!
//! A set is a tree. Its edges are path elements in their written form: `f:name` for a field, `k:{…}` for an item of a
//! keyed list, `v:…` for a member of a set.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A set of paths below one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// Whether the node itself is in the set.
    pub member: bool,
    /// What is in the set below it.
    pub children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// A set of one path.
    pub fn of<'a>(path: impl IntoIterator<Item = &'a str>) -> Self {
        let mut set = Self::default();
        let mut at = &mut set;
        for element in path {
            at = at.children.entry(element.to_owned()).or_default();
        }
        at.member = true;
        set
    }

    /// Adds everything that is in `other`.
    pub fn union(&mut self, other: Self) {
        self.member |= other.member;
        for (key, child) in other.children {
            match self.children.entry(key) {
                std::collections::btree_map::Entry::Vacant(v) => {
                    v.insert(child);
                }
                std::collections::btree_map::Entry::Occupied(mut o) => o.get_mut().union(child),
            }
        }
    }

    /// Takes away every path that is in `other`.
    pub fn subtract(&mut self, other: &Self) {
        self.member &= !other.member;
        for (key, theirs) in &other.children {
            if let Some(ours) = self.children.get_mut(key) {
                ours.subtract(theirs);
                if ours.is_empty() {
                    self.children.remove(key);
                }
            }
        }
    }

    /// Takes away a path and everything below it.
    pub fn prune(&mut self, path: &[&str]) {
        let Some((first, rest)) = path.split_first() else { return };
        if rest.is_empty() {
            self.children.remove(*first);
        } else if let Some(child) = self.children.get_mut(*first) {
            child.prune(rest);
            if child.is_empty() {
                self.children.remove(*first);
            }
        }
    }

    /// Keeps only what is below one of these fields.
    pub fn keep(&mut self, fields: &[&str]) {
        self.member = false;
        self.children.retain(|k, _| fields.contains(&k.as_str()));
    }

    /// As FieldsV1.
    pub fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (key, child) in &self.children {
            out.insert(key.clone(), child.node());
        }
        Value::Object(out)
    }

    fn node(&self) -> Value {
        let Value::Object(mut out) = self.to_value() else { return Value::Null };
        if self.member && !out.is_empty() {
            out.insert(".".into(), Value::Object(Map::new()));
        }
        Value::Object(out)
    }

    /// Reads FieldsV1; None for what is none.
    pub fn parse(value: &Value) -> Option<Self> {
        Self::parse_node(value, 0).map(|mut set| {
            set.member = false;
            set
        })
    }

    fn parse_node(value: &Value, depth: usize) -> Option<Self> {
        let map = value.as_object().filter(|_| depth < 128)?;
        let mut set = Self { member: map.is_empty(), children: BTreeMap::new() };
        for (key, child) in map {
            match key.split_once(':') {
                None if key == "." => set.member = true,
                Some(("f" | "k" | "v" | "i", _)) => {
                    set.children.insert(key.clone(), Self::parse_node(child, depth + 1)?);
                }
                _ => return None,
            }
        }
        Some(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn written_form() {
        let mut set = FieldSet::of(["f:spec", "f:a"]);
        set.union(FieldSet::of(["f:spec", "f:ports"]));
        set.union(FieldSet::of(["f:spec", "f:ports", "k:{\"port\":80}"]));
        let want = json!({"f:spec": {"f:a": {}, "f:ports": {".": {}, "k:{\"port\":80}": {}}}});
        assert_eq!(set.to_value(), want);
        assert_eq!(FieldSet::parse(&want), Some(set.clone()));
        assert_eq!(FieldSet::parse(&json!({"x": {}})), None);
        set.prune(&["f:spec", "f:ports"]);
        assert_eq!(set, FieldSet::of(["f:spec", "f:a"]));
    }

    fn sets() -> impl Strategy<Value = FieldSet> {
        proptest::collection::vec(proptest::collection::vec("[fg]:[ab]", 1..4), 0..8).prop_map(|paths| {
            let mut set = FieldSet::default();
            for path in paths {
                let path: Vec<String> = path.iter().map(|p| p.replace("g:", "f:x")).collect();
                set.union(FieldSet::of(path.iter().map(String::as_str)));
            }
            set
        })
    }

    proptest! {
        #[test]
        fn algebra(a in sets(), b in sets()) {
            prop_assert_eq!(FieldSet::parse(&a.to_value()), Some(a.clone()));
            let mut both = a.clone();
            both.union(b.clone());
            let mut rest = both.clone();
            rest.subtract(&a);
            rest.union(a.clone());
            prop_assert_eq!(rest, both);
            let mut none = a.clone();
            none.subtract(&a);
            prop_assert!(none.is_empty());
        }
    }
}
