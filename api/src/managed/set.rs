//! Sets of field paths, as `metadata.managedFields` writes them (FieldsV1 of KEP-555).
//!
//! A set is a tree of [`Element`]s. A node that is a member does not make its children members, nor the other way round.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::{Map, Value};

use super::model::{Look, Node};
use super::path::{Element, Malformed};

/// Deepest nesting of a set that is read.
const MAX_DEPTH: usize = 256;

/// A set of paths below one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// Whether the node itself is in the set.
    pub member: bool,
    /// What is in the set below it. No child is empty.
    pub children: BTreeMap<Element, FieldSet>,
}

impl FieldSet {
    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// A set of one path of fields.
    pub fn of(path: &[&str]) -> Self {
        let mut set = Self::default();
        set.insert(path.iter().map(|name| Element::field(name)));
        set
    }

    /// Adds a path.
    pub fn insert(&mut self, path: impl IntoIterator<Item = Element>) {
        let mut at = self;
        for element in path {
            at = at.children.entry(element).or_default();
        }
        at.member = true;
    }

    /// Whether a path of fields is in the set.
    pub fn has(&self, path: &[&str]) -> bool {
        let below = path.iter().try_fold(self, |at, name| at.children.get(&Element::field(name)));
        below.is_some_and(|at| at.member)
    }

    /// Whether a path is in the set.
    pub fn contains(&self, path: &[Element]) -> bool {
        path.iter().try_fold(self, |at, e| at.children.get(e)).is_some_and(|at| at.member)
    }

    /// Adds everything that is in `other`.
    pub fn union(&mut self, other: Self) {
        self.member |= other.member;
        for (key, child) in other.children {
            match self.children.entry(key) {
                Entry::Vacant(v) => {
                    v.insert(child);
                }
                Entry::Occupied(mut o) => o.get_mut().union(child),
            }
        }
    }

    /// Takes away every path that is in `other`; what is below such a path stays.
    pub fn subtract(&mut self, other: &Self) {
        self.member &= !other.member;
        self.each_of(other, Self::subtract);
    }

    /// Takes away every path that is in `other`, and everything below it.
    pub fn subtract_deep(&mut self, other: &Self) {
        if other.member {
            *self = Self::default();
            return;
        }
        self.each_of(other, Self::subtract_deep);
    }

    fn each_of(&mut self, other: &Self, change: fn(&mut Self, &Self)) {
        for (key, theirs) in &other.children {
            if let Some(ours) = self.children.get_mut(key) {
                change(ours, theirs);
                if ours.is_empty() {
                    self.children.remove(key);
                }
            }
        }
    }

    /// What is in both sets.
    pub fn intersection(&self, other: &Self) -> Self {
        let mut out = Self { member: self.member && other.member, children: BTreeMap::new() };
        for (key, ours) in &self.children {
            if let Some(theirs) = other.children.get(key) {
                let both = ours.intersection(theirs);
                if !both.is_empty() {
                    out.children.insert(key.clone(), both);
                }
            }
        }
        out
    }

    /// Takes away a path of fields and everything below it.
    pub fn prune(&mut self, path: &[&str]) {
        let Some((first, rest)) = path.split_first() else { return };
        let first = Element::field(first);
        if rest.is_empty() {
            self.children.remove(&first);
        } else if let Some(child) = self.children.get_mut(&first) {
            child.prune(rest);
            if child.is_empty() {
                self.children.remove(&first);
            }
        }
    }

    /// Takes away one path of fields alone.
    pub fn remove(&mut self, path: &[&str]) {
        self.subtract(&Self::of(path));
    }

    /// Keeps what is below, or leads to, one of these paths; `*` stands for any step.
    pub fn keep(&mut self, paths: &[&[&str]]) {
        self.children.retain(|element, child| {
            let mut below: Vec<&[&str]> = Vec::new();
            for path in paths {
                let Some((first, rest)) = path.split_first() else { continue };
                let fits = *first == "*" || matches!(element, Element::Field(name) if &**name == *first);
                if fits && rest.is_empty() {
                    return true;
                }
                if fits {
                    below.push(rest);
                }
            }
            if below.is_empty() {
                return false;
            }
            child.keep(&below);
            !child.is_empty()
        });
    }

    /// Adds the declared fields that lead to members: who owns `spec.replicas` then owns `spec`, but not the map or
    /// the list item on the way.
    pub fn with_named_fields(&self, node: Node<'_>) -> Self {
        self.named(Some(node))
    }

