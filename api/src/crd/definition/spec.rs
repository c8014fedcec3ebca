//! `spec` of a definition: names, versions, conversion, subresources, columns, selectable fields.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{Strictness, any_node, schema};
use crate::crd::field_path;
use crate::crd::schema::{Schema, Type};
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::{FieldError, Path};

const SPEC: Path<'static> = Path::new("spec");
/// Most selectable fields of a version.
const SELECTABLE_MAX: usize = 8;
const COLUMN_TYPES: &str = "boolean,date,integer,number,string";
const COLUMN_FORMATS: &str = "byte,date,date-time,double,float,int32,int64,password";

/// Parts of a version that are at the top when all versions have the same.
const PARTS: [&str; 4] = ["schema", "subresources", "additionalPrinterColumns", "selectableFields"];

pub(super) fn is_known_review(version: &Value) -> bool {
    matches!(version.as_str(), Some("v1" | "v1beta1"))
}

/// Whether base64 text is of certificates in PEM.
pub(super) fn is_bundle(base64: &str) -> bool {
    use base64::Engine as _;
    let joined: String = base64.chars().filter(|c| !c.is_whitespace()).collect();
    base64::engine::general_purpose::STANDARD
        .decode(joined)
        .is_ok_and(|b| String::from_utf8_lossy(&b).contains("-----BEGIN CERTIFICATE-----"))
}

/// Whether all versions have the same part.
fn is_common(versions: &[Value], part: &str) -> bool {
    versions.iter().all(|v| v.get(part) == versions.first().and_then(|f| f.get(part)))
}

fn all(at: Path<'_>, value: &str, found: Vec<String>, errors: &mut Vec<FieldError>) {
    if !found.is_empty() {
        errors.push(FieldError::invalid(at, value, found.join(",")));
    }
}

/// A string out of a list; `Required` when it is empty.
fn one_of(at: Path<'_>, value: &str, supported: &[&str], errors: &mut Vec<FieldError>) {
    if value.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else if !supported.contains(&value) {
        errors.push(FieldError::not_supported(at, value, supported));
    }
}

pub(super) fn validate(crd: &Value, old: Option<&Value>, strict: &Strictness, errors: &mut Vec<FieldError>) {
    let group = crd.str_at("spec.group");
    let found = names::dns1123_subdomain(group);
    if group.is_empty() {
        errors.push(FieldError::required(SPEC.child("group"), ""));
    } else if !found.is_empty() {
        all(SPEC.child("group"), group, found, errors);
    } else if !group.contains('.') {
        let detail = "should be a domain with at least one dot";
        errors.push(FieldError::invalid(SPEC.child("group"), group, detail));
    }
    one_of(SPEC.child("scope"), crd.str_at("spec.scope"), &["Cluster", "Namespaced"], errors);
    let versions = crd.items_at("spec.versions");
    let preserves = crd.bool_at("spec.preserveUnknownFields") == Some(true);
    let list = SPEC.child("versions");
    let schemas = || versions.iter().filter_map(|v| v.at("schema.openAPIV3Schema"));
    for (i, version) in versions.iter().enumerate() {
        let here = list.index(i);
        let at = here.child("schema.openAPIV3Schema");
        if version.at("schema.openAPIV3Schema").is_some_and(Value::is_object) {
            continue;
        }
        if strict.schemas {
            errors.push(FieldError::required(at, ""));
        } else if !preserves && version.bool_at("served") == Some(true) {
            errors.push(FieldError::required(at, "because otherwise all fields are pruned"));
        }
    }
    if preserves && schemas().any(|s| any_node(s, &|n| n.get("default").is_some_and(|d| !d.is_null()))) {
        let detail = "must be false in order to use defaults in the schema";
        errors.push(FieldError::invalid(SPEC.child("preserveUnknownFields"), true, detail));
    }
    // What is pruned must be structural, whatever there was before.
    let mut strict = strict.clone();
    strict.structural |= !preserves;
    versions_of(versions, list, &strict, old, errors);
    if let Some(first) = versions.first().map(|v| v.str_at("name")) {
        all(SPEC.child("version"), first, names::dns1035_label(first), errors);
    }
    required_names(crd, errors);
    names(crd.at("spec.names"), SPEC.child("names"), errors);
    if let Some(first) = versions.first() {
        let common = |part: &str| first.get(part).filter(|p| !p.is_null() && is_common(versions, part));
        let any_status = versions.iter().any(|v| v.at("subresources.status").is_some());
        let spec_schema = common("schema").and_then(|s| s.get("openAPIV3Schema")).filter(|s| s.is_object());
        if let Some(s) = spec_schema {
            let before = schema_of(old, first.str_at("name"));
            errors.extend(schema::validate(SPEC.child("validation"), s, any_status, &strict, before));
        }
        if let Some(s) = common("subresources") {
            subresources(SPEC.child("subresources"), s, errors);
        }
        columns(SPEC.child("additionalPrinterColumns"), common("additionalPrinterColumns"), errors);
        if let Some(fields) = common("selectableFields") {
            let at = SPEC.child("selectableFields");
            if common("schema").is_none() {
                let detail = "may only be set when validations.schema is included";
                errors.push(FieldError::invalid(at, "", detail));
            } else {
                let before = old.and_then(|o| o.items_at("spec.versions").first()?.get("selectableFields"));
                selectable_fields(at, fields, spec_schema, before, errors);
            }
        }
    }
    conversion(crd, preserves, &strict, errors);
}

