//! The types that the checker reasons about, and how messages print them.

use std::fmt;
use std::sync::Arc;

/// A CEL type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    /// Not known before evaluation.
    Dyn,
    /// What an expression with an error has; agrees with everything.
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    List(Arc<Type>),
    Map(Arc<(Type, Type)>),
    /// An object by the name of its declaration, or an opaque type of a library (`kubernetes.Quantity`).
    Object(Arc<str>),
    Optional(Arc<Type>),
    /// The type of a type.
    Type(Arc<Type>),
    /// A type parameter: of a signature, or a free variable of the checker.
    Param(u32),
}

impl Type {
    /// A list of `item`.
    pub fn list(item: Type) -> Self {
        Self::List(Arc::new(item))
    }

    /// A map from `key` to `value`.
    pub fn map(key: Type, value: Type) -> Self {
        Self::Map(Arc::new((key, value)))
    }

    /// An object of the declaration `name`.
    pub fn object(name: &str) -> Self {
        Self::Object(name.into())
    }

    /// `optional_type(item)`.
    pub fn optional(item: Type) -> Self {
        Self::Optional(Arc::new(item))
    }

    /// Whether the checker has nothing to say about it.
    pub fn is_dyn_or_error(&self) -> bool {
        matches!(self, Self::Dyn | Self::Error)
    }

    /// The type within an optional, and whether there was one around it.
    pub(super) fn unwrap_optional(&self) -> (&Type, bool) {
        match self {
            Self::Optional(inner) => (inner, true),
            other => (other, false),
        }
    }

    /// The name that `type(x)` compares by.
    pub fn name(&self) -> &str {
        match self {
            Self::Dyn | Self::Param(_) => "dyn",
            Self::Error => "!error!",
            Self::Null => "null_type",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Duration => "google.protobuf.Duration",
            Self::Timestamp => "google.protobuf.Timestamp",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Object(name) => name,
            Self::Optional(_) => "optional_type",
            Self::Type(_) => "type",
        }
    }

    /// Reads a type of the signature table: `list(map(string,A))`. Upper-case letters are parameters.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let inner = |name: &str| text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')');
        Some(match text {
            "dyn" => Self::Dyn,
            "null" => Self::Null,
            "bool" => Self::Bool,
            "int" => Self::Int,
            "uint" => Self::Uint,
            "double" => Self::Double,
            "string" => Self::String,
            "bytes" => Self::Bytes,
            "duration" => Self::Duration,
            "timestamp" => Self::Timestamp,
            _ => {
                if let Some(item) = inner("list") {
                    Self::list(Self::parse(item)?)
                } else if let Some(item) = inner("optional") {
                    Self::optional(Self::parse(item)?)
                } else if let Some(item) = inner("type") {
                    Self::Type(Arc::new(Self::parse(item)?))
                } else if let Some(pair) = inner("map") {
                    // Keys have no parts of their own, so that the first comma ends them.
                    let (key, value) = pair.split_once(',')?;
                    Self::map(Self::parse(key)?, Self::parse(value)?)
                } else {
                    match text.as_bytes() {
                        [letter @ b'A'..=b'Z'] => Self::Param(u32::from(letter - b'A')),
                        _ if text.contains('.') => Self::object(text),
                        _ => return None,
                    }
                }
            }
        })
    }

    /// A copy with each parameter replaced.
    pub(super) fn map_params(&self, to: &mut impl FnMut(u32) -> Type) -> Type {
        match self {
            Self::Param(n) => to(*n),
            Self::List(item) => Self::list(item.map_params(to)),
            Self::Optional(item) => Self::optional(item.map_params(to)),
            Self::Type(item) => Self::Type(Arc::new(item.map_params(to))),
            Self::Map(pair) => Self::map(pair.0.map_params(to), pair.1.map_params(to)),
            other => other.clone(),
        }
    }
}

/// As the checker's messages print it.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::List(item) => write!(f, "list({item})"),
            Self::Map(pair) => write!(f, "map({}, {})", pair.0, pair.1),
            Self::Optional(item) => write!(f, "optional_type({item})"),
            Self::Type(item) => write!(f, "type({item})"),
            Self::Param(n) => write!(f, "_var{n}"),
            other => f.write_str(other.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_and_parsed() {
        for (text, printed) in [
            ("list(map(string,A))", "list(map(string, _var0))"),
            ("optional(dyn)", "optional_type(dyn)"),
            ("kubernetes.Quantity", "kubernetes.Quantity"),
            ("type(int)", "type(int)"),
            ("timestamp", "google.protobuf.Timestamp"),
        ] {
            assert_eq!(Type::parse(text).map(|t| t.to_string()).as_deref(), Some(printed));
        }
        assert_eq!(Type::parse("nonsense"), None);
    }
}
