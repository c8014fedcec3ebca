//! Validation of storage classes, attachments and drivers.

use super::checks::{Errors, IMMUTABLE, NOT_NEGATIVE, quantity};
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::Path;
use serde_json::Value;

const SPEC: Path<'static> = Path::new("spec");
const ROOT: Path<'static> = Path::ROOT;

pub fn kind(kind: &str, o: &Value, old: Option<&Value>, e: &mut Errors) {
    match kind {
        "StorageClass" => {
            if let Some(old) = old {
                for field in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
                    e.immutable(ROOT, o, old, field);
                }
                return;
            }
            match o.str_at("provisioner") {
                "" => e.required(ROOT.child("provisioner"), ""),
                name => e.all(ROOT.child("provisioner"), name, names::qualified_name(&name.to_lowercase())),
            }
            let policy = o.str_at("reclaimPolicy");
            e.optional_one_of(ROOT.child("reclaimPolicy"), policy, &["Delete", "Retain"]);
            let mode = o.str_at("volumeBindingMode");
            if mode.is_empty() {
                e.required(ROOT.child("volumeBindingMode"), "");
            } else {
                e.one_of(ROOT.child("volumeBindingMode"), mode, &["Immediate", "WaitForFirstConsumer"]);
            }
        }
        "CSIStorageCapacity" => {
            let class = o.str_at("storageClassName");
            e.all(ROOT.child("storageClassName"), class, names::dns1123_subdomain(class));
            for field in ["capacity", "maximumVolumeSize"] {
                if let Some(q) = quantity(o.get(field)).filter(|q| q.is_negative()) {
                    e.invalid(ROOT.child(field), q.to_string(), NOT_NEGATIVE);
                }
            }
        }
        "VolumeAttachment" => {
            for field in ["attacher", "nodeName"] {
                if o.at("spec").map_or("", |s| s.str_at(field)).is_empty() {
                    e.required(SPEC.child(field), "");
                }
            }
            if let Some(old) = old
                && old.get("spec") != o.get("spec")
            {
                e.invalid(SPEC, o.get("spec").cloned().unwrap_or(Value::Null), IMMUTABLE);
            }
        }
        "VolumeAttributesClass" => {
            if o.str_at("driverName").is_empty() {
                e.required(ROOT.child("driverName"), "");
            }
            if let Some(old) = old {
                for field in ["driverName", "parameters"] {
                    e.immutable(ROOT, o, old, field);
                }
            }
        }
        "CSIDriver" => csi_driver(o, old, e),
        "CSINode" => csi_node(o, e),
        _ => {}
    }
}

fn csi_driver(o: &Value, old: Option<&Value>, e: &mut Errors) {
    if o.name().len() > 63 {
        e.push(crate::status::FieldError::too_long("metadata.name", 63));
    }
    let policy = o.str_at("spec.fsGroupPolicy");
    let policies = ["File", "None", "ReadWriteOnceWithFSType"];
    e.optional_one_of(SPEC.child("fsGroupPolicy"), policy, &policies);
    let at = SPEC.child("volumeLifecycleModes");
    for mode in o.items_at("spec.volumeLifecycleModes").iter().filter_map(Value::as_str) {
        if !matches!(mode, "Ephemeral" | "Persistent") {
            e.unsupported(at, mode, &["Ephemeral", "Persistent"]);
        }
    }
    let list = SPEC.child("tokenRequests");
    let mut seen = Vec::new();
    for (i, request) in o.items_at("spec.tokenRequests").iter().enumerate() {
        let item = list.index(i);
        let audience = request.str_at("audience");
        if seen.contains(&audience) {
            e.duplicate(item.child("audience"), audience);
        }
        seen.push(audience);
        if let Some(n) = request.int_at("expirationSeconds").filter(|n| *n < 600) {
            e.invalid(item.child("expirationSeconds"), n, "may not specify a duration less than 10 minutes");
        }
    }
    if let (Some(new), Some(old)) = (o.get("spec"), old.and_then(|o| o.get("spec"))) {
        for field in ["attachRequired", "volumeLifecycleModes"] {
            e.immutable(SPEC, new, old, field);
        }
    }
}

fn csi_node(o: &Value, e: &mut Errors) {
    let list = SPEC.child("drivers");
    let mut seen = Vec::new();
    for (i, driver) in o.items_at("spec.drivers").iter().enumerate() {
        let item = list.index(i);
        let name = driver.str_at("name");
        if name.is_empty() {
            e.required(item.child("name"), "");
        } else if seen.contains(&name) {
            e.duplicate(item.child("name"), name);
        }
        seen.push(name);
        if driver.str_at("nodeID").is_empty() {
            e.required(item.child("nodeID"), "");
        }
        if let Some(n) = driver.int_at("allocatable.count").filter(|n| *n < 0) {
            e.invalid(item.child("allocatable.count"), n, NOT_NEGATIVE);
        }
    }
}
