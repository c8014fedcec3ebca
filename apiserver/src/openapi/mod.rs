//! OpenAPI v3: an index with hashes and one document per group version, made from the schema table when asked for.
//!
//! Documents are large and asked for seldom; none is kept. The hash of a document is that of what it is made from.

mod paths;
mod schemas;

use bytes::Bytes;
use hawser_api::status::Status;
use http::Response;
use http::header::{ACCEPT, ETAG, HeaderValue, IF_NONE_MATCH};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha512};

use crate::body::Body;
use crate::discovery::{groups, versions};
use crate::kinds::Table;
use crate::negotiate::Encoding;
use crate::request_info::RequestInfo;
use crate::{respond, version};

const ROOT: &str = "/openapi/v3";

/// Answers `/openapi/v3` and below, and `/openapi/v2`.
#[derive(Debug, Default)]
pub struct OpenApi;

impl OpenApi {
    /// Answers a path; None when it is none of OpenAPI's.
    pub fn answer(
        &self,
        table: &Table,
        info: &RequestInfo,
        headers: &http::HeaderMap,
    ) -> Option<Response<Body>> {
        if info.path == "/openapi/v2" {
            return Some(self.v2(table, headers));
        }
        let name = info.path.strip_prefix(ROOT)?.trim_matches('/');
        if name.is_empty() {
            let index = index(table).to_string();
            return Some(respond::bytes_answer(200, index, "text/plain; charset=utf-8"));
        }
        let known = names(table).into_iter().find(|n| n == name);
        let Some(name) = known else { return Some(respond::text(404, "404 page not found\n")) };
        if !takes_json(headers) {
            return Some(respond::status(&Status::not_acceptable(), Encoding::Json));
        }
        let hash = hash(table, &name);
        let tag = format!("\"{hash}\"");
        if headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok()) == Some(tag.as_str()) {
            return Some(respond::bytes_answer(304, Bytes::new(), "application/json"));
        }
        let mut response = respond::value(200, &document(table, &name), Encoding::Json);
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            response.headers_mut().insert(ETAG, tag);
        }
        if info.param("hash") == Some(hash.as_str()) {
            // Named by its hash a document never changes.
            let forever = HeaderValue::from_static("public, immutable");
            response.headers_mut().insert(http::header::CACHE_CONTROL, forever);
        }
        Some(response)
    }

    /// The older form in one document: the same schemas under `definitions`.
    fn v2(&self, table: &Table, headers: &http::HeaderMap) -> Response<Body> {
        if !takes_json(headers) {
            return respond::status(&Status::not_acceptable(), Encoding::Json);
        }
        let mut types = schemas::Collector::default();
        let mut all = Map::new();
        for row in table.rows() {
            paths::add_v2(&mut all, &row.kind);
            types.add_kind(&row.kind);
        }
        let definitions = types.finish("#/definitions/");
        let document =
            json!({"swagger": "2.0", "info": info_object(), "paths": all, "definitions": definitions});
        respond::value(200, &document, Encoding::Json)
    }
}

/// Clients of OpenAPI also ask for a protobuf form, which is not served.
fn takes_json(headers: &http::HeaderMap) -> bool {
    match headers.get(ACCEPT).and_then(|v| v.to_str().ok()) {
        None | Some("") => true,
        Some(accept) => accept.split(',').any(|clause| {
            let media = clause.split(';').next().unwrap_or_default().trim();
            matches!(media, "*/*" | "application/*" | "application/json")
        }),
    }
}

fn info_object() -> Value {
    json!({"title": "Kubernetes", "version": version::git_version()})
}

/// Names of the documents: path prefixes without the leading slash.
fn names(table: &Table) -> Vec<String> {
    let mut names: Vec<String> = [".well-known/openid-configuration", "api", "api/v1", "apis"]
        .into_iter()
        .map(str::to_owned)
        .collect();
    for group in groups(table) {
        names.push(format!("apis/{group}"));
        names.extend(versions(table, group).iter().map(|v| format!("apis/{group}/{v}")));
    }
    names.extend(["openid/v1/jwks".to_owned(), "version".to_owned()]);
    names
}

fn index(table: &Table) -> Value {
    let paths: Map<String, Value> = names(table)
        .into_iter()
        .map(|name| {
            let url = format!("{ROOT}/{name}?hash={}", hash(table, &name));
            (name, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// The hash of what a document is made from: the program's version and the rows.
fn hash(table: &Table, name: &str) -> String {
    let mut digest = Sha512::new();
    digest.update(version::git_version());
    digest.update(name);
    for row in table.rows().iter().filter(|row| is_of(&row.kind, name)) {
        digest.update(format!("{:?}", row.kind));
    }
    hex::encode_upper(digest.finalize())
}

fn is_of(kind: &hawser_api::kinds::Kind, name: &str) -> bool {
    let prefix = if kind.group.is_empty() { "api".to_owned() } else { format!("apis/{}", kind.group) };
    name.strip_prefix(&prefix).and_then(|r| r.strip_prefix('/')) == Some(kind.version.as_str())
}

fn document(table: &Table, name: &str) -> Value {
    let mut all = Map::new();
    let mut types = schemas::Collector::default();
    for row in table.rows().iter().filter(|row| is_of(&row.kind, name)) {
        paths::add(&mut all, &row.kind);
        types.add_kind(&row.kind);
    }
    if all.is_empty() {
        let path = format!("/{name}{}", if name.starts_with("api") { "/" } else { "" });
        all.insert(path, paths::plain());
    }
    json!({"openapi": "3.0.0", "info": info_object(), "paths": all,
        "components": {"schemas": types.finish("#/components/schemas/")}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::KindsRegistry;

    /// Every `$ref` of a document must lead somewhere.
    fn dangling(value: &Value, prefix: &str, schemas: &Map<String, Value>, out: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    let name = target.strip_prefix(prefix).unwrap_or_default();
                    if !schemas.contains_key(name) {
                        out.push(target.clone());
                    }
                }
                map.values().for_each(|v| dangling(v, prefix, schemas, out));
            }
            Value::Array(items) => items.iter().for_each(|v| dangling(v, prefix, schemas, out)),
            _ => {}
        }
    }

    #[test]
    fn documents_are_whole() {
        let registry = KindsRegistry::builtin(&[]);
        let table = registry.snapshot();
        for name in names(&table) {
            let document = document(&table, &name);
            let schemas = document["components"]["schemas"].as_object().expect("schemas");
            let mut missing = Vec::new();
            dangling(&document, "#/components/schemas/", schemas, &mut missing);
            assert!(missing.is_empty(), "{name}: {missing:?}");
            assert!(!document["paths"].as_object().expect("paths").is_empty(), "{name}");
        }
    }

    #[test]
    fn kubectl_finds_field_validation_and_schemas() {
        let registry = KindsRegistry::builtin(&[]);
        let document = document(&registry.snapshot(), "apis/apps/v1");
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
        let parameters = patch["parameters"].as_array().expect("parameters");
        assert!(parameters.iter().any(|p| p["name"] == "fieldValidation"));
        let schemas = document["components"]["schemas"].as_object().expect("schemas");
        let spec = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(spec["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(spec["x-kubernetes-patch-merge-key"], "name");
        let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(deployment["x-kubernetes-group-version-kind"][0]["version"], "v1");
    }
}
