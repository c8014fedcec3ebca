//! What a store keeps of an object: all of it, or of kinds of which there are very many only what controllers read.

use std::borrow::Cow;
use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use serde::de::DeserializeOwned;

use crate::object::{Labels, Object};

/// Metadata, however it is kept.
pub trait Metadata {
    /// Name, empty when unset.
    fn name(&self) -> &str;
    /// Namespace, empty when unset.
    fn namespace(&self) -> &str;
    /// Uid, empty when unset.
    fn uid(&self) -> &str;
    /// The version that the object was read at.
    fn resource_version(&self) -> Option<&str>;
    /// Labels.
    fn labels(&self) -> &Option<Labels>;
    /// The value of an annotation. Of kinds that are kept in part only those that controllers read.
    fn annotation(&self, key: &str) -> Option<&str>;
    /// Owners.
    fn owner_references(&self) -> &[OwnerReference];
    /// Finalizers.
    fn finalizers(&self) -> &[String];
    /// When deletion began.
    fn deletion_timestamp(&self) -> Option<&Time>;
}

impl Metadata for ObjectMeta {
    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }

    fn uid(&self) -> &str {
        self.uid.as_deref().unwrap_or_default()
    }

    fn resource_version(&self) -> Option<&str> {
        self.resource_version.as_deref()
    }

    fn labels(&self) -> &Option<Labels> {
        &self.labels
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    fn owner_references(&self) -> &[OwnerReference] {
        self.owner_references.as_deref().unwrap_or_default()
    }

    fn finalizers(&self) -> &[String] {
        self.finalizers.as_deref().unwrap_or_default()
    }

    fn deletion_timestamp(&self) -> Option<&Time> {
        self.deletion_timestamp.as_ref()
    }
}

/// An object as a store keeps it. Any object is kept as it came; a kind that is kept in part has a type of its own,
/// which is never written back: it can only be patched or deleted.
pub trait Held: Send + Sync + 'static {
    /// The kind, as the server tells it.
    type Wire: Object;
    /// What is read of it from a watch.
    type Read: kube::Resource<DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Into<Self::Wire>
        + Send
        + 'static;
    /// How its metadata is kept.
    type Meta: Metadata;
    /// Where equal parts of several objects are kept once.
    type Pool: Default + Send + Sync + 'static;

    /// Keeps what is needed.
    fn hold(object: Self::Wire, pool: &Self::Pool) -> Self;

    /// Its metadata.
    fn held_meta(&self) -> &Self::Meta;
}

impl<T: Object> Held for T {
    type Wire = T;
    type Read = T;
    type Meta = ObjectMeta;
    type Pool = ();

    fn hold(mut object: T, (): &()) -> T {
        object.meta_mut().managed_fields = None;
        object
    }

    fn held_meta(&self) -> &ObjectMeta {
        self.meta()
    }
}

/// Group and plural of a kind.
pub fn kind_of<K: Held>() -> (Cow<'static, str>, Cow<'static, str>) {
    (<K::Wire as kube::Resource>::group(&()), <K::Wire as kube::Resource>::plural(&()))
}
