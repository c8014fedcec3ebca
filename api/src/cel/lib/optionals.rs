//! Optional values. `or` and `orValue` are the evaluator's: their argument may not be needed.

use crate::cel::error::EvalError;
use crate::cel::value::{Outcome, Value};

pub fn of<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    args.first().cloned().map(Value::some).ok_or(EvalError::NoSuchOverload)
}

pub fn of_non_zero<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [v] if v.is_zero() => Ok(Value::Optional(None)),
        [v] => Ok(Value::some(v.clone())),
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn none<'a>(_: &[Value<'a>]) -> Outcome<'a> {
    Ok(Value::Optional(None))
}

pub fn value<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Optional(Some(v))] => Ok((**v).clone()),
        [Value::Optional(None)] => Err(EvalError::value("optional.none() dereference")),
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn has_value<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Optional(v)] => Ok(Value::Bool(v.is_some())),
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn unwrap<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::List(list)] = args else { return Err(EvalError::NoSuchOverload) };
    let mut items = Vec::new();
    for item in list.iter() {
        match item? {
            Value::Optional(v) => items.extend(v.map(|v| (*v).clone())),
            other => return Err(EvalError::value(format!("value {other} is not optional"))),
        }
    }
    Ok(Value::list(items))
}
