//! Which fields a write through a subresource does not touch: the registry puts them back, and nobody comes to own them
//! by such a write.

use super::set::FieldSet;
use crate::kinds::Kind;

type Paths = &'static [&'static [&'static str]];

/// What is left out of the fields that a write sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reset {
    /// Never owned, with all that is below.
    pub without: Paths,
    /// When there are any, only what is below these is owned; `*` stands for any step.
    pub only: Paths,
}

impl Reset {
    /// Takes away what is left out.
    pub fn filter(self, set: &mut FieldSet) {
        for path in self.without {
            set.prune(path);
        }
        if !self.only.is_empty() {
            set.keep(self.only);
        }
    }
}

const STATUS: Paths = &[&["status"]];
const SPEC: Paths = &[&["spec"]];
const SPEC_AND_META: Paths = &[&["spec"], &["metadata"]];

/// What a write to a subresource of a kind (empty: to the object itself) leaves alone.
pub fn of(kind: &Kind, subresource: &str) -> Reset {
    let without = |without| Reset { without, only: &[] };
    let only = |only| Reset { without: &[], only };
    match (kind.group.as_str(), kind.plural.as_str(), subresource) {
        ("certificates.k8s.io", "certificatesigningrequests", sub) => without(match sub {
            "" => &[&["spec"], &["status"]],
            "status" => &[&["spec"], &["status", "conditions"]],
            _ => &[&["spec"], &["status", "certificate"]],
        }),
        ("certificates.k8s.io", "podcertificaterequests", "") => Reset::default(),
        ("apps", "deployments", "status") => without(&[&["spec"], &["metadata", "labels"]]),
        ("", "pods", "status") => {
            without(&[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]])
        }
        ("", "pods", "ephemeralcontainers") => only(&[&["spec", "ephemeralContainers"]]),
        ("", "pods", "resize") => only(&[
            &["spec", "containers", "*", "resources"],
            &["spec", "containers", "*", "resizePolicy"],
            &["spec", "initContainers", "*", "resources"],
            &["spec", "initContainers", "*", "resizePolicy"],
        ]),
        ("", "namespaces", "finalize") => without(STATUS),
        (_, _, "") if kind.has_status() => without(STATUS),
        ("flowcontrol.apiserver.k8s.io" | "admissionregistration.k8s.io", _, "status")
        | (
            "resource.k8s.io" | "scheduling.k8s.io" | "storage.k8s.io" | "storagemigration.k8s.io",
            _,
            "status",
        )
        | ("internal.apiserver.k8s.io" | "apiextensions.k8s.io" | "apiregistration.k8s.io", _, "status")
        | ("networking.k8s.io", "servicecidrs", "status") => without(SPEC_AND_META),
        (_, _, "status") if !kind.builtin => without(SPEC_AND_META),
        (_, _, "status") => without(SPEC),
        _ => Reset::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_few_kinds() {
        let all = json!({"f:metadata": {"f:labels": {"f:a": {}}}, "f:spec": {"f:replicas": {}},
            "f:status": {"f:conditions": {}, "f:certificate": {}}});
        for (group, version, plural, sub, want) in [
            (
                "apps",
                "v1",
                "deployments",
                "",
                json!({"f:metadata": {"f:labels": {"f:a": {}}}, "f:spec": {"f:replicas": {}}}),
            ),
            (
                "apps",
                "v1",
                "deployments",
                "status",
                json!({"f:status": {"f:conditions": {}, "f:certificate": {}}}),
            ),
            (
                "certificates.k8s.io",
                "v1",
                "certificatesigningrequests",
                "approval",
                json!({"f:metadata": {"f:labels": {"f:a": {}}}, "f:status": {"f:conditions": {}}}),
            ),
            ("", "v1", "pods", "resize", json!({})),
            ("", "v1", "configmaps", "", all.clone()),
        ] {
            let kind = crate::kinds::find(group, version, plural).expect("row");
            let mut set = FieldSet::parse(&all).expect("set");
            of(kind, sub).filter(&mut set);
            assert_eq!(set.to_value(), want, "{plural}/{sub}");
        }
    }

    #[test]
    fn every_status_is_written_by_its_subresource_alone() {
        for kind in crate::kinds::builtin().iter().filter(|k| k.has_status()) {
            let mut set = FieldSet::of(&["spec", "x"]);
            of(kind, "status").filter(&mut set);
            assert!(set.is_empty(), "{}", kind.group_kind());
        }
    }
}
