//! Discovery: what is served, in the legacy form (one document per group and version) and aggregated (KEP-3352).

use std::sync::Arc;

use bytes::Bytes;
use hawser_api::kinds::Kind;
use hawser_api::status::Status;
use http::Response;
use http::header::{ETAG, HeaderValue, IF_NONE_MATCH};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256, Sha512};

use crate::body::Body;
use crate::kinds::{Group, Row, Table};
use crate::negotiate::{DiscoveryForm, Encoding, accept_discovery};
use crate::respond;

/// Media type of aggregated discovery; `v2beta1` is gone since 1.35.
const AGGREGATED_TYPE: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Answers discovery paths; keeps the aggregated documents of the current table.
#[derive(Default)]
pub struct Discovery {
    aggregated: Mutex<Option<Aggregated>>,
}

#[derive(Clone)]
struct Aggregated {
    /// What the documents are of.
    table: Arc<Table>,
    /// `/api`
    core: Document,
    /// `/apis`
    groups: Document,
}

/// A document and its ETag.
type Document = (Bytes, String);

/// Whether a path is of a version of a built-in group.
fn speaks_of(parts: &[&str]) -> bool {
    match parts {
        ["api", _] => true,
        ["apis", group, _] => hawser_api::kinds::is_builtin_group(group),
        _ => false,
    }
}

impl Discovery {
    /// Answers `/api`, `/apis` and what is directly below them; None for other paths.
    pub fn answer(
        &self,
        table: &Arc<Table>,
        path: &str,
        headers: &http::HeaderMap,
        method: &http::Method,
        address: &str,
    ) -> Option<Response<Body>> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let root = match parts.as_slice() {
            ["api"] | ["apis"] => true,
            ["api", _] | ["apis", _] | ["apis", _, _] => false,
            _ => return None,
        };
        let accept = headers.get(http::header::ACCEPT).and_then(|v| v.to_str().ok());
        let (encoding, form) = match accept_discovery(accept, root) {
            Ok(found) => found,
            Err(status) => return Some(respond::status(&status, Encoding::Json)),
        };
        if form == DiscoveryForm::Aggregated {
            let documents = self.aggregated(table);
            let document = if parts == ["api"] { documents.core } else { documents.groups };
            return Some(with_etag(&document, AGGREGATED_TYPE, headers));
        }
        let document = match parts.as_slice() {
            ["api"] => Some(api_versions(address)),
            ["apis"] => Some(json!({"kind": "APIGroupList", "apiVersion": "v1",
                "groups": groups(table).iter().map(|g| group(table, g)).collect::<Vec<_>>()})),
            ["apis", name] => table.group(name).is_some_and(|g| !g.versions.is_empty()).then(|| {
                let mut group = group(table, name);
                group["kind"] = json!("APIGroup");
                group["apiVersion"] = json!("v1");
                group
            }),
            ["api", version] => resources(table, "", version),
            ["apis", group, version] => resources(table, group, version),
            _ => None,
        };
        Some(match document {
            // Groups that are built in speak of their other versions too.
            None if !root && speaks_of(&parts) => respond::status(&Status::unknown_resource(), encoding),
            None => respond::text(404, "404 page not found\n"),
            // `/apis` answers whatever is done to it, as that of Kubernetes does.
            Some(_) if parts != ["apis"] && !matches!(*method, http::Method::GET | http::Method::HEAD) => {
                respond::status(&Status::method_not_allowed(), encoding)
            }
            Some(document) => respond::value(200, &document, encoding),
        })
    }

    fn aggregated(&self, table: &Arc<Table>) -> Aggregated {
        let mut kept = self.aggregated.lock();
        if let Some(documents) = kept.as_ref().filter(|d| Arc::ptr_eq(&d.table, table)) {
            return documents.clone();
        }
        let document = |core: bool| {
            let groups = table.groups().filter(|g| g.name.is_empty() == core);
            let items = groups.map(|g| g.made.discovery.get_or_init(|| aggregated_group(g)));
            tagged(aggregated_list(items))
        };
        let documents = Aggregated { table: table.clone(), core: document(true), groups: document(false) };
        *kept = Some(documents.clone());
        documents
    }
}

/// A list of groups, each of which is JSON already.
fn aggregated_list<'g>(items: impl Iterator<Item = &'g Bytes>) -> Bytes {
    let mut out = b"{\"apiVersion\":\"apidiscovery.k8s.io/v2\",\"items\":[".to_vec();
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(item);
    }
    out.extend_from_slice(b"],\"kind\":\"APIGroupDiscoveryList\",\"metadata\":{}}");
    Bytes::from(out)
}

fn tagged(bytes: Bytes) -> Document {
    let tag = format!("\"{}\"", hex::encode_upper(Sha512::digest(&bytes)));
    (bytes, tag)
}

