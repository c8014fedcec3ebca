//! From bytes to a JSON object.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::table::{self, Entry, Mark, Message};
use super::wire::{Fields, Wire};
use crate::schema::{self, Base, Presence, Shape, Ty, Type};
use crate::time::{go_duration, rfc3339, rfc3339_micro};

/// What every body begins with.
pub(super) const MAGIC: &[u8] = b"k8s\0";
/// Deeper bodies are refused; the deepest built-in schema needs far less, JSON schemas in CRDs nest.
const MAX_DEPTH: u32 = 128;

/// Why a body cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoMagic,
    #[error("empty data")]
    Empty,
    #[error("empty body")]
    NoBody,
    #[error("unexpected EOF")]
    Truncated,
    #[error("proto: malformed message")]
    Malformed,
    #[error("proto: wrong wire type for field {0}")]
    WrongType(String),
    #[error("proto: field {0} is not valid UTF-8")]
    NotUtf8(String),
    #[error("proto: field {field} holds JSON that cannot be parsed: {why}")]
    Json { field: String, why: String },
    #[error("proto: nested too deeply")]
    TooDeep,
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind { api_version: String, kind: String },
}

/// Decodes a body with its envelope; `apiVersion` and `kind` are those that it names, or else the given ones.
///
/// # Errors
/// For everything that is not a whole message of a known kind.
pub fn decode(bytes: &[u8], default: (&str, &str)) -> Result<Value, Error> {
    if bytes.is_empty() {
        return Err(Error::Empty);
    }
    let envelope = bytes.strip_prefix(MAGIC).ok_or(Error::NoMagic)?;
    if envelope.is_empty() {
        return Err(Error::NoBody);
    }
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in Fields(envelope) {
        match field? {
            (1, Wire::Bytes(type_meta)) => {
                for field in Fields(type_meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => api_version = utf8(text, "apiVersion")?,
                        (2, Wire::Bytes(text)) => kind = utf8(text, "kind")?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(object)) => raw = object,
            _ => {}
        }
    }
    if api_version.is_empty() {
        default.0.clone_into(&mut api_version);
    }
    if kind.is_empty() {
        default.1.clone_into(&mut kind);
    }
    // Options are of the group that they are sent to, but of one type.
    let ty = schema::find_kind(&api_version, &kind).or_else(|| schema::find(&format!("meta.v1.{kind}")));
    let (Some(ty), Some(message)) = (ty, ty.and_then(|ty| table::find(ty.name))) else {
        return Err(Error::UnknownKind { api_version, kind });
    };
    let mut object = Map::new();
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    fill(&mut object, raw, message, ty, 0)?;
    Ok(Value::Object(object))
}

/// Reads a message's fields into an object.
fn fill(
    object: &mut Map<String, Value>,
    bytes: &[u8],
    message: &'static Message,
    ty: &'static Type,
    depth: u32,
) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::TooDeep);
    }
    for field in Fields(bytes) {
        let (number, wire) = field?;
        match message.fields.get(&number) {
            // A field of a later version: dropped, as Go does.
            None => {}
            Some(Entry::Inline(name)) => {
                let inner = table::find(name).ok_or(Error::Malformed)?;
                fill(object, bytes_of(wire, name)?, inner, ty, depth + 1)?;
            }
            Some(Entry::Field { name, mark }) => {
                if let Some(field) = ty.field(name) {
                    put(object, field, *mark, wire, depth + 1)?;
                }
            }
        }
    }
    Ok(())
}

