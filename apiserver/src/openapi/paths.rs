//! The paths of a row as OpenAPI operations.

use hawser_api::kinds::Kind;
use hawser_api::schema;
use serde_json::{Map, Value, json};

const LIST_PARAMETERS: &[(&str, &str)] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE_PARAMETERS: &[(&str, &str)] =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const DELETE_PARAMETERS: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];

/// An operation: HTTP method, Kubernetes' name for the action, parameters, whether it has a body.
type Operation = (&'static str, &'static str, &'static [(&'static str, &'static str)], bool);

/// Verb of discovery → operation. Collections first.
const COLLECTION: &[(&str, Operation)] = &[
    ("list", ("get", "list", LIST_PARAMETERS, false)),
    ("create", ("post", "post", WRITE_PARAMETERS, true)),
    ("deletecollection", ("delete", "deletecollection", DELETE_PARAMETERS, false)),
];
const ITEM: &[(&str, Operation)] = &[
    ("get", ("get", "get", &[], false)),
    ("update", ("put", "put", WRITE_PARAMETERS, true)),
    ("patch", ("patch", "patch", WRITE_PARAMETERS, true)),
    ("delete", ("delete", "delete", DELETE_PARAMETERS, false)),
];

/// Which dialect is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

/// An operation on a path that is no resource.
pub(super) fn plain() -> Value {
    json!({"get": {"responses": {"200": {"description": "OK"}}}})
}

/// Adds a row's paths in OpenAPI v3.
pub(super) fn add(paths: &mut Map<String, Value>, kind: &Kind) {
    add_in(paths, kind, Dialect::V3);
}

/// Adds a row's paths in OpenAPI v2.
pub(super) fn add_v2(paths: &mut Map<String, Value>, kind: &Kind) {
    add_in(paths, kind, Dialect::V2);
}

fn add_in(paths: &mut Map<String, Value>, kind: &Kind, dialect: Dialect) {
    let root = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    let base = if kind.namespaced { format!("{root}/namespaces/{{namespace}}") } else { root.clone() };
    let collection = format!("{base}/{}", kind.plural);
    let gvk =
        |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let own = gvk(&kind.group, &kind.version, &kind.kind);
    let type_name = match &kind.custom {
        Some(_) => Some(hawser_api::crd::publish::name(kind)),
        None => schema::of(kind).map(|t| t.openapi_name()),
    };
    let mut insert =
        |path: String, verbs: &[String], table: &[(&str, Operation)], gvk: &Value, ty: Option<&str>| {
            let operations: Map<String, Value> = table
                .iter()
                .filter(|(verb, _)| verbs.iter().any(|v| v == verb))
                .map(|(_, op)| (op.0.to_owned(), operation(op, gvk, ty, dialect)))
                .collect();
            if operations.is_empty() {
                return;
            }
            let mut item = operations;
            let names: Vec<Value> = ["namespace", "name"]
                .into_iter()
                .filter(|n| path.contains(&format!("{{{n}}}")))
                .map(|n| parameter(n, "string", "path", dialect))
                .collect();
            if !names.is_empty() {
                item.insert("parameters".into(), Value::Array(names));
            }
            paths.insert(path, Value::Object(item));
        };
    insert(collection.clone(), &kind.verbs, COLLECTION, &own, type_name.as_deref());
    if kind.namespaced && kind.has_verb("list") {
        insert(
            format!("{root}/{}", kind.plural),
            &["list".to_owned()],
            COLLECTION,
            &own,
            type_name.as_deref(),
        );
    }
    insert(format!("{collection}/{{name}}"), &kind.verbs, ITEM, &own, type_name.as_deref());
    for sub in &kind.subresources {
        let (group, version) = match (&sub.group, &sub.version) {
            (Some(g), Some(v)) => (g.as_str(), v.as_str()),
            _ => (kind.group.as_str(), kind.version.as_str()),
        };
        let ty = schema::find_kind(&hawser_api::object::api_version(group, version), &sub.kind)
            .map(|t| t.openapi_name());
        let path = format!("{collection}/{{name}}/{}", sub.name);
        let table: Vec<(&str, Operation)> =
            ITEM.iter().copied().chain([("create", ("post", "post", WRITE_PARAMETERS, true))]).collect();
        insert(path, &sub.verbs, &table, &gvk(group, version, &sub.kind), ty.as_deref());
    }
}

fn parameter(name: &str, ty: &str, place: &str, dialect: Dialect) -> Value {
    let mut out = json!({"name": name, "in": place});
    match dialect {
        Dialect::V3 => out["schema"] = json!({"type": ty, "uniqueItems": true}),
        Dialect::V2 => {
            out["type"] = json!(ty);
            out["uniqueItems"] = json!(true);
        }
    }
    if place == "path" {
        out["required"] = json!(true);
    }
    out
}

fn operation(op: &Operation, gvk: &Value, ty: Option<&str>, dialect: Dialect) -> Value {
    let (_, action, parameters, has_body) = *op;
    let mut list: Vec<Value> =
        parameters.iter().map(|(name, ty)| parameter(name, ty, "query", dialect)).collect();
    let result = match (ty, action) {
        (Some(ty), "list") => Some(format!("{ty}List")),
        (Some(ty), _) => Some(ty.to_owned()),
        (None, _) => None,
    };
    let mut out = json!({"x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk});
    let consumes: &[&str] = match action {
        "patch" => &[
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
        ],
        _ => &["application/json", "application/yaml"],
    };
    let body = if action == "patch" { json!({"type": "object"}) } else { reference(ty, dialect) };
    match dialect {
        Dialect::V3 => {
            let content = |schema: &Value, types: &[&str]| -> Map<String, Value> {
                types.iter().map(|t| ((*t).to_owned(), json!({"schema": schema}))).collect()
            };
            if has_body {
                out["requestBody"] = json!({"required": true, "content": content(&body, consumes)});
            }
            let answer = reference(result.as_deref(), dialect);
            out["responses"] = json!({"200": {"description": "OK",
                "content": content(&answer, &["application/json", "application/yaml"])}});
        }
        Dialect::V2 => {
            if has_body {
                list.push(json!({"name": "body", "in": "body", "required": true, "schema": body}));
                out["consumes"] = json!(consumes);
            }
            out["produces"] = json!(["application/json", "application/yaml"]);
            out["responses"] =
                json!({"200": {"description": "OK", "schema": reference(result.as_deref(), dialect)}});
        }
    }
    if !list.is_empty() {
        out["parameters"] = Value::Array(list);
    }
    out
}

fn reference(ty: Option<&str>, dialect: Dialect) -> Value {
    match (ty, dialect) {
        (None, _) => json!({"type": "object"}),
        (Some(ty), Dialect::V3) => json!({"$ref": format!("#/components/schemas/{ty}")}),
        (Some(ty), Dialect::V2) => json!({"$ref": format!("#/definitions/{ty}")}),
    }
}
