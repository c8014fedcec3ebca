//! The expression tree, with macros expanded.

use std::sync::Arc;

use super::functions::Overload;
use super::types::Type;

/// A literal of the source.
#[derive(Debug, Clone, PartialEq)]
pub enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
}

/// A node.
#[derive(Debug, Clone)]
pub struct Expr {
    /// Character offset in the source, which messages point to.
    pub at: u32,
    pub kind: Kind,
    /// What the checker found; `Dyn` before it has run.
    pub ty: Type,
}

/// What a node is.
#[derive(Debug, Clone)]
pub enum Kind {
    Literal(Literal),
    Ident(Arc<str>),
    /// A type's name, used as a value. Made by the checker.
    TypeName(Type),
    Select {
        operand: Box<Expr>,
        field: Arc<str>,
        /// `has(operand.field)`.
        test: bool,
    },
    Call(Box<Call>),
    List {
        items: Vec<Expr>,
        /// Whether the item at that index is written `?item`.
        optional: Vec<bool>,
    },
    Map(Vec<MapEntry>),
    Struct {
        name: Arc<str>,
        fields: Vec<StructField>,
    },
    Fold(Box<Fold>),
}

/// `function(args)` or `target.function(args)`; operators are calls of `_+_` and so on.
#[derive(Debug, Clone)]
pub struct Call {
    pub function: Arc<str>,
    pub target: Option<Expr>,
    pub args: Vec<Expr>,
    /// The signatures that fit the argument types. Made by the checker.
    pub overloads: Vec<&'static Overload>,
}

/// `key: value` of a map literal.
#[derive(Debug, Clone)]
pub struct MapEntry {
    pub key: Expr,
    pub value: Expr,
    pub optional: bool,
}

/// `name: value` of an object literal.
#[derive(Debug, Clone)]
pub struct StructField {
    pub at: u32,
    pub name: Arc<str>,
    pub value: Expr,
    pub optional: bool,
}

/// What the macros over lists and maps become: `accu = init; for var in range while condition { accu = step }; result`.
#[derive(Debug, Clone)]
pub struct Fold {
    pub range: Expr,
    pub var: Arc<str>,
    /// Value of the index or key `var` in two-variable comprehensions.
    pub var2: Option<Arc<str>>,
    pub accu: Arc<str>,
    pub init: Expr,
    pub condition: Expr,
    pub step: Expr,
    pub result: Expr,
}

/// Name of the accumulator in expanded macros; no source can write it.
pub const ACCU: &str = "@result";

impl Expr {
    /// A node whose type is not known yet.
    pub fn new(at: u32, kind: Kind) -> Self {
        Self { at, kind, ty: Type::Dyn }
    }

    /// The dotted name that the expression spells, if it is one: `a.b.c`.
    pub fn qualified_name(&self) -> Option<String> {
        match &self.kind {
            Kind::Ident(name) => Some(name.trim_start_matches('.').to_owned()),
            Kind::Select { operand, field, test: false } => {
                Some(format!("{}.{field}", operand.qualified_name()?))
            }
            _ => None,
        }
    }

    /// The nodes right below.
    pub fn children(&self) -> Vec<&Expr> {
        match &self.kind {
            Kind::Literal(_) | Kind::Ident(_) | Kind::TypeName(_) => Vec::new(),
            Kind::Select { operand, .. } => vec![operand],
            Kind::Call(call) => call.target.iter().chain(&call.args).collect(),
            Kind::List { items, .. } => items.iter().collect(),
            Kind::Map(entries) => entries.iter().flat_map(|e| [&e.key, &e.value]).collect(),
            Kind::Struct { fields, .. } => fields.iter().map(|f| &f.value).collect(),
            Kind::Fold(f) => vec![&f.range, &f.init, &f.condition, &f.step, &f.result],
        }
    }

    /// Whether a variable of that name is read somewhere in the expression.
    pub fn uses(&self, name: &str) -> bool {
        matches!(&self.kind, Kind::Ident(n) if &**n == name)
            || self.children().into_iter().any(|child| child.uses(name))
    }
}
