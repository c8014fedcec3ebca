//! JSON patch (RFC 6902), with the liberties that kube-apiserver's library takes: negative list indices count
//! from the end, what precedes a pointer's first slash is dropped, a test of a missing value for null passes,
//! replacing a missing field adds it.

use super::PatchError;
use crate::text::{json_type, quote};
use serde_json::{Map, Value};

/// Most operations in one patch.
pub const MAX_OPERATIONS: usize = 10_000;

/// The fields of an operation.
const FIELDS: [&str; 4] = ["op", "path", "from", "value"];

/// A parsed JSON patch.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonPatch(Vec<Operation>);

#[derive(Debug, Clone, PartialEq)]
struct Operation {
    op: String,
    path: Option<Vec<String>>,
    from: Option<Vec<String>>,
    value: Option<Value>,
}

/// The parts of a JSON pointer. What precedes the first slash is dropped.
fn pointer(text: &str) -> Vec<String> {
    text.split('/').skip(1).map(|p| p.replace("~1", "/").replace("~0", "~")).collect()
}

/// A pointer without a slash names a field of the root, its own text dropped: `spec/replicas` is `replicas`.
fn parse_pointer(v: Option<&Value>) -> Option<Vec<String>> {
    Some(pointer(v?.as_str()?))
}

impl JsonPatch {
    /// Parses the body.
    ///
    /// # Errors
    /// [`PatchError::Malformed`] when it is no list of operations, [`PatchError::TooManyOperations`].
    pub fn parse(body: &[u8], dropped: &mut crate::decode::Dropped) -> Result<JsonPatch, PatchError> {
        let value = crate::decode::parse_json(body, dropped).map_err(|e| PatchError::Malformed(e.0))?;
        if value.is_null() {
            return Ok(JsonPatch(Vec::new()));
        }
        let Value::Array(items) = value else {
            return Err(PatchError::Malformed(format!(
                "json: cannot unmarshal {} into Go value of type []handlers.jsonPatchOp",
                json_type(&value)
            )));
        };
        if items.len() > MAX_OPERATIONS {
            return Err(PatchError::TooManyOperations(items.len()));
        }
        let mut operations = Vec::with_capacity(items.len());
        for (i, mut item) in items.into_iter().enumerate() {
            let Value::Object(fields) = &item else {
                return Err(PatchError::Malformed(format!(
                    "json: cannot unmarshal {} into Go value of type handlers.jsonPatchOp",
                    json_type(&item)
                )));
            };
            let unknown = fields.keys().filter(|name| !FIELDS.contains(&name.as_str()));
            dropped
                .messages
                .extend(unknown.map(|name| format!("unknown field {}", quote(&format!("[{i}].{name}")))));
            let (path, from) = (parse_pointer(item.get("path")), parse_pointer(item.get("from")));
            let op = item.get("op").and_then(Value::as_str).unwrap_or("").to_owned();
            let value = item.as_object_mut().and_then(|o| o.remove("value"));
            operations.push(Operation { op, path, from, value });
        }
        dropped.messages.iter_mut().for_each(|message| message.insert_str(0, "json patch "));
        Ok(JsonPatch(operations))
    }

    /// The objects and lists on the way to what the operations name, as objects within one another; what they name is
    /// null.
    pub fn touched(&self) -> Value {
        let mut touched = Value::Object(Map::new());
        for path in self.0.iter().flat_map(|o| o.path.iter().chain(&o.from)) {
            let mut at = &mut touched;
            for part in path {
                if at.is_null() {
                    *at = Value::Object(Map::new());
                }
                let Value::Object(fields) = at else { break };
                at = fields.entry(part.clone()).or_insert(Value::Null);
            }
        }
        touched
    }

    /// Applies every operation, or none.
    ///
    /// # Errors
    /// [`PatchError::TestFailed`] for a value that is not the one tested for, else [`PatchError::Unappliable`].
    pub fn apply(&self, target: &Value) -> Result<Value, PatchError> {
        let mut document = target.clone();
        for operation in &self.0 {
            apply_one(&mut document, operation).ok_or_else(|| {
                let tested = operation.path.as_deref().and_then(|p| get(&document, p.split_last()?.1));
                match tested {
                    Some(_) if operation.op == "test" => PatchError::TestFailed,
                    _ => PatchError::Unappliable,
                }
            })?;
        }
        Ok(document)
    }
}

fn apply_one(document: &mut Value, o: &Operation) -> Option<()> {
    let path = o.path.as_deref()?;
    match o.op.as_str() {
        "add" => add(document, path, o.value.clone().unwrap_or(Value::Null)),
        "remove" => remove(document, path).map(|_| ()),
        "replace" => replace(document, path, o.value.clone().unwrap_or(Value::Null)),
        "move" => {
            let value = remove(document, o.from.as_deref()?)?;
            add(document, path, value)
        }
        "copy" => {
            let value = get(document, o.from.as_deref()?)?.clone();
            add(document, path, value)
        }
        "test" => {
            let want = o.value.as_ref().unwrap_or(&Value::Null);
            (get(document, path).unwrap_or(&Value::Null) == want).then_some(())
        }
        _ => None,
    }
}

/// The index a pointer part means in a list of `len` items.
fn index(part: &str, len: usize) -> Option<usize> {
    match part.strip_prefix('-') {
        Some(back) => len.checked_sub(back.parse::<usize>().ok().filter(|n| *n > 0)?),
        None => part.parse().ok(),
    }
}

