//! Validation of storage classes, attachments and drivers.

use super::checks::{Errors, IMMUTABLE, NOT_NEGATIVE, quantity};
use crate::internal;
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::{BadValue, Path};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const SPEC: Path<'static> = Path::new("spec");
const ROOT: Path<'static> = Path::ROOT;

pub fn kind(kind: &str, o: &Value, old: Option<&Value>, e: &mut Errors) {
    match kind {
        "StorageClass" => {
            match o.str_at("provisioner") {
                "" => e.required(ROOT.child("provisioner"), ""),
                name => {
                    let name = name.to_lowercase();
                    e.all(ROOT.child("provisioner"), &name, names::qualified_name(&name));
                }
            }
            parameters(o, true, e);
            let policy = o.str_at("reclaimPolicy");
            e.optional_one_of(ROOT.child("reclaimPolicy"), policy, &["Delete", "Retain"]);
            let mode = o.str_at("volumeBindingMode");
            if o.get("volumeBindingMode").is_none_or(Value::is_null) {
                e.required(ROOT.child("volumeBindingMode"), "");
            } else if !matches!(mode, "Immediate" | "WaitForFirstConsumer") {
                let modes = ["Immediate", "WaitForFirstConsumer"];
                e.unsupported(ROOT.child("volumeBindingMode"), mode, &modes);
            }
            topologies(o, e);
            if let Some(old) = old {
                for (field, ty) in [
                    ("parameters", "map:string"),
                    ("provisioner", "string"),
                    ("reclaimPolicy", "*string"),
                    ("volumeBindingMode", "*string"),
                ] {
                    e.immutable(ROOT, ty, o, old, field);
                }
            }
        }
        "CSIStorageCapacity" => {
            e.selector(ROOT.child("nodeTopology"), o.get("nodeTopology"));
            let class = o.str_at("storageClassName");
            e.all(ROOT.child("storageClassName"), class, names::dns1123_subdomain(class));
            if let Some(q) = quantity(o.get("capacity")).filter(|q| q.is_negative()) {
                e.invalid(ROOT.child("capacity"), q.to_string(), NOT_NEGATIVE);
            }
            if let Some(old) = old {
                for (field, ty) in
                    [("nodeTopology", "*meta.v1.LabelSelector"), ("storageClassName", "string")]
                {
                    e.immutable(ROOT, ty, o, old, field);
                }
            }
        }
        "VolumeAttachment" => {
            driver_name(o.str_at("spec.attacher"), SPEC.child("attacher"), e);
            let source = |f: &str| o.at("spec.source").and_then(|s| s.get(f)).filter(|v| !v.is_null());
            let at = SPEC.child("source");
            let detail = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            match (source("inlineVolumeSpec"), source("persistentVolumeName")) {
                (None, None) => e.required(at, detail),
                (Some(_), Some(_)) => e.forbidden(at, detail),
                (None, Some(name)) => {
                    if name == "" {
                        e.required(
                            at.child("persistentVolumeName"),
                            "must specify non empty persistentVolumeName",
                        );
                    }
                }
                (Some(spec), None) => {
                    super::persistent::volume_spec(spec, "", true, at.child("inlineVolumeSpec"), e);
                }
            }
            let node = o.str_at("spec.nodeName");
            e.all(SPEC.child("nodeName"), node, names::dns1123_subdomain(node));
            if let Some(name) = source("persistentVolumeName").and_then(Value::as_str) {
                e.all(at.child("persistentVolumeName"), name, names::dns1123_subdomain(name));
            }
            if let Some(old) = old {
                e.immutable(ROOT, "storage.VolumeAttachmentSpec", o, old, "spec");
            }
        }
        "VolumeAttributesClass" => {
            if let Some(old) = old {
                for (field, ty) in [("driverName", "string"), ("parameters", "map:string")] {
                    if !internal::same(ty, o.get(field), old.get(field)) {
                        e.forbidden(ROOT.child(field), &format!("updates to {field} are forbidden."));
                    }
                }
            }
            match o.str_at("driverName") {
                "" => e.required(ROOT.child("driverName"), ""),
                name => {
                    let name = name.to_lowercase();
                    e.all(ROOT.child("driverName"), &name, names::qualified_name(&name));
                }
            }
            parameters(o, false, e);
        }
        "CSIDriver" => csi_driver(o, old, e),
        "CSINode" => csi_node(o, old, e),
        _ => {}
    }
}

