//! Semantic versions (semver.org 2.0.0), also in the loose form `v1.2`.

use std::sync::Arc;

use semver::Version;

use crate::cel::error::EvalError;
use crate::cel::value::{Outcome, Value};

const NO: EvalError = EvalError::NoSuchOverload;

fn parse(args: &[Value<'_>]) -> Result<Result<Version, String>, EvalError> {
    let (text, loose) = match args {
        [Value::String(s)] => (s, false),
        [Value::String(s), Value::Bool(loose)] => (s, *loose),
        _ => return Err(NO),
    };
    let strict = |text: &str| Version::parse(text).map_err(|e| e.to_string());
    Ok(if loose { normalize(text).and_then(|text| strict(&text)) } else { strict(text) })
}

/// Without `v` and leading zeros, with three numbers.
fn normalize(text: &str) -> Result<String, String> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let mut parts: Vec<String> = text.splitn(3, '.').map(str::to_owned).collect();
    for part in &mut parts {
        if part.len() > 1 {
            let stripped = part.trim_start_matches('0');
            *part = if stripped.starts_with(|c: char| c.is_ascii_digit()) {
                stripped.to_owned()
            } else {
                format!("0{stripped}")
            };
        }
    }
    if parts.len() < 3 {
        if parts.last().is_some_and(|p| p.contains(['+', '-'])) {
            return Err("short version cannot contain PreRelease/Build meta data".into());
        }
        parts.resize(3, "0".into());
    }
    Ok(parts.join("."))
}

pub fn semver<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    parse(args)?.map(|v| Value::Semver(Arc::new(v))).map_err(EvalError::Value)
}

pub fn is_semver<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    parse(args).map(|v| Value::Bool(v.is_ok()))
}

fn number<'a>(args: &[Value<'a>], of: impl Fn(&Version) -> u64) -> Outcome<'a> {
    match args {
        [Value::Semver(v)] => Ok(Value::Int(i64::try_from(of(v)).unwrap_or(i64::MAX))),
        _ => Err(NO),
    }
}

pub fn major<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    number(args, |v| v.major)
}
pub fn minor<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    number(args, |v| v.minor)
}
pub fn patch<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    number(args, |v| v.patch)
}
