//! The type checker: resolves names, picks signatures, and finds each node's type.
//!
//! The rules are those of CEL's language definition ("Gradual type checking"), the messages those of cel-go.

use std::sync::Arc;

use super::ast::{Call, Expr, Fold, Kind, Literal};
use super::decl::{Decl, Shape};
use super::env::Env;
use super::error::{Issue, Issues};
use super::functions::{self, Overload};
use super::types::Type;
use super::unify::{Bindings, most_general};

/// Checks an expression in an environment: types and signatures are filled in.
///
/// # Errors
/// All type errors, with positions.
pub fn check(env: &Env, source: &str, expr: &mut Expr) -> Result<(), Issues> {
    let mut checker = Checker {
        env,
        bindings: Bindings::default(),
        variables: 100,
        scopes: Vec::new(),
        issues: Vec::new(),
    };
    checker.expr(expr);
    checker.settle(expr);
    if checker.issues.is_empty() { Ok(()) } else { Err(Issues::new(source, checker.issues)) }
}

struct Checker<'e> {
    env: &'e Env,
    bindings: Bindings,
    /// Number of the next free type variable; those of signatures are below.
    variables: u32,
    scopes: Vec<(Arc<str>, Type)>,
    issues: Vec<Issue>,
}

impl Checker<'_> {
    fn report(&mut self, at: u32, message: String) {
        self.issues.push(Issue { at, message });
    }

    fn fresh(&mut self) -> Type {
        self.variables += 1;
        Type::Param(self.variables)
    }

    fn variable(&self, name: &str) -> Option<Type> {
        let name = name.trim_start_matches('.');
        let local = self.scopes.iter().rev().find(|(n, _)| **n == *name).map(|(_, t)| t.clone());
        local.or_else(|| self.env.variable(name))
    }

    fn expr(&mut self, e: &mut Expr) {
        let at = e.at;
        let ty = match &mut e.kind {
            Kind::Literal(literal) => match literal {
                Literal::Null => Type::Null,
                Literal::Bool(_) => Type::Bool,
                Literal::Int(_) => Type::Int,
                Literal::Uint(_) => Type::Uint,
                Literal::Double(_) => Type::Double,
                Literal::String(_) => Type::String,
                Literal::Bytes(_) => Type::Bytes,
            },
            Kind::TypeName(ty) => Type::Type(Arc::new(ty.clone())),
            Kind::Ident(name) => {
                let name = Arc::clone(name);
                if let Some(ty) = self.variable(&name) {
                    ty
                } else if let Some(ty) = self.env.type_named(&name) {
                    e.kind = Kind::TypeName(ty.clone());
                    Type::Type(Arc::new(ty))
                } else {
                    self.report(at, format!("undeclared reference to '{name}' (in container '')"));
                    Type::Error
                }
            }
            Kind::Select { .. } => self.select(e),
            Kind::Call(_) => self.call(e),
            Kind::List { items, optional } => {
                let mut item_type = None;
                for (item, optional) in items.iter_mut().zip(optional) {
                    self.expr(item);
                    let ty = self.maybe_optional(item, *optional);
                    item_type = Some(self.join(item.at, item_type, ty));
                }
                let item_type = item_type.unwrap_or_else(|| self.fresh());
                Type::list(item_type)
            }
            Kind::Map(entries) => {
                let mut types = None;
                for entry in entries {
                    let (previous_key, previous_value) = types.unzip();
                    self.expr(&mut entry.key);
                    let key = self.join(entry.key.at, previous_key, entry.key.ty.clone());
                    self.expr(&mut entry.value);
                    let ty = self.maybe_optional(&entry.value, entry.optional);
                    types = Some((key, self.join(entry.value.at, previous_value, ty)));
                }
                let (key, value) = types.unwrap_or_else(|| (self.fresh(), self.fresh()));
                Type::map(key, value)
            }
            Kind::Struct { .. } => self.object(e),
            Kind::Fold(fold) => self.fold(fold),
        };
        e.ty = ty;
    }

    /// The type of an item or entry, unwrapped where it is written with `?`.
    fn maybe_optional(&mut self, e: &Expr, optional: bool) -> Type {
        if !optional {
            return e.ty.clone();
        }
        let (inner, wrapped) = e.ty.unwrap_optional();
        let inner = inner.clone();
        if !wrapped && inner != Type::Dyn {
            self.report(e.at, format!("expected type 'optional_type({inner})' but found '{inner}'"));
        }
        inner
    }

    /// The type of a literal's items so far with one more.
    fn join(&mut self, at: u32, previous: Option<Type>, current: Type) -> Type {
        let Some(previous) = previous else { return current };
        if self.bindings.assignable(&previous, &current) {
            return most_general(&previous, &current);
        }
        self.report(at, format!("expected type '{previous}' but found '{current}'"));
        Type::Error
    }

    fn select(&mut self, e: &mut Expr) -> Type {
        let at = e.at;
        // `a.b` may be the name of a variable or a type, unless `a` is a local variable.
        if let Some(name) = e.qualified_name() {
            let root = name.split('.').next().unwrap_or_default();
            if !self.scopes.iter().any(|(n, _)| **n == *root) {
                if let Some(ty) = self.env.variable(&name) {
                    e.kind = Kind::Ident(name.into());
                    return ty;
                }
                if let Some(ty) = self.env.type_named(&name) {
                    e.kind = Kind::TypeName(ty.clone());
                    return Type::Type(Arc::new(ty));
                }
            }
        }
        let Kind::Select { operand, field, test } = &mut e.kind else { return Type::Error };
        let (field, test) = (Arc::clone(field), *test);
        self.expr(operand);
        let operand_type = operand.ty.clone();
        let ty = self.field(at, &operand_type, &field, false);
        if test { Type::Bool } else { self.bindings.resolve(&ty, false) }
    }

    /// The type of a field of a type.
    fn field(&mut self, at: u32, operand: &Type, field: &str, optional: bool) -> Type {
        let operand = self.bindings.resolve(operand, false);
        let (target, wrapped) = operand.unwrap_optional();
        let ty = match target {
            Type::Map(pair) => pair.1.clone(),
            Type::Object(name) => match self.env.field_type(name, field) {
                Some(ty) => ty,
                None => {
                    self.report(at, format!("undefined field '{field}'"));
                    Type::Error
                }
            },
            Type::Param(_) => {
                self.bindings.assignable(&Type::Dyn, target);
                Type::Dyn
            }
            Type::Dyn | Type::Error => Type::Dyn,
            other => {
                self.report(at, format!("type '{other}' does not support field selection"));
                Type::Dyn
            }
        };
        if wrapped || optional { Type::optional(ty) } else { ty }
    }

    fn call(&mut self, e: &mut Expr) -> Type {
        let at = e.at;
        let Kind::Call(call) = &mut e.kind else { return Type::Error };
        if &*call.function == "_?._" {
            return self.optional_select(at, call);
        }
        for arg in &mut call.args {
            self.expr(arg);
        }
        if let Some(target) = &mut call.target {
            // `a.b.c()` may be a function of that name.
            let qualified = target.qualified_name().map(|prefix| format!("{prefix}.{}", call.function));
            if let Some(function) = qualified.and_then(|name| self.env.function(&name)) {
                call.function = function.name.into();
                call.target = None;
                return self.resolve(at, call, &function.overloads);
            }
            self.expr(target);
        }
        let name = Arc::clone(&call.function);
        match self.env.function(name.trim_start_matches('.')) {
            Some(function) => {
                call.function = function.name.into();
                self.resolve(at, call, &function.overloads)
            }
            None => {
                self.report(at, format!("undeclared reference to '{name}' (in container '')"));
                Type::Error
            }
        }
    }

    fn optional_select(&mut self, at: u32, call: &mut Call) -> Type {
        let [operand, field] = call.args.as_mut_slice() else { return Type::Error };
        let Kind::Literal(Literal::String(name)) = &field.kind else {
            self.report(field.at, "unsupported optional field selection".into());
            return Type::Error;
        };
        let name = Arc::clone(name);
        field.ty = Type::String;
        self.expr(operand);
        let operand_type = operand.ty.clone();
        let ty = self.field(at, &operand_type, &name, true);
        self.bindings.resolve(&ty, false)
    }

    /// Picks the signatures that fit; their common result type, or dyn when they differ.
    fn resolve(&mut self, at: u32, call: &mut Call, overloads: &'static [Overload]) -> Type {
        let types: Vec<Type> = call.target.iter().chain(&call.args).map(|a| a.ty.clone()).collect();
        if matches!(&*call.function, "_&&_" | "_||_") {
            let wrong: Vec<_> = call
                .args
                .iter()
                .filter_map(|a| {
                    (!self.bindings.assignable(&a.ty, &Type::Bool))
                        .then(|| (a.at, self.bindings.resolve(&a.ty, false)))
                })
                .collect();
            call.overloads = overloads.iter().collect();
            let fine = wrong.is_empty();
            for (at, ty) in wrong {
                self.report(at, format!("expected type 'bool' but found '{ty}'"));
            }
            return if fine { Type::Bool } else { Type::Error };
        }
        let mut result: Option<Type> = None;
        for overload in overloads.iter().filter(|o| o.member == call.target.is_some()) {
            let base = self.variables + 1;
            self.variables += overload.params;
            let own = |ty: &Type| ty.map_params(&mut |n| Type::Param(base + n));
            let wanted: Vec<Type> = overload.args.iter().map(own).collect();
            if !self.bindings.all_assignable(&types, &wanted) {
                continue;
            }
            call.overloads.push(overload);
            let found = self.bindings.resolve(&own(&overload.result), false);
            result = Some(match result {
                None => found,
                Some(previous) if previous == Type::Dyn || previous == found => previous,
                Some(_) => Type::Dyn,
            });
        }
        result.unwrap_or_else(|| {
            let shown: Vec<String> =
                types.iter().map(|t| self.bindings.resolve(t, true).to_string()).collect();
            let signature = match (&call.target, shown.split_first()) {
                (Some(_), Some((target, args))) => format!("{target}.({})", args.join(", ")),
                _ => format!("({})", shown.join(", ")),
            };
            let message =
                format!("found no matching overload for '{}' applied to '{signature}'", call.function);
            self.report(at, message);
            Type::Error
        })
    }

    fn object(&mut self, e: &mut Expr) -> Type {
        let at = e.at;
        let Kind::Struct { name, fields } = &mut e.kind else { return Type::Error };
        let name = Arc::clone(name);
        let ty = match self.env.type_named(&name) {
            Some(ty @ Type::Object(_)) if self.env.is_literal_type(ty.name()) => ty,
            Some(other) => {
                self.report(at, format!("'{}' is not a message type", other.name()));
                Type::Error
            }
            None => {
                self.report(at, format!("undeclared reference to '{name}' (in container '')"));
                return Type::Error;
            }
        };
        for field in fields {
            self.expr(&mut field.value);
            let wanted = match &ty {
                Type::Object(name) => self.env.field_type(name, &field.name),
                _ => Some(Type::Error),
            };
            let found = self.maybe_optional(&field.value, field.optional);
            match wanted {
                None => self.report(field.at, format!("undefined field '{}'", field.name)),
                Some(wanted) if !self.bindings.assignable(&wanted, &found) => {
                    let message = format!(
                        "expected type of field '{}' is '{wanted}' but provided type is '{found}'",
                        field.name
                    );
                    self.report(field.at, message);
                }
                Some(_) => {}
            }
        }
        ty
    }

    fn fold(&mut self, fold: &mut Fold) -> Type {
        self.expr(&mut fold.range);
        self.expr(&mut fold.init);
        let range = self.bindings.resolve(&fold.range.ty, false);
        let two = fold.var2.is_some();
        let (first, second) = match &range {
            Type::List(item) if two => (Type::Int, (**item).clone()),
            Type::List(item) => ((**item).clone(), Type::Dyn),
            Type::Map(pair) => (pair.0.clone(), pair.1.clone()),
            Type::Dyn | Type::Error | Type::Param(_) => {
                self.bindings.assignable(&Type::Dyn, &range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.report(fold.range.at, message);
                (Type::Error, Type::Error)
            }
        };
        let accu = fold.init.ty.clone();
        let outer = self.scopes.len();
        self.scopes.push((Arc::clone(&fold.accu), accu.clone()));
        let inner = self.scopes.len();
        self.scopes.push((Arc::clone(&fold.var), first));
        if let Some(var2) = &fold.var2 {
            self.scopes.push((Arc::clone(var2), second));
        }
        self.expr(&mut fold.condition);
        self.expect(&Type::Bool, &fold.condition);
        self.expr(&mut fold.step);
        self.expect(&accu, &fold.step);
        self.scopes.truncate(inner);
        self.expr(&mut fold.result);
        self.scopes.truncate(outer);
        self.bindings.resolve(&fold.result.ty, false)
    }

    fn expect(&mut self, wanted: &Type, e: &Expr) {
        if !self.bindings.assignable(wanted, &e.ty) {
            let found = &e.ty;
            self.report(e.at, format!("expected type '{wanted}' but found '{found}'"));
        }
    }

    /// Replaces type variables by what they stand for, in the whole tree.
    fn settle(&self, e: &mut Expr) {
        e.ty = self.bindings.resolve(&e.ty, true);
        match &mut e.kind {
            Kind::Literal(_) | Kind::Ident(_) | Kind::TypeName(_) => {}
            Kind::Select { operand, .. } => self.settle(operand),
            Kind::Call(call) => call.target.iter_mut().chain(&mut call.args).for_each(|c| self.settle(c)),
            Kind::List { items, .. } => items.iter_mut().for_each(|c| self.settle(c)),
            Kind::Map(entries) => entries.iter_mut().for_each(|entry| {
                self.settle(&mut entry.key);
                self.settle(&mut entry.value);
            }),
            Kind::Struct { fields, .. } => fields.iter_mut().for_each(|f| self.settle(&mut f.value)),
            Kind::Fold(f) => {
                for part in [&mut f.range, &mut f.init, &mut f.condition, &mut f.step, &mut f.result] {
                    self.settle(part);
                }
            }
        }
    }
}

/// Types of fields of a declared object.
pub fn declared_field(decl: &Decl, field: &str) -> Option<Type> {
    match &decl.shape {
        Shape::Object { .. } => decl.field(field).map(|f| f.decl.ty()),
        _ => None,
    }
}

/// Looks a function up; those of mutating policies only where they are allowed.
pub fn function(name: &str, mutation: bool) -> Option<&'static functions::Function> {
    functions::find(name).filter(|_| mutation || !name.starts_with("jsonpatch."))
}
