//! The schema of a custom resource as OpenAPI publishes it.
//!
//! Shapes follow what kube-apiserver publishes for custom resources: metadata is a reference to `ObjectMeta`, a resource
//! whose unknown fields are kept says nothing of its fields in v2.

use serde_json::{Value, json};

use crate::kinds::Kind;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should \
                           convert recognized schemas to the latest internal value, and may reject unrecognized \
                           values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/\
                           api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer \
                    this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: \
                    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const METADATA: &str = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/\
                        sig-architecture/api-conventions.md#metadata";

const EMBEDDED_API_VERSION: &str = "apiVersion defines the versioned schema of this representation of an object. More \
                                    info: https://git.k8s.io/community/contributors/devel/sig-architecture/\
                                    api-conventions.md#resources";
const EMBEDDED_KIND: &str = "kind is a string value representing the type of this object. In CamelCase. More info: \
                             https://git.k8s.io/community/contributors/devel/sig-architecture/\
                             api-conventions.md#types-kinds";
const KEEPS_UNKNOWN: &str = "x-kubernetes-preserve-unknown-fields";

/// Which OpenAPI is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Swagger 2.0
    V2,
    /// OpenAPI 3.0
    V3,
}

/// The name of the schema of a kind beside a row's: the group backwards, the version, the kind
/// (`com.example.stable.v1.CronTab`).
pub fn name(row: &Kind, kind: &str) -> String {
    let group: Vec<&str> = row.group.rsplit('.').collect();
    format!("{}.{}.{kind}", group.join("."), row.version)
}

/// The schemas of a kind defined at run time and of its list, by name. References begin with `prefix`
/// (`#/components/schemas/`); those to `ObjectMeta` and `ListMeta` lead to built-in types.
pub fn schemas(kind: &Kind, prefix: &str, dialect: Dialect) -> Vec<(String, Value)> {
    let Some(custom) = &kind.custom else { return Vec::new() };
    let gvk = |kind_name: &str| json!([{"group": kind.group, "version": kind.version, "kind": kind_name}]);
    let published = custom.open_api_schema().filter(Value::is_object).filter(|schema| {
        // kubectl would take the fields of v2 for all that there are.
        dialect == Dialect::V3 || custom.compiled().prunes && !is_set(schema, KEEPS_UNKNOWN)
    });
    let meta = |name: &str| {
        let target = format!("{prefix}{name}");
        match dialect {
            Dialect::V2 => json!({"description": METADATA, "$ref": target}),
            Dialect::V3 => json!({"description": METADATA, "allOf": [{"$ref": target}]}),
        }
    };
    let mut schema = json!({"type": "object"});
    if let Some(published) = published {
        schema = published;
        if dialect == Dialect::V2 {
            to_v2(&mut schema);
        }
        embedded(&mut schema, &meta(OBJECT_META), dialect);
        let properties = &mut schema["properties"];
        type_meta(properties, API_VERSION, KIND);
        properties["metadata"] = meta(OBJECT_META);
    }
    schema["x-kubernetes-group-version-kind"] = gvk(&kind.kind);
    let (item, list) = (name(kind, &kind.kind), name(kind, &kind.list_kind));
    let mut properties = json!({
        "metadata": meta(LIST_META),
        "items": {"description": format!("List of {}. More info: https://git.k8s.io/community/contributors/devel/\
            sig-architecture/api-conventions.md", kind.plural), "type": "array",
            "items": {"$ref": format!("{prefix}{item}")}}});
    type_meta(&mut properties, API_VERSION, KIND);
    let list_schema = json!({"description": format!("{} is a list of {}", kind.list_kind, kind.kind), "type": "object",
        "required": ["items"], "properties": properties,
        "x-kubernetes-group-version-kind": gvk(&kind.list_kind)});
    vec![(item, schema), (list, list_schema)]
}

fn is_set(schema: &Value, keyword: &str) -> bool {
    schema.get(keyword) == Some(&Value::Bool(true))
}

fn type_meta(properties: &mut Value, api_version: &str, kind: &str) {
    properties["apiVersion"] = json!({"description": api_version, "type": "string"});
    properties["kind"] = json!({"description": kind, "type": "string"});
}

/// The schemas directly within one.
fn within(schema: &mut Value) -> impl Iterator<Item = &mut Value> {
    let map = schema.as_object_mut().into_iter().flatten();
    map.flat_map(|(keyword, value)| -> Vec<&mut Value> {
        match (keyword.as_str(), value) {
            ("properties", Value::Object(properties)) => properties.values_mut().collect(),
            ("items" | "additionalProperties", value) => vec![value],
            _ => Vec::new(),
        }
    })
}

/// Gives objects within objects the fields of one.
fn embedded(schema: &mut Value, metadata: &Value, dialect: Dialect) {
    within(schema).for_each(|inner| embedded(inner, metadata, dialect));
    // What of v2 keeps unknown fields names none.
    if !is_set(schema, "x-kubernetes-embedded-resource")
        || dialect == Dialect::V2 && is_set(schema, KEEPS_UNKNOWN)
    {
        return;
    }
    let properties = &mut schema["properties"];
    type_meta(properties, EMBEDDED_API_VERSION, EMBEDDED_KIND);
    properties["metadata"] = metadata.clone();
    let mut required = schema["required"].as_array().cloned().unwrap_or_default();
    for field in ["kind", "apiVersion"] {
        if !required.iter().any(|r| r == field) {
            required.push(json!(field));
        }
    }
    schema["required"] = json!(required);
}

