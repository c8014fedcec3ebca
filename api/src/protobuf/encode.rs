//! From JSON to bytes.
//!
//! JSON is read as a stream and each field is written where it is met: fields need no order on the wire. Only the
//! fields of inlined messages, which JSON mixes with those of their parent, are put aside until the parent ends.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::decode::MAGIC;
use super::table::{self, Mark, Message};
use super::wire::{nested, put_bytes, put_fixed64, put_varint_field};
use crate::schema::{self, Base, Shape, Ty, Type};
use crate::time;

/// Why an object has no protobuf form.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The kind has no messages: it was defined at run time.
    #[error("no protobuf message is known for kind {kind:?} of version {api_version:?}")]
    UnknownKind { api_version: String, kind: String },
    /// The JSON is not of its type.
    #[error("the object cannot be encoded: {0}")]
    Json(#[from] serde_json::Error),
}

/// Encodes an object with its envelope; the type is that of its `apiVersion` and `kind`.
///
/// # Errors
/// For kinds without messages and for JSON that is not of the kind's type.
pub fn encode(object: &Value) -> Result<Vec<u8>, EncodeError> {
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    // Discovery's documents of the core group say nothing of their version.
    let api_version = Some(text("apiVersion")).filter(|v| !v.is_empty()).unwrap_or("v1");
    let kind = text("kind");
    let mut raw = Vec::with_capacity(512);
    match find(api_version, kind) {
        Some(ty) => message(ty, object, &mut raw)?,
        None => items(api_version, kind, object, &mut raw)?,
    }
    Ok(envelope(api_version, kind, &raw))
}

/// The type of a kind; options are of the group that they are sent to, but of one type.
fn find(api_version: &str, kind: &str) -> Option<&'static Type> {
    schema::find_kind(api_version, kind)
        .or_else(|| schema::find(&format!("meta.v1.{kind}")).filter(|ty| ty.kind.is_some()))
}

/// Whether objects of a kind can be encoded at all.
pub fn knows(api_version: &str, kind: &str) -> bool {
    find(api_version, kind).is_some()
}

/// A list, which has no type of its own in the table: `{1: ListMeta, 2: repeated item}`; or an object of which only
/// the metadata is wanted.
fn items(api_version: &str, kind: &str, object: &Value, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let unknown = || EncodeError::UnknownKind { api_version: api_version.to_owned(), kind: kind.to_owned() };
    let partial = api_version.starts_with("meta.k8s.io/");
    if partial && kind == "PartialObjectMetadata" {
        return metadata_only(object, out);
    }
    let item = kind.strip_suffix("List").ok_or_else(unknown)?;
    let ty = find(api_version, item);
    if ty.is_none() && !(partial && item == "PartialObjectMetadata") {
        return Err(unknown());
    }
    let (meta, list) = (object.get("metadata"), object.get("items").and_then(Value::as_array));
    list_meta(meta.unwrap_or(&Value::Null), out)?;
    for object in list.into_iter().flatten() {
        nested(out, 2, |out| match ty {
            Some(ty) => message(ty, object, out),
            None => metadata_only(object, out),
        })?;
    }
    Ok(())
}

/// `{1: ObjectMeta}`: PartialObjectMetadata, and any built-in kind cut down to its metadata.
///
/// # Errors
/// When the metadata is none.
pub fn metadata_only(object: &Value, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let (Some(ty), Some(meta)) = (schema::object_meta(), object.get("metadata")) else { return Ok(()) };
    nested(out, 1, |out| message(ty, meta, out))
}

/// The first field of a list.
///
/// # Errors
/// When the metadata is none of a list.
pub fn list_meta(meta: &Value, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let Some(ty) = schema::find("meta.v1.ListMeta") else { return Ok(()) };
    nested(out, 1, |out| if meta.is_object() { message(ty, meta, out) } else { Ok(()) })
}

