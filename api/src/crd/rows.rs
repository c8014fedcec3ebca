//! From a definition to rows of the kinds table: one for each served version.

use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::custom::{Conversion, Custom, Scale, Source, Webhook};
use super::definition::is_true;
use crate::kinds::{Column, Kind, SelectableField, StorageLocation, Subresource};
use crate::object::ObjectExt as _;

/// The verbs of instances, as discovery lists them.
const VERBS: [&str; 8] = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];

/// The rows of a definition; none while its names are not accepted. The row of the storage version is there even when
/// it is not served; it has no verbs then.
pub fn rows(crd: &Value, source: &Source) -> Vec<Kind> {
    if !is_true(crd, "Established") && !is_true(crd, "NamesAccepted") {
        return Vec::new();
    }
    let versions = crd.items_at("spec.versions");
    let storage = versions.iter().find(|v| v.bool_at("storage") == Some(true));
    let Some(storage) = storage.map(|v| v.str_at("name")) else { return Vec::new() };
    let mut names: Vec<&str> = versions.iter().map(|v| v.str_at("name")).collect();
    names.sort_by(|a, b| compare_versions(b, a));
    let conversion = conversion(crd);
    versions
        .iter()
        .filter(|v| v.bool_at("served") == Some(true) || v.str_at("name") == storage)
        .map(|v| row(crd, v, storage, &names, conversion.clone(), source))
        .collect()
}

