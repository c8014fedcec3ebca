//! Fields of features that are off by default in Kubernetes 1.36: a write drops them, unless the stored object has
//! one already.
//!
//! Source: Kubernetes' table of feature gates, and KEP-753 and others for each row.

use crate::kinds::Kind;
use serde_json::Value;

/// A feature that is off by default and can be switched on. Its name is Kubernetes'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// How many pods of a StatefulSet may be replaced at once (KEP-961).
    MaxUnavailableStatefulSet,
}

/// All of them.
const FEATURES: [(&str, Feature); 1] = [("MaxUnavailableStatefulSet", Feature::MaxUnavailableStatefulSet)];

/// What an item of `--feature-gates` switches on: `NAME=true`; `NAME=false` is nothing.
///
/// # Errors
/// One line: there is no such feature, or no such value.
pub fn switched_on(item: &str) -> Result<Option<Feature>, String> {
    let Some((name, value)) = item.split_once('=') else {
        return Err(format!("missing bool value for {item}"));
    };
    let Some((_, feature)) = FEATURES.iter().find(|(known, _)| *known == name) else {
        let known: Vec<&str> = FEATURES.iter().map(|(known, _)| *known).collect();
        return Err(format!(
            "unrecognized feature gate: {name}; what can be switched on: {}",
            known.join(", ")
        ));
    };
    match value {
        "true" | "True" | "TRUE" | "t" | "T" | "1" => Ok(Some(*feature)),
        "false" | "False" | "FALSE" | "f" | "F" | "0" => Ok(None),
        _ => Err(format!("invalid value of {name}: {value}, err: neither true nor false")),
    }
}

/// The fields of one feature. A path's steps are fields, `*` (every item of a list or value of a map).
struct Gate {
    /// What switches it on; `None`: nothing.
    feature: Option<Feature>,
    group: &'static str,
    kind: &'static str,
    paths: &'static [&'static str],
    /// The object that held a dropped field goes with it when nothing else is in it.
    with_parent: bool,
}

/// `Pod` stands for everything that holds a pod's spec, the path beginning there.
const GATES: [Gate; 11] = [
    gate("", "Pod", &["schedulingGroup"]),
    gate("", "Pod", &["volumes.*.projected.sources.*.clusterTrustBundle"]),
    gate("", "Pod", &["volumes.*.projected.sources.*.podCertificate"]),
    Gate {
        feature: None,
        group: "",
        kind: "Pod",
        paths: &[
            "containers.*.lifecycle.stopSignal",
            "initContainers.*.lifecycle.stopSignal",
            "ephemeralContainers.*.lifecycle.stopSignal",
        ],
        with_parent: true,
    },
    // Removed features: dynamic kubelet configuration (KEP-281), topology in slices.
    gate("", "Node", &["spec.configSource", "status.config"]),
    gate("discovery.k8s.io", "EndpointSlice", &["endpoints.*.deprecatedTopology"]),
    Gate {
        feature: Some(Feature::MaxUnavailableStatefulSet),
        ..gate("apps", "StatefulSet", &["spec.updateStrategy.rollingUpdate.maxUnavailable"])
    },
    gate("coordination.k8s.io", "Lease", &["spec.strategy", "spec.preferredHolder"]),
    gate("storage.k8s.io", "CSIDriver", &["spec.preventPodSchedulingIfMissing"]),
    gate("resource.k8s.io", "ResourceSlice", &["spec.devices.*.nodeAllocatableResourceMappings"]),
    gate(
        "resource.k8s.io",
        "ResourceSlice",
        &[
            "spec.devices.*.attributes.*.bools",
            "spec.devices.*.attributes.*.ints",
            "spec.devices.*.attributes.*.strings",
            "spec.devices.*.attributes.*.versions",
        ],
    ),
];

const fn gate(group: &'static str, kind: &'static str, paths: &'static [&'static str]) -> Gate {
    Gate { feature: None, group, kind, paths, with_parent: false }
}

/// Where a kind has a pod's spec.
pub fn pod_spec(kind: &Kind) -> Option<&'static [&'static str]> {
    Some(match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => &["spec"],
        ("", "PodTemplate") => &["template", "spec"],
        ("", "ReplicationController")
        | ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet") => {
            &["spec", "template", "spec"]
        }
        ("batch", "Job") => &["spec", "template", "spec"],
        ("batch", "CronJob") => &["spec", "jobTemplate", "spec", "template", "spec"],
        _ => return None,
    })
}

