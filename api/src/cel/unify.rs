//! Which types agree, and what type parameters then stand for.

use std::collections::HashMap;

use super::types::Type;

/// What free type variables stand for.
#[derive(Debug, Clone, Default)]
pub struct Bindings(HashMap<u32, Type>);

impl Bindings {
    /// Whether `from` may stand where `to` is wanted; binds variables only when it may.
    pub fn assignable(&mut self, to: &Type, from: &Type) -> bool {
        self.all_assignable(std::slice::from_ref(to), std::slice::from_ref(from))
    }

    /// The same for lists of types.
    pub fn all_assignable(&mut self, to: &[Type], from: &[Type]) -> bool {
        let mut attempt = self.clone();
        let fit = to.len() == from.len() && to.iter().zip(from).all(|(a, b)| attempt.fits(a, b));
        if fit {
            *self = attempt;
        }
        fit
    }

    /// The type with bound variables replaced; free ones become dyn if `to_dyn`.
    pub fn resolve(&self, ty: &Type, to_dyn: bool) -> Type {
        ty.map_params(&mut |n| match self.0.get(&n) {
            Some(bound) => self.resolve(bound, to_dyn),
            None if to_dyn => Type::Dyn,
            None => Type::Param(n),
        })
    }

    fn fits(&mut self, a: &Type, b: &Type) -> bool {
        if let Type::Param(n) = b {
            match self.bind(a, *n) {
                (true, _) => return true,
                (false, true) => return false,
                (false, false) => {}
            }
        }
        if let Type::Param(n) = a {
            return self.bind(b, *n).0;
        }
        if a.is_dyn_or_error() || b.is_dyn_or_error() {
            return true;
        }
        match (a, b) {
            (Type::Null, other) | (other, Type::Null) => {
                let nullable = Type::is_nullable(other);
                nullable || matches!(other, Type::Null)
            }
            (Type::Type(_), Type::Type(_)) => true,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => self.fits(a, b),
            (Type::Map(a), Type::Map(b)) => self.fits(&a.0, &b.0) && self.fits(&a.1, &b.1),
            (a, b) => a == b,
        }
    }

    /// Whether `ty` may be what the variable stands for, and whether the variable stood for something already.
    fn bind(&mut self, ty: &Type, variable: u32) -> (bool, bool) {
        if *ty == Type::Param(variable) {
            return (true, true);
        }
        if let Some(bound) = self.0.get(&variable).cloned() {
            if *ty == bound {
                return (true, true);
            }
            if self.fits(ty, &bound) {
                let general = most_general(ty, &bound);
                if !self.occurs(variable, &general) {
                    self.0.insert(variable, general);
                }
                return (true, true);
            }
            return (false, true);
        }
        if self.occurs(variable, ty) {
            return (false, false);
        }
        self.0.insert(variable, ty.clone());
        (true, false)
    }

    fn occurs(&self, variable: u32, within: &Type) -> bool {
        match within {
            Type::Param(n) if *n == variable => true,
            Type::Param(n) => self.0.get(n).is_some_and(|bound| self.occurs(variable, bound)),
            Type::List(t) | Type::Optional(t) | Type::Type(t) => self.occurs(variable, t),
            Type::Map(pair) => self.occurs(variable, &pair.0) || self.occurs(variable, &pair.1),
            _ => false,
        }
    }
}

impl Type {
    /// Whether null is a value of the type.
    fn is_nullable(&self) -> bool {
        matches!(self, Self::Object(_) | Self::Optional(_) | Self::Duration | Self::Timestamp)
    }
}

/// The more general of two types that agree.
pub fn most_general(a: &Type, b: &Type) -> Type {
    if at_least_as_general(a, b) { a.clone() } else { b.clone() }
}

fn at_least_as_general(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::Dyn | Type::Param(_), _) => true,
        (_, Type::Dyn | Type::Param(_)) => false,
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => at_least_as_general(a, b),
        (Type::Map(a), Type::Map(b)) => at_least_as_general(&a.0, &b.0) && at_least_as_general(&a.1, &b.1),
        (Type::Type(_), Type::Type(_)) => true,
        (a, b) => a == b,
    }
}
