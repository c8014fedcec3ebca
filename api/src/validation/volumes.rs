//! Validation of a pod's volumes.

use super::checks::Errors;
use super::containers::descending;
use super::env::{VOLUME_FIELDS, field_ref, resource_ref};
use super::sources::{self, Scope};
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::Path;
use serde_json::Value;

/// Checks the volumes of a spec and answers the names of those that are right: what is wrong cannot be mounted. `is_pod` tells a pod from a template; `owner` is the pod's
/// name, empty where it has none yet.
pub fn volumes(s: &Value, at: Path<'_>, is_pod: bool, owner: &str, e: &mut Errors) -> Vec<String> {
    let list = at.child("volumes");
    let mut seen: Vec<String> = Vec::new();
    for (i, v) in s.items_at("volumes").iter().enumerate() {
        let item = list.index(i);
        let told = e.count();
        source(v, item, is_pod, owner, e);
        let name = v.str_at("name");
        if name.is_empty() {
            e.required(item.child("name"), "");
        } else {
            e.all(item.child("name"), name, names::dns1123_label(name));
        }
        if seen.iter().any(|n| n == name) {
            e.duplicate(item.child("name"), name);
        }
        if e.count() == told {
            seen.push(name.to_owned());
        }
    }
    seen
}

/// The sources in the order in which they are judged: the first counts, the others are too many.
const ORDER: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

