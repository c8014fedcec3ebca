//! Defaults of the core group's smaller kinds.

use super::{absent, child, each, ensure, set, text};
use crate::object::Object;
use serde_json::{Value, json};

/// A secret without a type is `Opaque`; `stringData` becomes `data`.
pub fn secret(o: &mut Object) {
    set(o, "type", "Opaque");
    if let Some(Value::Object(strings)) = o.remove("stringData")
        && let Some(data) = ensure(o, "data")
    {
        use base64::Engine as _;
        for (key, value) in strings {
            let bytes = value.as_str().unwrap_or("").as_bytes();
            data.insert(key, Value::String(base64::engine::general_purpose::STANDARD.encode(bytes)));
        }
    }
}

pub fn persistent_volume(o: &mut Object) {
    if let Some(spec) = ensure(o, "spec") {
        set(spec, "persistentVolumeReclaimPolicy", "Retain");
        set(spec, "volumeMode", "Filesystem");
        super::pod::volume_source(spec);
        if let Some(capacity) = spec.get_mut("capacity") {
            super::pod::round_resources(capacity);
        }
    }
    if let Some(status) = ensure(o, "status") {
        set(status, "phase", "Pending");
    }
}

pub fn persistent_volume_claim(o: &mut Object) {
    if let Some(spec) = ensure(o, "spec") {
        claim_spec(spec);
    }
    if let Some(status) = ensure(o, "status") {
        set(status, "phase", "Pending");
    }
}

/// The spec of a claim or of a claim template.
pub fn claim_spec(spec: &mut Object) {
    set(spec, "volumeMode", "Filesystem");
    if let Some(resources) = child(spec, "resources") {
        for list in ["limits", "requests"] {
            if let Some(list) = resources.get_mut(list) {
                super::pod::round_resources(list);
            }
        }
    }
}

/// Namespaces are labelled with their name.
pub fn namespace(o: &mut Object) {
    let Some(meta) = ensure(o, "metadata") else { return };
    let name = text(meta, "name").to_owned();
    if !name.is_empty()
        && let Some(labels) = ensure(meta, "labels")
    {
        set(labels, "kubernetes.io/metadata.name", name);
    }
    if let Some(status) = ensure(o, "status") {
        set(status, "phase", "Active");
    }
}

/// What a node can give to pods is its capacity until it says less; one pod CIDR and several say the same.
pub fn node(o: &mut Object) {
    if let Some(status) = child(o, "status")
        && absent(status, "allocatable")
        && let Some(capacity) = status.get("capacity").cloned()
    {
        set(status, "allocatable", capacity);
    }
    if let Some(spec) = child(o, "spec") {
        let (one, many) = (text(spec, "podCIDR").to_owned(), spec.get("podCIDRs").cloned());
        match many.as_ref().and_then(Value::as_array).and_then(|m| m.first()) {
            None if !one.is_empty() => set(spec, "podCIDRs", json!([one])),
            Some(first) if one.is_empty() => set(spec, "podCIDR", first.clone()),
            _ => {}
        }
    }
}

/// Container limits: the default limit is the maximum, the default request the default limit, or the minimum.
pub fn limit_range(o: &mut Object) {
    let Some(spec) = ensure(o, "spec") else { return };
    each(spec, "limits", |item| {
        for list in ["default", "defaultRequest", "max", "min", "maxLimitRequestRatio"] {
            if let Some(list) = item.get_mut(list) {
                super::pod::round_resources(list);
            }
        }
        if text(item, "type") != "Container" {
            return;
        }
        for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
            if let Some(Value::Object(source)) = item.get(from).cloned()
                && let Some(target) = ensure(item, to)
            {
                for (name, value) in source {
                    set(target, &name, value);
                }
            }
        }
    });
}

pub fn resource_quota(o: &mut Object) {
    for (part, list) in [("spec", "hard"), ("status", "hard"), ("status", "used")] {
        if let Some(list) = child(o, part).and_then(|p| p.get_mut(list)) {
            super::pod::round_resources(list);
        }
    }
}