/// Most bytes that all parameters of a class may have, and most parameters.
const PARAMETERS: (usize, usize) = (256 * 1024, 512);

fn parameters(o: &Value, may_be_empty: bool, e: &mut Errors) {
    let at = ROOT.child("parameters");
    let empty = serde_json::Map::new();
    let all = o.get("parameters").and_then(Value::as_object).unwrap_or(&empty);
    let (bytes, count) = PARAMETERS;
    if all.len() > count {
        e.push(crate::status::FieldError::too_long(at, count));
    }
    if all.contains_key("") {
        e.invalid(at, "", "field can not be empty.");
    }
    if all.iter().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum::<usize>() > bytes {
        e.push(crate::status::FieldError::too_long(at, bytes));
    }
    if !may_be_empty && all.is_empty() {
        e.required(at, "must contain at least one key/value pair");
    }
}

/// Where the volumes of a class may be.
fn topologies(o: &Value, e: &mut Errors) {
    let list = ROOT.child("allowedTopologies");
    let terms = o.items_at("allowedTopologies");
    // Kubernetes compares each term with as many empty ones as there are terms, too.
    let mut seen = vec![BTreeMap::new(); terms.len()];
    for (i, term) in terms.iter().enumerate() {
        let item = list.index(i);
        let expressions = item.child("matchLabelExpressions");
        let mut keys = Vec::new();
        for (j, x) in term.items_at("matchLabelExpressions").iter().enumerate() {
            let at = expressions.index(j);
            let (key, values) = (x.str_at("key"), x.items_at("values"));
            if values.is_empty() {
                e.required(at.child("values"), "");
            }
            for (k, value) in values.iter().enumerate().filter(|(k, v)| values[..*k].contains(v)) {
                let at = at.child("values");
                e.duplicate(at.index(k), value.clone());
            }
            e.all(at.child("key"), key, names::qualified_name(key));
            if keys.contains(&key) {
                e.duplicate(at.child("key"), key);
            }
            keys.push(key);
        }
        let mut values: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for x in term.items_at("matchLabelExpressions") {
            values.insert(x.str_at("key"), x.items_at("values").iter().filter_map(Value::as_str).collect());
        }
        for _ in seen.iter().filter(|other| **other == values) {
            e.duplicate(expressions, "");
        }
        seen.push(values);
    }
}

/// The name of a CSI driver.
pub fn driver_name(name: &str, at: Path<'_>, e: &mut Errors) {
    if name.is_empty() {
        return e.required(at, "");
    }
    if name.len() > 63 {
        e.push(crate::status::FieldError::too_long(at, 63));
    }
    e.all(at, name, names::dns1123_subdomain(&name.to_lowercase()));
}

