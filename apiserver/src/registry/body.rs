//! From a body's bytes to an object of the expected kind.

use bytes::Bytes;
use hawser_api::decode::{self, Dropped};
use hawser_api::kinds::Kind;
use hawser_api::object::ObjectExt as _;
use hawser_api::protobuf;
use hawser_api::schema;
use hawser_api::status::Status;
use hawser_api::text::{json_type, quote};
use http::header::CONTENT_TYPE;
use serde::Deserialize as _;
use serde_json::Value;

use super::Call;
use crate::negotiate::{self, BodyEncoding};
use crate::options::FieldValidation;
use crate::yaml;

/// The type of the bytes that must be an object.
const TYPE_META: &str = "struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; \
                         Kind string \"json:\\\"kind,omitempty\\\"\" }";

impl Call<'_> {
    /// Parses a body by its Content-Type.
    ///
    /// # Errors
    /// 415 for other encodings, 400 for what cannot be parsed.
    ///
    /// `api_version` and `kind` are for a protobuf body that does not name its own.
    pub(crate) fn parse(
        &self,
        bytes: &Bytes,
        api_version: &str,
        kind: &str,
        dropped: &mut Dropped,
    ) -> Result<Value, Status> {
        match negotiate::content_type(self.header(CONTENT_TYPE))? {
            BodyEncoding::Json => decode::parse_json(bytes, dropped).map_err(|e| {
                Status::bad_request(format!("couldn't get version/kind; json parse error: {e}"))
            }),
            BodyEncoding::Protobuf => {
                protobuf::decode(bytes, (api_version, kind)).map_err(|e| Status::bad_request(e.to_string()))
            }
            BodyEncoding::Yaml => {
                // Of several documents the first one counts.
                let Some(document) = serde_yaml_ng::Deserializer::from_slice(bytes).next() else {
                    return Ok(Value::Null);
                };
                let value = Value::deserialize(document);
                let value = value.map_err(|e| Status::bad_request(format!("yaml: {e}")))?;
                dropped.lines = yaml::duplicates(bytes);
                Ok(value)
            }
        }
    }

    /// Decodes an object of a kind: known fields of the right types.
    ///
    /// # Errors
    /// 400 for another kind, wrong types, and in strict mode for unknown or duplicate fields.
    pub(crate) fn decode(
        &self,
        bytes: &Bytes,
        kind: &Kind,
        validation: FieldValidation,
    ) -> Result<Value, Status> {
        let (api_version, name) = (kind.api_version(), kind.kind.as_str());
        if kind.custom.is_none() {
            return self.decode_as(bytes, &api_version, name, validation);
        }
        let mut dropped = Dropped::default();
        let mut object = self.parse(bytes, &api_version, name, &mut dropped)?;
        if let Err(error) = check_type(&object, &api_version, name) {
            of_unknown_version(kind, &object, &mut dropped);
            self.report(&dropped, validation).map_err(|e| strictly(&api_version, name, e))?;
            return Err(error);
        }
        canonical(kind, &mut object, &mut dropped).map_err(|e| unreadable(&api_version, name, &e))?;
        object.set_api_version_kind(&api_version, name);
        self.report(&dropped, validation).map_err(|e| strictly(&api_version, name, e))?;
        Ok(object)
    }

    /// Decodes an object of a kind that is named.
    ///
    /// # Errors
    /// Those of [`Call::decode`].
    pub(crate) fn decode_as(
        &self,
        bytes: &Bytes,
        api_version: &str,
        kind: &str,
        validation: FieldValidation,
    ) -> Result<Value, Status> {
        let mut dropped = Dropped::default();
        let mut object = self.parse(bytes, api_version, kind, &mut dropped)?;
        self.conform(&mut object, api_version, kind, &mut dropped)?;
        decode::in_document_order(bytes, &mut dropped);
        self.report(&dropped, validation).map_err(|e| strictly(api_version, kind, e))?;
        Ok(object)
    }

    /// Checks that a value is of a kind, and makes it canonical.
    pub(crate) fn conform(
        &self,
        object: &mut Value,
        api_version: &str,
        kind: &str,
        dropped: &mut Dropped,
    ) -> Result<(), Status> {
        check_type(object, api_version, kind)?;
        crate::managed::keep_reset(object);
        if let Some(ty) = schema::find_kind(api_version, kind) {
            decode::normalize(ty, object, dropped).map_err(|e| unreadable(api_version, kind, &e.0))?;
        }
        object.set_api_version_kind(api_version, kind);
        Ok(())
    }

    /// Refuses, or warns about, what decoding dropped.
    pub(crate) fn report(&self, dropped: &Dropped, validation: FieldValidation) -> Result<(), Status> {
        if dropped.messages.is_empty() && dropped.lines.is_empty() {
            return Ok(());
        }
        match validation {
            FieldValidation::Ignore => Ok(()),
            FieldValidation::Warn => {
                dropped.lines.iter().chain(&dropped.messages).for_each(|m| self.warn(m.clone()));
                Ok(())
            }
            FieldValidation::Strict => {
                // What YAML has twice is one error.
                let lines = Some(&dropped.lines).filter(|l| !l.is_empty()).map(|l| yaml::errors(l));
                let all: Vec<&str> =
                    lines.as_deref().into_iter().chain(dropped.messages.iter().map(String::as_str)).collect();
                Err(Status::bad_request(format!("strict decoding error: {}", all.join(", "))))
            }
        }
    }
}

