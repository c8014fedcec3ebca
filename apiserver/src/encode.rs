//! How objects become bytes, once.
//!
//! A stored value is JSON that always begins with the kind's [`Head`]:
//! `{"kind":"Pod","apiVersion":"v1","metadata":{` and carries no resourceVersion, since that is the revision of
//! the write itself. So an answer is made by joining three slices: a head with the resourceVersion in it and the
//! rest of the stored bytes. Nothing is parsed or encoded again for GET, LIST and WATCH; an identical version of
//! another name differs by its head only.

use std::io::Write as _;

use bytes::{BufMut, Bytes, BytesMut};
use hawser_api::kinds::Kind;
use serde_json::{Map, Value};

/// The first bytes of every object of one kind in one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// `{"kind":"Pod","apiVersion":"v1","metadata":{`
    stored: Box<[u8]>,
    /// `{"kind":"Pod","apiVersion":"v1",`: what items of typed lists leave out, the `{` excepted.
    type_meta: usize,
    /// Whether items of lists carry kind and apiVersion (those of kinds defined at run time do).
    items_typed: bool,
}

const METADATA: &str = "\"metadata\":{";
const RESOURCE_VERSION: &[u8] = b"\"resourceVersion\":\"";

impl Head {
    /// The head of a row's objects.
    pub fn new(kind: &Kind) -> Self {
        Self::of(&kind.kind, &kind.api_version(), !kind.builtin)
    }

    /// The head for a kind and an apiVersion.
    pub fn of(kind: &str, api_version: &str, items_typed: bool) -> Self {
        let type_meta = format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",");
        let len = type_meta.len();
        Self { stored: (type_meta + METADATA).into_bytes().into(), type_meta: len, items_typed }
    }

    /// Bytes of the head; the offset of the tail in a stored value.
    pub fn len(&self) -> usize {
        self.stored.len()
    }

    /// Never: a head names its kind.
    pub fn is_empty(&self) -> bool {
        self.stored.is_empty()
    }

    /// Whether a stored value has this head.
    pub fn fits(&self, value: &[u8]) -> bool {
        value.starts_with(&self.stored) && value.len() > self.stored.len() + 1
    }

    /// Writes an object: this head with the revision, then the tail of a stored value.
    pub fn put_object(&self, out: &mut impl BufMut, revision: u64, tail: &[u8]) {
        out.put_slice(&self.stored);
        put_version(out, revision, tail);
    }

    /// Writes an object the way items of a list look.
    pub fn put_item(&self, out: &mut impl BufMut, revision: u64, tail: &[u8]) {
        if self.items_typed {
            self.put_object(out, revision, tail);
        } else {
            out.put_slice(b"{");
            out.put_slice(METADATA.as_bytes());
            put_version(out, revision, tail);
        }
    }

    /// Bytes that [`Head::put_item`] writes.
    pub fn item_len(&self, revision: u64, tail: &[u8]) -> usize {
        let head = if self.items_typed { self.stored.len() } else { 1 + METADATA.len() };
        let digits = revision.checked_ilog10().unwrap_or(0) as usize + 1;
        let end = if tail.first() == Some(&b'}') { 1 } else { 2 };
        head + RESOURCE_VERSION.len() + digits + end + tail.len()
    }

    /// Upper bound for the bytes that [`Head::put_object`] and [`Head::put_item`] add to a tail.
    pub fn room(&self) -> usize {
        self.stored.len() + RESOURCE_VERSION.len() + 24
    }

    /// One object as bytes.
    pub fn object(&self, revision: u64, tail: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(self.room() + tail.len());
        self.put_object(&mut out, revision, tail);
        out.freeze()
    }

    /// Encodes an object for storing: head, metadata without resourceVersion, then the other fields.
    pub fn encode(&self, object: &Value) -> Bytes {
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(&self.stored);
        let empty = Map::new();
        let top = object.as_object().unwrap_or(&empty);
        let metadata = top.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
        put_fields(&mut out, metadata.iter().filter(|(k, _)| *k != "resourceVersion"), false);
        out.push(b'}');
        put_fields(
            &mut out,
            top.iter().filter(|(k, _)| !matches!(k.as_str(), "kind" | "apiVersion" | "metadata")),
            true,
        );
        out.push(b'}');
        out.into()
    }

    /// The head's kind and apiVersion as JSON text, without the braces, for lists of this kind's items.
    pub fn type_meta(&self) -> &[u8] {
        &self.stored[..self.type_meta]
    }
}

