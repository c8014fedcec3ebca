//! PATCH: JSON patch, merge patch and strategic merge patch. Server-side apply is in [`super::apply`].

use bytes::Bytes;
use hawser_api::decode::{Dropped, Source};
use hawser_api::kinds::Kind;
use hawser_api::object::ObjectExt as _;
use hawser_api::patch::{self, JsonPatch, PatchError, strategic_merge};
use hawser_api::schema;
use hawser_api::status::{Status, StatusDetails};
use hawser_api::text::quote;
use http::header::CONTENT_TYPE;
use serde_json::Value;

use super::body::canonical_from;
use super::create::check_name;
use super::modify::Manner;
use super::{Answer, Call, Registry};
use crate::hooks;
use crate::options::WriteOptions;

const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
/// Server-side apply.
const APPLY: &str = "application/apply-patch+yaml";

/// A parsed patch.
pub(crate) enum Patch {
    /// RFC 6902.
    Json(JsonPatch),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' own.
    Strategic(Value),
}

impl Patch {
    /// Parses a body by its Content-Type. `builtin` says whether strategic merge is possible.
    ///
    /// # Errors
    /// 415 for other types, 400 for what is no patch.
    pub(crate) fn parse(
        content_type: Option<&str>,
        body: &Bytes,
        builtin: bool,
        dropped: &mut Dropped,
    ) -> Result<Self, Status> {
        let media = content_type.unwrap_or("").split(';').next().unwrap_or("").trim();
        match media {
            JSON => Ok(Self::Json(JsonPatch::parse(body, dropped)?)),
            MERGE => Ok(Self::Merge(patch::parse_merge(body, dropped)?)),
            STRATEGIC if builtin => match patch::parse_object(body, dropped) {
                // Of a strategic patch it is not said that it was being decoded.
                Err(PatchError::Malformed(why)) => Err(Status::bad_request(why)),
                parsed => Ok(Self::Strategic(parsed?)),
            },
            _ if !builtin => Err(unsupported_for_custom()),
            _ => Err(unsupported()),
        }
    }

    /// Applies the patch to an object of a type.
    ///
    /// # Errors
    /// 422 or 500, as Kubernetes does.
    pub(crate) fn apply(
        &self,
        ty: Option<&'static schema::Type>,
        target: &Value,
    ) -> Result<Value, PatchError> {
        match (self, ty) {
            (Self::Json(p), _) => p.apply(target),
            (Self::Merge(p), _) | (Self::Strategic(p), None) => {
                let mut out = target.clone();
                patch::merge(&mut out, p);
                Ok(out)
            }
            (Self::Strategic(p), Some(ty)) => strategic_merge(ty, target, p),
        }
    }

    /// What the patched object is decoded from.
    pub(crate) fn source(&self) -> Source {
        match self {
            Self::Strategic(_) => Source::Map,
            Self::Json(_) | Self::Merge(_) => Source::Json,
        }
    }

    /// The refusal of what the patch makes of an object, when that does not decode.
    pub(crate) fn undecodable(
        &self,
        ty: Option<&'static schema::Type>,
        patched: &Value,
        why: &str,
    ) -> Status {
        match self {
            Self::Strategic(patch) => patch::strategic_undecodable(patch, why),
            Self::Json(patch) => patch::undecodable(ty, &patch.touched(), patched, why),
            Self::Merge(patch) => patch::undecodable(ty, patch, patched, why),
        }
    }

    /// Whether a patched object is still of the kind. A strategic patch changes a typed object, whose kind stays whatever
    /// the patch says.
    fn check_type(&self, kind: &Kind, object: &Value) -> Result<(), String> {
        let (sent, version) = (object.kind(), object.api_version());
        let same =
            (sent.is_empty() || sent == kind.kind) && (version.is_empty() || version == kind.api_version());
        if same || matches!(self, Self::Strategic(_)) {
            return Ok(());
        }
        Err(format!(
            "no kind {} is registered for version {} in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
            quote(sent),
            quote(version)
        ))
    }
}

/// Whether a body is for server-side apply.
pub(crate) fn is_apply(content_type: Option<&str>) -> bool {
    content_type.is_some_and(|c| c.split(';').next().is_some_and(|m| m.trim() == APPLY))
}

/// The refusal of a patch of another type, without a list of those that are known, as Kubernetes words it.
fn unsupported() -> Status {
    Status::failure(415, "UnsupportedMediaType", "415: Unsupported Media Type")
        .with_details(StatusDetails::default())
}

/// The refusal for custom resources, which have no strategic merge.
fn unsupported_for_custom() -> Status {
    Status::failure(
        415,
        "UnsupportedMediaType",
        format!(
            "the body of the request was in an unknown format - accepted media types include: {JSON}, {MERGE}, {APPLY}"
        ),
    )
}

impl Registry {
    /// Patches an object, or its part that is a subresource of the row's own kind.
    ///
    /// # Errors
    /// 404, 409, 415, 422, and 400 for what is no patch.
    pub async fn patch(&self, call: &Call<'_>, body: Bytes, subresource: &str) -> Result<Answer, Status> {
        let content_type = call.header(CONTENT_TYPE);
        if is_apply(content_type) {
            return self.apply(call, &body, subresource).await;
        }
        let options = WriteOptions::parse(call.info, "PatchOptions")?;
        let kind = call.row.kind.clone();
        let mut dropped = Dropped::default();
        let patch = match Patch::parse(content_type, &body, kind.builtin, &mut dropped) {
            // What there is to patch is looked for before the patch is looked at.
            Err(refused) if refused.code == 400 => {
                self.current(call, &call.info.name).await?;
                return Err(refused);
            }
            parsed => parsed?,
        };
        let sent = dropped;
        let ty = schema::of(&kind);
        let strategy = hooks::strategy(call.row.stored_kind());
        let manner = Manner {
            subresource,
            options_kind: "PatchOptions",
            unconditional: true,
            trusted: false,
            noted: false,
        };
        let api_version = kind.api_version();
        if strategy.create_on_update
            && subresource.is_empty()
            && matches!(patch, Patch::Merge(_) | Patch::Strategic(_))
        {
            // Patches never create; only server-side apply does.
            self.current(call, &call.info.name).await?;
        }
        self.modify(call, &options, manner, |current| {
            let patched = patch.apply(ty, &current.object)?;
            let mut object = patched.clone();
            let mut dropped = Dropped::default();
            canonical_from(patch.source(), &kind, &mut object, &mut dropped)
                .map_err(|e| patch.undecodable(ty, &patched, &e))?;
            *call.empties.lock() = std::mem::take(&mut dropped.empties);
            if !object.is_object() {
                let why = "the patched value is no object";
                return Err(patch.undecodable(ty, &patched, why));
            }
            dropped.messages.splice(0..0, sent.messages.iter().cloned());
            call.report(&dropped, options.field_validation)
                .map_err(|e| patch.undecodable(ty, &patched, &e.message))?;
            patch.check_type(&kind, &object).map_err(|e| patch.undecodable(ty, &patched, &e))?;
            object.set_api_version_kind(&api_version, &kind.kind);
            hooks::defaults(&kind, &mut object);
            check_name(&mut object, &call.info.name)?;
            self.set_namespace(call, &mut object)?;
            Ok(object)
        })
        .await
    }
}
