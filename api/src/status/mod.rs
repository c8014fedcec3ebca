//! `Status`, the answer to a request that failed (and to some that succeeded), and the field errors it is
//! made of. Codes, reasons and texts are those of Kubernetes' API machinery.

mod field;

pub use field::{BadValue, FieldError, FieldErrorType, Path};

use crate::text::quote;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt;

/// A v1 `Status`. Small enough (under 128 bytes) to be the error of every `Result`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{message}")]
pub struct Status {
    #[serde(default)]
    kind: Fixed<true>,
    #[serde(default)]
    api_version: Fixed<false>,
    #[serde(default)]
    pub metadata: Box<StatusMeta>,
    /// `Success` or `Failure`.
    #[serde(default)]
    pub status: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<StatusDetails>>,
    /// HTTP status code.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub code: u16,
}

/// A `Status`' list metadata.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusMeta {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    #[serde(rename = "continue", skip_serializing_if = "String::is_empty")]
    pub continue_token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining_item_count: Option<i64>,
}

/// What a `Status` is about.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusDetails {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// A resource's plural, or for `Invalid` the kind's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<StatusCause>,
    #[serde(skip_serializing_if = "is_zero_u32")]
    pub retry_after_seconds: u32,
}

/// One cause of a failure.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusCause {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

fn is_zero(n: &u16) -> bool {
    *n == 0
}
fn is_zero_u32(n: &u32) -> bool {
    *n == 0
}

/// The constant `kind` (`true`) or `apiVersion` of a `Status`, kept out of its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Fixed<const KIND: bool>;

impl<const KIND: bool> Serialize for Fixed<KIND> {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(if KIND { "Status" } else { "v1" })
    }
}

impl<'de, const KIND: bool> Deserialize<'de> for Fixed<KIND> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(d).map(|_| Fixed)
    }
}

/// `plural.group` or `plural`.
fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

/// The texts of the media types that bodies may have.
pub const MEDIA_TYPES: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

impl Status {
    /// A failure with no details.
    pub fn failure(code: u16, reason: &str, message: impl Into<String>) -> Status {
        Status {
            kind: Fixed,
            api_version: Fixed,
            metadata: Box::default(),
            status: "Failure".into(),
            message: message.into(),
            reason: reason.into(),
            details: None,
            code,
        }
    }

    /// The answer to a deletion that is done.
    pub fn success(group: &str, plural: &str, name: &str, uid: &str) -> Status {
        let details = StatusDetails { uid: uid.into(), ..details(group, plural, name) };
        let status = Status { status: "Success".into(), ..Status::failure(0, "", "") };
        status.with_details(details)
    }

    /// Replaces the details.
    pub fn with_details(mut self, details: StatusDetails) -> Status {
        self.details = Some(Box::new(details));
        self
    }

    /// Adds a cause.
    pub fn with_cause(mut self, reason: &str, message: impl Into<String>, field: &str) -> Status {
        let cause = StatusCause { reason: reason.into(), message: message.into(), field: field.into() };
        self.details.get_or_insert_default().causes.push(cause);
        self
    }

    /// Whether the reason is the given one.
    pub fn is(&self, reason: &str) -> bool {
        self.reason == reason
    }

    /// 404 of an object or a resource.
    pub fn is_not_found(&self) -> bool {
        self.reason == "NotFound"
    }
    /// 409 for a stale or otherwise different object.
    pub fn is_conflict(&self) -> bool {
        self.reason == "Conflict"
    }
    /// 409 for a name that is taken.
    pub fn is_already_exists(&self) -> bool {
        self.reason == "AlreadyExists"
    }

    /// 404 for an object.
    pub fn not_found(group: &str, plural: &str, name: &str) -> Status {
        let message = format!("{} {} not found", qualified(plural, group), quote(name));
        Status::failure(404, "NotFound", message).with_details(details(group, plural, name))
    }

    /// 404 for a path that is no resource.
    pub fn unknown_resource() -> Status {
        Status::failure(404, "NotFound", "the server could not find the requested resource")
            .with_details(StatusDetails::default())
    }

    /// 409: an object of that name is there.
    pub fn already_exists(group: &str, plural: &str, name: &str) -> Status {
        let message = format!("{} {} already exists", qualified(plural, group), quote(name));
        Status::failure(409, "AlreadyExists", message).with_details(details(group, plural, name))
    }