/// The schema of a version of a definition.
fn schema_of<'v>(crd: Option<&'v Value>, version: &str) -> Option<&'v Value> {
    let versions = crd?.items_at("spec.versions");
    versions.iter().find(|v| v.str_at("name") == version)?.at("schema.openAPIV3Schema")
}

fn versions_of(
    versions: &[Value],
    list: Path<'_>,
    strict: &Strictness,
    old: Option<&Value>,
    errors: &mut Vec<FieldError>,
) {
    let mut seen = HashSet::new();
    let mut unique = true;
    for (i, version) in versions.iter().enumerate() {
        let at = list.index(i);
        let name = version.str_at("name");
        unique &= seen.insert(name);
        all(at.child("name"), name, names::dns1035_label(name), errors);
        deprecation(at.child("deprecationWarning"), version, errors);
        let own = |part: &str| version.get(part).filter(|p| !p.is_null() && !is_common(versions, part));
        let own_schema = own("schema").and_then(|s| s.get("openAPIV3Schema")).filter(|s| s.is_object());
        if let Some(s) = own_schema {
            let status = version.at("subresources.status").is_some();
            errors.extend(schema::validate(at.child("schema"), s, status, strict, schema_of(old, name)));
        }
        if let Some(s) = own("subresources") {
            subresources(at.child("subresources"), s, errors);
        }
        columns(at.child("additionalPrinterColumns"), own("additionalPrinterColumns"), errors);
        if let Some(fields) = own("selectableFields") {
            let here = at.child("selectableFields");
            match version.at("schema.openAPIV3Schema") {
                None => {
                    let detail = "may only be set when `version.schema.openAPIV3Schema` is not included";
                    errors.push(FieldError::invalid(here, "", detail));
                }
                schema => selectable_fields(here, fields, schema, None, errors),
            }
        }
    }
    let mut refuse = |detail: &str| {
        let shown: Vec<String> = versions.iter().map(|v| as_internal(v, versions)).collect();
        // The text has the order of Go's fields, which a JSON value would not keep.
        let mut error = FieldError::invalid(list, Value::Null, format!("[{}]: {detail}", shown.join(",")));
        error.value = None;
        errors.push(error);
    };
    if !unique {
        refuse("must contain unique version names");
    }
    if versions.iter().filter(|v| v.bool_at("storage") == Some(true)).count() != 1 {
        refuse("must have exactly one version marked as storage version");
    }
}

/// A version as Kubernetes' internal type shows it in a message.
fn as_internal(version: &Value, versions: &[Value]) -> String {
    let part = |name: &str| {
        let common = is_common(versions, name);
        version.get(name).filter(|_| !common).cloned().unwrap_or_default()
    };
    let flag = |name: &str| Value::Bool(version.bool_at(name) == Some(true));
    let [schema, subresources, columns, fields] = PARTS.map(part);
    let fields = [
        ("Name", json!(version.str_at("name"))),
        ("Served", flag("served")),
        ("Storage", flag("storage")),
        ("Deprecated", flag("deprecated")),
        ("DeprecationWarning", version.get("deprecationWarning").cloned().unwrap_or_default()),
        ("Schema", schema),
        ("Subresources", subresources),
        ("AdditionalPrinterColumns", columns),
        ("SelectableFields", fields),
    ];
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

fn deprecation(at: Path<'_>, version: &Value, errors: &mut Vec<FieldError>) {
    let Some(text) = version.get("deprecationWarning").and_then(Value::as_str) else { return };
    let mut push = |detail: String| errors.push(FieldError::invalid(at, text, detail));
    if version.bool_at("deprecated") != Some(true) {
        push("can only be set for deprecated versions".into());
        return;
    }
    if text.len() > 256 {
        push("must be <= 256 characters long".into());
    }
    if text.is_empty() {
        push("must not be an empty string".into());
    }
    if let Some((i, _)) =
        text.char_indices().find(|(_, c)| c.is_control() || (c.is_whitespace() && *c != ' '))
    {
        push(format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {i}"
        ));
    }
}

