//! Quantities; comparisons are shared with semantic versions.

use std::cmp::Ordering;

use crate::cel::error::EvalError;
use crate::cel::value::{Outcome, Value};
use crate::quantity::Quantity;

const NO: EvalError = EvalError::NoSuchOverload;

pub fn quantity<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s)] => Quantity::parse(s).map(Value::Quantity).map_err(EvalError::value),
        _ => Err(NO),
    }
}

pub fn is_quantity<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s)] => Ok(Value::Bool(Quantity::parse(s).is_ok())),
        _ => Err(NO),
    }
}

/// 1, 0 or -1.
pub fn sign<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Quantity(q)] => {
            Ok(Value::Int(i64::from(!q.is_zero()) * if q.is_negative() { -1 } else { 1 }))
        }
        _ => Err(NO),
    }
}

fn order(args: &[Value<'_>]) -> Result<Ordering, EvalError> {
    match args {
        [Value::Quantity(a), Value::Quantity(b)] => Ok(a.cmp(b)),
        [Value::Semver(a), Value::Semver(b)] => Ok(a.cmp_precedence(b)),
        _ => Err(NO),
    }
}

pub fn is_greater<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    order(args).map(|o| Value::Bool(o.is_gt()))
}
pub fn is_less<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    order(args).map(|o| Value::Bool(o.is_lt()))
}
pub fn compare_to<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    order(args).map(|o| Value::Int(o as i64))
}

pub fn as_float<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Quantity(q)] => Ok(Value::Double(q.as_f64())),
        _ => Err(NO),
    }
}

/// Whether the value is a whole 64-bit number.
fn whole(q: &Quantity) -> bool {
    q.is_integer() && Quantity::from_int(q.value()) == *q
}

pub fn as_integer<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Quantity(q)] if whole(q) => Ok(Value::Int(q.value())),
        [Value::Quantity(_)] => Err(EvalError::value("cannot convert value to integer")),
        _ => Err(NO),
    }
}

pub fn is_integer<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Quantity(q)] => Ok(Value::Bool(whole(q))),
        _ => Err(NO),
    }
}

fn pair(args: &[Value<'_>]) -> Result<(Quantity, Quantity), EvalError> {
    match args {
        [Value::Quantity(a), Value::Quantity(b)] => Ok((*a, *b)),
        [Value::Quantity(a), Value::Int(b)] => Ok((*a, Quantity::from_int(*b))),
        _ => Err(NO),
    }
}

pub fn add<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    pair(args).map(|(a, b)| Value::Quantity(a + b))
}
pub fn sub<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    pair(args).map(|(a, b)| Value::Quantity(a - b))
}
