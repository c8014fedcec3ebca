//! What a mutating policy makes of an object. Pure.

use hawser_api::cel::cost::OBJECT_BUDGET;
use hawser_api::cel::{Key, Map, Value};
use hawser_api::decode::Dropped;
use hawser_api::managed::merge;
use hawser_api::managed::model::Node;
use hawser_api::patch::JsonPatch;
use hawser_api::schema;
use serde_json::{Value as Json, json};

use super::compiled::{Mutation, Policy};
use super::scope::{Failure, Input, Lazy, OUT_OF_BUDGET, Scope, run};

/// Runs one mutation of a policy: the object that comes of it.
///
/// # Errors
/// Why there is none.
pub fn mutate(policy: &Policy, mutation: &Mutation, input: Input<'_>) -> Result<Json, String> {
    let Some(object) = input.object else { return Err("there is no object to change".into()) };
    let variables = Lazy::new(input, &policy.variables);
    let scope = Scope { input, variables: Some(&variables) };
    let mut budget = OBJECT_BUDGET;
    let value = run(&mutation.expression, &scope, &mut budget).map_err(|failure| match failure {
        Failure::Expression(why) => why,
        Failure::Budget => OUT_OF_BUDGET.into(),
    })?;
    if mutation.json_patch { json_patch(object, &value) } else { apply(object, &value) }
}

/// Applies a list of `JSONPatch{}`. A failed `test` leaves the object as it is.
fn json_patch(object: &Json, value: &Value<'_>) -> Result<Json, String> {
    let Value::List(list) = value else {
        return Err("type mismatch: JSONPatchType.expression should evaluate to array".into());
    };
    let mut operations = Vec::new();
    for operation in list.iter() {
        let operation = operation.map_err(|e| e.to_string())?;
        let Value::Map(map @ Map::Struct(_)) = &operation else {
            return Err(
                "type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch".into()
            );
        };
        let mut fields = serde_json::Map::new();
        for name in ["op", "path", "from", "value"] {
            let Some(field) = map.find(name).transpose().map_err(|e| e.to_string())? else { continue };
            check_names(&field)?;
            let json = field
                .to_json()
                .ok_or("JSONPath valueExpression evaluated to a type that could not marshal to JSON")?;
            fields.insert(name.to_owned(), json);
        }
        operations.push(Json::Object(fields));
    }
    let has_test = operations.iter().any(|o| o["op"] == "test");
    let body = json!(operations).to_string();
    let patch =
        JsonPatch::parse(body.as_bytes(), &mut Dropped::default()).map_err(|e| format!("JSON Patch: {e}"))?;
    match patch.apply(object) {
        Ok(patched) => Ok(patched),
        Err(e) if has_test && e.to_string().contains("test") => Ok(object.clone()),
        Err(e) => Err(format!("JSON Patch: {e}")),
    }
}

/// Merges an `Object{}` into the object, along its schema.
fn apply(object: &Json, value: &Value<'_>) -> Result<Json, String> {
    check_names(value)?;
    let mut wanted = value.to_json().filter(Json::is_object).ok_or("invalid return type")?;
    let ty = schema::find_kind(
        object["apiVersion"].as_str().unwrap_or_default(),
        object["kind"].as_str().unwrap_or_default(),
    );
    for field in ["apiVersion", "kind"] {
        wanted[field] = object[field].clone();
    }
    merge::merge(Node::of(ty), object, &wanted).map_err(|e| format!("error applying patch: {e}"))
}

/// The type of an object literal names the path that it stands at: `Object{spec: Object.spec{}}`.
fn check_names(value: &Value<'_>) -> Result<(), String> {
    let Value::Map(map @ Map::Struct(s)) = value else { return Ok(()) };
    for key in map.keys() {
        let Key::String(name) = &key else { continue };
        let Some(Ok(field)) = map.get(&key) else { continue };
        check_below(&field, &format!("{}.{}", s.0, &**name))?;
    }
    Ok(())
}

fn check_below(value: &Value<'_>, path: &str) -> Result<(), String> {
    match value {
        Value::Map(Map::Struct(s)) => {
            if *s.0 != *path {
                return Err(format!(
                    "type mismatch: unexpected type name {:?}, expected {path:?}, which matches field name path from root Object type",
                    s.0
                ));
            }
            check_names(value)
        }
        Value::Map(map) => {
            map.keys().iter().filter_map(|k| map.get(k)).flatten().try_for_each(|v| check_below(&v, path))
        }
        Value::List(list) => list.iter().flatten().try_for_each(|v| check_below(&v, path)),
        _ => Ok(()),
    }
}
