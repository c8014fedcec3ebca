//! What a Kubernetes 1.36.2 API server answered to objects with something wrong, cause by cause.
//!
//! Each file holds objects (`bases`) and changes to them: at `path` the value `set`, or nothing. `recorded.json` is about
//! new objects with one thing wrong, `recorded_pairs.json` about new ones with several, `recorded_updates.json` about
//! updates of objects that were stored.

use crate::kinds::Kind;
use crate::object::ObjectExt as _;
use crate::strategy::{CreateContext, prepare_for_create, prepare_for_update};
use serde_json::{Value, json};

const RECORDED: &str = include_str!("recorded.json");
const PAIRS: &str = include_str!("recorded_pairs.json");
const UPDATES: &str = include_str!("recorded_updates.json");
const NOW: &str = "2024-01-02T03:04:05Z";

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

/// Decodes an object and fills in its defaults.
fn read(object: &mut Value) -> (&'static Kind, crate::decode::Dropped) {
    let kind = crate::kinds::find_api_version(object.api_version(), object.kind()).expect("row");
    let ty = crate::schema::of(kind).expect("type");
    let mut dropped = crate::decode::Dropped::default();
    crate::decode::normalize(ty, object, &mut dropped).expect("well-typed");
    crate::defaults::apply(kind, object);
    (kind, dropped)
}

/// Field, reason and message of each cause.
fn causes(mut errors: Vec<crate::status::FieldError>, dropped: &crate::decode::Dropped) -> Value {
    crate::decode::as_sent(&mut errors, &dropped.empties);
    errors
        .iter()
        .map(crate::status::FieldError::cause)
        .map(|c| json!([c.field, c.reason, c.message]))
        .collect()
}

/// The causes for a new object.
fn created(mut object: Value, _: &Value) -> Value {
    let (kind, dropped) = read(&mut object);
    let namespace = if kind.namespaced { "vs" } else { "" };
    let ctx = CreateContext { now: NOW.parse().expect("time"), uid: "u", suffix: "abcde", namespace };
    prepare_for_create(kind, &mut object, &ctx);
    causes(super::validate_create(kind, &object), &dropped)
}

/// The causes for a changed object.
fn updated(mut object: Value, old: &Value) -> Value {
    let mut old = old.clone();
    read(&mut old);
    let (kind, dropped) = read(&mut object);
    prepare_for_update(kind, &mut object, &old, NOW.parse().expect("time"));
    causes(super::validate_update(kind, &object, &old), &dropped)
}

fn compare(recorded: &str, judge: fn(Value, &Value) -> Value) {
    let recorded: Value = serde_json::from_str(recorded).expect("JSON");
    let mut wrong = Vec::new();
    for case in recorded.items_at("cases") {
        let base = &recorded["bases"][case.str_at("base")];
        let mut object = base.clone();
        match case.items_at("changes") {
            [] => change(&mut object, case.items_at("path"), case.get("set")),
            changes => changes.iter().for_each(|c| change(&mut object, c.items_at("path"), c.get("set"))),
        }
        let got = judge(object, base);
        if got != case["causes"] {
            let at = json!([case["base"], case["path"], case["set"], case["changes"]]);
            wrong.push(format!("{at}\n  want {}\n  got  {got}", case["causes"]));
        }
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn causes_are_those_of_a_real_server() {
    compare(RECORDED, created);
}

#[test]
fn causes_of_several_mistakes_are_those_of_a_real_server() {
    compare(PAIRS, created);
}

#[test]
fn causes_of_updates_are_those_of_a_real_server() {
    compare(UPDATES, updated);
}