fn put(
    object: &mut Map<String, Value>,
    field: &'static schema::Field,
    mark: Mark,
    wire: Wire<'_>,
    depth: u32,
) -> Result<(), Error> {
    let name = field.name;
    match field.ty.shape() {
        Shape::List(inner) if matches!(mark, Mark::None | Mark::Json) => {
            let list = object.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(list) = list else { return Err(Error::Malformed) };
            // Numbers may come packed.
            if let (Wire::Bytes(packed), Shape::Scalar(Base::Int32 | Base::Int64)) = (wire, inner.shape()) {
                let mut rest = Vec::with_capacity(packed.len() + 1);
                for number in packed.split_inclusive(|byte| byte & 0x80 == 0) {
                    rest.clear();
                    rest.push(0x08);
                    rest.extend_from_slice(number);
                    for field in Fields(&rest) {
                        list.push(value(inner, mark, field?.1, name, depth)?);
                    }
                }
            } else {
                list.push(value(inner, mark, wire, name, depth)?);
            }
        }
        Shape::Map(inner) => {
            let (mut key, mut entry) = (String::new(), None);
            for part in Fields(bytes_of(wire, name)?) {
                match part? {
                    (1, Wire::Bytes(text)) => key = utf8(text, name)?,
                    (2, wire) => entry = Some(value(inner, mark, wire, name, depth)?),
                    _ => {}
                }
            }
            let entry = match entry {
                Some(entry) => entry,
                None => value(inner, mark, Wire::Bytes(&[]), name, depth)?,
            };
            let map = object.entry(name).or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(map) = map else { return Err(Error::Malformed) };
            map.insert(key, entry);
        }
        _ => {
            let mut found = value(field.ty, mark, wire, name, depth)?;
            // A message that comes in pieces is merged (the format's rule).
            if let (Value::Object(found), Some(Value::Object(before))) = (&mut found, object.get_mut(name)) {
                before.append(found);
                return Ok(());
            }
            let absent = found.is_null() || (field.presence == Presence::WhenNotZero && is_zero(&found));
            if absent {
                object.remove(name);
            } else {
                object.insert(name.into(), found);
            }
        }
    }
    Ok(())
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// One value of a type; Null for what is absent in JSON although it is on the wire.
fn value(ty: Ty, mark: Mark, wire: Wire<'_>, name: &str, depth: u32) -> Result<Value, Error> {
    match mark {
        Mark::None => {}
        Mark::Json => return json(bytes_of(wire, name)?, name),
        Mark::Duration => return duration(bytes_of(wire, name)?),
        Mark::Strings => return strings(bytes_of(wire, name)?, 1, name),
        _ => return schema_choice(mark, bytes_of(wire, name)?, name, depth),
    }
    match ty.shape() {
        Shape::Struct(inner) => {
            let mut object = Map::new();
            let message = table::find(inner.name).ok_or(Error::Malformed)?;
            fill(&mut object, bytes_of(wire, name)?, message, inner, depth)?;
            Ok(Value::Object(object))
        }
        Shape::Scalar(base) => scalar(base, wire, name),
        // A list or map directly in another exists only with a mark.
        Shape::List(_) | Shape::Map(_) => Err(Error::Malformed),
    }
}

fn scalar(base: Base, wire: Wire<'_>, name: &str) -> Result<Value, Error> {
    Ok(match (base, wire) {
        (Base::Bool, Wire::Varint(n)) => Value::Bool(n != 0),
        // Negative numbers are ten bytes of two's complement; int32 is cut down to its width.
        #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
        (Base::Int32, Wire::Varint(n)) => Value::from(n as i32),
        #[allow(clippy::cast_possible_wrap)]
        (Base::Int64, Wire::Varint(n)) => Value::from(n as i64),
        (Base::Number, Wire::Fixed64(bits)) => Value::from(f64::from_bits(bits)),
        (Base::Number, Wire::Fixed32(bits)) => Value::from(f32::from_bits(bits)),
        (Base::String, Wire::Bytes(text)) => Value::String(utf8(text, name)?),
        (Base::Bytes, Wire::Bytes(bytes)) => Value::String(STANDARD.encode(bytes)),
        (Base::Time, Wire::Bytes(bytes)) => time(bytes)?.map_or(Value::Null, |t| rfc3339(t).into()),
        (Base::MicroTime, Wire::Bytes(bytes)) => {
            time(bytes)?.map_or(Value::Null, |t| rfc3339_micro(t).into())
        }
        (Base::Quantity, Wire::Bytes(bytes)) => {
            let mut text = String::new();
            for field in Fields(bytes) {
                if let (1, Wire::Bytes(part)) = field? {
                    text = utf8(part, name)?;
                }
            }
            Value::String(if text.is_empty() { "0".into() } else { text })
        }
        (Base::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes, name)?,
        (Base::Raw | Base::Any, Wire::Bytes(bytes)) => json(bytes, name)?,
        _ => return Err(Error::WrongType(name.to_owned())),
    })
}

/// `{1: nanoseconds}`.
fn duration(bytes: &[u8]) -> Result<Value, Error> {
    let mut nanos = 0i64;
    for field in Fields(bytes) {
        if let (1, Wire::Varint(n)) = field? {
            nanos = n.cast_signed();
        }
    }
    Ok(Value::String(go_duration(nanos)))
}

/// `{1: seconds, 2: nanos}`; nothing at all stands for no time.
fn time(bytes: &[u8]) -> Result<Option<Timestamp>, Error> {
    let (mut seconds, mut nanos, mut any) = (0i64, 0i32, false);
    for field in Fields(bytes) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
        match field? {
            (1, Wire::Varint(n)) => (seconds, any) = (n as i64, true),
            (2, Wire::Varint(n)) => nanos = n as i32,
            _ => {}
        }
    }
    if !any {
        return Ok(None);
    }
    Timestamp::new(seconds, nanos).map(Some).map_err(|_| Error::Malformed)
}

