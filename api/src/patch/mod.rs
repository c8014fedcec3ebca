//! The patch types but apply: JSON patch, merge patch, strategic merge patch.
//!
//! Each takes the document to change and answers the changed one; decoding, defaulting and validating the
//! result is the caller's.

mod json;
mod shown;
mod strategic;

pub use json::{JsonPatch, MAX_OPERATIONS};
pub use shown::{strategic_undecodable, undecodable};
pub use strategic::strategic_merge;

use crate::status::{Status, StatusDetails};
use crate::text::json_type;
use serde_json::Value;

/// Why a patch was not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch is not of the form that its type demands.
    #[error("error decoding patch: {0}")]
    Malformed(String),
    /// A JSON patch has too many operations.
    #[error(
        "Request entity too large: The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {0}"
    )]
    TooManyOperations(usize),
    /// The patch cannot be applied to this document: a path is missing.
    #[error("the server rejected our request due to an error in our request")]
    Unappliable,
    /// A `test` of a JSON patch failed.
    #[error("the server rejected our request due to an error in our request")]
    TestFailed,
    /// A merge patch is null, or a strategic one directs what cannot be done.
    #[error("{0}")]
    Bad(&'static str),
    /// A strategic merge patch is inconsistent.
    #[error("{0}")]
    Strategic(String),
}

impl From<PatchError> for Status {
    fn from(e: PatchError) -> Status {
        let text = e.to_string();
        match e {
            PatchError::Malformed(_) | PatchError::Bad(_) => Status::bad_request(text),
            PatchError::TooManyOperations(_) => Status::failure(413, "RequestEntityTooLarge", text),
            PatchError::Unappliable | PatchError::TestFailed => {
                Status::failure(422, "Invalid", text).with_details(StatusDetails::default())
            }
            PatchError::Strategic(_) => Status::plain_error(text),
        }
    }
}

/// Parses the body of a merge patch, which is an object.
///
/// # Errors
/// [`PatchError::Malformed`] for anything else, [`PatchError::Bad`] for null.
pub fn parse_merge(body: &[u8], dropped: &mut crate::decode::Dropped) -> Result<Value, PatchError> {
    let patch = parse_object(body, dropped)?;
    if patch.is_null() { Err(PatchError::Bad("Invalid JSON Patch")) } else { Ok(patch) }
}

/// Parses the body of a strategic merge patch: an object or null.
///
/// # Errors
/// [`PatchError::Malformed`] for anything else.
pub fn parse_object(body: &[u8], dropped: &mut crate::decode::Dropped) -> Result<Value, PatchError> {
    let value = crate::decode::parse_json(body, dropped).map_err(|e| PatchError::Malformed(e.0))?;
    if !value.is_object() && !value.is_null() {
        return Err(PatchError::Malformed(format!(
            "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            json_type(&value)
        )));
    }
    Ok(value)
}

/// Applies a merge patch (RFC 7386).
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn merge_follows_the_rfc() {
        for (target, patch, want) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let mut got = target.clone();
            merge(&mut got, &patch);
            assert_eq!(got, want, "{target} + {patch}");
        }
    }

    #[test]
    fn errors_are_statuses() {
        let e = parse_object(b"[]", &mut Default::default()).expect_err("array");
        let s = Status::from(e);
        assert_eq!(
            (s.code, s.message.as_str()),
            (
                400,
                "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}"
            )
        );
        let s = Status::from(PatchError::Unappliable);
        assert_eq!((s.code, s.reason.as_str()), (422, "Invalid"));
    }

    proptest! {
        #[test]
        fn merging_twice_changes_nothing(a in "[a-d]{1,3}", b in "[a-d]{1,3}", n in any::<u8>()) {
            let patch = json!({a.clone(): {b.clone(): n}, b: null});
            let mut once = json!({a: "x"});
            merge(&mut once, &patch);
            let mut twice = once.clone();
            merge(&mut twice, &patch);
            prop_assert_eq!(once, twice);
        }
    }
}
