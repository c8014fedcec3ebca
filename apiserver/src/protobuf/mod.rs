//! Kubernetes' protobuf encoding of request bodies (`application/vnd.kubernetes.protobuf`), read into JSON.
//!
//! kubectl and client-go send built-in kinds this way and take JSON as an answer. A body is four bytes of magic and
//! an envelope (`runtime.Unknown`) that names the kind and carries its message. One generic reader walks the message
//! by the table of fields; there is no code per kind.

mod reader;
mod table;
mod wire;

use serde_json::{Map, Value};

use reader::Reader;
use table::messages;
use wire::Wire;

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";

/// Why a body could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// Without the magic it is something else.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoMagic,
    /// The bytes end within a field.
    #[error("unexpected EOF")]
    Truncated,
    /// A number that no field can have, a wire type that does not exist or does not fit.
    #[error("proto: illegal field {0}")]
    Field(u64),
    /// Bytes that should be text, or JSON, and are not.
    #[error("proto: invalid value of {0}")]
    Value(String),
    /// Messages inside messages without end.
    #[error("proto: nested too deeply")]
    TooDeep,
    /// The body is compressed or otherwise wrapped.
    #[error("content encoding {0:?} is not supported")]
    Encoding(String),
    /// A kind that has no protobuf form here.
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind {
        /// As sent.
        api_version: String,
        /// As sent.
        kind: String,
    },
}

/// Whether a Content-Type header speaks of this encoding.
pub fn is_protobuf(content_type: Option<&str>) -> bool {
    content_type
        .is_some_and(|c| c.split(';').next().is_some_and(|m| m.trim().eq_ignore_ascii_case(MEDIA_TYPE)))
}

#[derive(Default)]
struct Envelope<'a> {
    api_version: String,
    kind: String,
    raw: &'a [u8],
    encoding: String,
    content_type: String,
}

fn text(bytes: &[u8], what: &str) -> Result<String, ProtobufError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| ProtobufError::Value(what.to_owned()))
}

fn envelope(body: &[u8]) -> Result<Envelope<'_>, ProtobufError> {
    let mut rest = body.strip_prefix(MAGIC).ok_or(ProtobufError::NoMagic)?;
    let mut envelope = Envelope::default();
    while !rest.is_empty() {
        match wire::field(&mut rest)? {
            (1, Wire::Bytes(mut meta)) => {
                while !meta.is_empty() {
                    match wire::field(&mut meta)? {
                        (1, Wire::Bytes(b)) => envelope.api_version = text(b, "apiVersion")?,
                        (2, Wire::Bytes(b)) => envelope.kind = text(b, "kind")?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(b)) => envelope.raw = b,
            (3, Wire::Bytes(b)) => envelope.encoding = text(b, "contentEncoding")?,
            (4, Wire::Bytes(b)) => envelope.content_type = text(b, "contentType")?,
            _ => {}
        }
    }
    Ok(envelope)
}

/// The package and message of a kind.
fn message_name(api_version: &str, kind: &str) -> String {
    if matches!(kind, "DeleteOptions" | "CreateOptions" | "UpdateOptions" | "PatchOptions") {
        return format!("meta.v1.{kind}");
    }
    let (group, version) = hawser_api::object::split_api_version(api_version);
    let package = match group {
        "" => "core",
        group => group.split('.').next().unwrap_or(group),
    };
    format!("{package}.{version}.{kind}")
}

/// Reads a body into the JSON object that it stands for.
///
/// # Errors
/// When the bytes are malformed or the kind has no protobuf form.
pub fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    let envelope = envelope(body)?;
    if !envelope.encoding.is_empty() {
        return Err(ProtobufError::Encoding(envelope.encoding));
    }
    let mut object = if envelope.content_type == "application/json" {
        match serde_json::from_slice(envelope.raw) {
            Ok(Value::Object(object)) => object,
            _ => return Err(ProtobufError::Value("raw".to_owned())),
        }
    } else {
        let unknown = || ProtobufError::UnknownKind {
            api_version: envelope.api_version.clone(),
            kind: envelope.kind.clone(),
        };
        let table = messages();
        let message = table.find(&message_name(&envelope.api_version, &envelope.kind)).ok_or_else(unknown)?;
        let mut object = Map::new();
        Reader { table }.message(message, envelope.raw, &mut object, 0)?;
        object
    };
    for (key, value) in [("apiVersion", envelope.api_version), ("kind", envelope.kind)] {
        if !value.is_empty() {
            object.insert(key.to_owned(), Value::String(value));
        }
    }
    Ok(Value::Object(object))
}

#[cfg(test)]
mod tests;
