//! Objects as Tables: the api crate knows columns and cells, this adds the envelope that was negotiated.

use hawser_api::kinds::Kind;
use hawser_api::object::ObjectExt as _;
use hawser_api::status::Status;
use hawser_api::table::{self, IncludeObject};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::negotiate::Transform;

/// How much of each object a Table carries.
pub type Include = IncludeObject;

/// Reads `includeObject`, which only Tables look at.
///
/// # Errors
/// 400 for what it is not.
pub fn include(text: Option<&str>, transform: Transform) -> Result<Include, Status> {
    match transform {
        Transform::Table(_) => IncludeObject::parse(text.unwrap_or_default()),
        Transform::None | Transform::Partial(_) => Ok(IncludeObject::default()),
    }
}

/// The Table of one object.
pub fn of_object(kind: &Kind, object: &Value, include: Include, beta: bool) -> Value {
    let metadata = json!({"resourceVersion": object.resource_version()});
    versioned(table::render(kind, [object], Timestamp::now(), include, metadata, true), beta)
}

/// The Table of a list.
pub fn of_list(
    kind: &Kind,
    objects: &[Value],
    metadata: Map<String, Value>,
    include: Include,
    beta: bool,
) -> Value {
    let metadata = Value::Object(metadata);
    versioned(table::render(kind, objects, Timestamp::now(), include, metadata, true), beta)
}

fn versioned(mut table: Value, beta: bool) -> Value {
    if beta {
        let rows = table.get_mut("rows").and_then(Value::as_array_mut).into_iter().flatten();
        for object in rows.filter_map(|row| row.get_mut("object")) {
            if object.kind() == "PartialObjectMetadata" {
                object["apiVersion"] = json!("meta.k8s.io/v1beta1");
            }
        }
        table["apiVersion"] = json!("meta.k8s.io/v1beta1");
    }
    table
}
