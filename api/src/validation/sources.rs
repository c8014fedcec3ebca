//! Where volumes come from: the sources that pods and persistent volumes share.

use super::checks::Errors;
use super::containers::descending;
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::Path;
use regex::Regex;
use serde_json::Value;
use std::sync::LazyLock;

/// One rule of a source, in the order in which they are told.
enum Rule {
    /// A string that has to be there.
    Text(&'static str),
    /// A list that may not be empty.
    List(&'static str),
    /// The number of a partition; 0 is none.
    Partition,
    /// The name (and in a persistent volume the namespace) of a secret, when there is one.
    Secret,
    Own(fn(&Value, Path<'_>, &Scope<'_>, &mut Errors)),
}
use Rule::{List, Own, Partition, Secret, Text};

/// Whether a source is a persistent volume's, and the name of the volume.
pub struct Scope<'a> {
    pub persistent: bool,
    pub volume: &'a str,
}

/// What each source demands. The name is that of the field; `gcePersistentDisk` is told as `persistentDisk`.
const SOURCES: [(&str, &[Rule]); 21] = [
    ("hostPath", &[Own(host_path)]),
    ("gitRepo", &[Text("repository"), Own(git_directory)]),
    ("gcePersistentDisk", &[Text("pdName"), Partition]),
    ("awsElasticBlockStore", &[Text("volumeID"), Partition]),
    ("nfs", &[Text("server"), Text("path"), Own(absolute)]),
    ("iscsi", &[Own(iscsi)]),
    ("glusterfs", &[Text("endpoints"), Text("path"), Own(endpoints_namespace)]),
    ("flocker", &[Own(flocker)]),
    ("rbd", &[List("monitors"), Text("image")]),
    ("cinder", &[Text("volumeID"), Secret]),
    ("cephfs", &[List("monitors")]),
    ("quobyte", &[Own(quobyte), Text("volume")]),
    ("fc", &[Own(fibre_channel)]),
    ("flexVolume", &[Text("driver"), Own(flex_options)]),
    ("azureFile", &[Text("secretName"), Text("shareName"), Own(secret_namespace)]),
    ("azureDisk", &[Text("diskName"), Text("diskURI"), Own(azure_disk)]),
    ("vsphereVolume", &[Text("volumePath")]),
    ("photonPersistentDisk", &[Text("pdID")]),
    ("portworxVolume", &[Text("volumeID")]),
    ("scaleIO", &[Text("gateway"), Text("system"), Text("volumeName")]),
    ("storageos", &[Own(storage_os), Secret]),
];

/// Judges a source that pods and persistent volumes share; says nothing about others.
pub fn shared(name: &str, source: &Value, spec: Path<'_>, scope: &Scope<'_>, e: &mut Errors) {
    let Some((_, rules)) = SOURCES.iter().find(|(n, _)| *n == name) else { return };
    let at = spec.child(if name == "gcePersistentDisk" { "persistentDisk" } else { name });
    for rule in *rules {
        match rule {
            Text(field) if source.str_at(field).is_empty() => e.required(at.child(field), ""),
            List(field) if source.items_at(field).is_empty() => e.required(at.child(field), ""),
            Text(_) | List(_) => {}
            Partition => {
                if let Some(n) = source.int_at("partition").filter(|n| !(0..=255).contains(n)) {
                    e.invalid(at.child("partition"), n, "must be between 1 and 255, inclusive");
                }
            }
            Secret => {
                let Some(secret) = given(source, "secretRef") else { continue };
                let at = at.child("secretRef");
                let fields: &[&str] = if scope.persistent { &["name", "namespace"] } else { &["name"] };
                for field in fields.iter().filter(|f| secret.str_at(f).is_empty()) {
                    e.required(at.child(field), "");
                }
            }
            Own(judge) => judge(source, at, scope, e),
        }
    }
}

fn given<'a>(o: &'a Value, field: &str) -> Option<&'a Value> {
    o.get(field).filter(|v| !v.is_null())
}

fn text<'a>(o: &'a Value, field: &str) -> Option<&'a str> {
    given(o, field)?.as_str()
}

const HOST_PATHS: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

