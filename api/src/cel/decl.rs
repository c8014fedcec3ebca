//! Declarations: what a schema says about data, with the sizes that cost estimates need, and the names that
//! properties have in expressions.

use std::sync::Arc;

use super::types::Type;

/// Largest request body, which bounds what a schema leaves unbounded: 3 MiB.
pub const MAX_REQUEST: u64 = 3 << 20;

/// A declared type.
#[derive(Debug, Clone, PartialEq)]
pub struct Decl {
    pub shape: Shape,
    /// Whether null may stand for a value.
    pub nullable: bool,
    /// Most characters, bytes, items or entries that a value may have.
    pub max_elements: u64,
    /// Bytes of the shortest JSON.
    pub min_size: u64,
}

/// What values look like.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    Dyn,
    Bool,
    Int,
    Double,
    String,
    Bytes,
    Duration,
    /// A timestamp written as a date.
    Date,
    Timestamp,
    List {
        item: Box<Decl>,
        kind: ListKind,
    },
    /// From strings to values of one declaration.
    Map(Box<Decl>),
    Object {
        /// Name by which [`Type::Object`] means it; empty until [`Decl::named`] gives one.
        name: Arc<str>,
        /// By name.
        fields: Vec<Field>,
    },
}

/// How items of a list are told apart (`x-kubernetes-list-type`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListKind {
    Atomic,
    Set,
    /// By these properties.
    Map(Vec<Box<str>>),
}

/// A field of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// As expressions write it.
    pub name: Arc<str>,
    /// As JSON has it.
    pub property: Box<str>,
    pub decl: Decl,
}

impl Shape {
    /// What a message says was expected.
    pub fn expected(&self) -> &'static str {
        match self {
            Self::Dyn => "dyn",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Double => "float",
            Self::String | Self::Bytes | Self::Duration | Self::Date | Self::Timestamp => "string",
            Self::List { .. } => "an array for the provided schema with type=array",
            Self::Map(_) | Self::Object { .. } => "a map for the provided schema with type=object",
        }
    }
}

impl Decl {
    /// A declaration of a value without parts.
    pub fn scalar(shape: Shape, max_elements: u64, min_size: u64) -> Self {
        Self { shape, nullable: false, max_elements, min_size }
    }

    /// Anything, of any size.
    pub fn dynamic() -> Self {
        Self::scalar(Shape::Dyn, MAX_REQUEST, 1)
    }

    /// An object with fields of these declarations, whose names need no escaping.
    pub fn object(fields: Vec<(&str, Decl)>) -> Self {
        let mut fields: Vec<Field> = fields
            .into_iter()
            .map(|(name, decl)| Field { name: name.into(), property: name.into(), decl })
            .collect();
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        Self::scalar(Shape::Object { name: "".into(), fields }, 0, 2)
    }

    /// A list of at most `max` items.
    pub fn list(item: Decl, kind: ListKind, max: Option<u64>) -> Self {
        let max = max.unwrap_or((MAX_REQUEST - 2) / (item.min_size + 1));
        Self::scalar(Shape::List { item: Box::new(item), kind }, max, 2)
    }

    /// A map of at most `max` entries.
    pub fn map(value: Decl, max: Option<u64>) -> Self {
        let max = max.unwrap_or((MAX_REQUEST - 2) / (value.min_size + 6));
        Self::scalar(Shape::Map(Box::new(value)), max, 2)
    }

    /// The same with names for its objects: the given one, and paths from it.
    pub fn named(mut self, name: &str) -> Self {
        self.name_objects(name);
        self
    }

    fn name_objects(&mut self, at: &str) {
        match &mut self.shape {
            Shape::Object { name, fields } => {
                *name = at.into();
                for field in fields {
                    field.decl.name_objects(&format!("{at}.{}", field.name));
                }
            }
            Shape::List { item, .. } => item.name_objects(&format!("{at}.@idx")),
            Shape::Map(value) => value.name_objects(&format!("{at}.@elem")),
            _ => {}
        }
    }

    /// The declaration of items or values.
    pub fn item(&self) -> Option<&Decl> {
        match &self.shape {
            Shape::List { item, .. } | Shape::Map(item) => Some(item),
            _ => None,
        }
    }

