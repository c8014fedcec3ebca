//! The checks, and from which version on which of them holds.

use serde_json::Value;

use super::spec::{PodView, Values, containers, context, is_true, plural, quoted, setters, violation};
use super::{Level, Violation};
use crate::object::ObjectExt as _;

type Check = fn(&PodView<'_>) -> Option<Violation>;

/// A check in the shape that it has from a minor version on. Rows of an id follow each other by version; ids are in
/// the order of messages.
struct Row {
    id: &'static str,
    level: Level,
    since: u32,
    check: Check,
    /// The check of baseline that this one of restricted replaces.
    replaces: &'static str,
}

const fn base(id: &'static str, since: u32, check: Check) -> Row {
    Row { id, level: Level::Baseline, since, check, replaces: "" }
}

const fn strict(id: &'static str, since: u32, check: Check, replaces: &'static str) -> Row {
    Row { id, level: Level::Restricted, since, check, replaces }
}

const ROWS: &[Row] = &[
    base("appArmorProfile", 0, app_armor),
    base("capabilities_baseline", 0, added_capabilities),
    base("hostNamespaces", 0, host_namespaces),
    base("hostPathVolumes", 0, host_paths),
    base("hostPorts", 0, host_ports),
    base("hostProbesAndHostLifecycle", 34, probe_hosts),
    base("privileged", 0, privileged),
    base("procMount", 0, proc_mount),
    base("procMount", 35, proc_mount_or_user_namespace),
    base("seLinuxOptions", 0, |pod| se_linux(pod, &SE_LINUX_TYPES[..4])),
    base("seLinuxOptions", 31, |pod| se_linux(pod, &SE_LINUX_TYPES)),
    base("seccompProfile_baseline", 0, seccomp_annotations),
    base("seccompProfile_baseline", 19, seccomp_set),
    base("sysctls", 0, |pod| sysctls(pod, 0)),
    base("sysctls", 27, |pod| sysctls(pod, 27)),
    base("sysctls", 29, |pod| sysctls(pod, 29)),
    base("sysctls", 32, |pod| sysctls(pod, 32)),
    base("windowsHostProcess", 0, host_process),
    strict("allowPrivilegeEscalation", 8, privilege_escalation, ""),
    strict("allowPrivilegeEscalation", 25, |pod| unless_windows(pod, privilege_escalation), ""),
    strict("capabilities_restricted", 22, capabilities, "capabilities_baseline"),
    strict("capabilities_restricted", 25, |pod| unless_windows(pod, capabilities), "capabilities_baseline"),
    strict("procMount_restricted", 35, proc_mount, "procMount"),
    strict("restrictedVolumes", 0, volumes, "hostPathVolumes"),
    strict("runAsNonRoot", 0, non_root, ""),
    strict("runAsNonRoot", 35, |pod| unless_user_namespace(pod, non_root), ""),
    strict("runAsUser", 23, root_user, ""),
    strict("runAsUser", 35, |pod| unless_user_namespace(pod, root_user), ""),
    strict("seccompProfile_restricted", 19, seccomp_demanded, "seccompProfile_baseline"),
    strict(
        "seccompProfile_restricted",
        25,
        |pod| unless_windows(pod, seccomp_demanded),
        "seccompProfile_baseline",
    ),
];

/// The checks of a level at a minor version, in the order of messages.
pub fn of(level: Level, minor: u32) -> impl Iterator<Item = Check> {
    let holds = move |row: &&Row| row.level <= level && row.since <= minor;
    let last = move |row: &&Row| {
        !ROWS.iter().filter(holds).any(|other| other.id == row.id && other.since > row.since)
    };
    let replaced = move |row: &&Row| ROWS.iter().filter(holds).any(|other| other.replaces == row.id);
    ROWS.iter().filter(holds).filter(last).filter(move |row| !replaced(row)).map(|row| row.check)
}

fn unless_windows(pod: &PodView<'_>, check: Check) -> Option<Violation> {
    if pod.is_windows() { None } else { check(pod) }
}

fn unless_user_namespace(pod: &PodView<'_>, check: Check) -> Option<Violation> {
    if pod.has_user_namespace() { None } else { check(pod) }
}

fn app_armor(pod: &PodView<'_>) -> Option<Violation> {
    let mut values = Values::new();
    let bad =
        |profile: Option<&'_ str>| profile.is_some_and(|t| !matches!(t, "RuntimeDefault" | "Localhost"));
    fn profile(holder: &Value) -> Option<&str> {
        context(holder, "appArmorProfile").map(|p| p.str_at("type"))
    }
    let on_pod = bad(profile(pod.spec));
    if on_pod {
        values.extend(profile(pod.spec));
    }
    let names = pod.named(|c| {
        let wrong = bad(profile(c));
        if wrong {
            values.extend(profile(c));
        }
        wrong
    });
    let mut annotations: Vec<String> = pod
        .annotations
        .iter()
        .filter(|(k, v)| {
            let fine = v.is_empty() || *v == "runtime/default" || v.starts_with("localhost/");
            k.starts_with("container.apparmor.security.beta.kubernetes.io/") && !fine
        })
        .map(|(k, v)| format!("{k}={}", crate::text::quote(v)))
        .collect();
    annotations.sort();
    let mut all: Vec<String> = setters(on_pod, &names).into_iter().collect();
    if !annotations.is_empty() {
        all.push(plural(annotations.len(), "annotation", "annotations").to_owned());
    }
    if all.is_empty() {
        return None;
    }
    let values: Vec<&str> = values.into_iter().chain(annotations.iter().map(String::as_str)).collect();
    let reason = plural(values.len(), "forbidden AppArmor profile", "forbidden AppArmor profiles");
    violation(
        reason,
        format!("{} must not set AppArmor profile type to {}", all.join(" and "), quoted(values)),
    )
}

const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// The capabilities that a container adds or drops.
fn changed<'a>(container: &'a Value, how: &str) -> impl Iterator<Item = &'a str> {
    let list = context(container, "capabilities").map_or(&[][..], |c| c.items_at(how));
    list.iter().filter_map(Value::as_str)
}