fn required_names(crd: &Value, errors: &mut Vec<FieldError>) {
    for field in ["spec.names.plural", "spec.names.singular", "spec.names.kind", "spec.names.listKind"] {
        if crd.str_at(field).is_empty() {
            errors.push(FieldError::required(field, ""));
        }
    }
}

/// Names as a definition asks for them, or as they were accepted.
pub(super) fn names(all_names: Option<&Value>, at: Path<'_>, errors: &mut Vec<FieldError>) {
    let Some(given) = all_names else { return };
    for field in ["plural", "singular"] {
        let name = given.str_at(field);
        if !name.is_empty() {
            all(at.child(field), name, names::dns1035_label(name), errors);
        }
    }
    for field in ["kind", "listKind"] {
        let name = given.str_at(field);
        let found = names::dns1035_label(&name.to_lowercase());
        if !name.is_empty() && !found.is_empty() {
            let detail = format!("may have mixed case, but should otherwise match: {}", found.join(","));
            errors.push(FieldError::invalid(at.child(field), name, detail));
        }
    }
    let each = |field: &'static str, errors: &mut Vec<FieldError>| {
        let list = at.child(field);
        for (i, name) in given.items_at(field).iter().filter_map(Value::as_str).enumerate() {
            all(list.index(i), name, names::dns1035_label(name), errors);
        }
    };
    each("shortNames", errors);
    let (kind, list_kind) = (given.str_at("kind"), given.str_at("listKind"));
    if !kind.is_empty() && kind == list_kind {
        let detail = "kind and listKind may not be the same";
        errors.push(FieldError::invalid(at.child("listKind"), list_kind, detail));
    }
    each("categories", errors);
}

fn simple_path(at: Path<'_>, path: &str, errors: &mut Vec<FieldError>) -> bool {
    let good = path.starts_with('.');
    if !good {
        errors.push(FieldError::invalid(at, path, "must be a simple json path starting with ."));
    }
    good
}

fn subresources(at: Path<'_>, subresources: &Value, errors: &mut Vec<FieldError>) {
    let Some(scale) = subresources.get("scale").filter(|s| !s.is_null()) else { return };
    let here = at.child("scale");
    for (field, prefix) in [("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")] {
        let at = here.child(field);
        let path = scale.str_at(field);
        if path.is_empty() {
            errors.push(FieldError::required(at, ""));
        } else if simple_path(at, path, errors) && !path.starts_with(prefix) {
            let detail = format!("should be a json path under {}", prefix.trim_end_matches('.'));
            errors.push(FieldError::invalid(at, path, detail));
        }
    }
    let (at, path) = (here.child("labelSelectorPath"), scale.str_at("labelSelectorPath"));
    if !path.is_empty()
        && simple_path(at, path, errors)
        && !path.starts_with(".spec.")
        && !path.starts_with(".status.")
    {
        let detail = "should be a json path under either .spec or .status";
        errors.push(FieldError::invalid(at, path, detail));
    }
}

fn columns(at: Path<'_>, columns: Option<&Value>, errors: &mut Vec<FieldError>) {
    for (i, column) in columns.and_then(Value::as_array).into_iter().flatten().enumerate() {
        let at = at.index(i);
        let (ty, format, path) = (column.str_at("type"), column.str_at("format"), column.str_at("jsonPath"));
        if column.str_at("name").is_empty() {
            errors.push(FieldError::required(at.child("name"), ""));
        }
        let detail = format!("must be one of {COLUMN_TYPES}");
        if ty.is_empty() {
            errors.push(FieldError::required(at.child("type"), detail));
        } else if !COLUMN_TYPES.split(',').any(|t| t == ty) {
            errors.push(FieldError::invalid(at.child("type"), ty, detail));
        }
        if !format.is_empty() && !COLUMN_FORMATS.split(',').any(|f| f == format) {
            let detail = format!("must be one of {COLUMN_FORMATS}");
            errors.push(FieldError::invalid(at.child("format"), format, detail));
        }
        if path.is_empty() {
            errors.push(FieldError::required(at.child("JSONPath"), ""));
        } else {
            simple_path(at.child("JSONPath"), path, errors);
        }
    }
}

