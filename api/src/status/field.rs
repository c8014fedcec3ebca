//! Field errors: one thing wrong with one field, and the paths that name fields.

use super::StatusCause;
use crate::text::quote;
use serde_json::Value;
use std::fmt;

/// What is wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldErrorType {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
}

impl FieldErrorType {
    /// The reason of the `Status` cause.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }
}

/// A value at fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadValue {
    /// As it is in the API.
    Api(Value),
    /// The text of what kube-apiserver has in memory for it.
    Internal(String),
}

impl BadValue {
    /// A value of an internal type (see [`crate::internal`]).
    pub fn internal(ty: &'static str, value: Option<&Value>) -> BadValue {
        BadValue::Internal(crate::internal::compact(ty, value))
    }
}

impl<T: Into<Value>> From<T> for BadValue {
    fn from(value: T) -> BadValue {
        BadValue::Api(value.into())
    }
}

/// One thing wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    pub r#type: FieldErrorType,
    /// `spec.containers[0].name`.
    pub field: String,
    /// The value at fault; `None` where Kubernetes leaves it out of the text.
    pub value: Option<BadValue>,
    pub detail: String,
}

impl FieldError {
    fn new(
        t: FieldErrorType,
        field: impl fmt::Display,
        value: Option<BadValue>,
        detail: impl Into<String>,
    ) -> Self {
        FieldError { r#type: t, field: field.to_string(), value, detail: detail.into() }
    }
    /// A value that has to be there.
    pub fn required(field: impl fmt::Display, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorType::Required, field, None, detail)
    }
    /// A value that is not what it has to be.
    pub fn invalid(field: impl fmt::Display, value: impl Into<BadValue>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorType::Invalid, field, Some(value.into()), detail)
    }
    pub fn type_invalid(
        field: impl fmt::Display,
        value: impl Into<BadValue>,
        detail: impl Into<String>,
    ) -> Self {
        Self::new(FieldErrorType::TypeInvalid, field, Some(value.into()), detail)
    }
    /// A value that is there already.
    pub fn duplicate(field: impl fmt::Display, value: impl Into<BadValue>) -> Self {
        Self::new(FieldErrorType::Duplicate, field, Some(value.into()), "")
    }
    /// A reference to what is not there.
    pub fn not_found(field: impl fmt::Display, value: impl Into<BadValue>) -> Self {
        Self::new(FieldErrorType::NotFound, field, Some(value.into()), "")
    }
    /// A field that may not be set, or not so.
    pub fn forbidden(field: impl fmt::Display, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorType::Forbidden, field, None, detail)
    }
    /// A value that is none of `supported`, which the text lists in the given order.
    pub fn not_supported(field: impl fmt::Display, value: impl Into<BadValue>, supported: &[&str]) -> Self {
        let detail = if supported.is_empty() {
            String::new()
        } else {
            let quoted: Vec<String> = supported.iter().map(|s| quote(s)).collect();
            format!("supported values: {}", quoted.join(", "))
        };
        Self::new(FieldErrorType::NotSupported, field, Some(value.into()), detail)
    }
    /// A string longer than `max` bytes.
    pub fn too_long(field: impl fmt::Display, max: usize) -> Self {
        Self::new(FieldErrorType::TooLong, field, None, format!("may not be more than {max} bytes"))
    }
    /// A list of `actual` items where `max` are allowed.
    pub fn too_many(field: impl fmt::Display, actual: usize, max: usize) -> Self {
        let plural = if max == 1 { "" } else { "s" };
        let detail = format!("must have at most {max} item{plural}");
        Self::new(FieldErrorType::TooMany, field, Some(actual.into()), detail)
    }
    /// A check that could not be made.
    pub fn internal(field: impl fmt::Display, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorType::Internal, field, None, detail)
    }

    /// The text without the field: `Invalid value: "x": why`.
    pub fn body(&self) -> String {
        let mut s = self.r#type.text().to_owned();
        let bare = matches!(
            self.r#type,
            FieldErrorType::Required
                | FieldErrorType::Forbidden
                | FieldErrorType::TooLong
                | FieldErrorType::Internal
        );
        if let (false, Some(value)) = (bare, &self.value) {
            s.push_str(": ");
            match value {
                BadValue::Api(Value::String(text)) => s.push_str(&quote(text)),
                BadValue::Api(value) => s.push_str(&crate::internal::plain(value)),
                BadValue::Internal(text) => s.push_str(text),
            }
        }
        if !self.detail.is_empty() {
            s.push_str(": ");
            s.push_str(&self.detail);
        }
        s
    }

    /// As a cause of a `Status`.
    pub fn cause(&self) -> StatusCause {
        StatusCause { reason: self.r#type.reason().into(), message: self.body(), field: self.field.clone() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// A path to a field, rendered only when an error needs it. Children borrow their parents.
#[derive(Debug, Clone, Copy)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl Path<'static> {
    /// The object itself.
    pub const ROOT: Path<'static> = Path { parent: None, step: Step::Root };
}

impl<'a> Path<'a> {
    /// A path of one or more dotted fields.
    pub const fn new(field: &'a str) -> Path<'a> {
        Path { parent: None, step: Step::Field(field) }
    }
    /// A field (or several, dotted) below this one.
    pub const fn child<'b>(&'b self, field: &'b str) -> Path<'b>
    where
        'a: 'b,
    {
        Path { parent: Some(self), step: Step::Field(field) }
    }
    /// An item of this list.
    pub const fn index<'b>(&'b self, index: usize) -> Path<'b>
    where
        'a: 'b,
    {
        Path { parent: Some(self), step: Step::Index(index) }
    }
    /// A value of this map.
    pub const fn key<'b>(&'b self, key: &'b str) -> Path<'b>
    where
        'a: 'b,
    {
        Path { parent: Some(self), step: Step::Key(key) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let above = self.parent.filter(|p| !matches!(p.step, Step::Root));
        if let Some(parent) = above {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Root => f.write_str("<nil>"),
            Step::Field(name) if above.is_some() => write!(f, ".{name}"),
            Step::Field(name) => f.write_str(name),
            Step::Index(i) => write!(f, "[{i}]"),
            Step::Key(k) => write!(f, "[{k}]"),
        }
    }
}
