//! Strategic merge patch: lists merge by key where the schema says so, steered by the directives `$patch`,
//! `$retainKeys`, `$setElementOrder/…` and `$deleteFromPrimitiveList/…`.

use super::PatchError;
use crate::schema::{Field, Shape, Type};
use crate::text::{go_value, quote};
use serde_json::{Map, Value};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

type Object = Map<String, Value>;
type Result<T> = std::result::Result<T, PatchError>;

fn fail<T>(text: impl Into<String>) -> Result<T> {
    Err(PatchError::Strategic(text.into()))
}

/// Applies a strategic merge patch to an object of a type.
///
/// # Errors
/// [`PatchError::Strategic`] for inconsistent directives, missing merge keys and unknown fields that need
/// merging.
pub fn strategic_merge(ty: &'static Type, target: &Value, patch: &Value) -> Result<Value> {
    let (Value::Object(target), Value::Object(patch)) = (target, patch) else {
        return Ok(target.clone());
    };
    merge_map(target.clone(), patch.clone(), Some(ty)).map(Value::Object)
}

/// The strategy of a field of the type; fields of maps and unknown types have none.
fn lookup(ty: Option<&'static Type>, key: &str) -> Result<Option<&'static Field>> {
    let Some(ty) = ty else { return Ok(None) };
    match ty.field(key) {
        Some(field) => Ok(Some(field)),
        None => fail(format!(
            "unable to find api field in struct {} for the json field {}",
            ty.go_name(),
            quote(key)
        )),
    }
}

fn inner(field: Option<&'static Field>) -> Option<&'static Type> {
    let field = field?;
    match field.ty.shape() {
        Shape::Struct(t) => Some(t),
        Shape::List(item) => match item.shape() {
            Shape::Struct(t) => Some(t),
            _ => None,
        },
        _ => None,
    }
}

fn merge_map(mut original: Object, mut patch: Object, ty: Option<&'static Type>) -> Result<Object> {
    if let Some(directive) = patch.get(PATCH) {
        return match directive.as_str() {
            Some("replace") => {
                patch.remove(PATCH);
                Ok(patch)
            }
            Some("delete") => Ok(Map::new()),
            _ => bad_directive(directive, &patch),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    merge_ordered_lists(&mut original, &mut patch, ty)?;
    for (key, value) in patch {
        let (key, deleting) = match key.strip_prefix(DELETE_FROM) {
            Some(field) => (field.to_owned(), true),
            None => (key, false),
        };
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let Some(current) = original.remove(&key) else {
            if !deleting {
                original.insert(key, without_nulls(value));
            }
            continue;
        };
        let merged = match (current, value) {
            (Value::Object(current), Value::Object(value)) => {
                let field = lookup(ty, &key)?;
                if field.is_some_and(|f| f.has_patch_strategy("replace")) {
                    Value::Object(value)
                } else {
                    Value::Object(merge_map(current, value, inner(field))?)
                }
            }
            (Value::Array(current), Value::Array(value)) => {
                let field = lookup(ty, &key)?;
                Value::Array(merge_field_list(current, value, field, deleting)?)
            }
            (current, _) if deleting => current,
            (_, value) => without_nulls(value),
        };
        original.insert(key, merged);
    }
    Ok(original)
}

fn bad_directive<T>(directive: &Value, patch: &Object) -> Result<T> {
    fail(format!(
        "unknown patch type: {} in map: {}",
        go_value(directive),
        go_value(&Value::Object(patch.clone()))
    ))
}

/// A value that is taken over as it is, without what only means something to a merge.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let clean = map.into_iter().filter(|(k, v)| !v.is_null() && !is_directive(k));
            Value::Object(clean.map(|(k, v)| (k, without_nulls(v))).collect())
        }
        Value::Array(items) => {
            let kept = items.into_iter().filter(|i| i.get(PATCH).is_none());
            Value::Array(kept.map(without_nulls).collect())
        }
        other => other,
    }
}

fn is_directive(key: &str) -> bool {
    key == PATCH || key == RETAIN_KEYS || key.starts_with(SET_ORDER) || key.starts_with(DELETE_FROM)
}

fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<()> {
    let Some(list) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let bad = Err(PatchError::Bad("invalid patch format of retainKeys"));
    let Value::Array(list) = list else { return bad };
    let retained = |key: &str| list.iter().any(|k| k.as_str() == Some(key));
    for (key, value) in patch.iter() {
        let directive = key.starts_with(SET_ORDER) || key.starts_with(DELETE_FROM);
        if !value.is_null() && !directive && !retained(key) {
            return bad;
        }
    }
    original.retain(|key, _| retained(key));
    Ok(())
}

/// Merges the lists that have a `$setElementOrder` and takes them out of the patch.
fn merge_ordered_lists(original: &mut Object, patch: &mut Object, ty: Option<&'static Type>) -> Result<()> {
    let directives: Vec<String> = patch.keys().filter(|k| k.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let key = directive[SET_ORDER.len()..].to_owned();
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return fail("invalid patch format of setElementOrder list");
        };
        // A `$deleteFromPrimitiveList` of the same field acts first.
        if let (Some(Value::Array(doomed)), Some(Value::Array(current))) =
            (patch.remove(&format!("{DELETE_FROM}{key}")), original.get_mut(&key))
        {
            current.retain(|item| !doomed.contains(item));
        }
        let field = lookup(ty, &key)?;
        let merge_key = field.map_or("", |f| f.merge_key);
        let patched = match patch.remove(&key) {
            Some(Value::Array(items)) => Some(items),
            Some(Value::Null) => {
                original.remove(&key);
                continue;
            }
            Some(other) => {
                original.insert(key, other);
                continue;
            }
            None => None,
        };
        if let Some(items) = &patched {
            check_order(items, &order, merge_key)?;
        }
        let current = match original.get(&key) {
            Some(Value::Array(items)) => Some(items.clone()),
            _ => None,
        };
        let merged = match (current.clone(), patched) {
            (None, None) => continue,
            (Some(current), None) => current,
            (None, Some(patched)) => match without_nulls(Value::Array(patched)) {
                Value::Array(items) => items,
                _ => Vec::new(),
            },
            (Some(current), Some(patched)) => merge_field_list(current, patched, field, false)?,
        };
        let sorted = order_items(merged, &order, current.as_deref().unwrap_or(&[]), merge_key);
        original.insert(key, Value::Array(sorted));
    }
    Ok(())
}

