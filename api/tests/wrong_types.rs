//! Whatever is accepted stays so when nothing changes, and no field of it, given any other type, brings anything down:
//! it is refused by the decoder, or judged by the kind's rules.

use hawser_api::decode::{Dropped, normalize};
use hawser_api::kinds::{self, Kind};
use hawser_api::object::ObjectExt as _;
use hawser_api::strategy::{self, CreateContext};
use hawser_api::{defaults, schema, validation};
use serde_json::{Value, json};

/// Objects that a real server accepted, with their kinds.
fn accepted() -> Vec<(&'static Kind, Value)> {
    let mut found = Vec::new();
    // The recordings name their namespace like this.
    for line in include_str!("data/defaults.jsonl").replace("{{ns}}", "ns").lines() {
        let case: Value = serde_json::from_str(line).expect("a case");
        for step in case.items_at("steps") {
            let Some(body) = step.get("body").filter(|b| b.is_object() && step.str_at("method") == "POST")
            else {
                continue;
            };
            let kind = kinds::find_api_version(body.api_version(), body.kind());
            let created = step.int_at("want.status") == Some(201) && !body.kind().is_empty();
            if let Some(kind) = kind.filter(|_| created) {
                found.push((kind.as_ref(), body.clone()));
            }
        }
    }
    found
}

/// What creating and then updating the object answers: `None` when it does not decode.
fn errors(kind: &Kind, body: &Value, old: Option<&Value>) -> Option<(Value, Vec<String>)> {
    let mut object = body.clone();
    normalize(schema::of(kind).expect("type"), &mut object, &mut Dropped::default()).ok()?;
    defaults::apply(kind, &mut object);
    let now = hawser_api::time::parse("2024-05-06T07:08:09Z").expect("time");
    let uid = "00000000-0000-4000-8000-000000000001";
    strategy::prepare_for_create(
        kind,
        &mut object,
        &CreateContext { now, uid, suffix: "abcde", namespace: "ns" },
    );
    let found = match old {
        None => validation::validate_create(kind, &object),
        Some(old) => validation::validate_update(kind, &object, old),
    };
    let _ = validation::warnings(kind, &object, old);
    let _ = validation::to_status(kind, object.name(), &found).map(|s| s.to_value());
    Some((object, found.iter().map(ToString::to_string).collect()))
}

/// Every place in a value, as JSON pointers.
fn places(value: &Value, at: String, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                places(inner, format!("{at}/{key}"), out);
            }
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, inner)| places(inner, format!("{at}/{i}"), out));
        }
        _ => {}
    }
    if !at.is_empty() {
        out.push(at);
    }
}

#[test]
fn any_field_may_have_any_type() {
    let strange = [
        json!(null),
        json!(true),
        json!(-1),
        json!(9_223_372_036_854_775_807_i64),
        json!(1.5),
        json!(""),
        json!("ß/%.."),
        json!([]),
        json!([null, "", {}]),
        json!({}),
        json!({"": {"a": []}}),
    ];
    let objects = accepted();
    assert!(objects.len() > 60, "{}", objects.len());
    let mut refused = 0;
    for (kind, body) in objects {
        let (stored, _) = errors(kind, &body, None).expect("what was accepted decodes");
        let mut all = Vec::new();
        places(&body, String::new(), &mut all);
        for place in all {
            for value in &strange {
                let mut changed = body.clone();
                *changed.pointer_mut(&place).expect("a place") = value.clone();
                let created = errors(kind, &changed, None);
                refused += usize::from(created.is_none_or(|(_, errors)| !errors.is_empty()));
                let _ = errors(kind, &changed, Some(&stored));
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}

#[test]
fn what_a_server_accepted_is_accepted() {
    let addresses = ["Service", "Pod"];
    for (kind, body) in accepted() {
        let (_, found) = errors(kind, &body, None).expect("what was accepted decodes");
        // Allocators and the service account plugin come before validation in a server.
        if !addresses.contains(&kind.kind.as_str()) {
            assert_eq!(found, Vec::<String>::new(), "{}: {body}", kind.kind);
        }
    }
}
