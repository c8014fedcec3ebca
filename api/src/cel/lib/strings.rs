//! Functions of strings. Positions count characters.

use std::sync::Arc;

use super::lists;
use crate::cel::error::EvalError;
use crate::cel::value::{Outcome, Str, Value};

const NO: EvalError = EvalError::NoSuchOverload;

fn out_of_range<'a>(index: i64) -> Outcome<'a> {
    Err(EvalError::value(format!("index out of range: {index}")))
}

pub fn contains<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s), Value::String(part)] => Ok(Value::Bool(s.contains(&**part))),
        _ => Err(NO),
    }
}

pub fn ends_with<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s), Value::String(part)] => Ok(Value::Bool(s.ends_with(&**part))),
        _ => Err(NO),
    }
}

pub fn starts_with<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s), Value::String(part)] => Ok(Value::Bool(s.starts_with(&**part))),
        _ => Err(NO),
    }
}

pub fn char_at<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::String(s), Value::Int(at)] = args else { return Err(NO) };
    let length = s.chars().count() as i64;
    match usize::try_from(*at) {
        Ok(i) if *at < length => Ok(Value::string(s.chars().skip(i).take(1).collect::<String>())),
        _ if *at == length => Ok(Value::string("")),
        _ => out_of_range(*at),
    }
}

/// Character offset of a byte offset.
fn chars_before(s: &str, byte: usize) -> i64 {
    s[..byte].chars().count() as i64
}

/// Byte offset of a character offset; the end for what is beyond.
fn byte_of(s: &str, at: i64) -> usize {
    usize::try_from(at).ok().and_then(|at| s.char_indices().nth(at)).map_or(s.len(), |(i, _)| i)
}

pub fn index_of<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let (s, part, from) = match args {
        [Value::List(_), _] => return lists::index_of(args),
        [Value::String(s), Value::String(part)] => (s, part, 0),
        [Value::String(s), Value::String(part), Value::Int(from)] => (s, part, *from),
        _ => return Err(NO),
    };
    if part.is_empty() {
        return Ok(Value::Int(from));
    }
    if from < 0 || from > s.chars().count() as i64 {
        return out_of_range(from);
    }
    let start = byte_of(s, from);
    Ok(Value::Int(s[start..].find(&**part).map_or(-1, |i| chars_before(s, start + i))))
}

pub fn last_index_of<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let (s, part, until) = match args {
        [Value::List(_), _] => return lists::last_index_of(args),
        [Value::String(s), Value::String(part)] => (s, part, None),
        [Value::String(s), Value::String(part), Value::Int(until)] => (s, part, Some(*until)),
        _ => return Err(NO),
    };
    let length = s.chars().count() as i64;
    if part.is_empty() {
        return Ok(Value::Int(until.unwrap_or(length)));
    }
    let end = match until {
        Some(until) if until < 0 || until > length => return out_of_range(until),
        // The match may begin there at the latest.
        Some(until) => byte_of(s, until.saturating_add(part.chars().count() as i64)),
        None => s.len(),
    };
    Ok(Value::Int(s[..end].rfind(&**part).map_or(-1, |i| chars_before(s, i))))
}

pub fn lower_ascii<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s)] => Ok(Value::string(s.to_ascii_lowercase())),
        _ => Err(NO),
    }
}

pub fn upper_ascii<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s)] => Ok(Value::string(s.to_ascii_uppercase())),
        _ => Err(NO),
    }
}

pub fn replace<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s), Value::String(from), Value::String(to)] => {
            Ok(Value::string(s.replace(&**from, to)))
        }
        [Value::String(s), Value::String(from), Value::String(to), Value::Int(n)] => {
            Ok(match usize::try_from(*n) {
                Ok(n) => Value::string(s.replacen(&**from, to, n)),
                Err(_) => Value::string(s.replace(&**from, to)),
            })
        }
        _ => Err(NO),
    }
}

pub fn split<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let (s, separator, limit) = match args {
        [Value::String(s), Value::String(separator)] => (s, separator, -1),
        [Value::String(s), Value::String(separator), Value::Int(limit)] => (s, separator, *limit),
        _ => return Err(NO),
    };
    let limit = match limit {
        0 => return Ok(Value::list(Vec::new())),
        n => usize::try_from(n).unwrap_or(usize::MAX),
    };
    let parts: Vec<&str> = if separator.is_empty() {
        // Into characters; the last part has the rest.
        let mut ends: Vec<usize> = s.char_indices().map(|(i, _)| i).skip(1).take(limit - 1).collect();
        ends.push(s.len());
        let mut start = 0;
        ends.into_iter()
            .filter_map(|end| {
                let part = s.get(start..end);
                start = end;
                part.filter(|p| !p.is_empty())
            })
            .collect()
    } else {
        s.splitn(limit, &**separator).collect()
    };
    Ok(Value::list(parts.into_iter().map(Value::string).collect()))
}

pub fn substring<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let (s, from, to) = match args {
        [Value::String(s), Value::Int(from)] => (s, *from, None),
        [Value::String(s), Value::Int(from), Value::Int(to)] => (s, *from, Some(*to)),
        _ => return Err(NO),
    };
    let length = s.chars().count() as i64;
    let end = to.unwrap_or(length);
    if from < 0 || from > length {
        return out_of_range(from);
    }
    if end < 0 || end > length {
        return out_of_range(end);
    }
    if from > end {
        return Err(EvalError::value(format!("invalid substring range. start: {from}, end: {end}")));
    }
    Ok(Value::string(&s[byte_of(s, from)..byte_of(s, end)]))
}

pub fn trim<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s)] => Ok(Value::string(s.trim())),
        _ => Err(NO),
    }
}

pub fn join<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let (list, separator) = match args {
        [Value::List(list)] => (list, ""),
        [Value::List(list), Value::String(separator)] => (list, &**separator),
        _ => return Err(NO),
    };
    let mut parts: Vec<Str<'a>> = Vec::with_capacity(list.len());
    for item in list.iter() {
        match item? {
            Value::String(s) => parts.push(s),
            _ => return Err(NO),
        }
    }
    let parts: Vec<&str> = parts.iter().map(|s| &**s).collect();
    Ok(Value::string(parts.join(separator)))
}

pub fn quote<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::String(s)] = args else { return Err(NO) };
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    Ok(Value::string(out))
}

/// A key as part of a JSON pointer (RFC 6901).
pub fn escape_json_pointer<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s)] => {
            Ok(Value::String(Str::Shared(Arc::from(s.replace('~', "~0").replace('/', "~1")))))
        }
        _ => Err(NO),
    }
}