/// Checks that a value is an object of a kind, or does not say of which.
///
/// # Errors
/// 400.
fn check_type(object: &Value, api_version: &str, kind: &str) -> Result<(), Status> {
    if !object.is_object() {
        let found = json_type(object);
        return Err(Status::bad_request(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {found} into Go value of type \
             {TYPE_META}"
        )));
    }
    for field in ["apiVersion", "kind"] {
        if let Some(value) = object.get(field)
            && !value.is_string()
            && !value.is_null()
        {
            return Err(Status::bad_request(format!(
                "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go struct field \
                 .{field} of type string",
                json_type(value)
            )));
        }
    }
    let sent_version = Some(object.api_version()).filter(|v| !v.is_empty()).unwrap_or(api_version);
    let sent_kind = Some(object.kind()).filter(|k| !k.is_empty()).unwrap_or(kind);
    if sent_kind != kind {
        return Err(Status::bad_request(format!(
            "{sent_kind} in version {} cannot be handled as a {kind}: the kind does not match the resource",
            quote(sent_version.rsplit('/').next().unwrap_or(sent_version))
        )));
    }
    if sent_version != api_version {
        return Err(Status::bad_request(format!(
            "the API version in the data ({sent_version}) does not match the expected API version ({api_version})"
        )));
    }
    Ok(())
}

/// Of a version that a definition does not have no field is known.
fn of_unknown_version(kind: &Kind, object: &Value, dropped: &mut Dropped) {
    let (group, version) = hawser_api::object::split_api_version(object.api_version());
    let known = kind.custom.as_ref().is_none_or(|c| c.has_version(version));
    if known || group != kind.group || object.kind() != kind.kind {
        return;
    }
    let fields = object.as_object().into_iter().flat_map(|o| o.keys());
    let unknown = fields.filter(|f| !["apiVersion", "kind", "metadata"].contains(&f.as_str()));
    dropped.messages.extend(unknown.map(|f| format!("unknown field {}", quote(f))));
}

/// 400 for a body that cannot be read as a kind.
fn unreadable(api_version: &str, kind: &str, why: &str) -> Status {
    let version = quote(api_version.rsplit('/').next().unwrap_or(api_version));
    Status::bad_request(format!("{kind} in version {version} cannot be handled as a {kind}: {why}"))
}

/// The refusal of what a body has too much of, with the kind in front.
fn strictly(api_version: &str, kind: &str, status: Status) -> Status {
    unreadable(api_version, kind, &status.message)
}

/// Makes a value a well-typed object of a row, without what the row does not know.
///
/// # Errors
/// What is of the wrong type.
pub(crate) fn canonical(kind: &Kind, object: &mut Value, dropped: &mut Dropped) -> Result<(), String> {
    crate::managed::keep_reset(object);
    if let Some(custom) = &kind.custom {
        let fields = custom.admit(object).map_err(|e| e.to_string())?;
        dropped.messages.extend(fields.iter().map(|f| format!("unknown field {}", quote(f))));
    } else if let Some(ty) = schema::of(kind) {
        decode::normalize(ty, object, dropped).map_err(|e| e.0)?;
    }
    Ok(())
}
