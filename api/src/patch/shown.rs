//! A patched document that does not decode, as Kubernetes shows it in its refusal.
//!
//! A JSON or merge patch works on the JSON text of the Go type: what it does not touch stays in the order of the type's
//! fields, objects that it does touch are sorted by key. A strategic merge patch shows itself, as Go prints a map.

use serde_json::Value;

use crate::protobuf::in_go_order;
use crate::schema::{Shape, Ty, Type};
use crate::status::{FieldError, Status};
use crate::text::go_value;

/// The answer when a document of the type that a JSON or merge patch made does not decode. `touched` is an object for
/// each object that the patch went into, and anything else for what it put there.
pub fn undecodable(ty: Option<&'static Type>, touched: &Value, patched: &Value, why: &str) -> Status {
    let mut text = String::new();
    object(&mut text, ty, Some(touched), patched);
    refusal(text, why)
}

/// The answer when what a strategic merge patch makes does not decode.
pub fn strategic_undecodable(patch: &Value, why: &str) -> Status {
    refusal(go_value(patch), why)
}

fn refusal(text: String, why: &str) -> Status {
    Status::invalid("", "", "", &[FieldError::invalid("patch", text, why)])
}

/// Writes a value that is an object of a type, if it is well-typed.
fn object(out: &mut String, ty: Option<&'static Type>, touched: Option<&Value>, value: &Value) {
    let (Value::Object(map), None | Some(Value::Object(_))) = (value, touched) else {
        return plain(out, value);
    };
    let order = match (ty, touched) {
        (Some(ty), None) => in_go_order(ty.name),
        _ => Vec::new(),
    };
    let ordered = order.iter().filter_map(|name| map.get_key_value(*name));
    let rest = map.iter().filter(|(key, _)| !order.contains(&key.as_str()));
    out.push('{');
    for (i, (key, inner)) in ordered.chain(rest).enumerate() {
        if i > 0 {
            out.push(',');
        }
        plain(out, &Value::from(key.as_str()));
        out.push(':');
        let below = touched.and_then(|touched| touched.get(key));
        match ty.and_then(|ty| ty.field(key)) {
            Some(field) => typed(out, field.ty, below, inner),
            None => plain(out, inner),
        }
    }
    out.push('}');
}

fn typed(out: &mut String, ty: Ty, touched: Option<&Value>, value: &Value) {
    if touched.is_some_and(|touched| !touched.is_object()) {
        return plain(out, value);
    }
    match (ty.shape(), value) {
        (Shape::Struct(ty), _) => object(out, Some(ty), touched, value),
        (Shape::List(inner), Value::Array(items)) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                typed(out, inner, touched.and_then(|touched| touched.get(i.to_string())), item);
            }
            out.push(']');
        }
        (Shape::Map(inner), Value::Object(map)) => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                plain(out, &Value::from(key.as_str()));
                out.push(':');
                typed(out, inner, touched.and_then(|touched| touched.get(key)), item);
            }
            out.push('}');
        }
        _ => plain(out, value),
    }
}

/// JSON as Go writes it: `<`, `>` and `&` are escaped.
fn plain(out: &mut String, value: &Value) {
    for c in value.to_string().chars() {
        // These can stand only within strings.
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn untouched_objects_keep_the_order_of_their_type() {
        let ty = crate::schema::find_kind("apps/v1", "Deployment");
        let mut patched = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"labels": {"b": "1", "a": "2"}, "uid": "u", "name": "d"},
            "spec": {"replicas": 1, "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": "<1"}, "type": "RollingUpdate"},
                "template": {"spec": {"containers": [{"env": [{"value": "1", "name": "E"}], "envFrom": [], "name": "a"}]}}}});
        patched["spec"]["replicas"] = json!("x");
        let status = undecodable(ty, &json!({"spec": {"replicas": "x"}}), &patched, "why");
        let want = r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d","uid":"u","labels":{"a":"2","b":"1"}},"spec":{"replicas":"x","strategy":{"type":"RollingUpdate","rollingUpdate":{"maxUnavailable":"\u003c1","maxSurge":1}},"template":{"spec":{"containers":[{"name":"a","envFrom":[],"env":[{"name":"E","value":"1"}]}]}}}}"#;
        let quoted = crate::text::quote(want);
        assert_eq!(status.message, format!(" \"\" is invalid: patch: Invalid value: {quoted}: why"));
    }

    #[test]
    fn touched_objects_and_elements_are_sorted() {
        let ty = crate::schema::find_kind("v1", "Pod");
        let patched =
            json!({"spec": {"containers": [{"name": "b", "image": "j"}, {"name": 5, "image": "j"}]}});
        let patch = br#"[{"op": "remove", "path": "/spec/containers/0"}, {"op": "replace", "path": "/spec/containers/1/name", "value": 5}]"#;
        let patch = crate::patch::JsonPatch::parse(patch, &mut Default::default()).expect("patch");
        let status = undecodable(ty, &patch.touched(), &patched, "why");
        assert!(
            status.message.contains(r#"[{\"image\":\"j\",\"name\":\"b\"},{\"image\":\"j\",\"name\":5}]"#),
            "{}",
            status.message
        );
    }

    #[test]
    fn strategic_patches_show_themselves() {
        let patch = json!({"spec": {"replicas": "x", "a": [1, null, {"b": true}]}});
        let status = strategic_undecodable(&patch, "why");
        assert_eq!(
            status.message,
            " \"\" is invalid: patch: Invalid value: \"map[spec:map[a:[1 <nil> map[b:true]] replicas:x]]\": why"
        );
    }
}
