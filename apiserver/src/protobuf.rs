//! Kubernetes' protobuf, read: bodies of Go clients that prefer it.
//!
//! The types of fields are the schema table's, their numbers are in `data/protobuf.txt`. Answers stay JSON, which
//! every client that sends protobuf takes too.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hawser_api::schema::{self, Base, Shape, Ty, Type};
use serde_json::{Map, Number, Value, json};

/// What every encoded object begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Most nesting that a message may have.
const MAX_DEPTH: usize = 100;

/// A body that is no Kubernetes protobuf.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ProtobufError(&'static str);

type Result<T> = std::result::Result<T, ProtobufError>;

const SHORT: ProtobufError = ProtobufError("unexpected EOF");
const WIRE: ProtobufError = ProtobufError("proto: wrong wireType for a field");

/// Numbers of a type's fields: path of field numbers → JSON name.
type Fields = HashMap<&'static [u32], &'static str>;

static TABLE: LazyLock<HashMap<&'static str, Fields>> =
    LazyLock::new(|| parse(include_str!("../data/protobuf.txt")));

fn parse(text: &'static str) -> HashMap<&'static str, Fields> {
    let mut out = HashMap::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let mut words = line.split(' ');
        let Some(name) = words.next().filter(|n| !n.is_empty()) else { continue };
        let fields: Fields = words
            .filter_map(|word| {
                let (field, path) = word.split_once('=')?;
                let path: Option<Vec<u32>> = path.split('.').map(|n| n.parse().ok()).collect();
                // The table lives as long as the program.
                Some((&*Vec::leak(path?), field))
            })
            .collect();
        out.insert(name, fields);
    }
    out
}

/// Whether bytes begin like an encoded object.
pub fn is_protobuf(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Decodes an object: its JSON form with kind and apiVersion. What the envelope does not name is taken from the
/// defaults.
///
/// # Errors
/// For bytes that are no protobuf, and for kinds that have none.
pub fn decode(bytes: &[u8], api_version: &str, kind: &str) -> Result<Value> {
    let rest = bytes
        .strip_prefix(MAGIC)
        .ok_or(ProtobufError("provided data does not appear to be a protobuf message"))?;
    let (mut version, mut name, mut raw) = (String::new(), String::new(), &rest[..0]);
    let mut envelope = Reader(rest);
    while let Some((number, wire)) = envelope.next()? {
        match (number, wire) {
            (1, Wire::Bytes(meta)) => {
                let mut meta = Reader(meta);
                while let Some((number, wire)) = meta.next()? {
                    match (number, wire) {
                        (1, Wire::Bytes(b)) => version = text(b)?,
                        (2, Wire::Bytes(b)) => name = text(b)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(b)) => raw = b,
            _ => {}
        }
    }
    let version = if version.is_empty() { api_version } else { &version };
    let name = if name.is_empty() { kind } else { &name };
    let ty = schema::find_kind(version, name)
        .or_else(|| schema::find(&format!("meta.v1.{name}")))
        .ok_or(ProtobufError("the kind has no protobuf form here"))?;
    let mut object = Map::new();
    message(ty, &mut Vec::new(), raw, &mut object, 0)?;
    object.insert("kind".into(), json!(name));
    object.insert("apiVersion".into(), json!(version));
    Ok(Value::Object(object))
}

/// Reads one message into an object; `path` leads to it when its fields are the object's own.
fn message(
    ty: &'static Type,
    path: &mut Vec<u32>,
    bytes: &[u8],
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(ProtobufError("exceeded max depth"));
    }
    let fields = TABLE.get(ty.name).ok_or(ProtobufError("a type has no protobuf form here"))?;
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        path.push(number);
        let known = fields.get(path.as_slice()).copied();
        if let Some(field) = known.and_then(|name| ty.field(name)) {
            put(out, field.name, field.ty, wire, depth)?;
        } else if let Wire::Bytes(inner) = wire
            && fields.keys().any(|k| k.starts_with(path))
        {
            message(ty, path, inner, out, depth + 1)?;
        }
        path.pop();
    }
    Ok(())
}

fn put(out: &mut Map<String, Value>, name: &str, ty: Ty, wire: Wire<'_>, depth: usize) -> Result<()> {
    match ty.shape() {
        Shape::List(inner) => {
            let slot = out.entry(name).or_insert_with(|| json!([]));
            let Value::Array(items) = slot else { return Err(WIRE) };
            match wire {
                // Numbers may come packed.
                Wire::Bytes(packed) if matches!(inner.shape(), Shape::Scalar(Base::Int32 | Base::Int64)) => {
                    let mut reader = Reader(packed);
                    while !reader.0.is_empty() {
                        items.push(scalar_varint(inner, reader.varint()?));
                    }
                }
                wire => items.push(value(inner, wire, depth)?),
            }
        }
        Shape::Map(inner) => {
            let Wire::Bytes(entry) = wire else { return Err(WIRE) };
            let (mut key, mut item) = (String::new(), None);
            let mut reader = Reader(entry);
            while let Some((number, wire)) = reader.next()? {
                match (number, wire) {
                    (1, Wire::Bytes(b)) => key = text(b)?,
                    (2, wire) => item = Some(map_value(inner, wire, depth)?),
                    _ => {}
                }
            }
            let slot = out.entry(name).or_insert_with(|| json!({}));
            let Value::Object(map) = slot else { return Err(WIRE) };
            map.insert(key, item.unwrap_or_else(|| empty(inner)));
        }
        Shape::Struct(_) | Shape::Scalar(_) => {
            let value = value(ty, wire, depth)?;
            if !value.is_null() {
                out.insert(name.to_owned(), value);
            }
        }
    }
    Ok(())
}

/// A list inside a map is a message with one repeated field.
fn map_value(inner: Ty, wire: Wire<'_>, depth: usize) -> Result<Value> {
    let Shape::List(_) = inner.shape() else { return value(inner, wire, depth) };
    let Wire::Bytes(bytes) = wire else { return Err(WIRE) };
    let mut out = Map::new();
    out.insert("items".into(), json!([]));
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        if number == 1 {
            put(&mut out, "items", inner, wire, depth + 1)?;
        }
    }
    Ok(out.remove("items").unwrap_or(Value::Null))
}