fn selectable_fields(
    at: Path<'_>,
    fields: &Value,
    schema: Option<&Value>,
    old: Option<&Value>,
    errors: &mut Vec<FieldError>,
) {
    let parsed = schema.map_or_else(|| Ok(Schema::default()), Schema::parse);
    if let Err(e) = &parsed {
        errors.push(FieldError::invalid("spec.schema.openAPIV3Schema", "", e.to_string()));
    }
    let schema = parsed.unwrap_or_default();
    let mut seen = HashSet::new();
    for (i, field) in fields.as_array().into_iter().flatten().enumerate() {
        let item = at.index(i);
        let here = item.child("jsonPath");
        let path = field.str_at("jsonPath");
        if path.is_empty() {
            errors.push(FieldError::required(here, ""));
            continue;
        }
        match field_path::resolve(path, &schema, false) {
            Err(why) => {
                errors.push(FieldError::invalid(here, path, format!("is an invalid path: {why}")));
                continue;
            }
            Ok((steps, found)) => {
                if matches!(steps.first(), Some(field_path::Step::Field(f)) if f == "metadata") {
                    errors.push(FieldError::invalid(here, path, "must not point to fields in metadata"));
                }
                if !matches!(found.ty, Some(Type::String | Type::Boolean | Type::Integer)) {
                    let detail = "must point to a field of type string, boolean or integer. Enum string fields and \
                                  strings with formats are allowed.";
                    errors.push(FieldError::invalid(here, path, detail));
                }
            }
        }
        if !seen.insert(path) {
            errors.push(FieldError::duplicate(here, path));
        }
    }
    if seen.len() > SELECTABLE_MAX && old != Some(fields) {
        errors.push(FieldError::too_many(at, seen.len(), SELECTABLE_MAX));
    }
}

fn conversion(crd: &Value, preserves: bool, strict: &Strictness, errors: &mut Vec<FieldError>) {
    let Some(conversion) = crd.at("spec.conversion").filter(|c| c.is_object()) else { return };
    let at = SPEC.child("conversion");
    let strategy = conversion.str_at("strategy");
    if preserves && strategy != "None" {
        let detail = "must be None if spec.preserveUnknownFields is true";
        errors.push(FieldError::invalid(at.child("strategy"), strategy, detail));
    }
    one_of(at.child("strategy"), strategy, &["None", "Webhook"], errors);
    let client = conversion.at("webhook.clientConfig").filter(|c| c.is_object());
    let versions = conversion.items_at("webhook.conversionReviewVersions");
    let client_at = at.child("webhookClientConfig");
    let versions_at = at.child("conversionReviewVersions");
    if strategy != "Webhook" {
        let detail = "should not be set when strategy is not set to Webhook";
        if client.is_some() {
            errors.push(FieldError::forbidden(client_at, detail));
        }
        if !versions.is_empty() {
            errors.push(FieldError::forbidden(versions_at, detail));
        }
        return;
    }
    match client {
        None => errors.push(FieldError::required(client_at, "required when strategy is set to Webhook")),
        Some(client) => client_config(client_at, client, strict, errors),
    }
    review_versions(versions_at, versions, strict, errors);
}

fn client_config(at: Path<'_>, client: &Value, strict: &Strictness, errors: &mut Vec<FieldError>) {
    let url = client.get("url").and_then(Value::as_str);
    let service = client.get("service").filter(|s| s.is_object());
    match (url, service) {
        (Some(url), None) => errors.extend(crate::validation::webhook_url(url, at.child("url"))),
        (None, Some(service)) => {
            let here = at.child("service");
            for field in ["name", "namespace"] {
                if service.str_at(field).is_empty() {
                    errors.push(FieldError::required(
                        here.child(field),
                        format!("service {field} is required"),
                    ));
                }
            }
            let path = service.str_at("path");
            if !path.is_empty() && !path.starts_with('/') {
                errors.push(FieldError::invalid(here.child("path"), path, "must start with a '/'"));
            }
            if let Some(port) = service.int_at("port") {
                for why in names::port_number(port) {
                    let detail = format!("port is not valid: {why}");
                    errors.push(FieldError::invalid(here.child("port"), port, detail));
                }
            }
        }
        _ => errors.push(FieldError::required(at, "exactly one of url or service is required")),
    }
    let bundle = client.str_at("caBundle");
    if strict.ca_bundle && !bundle.is_empty() && !is_bundle(bundle) {
        let detail = "unable to load root certificates: unable to parse bytes as PEM block";
        errors.push(FieldError::invalid(at.child("caBundle"), bundle, detail));
    }
}

fn review_versions(at: Path<'_>, versions: &[Value], strict: &Strictness, errors: &mut Vec<FieldError>) {
    if versions.is_empty() {
        errors.push(FieldError::required(at, ""));
        return;
    }
    for (i, version) in versions.iter().enumerate() {
        let name = version.as_str().unwrap_or_default();
        if versions[..i].contains(version) {
            errors.push(FieldError::invalid(at.index(i), name, "duplicate version"));
            continue;
        }
        for why in names::dns1035_label(name) {
            errors.push(FieldError::invalid(at.index(i), name, why));
        }
    }
    if strict.review_versions && !versions.iter().any(is_known_review) {
        let detail = "must include at least one of v1, v1beta1";
        errors.push(FieldError::invalid(at, versions.to_vec(), detail));
    }
}