/// `{1: type (0 int, 1 string), 2: int, 3: string}`.
fn int_or_string(bytes: &[u8], name: &str) -> Result<Value, Error> {
    let (mut is_string, mut number, mut text) = (false, 0i32, String::new());
    for field in Fields(bytes) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
        match field? {
            (1, Wire::Varint(n)) => is_string = n == 1,
            (2, Wire::Varint(n)) => number = n as i32,
            (3, Wire::Bytes(part)) => text = utf8(part, name)?,
            _ => {}
        }
    }
    Ok(if is_string { Value::String(text) } else { Value::from(number) })
}

/// `{1: bytes}` that are JSON. Without any, the value is absent.
fn json(bytes: &[u8], name: &str) -> Result<Value, Error> {
    let mut found = Value::Null;
    for field in Fields(bytes) {
        if let (1, Wire::Bytes(raw)) = field?
            && !raw.is_empty()
        {
            found = serde_json::from_slice(raw)
                .map_err(|error| Error::Json { field: name.to_owned(), why: error.to_string() })?;
        }
    }
    Ok(found)
}

/// The strings of one repeated field.
fn strings(bytes: &[u8], number: u32, name: &str) -> Result<Value, Error> {
    let mut list = Vec::new();
    for field in Fields(bytes) {
        if let (found, Wire::Bytes(text)) = field?
            && found == number
        {
            list.push(Value::String(utf8(text, name)?));
        }
    }
    Ok(Value::Array(list))
}

/// The unions of a CRD's schema: field 1 or 2 is a schema, the other what may stand in its place.
fn schema_choice(mark: Mark, bytes: &[u8], name: &str, depth: u32) -> Result<Value, Error> {
    if depth > MAX_DEPTH {
        return Err(Error::TooDeep);
    }
    let ty = schema::find("apiextensions.v1.JSONSchemaProps").ok_or(Error::Malformed)?;
    let message = table::find(ty.name).ok_or(Error::Malformed)?;
    let one = |bytes: &[u8]| -> Result<Value, Error> {
        let mut object = Map::new();
        fill(&mut object, bytes, message, ty, depth + 1)?;
        Ok(Value::Object(object))
    };
    let mut found = if mark == Mark::SchemaOrBool { Value::Bool(false) } else { Value::Null };
    let mut several = Vec::new();
    for field in Fields(bytes) {
        match (mark, field?) {
            (Mark::SchemaOrBool, (1, Wire::Varint(allows))) if !found.is_object() => {
                found = (allows != 0).into()
            }
            (Mark::SchemaOrBool, (2, Wire::Bytes(bytes))) => found = one(bytes)?,
            (Mark::SchemaOrArray | Mark::SchemaOrStrings, (1, Wire::Bytes(bytes))) => found = one(bytes)?,
            (Mark::SchemaOrArray, (2, Wire::Bytes(bytes))) => several.push(one(bytes)?),
            (Mark::SchemaOrStrings, (2, Wire::Bytes(text))) => several.push(utf8(text, name)?.into()),
            _ => {}
        }
    }
    Ok(if several.is_empty() { found } else { Value::Array(several) })
}

