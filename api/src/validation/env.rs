//! Validation of environment variables, and of references to fields and resources of the pod itself.

use super::checks::Errors;
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::Path;
use serde_json::Value;

/// Field paths that exist at all, and those that environment variables may have.
const FIELD_LABELS: [&str; 14] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Those that files of a downward API volume may have.
pub const VOLUME_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// A reference to a field of the pod.
pub fn field_ref(at: Path<'_>, reference: &Value, allowed: &[&str], e: &mut Errors) {
    let path = reference.str_at("fieldPath");
    if reference.str_at("apiVersion").is_empty() {
        e.required(at.child("apiVersion"), "");
        return;
    }
    if path.is_empty() {
        e.required(at.child("fieldPath"), "");
        return;
    }
    let version = reference.str_at("apiVersion");
    if version != "v1" {
        let detail = format!("error converting fieldPath: unsupported pod version: {version}");
        return e.invalid(at.child("fieldPath"), path, detail);
    }
    if let Some((field, subscript)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        match field {
            "metadata.annotations" => e.all(at, subscript, names::qualified_name(&subscript.to_lowercase())),
            "metadata.labels" => e.all(at, subscript, names::qualified_name(subscript)),
            _ => e.invalid(at, path, "does not support subscript"),
        }
        return;
    }
    if !FIELD_LABELS.contains(&path) {
        let detail = format!("error converting fieldPath: field label not supported: {path}");
        e.invalid(at.child("fieldPath"), path, detail);
    } else if !allowed.contains(&path) {
        e.unsupported(at.child("fieldPath"), path, allowed);
    }
}

/// The variables of a container, one by one and by the set.
pub fn env(c: &Value, at: Path<'_>, e: &mut Errors) {
    let list = at.child("env");
    for (i, var) in c.items_at("env").iter().enumerate() {
        let item = list.index(i);
        let name = var.str_at("name");
        if name.is_empty() {
            e.required(item.child("name"), "");
        } else {
            e.all(item.child("name"), name, names::env_var_name(name));
        }
        if let Some(from) = var.get("valueFrom").filter(|f| !f.is_null()) {
            value_from(var, from, item.child("valueFrom"), e);
        }
    }
    let list = at.child("envFrom");
    for (i, from) in c.items_at("envFrom").iter().enumerate() {
        let item = list.index(i);
        let prefix = from.str_at("prefix");
        if !prefix.is_empty() {
            e.all(item.child("prefix"), prefix, names::env_var_name(prefix));
        }
        let mut sources = 0;
        for source in ["configMapRef", "secretRef"] {
            let Some(reference) = from.get(source).filter(|r| !r.is_null()) else { continue };
            sources += 1;
            let at = item.child(source);
            match reference.str_at("name") {
                "" => e.required(at.child("name"), ""),
                name => {
                    e.all(at.child("name"), name, names::object_name(names::NameRule::Subdomain, name, true))
                }
            }
        }
        match sources {
            0 => e.invalid(list, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => e.invalid(list, "", "may not have more than one field specified at a time"),
        }
    }
}

fn value_from(var: &Value, from: &Value, at: Path<'_>, e: &mut Errors) {
    let mut sources = 0;
    let present = |name: &str| from.get(name).filter(|v| !v.is_null());
    if let Some(reference) = present("fieldRef") {
        sources += 1;
        field_ref(at.child("fieldRef"), reference, &ENV_FIELDS, e);
    }
    if let Some(reference) = present("resourceFieldRef") {
        sources += 1;
        resource_ref(at.child("resourceFieldRef"), reference, false, e);
    }
    for source in ["configMapKeyRef", "secretKeyRef"] {
        let Some(reference) = present(source) else { continue };
        sources += 1;
        let path = at.child(source);
        let name = reference.str_at("name");
        e.all(path.child("name"), name, names::dns1123_subdomain(name));
        match reference.str_at("key") {
            "" => e.required(path.child("key"), ""),
            key => e.all(path.child("key"), key, names::config_map_key(key)),
        }
    }
    if let Some(reference) = present("fileKeyRef") {
        sources += 1;
        let path = at.child("fileKeyRef");
        match reference.str_at("key") {
            "" => e.required(path.child("key"), ""),
            key => e.all(path.child("key"), key, names::env_var_name(key)),
        }
        match reference.str_at("volumeName") {
            "" => e.required(path.child("volumeName"), ""),
            name => e.all(path.child("volumeName"), name, names::dns1123_label(name)),
        }
        match reference.str_at("path") {
            "" => e.required(path.child("path"), ""),
            file if file.split('/').any(|p| p == "..") => {
                e.invalid(path.child("path"), file, "must not contain '..'");
            }
            _ => {}
        }
    }
    if sources == 0 {
        let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        e.invalid(at, "", detail);
    } else if !var.str_at("value").is_empty() {
        e.invalid(at, "", "may not be specified when `value` is not empty");
    } else if sources > 1 {
        e.invalid(at, "", "may not have more than one field specified at a time");
    }
}

/// Resources that the downward API tells.
const TOLD: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const SIZES: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// A reference to a container's resource; one in a volume names the container.
pub fn resource_ref(at: Path<'_>, reference: &Value, in_volume: bool, e: &mut Errors) {
    let name = reference.str_at("resource");
    let huge = ["limits.hugepages-", "requests.hugepages-"].iter().any(|p| name.starts_with(p));
    if in_volume && reference.str_at("containerName").is_empty() {
        e.required(at.child("containerName"), "");
    } else if name.is_empty() {
        e.required(at.child("resource"), "");
    } else if !TOLD.contains(&name) && !huge {
        e.unsupported(at.child("resource"), name, &TOLD);
    }
    let Some(divisor) = super::checks::quantity(reference.get("divisor")).filter(|d| !d.is_zero()) else {
        return;
    };
    let divisor = divisor.to_string();
    let what = match name.split_once('.').map_or("", |(_, what)| what) {
        "cpu" => "cpu",
        "memory" => "memory",
        "ephemeral-storage" => "local ephemeral storage",
        _ if huge => "hugepages",
        _ => return,
    };
    let (fine, list) = match what {
        "cpu" => (["1m", "1"].contains(&divisor.as_str()), "1m and 1".to_owned()),
        _ => (SIZES.contains(&divisor.as_str()), SIZES.join(", ")),
    };
    if !fine {
        let detail = format!("only divisor's values {list} are supported with the {what} resource");
        e.invalid(at.child("divisor"), name, detail);
    }
}