/// Encodes the JSON text of an object as its type's message, without an envelope: an item of a list.
///
/// # Errors
/// For JSON that is not of the type.
pub fn message_of_json(ty: &'static Type, json: &[u8]) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::with_capacity(json.len());
    message(ty, &mut serde_json::Deserializer::from_slice(json), &mut out)?;
    Ok(out)
}

fn message<'de, D>(ty: &'static Type, source: D, out: &mut Vec<u8>) -> Result<(), EncodeError>
where
    D: Deserializer<'de, Error = serde_json::Error>,
{
    let Some(message) = table::find(ty.name) else {
        return Err(EncodeError::UnknownKind { api_version: String::new(), kind: ty.name.to_owned() });
    };
    Ok(source.deserialize_any(Struct { message, ty, out })?)
}

/// The envelope of an object's message.
pub fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut out = envelope_head(api_version, kind, raw.len());
    out.extend_from_slice(raw);
    put_bytes(&mut out, 3, b"");
    put_bytes(&mut out, 4, b"");
    out
}

/// What precedes `len` bytes of a message in its envelope. The fields that may follow them are optional.
pub fn envelope_head(api_version: &str, kind: &str, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + api_version.len() + kind.len() + 24);
    out.extend_from_slice(MAGIC);
    nested(&mut out, 1, |out| {
        put_bytes(out, 1, api_version.as_bytes());
        put_bytes(out, 2, kind.as_bytes());
    });
    super::wire::put_key(&mut out, 2, 2);
    super::wire::put_varint(&mut out, len as u64);
    out
}

/// The key and length that precede an item of a list.
pub fn item_head(len: usize, out: &mut Vec<u8>) {
    super::wire::put_key(out, 2, 2);
    super::wire::put_varint(out, len as u64);
}

/// A watch event as a frame of a stream: four bytes of length (big endian), then `{1: type, 2: {1: object}}` with the
/// object in its envelope.
pub fn watch_frame(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(object.len() + kind.len() + 24);
    out.extend_from_slice(&[0; 4]);
    put_bytes(&mut out, 1, kind.as_bytes());
    nested(&mut out, 2, |out| put_bytes(out, 1, object));
    // Objects are far smaller than 4 GiB.
    let len = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&len.to_be_bytes());
    out
}

/// Writes the fields of an object.
struct Struct<'o> {
    message: &'static Message,
    ty: &'static Type,
    out: &'o mut Vec<u8>,
}

/// Fields of inlined messages: the numbers of the messages that they are in, and their bytes.
type Inlined = Vec<(&'static [u32], Vec<u8>)>;

impl<'de> Visitor<'de> for Struct<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object of type {}", self.ty.go_name())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { message, ty, out } = self;
        let mut inlined: Inlined = Vec::new();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            let (Some(place), Some(field)) = (message.by_name.get(&*key), ty.field(&key)) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let target = if place.path.is_empty() {
                &mut *out
            } else {
                let path = place.path.as_slice();
                let at = inlined.iter().position(|(p, _)| *p == path).unwrap_or(inlined.len());
                if at == inlined.len() {
                    inlined.push((path, Vec::new()));
                }
                &mut inlined[at].1
            };
            map.next_value_seed(Field { ty: field.ty, mark: place.mark, number: place.number, out: target })?;
        }
        inlined.sort_unstable_by_key(|(path, _)| *path);
        put_inlined(&inlined, 0, out);
        Ok(())
    }
}

/// Wraps what was put aside, sorted by path, in the messages that it is in.
fn put_inlined(parts: &[(&'static [u32], Vec<u8>)], depth: usize, out: &mut Vec<u8>) {
    for group in parts.chunk_by(|(a, _), (b, _)| a.get(depth) == b.get(depth)) {
        let Some(number) = group.first().and_then(|(path, _)| path.get(depth)) else { continue };
        nested(out, *number, |out| {
            let here = group.iter().take_while(|(path, _)| path.len() == depth + 1).count();
            group[..here].iter().for_each(|(_, bytes)| out.extend_from_slice(bytes));
            put_inlined(&group[here..], depth + 1, out);
        });
    }
}

/// Writes a field with its key, once for each item of a list or map; an absent one (null) not at all.
struct Field<'o> {
    ty: Ty,
    mark: Mark,
    number: u32,
    out: &'o mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<(), D::Error> {
        let free = matches!(self.ty.shape(), Shape::Scalar(Base::Raw | Base::Any));
        if free && matches!(self.mark, Mark::None | Mark::Json) {
            let raw: Box<RawValue> = de::Deserialize::deserialize(source)?;
            if raw.get() != "null" {
                nested(self.out, self.number, |out| put_bytes(out, 1, raw.get().as_bytes()));
            }
            return Ok(());
        }
        source.deserialize_any(self)
    }
}