    fn named(&self, node: Option<Node<'_>>) -> Self {
        let mut out = Self { member: self.member, children: BTreeMap::new() };
        for (element, child) in &self.children {
            let (below, declared) = match (element, node) {
                (Element::Field(name), Some(node)) => match node.look(Some(&Value::Null)) {
                    Look::Map(map) => (map.child(name), map.declared(name).is_some()),
                    _ => (None, false),
                },
                (Element::Key(_), Some(node)) => match node.look(Some(&EMPTY_LIST)) {
                    Look::List(list) => (Some(list.item), false),
                    _ => (None, false),
                },
                _ => (None, false),
            };
            let mut named = child.named(below);
            named.member |= declared && !child.children.is_empty();
            out.children.insert(element.clone(), named);
        }
        out
    }

    /// The set as the schema sees it today: below what has become atomic only the whole can be owned.
    pub fn settle(&mut self, node: Node<'_>) {
        for (element, child) in &mut self.children {
            if child.children.is_empty() {
                continue;
            }
            let below = match element {
                Element::Field(name) => match node.look(Some(&Value::Null)) {
                    Look::Map(map) => map.child(name),
                    _ => None,
                },
                Element::Key(_) => match node.look(Some(&EMPTY_LIST)) {
                    Look::List(list) => Some(list.item),
                    _ => None,
                },
                _ => None,
            };
            // Of what has no schema nobody knows what it was before.
            let Some(below) = below.filter(|b| !matches!(b, Node::Deduced | Node::Whole)) else { continue };
            let field = !matches!(child.children.keys().next(), Some(Element::Key(_) | Element::Value(_)));
            let atomic = match below.look(Some(if field { &Value::Null } else { &EMPTY_LIST })) {
                Look::Map(map) => map.atomic,
                Look::List(list) => list.relation == crate::schema::ListType::Atomic,
                Look::Scalar(_) => false,
            };
            if atomic {
                *child = Self { member: true, children: BTreeMap::new() };
            } else {
                child.settle(below);
            }
        }
    }

    /// Calls `f` with every path of the set: at each node first those that end there, then those that go on.
    pub fn each(&self, f: &mut impl FnMut(&[Element])) {
        self.each_below(&mut Vec::new(), f);
    }

    fn each_below(&self, path: &mut Vec<Element>, f: &mut impl FnMut(&[Element])) {
        for (element, _) in self.children.iter().filter(|(_, c)| c.member) {
            path.push(element.clone());
            f(path);
            path.pop();
        }
        for (element, child) in self.children.iter().filter(|(_, c)| !c.children.is_empty()) {
            path.push(element.clone());
            child.each_below(path, f);
            path.pop();
        }
    }

    /// As FieldsV1.
    pub fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (key, child) in &self.children {
            out.insert(key.written(), child.node());
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

    /// Reads FieldsV1.
    ///
    /// # Errors
    /// For what is none.
    pub fn parse(value: &Value) -> Result<Self, Malformed> {
        let mut set = Self::parse_node(value, 0)?;
        set.member = false;
        Ok(set)
    }

    fn parse_node(value: &Value, depth: usize) -> Result<Self, Malformed> {
        let map = value.as_object().filter(|_| depth < MAX_DEPTH).ok_or(Malformed)?;
        let mut set = Self { member: map.is_empty(), children: BTreeMap::new() };
        for (key, child) in map {
            if key == "." {
                set.member = true;
            } else if let Some(element) = Element::parse(key)? {
                set.children.insert(element, Self::parse_node(child, depth + 1)?);
            }
        }
        set.children.retain(|_, c| !c.is_empty());
        Ok(set)
    }
}

static EMPTY_LIST: Value = Value::Array(Vec::new());

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn written_form() {
        let want = json!({"f:spec": {"f:a": {}, "f:ports": {".": {}, "k:{\"port\":80}": {}}}});
        let mut set = FieldSet::of(&["spec", "a"]);
        set.union(FieldSet::of(&["spec", "ports"]));
        set.insert([
            Element::field("spec"),
            Element::field("ports"),
            Element::Key(vec![("port".into(), json!(80))]),
        ]);
        assert_eq!(set.to_value(), want);
        assert_eq!(FieldSet::parse(&want), Ok(set.clone()));
        assert_eq!(FieldSet::parse(&json!({"x": {}})), Err(Malformed));
        assert!(FieldSet::parse(&json!({"x:later": {}})).expect("set").is_empty());
        set.prune(&["spec", "ports"]);
        assert_eq!(set, FieldSet::of(&["spec", "a"]));
    }