fn added_capabilities(pod: &PodView<'_>) -> Option<Violation> {
    let mut values = Values::new();
    let names = pod.named(|c| {
        let bad: Vec<&str> = changed(c, "add").filter(|cap| !DEFAULT_CAPABILITIES.contains(cap)).collect();
        values.extend(&bad);
        !bad.is_empty()
    });
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} must not include {} in securityContext.capabilities.add",
        containers(&names),
        quoted(values)
    );
    violation("non-default capabilities", detail)
}

fn capabilities(pod: &PodView<'_>) -> Option<Violation> {
    let mut values = Values::new();
    let keeping = pod.named(|c| !changed(c, "drop").any(|cap| cap == "ALL"));
    let adding = pod.named(|c| {
        let bad: Vec<&str> = changed(c, "add").filter(|cap| *cap != "NET_BIND_SERVICE").collect();
        values.extend(&bad);
        !bad.is_empty()
    });
    let mut details = Vec::new();
    if !keeping.is_empty() {
        details
            .push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&keeping)));
    }
    if !adding.is_empty() {
        let (who, what) = (containers(&adding), quoted(values));
        details.push(format!("{who} must not include {what} in securityContext.capabilities.add"));
    }
    if details.is_empty() { None } else { violation("unrestricted capabilities", details.join("; ")) }
}

fn host_namespaces(pod: &PodView<'_>) -> Option<Violation> {
    let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|f| pod.spec.bool_at(f) == Some(true))
        .map(|f| format!("{f}=true"))
        .collect();
    if set.is_empty() { None } else { violation("host namespaces", set.join(", ")) }
}

fn host_paths(pod: &PodView<'_>) -> Option<Violation> {
    let is_set = |v: &&Value| v.get("hostPath").is_some_and(|p| !p.is_null());
    let names: Vec<&str> =
        pod.spec.items_at("volumes").iter().filter(is_set).map(|v| v.str_at("name")).collect();
    if names.is_empty() {
        return None;
    }
    let many = plural(names.len(), "volume", "volumes");
    violation("hostPath volumes", format!("{many} {}", quoted(names)))
}

fn host_ports(pod: &PodView<'_>) -> Option<Violation> {
    let mut ports = std::collections::BTreeSet::new();
    let names = pod.named(|c| {
        let set = c.items_at("ports").iter().filter_map(|p| p.int_at("hostPort")).filter(|n| *n != 0);
        let set: Vec<String> = set.map(|n| n.to_string()).collect();
        ports.extend(set.iter().cloned());
        !set.is_empty()
    });
    if names.is_empty() {
        return None;
    }
    let uses = plural(names.len(), "uses", "use");
    let what = plural(ports.len(), "hostPort", "hostPorts");
    let ports: Vec<String> = ports.into_iter().collect();
    violation("hostPort", format!("{} {uses} {what} {}", containers(&names), ports.join(", ")))
}

