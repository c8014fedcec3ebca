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
use crate::kinds::{Row, Table};
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
pub(super) fn hashes(table: &Table) -> BTreeMap<String, String> {
    let begin = |name: &str| {
        let mut digest = Sha512::new();
        digest.update(version::git_version());
        digest.update(name);
        digest
    };
    let mut open: BTreeMap<String, Sha512> =
        [".well-known/openid-configuration", "api", "apis", "openid/v1/jwks", "version"]
            .into_iter()
            .map(|name| (name.to_owned(), begin(name)))
            .collect();
    for row in table.rows() {
        let kind = &row.kind;
        if !kind.group.is_empty() {
            let group = format!("apis/{}", kind.group);
            open.entry(group.clone()).or_insert_with(|| begin(&group)).update(&kind.version);
        }
        let name = name_of(row);
        let digest = open.entry(name.clone()).or_insert_with(|| begin(&name));
        // Of a kind defined at run time that has the definition's UID and generation in it.
        digest.update(format!("{kind:?}"));
    }
    open.into_iter().map(|(name, digest)| (name, hex::encode_upper(digest.finalize()))).collect()
}

/// The document that a row is in.
fn name_of(row: &Row) -> String {
    document_name(&row.kind.group, &row.kind.version)
}

fn document_name(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// Writes a document of OpenAPI v3 by its name.
pub(super) fn write_v3(table: &Table, name: &str, mut writer: Writer) -> Vec<u8> {
    let texts = Descriptions::unpack();
    let rows: Vec<&Arc<Row>> = table.rows().iter().filter(|row| name_of(row) == name).collect();
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
    let rows: Vec<&Arc<Row>> = table.rows().iter().collect();
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
    let roots = names.iter().filter(|name| !groups.iter().any(|(g, v)| **name == document_name(g, v)));
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