fn source(v: &Value, at: Path<'_>, is_pod: bool, owner: &str, e: &mut Errors) {
    let volume = v.str_at("name");
    let mut count = 0;
    for (name, source) in
        ORDER.iter().filter_map(|name| Some((*name, v.get(*name).filter(|s| !s.is_null())?)))
    {
        let path = at.child(name);
        count += 1;
        if count > 1 {
            let shown = match name {
                "cephfs" => "cephFS",
                "downwardAPI" => "downwarAPI",
                other => other,
            };
            e.forbidden(at.child(shown), "may not specify more than 1 volume type");
            continue;
        }
        sources::shared(name, source, at, &Scope { persistent: false, volume }, e);
        match name {
            "configMap" | "secret" => {
                let field = if name == "secret" { "secretName" } else { "name" };
                if source.str_at(field).is_empty() {
                    e.required(path.child(field), "");
                }
                items(source, path, e);
            }
            "persistentVolumeClaim" if source.str_at("claimName").is_empty() => {
                e.required(path.child("claimName"), "");
            }
            "iscsi" if name_too_long(volume, source) => {
                let detail = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";
                e.invalid(at.child("name"), volume, detail);
            }
            "downwardAPI" => {
                mode(path.child("defaultMode"), source.int_at("defaultMode"), e);
                downward(source, path, e);
            }
            "emptyDir" => {
                let limit = super::checks::quantity(source.get("sizeLimit"));
                if limit.is_some_and(|q| q.is_negative()) {
                    let detail = "SizeLimit field must be a valid resource quantity";
                    e.forbidden(path.child("sizeLimit"), detail);
                }
            }
            "ephemeral" => ephemeral(source, volume, owner, at, e),
            "csi" => {
                super::storage::driver_name(source.str_at("driver"), path.child("driver"), e);
                if let Some(secret) = source.get("nodePublishSecretRef").filter(|s| !s.is_null()) {
                    match secret.str_at("name") {
                        "" => e.required(path.child("nodePublishSecretRef.name"), ""),
                        name => e.all(path.child("name"), name, names::dns1123_subdomain(name)),
                    }
                }
            }
            "projected" => projected(source, path, e),
            "image" => {
                if is_pod && source.str_at("reference").is_empty() {
                    e.required(path.child("reference"), "");
                }
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

/// Whether an initiator's name leaves no room for the volume's and the portal's.
fn name_too_long(volume: &str, iscsi: &Value) -> bool {
    iscsi.get("initiatorName").is_some_and(|n| !n.is_null())
        && volume.len() + 1 + iscsi.str_at("targetPortal").len() > 64
}

/// A claim that lives and dies with its pod (KEP-1698).
fn ephemeral(source: &Value, volume: &str, owner: &str, at: Path<'_>, e: &mut Errors) {
    let path = at.child("ephemeral.volumeClaimTemplate");
    match source.get("volumeClaimTemplate").filter(|t| !t.is_null()) {
        None => e.required(path, ""),
        Some(template) => {
            super::meta::of_template(path.child("metadata"), template, e);
            let spec = template.get("spec").unwrap_or(&Value::Null);
            super::persistent::claim_spec(spec, path.child("spec"), e);
        }
    }
    if !owner.is_empty() && !volume.is_empty() {
        let claim = format!("{owner}-{volume}");
        for message in names::dns1123_subdomain(&claim) {
            let detail = format!("PVC name {}: {message}", crate::text::quote(&claim));
            e.invalid(at.child("name"), volume, detail);
        }
    }
}

/// The keys that a config map or secret shows as files.
fn items(source: &Value, at: Path<'_>, e: &mut Errors) {
    mode(at.child("defaultMode"), source.int_at("defaultMode"), e);
    keys(source, at, e);
}

fn keys(source: &Value, at: Path<'_>, e: &mut Errors) {
    let list = at.child("items");
    for (i, item) in source.items_at("items").iter().enumerate() {
        key_to_path(item, list.index(i), e);
    }
}

fn key_to_path(item: &Value, path: Path<'_>, e: &mut Errors) {
    if item.str_at("key").is_empty() {
        e.required(path.child("key"), "");
    }
    file_path(path.child("path"), item.str_at("path"), e);
    mode(path.child("mode"), item.int_at("mode"), e);
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
    local_path(at, path, e);
}

/// A path below the volume that does not begin with two dots.
fn local_path(at: Path<'_>, path: &str, e: &mut Errors) {
    descending(at, path, e);
    if path.starts_with("..") && !path.starts_with("../") {
        e.invalid(at, path, "must not start with '..'");
    }
}

fn downward(source: &Value, at: Path<'_>, e: &mut Errors) {
    // Kubernetes does not say which of the items it means.
    source.items_at("items").iter().for_each(|item| downward_file(item, at, e));
}

fn downward_file(item: &Value, path: Path<'_>, e: &mut Errors) {
    file_path(path.child("path"), item.str_at("path"), e);
    let present = |name: &str| item.get(name).filter(|v| !v.is_null());
    match (present("fieldRef"), present("resourceFieldRef")) {
        (Some(reference), other) => {
            field_ref(path.child("fieldRef"), reference, &VOLUME_FIELDS, e);
            if other.is_some() {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                e.invalid(path, "resource", detail);
            }
        }
        (None, Some(reference)) => resource_ref(path.child("resourceFieldRef"), reference, true, e),
        (None, None) => e.required(path, "one of fieldRef and resourceFieldRef is required"),
    }
    mode(path.child("mode"), item.int_at("mode"), e);
}

/// Files of several sources may not have the same path.
fn projected(source: &Value, at: Path<'_>, e: &mut Errors) {
    mode(at.child("defaultMode"), source.int_at("defaultMode"), e);
    let mut taken: Vec<String> = Vec::new();
    let mut take = |path: &str, shown: &str, e: &mut Errors| {
        if taken.iter().any(|t| t == path) {
            e.invalid(at, shown, "conflicting duplicate paths");
        }
        taken.push(path.to_owned());
    };
    let list = at.child("sources");
    for (i, projection) in source.items_at("sources").iter().enumerate() {
        let item = list.index(i);
        let present = |name: &str| projection.get(name).filter(|p| !p.is_null());
        let mut count = 0;
        for name in ["secret", "configMap"] {
            let Some(p) = present(name) else { continue };
            let path = item.child(name);
            count += 1;
            if p.str_at("name").is_empty() {
                e.required(path.child("name"), "");
            }
            let entries = path.child("items");
            for (j, entry) in p.items_at("items").iter().enumerate() {
                key_to_path(entry, entries.index(j), e);
                if !entry.str_at("path").is_empty() {
                    take(entry.str_at("path"), p.str_at("name"), e);
                }
            }
        }
        if let Some(p) = present("downwardAPI") {
            count += 1;
            for file in p.items_at("items") {
                downward_file(file, item.child("downwardAPI"), e);
                let path = file.str_at("path");
                if !path.is_empty() {
                    take(path, path, e);
                }
            }
        }
        if let Some(p) = present("serviceAccountToken") {
            count += 1;
            token(p, at, item.child("serviceAccountToken"), e);
        }
        if count > 1 {
            e.forbidden(item, "may not specify more than 1 volume type per source");
        }
    }
}

/// A token; its path is told as one of the volume.
fn token(p: &Value, volume: Path<'_>, at: Path<'_>, e: &mut Errors) {
    let seconds = p.int_at("expirationSeconds").unwrap_or(0);
    let at = at.child("expirationSeconds");
    if seconds < 600 {
        e.invalid(at, seconds, "may not specify a duration less than 10 minutes");
    }
    if seconds > 1 << 32 {
        e.invalid(at, seconds, "may not specify a duration larger than 2^32 seconds");
    }
    match p.str_at("path") {
        "" => e.required(volume.child("path"), ""),
        path => local_path(volume.child("path"), path, e),
    }
}
