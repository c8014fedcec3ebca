//! Validation of containers.

use super::checks::Errors;
use super::env::env;
use super::handlers::{hooks, probe, requirements};
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::{BadValue, FieldError, Path};
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
    let pod = Pod::of(s, volumes);
    let mut seen: Vec<&str> = Vec::new();
    for (i, c) in containers.iter().enumerate() {
        let item = list.index(i);
        common(c, item, &pod, e);
        unique(c, item, &mut seen, e);
        if let Some(lifecycle) = c.get("lifecycle").filter(|l| !l.is_null()) {
            hooks(lifecycle, item.child("lifecycle"), grace, pod.os, e);
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
        common(c, item, &pod, e);
        restart_policy(c, item, e);
        unique(c, item, &mut seen, e);
        let own = std::slice::from_ref(c);
        host_ports(own, list, e);
        if c.str_at("restartPolicy") == "Always" {
            if let Some(lifecycle) = c.get("lifecycle").filter(|l| !l.is_null()) {
                hooks(lifecycle, item.child("lifecycle"), grace, pod.os, e);
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
    let pod = Pod::of(s, &volumes);
    for (i, c) in s.items_at("ephemeralContainers").iter().enumerate() {
        let item = list.index(i);
        common(c, item, &pod, e);
        image_padding(c, item, e);
        unique(c, item, &mut seen, e);
        let target = c.str_at("targetContainerName");
        let known = |l: &str| s.items_at(l).iter().any(|c| c.str_at("name") == target);
        if !target.is_empty() && !known("containers") && !known("initContainers") {
            e.push(FieldError::not_found(item.child("targetContainerName"), target));
        }
        let resources = c.get("resources").and_then(Value::as_object).is_some_and(|r| !r.is_empty());
        for name in [
            "ports",
            "resources",
            "resizePolicy",
            "restartPolicy",
            "restartPolicyRules",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
        ] {
            let given =
                if name == "resources" { resources } else { c.get(name).is_some_and(|v| !v.is_null()) };
            if given {
                e.forbidden(item.child(name), "cannot be set for an Ephemeral Container");
            }
        }
        let mounts = item.child("volumeMounts");
        for (j, mount) in c.items_at("volumeMounts").iter().enumerate() {
            for field in ["subPath", "subPathExpr"].into_iter().filter(|f| !mount.str_at(f).is_empty()) {
                let at = mounts.index(j);
                e.forbidden(at.child(field), "cannot be set for an Ephemeral Container");
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

/// What containers have to know of their pod.
pub struct Pod<'a> {
    spec: &'a Value,
    volumes: &'a [String],
    /// `linux`, `windows` or empty.
    os: &'a str,
    claims: Vec<&'a str>,
    never_restarts: bool,
    host_users: bool,
}

impl<'a> Pod<'a> {
    fn of(spec: &'a Value, volumes: &'a [String]) -> Self {
        let claims = spec.items_at("resourceClaims").iter().map(|c| c.str_at("name"));
        Self {
            spec,
            volumes,
            os: spec.str_at("os.name"),
            claims: claims.filter(|n| !n.is_empty()).collect(),
            never_restarts: spec.str_at("restartPolicy") == "Never",
            host_users: spec.bool_at("hostUsers") != Some(false),
        }
    }

    /// A volume's source by the volume's name.
    fn volume(&self, name: &str) -> Option<&'a Value> {
        self.spec.items_at("volumes").iter().find(|v| v.str_at("name") == name)
    }
}

/// An image's name with spaces around it; templates may have that.
pub fn image_padding(c: &Value, at: Path<'_>, e: &mut Errors) {
    let image = c.str_at("image");
    if image.trim() != image {
        e.invalid(at.child("image"), image, "must not have leading or trailing whitespace");
    }
}

fn restart_policy(c: &Value, at: Path<'_>, e: &mut Errors) {
    let rules = c.items_at("restartPolicyRules");
    let policy = at.child("restartPolicy");
    if c.get("restartPolicy").is_none_or(Value::is_null) {
        if !rules.is_empty() {
            e.required(policy, "must specify restartPolicy when restart rules are used");
        }
    } else if !["Always", "Never", "OnFailure"].contains(&c.str_at("restartPolicy")) {
        e.unsupported(policy, c.str_at("restartPolicy"), &["Always", "Never", "OnFailure"]);
    }
    let list = at.child("restartPolicyRules");
    if rules.len() > 20 {
        e.push(FieldError::too_many(list, rules.len(), 20));
    }
    for (i, rule) in rules.iter().enumerate() {
        let item = list.index(i);
        let actions = ["Restart", "RestartAllContainers"];
        if !actions.contains(&rule.str_at("action")) {
            e.unsupported(item.child("action"), rule.str_at("action"), &actions);
        }
        let codes = item.child("exitCodes");
        match rule.get("exitCodes").filter(|c| !c.is_null()) {
            None => e.required(codes, "must be specified"),
            Some(given) => {
                if !["In", "NotIn"].contains(&given.str_at("operator")) {
                    e.unsupported(codes.child("operator"), given.str_at("operator"), &["In", "NotIn"]);
                }
                let values = given.items_at("values").len();
                if values > 255 {
                    e.push(FieldError::too_many(codes.child("values"), values, 255));
                }
            }
        }
    }
}

fn common(c: &Value, at: Path<'_>, pod: &Pod<'_>, e: &mut Errors) {
    let name = c.str_at("name");
    if name.is_empty() {
        e.required(at.child("name"), "");
    } else {
        e.all(at.child("name"), name, names::dns1123_label(name));
    }
    if c.str_at("image").is_empty() {
        e.required(at.child("image"), "");
    }
    let policy = c.str_at("terminationMessagePolicy");
    e.one_of(at.child("terminationMessagePolicy"), policy, &["File", "FallbackToLogsOnError"]);
    ports(c, at.child("ports"), e);
    env(c, at, e);
    mounts(c, at.child("volumeMounts"), pod.volumes, e);
    devices(c, at.child("volumeDevices"), pod, e);
    let policy = c.str_at("imagePullPolicy");
    e.one_of(at.child("imagePullPolicy"), policy, &["Always", "IfNotPresent", "Never"]);
    if let Some(resources) = c.get("resources") {
        requirements(resources, at.child("resources"), Some(&pod.claims), e);
    }
    resize_policy(c, at.child("resizePolicy"), pod, e);
    let context = at.child("securityContext");
    if let Some(sc) = c.get("securityContext").filter(|s| !s.is_null()) {
        for field in ["runAsUser", "runAsGroup"] {
            id(context.child(field), sc.int_at(field), e);
        }
        let mount = sc.str_at("procMount");
        e.known(context.child("procMount"), sc.get("procMount"), &["Default", "Unmasked"]);
        if pod.host_users && mount == "Unmasked" {
            e.invalid(context.child("procMount"), mount, "`hostUsers` must be false to use `Unmasked`");
        }
        seccomp(sc, context, e);
        if sc.bool_at("allowPrivilegeEscalation") == Some(false) {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            if sc.bool_at("privileged") == Some(true) {
                e.invalid(context, BadValue::internal("core.SecurityContext", Some(sc)), detail);
            }
            if sc.items_at("capabilities.add").iter().any(|c| c == "CAP_SYS_ADMIN") {
                let detail =
                    "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
                e.invalid(context, BadValue::internal("core.SecurityContext", Some(sc)), detail);
            }
        }
        super::profiles::windows(sc, context.child("windowsOptions"), e);
        super::profiles::app_armor(sc, context.child("appArmorProfile"), e);
    }
}

fn resize_policy(c: &Value, at: Path<'_>, pod: &Pod<'_>, e: &mut Errors) {
    let mut seen = Vec::new();
    for (i, policy) in c.items_at("resizePolicy").iter().enumerate() {
        let (name, restart) = (policy.str_at("resourceName"), policy.str_at("restartPolicy"));
        if seen.contains(&name) {
            e.duplicate(at.index(i), name);
        }
        seen.push(name);
        e.one_of(at, name, &["cpu", "memory"]);
        e.one_of(at, restart, &["NotRequired", "RestartContainer"]);
        if pod.never_restarts && restart != "NotRequired" {
            e.invalid(at, restart, "must be 'NotRequired' when pod `restartPolicy` is 'Never'");
        }
    }
}

/// Block devices are claims, by names and paths that no mount has.
fn devices(c: &Value, at: Path<'_>, pod: &Pod<'_>, e: &mut Errors) {
    let mounts = c.items_at("volumeMounts");
    let (mut names, mut paths) = (Vec::new(), Vec::new());
    for (i, device) in c.items_at("volumeDevices").iter().enumerate() {
        let item = at.index(i);
        let (name, path) = (device.str_at("name"), device.str_at("devicePath"));
        let volume = pod.volume(name);
        if name.is_empty() {
            e.required(item.child("name"), "");
        }
        if names.contains(&name) {
            e.invalid(item.child("name"), name, "must be unique");
        }
        match volume {
            None => e.push(FieldError::not_found(item.child("name"), name)),
            Some(v)
                if ["persistentVolumeClaim", "ephemeral"]
                    .iter()
                    .all(|s| v.get(*s).is_none_or(Value::is_null)) =>
            {
                let detail =
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                e.invalid(item.child("name"), name, detail);
            }
            Some(_) => {}
        }
        if path.is_empty() {
            e.required(item.child("devicePath"), "");
        }
        if paths.contains(&path) {
            e.invalid(item.child("devicePath"), path, "must be unique");
        }
        if path.split('/').any(|p| p == "..") {
            e.invalid(item.child("devicePath"), path, "can not contain backsteps ('..')");
        } else {
            paths.push(path);
        }
        if mounts.iter().any(|m| m.str_at("name") == name) {
            e.invalid(item.child("name"), name, "must not already exist in volumeMounts");
        }
        if mounts.iter().any(|m| m.str_at("mountPath") == path) {
            e.invalid(item.child("devicePath"), path, "must not already exist as a path in volumeMounts");
        }
        if !name.is_empty() {
            names.push(name);
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
    let given = profile.get("localhostProfile").is_some_and(|p| !p.is_null());
    match (ty == "Localhost", given) {
        (true, false) => {
            e.required(at.child("localhostProfile"), "must be set when seccomp type is Localhost")
        }
        (true, true) => descending(at.child("localhostProfile"), local, e),
        (false, true) => {
            let detail = "can only be set when seccomp type is Localhost";
            let shown = BadValue::internal("core.SeccompProfile", Some(profile));
            e.invalid(at.child("localhostProfile"), shown, detail);
        }
        (false, false) => {}
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

fn mounts(c: &Value, at: Path<'_>, volumes: &[String], e: &mut Errors) {
    let devices = c.items_at("volumeDevices");
    let privileged = c.bool_at("securityContext.privileged") == Some(true);
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
        if devices.iter().any(|d| d.str_at("name") == name) {
            e.invalid(item.child("name"), name, "must not already exist in volumeDevices");
        }
        if devices.iter().any(|d| d.str_at("devicePath") == path) {
            e.invalid(item.child("mountPath"), path, "must not already exist as a path in volumeDevices");
        }
        for field in ["subPath", "subPathExpr"] {
            let sub = mount.str_at(field);
            if field == "subPathExpr" && !sub.is_empty() && !mount.str_at("subPath").is_empty() {
                e.invalid(item.child(field), sub, "subPathExpr and subPath are mutually exclusive");
            }
            if !sub.is_empty() {
                descending(at.child(field), sub, e);
            }
        }
        let propagation = mount.str_at("mountPropagation");
        let all = ["Bidirectional", "HostToContainer", "None"];
        e.known(at.child("mountPropagation"), mount.get("mountPropagation"), &all);
        if propagation == "Bidirectional" && !privileged {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            e.forbidden(at.child("mountPropagation"), detail);
        }
        let recursive = at.child("recursiveReadOnly");
        match mount.str_at("recursiveReadOnly") {
            "" if mount.get("recursiveReadOnly").is_none_or(Value::is_null) => {}
            "Disabled" => {}
            "Enabled" | "IfPossible" => {
                if mount.bool_at("readOnly") != Some(true) {
                    e.forbidden(recursive, "may only be specified when readOnly is true");
                }
                if !matches!(propagation, "" | "None") {
                    e.forbidden(
                        recursive,
                        "may only be specified when mountPropagation is None or not specified",
                    );
                }
            }
            other => e.unsupported(recursive, other, &["Disabled", "Enabled", "IfPossible"]),
        }
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