    #[test]
    fn parents_and_children_are_members_for_themselves() {
        let parse = |v: Value| FieldSet::parse(&v).expect("set");
        let set = parse(json!({"f:a": {".": {}, "f:b": {}}}));
        let mut less = set.clone();
        less.subtract(&parse(json!({"f:a": {}})));
        assert_eq!(less, parse(json!({"f:a": {"f:b": {}}})));
        let mut less = set.clone();
        less.subtract_deep(&parse(json!({"f:a": {}})));
        assert!(less.is_empty());
        let mut kept = parse(
            json!({"f:spec": {".": {}, "f:c": {"k:{\"n\":1}": {"f:r": {"f:x": {}}, "f:i": {}}}, "f:d": {}}}),
        );
        kept.keep(&[&["spec", "c", "*", "r"]]);
        assert_eq!(kept, parse(json!({"f:spec": {".": {}, "f:c": {"k:{\"n\":1}": {"f:r": {"f:x": {}}}}}})));
    }

    #[test]
    fn named_fields_and_what_became_atomic() {
        let node = Node::of(crate::schema::find_kind("v1", "Pod"));
        let parse = |v: Value| FieldSet::parse(&v).expect("set");
        let set = parse(json!({"f:metadata": {"f:labels": {"f:a": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {"f:image": {}}}}}));
        assert_eq!(
            set.with_named_fields(node),
            parse(json!({"f:metadata": {".": {}, "f:labels": {".": {}, "f:a": {}}},
            "f:spec": {".": {}, "f:containers": {".": {}, "k:{\"name\":\"c\"}": {"f:image": {}}}}}))
        );
        let mut old = parse(json!({"f:spec": {"f:nodeSelector": {"f:a": {}}, "f:restartPolicy": {}}}));
        let same = old.clone();
        old.settle(Node::of(crate::schema::find_kind("v1", "Pod")));
        let atomic = parse(json!({"f:spec": {"f:nodeSelector": {}, "f:restartPolicy": {}}}));
        assert_eq!(old, atomic, "{same:?}: nodeSelector is atomic");
    }

    /// Any set of a few short paths.
    pub(crate) fn sets() -> impl Strategy<Value = FieldSet> {
        proptest::collection::vec(proptest::collection::vec(0..4usize, 1..4), 0..8).prop_map(|paths| {
            let steps = [
                Element::field("a"),
                Element::field("b"),
                Element::Key(vec![("k".into(), json!(1))]),
                Element::Value(json!("v")),
            ];
            let mut set = FieldSet::default();
            for path in paths {
                set.insert(path.iter().map(|i| steps[*i].clone()));
            }
            set
        })
    }

    proptest! {
        #[test]
        fn algebra(a in sets(), b in sets(), c in sets()) {
            let union = |a: &FieldSet, b: &FieldSet| { let mut s = a.clone(); s.union(b.clone()); s };
            let minus = |a: &FieldSet, b: &FieldSet| { let mut s = a.clone(); s.subtract(b); s };
            prop_assert_eq!(FieldSet::parse(&a.to_value()), Ok(a.clone()));
            prop_assert_eq!(union(&a, &b), union(&b, &a));
            prop_assert_eq!(union(&union(&a, &b), &c), union(&a, &union(&b, &c)));
            prop_assert_eq!(a.intersection(&b), b.intersection(&a));
            prop_assert_eq!(union(&minus(&a, &b), &a.intersection(&b)), a.clone());
            prop_assert_eq!(minus(&union(&a, &b), &b), minus(&a, &b));
            prop_assert!(minus(&a, &a).is_empty() && minus(&a, &b).intersection(&b).is_empty());
            let mut deep = a.clone();
            deep.subtract_deep(&b);
            prop_assert_eq!(minus(&deep, &minus(&a, &b)), FieldSet::default());
        }

        #[test]
        fn each_path_is_a_member(a in sets()) {
            let mut again = FieldSet::default();
            a.each(&mut |path| again.insert(path.iter().cloned()));
            prop_assert_eq!(again, a);
        }
    }
}