    /// 409: a generated name was taken.
    pub fn generate_name_conflict(group: &str, plural: &str, name: &str) -> Status {
        let message = format!(
            "{} {} already exists, the server was not able to generate a unique name for the object",
            qualified(plural, group),
            quote(name)
        );
        Status::failure(409, "AlreadyExists", message)
            .with_details(StatusDetails { retry_after_seconds: 1, ..details(group, plural, name) })
    }

    /// 409: the object is not what the request takes it for.
    pub fn conflict(group: &str, plural: &str, name: &str, why: impl fmt::Display) -> Status {
        let message =
            format!("Operation cannot be fulfilled on {} {}: {why}", qualified(plural, group), quote(name));
        Status::failure(409, "Conflict", message).with_details(details(group, plural, name))
    }

    /// 409 for a stale resourceVersion.
    pub fn stale(group: &str, plural: &str, name: &str) -> Status {
        Status::conflict(
            group,
            plural,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 422 with one cause per field error. `kind` is the kind's name.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Status {
        let mut message = format!("{} {} is invalid", qualified(kind, group), quote(name));
        if !errors.is_empty() {
            message.push_str(": ");
            message.push_str(&aggregate(errors));
        }
        let causes = errors.iter().map(FieldError::cause).collect();
        Status::failure(422, "Invalid", message)
            .with_details(StatusDetails { causes, ..details(group, kind, name) })
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Status {
        Status::failure(400, "BadRequest", message)
    }

    /// 403; `name` may be empty.
    pub fn forbidden(group: &str, plural: &str, name: &str, why: impl fmt::Display) -> Status {
        let resource = qualified(plural, group);
        let message = match (resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (_, true) => format!("{resource} is forbidden: {why}"),
            _ => format!("{resource} {} is forbidden: {why}", quote(name)),
        };
        Status::failure(403, "Forbidden", message).with_details(details(group, plural, name))
    }

    /// 401.
    pub fn unauthorized() -> Status {
        Status::failure(401, "Unauthorized", "Unauthorized")
    }

    /// 405 of the registry: the kind does not support the action.
    pub fn method_not_supported(group: &str, plural: &str, action: &str) -> Status {
        let message =
            format!("{action} is not supported on resources of kind {}", quote(&qualified(plural, group)));
        Status::failure(405, "MethodNotAllowed", message).with_details(details(group, plural, ""))
    }

    /// 405 of the router: the path has no such method.
    pub fn method_not_allowed() -> Status {
        Status::failure(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
        .with_details(StatusDetails::default())
    }

    /// 406.
    pub fn not_acceptable() -> Status {
        Status::failure(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {MEDIA_TYPES}"),
        )
    }

    /// 415 for a body whose Content-Type is not understood; `accepted` defaults to [`MEDIA_TYPES`].
    pub fn unsupported_media_type(accepted: &str) -> Status {
        let accepted = if accepted.is_empty() { MEDIA_TYPES } else { accepted };
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {accepted}"
        );
        Status::failure(415, "UnsupportedMediaType", message)
    }

    /// 413.
    pub fn too_large(why: impl fmt::Display) -> Status {
        Status::failure(413, "RequestEntityTooLarge", format!("Request entity too large: {why}"))
    }

    /// 410: the revision is compacted away, or a continue token is too old.
    pub fn expired(message: impl Into<String>) -> Status {
        Status::failure(410, "Expired", message)
    }

    /// 410 for a watch or list from a revision that is compacted away.
    pub fn too_old(requested: u64, oldest: u64) -> Status {
        Status::expired(format!("too old resource version: {requested} ({oldest})"))
    }

    /// 504.
    pub fn timeout(message: impl fmt::Display, retry_after_seconds: u32) -> Status {
        Status::failure(504, "Timeout", format!("Timeout: {message}"))
            .with_details(StatusDetails { retry_after_seconds, ..StatusDetails::default() })
    }

    /// 504: the requested revision is still in the future.
    pub fn too_large_resource_version(requested: u64, current: u64) -> Status {
        Status::timeout(format!("Too large resource version: {requested}, current: {current}"), 1).with_cause(
            "ResourceVersionTooLarge",
            "Too large resource version",
            "",
        )
    }

    /// 500: the operation may be tried again.
    pub fn server_timeout(group: &str, plural: &str, operation: &str, retry_after_seconds: u32) -> Status {
        let message = format!(
            "The {operation} operation against {} could not be completed at this time, please try again.",
            qualified(plural, group)
        );
        Status::failure(500, "ServerTimeout", message)
            .with_details(StatusDetails { retry_after_seconds, ..details(group, plural, "") })
    }

    /// 429.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Status {
        Status::failure(429, "TooManyRequests", message)
            .with_details(StatusDetails { retry_after_seconds, ..StatusDetails::default() })
    }

    /// 500.
    pub fn internal(why: impl fmt::Display) -> Status {
        let why = why.to_string();
        Status::failure(500, "InternalError", format!("Internal error occurred: {why}"))
            .with_cause("", why, "")
    }

    /// 500 without a reason: how an error that is no `Status` reaches the client.
    pub fn plain_error(message: impl Into<String>) -> Status {
        Status::failure(500, "", message)
    }

    /// 503.
    pub fn service_unavailable(message: impl Into<String>) -> Status {
        Status::failure(503, "ServiceUnavailable", message)
    }

    /// As a JSON value.
    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).unwrap_or_else(|_| json!({"kind": "Status", "apiVersion": "v1"}))
    }
}