fn empty(ty: Ty) -> Value {
    match ty.shape() {
        Shape::Scalar(Base::String | Base::Bytes) => json!(""),
        Shape::Scalar(Base::Quantity) => json!("0"),
        Shape::Struct(_) => json!({}),
        _ => Value::Null,
    }
}

fn value(ty: Ty, wire: Wire<'_>, depth: usize) -> Result<Value> {
    match (ty.shape(), wire) {
        (Shape::Struct(inner), Wire::Bytes(bytes)) => {
            let mut map = Map::new();
            message(inner, &mut Vec::new(), bytes, &mut map, depth + 1)?;
            Ok(Value::Object(map))
        }
        (Shape::Scalar(Base::Bool | Base::Int32 | Base::Int64), Wire::Varint(n)) => Ok(scalar_varint(ty, n)),
        (Shape::Scalar(Base::Number), Wire::Fixed64(bits)) => {
            Ok(Number::from_f64(f64::from_bits(bits)).map_or(Value::Null, Value::Number))
        }
        (Shape::Scalar(base), Wire::Bytes(bytes)) => scalar(base, bytes, depth),
        _ => Err(WIRE),
    }
}

fn scalar_varint(ty: Ty, n: u64) -> Value {
    #[expect(clippy::cast_possible_wrap, reason = "protobuf's own representation of negative numbers")]
    match ty.shape() {
        Shape::Scalar(Base::Bool) => json!(n != 0),
        _ => json!(n as i64),
    }
}

fn scalar(base: Base, bytes: &[u8], depth: usize) -> Result<Value> {
    match base {
        Base::String => Ok(Value::String(text(bytes)?)),
        Base::Bytes => Ok(Value::String(STANDARD.encode(bytes))),
        Base::Time | Base::MicroTime => time(bytes, base),
        Base::Quantity => Ok(match first_bytes(bytes)? {
            Some(b) => Value::String(text(b)?),
            None => Value::Null,
        }),
        Base::IntOrString => int_or_string(bytes),
        Base::Raw | Base::Any => match first_bytes(bytes)? {
            None | Some([]) => Ok(Value::Null),
            Some(raw) if raw.starts_with(MAGIC) && depth < MAX_DEPTH => decode(raw, "", ""),
            Some(raw) => serde_json::from_slice(raw).map_err(|_| ProtobufError("a raw field holds no JSON")),
        },
        _ => Err(WIRE),
    }
}

/// Field 1 of a message that wraps one string or some bytes.
fn first_bytes(bytes: &[u8]) -> Result<Option<&[u8]>> {
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        if let (1, Wire::Bytes(b)) = (number, wire) {
            return Ok(Some(b));
        }
    }
    Ok(None)
}