fn probe_hosts(pod: &PodView<'_>) -> Option<Violation> {
    let mut hosts = Values::new();
    let handlers =
        ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop"];
    let names: Values<'_> = pod
        .named(|c| {
            let found = handlers
                .iter()
                .filter_map(|at| c.at(at))
                .flat_map(|handler| [handler.str_at("httpGet.host"), handler.str_at("tcpSocket.host")]);
            let found: Vec<&str> = found.filter(|host| !host.is_empty()).collect();
            hosts.extend(&found);
            !found.is_empty()
        })
        .into_iter()
        .collect();
    if names.is_empty() {
        return None;
    }
    let names: Vec<&str> = names.into_iter().collect();
    let uses = plural(names.len(), "uses", "use");
    let what = plural(hosts.len(), "probe or lifecycle host", "probe or lifecycle hosts");
    violation("probe or lifecycle host", format!("{} {uses} {what} {}", containers(&names), quoted(hosts)))
}

fn privileged(pod: &PodView<'_>) -> Option<Violation> {
    let names = pod.named(|c| is_true(context(c, "privileged")));
    if names.is_empty() {
        return None;
    }
    violation("privileged", format!("{} must not set securityContext.privileged=true", containers(&names)))
}

fn proc_mount(pod: &PodView<'_>) -> Option<Violation> {
    let mut values = Values::new();
    let names = pod.named(|c| {
        let bad = context(c, "procMount").and_then(Value::as_str).filter(|kind| *kind != "Default");
        values.extend(bad);
        bad.is_some()
    });
    if names.is_empty() {
        return None;
    }
    let detail =
        format!("{} must not set securityContext.procMount to {}", containers(&names), quoted(values));
    violation("procMount", detail)
}

fn proc_mount_or_user_namespace(pod: &PodView<'_>) -> Option<Violation> {
    unless_user_namespace(pod, proc_mount)
}

const SE_LINUX_TYPES: [&str; 5] =
    ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

fn se_linux(pod: &PodView<'_>, allowed: &[&str]) -> Option<Violation> {
    let (mut types, mut user, mut role) = (Values::new(), false, false);
    let mut bad = |options: Option<&'_ Value>| {
        let Some(options) = options else { return (false, None) };
        let kind = Some(options.str_at("type")).filter(|t| !allowed.contains(t));
        let (sets_user, sets_role) = (!options.str_at("user").is_empty(), !options.str_at("role").is_empty());
        user |= sets_user;
        role |= sets_role;
        (kind.is_some() || sets_user || sets_role, kind.map(str::to_owned))
    };
    let mut found = std::collections::BTreeSet::new();
    let (on_pod, kind) = bad(pod.context("seLinuxOptions"));
    found.extend(kind);
    let names = pod.named(|c| {
        let (wrong, kind) = bad(context(c, "seLinuxOptions"));
        found.extend(kind);
        wrong
    });
    types.extend(found.iter().map(String::as_str));
    let who = setters(on_pod, &names)?;
    let mut data = Vec::new();
    if !types.is_empty() {
        data.push(format!("{} {}", plural(types.len(), "type", "types"), quoted(types)));
    }
    if user {
        data.push("user may not be set".to_owned());
    }
    if role {
        data.push("role may not be set".to_owned());
    }
    violation(
        "seLinuxOptions",
        format!("{who} set forbidden securityContext.seLinuxOptions: {}", data.join("; ")),
    )
}

fn seccomp_annotations(pod: &PodView<'_>) -> Option<Violation> {
    let mut keys = vec!["seccomp.security.alpha.kubernetes.io/pod".to_owned()];
    keys.extend(
        pod.containers()
            .map(|c| format!("container.seccomp.security.alpha.kubernetes.io/{}", c.str_at("name"))),
    );
    let fine = |v: &str| matches!(v, "runtime/default" | "docker/default") || v.starts_with("localhost/");
    let bad: std::collections::BTreeSet<String> = keys
        .iter()
        .filter_map(|k| Some((k, pod.annotations.get(k)?)))
        .filter(|(_, v)| !fine(v))
        .map(|(k, v)| format!("{k}={}", crate::text::quote(v)))
        .collect();
    if bad.is_empty() {
        return None;
    }
    let many = plural(bad.len(), "annotation", "annotations");
    let bad: Vec<String> = bad.into_iter().collect();
    violation("seccompProfile", format!("forbidden {many} {}", bad.join(", ")))
}

