//! Access to API objects held as `serde_json::Value`.
//!
//! An object is decoded once; everything reads it through [`ObjectExt`]. Readers return empty values
//! for what is absent or of another type: the schema, not these accessors, reports wrong types.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A decoded API object's top-level fields.
pub type Object = Map<String, Value>;

/// An entry of `metadata.ownerReferences`.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controller: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_owner_deletion: Option<bool>,
}

/// The metadata that the API machinery itself acts on, copied out of an object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObjectMeta {
    pub name: String,
    pub generate_name: String,
    pub namespace: String,
    pub uid: String,
    pub resource_version: String,
    pub generation: Option<i64>,
    pub creation_timestamp: Option<String>,
    pub deletion_timestamp: Option<String>,
    pub deletion_grace_period_seconds: Option<i64>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub finalizers: Vec<String>,
    pub owner_references: Vec<OwnerReference>,
}

/// Looks a value up by field names.
pub fn get_path<'a>(v: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(v, |v, key| v.as_object()?.get(*key))
}

/// Looks a value up by field names, for change.
pub fn get_path_mut<'a>(v: &'a mut Value, path: &[&str]) -> Option<&'a mut Value> {
    path.iter().try_fold(v, |v, key| v.as_object_mut()?.get_mut(*key))
}

/// Sets a value by field names, making objects on the way. Whatever is on the way and is no object is replaced.
pub fn set_path(v: &mut Value, path: &[&str], value: Value) {
    let mut at = v;
    for key in path {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        let Value::Object(map) = at else { return };
        at = map.entry((*key).to_owned()).or_insert(Value::Null);
    }
    *at = value;
}

/// Removes a value by field names and returns it. Emptied parents stay.
pub fn remove_path(v: &mut Value, path: &[&str]) -> Option<Value> {
    let (last, parents) = path.split_last()?;
    get_path_mut(v, parents)?.as_object_mut()?.remove(*last)
}

/// `"group/version"` split; the core group is empty.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// `group/version`, or only `version` for the core group.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Readers and writers for API objects.
pub trait ObjectExt {
    /// The value at the dotted path (no component may itself contain a dot).
    fn at(&self, dotted: &str) -> Option<&Value>;
    /// The value at the path.
    fn get_path(&self, path: &[&str]) -> Option<&Value>;
    /// Sets the value at the path, making objects on the way.
    fn set_path(&mut self, path: &[&str], value: Value);
    /// Removes the value at the path.
    fn remove_path(&mut self, path: &[&str]) -> Option<Value>;
    /// The string at the dotted path; empty when absent.
    fn str_at(&self, dotted: &str) -> &str;
    /// The integer at the dotted path.
    fn int_at(&self, dotted: &str) -> Option<i64>;
    /// The boolean at the dotted path.
    fn bool_at(&self, dotted: &str) -> Option<bool>;
    /// The items of the array at the dotted path; empty when absent.
    fn items_at(&self, dotted: &str) -> &[Value];
    /// `apiVersion`; empty when absent, as are all strings below.
    fn api_version(&self) -> &str;
    /// `kind`.
    fn kind(&self) -> &str;
    /// `metadata.name`.
    fn name(&self) -> &str;
    /// `metadata.generateName`.
    fn generate_name(&self) -> &str;
    /// `metadata.namespace`.
    fn namespace(&self) -> &str;
    /// `metadata.uid`.
    fn uid(&self) -> &str;
    /// `metadata.resourceVersion`.
    fn resource_version(&self) -> &str;
    /// `metadata.generation`.
    fn generation(&self) -> Option<i64>;
    /// `metadata.creationTimestamp`, RFC 3339.
    fn creation_timestamp(&self) -> &str;
    /// `metadata.deletionTimestamp`; `None` when the object is not being deleted.
    fn deletion_timestamp(&self) -> Option<&str>;
    /// `metadata.deletionGracePeriodSeconds`.
    fn deletion_grace_period_seconds(&self) -> Option<i64>;
    /// The value of a label.
    fn label(&self, key: &str) -> Option<&str>;
    /// The value of an annotation.
    fn annotation(&self, key: &str) -> Option<&str>;
    /// All labels, unsorted, without copying.
    fn labels(&self) -> Labels<'_>;
    /// All annotations, without copying.
    fn annotations(&self) -> Labels<'_>;
    /// `metadata.finalizers`.
    fn finalizers(&self) -> Vec<&str>;
    /// `metadata.ownerReferences`, copied.
    fn owner_references(&self) -> Vec<OwnerReference>;
    /// The owner whose `controller` is true.
    fn controller_ref(&self) -> Option<OwnerReference>;
    /// Copies the metadata out.
    fn object_meta(&self) -> ObjectMeta;
    /// `metadata`, made when absent.
    fn metadata_mut(&mut self) -> &mut Object;
    /// Sets `metadata.<key>`; `Value::Null` and the empty string remove it.
    fn set_meta(&mut self, key: &str, value: Value);
    /// Sets `apiVersion` and `kind`.
    fn set_api_version_kind(&mut self, api_version: &str, kind: &str);
}

