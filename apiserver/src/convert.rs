//! Between the version that is stored and the one that is served; the rules are the api crate's.

use hawser_api::decode::{self, Dropped};
use hawser_api::object::ObjectExt as _;
use hawser_api::schema;
use serde_json::Value;

use crate::kinds::Row;

/// Whether the versions differ in kind and apiVersion only, so that stored bytes can be sent with another head.
pub fn only_head(row: &Row) -> bool {
    if row.is_stored_version() {
        return true;
    }
    if row.kind.custom.is_some() {
        // What a webhook converts has been converted before it comes here.
        return crate::crd::convert::webhook(&row.kind).is_some();
    }
    !matches!(
        (row.kind.group.as_str(), row.kind.plural.as_str()),
        ("autoscaling", "horizontalpodautoscalers")
            | ("events.k8s.io" | "", "events")
            | ("resource.k8s.io", _)
    )
}

/// Turns a stored object into the row's version.
pub fn from_stored(row: &Row, mut object: Value) -> Value {
    if row.is_stored_version() {
        return object;
    }
    if only_head(row) {
        object.set_api_version_kind(&row.kind.api_version(), &row.kind.kind);
        return object;
    }
    if let Some(custom) = &row.kind.custom {
        object.set_api_version_kind(&row.kind.api_version(), &row.kind.kind);
        custom.refresh(&mut object);
        return object;
    }
    hawser_api::convert::convert(row.stored_kind(), &row.kind, &mut object);
    fill(&row.kind, &mut object);
    object
}

/// Turns an object of the row's version into the stored one.
pub fn to_stored(row: &Row, mut object: Value) -> Value {
    let stored = row.stored_kind();
    if row.is_stored_version() {
        return object;
    }
    if only_head(row) {
        object.set_api_version_kind(&stored.api_version(), &stored.kind);
        return object;
    }
    if let Some(custom) = &stored.custom {
        object.set_api_version_kind(&stored.api_version(), &stored.kind);
        custom.refresh(&mut object);
        return object;
    }
    hawser_api::convert::convert(&row.kind, stored, &mut object);
    fill(stored, &mut object);
    object
}

/// Turns an object of the row's version into that of [`Row::judging_kind`].
pub fn to_judged(row: &Row, object: Value) -> Value {
    if row.kind.custom.is_some() { object } else { to_stored(row, object) }
}

/// Turns an object of the version of [`Row::judging_kind`] into the stored one.
pub fn judged_to_stored(row: &Row, object: Value) -> Value {
    if row.kind.custom.is_some() { to_stored(row, object) } else { object }
}

/// Turns an object of the version of [`Row::judging_kind`] into the row's.
pub fn judged_to_row(row: &Row, object: Value) -> Value {
    if row.kind.custom.is_some() { object } else { from_stored(row, object) }
}

/// Adds the fields that a version always writes. What was valid in one version decodes in the other.
pub fn fill(kind: &hawser_api::kinds::Kind, object: &mut Value) {
    if let Some(ty) = schema::of(kind)
        && let Err(e) = decode::normalize(ty, object, &mut Dropped::default())
    {
        tracing::warn!(error = %e, kind = kind.kind, "a converted object is not of its type");
    }
}
