//! Validation of containers.

use super::checks::Errors;
use super::handlers::{hooks, probe, requirements};
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::{FieldError, Path};
use serde_json::Value;

const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

/// The containers and init containers of a spec. `volumes` are the names that may be mounted.
pub fn all(s: &Value, at: Path<'_>, volumes: &[String], e: &mut Errors) {
    let list = at.child("containers");
    let containers = s.items_at("containers");
    if containers.is_empty() {
        e.required(list, "");
    }
    let grace = s.int_at("terminationGracePeriodSeconds").unwrap_or(30);
    let mut seen: Vec<&str> = Vec::new();
    for (i, c) in containers.iter().enumerate() {
        let item = list.index(i);
        common(c, item, volumes, e);
        unique(c, item, &mut seen, e);
        if let Some(lifecycle) = c.get("lifecycle").filter(|l| !l.is_null()) {
            hooks(lifecycle, item.child("lifecycle"), grace, e);
        }
        for name in PROBES {
            probe(name, c.get(name), item.child(name), grace, e);
        }
        restart_policy(c, item, e);
    }
    host_ports(containers, list, e);
    let list = at.child("initContainers");
    for (i, c) in s.items_at("initContainers").iter().enumerate() {
        let item = list.index(i);
        common(c, item, volumes, e);
        unique(c, item, &mut seen, e);
        restart_policy(c, item, e);
        if c.str_at("restartPolicy") == "Always" {
            if let Some(lifecycle) = c.get("lifecycle").filter(|l| !l.is_null()) {
                hooks(lifecycle, item.child("lifecycle"), grace, e);
            }
            for name in PROBES {
                probe(name, c.get(name), item.child(name), grace, e);
            }
        } else {
            for name in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if c.get(name).is_some_and(|v| !v.is_null()) {
                    e.forbidden(
                        item.child(name),
                        "may not be set for init containers without restartPolicy=Always",
                    );
                }
            }
        }
    }
    host_ports(s.items_at("initContainers"), list, e);
}

/// The ephemeral containers of a spec.
pub fn ephemeral(s: &Value, at: Path<'_>, e: &mut Errors) {
    let list = at.child("ephemeralContainers");
    let mut seen: Vec<&str> = ["containers", "initContainers"]
        .into_iter()
        .flat_map(|l| s.items_at(l))
        .map(|c| c.str_at("name"))
        .collect();
    let volumes: Vec<String> = s.items_at("volumes").iter().map(|v| v.str_at("name").to_owned()).collect();
    for (i, c) in s.items_at("ephemeralContainers").iter().enumerate() {
        let item = list.index(i);
        if c.str_at("name").is_empty() {
            e.required(item, "ephemeralContainer name is required");
        }
        common(c, item, &volumes, e);
        unique(c, item, &mut seen, e);
        let target = c.str_at("targetContainerName");
        let known = |l: &str| s.items_at(l).iter().any(|c| c.str_at("name") == target);
        if !target.is_empty() && !known("containers") && !known("initContainers") {
            e.push(FieldError::not_found(item.child("targetContainerName"), target));
        }
        let resources = c.get("resources").and_then(Value::as_object).is_some_and(|r| !r.is_empty());
        for name in ["ports", "resources", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
            let given =
                if name == "resources" { resources } else { c.get(name).is_some_and(|v| !v.is_null()) };
            if given {
                e.forbidden(item.child(name), "cannot be set for an Ephemeral Container");
            }
        }
    }
}

fn unique<'a>(c: &'a Value, at: Path<'_>, seen: &mut Vec<&'a str>, e: &mut Errors) {
    let name = c.str_at("name");
    if !name.is_empty() && seen.contains(&name) {
        e.duplicate(at.child("name"), name);
    }
    seen.push(name);
}

fn restart_policy(c: &Value, at: Path<'_>, e: &mut Errors) {
    e.optional_one_of(
        at.child("restartPolicy"),
        c.str_at("restartPolicy"),
        &["Always", "Never", "OnFailure"],
    );
}

fn common(c: &Value, at: Path<'_>, volumes: &[String], e: &mut Errors) {
    let name = c.str_at("name");
    if name.is_empty() {
        e.required(at.child("name"), "");
    } else {
        e.all(at.child("name"), name, names::dns1123_label(name));
    }
    let image = c.str_at("image");
    if image.is_empty() {
        e.required(at.child("image"), "");
    } else if image.trim() != image {
        e.invalid(at.child("image"), image, "must not have leading or trailing whitespace");
    }
    let policy = c.str_at("terminationMessagePolicy");
    e.one_of(at.child("terminationMessagePolicy"), policy, &["FallbackToLogsOnError", "File"]);
    ports(c, at.child("ports"), e);
    env(c, at, e);
    mounts(c, at.child("volumeMounts"), volumes, e);
    let policy = c.str_at("imagePullPolicy");
    e.one_of(at.child("imagePullPolicy"), policy, &["Always", "IfNotPresent", "Never"]);
    if let Some(resources) = c.get("resources") {
        requirements(resources, at.child("resources"), e);
    }
    let context = at.child("securityContext");
    if let Some(sc) = c.get("securityContext").filter(|s| !s.is_null()) {
        for field in ["runAsUser", "runAsGroup"] {
            id(context.child(field), sc.int_at(field), e);
        }
        let mount = sc.str_at("procMount");
        e.optional_one_of(context.child("procMount"), mount, &["Default", "Unmasked"]);
        seccomp(sc, context, e);
        if sc.bool_at("allowPrivilegeEscalation") == Some(false) {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            if sc.bool_at("privileged") == Some(true) {
                e.invalid(context, sc.clone(), detail);
            }
        }
    }
}