    /// The field that expressions write so.
    pub fn field(&self, name: &str) -> Option<&Field> {
        let Shape::Object { fields, .. } = &self.shape else { return None };
        fields.binary_search_by(|f| (*f.name).cmp(name)).ok().and_then(|at| fields.get(at))
    }

    /// Its type in expressions.
    pub fn ty(&self) -> Type {
        match &self.shape {
            Shape::Dyn => Type::Dyn,
            Shape::Bool => Type::Bool,
            Shape::Int => Type::Int,
            Shape::Double => Type::Double,
            Shape::String => Type::String,
            Shape::Bytes => Type::Bytes,
            Shape::Duration => Type::Duration,
            Shape::Date | Shape::Timestamp => Type::Timestamp,
            Shape::List { item, .. } => Type::list(item.ty()),
            Shape::Map(value) => Type::map(Type::String, value.ty()),
            Shape::Object { name, .. } => Type::Object(Arc::clone(name)),
        }
    }

    /// This declaration and those of all objects below it, by name.
    pub fn objects(&self) -> Vec<(Arc<str>, &Decl)> {
        let mut found = Vec::new();
        self.collect(&mut found);
        found
    }

    fn collect<'d>(&'d self, found: &mut Vec<(Arc<str>, &'d Decl)>) {
        match &self.shape {
            Shape::Object { name, fields } => {
                found.push((Arc::clone(name), self));
                fields.iter().for_each(|f| f.decl.collect(found));
            }
            Shape::List { item, .. } | Shape::Map(item) => item.collect(found),
            _ => {}
        }
    }
}

/// Words that expressions cannot use as names.
const RESERVED: [&str; 22] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
    "",
];

/// How expressions write a property: `a-b` is `a__dash__b`, `namespace` is `__namespace__`. None when they cannot.
pub fn escape(property: &str) -> Option<String> {
    if property.is_empty() || property.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if RESERVED.contains(&property) {
        return Some(format!("__{property}__"));
    }
    let mut out = String::with_capacity(property.len());
    let mut rest = property;
    while let Some(c) = rest.chars().next() {
        let (text, taken) = match c {
            '_' if rest.starts_with("__") => ("__underscores__", 2),
            '.' => ("__dot__", 1),
            '-' => ("__dash__", 1),
            '/' => ("__slash__", 1),
            c if c.is_ascii_alphanumeric() || c == '_' => (&rest[..1], 1),
            _ => return None,
        };
        out.push_str(text);
        rest = &rest[taken..];
    }
    Some(out)
}

/// The property that expressions write so; None for what [`escape`] never makes.
pub fn unescape(name: &str) -> Option<String> {
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        // `__word__`, where the word has no underscores; a third underscore before it stands for itself.
        let word = rest
            .strip_prefix("__")
            .and_then(|r| r.find('_').filter(|end| *end > 0).map(|end| r.split_at(end)));
        let Some((word, tail)) = word.and_then(|(word, tail)| Some((word, tail.strip_prefix("__")?))) else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        match word {
            "underscores" => out.push_str("__"),
            "dot" => out.push('.'),
            "dash" => out.push('-'),
            "slash" => out.push('/'),
            word if RESERVED.contains(&word) => out.push_str(word),
            _ => return None,
        }
        rest = tail;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_escaped() {
        for (property, name) in [
            ("a", Some("a")),
            ("namespace", Some("__namespace__")),
            ("if", Some("__if__")),
            ("a.b", Some("a__dot__b")),
            ("a-b", Some("a__dash__b")),
            ("a/b", Some("a__slash__b")),
            ("a__b", Some("a__underscores__b")),
            ("_a_", Some("_a_")),
            ("_____", Some("__underscores____underscores___")),
            ("1a", None),
            ("", None),
            ("é", None),
            ("a b", None),
        ] {
            assert_eq!(escape(property).as_deref(), name, "{property}");
        }
    }

    proptest! {
        #[test]
        fn escaping_is_undone(property in "[a-z_./-]{1,12}") {
            if let Some(name) = escape(&property) {
                prop_assert_eq!(unescape(&name), Some(property));
            }
        }
    }
}
