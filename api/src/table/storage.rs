//! The rows of volumes, claims and what provides them.

use super::cells::Cx;
use crate::kinds::Kind;
use crate::object::ObjectExt as _;
use serde_json::{Value, json};

/// The annotation that held a claim's or volume's class before there was a field.
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

pub fn cells(kind: &Kind, cx: &Cx<'_>) -> Option<Vec<Value>> {
    let o = cx.o;
    let phase =
        || if o.deletion_timestamp().is_some() { json!("Terminating") } else { cx.text("status.phase") };
    Some(match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "PersistentVolume") => {
            let claim = match o.at("spec.claimRef") {
                Some(c) if !c.is_null() => format!("{}/{}", c.str_at("namespace"), c.str_at("name")),
                _ => String::new(),
            };
            vec![
                cx.name(),
                cx.text("spec.capacity.storage"),
                json!(modes(o.items_at("spec.accessModes"))),
                cx.text("spec.persistentVolumeReclaimPolicy"),
                phase(),
                json!(claim),
                class(cx),
                cx.text_or("spec.volumeAttributesClassName", "<unset>"),
                cx.text("status.reason"),
                cx.age(),
                cx.text_or("spec.volumeMode", "<unset>"),
            ]
        }
        ("", "PersistentVolumeClaim") => {
            let bound = !o.str_at("spec.volumeName").is_empty();
            let when = |v: Value| if bound { v } else { json!("") };
            vec![
                cx.name(),
                phase(),
                cx.text("spec.volumeName"),
                when(cx.text_or("status.capacity.storage", "0")),
                when(json!(modes(o.items_at("status.accessModes")))),
                class(cx),
                cx.text_or("spec.volumeAttributesClassName", "<unset>"),
                cx.age(),
                cx.text_or("spec.volumeMode", "<unset>"),
            ]
        }
        ("storage.k8s.io", "StorageClass") => {
            let default = o.annotation("storageclass.kubernetes.io/is-default-class") == Some("true");
            let name = if default { json!(format!("{} (default)", o.name())) } else { cx.name() };
            vec![
                name,
                cx.text("provisioner"),
                cx.text("reclaimPolicy"),
                cx.text("volumeBindingMode"),
                cx.bool("allowVolumeExpansion"),
                cx.age(),
            ]
        }
        ("storage.k8s.io", "CSIDriver") => {
            let join = |list: &[Value], field: Option<&str>, empty: &str| {
                let items: Vec<&str> = list
                    .iter()
                    .map(|v| field.map_or_else(|| v.as_str().unwrap_or(""), |f| v.str_at(f)))
                    .collect();
                if items.is_empty() { json!(empty) } else { json!(items.join(",")) }
            };
            vec![
                cx.name(),
                json!(o.bool_at("spec.attachRequired").unwrap_or(true)),
                cx.bool("spec.podInfoOnMount"),
                cx.bool("spec.storageCapacity"),
                join(o.items_at("spec.tokenRequests"), Some("audience"), "<unset>"),
                cx.bool("spec.requiresRepublish"),
                join(o.items_at("spec.volumeLifecycleModes"), None, "<none>"),
                cx.age(),
            ]
        }
        ("storage.k8s.io", "CSINode") => vec![cx.name(), json!(cx.count("spec.drivers")), cx.age()],
        ("storage.k8s.io", "VolumeAttachment") => vec![
            cx.name(),
            cx.text("spec.attacher"),
            cx.text("spec.source.persistentVolumeName"),
            cx.text("spec.nodeName"),
            cx.bool("status.attached"),
            cx.age(),
        ],
        ("storage.k8s.io", "VolumeAttributesClass") => vec![cx.name(), cx.text("driverName"), cx.age()],
        _ => return None,
    })
}

fn class(cx: &Cx<'_>) -> Value {
    match cx.o.annotation(BETA_CLASS) {
        Some(class) => json!(class),
        None => cx.text("spec.storageClassName"),
    }
}

/// Access modes by their short names, each once, in a fixed order.
fn modes(list: &[Value]) -> String {
    let known = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let shown = known.iter().filter(|(mode, _)| list.iter().any(|m| m.as_str() == Some(*mode)));
    shown.map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}
