//! How the checks look at a pod.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Violation;
use crate::object::{Labels, ObjectExt as _};

/// The spec and the annotations of a pod or of a template.
pub struct PodView<'a> {
    pub(super) spec: &'a Value,
    pub(super) annotations: Labels<'a>,
}

impl<'a> PodView<'a> {
    /// A pod, or a template with the same shape.
    pub fn of(pod: &'a Value) -> Self {
        Self { spec: pod.get("spec").unwrap_or(&Value::Null), annotations: pod.annotations() }
    }

    /// All containers in the order in which they are looked at.
    pub(super) fn containers(&self) -> impl Iterator<Item = &'a Value> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(move |f| spec.items_at(f))
    }

    /// The value of a field of the pod's security context.
    pub(super) fn context(&self, field: &str) -> Option<&'a Value> {
        context(self.spec, field)
    }

    /// The names of the containers that `bad` is true of.
    pub(super) fn named(&self, mut bad: impl FnMut(&'a Value) -> bool) -> Vec<&'a str> {
        self.containers().filter(|c| bad(c)).map(|c| c.str_at("name")).collect()
    }

    pub(super) fn is_windows(&self) -> bool {
        self.spec.str_at("os.name") == "windows"
    }

    /// Users of the pod are nobody on the node.
    pub(super) fn has_user_namespace(&self) -> bool {
        self.spec.bool_at("hostUsers") == Some(false)
    }
}

/// The value of a field of a pod's or container's security context.
pub(super) fn context<'a>(holder: &'a Value, field: &str) -> Option<&'a Value> {
    holder.get("securityContext")?.get(field).filter(|v| !v.is_null())
}

pub(super) fn is_true(value: Option<&Value>) -> bool {
    value.and_then(Value::as_bool) == Some(true)
}

/// `container` or `containers`.
pub(super) fn plural<'a>(count: usize, one: &'a str, many: &'a str) -> &'a str {
    if count == 1 { one } else { many }
}

/// `"a", "b"`.
pub(super) fn quoted<'a>(items: impl IntoIterator<Item = &'a str>) -> String {
    items.into_iter().map(|i| format!("\"{i}\"")).collect::<Vec<_>>().join(", ")
}

/// `containers "a", "b"`.
pub(super) fn containers(names: &[&str]) -> String {
    format!("{} {}", plural(names.len(), "container", "containers"), quoted(names.iter().copied()))
}

/// The setters of something: `pod and containers "a", "b"`; `None` without any.
pub(super) fn setters(pod: bool, names: &[&str]) -> Option<String> {
    let pod = pod.then(|| "pod".to_owned());
    let names = (!names.is_empty()).then(|| containers(names));
    let all: Vec<String> = pod.into_iter().chain(names).collect();
    (!all.is_empty()).then(|| all.join(" and "))
}

/// A set of values met on the way, sorted.
pub(super) type Values<'a> = BTreeSet<&'a str>;

pub(super) fn violation(reason: &str, detail: String) -> Option<Violation> {
    Some(Violation { reason: reason.to_owned(), detail })
}