fn seccomp(holder: &Value) -> Option<&str> {
    context(holder, "seccompProfile").map(|p| p.str_at("type"))
}

fn seccomp_is_bad(profile: Option<&str>) -> bool {
    profile.is_some_and(|t| !matches!(t, "Localhost" | "RuntimeDefault"))
}

fn seccomp_set(pod: &PodView<'_>) -> Option<Violation> {
    let on_pod = seccomp(pod.spec);
    let mut values: Values<'_> = on_pod.filter(|_| seccomp_is_bad(on_pod)).into_iter().collect();
    let names = pod.named(|c| {
        let bad = seccomp_is_bad(seccomp(c));
        values.extend(seccomp(c).filter(|_| bad));
        bad
    });
    let who = setters(seccomp_is_bad(on_pod), &names)?;
    let detail = format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(values));
    violation("seccompProfile", detail)
}

fn seccomp_demanded(pod: &PodView<'_>) -> Option<Violation> {
    if let Some(found) = seccomp_set(pod) {
        return Some(found);
    }
    let names = pod.named(|c| seccomp(c).is_none());
    if names.is_empty() || seccomp(pod.spec).is_some() {
        return None;
    }
    let detail = format!(
        "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
        containers(&names)
    );
    violation("seccompProfile", detail)
}

/// Sysctls that a pod may set, and since which version.
const SYSCTLS: [(&str, u32); 12] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];

fn sysctls(pod: &PodView<'_>, minor: u32) -> Option<Violation> {
    let set = pod.context("sysctls").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let allowed = |name: &str| SYSCTLS.iter().any(|(n, since)| *n == name && *since <= minor);
    let bad: Vec<&str> = set.iter().map(|s| s.str_at("name")).filter(|name| !allowed(name)).collect();
    if bad.is_empty() { None } else { violation("forbidden sysctls", bad.join(", ")) }
}

fn host_process(pod: &PodView<'_>) -> Option<Violation> {
    let set = |holder: &Value| {
        context(holder, "windowsOptions").is_some_and(|o| o.bool_at("hostProcess") == Some(true))
    };
    let who = setters(set(pod.spec), &pod.named(set))?;
    violation("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}

fn privilege_escalation(pod: &PodView<'_>) -> Option<Violation> {
    let names = pod.named(|c| context(c, "allowPrivilegeEscalation").and_then(Value::as_bool) != Some(false));
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&names));
    violation("allowPrivilegeEscalation != false", detail)
}

const FREE_VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

fn volumes(pod: &PodView<'_>) -> Option<Violation> {
    let (mut names, mut kinds) = (Vec::new(), Values::new());
    for volume in pod.spec.items_at("volumes") {
        let sources = volume.as_object().into_iter().flatten().filter(|(k, v)| *k != "name" && !v.is_null());
        let sources: Vec<&str> = sources.map(|(k, _)| k.as_str()).collect();
        if !sources.iter().any(|s| FREE_VOLUMES.contains(s)) {
            names.push(volume.str_at("name"));
            kinds.insert(sources.first().unwrap_or(&"unknown"));
        }
    }
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {} {}",
        plural(names.len(), "volume", "volumes"),
        quoted(names.iter().copied()),
        plural(names.len(), "uses", "use"),
        plural(kinds.len(), "restricted volume type", "restricted volume types"),
        quoted(kinds)
    );
    violation("restricted volume types", detail)
}

fn non_root(pod: &PodView<'_>) -> Option<Violation> {
    let on_pod = pod.context("runAsNonRoot").and_then(Value::as_bool);
    let set = |c: &Value| context(c, "runAsNonRoot").and_then(Value::as_bool);
    if let Some(who) = setters(on_pod == Some(false), &pod.named(|c| set(c) == Some(false))) {
        return violation(
            "runAsNonRoot != true",
            format!("{who} must not set securityContext.runAsNonRoot=false"),
        );
    }
    let names = pod.named(|c| set(c).is_none());
    if names.is_empty() || on_pod == Some(true) {
        return None;
    }
    let detail = format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&names));
    violation("runAsNonRoot != true", detail)
}

fn root_user(pod: &PodView<'_>) -> Option<Violation> {
    let root = |holder: &Value| context(holder, "runAsUser").and_then(Value::as_i64) == Some(0);
    let who = setters(root(pod.spec), &pod.named(root))?;
    violation("runAsUser=0", format!("{who} must not set runAsUser=0"))
}
