//! The schema of a custom resource as OpenAPI publishes it.
//!
//! Shapes follow what kube-apiserver publishes for custom resources: metadata is a reference to `ObjectMeta`, a resource
//! whose unknown fields are kept says nothing of its fields in v2.

use serde_json::{Map, Value, json};

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

/// Which OpenAPI is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    V2,
    V3,
}

/// The name of a kind's schema: the group backwards, the version, the kind (`com.example.stable.v1.CronTab`).
pub fn name(kind: &Kind) -> String {
    let mut parts: Vec<&str> = kind.group.split('.').collect();
    parts.reverse();
    format!("{}.{}.{}", parts.join("."), kind.version, kind.kind)
}

/// The schemas of a kind defined at run time and of its list, by name. References begin with `prefix`
/// (`#/components/schemas/`); those to `ObjectMeta` and `ListMeta` lead to built-in types.
pub fn schemas(kind: &Kind, prefix: &str, dialect: Dialect) -> Vec<(String, Value)> {
    let Some(custom) = &kind.custom else { return Vec::new() };
    let gvk = |kind_name: &str| json!([{"group": kind.group, "version": kind.version, "kind": kind_name}]);
    let mut schema = custom.open_api_schema().unwrap_or_else(|| json!({"type": "object"}));
    let keeps_all = schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    if dialect == Dialect::V2 {
        if keeps_all {
            schema = json!({"type": "object"});
        } else {
            to_v2(&mut schema);
        }
    }
    let bare = schema.get("properties").is_none();
    if let Some(map) = schema.as_object_mut() {
        if !(bare && (keeps_all || map.len() <= 1)) {
            let properties = map.entry("properties").or_insert_with(|| json!({}));
            type_meta(properties);
            let reference = format!("{prefix}{OBJECT_META}");
            properties["metadata"] = match dialect {
                Dialect::V2 => json!({"description": METADATA, "$ref": reference}),
                Dialect::V3 => json!({"description": METADATA, "allOf": [{"$ref": reference}]}),
            };
        }
        map.insert("x-kubernetes-group-version-kind".into(), gvk(&kind.kind));
    }
    let (item, list) = (name(kind), format!("{}List", name(kind)));
    let mut properties = json!({
        "metadata": {"description": METADATA, "$ref": format!("{prefix}{LIST_META}")},
        "items": {"description": format!("List of {}. More info: https://git.k8s.io/community/contributors/devel/\
            sig-architecture/api-conventions.md", kind.plural), "type": "array",
            "items": {"$ref": format!("{prefix}{item}")}}});
    type_meta(&mut properties);
    let list_schema = json!({"description": format!("{} is a list of {}", kind.list_kind, kind.kind), "type": "object",
        "required": ["items"], "properties": properties,
        "x-kubernetes-group-version-kind": gvk(&kind.list_kind)});
    vec![(item, schema), (list, list_schema)]
}

fn type_meta(properties: &mut Value) {
    properties["apiVersion"] = json!({"description": API_VERSION, "type": "string"});
    properties["kind"] = json!({"description": KIND, "type": "string"});
}

/// Takes out of a schema what OpenAPI v2 cannot say, down to its leaves.
fn to_v2(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    for field in ["oneOf", "anyOf", "allOf", "not"] {
        map.remove(field);
    }
    let flag = |map: &Map<String, Value>, field: &str| map.get(field) == Some(&Value::Bool(true));
    if flag(map, "x-kubernetes-preserve-unknown-fields") {
        for field in ["items", "properties"] {
            map.remove(field);
        }
    }
    let nullable = map.remove("nullable") == Some(Value::Bool(true));
    if nullable || flag(map, "x-kubernetes-preserve-unknown-fields") && !map.contains_key("type") {
        // kubectl would refuse null for a typed field.
        for field in ["type", "items", "properties"] {
            map.remove(field);
        }
    }
    for (field, value) in map.iter_mut() {
        match field.as_str() {
            "properties" => value.as_object_mut().into_iter().flatten().for_each(|(_, s)| to_v2(s)),
            "items" | "additionalProperties" => to_v2(value),
            _ => {}
        }
    }
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
        assert_eq!(name(&kind), "com.e.stable.v1.W");
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
    fn what_keeps_everything_says_little() {
        let kind = kind(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
        let v3 = &schemas(&kind, "", Dialect::V3)[0].1;
        assert_eq!((v3.get("properties"), &v3["x-kubernetes-preserve-unknown-fields"]), (None, &json!(true)));
    }
}