/// The patch's items must appear in the order list, in the same order.
fn check_order(items: &[Value], order: &[Value], merge_key: &str) -> Result<()> {
    let mut rest = order.iter();
    for item in items {
        let deleted = item.get(PATCH).is_some();
        if !deleted && !rest.any(|o| same(o, item, merge_key)) {
            return fail(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                go_value(&Value::Array(items.to_vec())),
                go_value(&Value::Array(order.to_vec()))
            ));
        }
    }
    Ok(())
}

/// Whether two list items are the same element.
fn same(a: &Value, b: &Value, merge_key: &str) -> bool {
    if merge_key.is_empty() || !a.is_object() {
        return a == b;
    }
    match (a.get(merge_key), b.get(merge_key)) {
        (Some(a), Some(b)) => a == b || go_value(a) == go_value(b),
        _ => false,
    }
}

fn merge_field_list(
    current: Vec<Value>,
    patch: Vec<Value>,
    field: Option<&'static Field>,
    deleting: bool,
) -> Result<Vec<Value>> {
    if deleting {
        return Ok(current.into_iter().filter(|item| !patch.contains(item)).collect());
    }
    if !field.is_some_and(|f| f.has_patch_strategy("merge")) {
        return match without_nulls(Value::Array(patch)) {
            Value::Array(items) => Ok(items),
            _ => Ok(Vec::new()),
        };
    }
    let merge_key = field.map_or("", |f| f.merge_key);
    let objects = current.first().or(patch.first()).is_some_and(Value::is_object);
    if !objects {
        let mut merged = current.clone();
        for item in &patch {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return Ok(order_items(merged, &patch, &current, ""));
    }
    let (mut merged, patch) = special_items(current.clone(), patch, merge_key)?;
    for item in &patch {
        let Value::Object(item_map) = item else { return fail("invalid type of list item in patch") };
        let Some(key) = item_map.get(merge_key) else {
            return fail(format!("map: {} does not contain declared merge key: {merge_key}", go_value(item)));
        };
        let found =
            merged.iter().position(|m| m.get(merge_key).is_some_and(|k| go_value(k) == go_value(key)));
        match found {
            Some(at) => {
                let Value::Object(old) = merged[at].take() else { return fail("invalid type of list item") };
                merged[at] = Value::Object(merge_map(old, item_map.clone(), inner(field))?);
            }
            None => merged.push(without_nulls(item.clone())),
        }
    }
    Ok(order_items(merged, &patch, &current, merge_key))
}

/// Carries out the `$patch` directives among a list's items: what is left to merge into, and with.
fn special_items(
    mut current: Vec<Value>,
    patch: Vec<Value>,
    merge_key: &str,
) -> Result<(Vec<Value>, Vec<Value>)> {
    let (mut plain, mut replace) = (Vec::new(), false);
    for item in patch {
        let Value::Object(map) = &item else { return fail("invalid type of list item in patch") };
        match map.get(PATCH).map(|d| (d.as_str(), d)) {
            None => plain.push(item),
            Some((Some("delete"), _)) => {
                let Some(key) = map.get(merge_key) else {
                    return fail(format!(
                        "map: {} does not contain declared merge key: {merge_key}",
                        go_value(&item)
                    ));
                };
                current.retain(|c| c.get(merge_key).is_none_or(|k| go_value(k) != go_value(key)));
            }
            Some((Some("replace"), _)) => replace = true,
            Some((Some("merge"), _)) => return fail("merging lists cannot yet be specified in the patch"),
            Some((_, directive)) => return bad_directive(directive, map),
        }
    }
    if replace {
        let items = match without_nulls(Value::Array(plain)) {
            Value::Array(items) => items,
            _ => Vec::new(),
        };
        return Ok((items, Vec::new()));
    }
    Ok((current, plain))
}

/// Puts a merged list in order: the patch's items as the patch orders them, the others as the server had
/// them, both interleaved by the server's order.
fn order_items(
    merged: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    merge_key: &str,
) -> Vec<Value> {
    let position = |list: &[Value], item: &Value| list.iter().position(|o| same(o, item, merge_key));
    let (mut patched, mut server): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| position(patch_order, item).is_some());
    patched.sort_by_key(|item| position(patch_order, item));
    server.sort_by_key(|item| position(server_order, item));
    let mut out = Vec::with_capacity(patched.len() + server.len());
    let (mut left, mut right) = (server.into_iter().peekable(), patched.into_iter().peekable());
    while let (Some(l), Some(r)) = (left.peek(), right.peek()) {
        let server_first = match (position(server_order, l), position(server_order, r)) {
            (Some(l), Some(r)) => l < r,
            _ => false,
        };
        out.extend(if server_first { left.next() } else { right.next() });
    }
    out.extend(left);
    out.extend(right);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn target() -> Value {
        json!({"metadata": {"labels": {"keep": "1", "drop": "2"}, "annotations": {"note": "hi"}, "finalizers": ["a", "b"]},
            "spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}, "template": {"spec": {
                "containers": [{"name": "a", "image": "a:1", "args": ["x", "y"],
                        "ports": [{"containerPort": 80, "name": "web"}, {"containerPort": 81, "name": "alt"}]}, {"name": "b", "image": "b:1"}],
                "volumes": [{"name": "v1", "emptyDir": {}}, {"name": "v2"}], "tolerations": [{"key": "t1"}]}}}})
    }

    fn apply(patch: &Value) -> std::result::Result<Value, String> {
        let ty = crate::schema::find("apps.v1.Deployment").expect("type");
        strategic_merge(ty, &target(), patch).map_err(|e| e.to_string())
    }

    fn containers(list: Value) -> Value {
        json!({"spec": {"template": {"spec": {"containers": list}}}})
    }

    #[test]
    fn lists_of_objects() {
        let names = |patch: Value| -> Vec<String> {
            let got = apply(&patch).expect("applies");
            let list = got["spec"]["template"]["spec"]["containers"].as_array().cloned().unwrap_or_default();
            list.iter()
                .map(|c| {
                    format!("{}={}", c["name"].as_str().unwrap_or(""), c["image"].as_str().unwrap_or(""))
                })
                .collect()
        };
        assert_eq!(names(containers(json!([{"name": "a", "image": "a:2"}]))), ["a=a:2", "b=b:1"]);
        assert_eq!(names(containers(json!([{"name": "c", "image": "c:1"}]))), ["c=c:1", "a=a:1", "b=b:1"]);
        assert_eq!(names(containers(json!([{"name": "b", "$patch": "delete"}]))), ["a=a:1"]);
        assert_eq!(
            names(containers(json!([{"$patch": "replace"}, {"name": "z", "image": "z:1"}]))),
            ["z=z:1"]
        );
        let order = |order: Value, list: Value| json!({"spec": {"template": {"spec": {"$setElementOrder/containers": order, "containers": list}}}});
        assert_eq!(
            names(order(json!([{"name": "b"}, {"name": "a"}]), json!([{"name": "a", "image": "a:3"}]))),
            ["b=b:1", "a=a:3"]
        );
        assert_eq!(
            names(order(
                json!([{"name": "n"}, {"name": "a"}, {"name": "b"}]),
                json!([{"name": "n", "image": "n:1"}])
            )),
            ["n=n:1", "a=a:1", "b=b:1"]
        );
        let got = apply(&containers(json!([{"name": "a", "ports": [{"containerPort": 80, "name": "renamed"}, {"containerPort": 82}]}]))).expect("applies");
        assert_eq!(
            got["spec"]["template"]["spec"]["containers"][0]["ports"],
            json!([{"containerPort": 80, "name": "renamed"}, {"containerPort": 82}, {"containerPort": 81, "name": "alt"}])
        );
        let atomic = apply(&json!({"spec": {"template": {"spec": {"tolerations": [{"key": "t2"}]}}}}))
            .expect("applies");
        assert_eq!(atomic["spec"]["template"]["spec"]["tolerations"], json!([{"key": "t2"}]));
    }

    #[test]
    fn maps_and_primitives() {
        for (patch, path, want) in [
            (
                json!({"metadata": {"labels": {"$patch": "replace", "only": "1"}}}),
                "/metadata/labels",
                json!({"only": "1"}),
            ),
            (json!({"metadata": {"annotations": {"$patch": "delete"}}}), "/metadata/annotations", json!({})),
            (json!({"metadata": {"labels": {"drop": null}}}), "/metadata/labels", json!({"keep": "1"})),
            (
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}),
                "/metadata/finalizers",
                json!(["b"]),
            ),
            (
                json!({"metadata": {"$setElementOrder/finalizers": ["b", "a"]}}),
                "/metadata/finalizers",
                json!(["b", "a"]),
            ),
            (json!({"metadata": {"finalizers": ["c"]}}), "/metadata/finalizers", json!(["c", "a", "b"])),
            (
                json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
                "/spec/strategy",
                json!({"type": "Recreate"}),
            ),
            (
                json!({"spec": {"template": {"spec": {"volumes": [{"name": "v1", "$retainKeys": ["name", "secret"], "secret": {"secretName": "s"}}]}}}}),
                "/spec/template/spec/volumes",
                json!([{"name": "v1", "secret": {"secretName": "s"}}, {"name": "v2"}]),
            ),
        ] {
            let got = apply(&patch).expect("applies");
            assert_eq!(got.pointer(path), Some(&want), "{patch}");
        }
    }

    #[test]
    fn errors_speak_kubernetes() {
        for (patch, want) in [
            (
                containers(json!([{"image": "a:2"}])),
                "map: map[image:a:2] does not contain declared merge key: name",
            ),
            (
                containers(json!([{"name": "a", "$patch": "odd"}])),
                "unknown patch type: odd in map: map[$patch:odd name:a]",
            ),
            (
                json!({"spec": {"strategy": {"$retainKeys": ["x"], "type": "Recreate"}}}),
                "invalid patch format of retainKeys",
            ),
        ] {
            assert_eq!(apply(&patch), Err(want.to_owned()));
        }
    }

    proptest! {
        #[test]
        fn no_patch_panics_and_empty_changes_nothing(a in "(\\$patch|\\$retainKeys|\\$setElementOrder/containers|containers|volumes)", b in "(replace|delete|x)", n in 0usize..4) {
            let list: Vec<Value> = (0..n).map(|i| json!({"name": format!("c{i}"), a.clone(): b.clone()})).collect();
            let _ = apply(&json!({"spec": {"template": {"spec": {a: list.clone(), "containers": list}}}}));
            prop_assert_eq!(apply(&json!({})), Ok(target()));
        }
    }
}
