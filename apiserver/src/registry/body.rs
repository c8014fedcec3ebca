//! From a body's bytes to an object of the expected kind.

use bytes::Bytes;
use hawser_api::decode::{self, Dropped, Source};
use hawser_api::kinds::Kind;
use hawser_api::object::{ObjectExt as _, split_api_version};
use hawser_api::protobuf;
use hawser_api::schema;
use hawser_api::status::{FieldError, Status};
use hawser_api::text::{json_type, quote};
use http::header::CONTENT_TYPE;
use serde_json::{Map, Value};

use super::Call;
use crate::negotiate::{self, BodyEncoding};
use crate::options::FieldValidation;

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
                let yaml = decode::parse_yaml(bytes).map_err(|e| Status::bad_request(e.0))?;
                dropped.lines = yaml.duplicates;
                Ok(yaml.value)
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
        let mut object = self
            .parse(bytes, &api_version, name, &mut dropped)
            .and_then(|object| has_type(&object).map(|()| object))
            .and_then(|object| names_kind(&object, bytes).map(|()| object))
            .map_err(|e| unrecognized(name, bytes, e))?;
        if object.kind() != name {
            let error = FieldError::invalid("kind", object.kind(), format!("must be {name}"));
            return Err(Status::invalid(&kind.group, object.kind(), object.name(), &[error]));
        }
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
        let mut object = self
            .parse(bytes, api_version, kind, &mut dropped)
            // Nothing is an object that says nothing.
            .map(|object| if object.is_null() { Value::Object(Map::new()) } else { object })
            .and_then(|object| has_type(&object).map(|()| object))
            .map_err(|e| unrecognized(kind, bytes, e))?;
        check_type(&object, api_version, kind)?;
        crate::managed::keep_reset(&mut object);
        if let Some(ty) = schema::find_kind(api_version, kind) {
            decode::normalize(ty, &mut object, &mut dropped).map_err(|mut e| {
                decode::number_as_sent(bytes, &dropped, &mut e);
                unreadable(api_version, kind, &e.0)
            })?;
        }
        object.set_api_version_kind(api_version, kind);
        *self.empties.lock() = std::mem::take(&mut dropped.empties);
        decode::in_document_order(bytes, &mut dropped);
        self.report(&dropped, validation).map_err(|e| strictly(api_version, kind, e))?;
        Ok(object)
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
                let lines =
                    Some(&dropped.lines).filter(|l| !l.is_empty()).map(|l| decode::duplicates_error(l));
                let all: Vec<&str> =
                    lines.as_deref().into_iter().chain(dropped.messages.iter().map(String::as_str)).collect();
                Err(Status::bad_request(format!("strict decoding error: {}", all.join(", "))))
            }
        }
    }
}

/// Checks that a value is an object whose type can be told.
///
/// # Errors
/// 400.
fn has_type(object: &Value) -> Result<(), Status> {
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
    if object.api_version().matches('/').count() > 1 {
        let found = object.api_version();
        return Err(Status::bad_request(format!("unexpected GroupVersion string: {found}")));
    }
    Ok(())
}

/// Checks that a value says of which kind it is.
///
/// # Errors
/// 400.
fn names_kind(object: &Value, bytes: &[u8]) -> Result<(), Status> {
    if object.kind().is_empty() {
        let shown = String::from_utf8_lossy(bytes);
        return Err(Status::bad_request(format!("Object 'Kind' is missing in '{shown}'")));
    }
    Ok(())
}

/// Most bytes of a body that an error shows.
const SHOWN: usize = 30;

/// The refusal of a body whose type cannot be told, with the beginning of what was sent.
fn unrecognized(kind: &str, bytes: &[u8], status: Status) -> Status {
    if status.code != 400 {
        return status;
    }
    let begin = &bytes[..bytes.len().min(SHOWN)];
    let more = if bytes.len() > SHOWN { " ..." } else { "" };
    let shown = match bytes.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(begin).into_owned() + more,
        Some(_) => hex::encode(begin) + more,
    };
    let why = status.message;
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): {why} ({shown})"
    ))
}

/// Checks that a value is an object of a kind, or does not say of which.
///
/// # Errors
/// 400.
fn check_type(object: &Value, api_version: &str, kind: &str) -> Result<(), Status> {
    // An empty group before the slash is the core group.
    let sent_version = object.api_version();
    let sent_version = sent_version.strip_prefix('/').unwrap_or(sent_version);
    let sent_version = Some(sent_version).filter(|v| !v.is_empty()).unwrap_or(api_version);
    let sent_kind = Some(object.kind()).filter(|k| !k.is_empty()).unwrap_or(kind);
    if sent_kind == kind && sent_version == api_version {
        return Ok(());
    }
    let ((sent_group, sent_name), (group, _)) =
        (split_api_version(sent_version), split_api_version(api_version));
    let item = sent_kind.strip_suffix("List").unwrap_or(sent_kind);
    let known = |kind: &str| schema::find_kind(sent_version, kind).is_some();
    // Objects of kinds defined at run time are of any version until they are looked at.
    let defined = schema::find_kind(api_version, kind).is_none();
    if sent_kind == kind && (defined || sent_group == group && known(kind)) {
        return Err(Status::bad_request(format!(
            "the API version in the data ({sent_version}) does not match the expected API version ({api_version})"
        )));
    }
    let why = if known(sent_kind) || known(item) {
        // Go's packages: those of a version, and those that hold all versions of a group.
        let package = match group.split('.').next().unwrap_or_default() {
            "" => "core",
            first => first,
        };
        format!("converting ({sent_name}.{sent_kind}) to ({package}.{kind}): unknown conversion")
    } else {
        format!(
            "no kind {} is registered for version {} in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
            quote(sent_kind),
            quote(sent_version)
        )
    };
    let version = quote(sent_name);
    Err(Status::bad_request(format!("{sent_kind} in version {version} cannot be handled as a {kind}: {why}")))
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
    canonical_from(Source::Json, kind, object, dropped)
}

/// [`canonical`] with the errors of a source.
///
/// # Errors
/// What is of the wrong type.
pub(crate) fn canonical_from(
    source: Source,
    kind: &Kind,
    object: &mut Value,
    dropped: &mut Dropped,
) -> Result<(), String> {
    crate::managed::keep_reset(object);
    if let Some(custom) = &kind.custom {
        let fields = custom.admit(object).map_err(|e| match &e.value {
            // Its own metadata is decoded, that of what it embeds is validated.
            Some(_) if e.field == "metadata" => e.detail.clone(),
            _ => e.to_string(),
        })?;
        dropped.messages.extend(fields.iter().map(|f| format!("unknown field {}", quote(f))));
    } else if let Some(ty) = schema::of(kind) {
        decode::normalize_from(source, ty, object, dropped).map_err(|e| e.0)?;
    }
    Ok(())
}
