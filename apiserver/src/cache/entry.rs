//! An object as the cache holds it: its stored bytes and the few facts that selectors ask for.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use hawser_api::kinds::Kind;
use hawser_api::object::ObjectExt as _;
use serde_json::Value;

use super::sparse;
use crate::encode::Head;

type Pair = (Box<str>, Box<str>);

/// What selectors ask of an object.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Sorted by key.
    labels: Box<[Pair]>,
    /// Values of the stored kind's selectable fields, in their order.
    fields: Box<[Box<str>]>,
}

impl Facts {
    /// Reads the facts of a decoded object.
    pub fn of(kind: &Kind, object: &Value) -> Self {
        let mut labels: Vec<Pair> = object.labels().iter().map(|(k, v)| (k.into(), v.into())).collect();
        labels.sort_unstable();
        let fields = kind.selectable_fields.iter().map(|f| f.value(object).as_ref().into()).collect();
        Self { labels: labels.into(), fields }
    }

    /// Reads the facts of encoded bytes, of which only what is asked for is decoded.
    ///
    /// # Errors
    /// When the bytes are no JSON object.
    pub fn parse(kind: &Kind, value: &[u8]) -> Result<Self, serde_json::Error> {
        let fields = kind.selectable_fields.iter().flat_map(|f| f.paths.iter().map(String::as_str));
        let paths: Vec<&str> = std::iter::once("metadata.labels").chain(fields).collect();
        Ok(Self::of(kind, &sparse::parse(value, &paths)?))
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(k, _)| k.as_ref().cmp(key)).ok()?;
        self.labels.get(at).map(|(_, v)| v.as_ref())
    }

    /// The value of the stored kind's n-th selectable field.
    pub fn field(&self, index: usize) -> &str {
        self.fields.get(index).map_or("", AsRef::as_ref)
    }
}

/// One object.
#[derive(Debug)]
pub struct Entry {
    /// `namespace/name`, or `name` in cluster scope.
    pub key: Arc<str>,
    /// Revision of its last write: its resourceVersion.
    pub revision: u64,
    /// As stored: begins with the head of the stored version.
    pub value: Bytes,
    /// What selectors ask for.
    pub facts: Facts,
    /// The object as a protobuf message of the stored version, once someone has asked for it.
    pub message: OnceLock<Bytes>,
    /// `apiVersion` of what was stored, where it is not the stored version's and only a webhook can convert it.
    pub stored_as: Option<Box<str>>,
    /// Whether other bytes are stored: of another version, of an older schema, in another order, under a former key. A
    /// write of the same object is no idle one then.
    pub rewritten: bool,
}

impl Entry {
    /// An entry whose facts are known.
    pub fn new(key: Arc<str>, revision: u64, value: Bytes, facts: Facts) -> Self {
        Self { key, revision, value, facts, message: OnceLock::new(), stored_as: None, rewritten: false }
    }

    /// Makes an entry from stored bytes. Bytes that another program wrote in another order are encoded anew.
    ///
    /// # Errors
    /// When the bytes are no JSON object.
    pub fn load(
        kind: &Kind,
        head: &Head,
        key: Arc<str>,
        revision: u64,
        value: Bytes,
    ) -> Result<Self, serde_json::Error> {
        if head.fits(&value) && kind.custom.is_none() {
            let facts = Facts::parse(kind, &value)?;
            return Ok(Self::new(key, revision, value, facts));
        }
        let mut object: Value = serde_json::from_slice(&value)?;
        let mut stored_as = None;
        if let Some(custom) = &kind.custom {
            custom.read(kind, &mut object);
            stored_as = Some(object.api_version()).filter(|v| *v != kind.api_version()).map(Into::into);
        }
        let facts = Facts::of(kind, &object);
        let encoded = head.encode(&object);
        Ok(Self { stored_as, rewritten: encoded != value, ..Self::new(key, revision, encoded, facts) })
    }

    /// The bytes after the stored version's head.
    pub fn tail<'a>(&'a self, stored: &Head) -> &'a [u8] {
        self.value.get(stored.len()..).unwrap_or_default()
    }

    /// Namespace and name; the namespace is empty in cluster scope.
    pub fn namespace_and_name(&self) -> (&str, &str) {
        self.key.split_once('/').unwrap_or(("", &self.key))
    }

    /// The object with its resourceVersion.
    ///
    /// # Errors
    /// Never for bytes that [`Entry::load`] has seen.
    pub fn decode(&self) -> Result<Value, serde_json::Error> {
        let mut object = crate::encode::decode(&self.value, self.revision)?;
        if let (Some(api_version), Some(map)) = (&self.stored_as, object.as_object_mut()) {
            map.insert("apiVersion".into(), Value::from(&**api_version));
        }
        Ok(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn facts_from_bytes_and_from_values_agree() {
        for (plural, object) in [
            (
                "pods",
                json!({"metadata": {"name": "a", "labels": {"b": "2", "a": "\n1"}}, "spec": {"nodeName": "n"}}),
            ),
            ("configmaps", json!({"data": {"x": "y"}, "metadata": {"name": "a", "labels": {"a": "\"1"}}})),
            ("configmaps", json!({"metadata": {"name": "a"}})),
            (
                "pods",
                json!({"metadata": {"labels": null}, "spec": {"hostNetwork": true, "nodeName": ""},
                    "status": {"podIPs": [{"ip": "::1"}], "phase": "Running", "podIP": 3}}),
            ),
        ] {
            let kind = hawser_api::kinds::find("", "v1", plural).expect("row");
            let bytes = serde_json::to_vec(&object).expect("json");
            let facts = Facts::of(kind, &object);
            assert_eq!(Facts::parse(kind, &bytes).expect("facts"), facts);
            assert_eq!(facts.label("a"), object["metadata"]["labels"]["a"].as_str());
        }
    }

    #[test]
    fn foreign_bytes_are_encoded_anew() {
        let kind = hawser_api::kinds::find("", "v1", "configmaps").expect("row");
        let head = Head::new(kind);
        let foreign =
            Bytes::from_static(br#"{"metadata":{"name":"a"},"apiVersion":"v1","kind":"ConfigMap"}"#);
        let entry = Entry::load(kind, &head, "ns/a".into(), 3, foreign).expect("entry");
        assert!(head.fits(&entry.value));
        assert_eq!(entry.namespace_and_name(), ("ns", "a"));
        assert_eq!(entry.decode().expect("json")["metadata"]["resourceVersion"], "3");
    }
}