fn put_version(out: &mut impl BufMut, revision: u64, tail: &[u8]) {
    out.put_slice(RESOURCE_VERSION);
    let mut digits = [0u8; 20];
    let mut rest = digits.as_mut_slice();
    // Writing at most 20 digits into 20 bytes cannot fail.
    let _ = write!(rest, "{revision}");
    let left = rest.len();
    out.put_slice(&digits[..20 - left]);
    // An object without any metadata has its closing brace right here.
    out.put_slice(if tail.first() == Some(&b'}') { b"\"" } else { b"\"," });
    out.put_slice(tail);
}

fn put_fields<'a>(out: &mut Vec<u8>, fields: impl Iterator<Item = (&'a String, &'a Value)>, mut comma: bool) {
    for (key, value) in fields {
        if comma {
            out.push(b',');
        }
        comma = true;
        // Writing JSON values into memory cannot fail: keys are strings.
        let _ = serde_json::to_writer(&mut *out, key);
        out.push(b':');
        let _ = serde_json::to_writer(&mut *out, value);
    }
}

/// Decodes a stored value and puts its resourceVersion in.
///
/// # Errors
/// When the bytes are no JSON object.
pub fn decode(value: &[u8], revision: u64) -> Result<Value, serde_json::Error> {
    let mut object: Value = serde_json::from_slice(value)?;
    if let Some(Value::Object(meta)) = object.get_mut("metadata") {
        meta.insert("resourceVersion".into(), Value::String(revision.to_string()));
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn head() -> Head {
        Head::of("Pod", "v1", false)
    }

    #[test]
    fn encodes_and_splices() {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "resourceVersion": "9",
            "labels": {"x": "\"q\""}}, "spec": {"n": 1}});
        let stored = head().encode(&object);
        assert!(head().fits(&stored));
        assert!(!String::from_utf8_lossy(&stored).contains("resourceVersion"));
        let tail = &stored[head().len()..];
        let sent: Value = serde_json::from_slice(&head().object(12, tail)).expect("json");
        assert_eq!(sent["metadata"]["resourceVersion"], "12");
        assert_eq!(sent["spec"], object["spec"]);
        let mut item = Vec::new();
        head().put_item(&mut item, 12, tail);
        let item: Value = serde_json::from_slice(&item).expect("json");
        assert_eq!(item["metadata"]["labels"]["x"], "\"q\"");
        assert!(item.get("kind").is_none());
    }

    #[test]
    fn no_metadata_is_still_json() {
        let stored = head().encode(&json!({"data": {}}));
        let sent: Value = serde_json::from_slice(&head().object(1, &stored[head().len()..])).expect("json");
        assert_eq!(
            sent,
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "data": {}})
        );
    }

    proptest::proptest! {
        #[test]
        fn round_trip(name in ".{1,20}", key in ".{0,8}", revision: u64) {
            let mut object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}});
            if !["kind", "apiVersion", "metadata"].contains(&key.as_str()) {
                object[key.as_str()] = json!({"x": name});
            }
            let stored = head().encode(&object);
            let sent: Value = serde_json::from_slice(&head().object(revision, &stored[head().len()..])).expect("json");
            object["metadata"]["resourceVersion"] = revision.to_string().into();
            proptest::prop_assert_eq!(&sent, &object);
            for head in [head(), Head::of("Pod", "v1", true)] {
                let (mut item, tail) = (Vec::new(), &stored[head.len()..]);
                head.put_item(&mut item, revision, tail);
                proptest::prop_assert_eq!(head.item_len(revision, tail), item.len());
            }
            proptest::prop_assert_eq!(decode(&stored, revision).expect("json"), object);
        }
    }
}
