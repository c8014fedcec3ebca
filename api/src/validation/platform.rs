//! What a pod may say depending on its node: the host's namespaces, Linux or Windows.

use super::checks::Errors;
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::{FieldError, Path};
use serde_json::Value;

/// Ports of containers on the host's network are ports of the host.
pub fn host_ports(s: &Value, at: Path<'_>, is_pod: bool, e: &mut Errors) {
    if s.bool_at("hostNetwork") != Some(true) {
        return;
    }
    let list = at.child("containers");
    for (i, c) in s.items_at("containers").iter().enumerate() {
        let item = list.index(i);
        let ports = item.child("ports");
        for (j, port) in c.items_at("ports").iter().enumerate() {
            let (host, own) =
                (port.int_at("hostPort").unwrap_or(0), port.int_at("containerPort").unwrap_or(0));
            if (is_pod || host != 0) && host != own {
                let item = ports.index(j);
                let detail = "must match `containerPort` when `hostNetwork` is true";
                e.invalid(item.child("hostPort"), host, detail);
            }
        }
    }
}

/// What does not go with users of the pod's own (KEP-127).
pub fn host_users(s: &Value, at: Path<'_>, e: &mut Errors) {
    if s.bool_at("hostUsers") != Some(false) {
        return;
    }
    const WHY: &str = "when `hostUsers` is false";
    // Kubernetes writes two of them with a capital.
    for (field, name) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if s.bool_at(field) == Some(true) {
            e.forbidden(at.child(name), WHY);
        }
    }
    each_container(s, at, |c, item| {
        if !c.items_at("volumeDevices").is_empty() {
            e.forbidden(item.child("volumeDevices"), WHY);
        }
    });
}

/// A hostname of its own (KEP-4762).
pub fn hostname_override(s: &Value, at: Path<'_>, e: &mut Errors) {
    let Some(name) = s.get("hostnameOverride").and_then(Value::as_str) else { return };
    let at = at.child("hostnameOverride");
    if s.bool_at("setHostnameAsFQDN") == Some(true) {
        e.forbidden(at, "may not be specified when setHostnameAsFQDN is true");
    }
    if s.bool_at("hostNetwork") == Some(true) {
        e.forbidden(at, "may not be specified when hostNetwork is true");
    }
    if name.len() > 64 {
        e.push(FieldError::too_long(at, 64));
    }
    e.all(at, name, names::dns1123_subdomain(name));
}

/// Files with variables are in volumes that the pod itself writes (KEP-3721).
pub fn env_files(s: &Value, at: Path<'_>, e: &mut Errors) {
    each_container(s, at, |c, item| {
        let list = item.child("env");
        for (i, var) in c.items_at("env").iter().enumerate() {
            let Some(reference) = var.at("valueFrom.fileKeyRef").filter(|r| !r.is_null()) else { continue };
            let name = reference.str_at("volumeName");
            let item = list.index(i);
            let at = item.child("valueFrom.fileKeyRef.volumeName");
            match s.items_at("volumes").iter().rev().find(|v| v.str_at("name") == name) {
                None => e.push(FieldError::not_found(at, name)),
                Some(v) if v.get("emptyDir").is_none_or(Value::is_null) => {
                    e.invalid(at, name, "referenced volume must be of type emptyDir");
                }
                Some(_) => {}
            }
        }
    });
}

/// What the operating system of a pod rules out.
pub fn os(s: &Value, at: Path<'_>, e: &mut Errors) {
    let Some(os) = s.get("os").filter(|o| !o.is_null()) else { return };
    match os.str_at("name") {
        "" => e.required(at.child("os.name"), ""),
        "linux" => linux(s, at, e),
        "windows" => windows(s, at, e),
        other => e.unsupported(at.child("os"), other, &["linux", "windows"]),
    }
}

/// Containers that are processes of a Windows host: all or none, on the host's network (KEP-1981).
pub fn host_process(s: &Value, at: Path<'_>, e: &mut Errors) {
    const PROCESS: &str = "securityContext.windowsOptions.hostProcess";
    let whole = s.bool_at(PROCESS);
    let (mut count, mut hosts) = (0, 0);
    each_container(s, at, |c, item| {
        count += 1;
        let own = c.bool_at(PROCESS);
        if let (Some(whole), Some(own)) = (whole, own)
            && whole != own
        {
            let detail =
                format!("pod hostProcess value must be identical if both are specified, was {whole}");
            e.invalid(item.child(PROCESS), own, detail);
        }
        hosts += usize::from(own.or(whole) == Some(true));
    });
    if hosts == 0 {
        return;
    }
    if hosts != count {
        let detail =
            "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        e.invalid(at, "", detail);
    }
    if s.bool_at("hostNetwork") != Some(true) {
        let detail = "hostNetwork must be true if pod contains any hostProcess containers";
        e.invalid(at.child("hostNetwork"), false, detail);
    }
}

/// What a pod for Linux may not say.
fn linux(s: &Value, at: Path<'_>, e: &mut Errors) {
    let given = |o: &Value| o.at("securityContext.windowsOptions").is_some_and(|w| !w.is_null());
    if given(s) {
        let at = at.child("securityContext.windowsOptions");
        e.forbidden(at, "windows options cannot be set for a linux pod");
    }
    each_container(s, at, |c, item| {
        if given(c) {
            let at = item.child("securityContext.windowsOptions");
            e.forbidden(at, "windows options cannot be set for a linux pod");
        }
    });
}

/// Fields of security contexts that mean nothing on Windows.
const NOT_ON_WINDOWS: [&str; 12] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "fsGroup",
    "fsGroupChangePolicy",
    "sysctls",
    "shareProcessNamespace",
    "runAsUser",
    "runAsGroup",
    "supplementalGroups",
    "supplementalGroupsPolicy",
    "seLinuxChangePolicy",
];
const NOT_IN_CONTAINERS_ON_WINDOWS: [&str; 10] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];

/// What a pod for Windows may not say.
fn windows(s: &Value, at: Path<'_>, e: &mut Errors) {
    const WHY: &str = "cannot be set for a windows pod";
    if s.bool_at("hostUsers").is_some() {
        e.forbidden(at.child("hostUsers"), WHY);
    }
    for field in ["hostPID", "hostIPC"] {
        if s.bool_at(field) == Some(true) {
            let at = at.child("securityContext");
            e.forbidden(at.child(field), WHY);
        }
    }
    let given =
        |o: &Value, f: &str| o.get("securityContext").and_then(|c| c.get(f)).is_some_and(|v| !v.is_null());
    for field in NOT_ON_WINDOWS {
        let shared = field == "shareProcessNamespace" && s.bool_at(field) == Some(true);
        if given(s, field) || shared {
            let at = at.child("securityContext");
            e.forbidden(at.child(field), WHY);
        }
    }
    each_container(s, at, |c, item| {
        let at = item.child("securityContext");
        for field in NOT_IN_CONTAINERS_ON_WINDOWS.into_iter().filter(|f| given(c, f)) {
            e.forbidden(at.child(field), WHY);
        }
    });
}

fn each_container(s: &Value, at: Path<'_>, mut look: impl FnMut(&Value, Path<'_>)) {
    for field in ["containers", "initContainers", "ephemeralContainers"] {
        let list = at.child(field);
        for (i, c) in s.items_at(field).iter().enumerate() {
            look(c, list.index(i));
        }
    }
}