fn bytes_of<'a>(wire: Wire<'a>, name: &str) -> Result<&'a [u8], Error> {
    match wire {
        Wire::Bytes(bytes) => Ok(bytes),
        _ => Err(Error::WrongType(name.to_owned())),
    }
}

fn utf8(bytes: &[u8], name: &str) -> Result<String, Error> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Error::NotUtf8(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// A length-delimited field.
    fn part(number: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
        bytes.extend_from_slice(content);
        bytes
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let type_meta = [part(1, api_version.as_bytes()), part(2, kind.as_bytes())].concat();
        [MAGIC, &part(1, &type_meta), &part(2, raw)].concat()
    }

    #[test]
    fn a_namespace_as_kubectl_sends_it() {
        // metadata {name "foo", generateName "", …, creationTimestamp {}}, spec {}, status {}
        let meta = [part(1, b"foo"), part(2, b""), part(3, b""), part(8, b"")].concat();
        let raw = [part(1, &meta), part(2, b""), part(3, b"")].concat();
        assert_eq!(
            decode(&body("v1", "Namespace", &raw), ("", "")).unwrap(),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "foo"}, "spec": {}, "status": {}})
        );
    }

    #[test]
    fn inlined_messages_lists_maps_and_scalars() {
        // Pod.spec.volumes[0] {name "v", volumeSource {emptyDir {sizeLimit "1Gi"}}}
        let limit = part(2, &part(1, b"1Gi"));
        let volume = [part(1, b"v"), part(2, &part(2, &limit))].concat();
        // containers[0] {name "c", readinessProbe {handler {httpGet {port 80}}, periodSeconds 5}}
        let port = [vec![0x08, 0x00, 0x10, 80], part(3, b"")].concat();
        let handler = part(1, &part(2, &part(2, &port)));
        let probe = [handler, vec![4 << 3, 5]].concat();
        let container = [part(1, b"c"), part(11, &probe)].concat();
        let labels = part(11, &[part(1, b"k"), part(2, b"v")].concat());
        let raw = [part(1, &labels), part(2, &[part(1, &volume), part(2, &container)].concat())].concat();
        let pod = decode(&body("v1", "Pod", &raw), ("", "")).unwrap();
        assert_eq!(pod["metadata"]["labels"], json!({"k": "v"}));
        assert_eq!(pod["spec"]["volumes"], json!([{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}]));
        let probe = &pod["spec"]["containers"][0]["readinessProbe"];
        assert_eq!(probe["httpGet"]["port"], json!(80));
        assert_eq!(probe["periodSeconds"], json!(5));
    }

    #[test]
    fn delete_options_of_any_group() {
        // gracePeriodSeconds 0, propagationPolicy Foreground
        let raw = [vec![0x08, 0x00], part(4, b"Foreground")].concat();
        let options = decode(&body("apps/v1", "DeleteOptions", &raw), ("", "")).unwrap();
        assert_eq!(options["gracePeriodSeconds"], json!(0));
        assert_eq!(options["propagationPolicy"], json!("Foreground"));
    }

    #[test]
    fn what_is_no_body_is_an_error() {
        assert_eq!(decode(b"{}", ("v1", "Pod")), Err(Error::NoMagic));
        assert!(matches!(decode(&body("v1", "Nothing", b""), ("", "")), Err(Error::UnknownKind { .. })));
        let whole = body("v1", "Namespace", &part(1, &part(1, b"foo")));
        // Between two fields a cut leaves a whole message.
        let boundary = whole.len() - part(2, &part(1, &part(1, b"foo"))).len();
        for cut in (MAGIC.len() + 1..whole.len()).filter(|cut| *cut != boundary) {
            assert!(decode(&whole[..cut], ("", "")).is_err(), "cut at {cut}");
        }
        assert!(matches!(
            decode(&body("v1", "Namespace", &part(1, &part(1, &[0xff]))), ("", "")),
            Err(Error::NotUtf8(_))
        ));
    }

    proptest! {
        /// Whatever the bytes are: an answer or an error.
        #[test]
        fn never_panics(kind in prop_oneof!["Pod", "Namespace", "Event"], raw in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&body("v1", &kind, &raw), ("", ""));
        }
    }
}
