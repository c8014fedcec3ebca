//! The documents of OpenAPI v3: their names, their hashes, and what is in them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hawser_api::crd::publish::Dialect;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};

use super::descriptions::Descriptions;
use super::paths::{self, camel, content, reference, responses, tag};
use super::schemas::{Schemas, references};
use super::v2;
use super::writer::Writer;
use crate::kinds::{Row, Table, Version};
use crate::version;

const JSON: &[&str] = &["application/json"];
const ROOT_ENCODINGS: &[&str] =
    &["application/json", "application/vnd.kubernetes.protobuf", "application/yaml"];

/// What stands at the head of every document.
fn info() -> Value {
    json!({"title": "Kubernetes", "version": version::git_version()})
}

/// How clients show who they are.
fn security() -> Value {
    json!({"BearerToken": {"description": "Bearer Token authentication", "in": "header", "name": "authorization",
        "type": "apiKey"}})
}

/// Names of the documents (paths without the leading slash) and the hashes of what each is made from: the program's
/// version and the rows.
///
/// The hash of a group version is made once, and kept as long as its rows stay as they are.
pub(super) fn hashes(table: &Table) -> BTreeMap<String, String> {
    let hash = |name: &str, parts: &mut dyn Iterator<Item = String>| {
        let mut digest = Sha512::new();
        digest.update(version::git_version());
        digest.update(name);
        parts.for_each(|part| digest.update(part));
        hex::encode_upper(digest.finalize())
    };
    let mut all: BTreeMap<String, String> =
        [".well-known/openid-configuration", "api", "apis", "openid/v1/jwks", "version"]
            .into_iter()
            .map(|name| (name.to_owned(), hash(name, &mut std::iter::empty())))
            .collect();
    for group in table.groups() {
        if !group.name.is_empty() {
            let name = format!("apis/{}", group.name);
            let versions = || hash(&name, &mut group.versions.iter().map(|v| v.name.clone()));
            let hash = group.made.openapi.get_or_init(versions).clone();
            all.insert(name, hash);
        }
        for version in &group.versions {
            let name = document_name(&group.name, &version.name);
            // Of a kind defined at run time that has the definition's UID and generation in it.
            let rows = || hash(&name, &mut version.rows().map(|row| format!("{:?}", row.kind)));
            let hash = version.made.openapi.get_or_init(rows).clone();
            all.insert(name, hash);
        }
    }
    all
}

/// The group version that a document is of.
fn version_of<'t>(table: &'t Table, name: &str) -> Option<&'t Arc<Version>> {
    match name.strip_prefix("apis/") {
        Some(name) => name.split_once('/').and_then(|(group, version)| table.group(group)?.version(version)),
        None => table.group("")?.version(name.strip_prefix("api/")?),
    }
}

