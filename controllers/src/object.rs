//! Small rules about objects that every controller needs: names, ownership, selectors, times.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Debug;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference, Time};
use kube::Resource;
use kube::core::{Selector, SelectorExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use crate::cache::{Held, Metadata};

/// Label or annotation maps as Kubernetes types hold them.
pub type Labels = BTreeMap<String, String>;

/// A typed, built-in API object.
pub trait Object:
    kube::Resource<DynamicType = ()>
    + Clone
    + Debug
    + PartialEq
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<T> Object for T where
    T: kube::Resource<DynamicType = ()>
        + Clone
        + Debug
        + PartialEq
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// The name of an object within its kind; `namespace` is empty for cluster-scoped objects.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Key {
    /// Namespace, or empty.
    pub namespace: String,
    /// Name (or, where a controller says so, another identifier such as a uid).
    pub name: String,
}

impl Key {
    /// A key in a namespace.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// A key of a cluster-scoped object.
    pub fn cluster(name: impl Into<String>) -> Self {
        Self::new("", name)
    }

    /// The key of an object.
    pub fn of<K: Held>(object: &K) -> Self {
        Self::new(namespace(object), name(object))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The object's name, empty when unset.
pub fn name<K: Held>(object: &K) -> &str {
    object.held_meta().name()
}

/// The object's namespace, empty when unset.
pub fn namespace<K: Held>(object: &K) -> &str {
    object.held_meta().namespace()
}

/// The object's uid, empty when unset.
pub fn uid<K: Held>(object: &K) -> &str {
    object.held_meta().uid()
}

/// The object's uid, if it has one.
pub fn known_uid<K: Held>(object: &K) -> Option<String> {
    Some(uid(object).to_owned()).filter(|uid| !uid.is_empty())
}

/// Whether deletion of the object has begun.
pub fn is_deleting<K: Held>(object: &K) -> bool {
    object.held_meta().deletion_timestamp().is_some()
}

/// Whether the object carries `finalizer`.
pub fn has_finalizer(meta: &(impl Metadata + ?Sized), finalizer: &str) -> bool {
    meta.finalizers().iter().any(|f| f == finalizer)
}

/// The value of a label.
pub fn label<'a>(meta: &'a impl Metadata, key: &str) -> Option<&'a str> {
    meta.labels().as_ref()?.get(key).map(String::as_str)
}

/// The value of an annotation.
pub fn annotation<'a>(meta: &'a impl Metadata, key: &str) -> Option<&'a str> {
    meta.annotation(key)
}

/// Sets an annotation and tells whether that changed anything.
pub fn set_annotation(meta: &mut ObjectMeta, key: &str, value: impl Into<String>) -> bool {
    let value = value.into();
    let map = meta.annotations.get_or_insert_default();
    if map.get(key) == Some(&value) {
        return false;
    }
    map.insert(key.to_owned(), value);
    true
}

/// The one owner that manages the object (`controller: true`).
pub fn controller_ref(meta: &impl Metadata) -> Option<&OwnerReference> {
    meta.owner_references().iter().find(|r| r.controller == Some(true))
}

/// Whether `owner` is the managing controller of the object with `meta`.
pub fn is_controlled_by<K: Held>(meta: &impl Metadata, owner: &K) -> bool {
    controller_ref(meta).is_some_and(|r| r.uid == uid(owner))
}

/// An owner reference that names `owner` as the managing controller.
pub fn new_controller_ref<K: Held>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::Wire::api_version(&()).into_owned(),
        kind: K::Wire::kind(&()).into_owned(),
        name: name(owner).to_owned(),
        uid: uid(owner).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A reference to `object` as events and `targetRef` hold it.
pub fn reference<K: Held>(object: &K) -> ObjectReference {
    let said = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    ObjectReference {
        api_version: Some(K::Wire::api_version(&()).into_owned()),
        kind: Some(K::Wire::kind(&()).into_owned()),
        name: said(name(object)),
        namespace: said(namespace(object)),
        uid: said(uid(object)),
        resource_version: object.held_meta().resource_version().map(str::to_owned),
        field_path: None,
    }
}

/// `now` at the resolution of `metav1.Time` (whole seconds).
pub fn time(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// Seconds from `from` to `now`, negative when `from` lies ahead.
pub fn seconds_since(from: &Time, now: Timestamp) -> i64 {
    now.as_second().saturating_sub(from.0.as_second())
}

/// Whether two optional maps hold the same pairs; absent and empty are the same.
pub fn same_map(a: &Option<Labels>, b: &Option<Labels>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a == b,
        (Some(m), None) | (None, Some(m)) => m.is_empty(),
        (None, None) => true,
    }
}

/// Parses a label selector. `None` when it is invalid: such a selector selects nothing.
pub fn selector(selector: &LabelSelector) -> Option<Selector> {
    Selector::try_from(selector.clone()).ok()
}

/// Whether `selector` matches `labels`; absent labels are no labels.
pub fn matches(selector: &Selector, labels: &Option<Labels>) -> bool {
    let labels: Cow<'_, Labels> = match labels {
        Some(labels) => Cow::Borrowed(labels),
        None => Cow::Owned(Labels::new()),
    };
    selector.matches(labels.as_ref())
}

/// Whether every pair of `wanted` is in `labels`.
pub fn matches_pairs(wanted: &Labels, labels: &Option<Labels>) -> bool {
    wanted.iter().all(|(k, v)| labels.as_ref().is_some_and(|l| l.get(k) == Some(v)))
}

/// The index bucket a selector lives in, so that an object finds the few selectors that could match
/// it from its labels alone: the smallest `key=value` pair the selector demands, or the namespace's
/// bucket for selectors that demand no pair.
pub fn selector_bucket(namespace: &str, pairs: Option<&Labels>) -> String {
    match pairs.and_then(|p| p.iter().next()) {
        Some((k, v)) => format!("{namespace}/{k}={v}"),
        None => format!("{namespace}/"),
    }
}

/// Every bucket in which a selector that matches `labels` can live (see [`selector_bucket`]).
pub fn label_buckets(namespace: &str, labels: &Option<Labels>) -> Vec<String> {
    let pairs = labels.iter().flatten().map(|(k, v)| format!("{namespace}/{k}={v}"));
    pairs.chain([format!("{namespace}/")]).collect()
}

/// Parses a `resourceVersion` as the number it is on servers that follow KEP-5504.
pub fn version_number(version: &str) -> Option<u64> {
    version.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn a_selectors_bucket_is_among_the_buckets_of_what_it_matches() {
        let labels = Some(map(&[("app", "web"), ("tier", "front")]));
        for pairs in [map(&[]), map(&[("app", "web")]), map(&[("app", "web"), ("tier", "front")])] {
            let bucket = selector_bucket("ns", Some(&pairs));
            assert!(label_buckets("ns", &labels).contains(&bucket), "{bucket}");
        }
        assert!(!label_buckets("other", &labels).contains(&selector_bucket("ns", None)));
    }

    #[test]
    fn absent_and_empty_maps_are_the_same() {
        assert!(same_map(&None, &Some(Labels::new())));
        assert!(!same_map(&None, &Some(map(&[("a", "b")]))));
    }
}
