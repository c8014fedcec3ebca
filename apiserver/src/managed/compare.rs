//! Which fields differ between two objects, walked along the schema: lists by their keys, atomic values whole.

use std::collections::BTreeMap;

use hawser_api::schema::{Field, ListType, Shape, Ty, Type};
use serde_json::{Map, Value};

use super::fieldset::FieldSet;

/// Paths by what happened to them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Only in the new object.
    pub added: FieldSet,
    /// In both, with another value.
    pub modified: FieldSet,
    /// Only in the old object.
    pub removed: FieldSet,
}

/// How a value is looked at.
#[derive(Clone, Copy)]
enum Look {
    Struct(&'static Type),
    /// A granular map and the type of its values; None without a schema.
    Map(Option<Ty>),
    /// A list whose items have keys.
    Keyed(&'static Field, Ty),
    /// A list of distinct values.
    Set,
    Whole,
}

/// Compares two objects of a type. Without a type (custom resources) maps are granular and lists are whole.
pub fn compare(ty: Option<&'static Type>, old: &Value, new: &Value) -> Comparison {
    let mut walk = Walk { path: Vec::new(), out: Comparison::default() };
    let look = ty.map_or(Look::Map(None), Look::Struct);
    walk.node(look, Some(old), Some(new));
    walk.out
}

struct Walk {
    path: Vec<String>,
    out: Comparison,
}

impl Walk {
    fn record(&mut self, old: Option<&Value>, new: Option<&Value>) {
        let set = match (old, new) {
            (None, Some(_)) => &mut self.out.added,
            (Some(_), None) => &mut self.out.removed,
            (Some(a), Some(b)) if a != b => &mut self.out.modified,
            _ => return,
        };
        let mut at = set;
        for element in &self.path {
            at = at.children.entry(element.clone()).or_default();
        }
        at.member = true;
    }

    fn node(&mut self, look: Look, old: Option<&Value>, new: Option<&Value>) {
        // An object or list on one side decides when the other side is of another form; those are changed whole.
        match look {
            Look::Struct(_) | Look::Map(_) => {
                if !(maybe(old, Value::is_object) && maybe(new, Value::is_object)) {
                    return self.record(old, new);
                }
                let (o, n) = (map_of(old), map_of(new));
                if o.is_none_or(Map::is_empty) && n.is_none_or(Map::is_empty) {
                    return self.record(old, new);
                }
                self.fields(look, o, n);
            }
            Look::Keyed(..) | Look::Set => {
                if !(maybe(old, Value::is_array) && maybe(new, Value::is_array)) {
                    return self.record(old, new);
                }
                let (o, n) = (items_of(old), items_of(new));
                if o.is_empty() && n.is_empty() {
                    return self.record(old, new);
                }
                self.items(look, o, n);
            }
            Look::Whole => return self.record(old, new),
        }
        if old.is_none() || new.is_none() {
            self.record(old, new);
        }
    }

    fn fields(&mut self, look: Look, old: Option<&Map<String, Value>>, new: Option<&Map<String, Value>>) {
        let keys = old.into_iter().flat_map(Map::keys);
        let more = new.into_iter().flat_map(Map::keys).filter(|k| old.is_none_or(|o| !o.contains_key(*k)));
        for key in keys.chain(more) {
            let (o, n) = (old.and_then(|m| m.get(key)), new.and_then(|m| m.get(key)));
            let look = match look {
                Look::Struct(ty) => match ty.field(key) {
                    Some(field) => look_at_field(field),
                    None => untyped(o, n),
                },
                Look::Map(Some(ty)) => look_at(ty),
                _ => untyped(o, n),
            };
            self.path.push(format!("f:{key}"));
            self.node(look, o, n);
            self.path.pop();
        }
    }

    fn items(&mut self, look: Look, old: &[Value], new: &[Value]) {
        let item_look = if let Look::Keyed(_, inner) = look { look_at(inner) } else { Look::Whole };
        let element = |item: &Value| match look {
            Look::Keyed(field, _) => key_of(field, item),
            _ => format!("v:{item}"),
        };
        let mut sides: BTreeMap<String, (Option<&Value>, Option<&Value>)> = BTreeMap::new();
        // Items whose key is there twice cannot be told apart: they are owned whole.
        let mut twice: Vec<String> = Vec::new();
        for item in old {
            sides.entry(element(item)).or_default().0 = Some(item);
        }
        for item in new {
            let key = element(item);
            let side = sides.entry(key.clone()).or_default();
            if side.1.replace(item).is_some() {
                twice.push(key);
            }
        }
        for (key, (o, n)) in sides {
            let look = if twice.contains(&key) { Look::Whole } else { item_look };
            self.path.push(key);
            self.node(look, o, n);
            self.path.pop();
        }
    }
}

fn maybe(value: Option<&Value>, is: impl Fn(&Value) -> bool) -> bool {
    value.is_none_or(|v| v.is_null() || is(v))
}

fn map_of(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

fn items_of(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Without a schema a value shows how it is looked at.
fn untyped(old: Option<&Value>, new: Option<&Value>) -> Look {
    match new.or(old) {
        Some(Value::Object(_)) => Look::Map(None),
        _ => Look::Whole,
    }
}

fn look_at_field(field: &'static Field) -> Look {
    if field.atomic {
        return Look::Whole;
    }
    match (field.ty.shape(), field.list) {
        (Shape::List(inner), ListType::Map) => Look::Keyed(field, inner),
        (Shape::List(_), ListType::Set) => Look::Set,
        (Shape::List(_), ListType::Atomic) => Look::Whole,
        _ => look_at(field.ty),
    }
}

fn look_at(ty: Ty) -> Look {
    match ty.shape() {
        Shape::Struct(t) if t.atomic => Look::Whole,
        Shape::Struct(t) => Look::Struct(t),
        Shape::Map(inner) => Look::Map(Some(inner)),
        Shape::List(_) | Shape::Scalar(_) => Look::Whole,
    }
}

/// `k:{"containerPort":80,"protocol":"TCP"}`, keys sorted.
fn key_of(field: &Field, item: &Value) -> String {
    let mut key: Map<String, Value> = Map::new();
    for name in field.keys() {
        let default = || {
            let text = field.ty.inner_struct()?.field(name)?.default?;
            Some(serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())))
        };
        if let Some(value) = item.get(name).cloned().or_else(default) {
            key.insert(name.to_owned(), value);
        }
    }
    format!("k:{}", Value::Object(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment() -> Option<&'static Type> {
        hawser_api::schema::find_kind("apps/v1", "Deployment")
    }

    #[test]
    fn keyed_lists_atomic_values_and_empty_ones() {
        let old = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers": [
            {"name": "a", "image": "1", "resources": {}}, {"name": "b", "image": "1"}]}}}});
        let new = json!({"spec": {"selector": {"matchLabels": {"a": "c"}}, "template": {"spec": {"containers": [
            {"name": "c", "image": "1", "resources": {}}, {"name": "a", "image": "2", "resources": {}}]}}}});
        let got = compare(deployment(), &old, &new);
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
        let got = compare(None, &json!({"spec": {"a": [1]}}), &json!({"spec": {"a": [2], "b": {"c": 1}}}));
        assert_eq!(got.modified.to_value(), json!({"f:spec": {"f:a": {}}}));
        assert_eq!(got.added.to_value(), json!({"f:spec": {"f:b": {".": {}, "f:c": {}}}}));
    }

    proptest::proptest! {
        #[test]
        fn equal_objects_do_not_differ(a: u8, b in ".{0,4}") {
            let object = json!({"metadata": {"labels": {b.clone(): "x"}}, "spec": {"replicas": a, b: [a]}});
            proptest::prop_assert_eq!(compare(deployment(), &object, &object), Comparison::default());
        }
    }
}
