//! Regular expressions with RE2's syntax and meaning.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use regex::Regex;

use crate::cel::error::EvalError;
use crate::cel::value::{Outcome, Value};
use crate::crd::pattern;

/// Patterns that were compiled lately: most are literals of expressions that run for every request.
static COMPILED: LazyLock<Mutex<HashMap<String, Regex>>> = LazyLock::new(Mutex::default);
const KEPT: usize = 256;

/// Compiles a pattern, or finds it compiled.
///
/// # Errors
/// RE2's text.
pub fn compile(text: &str) -> Result<Regex, String> {
    if let Some(found) = COMPILED.lock().unwrap_or_else(PoisonError::into_inner).get(text) {
        return Ok(found.clone());
    }
    let compiled = pattern::compile(text)?;
    let mut kept = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.len() >= KEPT {
        kept.clear();
    }
    kept.insert(text.to_owned(), compiled.clone());
    Ok(compiled)
}

pub fn matches<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::String(s), Value::String(text)] = args else { return Err(EvalError::NoSuchOverload) };
    compile(text).map(|r| Value::Bool(r.is_match(s))).map_err(EvalError::Value)
}

fn illegal(e: String) -> EvalError {
    EvalError::value(format!("Illegal regex: {e}"))
}

pub fn find<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::String(s), Value::String(text)] = args else { return Err(EvalError::NoSuchOverload) };
    let found = compile(text).map_err(illegal)?;
    Ok(Value::string(found.find(s).map_or("", |m| m.as_str())))
}

pub fn find_all<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let (s, text, limit) = match args {
        [Value::String(s), Value::String(text)] => (s, text, -1),
        [Value::String(s), Value::String(text), Value::Int(limit)] => (s, text, *limit),
        _ => return Err(EvalError::NoSuchOverload),
    };
    let regex = compile(text).map_err(illegal)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    Ok(Value::list(regex.find_iter(s).take(limit).map(|m| Value::string(m.as_str())).collect()))
}