/// An item of a list of free values: null is a value there.
struct FreeItem<'o>(u32, &'o mut Vec<u8>);

impl<'de> DeserializeSeed<'de> for FreeItem<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<(), D::Error> {
        let raw: Box<RawValue> = de::Deserialize::deserialize(source)?;
        nested(self.1, self.0, |out| {
            if raw.get() != "null" {
                put_bytes(out, 1, raw.get().as_bytes());
            }
        });
        Ok(())
    }
}

impl Field<'_> {
    fn base(&self) -> Option<Base> {
        match self.ty.shape() {
            Shape::Scalar(base) => Some(base),
            _ => None,
        }
    }

    fn put_time<E: de::Error>(self, text: &str) -> Result<(), E> {
        let at = time::parse(text).ok_or_else(|| E::custom(format!("{text:?} is no time")))?;
        nested(self.out, self.number, |out| {
            put_varint_field(out, 1, at.as_second().cast_unsigned());
            put_varint_field(out, 2, i64::from(at.subsec_nanosecond()).cast_unsigned());
        });
        Ok(())
    }
}

impl<'de> Visitor<'de> for Field<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.ty.go_name())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: de::Error>(self, v: bool) -> Result<(), E> {
        match (self.mark, self.base()) {
            (Mark::SchemaOrBool, _) => {
                nested(self.out, self.number, |out| put_varint_field(out, 1, u64::from(v)));
            }
            (Mark::None, Some(Base::Bool)) => put_varint_field(self.out, self.number, u64::from(v)),
            _ => return Err(E::invalid_type(de::Unexpected::Bool(v), &self)),
        }
        Ok(())
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<(), E> {
        match self.base() {
            // Negative numbers are ten bytes of two's complement.
            Some(Base::Int32 | Base::Int64) => put_varint_field(self.out, self.number, v.cast_unsigned()),
            #[allow(clippy::cast_precision_loss)]
            Some(Base::Number) => put_fixed64(self.out, self.number, (v as f64).to_bits()),
            Some(Base::IntOrString) => nested(self.out, self.number, |out| {
                put_varint_field(out, 1, 0);
                put_varint_field(out, 2, v.cast_unsigned());
                put_bytes(out, 3, b"");
            }),
            Some(Base::Quantity) => {
                nested(self.out, self.number, |out| put_bytes(out, 1, v.to_string().as_bytes()));
            }
            _ => return Err(E::invalid_type(de::Unexpected::Signed(v), &self)),
        }
        Ok(())
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<(), E> {
        match i64::try_from(v) {
            Ok(v) => self.visit_i64(v),
            #[allow(clippy::cast_precision_loss)]
            Err(_) => self.visit_f64(v as f64),
        }
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<(), E> {
        match self.base() {
            Some(Base::Number) => put_fixed64(self.out, self.number, v.to_bits()),
            Some(Base::Quantity) => {
                nested(self.out, self.number, |out| put_bytes(out, 1, v.to_string().as_bytes()));
            }
            _ => return Err(E::invalid_type(de::Unexpected::Float(v), &self)),
        }
        Ok(())
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<(), E> {
        match self.base() {
            Some(Base::String) if self.mark == Mark::Duration => {
                let nanos =
                    time::parse_go_duration(v).ok_or_else(|| E::custom(format!("{v:?} is no duration")))?;
                nested(self.out, self.number, |out| put_varint_field(out, 1, nanos.cast_unsigned()));
            }
            Some(Base::String) => put_bytes(self.out, self.number, v.as_bytes()),
            Some(Base::Bytes) => {
                let bytes = STANDARD.decode(v).map_err(|_| E::custom("bytes are no base64"))?;
                put_bytes(self.out, self.number, &bytes);
            }
            Some(Base::Time | Base::MicroTime) => return self.put_time(v),
            Some(Base::Quantity) => nested(self.out, self.number, |out| put_bytes(out, 1, v.as_bytes())),
            Some(Base::IntOrString) => nested(self.out, self.number, |out| {
                put_varint_field(out, 1, 1);
                put_varint_field(out, 2, 0);
                put_bytes(out, 3, v.as_bytes());
            }),
            _ => return Err(E::invalid_type(de::Unexpected::Str(v), &self)),
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self { ty, mark, number, out } = self;
        match (mark, ty.shape()) {
            (Mark::None, Shape::List(inner)) => {
                while seq.next_element_seed(Field { ty: inner, mark, number, out: &mut *out })?.is_some() {}
            }
            (Mark::Json, Shape::List(_)) => {
                while seq.next_element_seed(FreeItem(number, &mut *out))?.is_some() {}
            }
            (Mark::Strings, Shape::List(inner)) => nested(out, number, |out| {
                let mut item = || {
                    seq.next_element_seed(Field { ty: inner, mark: Mark::None, number: 1, out: &mut *out })
                };
                while item()?.is_some() {}
                Ok(())
            })?,
            // A union of one schema or several.
            (Mark::SchemaOrArray, _) => nested(out, number, |out| {
                while seq.next_element_seed(Schema(2, &mut *out))?.is_some() {}
                Ok(())
            })?,
            (Mark::SchemaOrStrings, _) => nested(out, number, |out| {
                while let Some(name) = seq.next_element::<Cow<'de, str>>()? {
                    put_bytes(out, 2, name.as_bytes());
                }
                Ok(())
            })?,
            _ => return Err(de::Error::invalid_type(de::Unexpected::Seq, &ty.go_name().as_str())),
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { ty, mark, number, out } = self;
        match (mark, ty.shape()) {
            (_, Shape::Map(inner)) => {
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    nested(out, number, |out| {
                        put_bytes(out, 1, key.as_bytes());
                        map.next_value_seed(Field { ty: inner, mark, number: 2, out })
                    })?;
                }
                Ok(())
            }
            (Mark::None, Shape::Struct(inner)) => {
                let message =
                    table::find(inner.name).ok_or_else(|| de::Error::custom("a type has no message"))?;
                nested(out, number, |out| Struct { message, ty: inner, out }.visit_map(map))
            }
            (Mark::SchemaOrArray | Mark::SchemaOrStrings, _) => {
                nested(out, number, |out| nested(out, 1, |out| schema_fields(map, out)))
            }
            (Mark::SchemaOrBool, _) => nested(out, number, |out| {
                put_varint_field(out, 1, 1);
                nested(out, 2, |out| schema_fields(map, out))
            }),
            _ => Err(de::Error::invalid_type(de::Unexpected::Map, &ty.go_name().as_str())),
        }
    }
}

fn schema_fields<'de, A: MapAccess<'de>>(map: A, out: &mut Vec<u8>) -> Result<(), A::Error> {
    let ty = schema::find("apiextensions.v1.JSONSchemaProps");
    let (Some(ty), Some(message)) = (ty, ty.and_then(|ty| table::find(ty.name))) else {
        return Err(de::Error::custom("schemas have no message"));
    };
    Struct { message, ty, out }.visit_map(map)
}

/// A schema as a field of that number.
struct Schema<'o>(u32, &'o mut Vec<u8>);

impl<'de> DeserializeSeed<'de> for Schema<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<(), D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Schema<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a schema")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        nested(self.1, self.0, |out| schema_fields(map, out))
    }
}