fn row(
    crd: &Value,
    version: &Value,
    storage: &str,
    names: &[&str],
    conversion: Conversion,
    source: &Source,
) -> Kind {
    let (group, name) = (crd.str_at("spec.group"), version.str_at("name"));
    let accepted = crd.at("status.acceptedNames").cloned().unwrap_or_default();
    let text = |field: &str| accepted.str_at(field).to_owned();
    let texts = |field: &str| -> Vec<String> {
        accepted.items_at(field).iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let served = version.bool_at("served") == Some(true);
    let kind = text("kind");
    let terminating = is_true(crd, "Terminating");
    let content = format!("{}/{}/{name}", crd.uid(), crd.generation().unwrap_or(0));
    let identity = format!("{content}/{terminating}/{accepted}");
    let scale = version.at("subresources.scale").filter(|s| s.is_object()).map(|s| Scale {
        spec_replicas: s.str_at("specReplicasPath").to_owned(),
        status_replicas: s.str_at("statusReplicasPath").to_owned(),
        label_selector: s.str_at("labelSelectorPath").to_owned(),
    });
    let status = version.at("subresources.status").is_some_and(Value::is_object);
    let custom = Custom {
        identity,
        content,
        definition: crd.name().to_owned(),
        version: name.to_owned(),
        status,
        scale,
        conversion,
        terminating,
        deprecation: deprecation(group, &kind, version),
        source: source.clone(),
        compiled: OnceLock::new(),
    };
    Kind {
        group: group.to_owned(),
        version: name.to_owned(),
        list_kind: text("listKind"),
        plural: text("plural"),
        singular: text("singular"),
        short_names: texts("shortNames"),
        categories: texts("categories"),
        namespaced: crd.str_at("spec.scope") == "Namespaced",
        verbs: if served { VERBS.iter().map(|v| (*v).to_owned()).collect() } else { Vec::new() },
        subresources: subresources(&custom, &kind),
        selectable_fields: version
            .items_at("selectableFields")
            .iter()
            .map(|f| {
                let label = f.str_at("jsonPath").trim_start_matches('.').to_owned();
                SelectableField { paths: vec![label.clone()], label, default: String::new() }
            })
            .collect(),
        columns: version
            .items_at("additionalPrinterColumns")
            .iter()
            .map(|c| Column {
                name: c.str_at("name").to_owned(),
                r#type: c.str_at("type").to_owned(),
                format: c.str_at("format").to_owned(),
                description: c.str_at("description").to_owned(),
                priority: c.int_at("priority").and_then(|p| i32::try_from(p).ok()).unwrap_or(0),
                json_path: c.str_at("jsonPath").to_owned(),
            })
            .collect(),
        storage: StorageLocation {
            group: group.to_owned(),
            plural: text("plural"),
            version: storage.to_owned(),
        },
        on_by_default: served,
        preference: names.iter().position(|n| *n == name).and_then(|p| u32::try_from(p).ok()).unwrap_or(0),
        builtin: false,
        storage_version_hash: None,
        features: Vec::new(),
        custom: Some(Arc::new(custom)),
        kind,
    }
}

fn subresources(custom: &Custom, kind: &str) -> Vec<Subresource> {
    let verbs = || ["get", "patch", "update"].map(str::to_owned).to_vec();
    let status = custom.status.then(|| Subresource {
        name: "status".into(),
        verbs: verbs(),
        group: None,
        version: None,
        kind: kind.to_owned(),
    });
    let scale = custom.scale.is_some().then(|| Subresource {
        name: "scale".into(),
        verbs: verbs(),
        group: Some("autoscaling".into()),
        version: Some("v1".into()),
        kind: "Scale".into(),
    });
    status.into_iter().chain(scale).collect()
}

fn deprecation(group: &str, kind: &str, version: &Value) -> Option<String> {
    if version.bool_at("deprecated") != Some(true) {
        return None;
    }
    let own = version.str_at("deprecationWarning");
    let name = version.str_at("name");
    Some(if own.is_empty() { format!("{group}/{name} {kind} is deprecated") } else { own.to_owned() })
}

fn conversion(crd: &Value) -> Conversion {
    use base64::Engine as _;
    let Some(client) = crd
        .at("spec.conversion.webhook.clientConfig")
        .filter(|_| crd.str_at("spec.conversion.strategy") == "Webhook")
    else {
        return Conversion::None;
    };
    let bundle: String = client.str_at("caBundle").chars().filter(|c| !c.is_whitespace()).collect();
    let service = client.get("service").filter(|s| s.is_object()).map(|s| {
        let port = s.int_at("port").and_then(|p| u16::try_from(p).ok()).unwrap_or(443);
        (s.str_at("namespace").to_owned(), s.str_at("name").to_owned(), s.str_at("path").to_owned(), port)
    });
    Conversion::Webhook(Arc::new(Webhook {
        url: client.str_at("url").to_owned(),
        service,
        ca_bundle: base64::engine::general_purpose::STANDARD.decode(bundle).unwrap_or_default(),
        review_versions: crd
            .items_at("spec.conversion.webhook.conversionReviewVersions")
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
    }))
}

/// `v1beta2` as (major, stability, minor); None for names of another form.
fn version_parts(version: &str) -> Option<(u64, u8, u64)> {
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    let number = |s: &str| s.parse::<u64>().ok().filter(|_| !s.starts_with('0') && !s.is_empty());
    let rest = version.strip_prefix('v')?;
    let (major, rest) = rest.split_at(digits(rest));
    let major = number(major)?;
    if rest.is_empty() {
        return Some((major, 2, 0));
    }
    let (stability, minor) = match (rest.strip_prefix("beta"), rest.strip_prefix("alpha")) {
        (Some(minor), _) => (1, minor),
        (_, Some(minor)) => (0, minor),
        _ => return None,
    };
    let minor = if minor.is_empty() { 0 } else { number(minor)? };
    Some((major, stability, minor))
}

/// Kubernetes' order of versions, later ones greater: stability, then numbers; other names come before all of these,
/// by alphabet, the first one greatest.
pub fn compare_versions(a: &str, b: &str) -> std::cmp::Ordering {
    match (version_parts(a), version_parts(b)) {
        (Some((a1, a2, a3)), Some((b1, b2, b3))) => (a2, a1, a3).cmp(&(b2, b1, b3)),
        (Some(_), None) => std::cmp::Ordering::Greater,
        (None, Some(_)) => std::cmp::Ordering::Less,
        (None, None) => b.cmp(a),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn versions_have_an_order() {
        let mut names = ["v1", "v2", "v1beta1", "foo1", "v12alpha1", "v3beta1", "v10", "v11beta2", "bar"];
        names.sort_by(|a, b| compare_versions(b, a));
        assert_eq!(names, ["v10", "v2", "v1", "v11beta2", "v3beta1", "v1beta1", "v12alpha1", "bar", "foo1"]);
    }

    #[test]
    fn a_definition_becomes_rows() {
        let mut crd = json!({"metadata": {"name": "ws.e.com", "uid": "u", "generation": 1}, "spec": {"group": "e.com",
            "scope": "Namespaced", "versions": [
                {"name": "v1beta1", "served": false, "storage": true},
                {"name": "v1", "served": true, "storage": false, "deprecated": true,
                    "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.r", "statusReplicasPath": ".status.r"}},
                    "selectableFields": [{"jsonPath": ".spec.c"}],
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {"c": {"type": "string", "default": "d"}}}}}}},
                {"name": "v2", "served": false, "storage": false}]},
            "status": {"acceptedNames": {"kind": "W", "plural": "ws", "singular": "w", "listKind": "WList", "shortNames": ["x"]}}});
        let source = |crd: &Value| -> Source { Arc::new(crd.to_string().into_bytes()) };
        assert!(rows(&crd, &source(&crd)).is_empty(), "not accepted yet");
        crd["status"]["conditions"] = json!([{"type": "NamesAccepted", "status": "True"}]);
        let all = rows(&crd, &source(&crd));
        let names: Vec<_> = all.iter().map(|r| (r.version.as_str(), r.verbs.len(), r.preference)).collect();
        assert_eq!(names, [("v1beta1", 0, 2), ("v1", 8, 1)]);
        let v1 = &all[1];
        assert_eq!((v1.storage.version.as_str(), v1.is_storage_version()), ("v1beta1", false));
        assert_eq!(v1.subresources.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["status", "scale"]);
        assert_eq!(v1.selectable_fields[0].label, "spec.c");
        let custom = v1.custom.as_ref().expect("custom");
        assert_eq!(custom.deprecation.as_deref(), Some("e.com/v1 W is deprecated"));
        let mut object = json!({"metadata": {"name": "a"}, "spec": {"odd": 1}, "status": {}});
        assert_eq!(custom.admit(&mut object).expect("object"), ["spec.odd", "status"]);
        assert_eq!(object["spec"], json!({"c": "d"}));
        let again = rows(&crd, &source(&crd));
        assert_eq!(again, all, "the same definition makes the same rows");
    }
}
