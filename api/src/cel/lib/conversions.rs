//! Conversions between types.

use crate::cel::error::EvalError;
use crate::cel::value::{Outcome, Value};

pub fn type_of<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    args.first().map(|v| Value::Type(v.type_of())).ok_or(EvalError::NoSuchOverload)
}

pub fn same<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    args.first().cloned().ok_or(EvalError::NoSuchOverload)
}

pub fn bool<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Bool(b)] => Ok(Value::Bool(*b)),
        [Value::String(s)] => match &**s {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            _ => Err(unconvertible("bool")),
        },
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn bytes<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Bytes(b)] => Ok(Value::Bytes(b.clone())),
        [Value::String(s)] => Ok(Value::Bytes(s.as_bytes().into())),
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn double<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Double(n)] => Ok(Value::Double(*n)),
        [Value::Int(n)] => Ok(Value::Double(*n as f64)),
        [Value::Uint(n)] => Ok(Value::Double(*n as f64)),
        [Value::String(s)] => s.parse().map(Value::Double).map_err(|_| unconvertible("double")),
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn duration<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Duration(n)] => Ok(Value::Duration(*n)),
        [Value::Int(n)] => n
            .checked_mul(1_000_000_000)
            .map(Value::Duration)
            .ok_or_else(|| EvalError::value("duration overflow")),
        [Value::String(s)] => super::time::parse_duration(s)
            .map(Value::Duration)
            .ok_or_else(|| unconvertible("google.protobuf.Duration")),
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn int<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let overflow = || EvalError::value("integer overflow");
    match args {
        [Value::Int(n)] => Ok(Value::Int(*n)),
        [Value::Uint(n)] => i64::try_from(*n).map(Value::Int).map_err(|_| overflow()),
        // The borders themselves are not exact as doubles.
        [Value::Double(n)] if *n > -9_223_372_036_854_775_808.0 && *n < 9_223_372_036_854_775_807.0 => {
            Ok(Value::Int(*n as i64))
        }
        [Value::Double(_)] => Err(overflow()),
        [Value::Duration(n)] => Ok(Value::Int(*n)),
        [Value::Timestamp(t)] => Ok(Value::Int(t.as_second())),
        [Value::String(s)] => s.parse().map(Value::Int).map_err(|_| unconvertible("int")),
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn uint<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let overflow = || EvalError::value("unsigned integer overflow");
    match args {
        [Value::Uint(n)] => Ok(Value::Uint(*n)),
        [Value::Int(n)] => u64::try_from(*n).map(Value::Uint).map_err(|_| overflow()),
        [Value::Double(n)] if *n >= 0.0 && *n < 18_446_744_073_709_551_615.0 => Ok(Value::Uint(*n as u64)),
        [Value::Double(_)] => Err(overflow()),
        [Value::String(s)] => s.parse().map(Value::Uint).map_err(|_| unconvertible("uint")),
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn string<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s)] => Ok(Value::String(s.clone())),
        [Value::Bytes(b)] => match std::str::from_utf8(b) {
            Ok(s) => Ok(Value::string(s)),
            Err(_) => Err(EvalError::value("invalid UTF-8 in bytes, cannot convert to string")),
        },
        [
            v @ (Value::Bool(_)
            | Value::Int(_)
            | Value::Uint(_)
            | Value::Double(_)
            | Value::Duration(_)
            | Value::Timestamp(_)
            | Value::Ip(_)
            | Value::Cidr(_)),
        ] => Ok(Value::string(v.to_string())),
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn timestamp<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Timestamp(t)] => Ok(Value::Timestamp(*t)),
        [Value::Int(n)] => jiff::Timestamp::from_second(*n)
            .ok()
            .filter(|t| super::time::in_range(*t))
            .map(Value::Timestamp)
            .ok_or_else(|| EvalError::value("timestamp overflow")),
        [Value::String(s)] => super::time::parse_timestamp(s)
            .map(Value::Timestamp)
            .ok_or_else(|| unconvertible("google.protobuf.Timestamp")),
        _ => Err(EvalError::NoSuchOverload),
    }
}

/// A text that does not read as a value of the type.
fn unconvertible(to: &str) -> EvalError {
    EvalError::value(format!("type conversion error from 'string' to '{to}'"))
}

/// The shortest text of a double, with an exponent from 1e+06 on and below 1e-04, as Go's `%g`.
pub fn double_text(n: f64) -> String {
    if n.is_nan() {
        return "NaN".into();
    }
    if n.is_infinite() {
        return if n > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    let scientific = format!("{n:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if n != 0.0 && !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    format!("{n}")
}
