//! Warnings about pods and pod templates.

use super::{deprecated_label, fractional, node_term};
use crate::object::{Labels, ObjectExt as _};
use crate::status::Path;
use crate::text::quote;
use crate::validation::addresses::ip_warning;
use serde_json::Value;

/// The annotations that held AppArmor and seccomp profiles before there were fields.
const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const SECCOMP: &str = "container.seccomp.security.alpha.kubernetes.io/";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const FIELD_OF: &str = "use the \"seccompProfile\" field instead";

/// Annotations that do nothing any more.
const DEAD_ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];

/// Sources of volumes that do nothing any more: the field, how it is told, since when.
const DEAD_VOLUMES: [(&str, &str, &str); 9] = [
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// Warnings about a pod (`template` is false) or about a template at `at`.
pub fn of(pod: &Value, at: Path<'_>, template: bool, out: &mut Vec<String>) {
    let empty = Value::Null;
    let spec = pod.get("spec").unwrap_or(&empty);
    let below = at.child("spec");
    let annotations = at.child("metadata.annotations");
    if !template {
        // A pod's own annotations were turned into fields, which says so once for each.
        for c in containers(spec).map(|(_, _, c)| c) {
            let key = format!("{APPARMOR}{}", c.str_at("name"));
            if pod.annotation(&key).is_some() {
                out.push(apparmor(annotations, &key));
            }
        }
    }
    selectors(spec, below, out);
    for (key, why) in DEAD_ANNOTATIONS.iter().filter(|(k, _)| pod.annotation(k).is_some()) {
        out.push(format!("{}: {why}", annotations.key(key)));
    }
    volumes(spec, below, out);
    duplicates(spec, "hostAliases", "ip", below, out);
    duplicates(spec, "imagePullSecrets", "name", below, out);
    let list = below.child("imagePullSecrets");
    for (i, _) in
        spec.items_at("imagePullSecrets").iter().enumerate().filter(|(_, s)| s.str_at("name").is_empty())
    {
        let item = list.index(i);
        out.push(format!("{}: invalid empty name \"\"", item.child("name")));
    }
    for name in ["memory", "ephemeral-storage"] {
        fractional(spec.get("overhead"), name, below.child("overhead"), out);
    }
    if spec.at("securityContext.seccompProfile").is_none() && pod.annotation(SECCOMP_POD).is_some() {
        out.push(format!("{}: non-functional in v1.27+; {FIELD_OF}", annotations.key(SECCOMP_POD)));
    }
    for (field, i, c) in containers(spec) {
        let list = below.child(field);
        let key = format!("{SECCOMP}{}", c.str_at("name"));
        if c.at("securityContext.seccompProfile").is_none() && pod.annotation(&key).is_some() {
            out.push(format!("{}: non-functional in v1.27+; {FIELD_OF}", annotations.key(&key)));
        }
        let key = format!("{APPARMOR}{}", c.str_at("name"));
        if template && c.at("securityContext.appArmorProfile").is_none() && pod.annotation(&key).is_some() {
            out.push(apparmor(annotations, &key));
        }
        container(c, list.index(i), out);
    }
    ports(spec, below, out);
    if spec.int_at("terminationGracePeriodSeconds").is_some_and(|n| n < 0) {
        let at = below.child("terminationGracePeriodSeconds");
        out.push(format!("{at}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    affinity_selectors(spec, below, out);
    let list = below.child("dnsConfig.nameservers");
    for (i, ip) in spec.items_at("dnsConfig.nameservers").iter().filter_map(Value::as_str).enumerate() {
        out.extend(ip_warning(list.index(i), ip));
    }
    let list = below.child("hostAliases");
    for (i, alias) in spec.items_at("hostAliases").iter().enumerate() {
        let item = list.index(i);
        out.extend(ip_warning(item.child("ip"), alias.str_at("ip")));
    }
}

fn apparmor(annotations: Path<'_>, key: &str) -> String {
    format!("{}: deprecated since v1.30; use the \"appArmorProfile\" field instead", annotations.key(key))
}

/// All containers of a spec, in the order in which Kubernetes visits them.
fn containers(spec: &Value) -> impl Iterator<Item = (&'static str, usize, &Value)> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(move |f| spec.items_at(f).iter().enumerate().map(move |(i, c)| (f, i, c)))
}

/// Labels of nodes that have other names by now, and selectors that are null.
fn selectors(spec: &Value, at: Path<'_>, out: &mut Vec<String>) {
    let selector = at.child("nodeSelector");
    for (key, _) in Labels::new(spec.get("nodeSelector").and_then(Value::as_object)).iter() {
        if let Some(why) = deprecated_label(key) {
            out.push(format!("{}: {why}", selector.key(key)));
        }
    }
    const REQUIRED: &str =
        "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    const PREFERRED: &str = "affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution";
    let list = at.child(REQUIRED);
    for (i, term) in spec.items_at(REQUIRED).iter().enumerate() {
        node_term(term, list.index(i), false, out);
    }
    let list = at.child(PREFERRED);
    for (i, term) in spec.items_at(PREFERRED).iter().enumerate() {
        let item = list.index(i);
        node_term(term.get("preference").unwrap_or(&Value::Null), item.child("preference"), true, out);
    }
    let list = at.child("topologySpreadConstraints");
    for (i, c) in spec.items_at("topologySpreadConstraints").iter().enumerate() {
        let item = list.index(i);
        let key = c.str_at("topologyKey");
        if let Some(why) = deprecated_label(key) {
            out.push(format!("{}: {key} is {why}", item.child("topologyKey")));
        }
        null_selector(c, item, out);
    }
}

fn null_selector(o: &Value, at: Path<'_>, out: &mut Vec<String>) {
    if o.get("labelSelector").is_none_or(Value::is_null) {
        out.push(format!("{}: a null labelSelector results in matching no pod", at.child("labelSelector")));
    }
}

fn affinity_selectors(spec: &Value, at: Path<'_>, out: &mut Vec<String>) {
    for kind in ["affinity.podAffinity", "affinity.podAntiAffinity"] {
        let Some(affinity) = spec.at(kind) else { continue };
        let at = at.child(kind);
        const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
        const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
        let list = at.child(REQUIRED);
        for (i, term) in affinity.items_at(REQUIRED).iter().enumerate() {
            null_selector(term, list.index(i), out);
        }
        let list = at.child(PREFERRED);
        for (i, term) in affinity.items_at(PREFERRED).iter().enumerate() {
            let item = list.index(i);
            let inner = term.get("podAffinityTerm").unwrap_or(&Value::Null);
            null_selector(inner, item.child("podAffinityTerm"), out);
        }
    }
}

fn volumes(spec: &Value, at: Path<'_>, out: &mut Vec<String>) {
    let list = at.child("volumes");
    for (i, v) in spec.items_at("volumes").iter().enumerate() {
        let item = list.index(i);
        let given = |f: &str| v.get(f).is_some_and(|s| !s.is_null());
        for (field, shown, why) in DEAD_VOLUMES.iter().filter(|(f, ..)| given(f)) {
            out.push(format!("{}: {why}", item.child(shown)));
            debug_assert!(v.get(*field).is_some());
        }
        if let Some(claim) = v.at("ephemeral.volumeClaimTemplate.spec") {
            super::claim_spec(claim, item.child("ephemeral.volumeClaimTemplate.spec"), out);
        }
    }
    for v in spec.items_at("volumes") {
        overlaps(v, out);
    }
}

/// A file of a volume, and where it comes from.
type File = (String, String);

/// Files of one volume whose paths are the same or lead through one another.
fn overlaps(v: &Value, out: &mut Vec<String>) {
    let name = quote(v.str_at("name"));
    let paths = |o: &Value, from: &str| -> Vec<File> {
        o.items_at("items").iter().map(|i| (i.str_at("path").to_owned(), from.to_owned())).collect()
    };
    let own =
        [("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName"), ("downwardAPI", "", "")];
    for (field, kind, of) in own {
        let Some(source) = v.get(field).filter(|s| !s.is_null()) else { continue };
        let what = if kind.is_empty() {
            "DownwardAPI".to_owned()
        } else {
            format!("{kind} {}", quote(source.str_at(of)))
        };
        let mut all = Vec::new();
        collide(&paths(source, ""), &mut all, &name, &what, out);
    }
    let mut all = Vec::new();
    for source in v.items_at("projected.sources") {
        let given = |f: &str| source.get(f).filter(|s| !s.is_null());
        if source.as_object().is_none_or(|o| o.values().all(Value::is_null)) {
            out.push(format!("volume {name} (Projected) has no sources provided"));
            continue;
        }
        let files = if let Some(s) = given("configMap") {
            paths(s, &format!("ConfigMap {}", quote(s.str_at("name"))))
        } else if let Some(s) = given("secret") {
            paths(s, &format!("Secret {}", quote(s.str_at("name"))))
        } else if let Some(s) = given("downwardAPI") {
            paths(s, "DownwardAPI")
        } else if let Some(s) = given("serviceAccountToken") {
            vec![(s.str_at("path").to_owned(), "ServiceAccountToken".to_owned())]
        } else {
            Vec::new()
        };
        collide(&files, &mut all, &name, "Projected", out);
    }
}

fn collide(files: &[File], all: &mut Vec<File>, volume: &str, what: &str, out: &mut Vec<String>) {
    let shown = |(path, from): &File| match from.as_str() {
        "" => quote(path),
        from => format!("{} ({from})", quote(path)),
    };
    for (path, from) in files {
        let file = (path.trim_end_matches('/').to_owned(), from.clone());
        let below = |a: &str, b: &str| format!("{a}/").starts_with(&format!("{b}/"));
        let hit = |o: &&File| !o.0.is_empty() && (below(&o.0, &file.0) || below(&file.0, &o.0));
        for other in all.iter().filter(|o| !file.0.is_empty() && hit(o)) {
            out.push(format!(
                "volume {volume} ({what}): overlapping paths: {} with {}",
                shown(&file),
                shown(other)
            ));
        }
        all.push(file);
    }
}

fn duplicates(spec: &Value, field: &str, key: &str, at: Path<'_>, out: &mut Vec<String>) {
    let items = spec.items_at(field);
    let list = at.child(field);
    for (i, item) in items.iter().enumerate() {
        let value = item.str_at(key);
        if items[..i].iter().any(|o| o.str_at(key) == value) {
            let at = list.index(i);
            out.push(format!("{}: duplicate {key} {}", at.child(key), quote(value)));
        }
    }
}

fn container(c: &Value, at: Path<'_>, out: &mut Vec<String>) {
    for name in ["memory", "ephemeral-storage"] {
        for list in ["limits", "requests"] {
            let resources = at.child("resources");
            let amounts = c.get("resources").and_then(|r| r.get(list));
            fractional(amounts, name, resources.child(list), out);
        }
    }
    let env = c.items_at("env");
    let list = at.child("env");
    for (i, var) in env.iter().enumerate() {
        let name = var.str_at("name");
        if !env[..i].iter().any(|v| v.str_at("name") == name) {
            continue;
        }
        let own = format!("$({name})");
        let value = var.str_at("value");
        let from = var.get("valueFrom").is_some_and(|f| !f.is_null());
        if from || value == own || !value.contains(&own) {
            out.push(format!(
                "{}: hides previous definition of {}, which may be dropped when using apply",
                list.index(i),
                quote(name)
            ));
        }
    }
}

fn ports(spec: &Value, at: Path<'_>, out: &mut Vec<String>) {
    let all: Vec<(String, &Value)> = containers(spec)
        .flat_map(|(field, i, c)| {
            let list = at.child(field);
            let item = list.index(i);
            let ports = item.child("ports");
            c.items_at("ports")
                .iter()
                .enumerate()
                .map(|(j, p)| (ports.index(j).to_string(), p))
                .collect::<Vec<_>>()
        })
        .collect();
    for (i, (path, port)) in all.iter().enumerate() {
        let (host, ip) = (port.int_at("hostPort").unwrap_or(0), port.str_at("hostIP"));
        if !ip.is_empty() && host == 0 {
            out.push(format!(
                "{path}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{} Protocol:{} HostIP:{ip}}}",
                port.str_at("name"),
                port.int_at("containerPort").unwrap_or(0),
                port.str_at("protocol"),
            ));
        }
        let same = |p: &Value| {
            p.int_at("containerPort") == port.int_at("containerPort")
                && p.str_at("protocol") == port.str_at("protocol")
        };
        for (other, o) in all[..i].iter().filter(|(_, o)| same(o)) {
            let (other_host, other_ip) = (o.int_at("hostPort").unwrap_or(0), o.str_at("hostIP"));
            let how = if ip == other_ip && host == other_host {
                "duplicate"
            } else if host == 0 || other_host == 0 {
                "overlapping"
            } else if host == other_host && ip.is_empty() != other_ip.is_empty() {
                "dangerously ambiguous"
            } else {
                continue;
            };
            out.push(format!("{path}: {how} port definition with {other}"));
        }
    }
    for (i, (path, port)) in all.iter().enumerate() {
        let name = port.str_at("name");
        if name.is_empty() {
            continue;
        }
        if let Some((first, _)) = all[..i].iter().find(|(_, o)| o.str_at("name") == name) {
            out.push(format!(
                "{path}: duplicate port name {} with {first}, services and probes that select ports by name will use {first}",
                quote(name)
            ));
        }
    }
}
