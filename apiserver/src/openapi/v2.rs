//! From OpenAPI v3 to v2: parameters without a schema of their own, one schema per answer, plain references.

use serde_json::{Map, Value, json};

use super::schemas::PREFIX;

/// What references begin with.
const DEFINITIONS: &str = "#/definitions/";
/// Keywords that the older dialect does not have, or that Kubernetes leaves out of it.
const NEWER: &[&str] = &["oneOf", "anyOf", "not", "nullable", "default", "allOf"];

/// A path's operations.
pub(super) fn path_item(item: Value) -> Value {
    let Value::Object(item) = item else { return item };
    let convert = |(key, value): (String, Value)| {
        let value = if key == "parameters" { parameters(value) } else { operation(value) };
        (key, value)
    };
    Value::Object(item.into_iter().map(convert).collect())
}

fn parameters(list: Value) -> Value {
    let Value::Array(list) = list else { return json!([]) };
    let flat = |mut parameter: Value| {
        if let Some(map) = parameter.as_object_mut()
            && let Some(Value::Object(schema)) = map.remove("schema")
        {
            map.extend(schema);
        }
        parameter
    };
    list.into_iter().map(flat).collect()
}

fn operation(operation: Value) -> Value {
    let Value::Object(mut map) = operation else { return operation };
    let mut list = map.remove("parameters").map_or_else(|| json!([]), parameters);
    let mut consumes = vec!["*/*".to_owned()];
    if let Some(mut body) = map.remove("requestBody") {
        let (types, schema) = content(&mut body);
        consumes = types;
        let mut parameter = json!({"name": "body", "in": "body", "schema": schema});
        if body["required"] == true {
            parameter["required"] = json!(true);
        }
        if let Value::Array(list) = &mut list {
            list.insert(0, parameter);
        }
    }
    let mut produces = Vec::new();
    if let Some(Value::Object(responses)) = map.get_mut("responses") {
        for answer in responses.values_mut() {
            let (types, schema) = content(answer);
            if !types.is_empty() {
                answer["schema"] = schema;
                produces = types;
            }
        }
    }
    if list.as_array().is_some_and(|l| !l.is_empty()) {
        map.insert("parameters".into(), list);
    }
    map.insert("consumes".into(), json!(consumes));
    map.insert("produces".into(), json!(produces));
    map.insert("schemes".into(), json!(["https"]));
    Value::Object(map)
}

/// Takes the bodies out of a request or answer: their media types, and the schema that they share.
fn content(of: &mut Value) -> (Vec<String>, Value) {
    let Some(Value::Object(content)) = of.as_object_mut().and_then(|m| m.remove("content")) else {
        return (Vec::new(), Value::Null);
    };
    let shared = content.values().next().and_then(|c| c.get("schema")).cloned().unwrap_or_default();
    (content.into_iter().map(|(media, _)| media).collect(), schema(shared))
}

/// A schema.
pub(super) fn schema(value: Value) -> Value {
    let Value::Object(map) = value else { return value };
    let mut out = Map::new();
    let one_of = map.contains_key("oneOf") || map.contains_key("anyOf");
    // A reference that stands in a list to have room for a description.
    if let Some(target) = map.get("allOf").and_then(|all| all.get(0)).and_then(|first| first.get("$ref")) {
        out.insert("$ref".into(), rename(target));
    }
    for (key, value) in map {
        let value = match (key.as_str(), value) {
            (key, _) if NEWER.contains(&key) => continue,
            ("$ref", target) => rename(&target),
            ("properties" | "patternProperties" | "definitions", Value::Object(properties)) => {
                Value::Object(properties.into_iter().map(|(k, v)| (k, schema(v))).collect())
            }
            ("items" | "additionalProperties", inner) => schema(inner),
            (_, value) => value,
        };
        out.insert(key, value);
    }
    // Quantities, and numbers that may be names.
    if one_of && !out.contains_key("type") && !out.contains_key("properties") {
        out.insert("type".into(), json!("string"));
    }
    Value::Object(out)
}

/// The schema of a kind defined at run time: it was made for this dialect, only references lead elsewhere.
pub(super) fn defined(value: Value) -> Value {
    let inner = |(key, value): (String, Value)| {
        let value = if key == "$ref" && value.is_string() { rename(&value) } else { defined(value) };
        (key, value)
    };
    match value {
        Value::Object(map) => map.into_iter().map(inner).collect(),
        Value::Array(items) => items.into_iter().map(defined).collect(),
        value => value,
    }
}

fn rename(target: &Value) -> Value {
    let text = target.as_str().unwrap_or_default();
    json!(text.strip_prefix(PREFIX).map_or_else(|| text.to_owned(), |name| format!("{DEFINITIONS}{name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas() {
        let v3 = json!({"type": "object", "properties": {"default": {"type": "string", "default": ""},
            "a": {"allOf": [{"$ref": "#/components/schemas/A"}], "default": {}, "description": "d"},
            "q": {"oneOf": [{"type": "string"}, {"type": "number"}]}}});
        assert_eq!(
            schema(v3),
            json!({"type": "object", "properties": {"default": {"type": "string"},
                "a": {"$ref": "#/definitions/A", "description": "d"}, "q": {"type": "string"}}})
        );
    }

    #[test]
    fn operations() {
        let v3 = json!({"post": {"operationId": "x",
            "requestBody": {"content": {"*/*": {"schema": {"$ref": "#/components/schemas/A"}}}, "required": true},
            "parameters": [{"name": "p", "in": "query", "schema": {"type": "string", "uniqueItems": true}}],
            "responses": {"200": {"description": "OK",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/A"}}}}}}});
        let item = path_item(v3);
        assert_eq!(item["post"]["parameters"][0]["schema"]["$ref"], "#/definitions/A");
        assert_eq!(
            item["post"]["parameters"][1],
            json!({"name": "p", "in": "query", "type": "string", "uniqueItems": true})
        );
        assert_eq!(item["post"]["responses"]["200"]["schema"]["$ref"], "#/definitions/A");
        assert_eq!(item["post"]["produces"], json!(["application/json"]));
    }
}