fn host_path(s: &Value, at: Path<'_>, _: &Scope<'_>, e: &mut Errors) {
    let path = s.str_at("path");
    if path.is_empty() {
        return e.required(at.child("path"), "");
    }
    no_backsteps(at.child("path"), path, e);
    e.known(at.child("type"), s.get("type"), &HOST_PATHS);
}

/// A path that does not lead upwards.
pub fn no_backsteps(at: Path<'_>, path: &str, e: &mut Errors) {
    if path.split('/').any(|p| p == "..") {
        e.invalid(at, path, "must not contain '..'");
    }
}

fn git_directory(s: &Value, at: Path<'_>, _: &Scope<'_>, e: &mut Errors) {
    descending(at.child("directory"), s.str_at("directory"), e);
}

fn absolute(s: &Value, at: Path<'_>, _: &Scope<'_>, e: &mut Errors) {
    let path = s.str_at("path");
    if !path.starts_with('/') {
        e.invalid(at.child("path"), path, "must be an absolute path");
    }
}

/// Forms of iSCSI names (RFC 3720, RFC 3980).
static ISCSI: LazyLock<Vec<(&str, Option<Regex>)>> = LazyLock::new(|| {
    [
        ("iqn", r"iqn\.\d{4}-\d{2}\.([A-Za-z0-9.-]+)(:[^,;*&$|\s]+)$"),
        ("eui", r"^eui.[A-Za-z0-9]{16}$"),
        ("naa", r"^naa.[A-Za-z0-9]{32}$"),
    ]
    .map(|(form, pattern)| (form, Regex::new(pattern).ok()))
    .into()
});

/// What is wrong with an iSCSI name.
fn iscsi_name(name: &str, persistent: bool) -> Option<&'static str> {
    match ISCSI.iter().find(|(form, _)| name.starts_with(form)) {
        None if persistent => Some("must be valid format"),
        None => Some("must be valid format starting with iqn, eui, or naa"),
        Some((_, form)) => {
            form.as_ref().is_none_or(|form| !form.is_match(name)).then_some("must be valid format")
        }
    }
}

fn iscsi(s: &Value, at: Path<'_>, scope: &Scope<'_>, e: &mut Errors) {
    const LONG: &str = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";
    let (portal, initiator) = (s.str_at("targetPortal"), text(s, "initiatorName"));
    if portal.is_empty() {
        e.required(at.child("targetPortal"), "");
    }
    let long = initiator.is_some() && scope.volume.len() + 1 + portal.len() > 64;
    if long && scope.persistent {
        e.invalid(at.child("targetportal"), portal, LONG);
    }
    match s.str_at("iqn") {
        "" => e.required(at.child("iqn"), ""),
        name => {
            if let Some(why) = iscsi_name(name, scope.persistent) {
                e.invalid(at.child("iqn"), name, why);
            }
        }
    }
    lun(s, at, e);
    let chap = ["chapAuthDiscovery", "chapAuthSession"]
        .iter()
        .any(|f| s.get(f).and_then(Value::as_bool) == Some(true));
    match given(s, "secretRef") {
        None if chap => e.required(at.child("secretRef"), ""),
        Some(secret) if scope.persistent && secret.str_at("name").is_empty() => {
            e.required(at.child("secretRef.name"), "");
        }
        _ => {}
    }
    if let Some(why) = initiator.and_then(|name| iscsi_name(name, scope.persistent)) {
        e.invalid(at.child("initiatorname"), initiator.unwrap_or(""), why);
    }
}

fn lun(s: &Value, at: Path<'_>, e: &mut Errors) {
    if let Some(n) = s.int_at("lun").filter(|n| !(0..=255).contains(n)) {
        e.invalid(at.child("lun"), n, "must be between 0 and 255, inclusive");
    }
}

fn endpoints_namespace(s: &Value, at: Path<'_>, scope: &Scope<'_>, e: &mut Errors) {
    let at = at.child("endpointsNamespace");
    match text(s, "endpointsNamespace").filter(|_| scope.persistent) {
        Some("") => e.invalid(at, "", "if the endpointnamespace is set, it must be a valid namespace name"),
        Some(namespace) => e.all(at, namespace, names::dns1123_label(namespace)),
        None => {}
    }
}