fn details(group: &str, kind: &str, name: &str) -> StatusDetails {
    StatusDetails { name: name.into(), group: group.into(), kind: kind.into(), ..StatusDetails::default() }
}

/// Joins errors as API machinery does: one stands alone, several in brackets, each text once.
pub fn aggregate(errors: &[FieldError]) -> String {
    let mut texts: Vec<String> = Vec::new();
    for e in errors {
        let text = e.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    match texts.as_slice() {
        [one] => one.clone(),
        _ => format!("[{}]", texts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_kubernetes() {
        let s = Status::not_found("", "configmaps", "nope");
        assert_eq!(
            s.to_value(),
            json!({"apiVersion": "v1", "code": 404, "details": {"kind": "configmaps", "name": "nope"},
                "kind": "Status", "message": "configmaps \"nope\" not found", "metadata": {},
                "reason": "NotFound", "status": "Failure"})
        );
        assert_eq!(Status::unauthorized().code, 401);
        assert_eq!(Status::unknown_resource().to_value()["details"], json!({}));
        assert_eq!(
            Status::success("", "secrets", "s", "u").to_value(),
            json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success",
                "details": {"kind": "secrets", "name": "s", "uid": "u"}})
        );
        let s = Status::too_large_resource_version(9, 3);
        assert_eq!(s.message, "Timeout: Too large resource version: 9, current: 3");
        let back: Status = serde_json::from_value(s.to_value()).expect("round trip");
        assert_eq!(back, s);
    }

    #[test]
    fn invalid_lists_its_causes() {
        let root = Path::new("spec");
        let list = root.child("ports");
        let item = list.index(1);
        let a = FieldError::required(item.child("name"), "");
        let b = FieldError::not_supported("spec.type", "Odd", &["A", "B"]);
        let s = Status::invalid("apps", "Deployment", "x", std::slice::from_ref(&a));
        assert_eq!(s.message, "Deployment.apps \"x\" is invalid: spec.ports[1].name: Required value");
        let s = Status::invalid("", "Pod", "", &[a.clone(), b, a]);
        assert_eq!(
            s.message,
            "Pod \"\" is invalid: [spec.ports[1].name: Required value, spec.type: Unsupported value: \"Odd\": \
             supported values: \"A\", \"B\"]"
        );
        let causes = s.details.map(|d| d.causes).unwrap_or_default();
        assert_eq!(causes.len(), 3);
        assert_eq!(causes[1].reason, "FieldValueNotSupported");
        assert_eq!(FieldError::invalid("a", 3, "d").to_string(), "a: Invalid value: 3: d");
        assert_eq!(FieldError::too_many("a", 5, 4).body(), "Too many: 5: must have at most 4 items");
        assert_eq!(Path::new("m").key("k/x").to_string(), "m[k/x]");
    }
}
