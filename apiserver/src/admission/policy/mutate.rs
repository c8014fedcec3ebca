//! What a mutating policy makes of an object. Pure.

use hawser_api::cel::cost::OBJECT_BUDGET;
use hawser_api::cel::{Key, Map, Value};
use hawser_api::decode::Dropped;
use hawser_api::managed::merge;
use hawser_api::managed::model::{Look, Node};
use hawser_api::managed::typed;
use hawser_api::object::ObjectExt as _;
use hawser_api::patch::{JsonPatch, PatchError};
use hawser_api::schema::{self, ListType};
use hawser_api::status::Status;
use serde_json::{Value as Json, json};

use super::compiled::{Mutation, Policy};
use super::scope::{Failure, Input, Lazy, OUT_OF_BUDGET, Scope, run};

/// Why a mutation came to nothing.
#[derive(Debug)]
pub enum Fault {
    /// The failure policy decides.
    Policy(String),
    /// The request is answered with this.
    Request(Status),
}

impl From<String> for Fault {
    fn from(why: String) -> Self {
        Self::Policy(why)
    }
}

/// The schema of an object that no row is for (`Scale`, options).
pub fn node_of(object: &Json) -> Node<'static> {
    Node::of(schema::find_kind(object.api_version(), object.kind()))
}

/// Runs one mutation of a policy on an object of a type: the object that comes of it.
///
/// # Errors
/// Why there is none.
pub fn mutate(policy: &Policy, mutation: &Mutation, node: Node<'_>, input: Input<'_>) -> Result<Json, Fault> {
    let Some(object) = input.object else { return Err(Fault::Policy("there is no object to change".into())) };
    if let Err(why) = &mutation.expression.program {
        return Err(Fault::Policy(why.clone()));
    }
    let variables = Lazy::new(input, &policy.variables);
    let scope = Scope { input, variables: Some(&variables) };
    let mut budget = OBJECT_BUDGET;
    let value = run(&mutation.expression, &scope, &mut budget).map_err(|failure| match failure {
        Failure::Expression(why) => why,
        Failure::Budget => OUT_OF_BUDGET.to_owned(),
    })?;
    let changed = if mutation.json_patch { json_patch(object, &value) } else { apply(node, object, &value) };
    changed.map_err(Fault::Policy)
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
    let body = json!(operations).to_string();
    let patch =
        JsonPatch::parse(body.as_bytes(), &mut Dropped::default()).map_err(|e| format!("JSON Patch: {e}"))?;
    match patch.apply(object) {
        Ok(patched) => Ok(patched),
        Err(PatchError::TestFailed) => Ok(object.clone()),
        Err(e) => Err(format!("JSON Patch: {e}")),
    }
}

/// Merges an `Object{}` into the object, along its schema.
fn apply(node: Node<'_>, object: &Json, value: &Value<'_>) -> Result<Json, String> {
    check_names(value)?;
    let mut wanted = value.to_json().filter(Json::is_object).ok_or("invalid return type")?;
    for field in ["apiVersion", "kind"] {
        wanted[field] = object[field].clone();
    }
    let failed = |why: String| format!("error applying patch: {why}");
    typed::check(node, &wanted, false)
        .map_err(|e| failed(format!("failed to convert patch object to typed object: {e}")))?;
    let mut atomics = Vec::new();
    find_atomics(node, &wanted, &mut String::new(), &mut atomics);
    if !atomics.is_empty() {
        let atomics = atomics.join(", ");
        return Err(failed(format!(
            "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {atomics}"
        )));
    }
    merge::merge(node, object, &wanted).map_err(|e| failed(format!("failed to merge patch: {e}")))
}

/// The places of atomic lists and maps in what is wanted. Their owners' other items would be lost.
fn find_atomics(node: Node<'_>, value: &Json, path: &mut String, found: &mut Vec<String>) {
    let here = path.len();
    match (node.look(Some(value)), value) {
        (Look::Map(map), Json::Object(fields)) => {
            if map.atomic {
                found.push(path.clone());
            }
            for (name, field) in fields {
                if let Some(node) = map.declared(name) {
                    path.push('.');
                    path.push_str(name);
                    find_atomics(node, field, path, found);
                    path.truncate(here);
                }
            }
        }
        (Look::List(list), Json::Array(items)) => {
            if list.relation == ListType::Atomic {
                found.push(path.clone());
            }
            for (i, item) in items.iter().enumerate() {
                path.push_str(&format!("[{i}]"));
                find_atomics(list.item, item, path, found);
                path.truncate(here);
            }
        }
        _ => {}
    }
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