/// Drops what the features that are off would have brought.
pub fn drop_fields(kind: &Kind, object: &mut Value, old: Option<&Value>) {
    let spec = pod_spec(kind);
    let off = |gate: &&Gate| gate.feature.is_none_or(|feature| !kind.features.contains(&feature));
    for gate in GATES.iter().filter(off) {
        let of_pods = gate.kind == "Pod";
        let below = match (of_pods, spec) {
            (true, Some(path)) => path,
            (false, _) if gate.group == kind.group && gate.kind == kind.kind => &[],
            _ => continue,
        };
        let in_use = |path: &&str| {
            old.and_then(|o| crate::object::get_path(o, below)).is_some_and(|o| present(o, &steps(path)))
        };
        if gate.paths.iter().any(in_use) {
            continue;
        }
        let Some(at) = crate::object::get_path_mut(object, below) else { continue };
        for path in gate.paths {
            remove(at, &steps(path), gate.with_parent);
        }
    }
}

fn steps(path: &str) -> Vec<&str> {
    path.split('.').collect()
}

fn present(at: &Value, path: &[&str]) -> bool {
    let Some((step, rest)) = path.split_first() else { return !at.is_null() };
    match (at, *step) {
        (Value::Array(items), "*") => items.iter().any(|v| present(v, rest)),
        (Value::Object(map), "*") => map.values().any(|v| present(v, rest)),
        (Value::Object(map), field) => map.get(field).is_some_and(|v| present(v, rest)),
        _ => false,
    }
}

/// Removes a field wherever the path leads; says whether an object lost its last field by that.
fn remove(at: &mut Value, path: &[&str], with_parent: bool) -> bool {
    match (at, path) {
        (Value::Array(items), ["*", rest @ ..]) => {
            for v in items {
                remove(v, rest, with_parent);
            }
            false
        }
        (Value::Object(map), ["*", rest @ ..]) => {
            for v in map.values_mut() {
                remove(v, rest, with_parent);
            }
            false
        }
        (Value::Object(map), [field]) => map.remove(*field).is_some() && map.is_empty(),
        (Value::Object(map), [field, rest @ ..]) => {
            let emptied = map.get_mut(*field).is_some_and(|v| remove(v, rest, with_parent));
            if emptied && with_parent {
                map.remove(*field);
            }
            false
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn kind(group: &str, version: &str, plural: &str) -> std::sync::Arc<Kind> {
        crate::kinds::find(group, version, plural).expect("row").clone()
    }

    #[test]
    fn fields_of_features_that_are_off_go() {
        let cases = [
            (
                ("", "v1", "pods"),
                json!({"spec": {"containers": [{"lifecycle": {"stopSignal": "SIGTERM"}}, {"lifecycle": {"stopSignal": "SIGTERM", "preStop": {}}}]}}),
                json!({"spec": {"containers": [{}, {"lifecycle": {"preStop": {}}}]}}),
            ),
            (
                ("batch", "v1", "cronjobs"),
                json!({"spec": {"jobTemplate": {"spec": {"template": {"spec": {"schedulingGroup": {"podGroupName": "g"}}}}}}}),
                json!({"spec": {"jobTemplate": {"spec": {"template": {"spec": {}}}}}}),
            ),
            (
                ("resource.k8s.io", "v1", "resourceslices"),
                json!({"spec": {"devices": [{"attributes": {"a": {"ints": [1]}, "b": {"int": 1}}}]}}),
                json!({"spec": {"devices": [{"attributes": {"a": {}, "b": {"int": 1}}}]}}),
            ),
        ];
        for ((group, version, plural), before, after) in cases {
            let kind = kind(group, version, plural);
            let mut o = before.clone();
            drop_fields(&kind, &mut o, None);
            assert_eq!(o, after, "{plural}");
            let mut o = before.clone();
            drop_fields(&kind, &mut o, Some(&before));
            assert_eq!(o, before, "{plural}: what is in use stays");
        }
    }

    #[test]
    fn a_feature_that_is_on_keeps_its_fields() {
        let mut kind = Kind::clone(&kind("apps", "v1", "statefulsets"));
        let set = json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxUnavailable": 2}}}});
        let mut o = set.clone();
        drop_fields(&kind, &mut o, None);
        assert_eq!(o, json!({"spec": {"updateStrategy": {"rollingUpdate": {}}}}));
        kind.features.extend(switched_on("MaxUnavailableStatefulSet=true").expect("known"));
        let mut o = set.clone();
        drop_fields(&kind, &mut o, None);
        assert_eq!(o, set);
    }

    #[test]
    fn features_are_named_as_kubernetes_names_them() {
        assert_eq!(switched_on("MaxUnavailableStatefulSet=false"), Ok(None));
        for (item, why) in [
            (
                "Nothing=true",
                "unrecognized feature gate: Nothing; what can be switched on: MaxUnavailableStatefulSet",
            ),
            ("MaxUnavailableStatefulSet", "missing bool value for MaxUnavailableStatefulSet"),
            (
                "MaxUnavailableStatefulSet=yes",
                "invalid value of MaxUnavailableStatefulSet: yes, err: neither true nor false",
            ),
        ] {
            assert_eq!(switched_on(item), Err(why.to_owned()));
        }
    }
}
