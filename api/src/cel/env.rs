//! What expressions of one kind may refer to: variables, object types, functions.

use std::collections::HashMap;
use std::sync::Arc;

use super::check::{self, declared_field};
use super::cost::{self, Estimate};
use super::decl::Decl;
use super::error::{EvalError, Issues};
use super::eval;
use super::functions::Function;
use super::parse::{parse, parse_with_bind};
use super::types::Type;
use super::value::Value;
use super::{ast, literals};

/// Declarations that expressions are checked against.
#[derive(Debug, Clone, Default)]
pub struct Env {
    variables: HashMap<Arc<str>, Type>,
    objects: HashMap<Arc<str>, Arc<Decl>>,
    /// Declarations of variables, by which sizes are estimated.
    roots: HashMap<Arc<str>, Arc<Decl>>,
    /// Fields of objects that no data declares.
    fields: HashMap<Arc<str>, HashMap<Arc<str>, Type>>,
    /// Whether `JSONPatch{}`, `Object{}` and their functions are known.
    mutation: bool,
    /// Whether `cel.bind` is known.
    bind: bool,
}

impl Env {
    /// An environment with Kubernetes' libraries and no variables.
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares a variable by its type.
    pub fn with(mut self, name: &str, ty: Type) -> Self {
        self.variables.insert(name.into(), ty);
        self
    }

    /// Declares a variable by what its data looks like. `decl` must have names for its objects ([`Decl::named`]).
    pub fn declare(mut self, name: &str, decl: &Arc<Decl>) -> Self {
        self = self.with(name, decl.ty());
        self.roots.insert(name.into(), Arc::clone(decl));
        self.with_objects(decl)
    }

    /// Declares the object types below a declaration.
    pub fn with_objects(mut self, decl: &Decl) -> Self {
        for (name, object) in decl.objects() {
            self.objects.insert(name, Arc::new(object.clone()));
        }
        self
    }

    /// Declares an object type by the types of its fields.
    pub fn with_fields(mut self, object: &str, fields: &[(Arc<str>, Type)]) -> Self {
        self.fields.insert(object.into(), fields.iter().cloned().collect());
        self
    }

    /// Allows what only mutating policies have.
    pub fn with_mutation(mut self) -> Self {
        self.mutation = true;
        self
    }

    /// Allows `cel.bind`.
    pub fn with_bind(mut self) -> Self {
        self.bind = true;
        self
    }

    pub(super) fn variable(&self, name: &str) -> Option<Type> {
        self.variables.get(name).cloned()
    }

    pub(super) fn root(&self, name: &str) -> Option<&Decl> {
        self.roots.get(name).map(|d| &**d)
    }

    pub(super) fn function(&self, name: &str) -> Option<&'static Function> {
        check::function(name, self.mutation)
    }

    pub(super) fn object(&self, name: &str) -> Option<&Decl> {
        self.objects.get(name).map(|d| &**d)
    }

    pub(super) fn field_type(&self, object: &str, field: &str) -> Option<Type> {
        if let Some(decl) = self.object(object) {
            return declared_field(decl, field);
        }
        if let Some(fields) = self.fields.get(object) {
            return fields.get(field).cloned();
        }
        match (self.mutation, object, field) {
            (false, ..) => None,
            (true, "JSONPatch", "op" | "path" | "from") => Some(Type::String),
            (true, "JSONPatch", "value") => Some(Type::Dyn),
            // `Object.spec` and what is below has any field.
            _ => is_dynamic_object(object).then_some(Type::Dyn),
        }
    }

    /// Whether objects of the type can be written as literals.
    pub(super) fn is_literal_type(&self, name: &str) -> bool {
        self.mutation && (name == "JSONPatch" || is_dynamic_object(name))
    }

    /// The type that a name means.
    pub(super) fn type_named(&self, name: &str) -> Option<Type> {
        let name = name.trim_start_matches('.');
        Some(match name {
            "bool" => Type::Bool,
            "int" => Type::Int,
            "uint" => Type::Uint,
            "double" => Type::Double,
            "string" => Type::String,
            "bytes" => Type::Bytes,
            "null_type" => Type::Null,
            "list" => Type::list(Type::Dyn),
            "map" => Type::map(Type::Dyn, Type::Dyn),
            "type" => Type::Type(Arc::new(Type::Dyn)),
            "dyn" => Type::Dyn,
            "optional_type" => Type::optional(Type::Dyn),
            "google.protobuf.Duration" => Type::Duration,
            "google.protobuf.Timestamp" => Type::Timestamp,
            name if self.is_literal_type(name) => Type::object(name),
            name if KUBERNETES_TYPES.contains(&name) || self.objects.contains_key(name) => Type::object(name),
            _ => return None,
        })
    }

    /// Compiles an expression.
    ///
    /// # Errors
    /// Syntax and type errors, with positions.
    pub fn compile(&self, source: &str) -> Result<Program, Issues> {
        let mut expr = if self.bind { parse_with_bind(source)? } else { parse(source)? };
        check::check(self, source, &mut expr)?;
        literals::validate(source, &expr)?;
        Ok(Program { expr: Arc::new(expr) })
    }

    /// What evaluating a program may cost, at least and at most, for data of the declared sizes.
    pub fn estimate(&self, program: &Program) -> Estimate {
        cost::estimate(self, &program.expr)
    }
}

/// Types of Kubernetes' libraries that expressions can name.
const KUBERNETES_TYPES: [&str; 11] = [
    "kubernetes.URL",
    "kubernetes.Quantity",
    "kubernetes.Semver",
    "kubernetes.NamedFormat",
    "net.IP",
    "net.CIDR",
    "kubernetes.authorization.Authorizer",
    "kubernetes.authorization.PathCheck",
    "kubernetes.authorization.GroupCheck",
    "kubernetes.authorization.ResourceCheck",
    "kubernetes.authorization.Decision",
];

fn is_dynamic_object(name: &str) -> bool {
    name == "Object" || name.starts_with("Object.")
}

/// A compiled expression; cheap to copy.
#[derive(Debug, Clone)]
pub struct Program {
    expr: Arc<ast::Expr>,
}

/// Where variables have their values from.
pub trait Variables<'a> {
    /// The value of a declared variable.
    fn get(&self, name: &str) -> Option<Value<'a>>;
}

/// Variables by name.
impl<'a> Variables<'a> for [(&str, Value<'a>)] {
    fn get(&self, name: &str) -> Option<Value<'a>> {
        self.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone())
    }
}

/// What an evaluation came to.
#[derive(Debug)]
pub struct Evaluated<'a> {
    pub result: Result<Value<'a>, EvalError>,
    /// In Kubernetes' cost units.
    pub cost: u64,
}

impl Program {
    /// The type of the result.
    pub fn result_type(&self) -> &Type {
        &self.expr.ty
    }

    /// Whether the expression reads a variable of that name.
    pub fn uses(&self, variable: &str) -> bool {
        self.expr.uses(variable)
    }

    /// Evaluates, up to a cost of `limit`.
    pub fn evaluate<'a>(&self, variables: &dyn Variables<'a>, limit: u64) -> Evaluated<'a> {
        eval::evaluate(&self.expr, variables, limit)
    }
}