/// A user or group id.
pub fn id(at: Path<'_>, n: Option<i64>, e: &mut Errors) {
    if let Some(n) = n.filter(|n| !(0..=i64::from(i32::MAX)).contains(n)) {
        e.invalid(at, n, "must be between 0 and 2147483647, inclusive");
    }
}

/// The seccomp profile of a security context.
pub fn seccomp(context: &Value, at: Path<'_>, e: &mut Errors) {
    let Some(profile) = context.get("seccompProfile").filter(|p| !p.is_null()) else { return };
    let at = at.child("seccompProfile");
    let (ty, local) = (profile.str_at("type"), profile.str_at("localhostProfile"));
    let types = ["Localhost", "RuntimeDefault", "Unconfined"];
    if ty.is_empty() {
        e.required(at.child("type"), "type is required when seccompProfile is set");
    } else {
        e.one_of(at.child("type"), ty, &types);
    }
    if ty == "Localhost" && local.is_empty() {
        e.required(at.child("localhostProfile"), "must be set when seccomp type is Localhost");
    } else if ty != "Localhost" && !local.is_empty() {
        e.invalid(at, profile.clone(), "can only be set when seccomp type is Localhost");
    }
}

/// A port's number.
pub fn port_number(at: Path<'_>, n: i64, e: &mut Errors) {
    for message in names::port_number(n) {
        e.invalid(at, n, message);
    }
}

fn ports(c: &Value, at: Path<'_>, e: &mut Errors) {
    let mut seen = Vec::new();
    for (i, port) in c.items_at("ports").iter().enumerate() {
        let item = at.index(i);
        let name = port.str_at("name");
        if !name.is_empty() {
            let messages = names::port_name(name);
            if messages.is_empty() && seen.contains(&name) {
                e.duplicate(item.child("name"), name);
            }
            e.all(item.child("name"), name, messages);
            seen.push(name);
        }
        match port.int_at("containerPort").unwrap_or(0) {
            0 => e.required(item.child("containerPort"), ""),
            n => port_number(item.child("containerPort"), n, e),
        }
        if let Some(n) = port.int_at("hostPort").filter(|n| *n != 0) {
            port_number(item.child("hostPort"), n, e);
        }
        e.one_of(item.child("protocol"), port.str_at("protocol"), &["SCTP", "TCP", "UDP"]);
    }
}

/// Two ports of a pod cannot have the same host port.
fn host_ports(containers: &[Value], at: Path<'_>, e: &mut Errors) {
    let mut taken = Vec::new();
    for (i, c) in containers.iter().enumerate() {
        let item = at.index(i);
        let list = item.child("ports");
        for (j, port) in c.items_at("ports").iter().enumerate() {
            let Some(n) = port.int_at("hostPort").filter(|n| *n != 0) else { continue };
            let key = format!("{}/{}/{n}", port.str_at("protocol"), port.str_at("hostIP"));
            if taken.contains(&key) {
                e.duplicate(list.index(j).child("hostPort"), key.as_str());
            }
            taken.push(key);
        }
    }
}

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

fn env(c: &Value, at: Path<'_>, e: &mut Errors) {
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
            if reference.str_at("name").is_empty() {
                let reference = item.child(source);
                e.required(reference.child("name"), "");
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
        if reference.str_at("resource").is_empty() {
            let reference = at.child("resourceFieldRef");
            e.required(reference.child("resource"), "");
        }
    }
    for source in ["configMapKeyRef", "secretKeyRef"] {
        let Some(reference) = present(source) else { continue };
        sources += 1;
        let path = at.child(source);
        if reference.str_at("name").is_empty() {
            e.required(path.child("name"), "");
        }
        match reference.str_at("key") {
            "" => e.required(path.child("key"), ""),
            key => e.all(path.child("key"), key, names::config_map_key(key)),
        }
    }
    sources += usize::from(present("fileKeyRef").is_some());
    if sources == 0 {
        let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        e.invalid(at, "", detail);
    } else if !var.str_at("value").is_empty() {
        e.invalid(at, "", "may not be specified when `value` is not empty");
    } else if sources > 1 {
        e.invalid(at, "", "may not have more than one field specified at a time");
    }
}

fn mounts(c: &Value, at: Path<'_>, volumes: &[String], e: &mut Errors) {
    let mut paths = Vec::new();
    for (i, mount) in c.items_at("volumeMounts").iter().enumerate() {
        let item = at.index(i);
        let (name, path) = (mount.str_at("name"), mount.str_at("mountPath"));
        if name.is_empty() {
            e.required(item.child("name"), "");
        }
        if !volumes.iter().any(|v| v == name) {
            e.push(FieldError::not_found(item.child("name"), name));
        }
        if path.is_empty() {
            e.required(item.child("mountPath"), "");
        }
        if paths.contains(&path) {
            e.invalid(item.child("mountPath"), path, "must be unique");
        }
        paths.push(path);
        for field in ["subPath", "subPathExpr"] {
            let sub = mount.str_at(field);
            if !sub.is_empty() {
                descending(at.child(field), sub, e);
            }
        }
        let propagation = mount.str_at("mountPropagation");
        let all = ["Bidirectional", "HostToContainer", "None"];
        e.optional_one_of(item.child("mountPropagation"), propagation, &all);
    }
}

/// A path that stays below where it starts.
pub fn descending(at: Path<'_>, path: &str, e: &mut Errors) {
    if path.starts_with('/') {
        e.invalid(at, path, "must be a relative path");
    }
    if path.split('/').any(|p| p == "..") {
        e.invalid(at, path, "must not contain '..'");
    }
}