fn flocker(s: &Value, at: Path<'_>, _: &Scope<'_>, e: &mut Errors) {
    let (name, uuid) = (s.str_at("datasetName"), s.str_at("datasetUUID"));
    if name.is_empty() && uuid.is_empty() {
        e.required(at, "one of datasetName and datasetUUID is required");
    }
    if !name.is_empty() && !uuid.is_empty() {
        e.invalid(at, "resource", "datasetName and datasetUUID can not be specified simultaneously");
    }
    if name.contains('/') {
        e.invalid(at.child("datasetName"), name, "must not contain '/'");
    }
}

fn quobyte(s: &Value, at: Path<'_>, _: &Scope<'_>, e: &mut Errors) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = s.str_at("registry");
    if registry.is_empty() {
        e.required(at.child("registry"), PAIRS);
    } else if s.str_at("tenant").len() >= 65 {
        e.required(at.child("tenant"), "must be a UUID and may not exceed a length of 64 characters");
    } else {
        let pair = |p: &&str| {
            let host_port =
                p.strip_prefix('[').and_then(|p| p.split_once("]:")).or_else(|| p.split_once(':'));
            host_port.is_some_and(|(_, port)| !port.contains(':'))
        };
        for _ in registry.split(',').filter(|p| !pair(p)) {
            e.invalid(at.child("registry"), registry, PAIRS);
        }
    }
}

fn fibre_channel(s: &Value, at: Path<'_>, _: &Scope<'_>, e: &mut Errors) {
    let (targets, ids) = (s.items_at("targetWWNs"), s.items_at("wwids"));
    let path = at.child("targetWWNs");
    if targets.is_empty() && ids.is_empty() {
        e.required(path, "must specify either targetWWNs or wwids, but not both");
    }
    if !targets.is_empty() && !ids.is_empty() {
        e.invalid(path, targets.to_vec(), "targetWWNs and wwids can not be specified simultaneously");
    }
    if !targets.is_empty() {
        match s.int_at("lun") {
            None => e.required(at.child("lun"), "lun is required if targetWWNs is specified"),
            Some(_) => lun(s, at, e),
        }
    }
}

fn flex_options(s: &Value, at: Path<'_>, _: &Scope<'_>, e: &mut Errors) {
    let list = at.child("options");
    for (key, _) in s.get("options").and_then(Value::as_object).into_iter().flatten() {
        let namespace = format!(".{}", key.split_once('/').map_or(key.as_str(), |(ns, _)| ns).to_lowercase());
        if namespace.ends_with(".kubernetes.io") || namespace.ends_with(".k8s.io") {
            let detail = "kubernetes.io and k8s.io namespaces are reserved";
            e.invalid(list.key(key), key.as_str(), detail);
        }
    }
}

fn secret_namespace(s: &Value, at: Path<'_>, scope: &Scope<'_>, e: &mut Errors) {
    if scope.persistent && text(s, "secretNamespace") == Some("") {
        e.required(at.child("secretNamespace"), "");
    }
}

fn azure_disk(s: &Value, at: Path<'_>, _: &Scope<'_>, e: &mut Errors) {
    const MANAGED: &str =
        "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
    const BLOB: &str = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
    e.known(at.child("cachingMode"), s.get("cachingMode"), &["None", "ReadOnly", "ReadWrite"]);
    e.known(at.child("kind"), s.get("kind"), &["Dedicated", "Managed", "Shared"]);
    let uri = s.str_at("diskURI");
    match text(s, "kind") {
        Some("Managed") if !uri.starts_with("/subscriptions/") => {
            e.unsupported(at.child("diskURI"), uri, &[MANAGED]);
        }
        Some(kind) if kind != "Managed" && !uri.starts_with("https://") => {
            e.unsupported(at.child("diskURI"), uri, &[BLOB]);
        }
        _ => {}
    }
}

fn storage_os(s: &Value, at: Path<'_>, _: &Scope<'_>, e: &mut Errors) {
    match s.str_at("volumeName") {
        "" => e.required(at.child("volumeName"), ""),
        name => e.all(at.child("volumeName"), name, names::dns1123_label(name)),
    }
    let namespace = s.str_at("volumeNamespace");
    if !namespace.is_empty() {
        e.all(at.child("volumeNamespace"), namespace, names::dns1123_label(namespace));
    }
}