fn csi_driver(o: &Value, old: Option<&Value>, e: &mut Errors) {
    driver_name(o.name(), Path::new("metadata.name"), e);
    for field in ["attachRequired", "podInfoOnMount", "storageCapacity"] {
        if o.at("spec").is_none_or(|s| s.get(field).is_none_or(Value::is_null)) {
            let shown = if field == "attachRequired" { "attachedRequired" } else { field };
            e.required(SPEC.child(shown), "");
        }
    }
    let policies = ["File", "None", "ReadWriteOnceWithFSType"];
    e.known(SPEC.child("fsGroupPolicy"), o.at("spec.fsGroupPolicy"), &policies);
    let list = SPEC.child("tokenRequests");
    let mut seen = Vec::new();
    for (i, request) in o.items_at("spec.tokenRequests").iter().enumerate() {
        let item = list.index(i);
        let audience = request.str_at("audience");
        if seen.contains(&audience) {
            e.duplicate(item.child("audience"), audience);
        }
        seen.push(audience);
        if let Some(n) = request.int_at("expirationSeconds") {
            if n < 600 {
                e.invalid(
                    item.child("expirationSeconds"),
                    n,
                    "may not specify a duration less than 10 minutes",
                );
            } else if n > 1 << 32 {
                e.invalid(
                    item.child("expirationSeconds"),
                    n,
                    "may not specify a duration larger than 2^32 seconds",
                );
            }
        }
    }
    let at = SPEC.child("volumeLifecycleModes");
    for mode in o.items_at("spec.volumeLifecycleModes").iter().filter_map(Value::as_str) {
        if !matches!(mode, "Ephemeral" | "Persistent") {
            e.unsupported(at, mode, &["Persistent", "Ephemeral"]);
        }
    }
    if let Some(n) = o.int_at("spec.nodeAllocatableUpdatePeriodSeconds").filter(|n| *n < 10) {
        let at = SPEC.child("nodeAllocatableUpdatePeriodSeconds");
        e.invalid(at, n, "must be greater than or equal to 10 seconds");
    }
    if let Some(set) =
        o.bool_at("spec.serviceAccountTokenInSecrets").filter(|_| o.items_at("spec.tokenRequests").is_empty())
    {
        let detail = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
        e.invalid(SPEC.child("serviceAccountTokenInSecrets"), set, detail);
    }
    if let (Some(new), Some(old)) = (o.get("spec"), old.and_then(|o| o.get("spec"))) {
        // Kubernetes names the field "attachedRequired".
        if !internal::same("*bool", new.get("attachRequired"), old.get("attachRequired")) {
            let shown = BadValue::internal("*bool", new.get("attachRequired"));
            e.invalid(SPEC.child("attachedRequired"), shown, IMMUTABLE);
        }
        e.immutable(SPEC, "[]string", new, old, "volumeLifecycleModes");
    }
}

fn csi_node(o: &Value, old: Option<&Value>, e: &mut Errors) {
    let list = SPEC.child("drivers");
    let mut seen = Vec::new();
    for (i, driver) in o.items_at("spec.drivers").iter().enumerate() {
        let item = list.index(i);
        let name = driver.str_at("name");
        driver_name(name, item.child("name"), e);
        let node = driver.str_at("nodeID");
        if node.is_empty() {
            e.required(item.child("nodeID"), "");
        }
        if node.len() > 256 {
            e.invalid(item.child("nodeID"), node, "must be 256 characters or less");
        }
        if seen.contains(&name) {
            e.duplicate(item.child("name"), name);
        }
        seen.push(name);
        let mut keys = Vec::new();
        for key in driver.items_at("topologyKeys").iter().filter_map(Value::as_str) {
            if key.is_empty() {
                e.required(item, "");
            }
            if keys.contains(&key) {
                e.duplicate(item, key);
            }
            keys.push(key);
            e.all(item, key, names::qualified_name(key));
        }
        // A driver that is there stays as it is, but for how many volumes it takes.
        let before = old.map_or(&[][..], |o| o.items_at("spec.drivers"));
        if let Some(before) = before.iter().find(|d| d.str_at("name") == name) {
            let bare = |d: &Value| {
                let mut d = d.clone();
                d.remove_path(&["allocatable"]);
                d
            };
            let now = bare(driver);
            if bare(before) != now {
                let shown = BadValue::internal("storage.CSINodeDriver", Some(&now));
                e.invalid(SPEC.child("drivers"), shown, IMMUTABLE);
            }
        }
        if let Some(n) = driver.int_at("allocatable.count").filter(|n| *n < 0) {
            e.invalid(item.child("allocatable.count"), n, NOT_NEGATIVE);
        }
    }
}