fn document_name(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// Writes a document of OpenAPI v3 by its name.
pub(super) fn write_v3(table: &Table, name: &str, mut writer: Writer) -> Vec<u8> {
    let texts = Descriptions::unpack();
    let rows: Vec<&Arc<Row>> = version_of(table, name).map(|v| v.rows().collect()).unwrap_or_default();
    let groups = group_versions(&rows);
    let mut schemas = Schemas::new(&texts, groups.clone());
    let mut wanted = BTreeSet::new();
    writer.put("openapi", &json!("3.0.0"));
    writer.put("info", &info());
    writer.open("paths");
    let mut put = |path: &str, item: Value| {
        references(&item, &mut wanted);
        writer.put(path, &item);
    };
    if rows.is_empty() {
        put(&format!("/{name}/"), root(name));
    }
    if let Some((group, version)) = groups.first().filter(|_| rows.iter().any(|row| row.kind.builtin)) {
        put(&format!("/{name}/"), discovery(group, Some(*version)));
    }
    for row in rows {
        define(&mut schemas, row, Dialect::V3);
        paths::of(&row.kind).into_iter().for_each(|(path, item)| put(&path, item));
    }
    writer.close();
    writer.open("components");
    if !wanted.is_empty() {
        writer.open("schemas");
        schemas.each(wanted, |name, schema| writer.put(&name, &schema));
        writer.close();
    }
    writer.put("securitySchemes", &security());
    writer.close();
    writer.finish()
}

/// Writes the one document of OpenAPI v2.
pub(super) fn write_v2(table: &Table, mut writer: Writer) -> Vec<u8> {
    let texts = Descriptions::unpack();
    let rows: Vec<&Arc<Row>> = table.rows().collect();
    let groups = group_versions(&rows);
    let mut schemas = Schemas::new(&texts, groups.clone());
    let mut wanted = BTreeSet::new();
    writer.put("swagger", &json!("2.0"));
    writer.put("info", &info());
    writer.open("paths");
    let mut put = |path: &str, item: Value| {
        references(&item, &mut wanted);
        writer.put(path, &v2::path_item(item));
    };
    for (group, version) in &groups {
        let prefix = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
        put(&format!("{prefix}/{version}/"), discovery(group, Some(*version)));
    }
    let names: BTreeSet<String> = hashes(table).into_keys().collect();
    let versions: BTreeSet<String> = groups.iter().map(|(g, v)| document_name(g, v)).collect();
    let roots = names.iter().filter(|name| !versions.contains(*name));
    roots.for_each(|name| put(&format!("/{name}/"), root(name)));
    for row in rows {
        define(&mut schemas, row, Dialect::V2);
        paths::of(&row.kind).into_iter().for_each(|(path, item)| put(&path, item));
    }
    writer.close();
    writer.open("definitions");
    schemas.each(wanted, |name, schema| {
        let schema = if schemas.is_defined(&name) { v2::defined(schema) } else { v2::schema(schema) };
        writer.put(&name, &schema);
    });
    writer.close();
    writer.put("security", &json!([{"BearerToken": []}]));
    writer.put("securityDefinitions", &security());
    writer.finish()
}

fn define(schemas: &mut Schemas<'_>, row: &Row, dialect: Dialect) {
    if !row.kind.builtin {
        schemas.define(&row.kind, dialect);
    }
}

fn group_versions<'r>(rows: &[&'r Arc<Row>]) -> Vec<(&'r str, &'r str)> {
    let mut out: Vec<(&str, &str)> = rows.iter().map(|row| (&*row.kind.group, &*row.kind.version)).collect();
    out.sort_unstable();
    out.dedup();
    out
}

/// A GET without parameters.
fn get(id: &str, description: &str, tag: &str, answer: Value, types: &[&str]) -> Value {
    let answer = content(&answer, types);
    json!({"get": {"operationId": id, "description": description, "tags": [tag],
        "responses": responses(&[("200", "OK", Some(answer))])}})
}

/// The discovery document of a group version, or of a group.
fn discovery(group: &str, version: Option<&str>) -> Value {
    let meta = |name: &str| reference(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}"));
    let tag = tag(group, version);
    let camel = camel(group);
    match version {
        Some(version) => {
            let mut letters = version.chars();
            let version: String =
                letters.next().map(|c| c.to_ascii_uppercase()).into_iter().chain(letters).collect();
            let id = format!("get{camel}{version}APIResources");
            get(&id, "get available resources", &tag, meta("APIResourceList"), ROOT_ENCODINGS)
        }
        None if group.is_empty() => {
            let text = "get available API versions";
            get("getCoreAPIVersions", text, &tag, meta("APIVersions"), ROOT_ENCODINGS)
        }
        None => {
            let id = format!("get{camel}APIGroup");
            get(&id, "get information of a group", &tag, meta("APIGroup"), ROOT_ENCODINGS)
        }
    }
}

/// Documents without resources.
fn root(name: &str) -> Value {
    let text = json!({"type": "string"});
    match name {
        "api" => discovery("", None),
        "apis" => {
            let list = reference("io.k8s.apimachinery.pkg.apis.meta.v1.APIGroupList");
            get("getAPIVersions", "get available API versions", "apis", list, ROOT_ENCODINGS)
        }
        "version" => get(
            "getCodeVersion",
            "get the version information for this server",
            "version",
            reference("io.k8s.apimachinery.pkg.version.Info"),
            JSON,
        ),
        "openid/v1/jwks" => get(
            "getServiceAccountIssuerOpenIDKeyset",
            "get service account issuer OpenID JSON Web Key Set (contains public token verification keys)",
            "openid",
            text,
            &["application/jwk-set+json"],
        ),
        ".well-known/openid-configuration" => get(
            "getServiceAccountIssuerOpenIDConfiguration",
            "get service account issuer OpenID configuration, also known as the 'OIDC discovery doc'",
            "WellKnown",
            text,
            JSON,
        ),
        name => discovery(name.strip_prefix("apis/").unwrap_or(name), None),
    }
}
