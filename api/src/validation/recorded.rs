//! What a Kubernetes 1.36.2 API server answered to new objects with one thing wrong, cause by cause.
//!
//! `recorded.json` holds objects (`bases`) and changes to them: at `path` the value `set`, or nothing.

use crate::object::ObjectExt as _;
use crate::strategy::{CreateContext, prepare_for_create};
use serde_json::{Value, json};

const RECORDED: &str = include_str!("recorded.json");

/// Puts a value (or nothing) at a path of fields and indices.
fn change(object: &mut Value, path: &[Value], value: Option<&Value>) {
    let Some((last, above)) = path.split_last() else { return };
    let mut at = object;
    for step in above {
        at = match step {
            Value::Number(n) => at.get_mut(n.as_u64().unwrap_or(0) as usize).expect("an item"),
            step => at.get_mut(step.as_str().expect("a field")).expect("a value"),
        };
    }
    match (last, value, at) {
        (Value::String(field), Some(value), Value::Object(map)) => {
            map.insert(field.clone(), value.clone());
        }
        (Value::String(field), None, Value::Object(map)) => {
            map.remove(field);
        }
        (Value::Number(n), value, Value::Array(items)) => {
            let i = n.as_u64().unwrap_or(0) as usize;
            match value {
                Some(value) => items[i] = value.clone(),
                None => {
                    items.remove(i);
                }
            }
        }
        other => panic!("no place for {other:?}"),
    }
}

/// The causes for a new object: field, reason and message of each.
fn judge(mut object: Value) -> Vec<[String; 3]> {
    let kind = crate::kinds::find_api_version(object.api_version(), object.kind()).expect("row");
    let ty = crate::schema::of(kind).expect("type");
    crate::decode::normalize(ty, &mut object, &mut crate::decode::Dropped::default()).expect("well-typed");
    crate::defaults::apply(kind, &mut object);
    let now = "2024-01-02T03:04:05Z".parse().expect("time");
    let ctx =
        CreateContext { now, uid: "u", suffix: "abcde", namespace: if kind.namespaced { "vs" } else { "" } };
    prepare_for_create(kind, &mut object, &ctx);
    super::validate_create(kind, &object)
        .iter()
        .map(|e| {
            let cause = e.cause();
            [cause.field, cause.reason, cause.message]
        })
        .collect()
}

#[test]
fn causes_are_those_of_a_real_server() {
    let recorded: Value = serde_json::from_str(RECORDED).expect("JSON");
    let mut wrong = Vec::new();
    for case in recorded.items_at("cases") {
        let mut object = recorded["bases"][case.str_at("base")].clone();
        change(&mut object, case.items_at("path"), case.get("set"));
        let got = json!(judge(object));
        if got != case["causes"] {
            let at = json!([case["base"], case["path"], case["set"]]);
            wrong.push(format!("{at}\n  want {}\n  got  {got}", case["causes"]));
        }
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}