fn time(bytes: &[u8], base: Base) -> Result<Value> {
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        #[expect(clippy::cast_possible_wrap, reason = "protobuf's own representation of negative numbers")]
        match (number, wire) {
            (1, Wire::Varint(n)) => seconds = n as i64,
            (2, Wire::Varint(n)) => nanos = i32::try_from(n as i64).unwrap_or(0),
            _ => {}
        }
    }
    if seconds == 0 && nanos == 0 {
        return Ok(Value::Null);
    }
    let moment = jiff::Timestamp::new(seconds, nanos).map_err(|_| ProtobufError("a time is out of range"))?;
    Ok(Value::String(if base == Base::Time {
        hawser_api::time::rfc3339(moment)
    } else {
        hawser_api::time::rfc3339_micro(moment)
    }))
}

fn int_or_string(bytes: &[u8]) -> Result<Value> {
    let (mut is_string, mut int, mut string) = (false, 0, String::new());
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        #[expect(clippy::cast_possible_wrap, reason = "protobuf's own representation of negative numbers")]
        match (number, wire) {
            (1, Wire::Varint(n)) => is_string = n == 1,
            (2, Wire::Varint(n)) => int = n as i64,
            (3, Wire::Bytes(b)) => string = text(b)?,
            _ => {}
        }
    }
    Ok(if is_string { Value::String(string) } else { json!(int) })
}

fn text(bytes: &[u8]) -> Result<String> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| ProtobufError("a string is not UTF-8"))
}

/// A field's value on the wire.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

/// Reads fields one after the other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64> {
        let mut out = 0u64;
        for shift in (0..70).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(SHORT)?;
            self.0 = rest;
            out |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(out);
            }
        }
        Err(ProtobufError("proto: integer overflow"))
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8]> {
        let len = usize::try_from(len).map_err(|_| SHORT)?;
        let (taken, rest) = self.0.split_at_checked(len).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number =
            u32::try_from(tag >> 3).ok().filter(|n| *n > 0).ok_or(ProtobufError("proto: illegal tag"))?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                let bytes = self.take(8)?;
                Wire::Fixed64(bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
            }
            2 => {
                let len = self.varint()?;
                Wire::Bytes(self.take(len)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return Err(ProtobufError("proto: illegal wireType")),
        };
        Ok(Some((number, wire)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).expect("short")];
        out.extend_from_slice(bytes);
        out
    }

    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    #[test]
    fn every_numbered_field_is_in_the_schema() {
        for (name, fields) in TABLE.iter() {
            let ty = schema::find(name).unwrap_or_else(|| panic!("{name}"));
            for (path, field) in fields {
                assert!(ty.field(field).is_some() && !path.is_empty(), "{name}.{field}");
            }
        }
        assert!(TABLE.len() > 400);
    }

    #[test]
    fn a_pod_with_embedded_messages() {
        let host_path = field(1, b"/data");
        let volume = [field(1, b"v"), field(2, &field(1, &host_path))].concat();
        let port = field(2, &field(1, b"")); // an httpGet without a port
        let probe = [field(1, &port), vec![0x10, 5]].concat();
        let container = [field(1, b"c"), field(2, b"img"), field(10, &probe)].concat();
        let label = [field(1, b"k"), field(2, b"v")].concat();
        let meta = [field(1, b"p"), field(11, &label), field(8, b"")].concat();
        let spec = [field(1, &volume), field(2, &container), vec![0x20, 30]].concat();
        let pod = [field(1, &meta), field(2, &spec)].concat();
        let got = decode(&envelope("v1", "Pod", &pod), "", "").expect("pod");
        assert_eq!(
            got,
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p", "labels": {"k": "v"}},
                "spec": {"volumes": [{"name": "v", "hostPath": {"path": "/data"}}],
                    "terminationGracePeriodSeconds": 30,
                    "containers": [{"name": "c", "image": "img", "livenessProbe": {"httpGet": {"path": ""},
                        "initialDelaySeconds": 5}}]}})
        );
    }

    #[test]
    fn special_types() {
        assert_eq!(int_or_string(&[8, 0, 16, 80]), Ok(json!(80)));
        assert_eq!(int_or_string(&[8, 1, 16, 0, 26, 2, b'4', b'%']), Ok(json!("4%")));
        assert_eq!(time(&[8, 1], Base::Time), Ok(json!("1970-01-01T00:00:01Z")));
        assert_eq!(time(&[], Base::Time), Ok(Value::Null));
        assert_eq!(scalar(Base::Raw, &field(1, b"{\"a\":1}"), 0), Ok(json!({"a": 1})));
        assert!(decode(b"{}", "v1", "Pod").is_err());
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = decode(&[MAGIC, &bytes].concat(), "v1", "Pod");
            let _ = decode(&envelope("apps/v1", "Deployment", &bytes[..bytes.len().min(100)]), "", "");
        }
    }
}
