//! Operators. Integer arithmetic is checked; comparisons go across number types.

use std::cmp::Ordering;

use crate::cel::error::EvalError;
use crate::cel::value::{Key, Outcome, Value};

const INT: &str = "integer overflow";
const UINT: &str = "unsigned integer overflow";
const DURATION: &str = "duration overflow";
const TIMESTAMP: &str = "timestamp overflow";

pub fn not<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Bool(b)] => Ok(Value::Bool(!b)),
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn equals<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [a, b] => a.equals(b).map(Value::Bool),
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn not_equals<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [a, b] => a.equals(b).map(|equal| Value::Bool(!equal)),
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn ordered<'a>(args: &[Value<'a>], holds: impl Fn(Ordering) -> bool) -> Outcome<'a> {
    match args {
        // NaN is neither less nor greater.
        [Value::Double(a), _] if a.is_nan() => Ok(Value::Bool(false)),
        [_, Value::Double(b)] if b.is_nan() => Ok(Value::Bool(false)),
        [a, b] => a.compare(b).map(|o| Value::Bool(holds(o))).ok_or(EvalError::NoSuchOverload),
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn less<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    ordered(args, Ordering::is_lt)
}
pub fn less_equals<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    ordered(args, Ordering::is_le)
}
pub fn greater<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    ordered(args, Ordering::is_gt)
}
pub fn greater_equals<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    ordered(args, Ordering::is_ge)
}

fn int<'a>(n: Option<i64>) -> Outcome<'a> {
    n.map(Value::Int).ok_or_else(|| EvalError::value(INT))
}
fn uint<'a>(n: Option<u64>) -> Outcome<'a> {
    n.map(Value::Uint).ok_or_else(|| EvalError::value(UINT))
}
fn duration<'a>(n: Option<i64>) -> Outcome<'a> {
    n.map(Value::Duration).ok_or_else(|| EvalError::value(DURATION))
}
fn timestamp<'a>(t: jiff::Timestamp, nanos: i64) -> Outcome<'a> {
    let moved = t.checked_add(jiff::SignedDuration::from_nanos(nanos)).ok();
    moved
        .filter(|t| super::time::in_range(*t))
        .map(Value::Timestamp)
        .ok_or_else(|| EvalError::value(TIMESTAMP))
}

pub fn add<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Int(a), Value::Int(b)] => int(a.checked_add(*b)),
        [Value::Uint(a), Value::Uint(b)] => uint(a.checked_add(*b)),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a + b)),
        [Value::String(a), Value::String(b)] => Ok(Value::string([&**a, &**b].concat())),
        [Value::Bytes(a), Value::Bytes(b)] => Ok(Value::Bytes([&**a, &**b].concat().into())),
        [Value::List(a), Value::List(b)] => a.clone().concat(b),
        [Value::Duration(a), Value::Duration(b)] => duration(a.checked_add(*b)),
        [Value::Timestamp(t), Value::Duration(d)] | [Value::Duration(d), Value::Timestamp(t)] => {
            timestamp(*t, *d)
        }
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn subtract<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Int(a), Value::Int(b)] => int(a.checked_sub(*b)),
        [Value::Uint(a), Value::Uint(b)] => uint(a.checked_sub(*b)),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a - b)),
        [Value::Duration(a), Value::Duration(b)] => duration(a.checked_sub(*b)),
        [Value::Timestamp(t), Value::Duration(d)] => {
            timestamp(*t, d.checked_neg().ok_or_else(|| EvalError::value(DURATION))?)
        }
        [Value::Timestamp(a), Value::Timestamp(b)] => {
            duration(i64::try_from(a.as_nanosecond() - b.as_nanosecond()).ok())
        }
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn multiply<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Int(a), Value::Int(b)] => int(a.checked_mul(*b)),
        [Value::Uint(a), Value::Uint(b)] => uint(a.checked_mul(*b)),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a * b)),
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn divide<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            Err(EvalError::value("division by zero"))
        }
        [Value::Int(a), Value::Int(b)] => int(a.checked_div(*b)),
        [Value::Uint(a), Value::Uint(b)] => uint(a.checked_div(*b)),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a / b)),
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn modulo<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            Err(EvalError::value("modulus by zero"))
        }
        [Value::Int(a), Value::Int(b)] => int(a.checked_rem(*b)),
        [Value::Uint(a), Value::Uint(b)] => uint(a.checked_rem(*b)),
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn negate<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Int(a)] => int(a.checked_neg()),
        [Value::Double(a)] => Ok(Value::Double(-a)),
        _ => Err(EvalError::NoSuchOverload),
    }
}

/// `a in b`.
pub fn contained<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [item, Value::List(list)] => {
            for other in list.iter() {
                if item.equals(&other?)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        [key, Value::Map(map)] => Ok(Value::Bool(Key::of(key).is_some_and(|key| map.has_key(&key)))),
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn size<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [v @ (Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_))] => {
            Ok(Value::Int(v.size().and_then(|n| i64::try_from(n).ok()).unwrap_or(i64::MAX)))
        }
        _ => Err(EvalError::NoSuchOverload),
    }
}