fn get<'a>(document: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(document, |v, part| match v {
        Value::Object(map) => map.get(part),
        Value::Array(items) => items.get(index(part, items.len())?),
        _ => None,
    })
}

fn get_mut<'a>(document: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    path.iter().try_fold(document, |v, part| match v {
        Value::Object(map) => map.get_mut(part),
        Value::Array(items) => {
            let i = index(part, items.len())?;
            items.get_mut(i)
        }
        _ => None,
    })
}

fn add(document: &mut Value, path: &[String], value: Value) -> Option<()> {
    let Some((last, parents)) = path.split_last() else {
        *document = value;
        return Some(());
    };
    match get_mut(document, parents)? {
        Value::Object(map) => {
            map.insert(last.clone(), value);
        }
        Value::Array(items) => {
            let at = if last == "-" {
                items.len()
            } else if last.starts_with('-') {
                // -1 adds at the end: the list is counted with the new item.
                index(last, items.len() + 1)?
            } else {
                index(last, items.len())?
            };
            if at > items.len() {
                return None;
            }
            items.insert(at, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(document: &mut Value, path: &[String]) -> Option<Value> {
    let (last, parents) = path.split_last()?;
    match get_mut(document, parents)? {
        Value::Object(map) => map.remove(last),
        Value::Array(items) => {
            let at = index(last, items.len()).filter(|i| *i < items.len())?;
            Some(items.remove(at))
        }
        _ => None,
    }
}

/// Replaces a value. A field that is missing is added; a list item has to be there.
fn replace(document: &mut Value, path: &[String], value: Value) -> Option<()> {
    if let Some((last, parents)) = path.split_last()
        && let Value::Object(map) = get_mut(document, parents)?
    {
        map.insert(last.clone(), value);
        return Some(());
    }
    *get_mut(document, path)? = value;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn run(document: Value, patch: Value) -> Result<Value, PatchError> {
        JsonPatch::parse(patch.to_string().as_bytes(), &mut Default::default())?.apply(&document)
    }

    #[test]
    fn operations() {
        let doc = json!({"a": {"b": [1, 2, 3]}, "l": {"x": "1"}});
        for (patch, want) in [
            (
                json!([{"op": "add", "path": "/a/b/0", "value": 0}]),
                Some(json!({"a": {"b": [0, 1, 2, 3]}, "l": {"x": "1"}})),
            ),
            (
                json!([{"op": "add", "path": "/a/b/-", "value": 4}]),
                Some(json!({"a": {"b": [1, 2, 3, 4]}, "l": {"x": "1"}})),
            ),
            (
                json!([{"op": "remove", "path": "/a/b/-1"}]),
                Some(json!({"a": {"b": [1, 2]}, "l": {"x": "1"}})),
            ),
            (
                json!([{"op": "move", "from": "/l/x", "path": "/y"}]),
                Some(json!({"a": {"b": [1, 2, 3]}, "l": {}, "y": "1"})),
            ),
            (
                json!([{"op": "copy", "from": "/l/x", "path": "/a/b/1"}]),
                Some(json!({"a": {"b": [1, "1", 2, 3]}, "l": {"x": "1"}})),
            ),
            (
                json!([{"op": "add", "path": "/l/a.b~1c", "value": 1}]),
                Some(json!({"a": {"b": [1, 2, 3]}, "l": {"x": "1", "a.b/c": 1}})),
            ),
            (json!([{"op": "test", "path": "/never", "value": null}]), Some(doc.clone())),
            (
                json!([{"op": "add", "path": "a/q", "value": 1}]),
                Some(json!({"a": {"b": [1, 2, 3]}, "l": {"x": "1"}, "q": 1})),
            ),
            (json!([{"op": "replace", "path": "", "value": {}}]), Some(json!({}))),
            (json!([{"op": "test", "path": "/l/x", "value": "2"}]), None),
            (json!([{"op": "remove", "path": "/l/never"}]), None),
            (json!([{"op": "replace", "path": "/a/b/7", "value": 1}]), None),
            (json!([{"op": "add", "path": "/no/where", "value": 1}]), None),
            (json!([{"op": "add", "path": "/a/b/9", "value": 1}]), None),
            (json!([{"op": "add", "value": 1}]), None),
            (json!([{"op": "odd", "path": "/l"}]), None),
        ] {
            assert_eq!(run(doc.clone(), patch.clone()).ok(), want, "{patch}");
        }
        assert!(matches!(run(doc.clone(), json!({"op": "add"})), Err(PatchError::Malformed(_))));
        let many: Vec<Value> = (0..10_001).map(|_| json!({"op": "test", "path": "/never"})).collect();
        assert_eq!(run(doc, Value::Array(many)), Err(PatchError::TooManyOperations(10_001)));
    }

    proptest! {
        #[test]
        fn a_failed_patch_changes_nothing_and_none_panics(op in "(add|remove|replace|test|move|copy)", path in "[/a-c0-9~-]{0,8}", from in "[/a-c0-2-]{0,5}") {
            let doc = json!({"a": [1, {"b": 2}], "b": {"c": []}});
            let _ = run(doc, json!([{"op": op, "path": path, "from": from, "value": 5}]));
        }
    }
}
