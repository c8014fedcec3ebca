//! Validation of `metav1.Condition` lists in a status.

use super::checks::Errors;
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::{FieldError, Path};
use serde_json::Value;

const REASON_MAX: usize = 1024;
const MESSAGE_MAX: usize = 32 * 1024;
const REASON: &str = "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')";

/// Conditions of one list: well-formed, and no two of a type.
pub fn judge(conditions: &[Value], at: Path<'_>, e: &mut Errors) {
    for (i, c) in conditions.iter().enumerate() {
        let at = at.index(i);
        let ty = c.str_at("type");
        if conditions[..i].iter().any(|b| b.str_at("type") == ty) {
            e.duplicate(at.child("type"), ty);
        }
        e.all(at.child("type"), ty, names::qualified_name(ty));
        let status = c.str_at("status");
        if !matches!(status, "True" | "False" | "Unknown") {
            e.unsupported(at.child("status"), status, &["False", "True", "Unknown"]);
        }
        if let Some(n) = c.int_at("observedGeneration").filter(|n| *n < 0) {
            e.invalid(at.child("observedGeneration"), n, "must be greater than or equal to zero");
        }
        if c.str_at("lastTransitionTime").is_empty() {
            e.required(at.child("lastTransitionTime"), "");
        }
        let reason = c.str_at("reason");
        if reason.is_empty() {
            e.required(at.child("reason"), "");
        } else if !is_reason(reason) {
            e.invalid(at.child("reason"), reason, REASON);
        }
        if reason.len() > REASON_MAX {
            e.push(FieldError::too_long(at.child("reason"), REASON_MAX));
        }
        if c.str_at("message").len() > MESSAGE_MAX {
            e.push(FieldError::too_long(at.child("message"), MESSAGE_MAX));
        }
    }
}

fn is_reason(s: &str) -> bool {
    let b = s.as_bytes();
    let word = |c: &u8| c.is_ascii_alphanumeric() || *c == b'_';
    b.first().is_some_and(u8::is_ascii_alphabetic)
        && b.last().is_some_and(word)
        && b.iter().all(|c| word(c) || matches!(c, b',' | b':'))
}
