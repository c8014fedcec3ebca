//! Validation of a pod's security context.

use super::checks::Errors;
use super::containers;
use crate::object::ObjectExt as _;
use crate::status::Path;
use serde_json::Value;

/// What a sysctl's name may be.
fn sysctl_name(name: &str) -> bool {
    let segment = |s: &str| {
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let b = s.as_bytes();
        edge(b.first())
            && edge(b.last())
            && b.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'_'))
    };
    name.len() <= 253 && name.split(['.', '/']).all(segment)
}

/// The namespace that a sysctl belongs to; empty when to none.
fn namespace_of(sysctl: &str) -> &'static str {
    let name = sysctl.replace('/', ".");
    const IPC: [&str; 3] = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    if name.starts_with("net.") {
        "net"
    } else if name == "kernel.sem" || IPC.iter().any(|prefix| name.starts_with(prefix)) {
        "ipc"
    } else {
        ""
    }
}

pub fn security_context(s: &Value, at: Path<'_>, e: &mut Errors) {
    let Some(context) = s.get("securityContext").filter(|c| !c.is_null()) else { return };
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        containers::id(at.child(field), context.int_at(field), e);
    }
    let groups = at.child("supplementalGroups");
    for (i, group) in context.items_at("supplementalGroups").iter().enumerate() {
        containers::id(groups.index(i), group.as_i64(), e);
    }
    let list = at.child("sysctls");
    let mut seen = Vec::new();
    for (i, sysctl) in context.items_at("sysctls").iter().enumerate() {
        let name = sysctl.str_at("name");
        let item = list.index(i);
        if name.is_empty() {
            e.required(item.child("name"), "");
        } else if !sysctl_name(name) {
            e.invalid(item.child("name"), name, "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$");
        } else if seen.contains(&name) {
            e.duplicate(item.child("name"), name);
        }
        let shared = |field: &str| s.bool_at(field) == Some(true);
        match namespace_of(name) {
            "net" if shared("hostNetwork") => {
                e.invalid(item.child("name"), name, "may not be specified when 'hostNetwork' is true");
            }
            "ipc" if shared("hostIPC") => {
                e.invalid(item.child("name"), name, "may not be specified when 'hostIPC' is true");
            }
            _ => {}
        }
        seen.push(name);
    }
    if s.bool_at("shareProcessNamespace") == Some(true) && s.bool_at("hostPID") == Some(true) {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        e.invalid(at.child("shareProcessNamespace"), true, detail);
    }
    let policy = context.get("fsGroupChangePolicy");
    e.known(at.child("fsGroupChangePolicy"), policy, &["Always", "OnRootMismatch"]);
    containers::seccomp(context, at, e);
    super::profiles::windows(context, at.child("windowsOptions"), e);
    super::profiles::app_armor(context, at.child("appArmorProfile"), e);
    // MountOption comes with a feature that is off by default (KEP-1710).
    let policies: [(&str, &[&str]); 2] =
        [("supplementalGroupsPolicy", &["Merge", "Strict"]), ("seLinuxChangePolicy", &["Recursive"])];
    for (field, known) in policies {
        e.known(at.child(field), context.get(field), known);
    }
}