/// Takes out of a schema what OpenAPI v2 cannot say, and what kubectl misreads in it, down to its leaves.
fn to_v2(schema: &mut Value) {
    let nullable = |of: Option<&Value>| of.is_some_and(|s| is_set(s, "nullable"));
    let nullable_properties: Vec<String> =
        schema["properties"].as_object().map_or_else(Vec::new, |properties| {
            properties.iter().filter(|(_, s)| nullable(Some(s))).map(|(name, _)| name.clone()).collect()
        });
    let nullable_values = nullable(schema.get("additionalProperties"));
    let (null, keeps) = (nullable(Some(schema)), is_set(schema, KEEPS_UNKNOWN));
    let Some(map) = schema.as_object_mut() else { return };
    for keyword in ["oneOf", "anyOf", "allOf", "not", "nullable"] {
        map.remove(keyword);
    }
    if null || keeps {
        map.remove("items");
        map.remove("properties");
    }
    let shown = map.get("type").and_then(Value::as_str).unwrap_or_default();
    if null || keeps && shown == "object" || shown == "array" && !map.contains_key("items") {
        map.remove("type");
    }
    // What may be null is not there for kubectl.
    if nullable_values {
        map.remove("required");
    } else if let Some(Value::Array(required)) = map.get_mut("required") {
        required.retain(|r| r.as_str().is_none_or(|r| !nullable_properties.iter().any(|n| n == r)));
    }
    within(schema).for_each(to_v2);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::crd::rows::rows;

    fn kind(schema: Value) -> Kind {
        let crd = json!({"metadata": {"name": "ws.e.com"}, "spec": {"group": "stable.e.com", "versions": [
            {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]},
            "status": {"acceptedNames": {"kind": "W", "plural": "ws", "listKind": "WList"},
                "conditions": [{"type": "Established", "status": "True"}]}});
        rows(&crd, &(Arc::new(crd.to_string().into_bytes()) as _)).remove(0)
    }

    #[test]
    fn schemas_are_published() {
        let kind = kind(
            json!({"type": "object", "description": "A w.", "properties": {"spec": {"type": "object", "nullable": true,
            "properties": {"a": {"type": "string"}}}, "n": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}]}}}),
        );
        assert_eq!(name(&kind, &kind.kind), "com.e.stable.v1.W");
        let v3 = schemas(&kind, "#/components/schemas/", Dialect::V3);
        assert_eq!(
            v3.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(),
            ["com.e.stable.v1.W", "com.e.stable.v1.WList"]
        );
        let w = &v3[0].1;
        assert_eq!(w["properties"]["spec"]["properties"]["a"], json!({"type": "string"}));
        assert_eq!(
            w["x-kubernetes-group-version-kind"],
            json!([{"group": "stable.e.com", "version": "v1", "kind": "W"}])
        );
        assert!(
            w["properties"]["metadata"]["allOf"][0]["$ref"]
                .as_str()
                .is_some_and(|r| r.ends_with("ObjectMeta"))
        );
        let v2 = &schemas(&kind, "#/definitions/", Dialect::V2)[0].1;
        assert_eq!(v2["properties"]["spec"], json!({}));
        assert_eq!(v2["properties"]["n"], json!({"x-kubernetes-int-or-string": true}));
    }

    #[test]
    fn what_keeps_everything_says_little_in_v2() {
        let kind = kind(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
        let v3 = &schemas(&kind, "", Dialect::V3)[0].1;
        assert!(v3["properties"]["metadata"].is_object());
        assert_eq!(v3["x-kubernetes-preserve-unknown-fields"], true);
        assert_eq!(schemas(&kind, "", Dialect::V2)[0].1.get("properties"), None);
    }

    #[test]
    fn what_kubectl_misreads_is_left_out_of_v2() {
        let free =
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {}}});
        for (schema, want) in [
            (free, json!({"x-kubernetes-preserve-unknown-fields": true})),
            (json!({"type": "array"}), json!({})),
            (json!({"type": "string", "default": "d"}), json!({"type": "string", "default": "d"})),
            (
                json!({"type": "object", "required": ["a", "b"], "properties": {"a": {"nullable": true}, "b": {}}}),
                json!({"type": "object", "required": ["b"], "properties": {"a": {}, "b": {}}}),
            ),
            (
                json!({"type": "object", "required": ["a"], "additionalProperties": {"nullable": true}}),
                json!({"type": "object", "additionalProperties": {}}),
            ),
        ] {
            let mut out = schema;
            to_v2(&mut out);
            assert_eq!(out, want);
        }
    }

    #[test]
    fn objects_within_objects_have_the_fields_of_one() {
        let inner = json!({"type": "object", "x-kubernetes-embedded-resource": true, "required": ["kind"]});
        let kind = kind(json!({"type": "object", "properties": {"list": {"type": "array", "items": inner}}}));
        for dialect in [Dialect::V2, Dialect::V3] {
            let schema = &schemas(&kind, "", dialect)[0].1["properties"]["list"]["items"];
            assert_eq!(schema["required"], json!(["kind", "apiVersion"]));
            assert!(schema["properties"]["metadata"].is_object());
        }
    }
}