fn with_etag((bytes, tag): &Document, media: &'static str, headers: &http::HeaderMap) -> Response<Body> {
    let known = headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok()) == Some(tag.as_str());
    let mut response = if known {
        respond::bytes_answer(304, Bytes::new(), media)
    } else {
        respond::bytes_answer(200, bytes.clone(), media)
    };
    if let Ok(tag) = HeaderValue::from_str(tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response.headers_mut().insert(http::header::VARY, HeaderValue::from_static("Accept"));
    response
}

/// Names of the groups but the core group, in the order of discovery.
pub fn groups(table: &Table) -> Vec<&str> {
    table.groups().map(|g| &*g.name).filter(|n| !n.is_empty()).collect()
}

/// Versions of a group, preferred ones first.
pub fn versions<'t>(table: &'t Table, group: &str) -> Vec<&'t str> {
    table.group(group).map(|g| g.versions.iter().map(|v| v.name.as_str()).collect()).unwrap_or_default()
}

fn api_versions(address: &str) -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]})
}

fn group(table: &Table, name: &str) -> Value {
    let versions: Vec<Value> = versions(table, name)
        .into_iter()
        .map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v}))
        .collect();
    json!({"name": name, "preferredVersion": versions.first(), "versions": versions})
}

fn rows_of<'t>(table: &'t Table, group: &str, version: &str) -> Vec<&'t Arc<Row>> {
    table.group(group).and_then(|g| g.version(version)).map(|v| v.rows().collect()).unwrap_or_default()
}

fn resources(table: &Table, group: &str, version: &str) -> Option<Value> {
    let rows = rows_of(table, group, version);
    if rows.is_empty() {
        return None;
    }
    let mut resources = Vec::new();
    for row in rows {
        resources.push(resource(&row.kind));
        for sub in &row.kind.subresources {
            let mut out = Map::new();
            out.insert("name".into(), json!(format!("{}/{}", row.kind.plural, sub.name)));
            out.insert("singularName".into(), json!(""));
            out.insert("namespaced".into(), json!(row.kind.namespaced));
            if let (Some(g), Some(v)) = (&sub.group, &sub.version) {
                out.insert("group".into(), json!(g));
                out.insert("version".into(), json!(v));
            }
            out.insert("kind".into(), json!(sub.kind));
            out.insert("verbs".into(), json!(sub.verbs));
            resources.push(Value::Object(out));
        }
    }
    let group_version = hawser_api::object::api_version(group, version);
    let mut out = json!({"kind": "APIResourceList", "groupVersion": group_version, "resources": resources});
    if !group.is_empty() {
        out["apiVersion"] = json!("v1");
    }
    Some(out)
}

fn resource(kind: &Kind) -> Value {
    let mut out = json!({"name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
        "kind": kind.kind, "verbs": kind.verbs});
    if !kind.short_names.is_empty() {
        out["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        out["categories"] = json!(kind.categories);
    }
    if kind.is_stored() {
        out["storageVersionHash"] = json!(storage_version_hash(kind));
    }
    out
}

/// The first eight bytes of the SHA-256 of the stored version's name, base64.
fn storage_version_hash(kind: &Kind) -> String {
    use base64::Engine as _;
    if let Some(hash) = &kind.storage_version_hash {
        return hash.clone();
    }
    let digest = Sha256::digest(kind.storage_version_identity());
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

/// A group of aggregated discovery. It is kept with the group, which is replaced when it changes.
fn aggregated_group(group: &Group) -> Bytes {
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|version| {
            let resources: Vec<Value> = version.rows().map(|row| aggregated_resource(&row.kind)).collect();
            json!({"version": version.name, "freshness": "Current", "resources": resources})
        })
        .collect();
    let metadata = if group.name.is_empty() { json!({}) } else { json!({"name": group.name}) };
    Bytes::from(json!({"metadata": metadata, "versions": versions}).to_string())
}

fn aggregated_resource(kind: &Kind) -> Value {
    // kube-apiserver leaves group and version of the kind empty where they are the document's own.
    let response_kind =
        |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut out = json!({"resource": kind.plural, "responseKind": response_kind("", "", &kind.kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular, "verbs": kind.verbs});
    if !kind.short_names.is_empty() {
        out["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        out["categories"] = json!(kind.categories);
    }
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|sub| {
            let (group, version) =
                (sub.group.as_deref().unwrap_or_default(), sub.version.as_deref().unwrap_or_default());
            json!({"subresource": sub.name, "responseKind": response_kind(group, version, &sub.kind),
                "verbs": sub.verbs})
        })
        .collect();
    if !subresources.is_empty() {
        out["subresources"] = json!(subresources);
    }
    out
}

/// What `/` lists.
pub fn root_paths(table: &Table, more: &[String]) -> Value {
    let mut paths: Vec<String> = vec!["/api".into(), "/api/v1".into(), "/apis".into(), "/apis/".into()];
    for group in groups(table) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions(table, group).iter().map(|v| format!("/apis/{group}/{v}")));
    }
    for path in [
        "/healthz",
        "/livez",
        "/readyz",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openapi/v3/",
        "/version",
    ] {
        paths.push(path.into());
    }
    paths.extend_from_slice(more);
    paths.sort();
    json!({"paths": paths})
}
