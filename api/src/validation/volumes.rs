//! Validation of a pod's volumes.

use super::checks::Errors;
use super::containers::{VOLUME_FIELDS, descending, field_ref, resource_ref};
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::Path;
use serde_json::Value;

/// Checks the volumes of a spec and answers their names.
pub fn volumes(s: &Value, at: Path<'_>, e: &mut Errors) -> Vec<String> {
    let list = at.child("volumes");
    let mut seen: Vec<String> = Vec::new();
    for (i, v) in s.items_at("volumes").iter().enumerate() {
        let item = list.index(i);
        source(v, item, e);
        let name = v.str_at("name");
        if name.is_empty() {
            e.required(item.child("name"), "");
        } else {
            e.all(item.child("name"), name, names::dns1123_label(name));
        }
        if seen.iter().any(|n| n == name) {
            e.duplicate(item.child("name"), name);
        }
        seen.push(name.to_owned());
    }
    seen
}

/// Fields that a source has to have.
const REQUIRED: [(&str, &[&str]); 8] = [
    ("hostPath", &["path"]),
    ("nfs", &["server", "path"]),
    ("persistentVolumeClaim", &["claimName"]),
    ("configMap", &["name"]),
    ("secret", &["secretName"]),
    ("csi", &["driver"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("image", &["reference"]),
];

fn source(v: &Value, at: Path<'_>, e: &mut Errors) {
    let Some(map) = v.as_object() else { return };
    let mut count = 0;
    for (name, source) in map.iter().filter(|(k, v)| *k != "name" && !v.is_null()) {
        let path = at.child(name);
        count += 1;
        if count > 1 {
            e.forbidden(path, "may not specify more than 1 volume type");
            continue;
        }
        for (_, fields) in REQUIRED.iter().filter(|(n, _)| n == name) {
            for field in fields.iter().filter(|f| source.str_at(f).is_empty()) {
                e.required(path.child(field), "");
            }
        }
        match name.as_str() {
            "configMap" | "secret" => items(source, path, e),
            "hostPath" => {
                let types = [
                    "BlockDevice",
                    "CharDevice",
                    "Directory",
                    "DirectoryOrCreate",
                    "File",
                    "FileOrCreate",
                    "Socket",
                ];
                e.optional_one_of(path.child("type"), source.str_at("type"), &types);
                if source.str_at("path").split('/').any(|p| p == "..") {
                    e.invalid(path.child("path"), source.str_at("path"), "must not contain '..'");
                }
            }
            "downwardAPI" => {
                mode(path.child("defaultMode"), source.int_at("defaultMode"), e);
                downward(source, path, e);
            }
            "nfs" if !source.str_at("path").starts_with('/') => {
                e.invalid(path.child("path"), source.str_at("path"), "must be an absolute path");
            }
            "emptyDir" => {
                let limit = super::checks::quantity(source.get("sizeLimit"));
                if limit.is_some_and(|q| q.is_negative()) {
                    let detail = "SizeLimit field must be a valid resource quantity";
                    e.forbidden(path.child("sizeLimit"), detail);
                }
            }
            "ephemeral" => match source.get("volumeClaimTemplate").filter(|t| !t.is_null()) {
                None => e.required(path.child("volumeClaimTemplate"), ""),
                Some(template) => {
                    let at = path.child("volumeClaimTemplate");
                    e.label_map(at.child("metadata.labels"), template.labels());
                    super::core::claim_spec(
                        template.get("spec").unwrap_or(&Value::Null),
                        at.child("spec"),
                        e,
                    );
                }
            },
            "csi" => {
                if let Some(secret) = source.get("nodePublishSecretRef").filter(|s| !s.is_null()) {
                    match secret.str_at("name") {
                        "" => e.required(path.child("nodePublishSecretRef.name"), ""),
                        name => e.all(path.child("name"), name, names::dns1123_subdomain(name)),
                    }
                }
            }
            "projected" => projected(source, path, e),
            "image" => {
                let policy = source.str_at("pullPolicy");
                e.one_of(path.child("pullPolicy"), policy, &["Always", "IfNotPresent", "Never"]);
            }
            _ => {}
        }
    }
    if count == 0 {
        e.required(at, "must specify a volume type");
    }
}

/// The keys that a config map or secret shows as files.
fn items(source: &Value, at: Path<'_>, e: &mut Errors) {
    mode(at.child("defaultMode"), source.int_at("defaultMode"), e);
    let list = at.child("items");
    for (i, item) in source.items_at("items").iter().enumerate() {
        let path = list.index(i);
        if item.str_at("key").is_empty() {
            e.required(path.child("key"), "");
        }
        file_path(path.child("path"), item.str_at("path"), e);
        mode(path.child("mode"), item.int_at("mode"), e);
    }
}

fn mode(at: Path<'_>, mode: Option<i64>, e: &mut Errors) {
    if let Some(n) = mode.filter(|n| !(0..=0o777).contains(n)) {
        e.invalid(at, n, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

fn file_path(at: Path<'_>, path: &str, e: &mut Errors) {
    if path.is_empty() {
        e.required(at, "");
        return;
    }
    descending(at, path, e);
    if path.starts_with("..") && !path.starts_with("../") {
        e.invalid(at, path, "must not start with '..'");
    }
}

fn downward(source: &Value, at: Path<'_>, e: &mut Errors) {
    // Kubernetes does not say which of the items it means.
    let path = at;
    for item in source.items_at("items") {
        file_path(path.child("path"), item.str_at("path"), e);
        let present = |name: &str| item.get(name).filter(|v| !v.is_null());
        match (present("fieldRef"), present("resourceFieldRef")) {
            (Some(_), Some(_)) => {
                e.invalid(
                    path,
                    "resource",
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                );
            }
            (Some(reference), None) => field_ref(path.child("fieldRef"), reference, &VOLUME_FIELDS, e),
            (None, Some(reference)) => resource_ref(path.child("resourceFieldRef"), reference, true, e),
            (None, None) => e.required(path, "one of fieldRef and resourceFieldRef is required"),
        }
        mode(path.child("mode"), item.int_at("mode"), e);
    }
}

/// Files of several sources may not have the same path.
fn projected(source: &Value, at: Path<'_>, e: &mut Errors) {
    mode(at.child("defaultMode"), source.int_at("defaultMode"), e);
    let list = at.child("sources");
    let mut taken: Vec<String> = Vec::new();
    for (i, projection) in source.items_at("sources").iter().enumerate() {
        let item = list.index(i);
        let mut count = 0;
        for name in [
            "secret",
            "configMap",
            "downwardAPI",
            "serviceAccountToken",
            "clusterTrustBundle",
            "podCertificate",
        ] {
            let Some(p) = projection.get(name).filter(|p| !p.is_null()) else { continue };
            let path = item.child(name);
            count += 1;
            if count > 1 {
                e.forbidden(path, "may not specify more than 1 volume type per source");
            }
            match name {
                "secret" | "configMap" => {
                    if p.str_at("name").is_empty() {
                        e.required(path.child("name"), "");
                    }
                    items(p, path, e);
                }
                "downwardAPI" => downward(p, path, e),
                "serviceAccountToken" => {
                    if p.int_at("expirationSeconds").is_some_and(|n| n < 600) {
                        let n = p.int_at("expirationSeconds").unwrap_or(0);
                        e.invalid(
                            path.child("expirationSeconds"),
                            n,
                            "may not specify a duration less than 10 minutes",
                        );
                    }
                    if p.str_at("path").is_empty() {
                        e.required(path.child("path"), "");
                    }
                }
                _ => {}
            }
            let paths = p
                .items_at("items")
                .iter()
                .map(|i| i.str_at("path"))
                .chain(Some(p.str_at("path")).filter(|p| !p.is_empty() && p.len() < 4096));
            for path in paths.filter(|p| !p.is_empty()) {
                if taken.iter().any(|t| t == path) {
                    e.invalid(at, p.str_at("name"), "conflicting duplicate paths");
                }
                taken.push(path.to_owned());
            }
        }
        if count == 0 {
            e.required(item, "must specify a volume type");
        }
    }
}