/// Labels or annotations in place.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a>(Option<&'a Object>);

impl<'a> Labels<'a> {
    /// Wraps a JSON object whose values are strings.
    pub fn new(map: Option<&'a Object>) -> Self {
        Labels(map)
    }
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.0?.get(key)?.as_str()
    }
    /// Whether there is such a key, whatever its value.
    pub fn contains_key(&self, key: &str) -> bool {
        self.0.is_some_and(|m| m.contains_key(key))
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none_or(|m| m.is_empty())
    }
    /// Keys and values, in the object's order.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.into_iter().flatten().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)))
    }
    /// An owned, sorted copy.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        self.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }
}

impl ObjectExt for Value {
    fn at(&self, dotted: &str) -> Option<&Value> {
        dotted.split('.').try_fold(self, |v, key| v.as_object()?.get(key))
    }
    fn get_path(&self, path: &[&str]) -> Option<&Value> {
        get_path(self, path)
    }
    fn set_path(&mut self, path: &[&str], value: Value) {
        set_path(self, path, value);
    }
    fn remove_path(&mut self, path: &[&str]) -> Option<Value> {
        remove_path(self, path)
    }
    fn str_at(&self, dotted: &str) -> &str {
        self.at(dotted).and_then(Value::as_str).unwrap_or("")
    }
    fn int_at(&self, dotted: &str) -> Option<i64> {
        self.at(dotted)?.as_i64()
    }
    fn bool_at(&self, dotted: &str) -> Option<bool> {
        self.at(dotted)?.as_bool()
    }
    fn items_at(&self, dotted: &str) -> &[Value] {
        self.at(dotted).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
    fn api_version(&self) -> &str {
        self.str_at("apiVersion")
    }
    fn kind(&self) -> &str {
        self.str_at("kind")
    }
    fn name(&self) -> &str {
        self.str_at("metadata.name")
    }
    fn generate_name(&self) -> &str {
        self.str_at("metadata.generateName")
    }
    fn namespace(&self) -> &str {
        self.str_at("metadata.namespace")
    }
    fn uid(&self) -> &str {
        self.str_at("metadata.uid")
    }
    fn resource_version(&self) -> &str {
        self.str_at("metadata.resourceVersion")
    }
    fn generation(&self) -> Option<i64> {
        self.int_at("metadata.generation")
    }
    fn creation_timestamp(&self) -> &str {
        self.str_at("metadata.creationTimestamp")
    }
    fn deletion_timestamp(&self) -> Option<&str> {
        self.at("metadata.deletionTimestamp")?.as_str()
    }
    fn deletion_grace_period_seconds(&self) -> Option<i64> {
        self.int_at("metadata.deletionGracePeriodSeconds")
    }
    fn label(&self, key: &str) -> Option<&str> {
        self.labels().get(key)
    }
    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations().get(key)
    }
    fn labels(&self) -> Labels<'_> {
        Labels(self.at("metadata.labels").and_then(Value::as_object))
    }
    fn annotations(&self) -> Labels<'_> {
        Labels(self.at("metadata.annotations").and_then(Value::as_object))
    }
    fn finalizers(&self) -> Vec<&str> {
        self.items_at("metadata.finalizers").iter().filter_map(Value::as_str).collect()
    }
    fn owner_references(&self) -> Vec<OwnerReference> {
        self.items_at("metadata.ownerReferences")
            .iter()
            .map(|r| OwnerReference {
                api_version: r.str_at("apiVersion").to_owned(),
                kind: r.str_at("kind").to_owned(),
                name: r.str_at("name").to_owned(),
                uid: r.str_at("uid").to_owned(),
                controller: r.bool_at("controller"),
                block_owner_deletion: r.bool_at("blockOwnerDeletion"),
            })
            .collect()
    }
    fn controller_ref(&self) -> Option<OwnerReference> {
        self.owner_references().into_iter().find(|r| r.controller == Some(true))
    }
    fn object_meta(&self) -> ObjectMeta {
        ObjectMeta {
            name: self.name().to_owned(),
            generate_name: self.generate_name().to_owned(),
            namespace: self.namespace().to_owned(),
            uid: self.uid().to_owned(),
            resource_version: self.resource_version().to_owned(),
            generation: self.generation(),
            creation_timestamp: Some(self.creation_timestamp().to_owned()).filter(|s| !s.is_empty()),
            deletion_timestamp: self.deletion_timestamp().map(str::to_owned),
            deletion_grace_period_seconds: self.deletion_grace_period_seconds(),
            labels: self.labels().to_map(),
            annotations: self.annotations().to_map(),
            finalizers: self.finalizers().into_iter().map(str::to_owned).collect(),
            owner_references: self.owner_references(),
        }
    }
    fn metadata_mut(&mut self) -> &mut Object {
        if !self.get("metadata").is_some_and(Value::is_object) {
            set_path(self, &["metadata"], Value::Object(Map::new()));
        }
        match self.get_mut("metadata") {
            Some(Value::Object(m)) => m,
            _ => unreachable!("metadata was made an object on the line above"),
        }
    }
    fn set_meta(&mut self, key: &str, value: Value) {
        let meta = self.metadata_mut();
        match value {
            Value::Null => {
                meta.remove(key);
            }
            Value::String(s) if s.is_empty() => {
                meta.remove(key);
            }
            value => {
                meta.insert(key.to_owned(), value);
            }
        }
    }
    fn set_api_version_kind(&mut self, api_version: &str, kind: &str) {
        set_path(self, &["apiVersion"], Value::String(api_version.to_owned()));
        set_path(self, &["kind"], Value::String(kind.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_and_writes() {
        let mut o = json!({"kind": "Pod", "metadata": {"name": "a", "labels": {"x": "1"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}]}});
        assert_eq!((o.name(), o.namespace(), o.label("x")), ("a", "", Some("1")));
        assert_eq!(o.controller_ref().map(|r| r.uid), Some("u".to_owned()));
        o.set_path(&["spec", "nodeName"], json!("n"));
        assert_eq!(o.str_at("spec.nodeName"), "n");
        o.set_meta("namespace", json!("ns"));
        o.set_meta("labels", Value::Null);
        assert_eq!((o.namespace(), o.labels().is_empty()), ("ns", true));
        assert_eq!(o.remove_path(&["spec", "nodeName"]), Some(json!("n")));
        assert_eq!(o.remove_path(&["spec", "x", "y"]), None);
        assert_eq!(json!(3).name(), "");
    }
}
