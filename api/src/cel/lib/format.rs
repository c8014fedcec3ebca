//! `string.format(list)`: `%s %d %f %e %b %x %X %o %%`, as CEL's extension for strings describes them.

use crate::cel::error::EvalError;
use crate::cel::value::{Outcome, Value};

/// Most decimals that `%f` and `%e` print.
const MAX_PRECISION: usize = 100;

pub fn format<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::String(text), Value::List(list)] = args else { return Err(EvalError::NoSuchOverload) };
    let mut out = String::new();
    let mut next = 0;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.peek() == Some(&'%') {
            chars.next();
            out.push('%');
            continue;
        }
        let mut precision = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(d) = chars.next_if(char::is_ascii_digit) {
                digits.push(d);
            }
            let n = digits.parse().map_err(|_| {
                EvalError::value(format!("could not parse formatting clause: error while converting precision to integer: {digits:?}"))
            })?;
            precision = Some(std::cmp::min(n, MAX_PRECISION));
        }
        let Some(verb) = chars.next() else {
            return Err(EvalError::value("could not parse formatting clause: unexpected end of string"));
        };
        let Some(value) = list.get(next) else {
            return Err(EvalError::value(format!("index {next} out of range")));
        };
        next += 1;
        out.push_str(&clause(verb, precision, &value?)?);
    }
    Ok(Value::string(out))
}

fn clause(verb: char, precision: Option<usize>, value: &Value<'_>) -> Result<String, EvalError> {
    let wrong = |clause: &str, allowed: &str| {
        let given = value.type_of();
        EvalError::value(format!(
            "error during formatting: {clause} clause can only be used on {allowed}, was given {}",
            given.name()
        ))
    };
    Ok(match (verb, value) {
        ('s', value) => plain(value)?,
        ('d', Value::Int(n)) => n.to_string(),
        ('d', Value::Uint(n)) => n.to_string(),
        ('d', Value::Double(n)) if !n.is_finite() => not_finite(*n),
        ('d', _) => return Err(wrong("decimal", "integers")),
        ('f' | 'e', Value::Double(n)) if !n.is_finite() => not_finite(*n),
        ('f', Value::Double(n)) => format!("{n:.*}", precision.unwrap_or(6)),
        ('e', Value::Double(n)) => exponent(*n, precision.unwrap_or(6)),
        ('f' | 'e', Value::Int(n)) => return clause(verb, precision, &Value::Double(*n as f64)),
        ('f' | 'e', Value::Uint(n)) => return clause(verb, precision, &Value::Double(*n as f64)),
        ('f', _) => return Err(wrong("fixed-point", "doubles")),
        ('e', _) => return Err(wrong("scientific", "doubles")),
        ('b', Value::Bool(b)) => u8::from(*b).to_string(),
        ('b', Value::Int(n)) => signed(*n, |n| format!("{n:b}")),
        ('b', Value::Uint(n)) => format!("{n:b}"),
        ('b', _) => return Err(wrong("binary", "integers and bools")),
        ('x', Value::Int(n)) => signed(*n, |n| format!("{n:x}")),
        ('X', Value::Int(n)) => signed(*n, |n| format!("{n:X}")),
        ('x', Value::Uint(n)) => format!("{n:x}"),
        ('X', Value::Uint(n)) => format!("{n:X}"),
        ('x', Value::String(s)) => s.bytes().map(|b| format!("{b:02x}")).collect(),
        ('X', Value::String(s)) => s.bytes().map(|b| format!("{b:02X}")).collect(),
        ('x', Value::Bytes(s)) => s.iter().map(|b| format!("{b:02x}")).collect(),
        ('X', Value::Bytes(s)) => s.iter().map(|b| format!("{b:02X}")).collect(),
        ('x' | 'X', _) => return Err(wrong("hex", "integers, byte buffers, and strings")),
        ('o', Value::Int(n)) => signed(*n, |n| format!("{n:o}")),
        ('o', Value::Uint(n)) => format!("{n:o}"),
        ('o', _) => return Err(wrong("octal", "integers")),
        (verb, _) => {
            let message =
                format!("could not parse formatting clause: unrecognized formatting clause \"{verb}\"");
            return Err(EvalError::value(message));
        }
    })
}

/// `%s`: as CEL writes the value.
fn plain(value: &Value<'_>) -> Result<String, EvalError> {
    Ok(match value {
        Value::Double(n) if !n.is_finite() => not_finite(*n),
        Value::List(list) => {
            let parts = list.iter().map(|v| v.and_then(|v| plain(&v))).collect::<Result<Vec<_>, _>>()?;
            format!("[{}]", parts.join(", "))
        }
        Value::Map(map) => {
            let mut parts = Vec::new();
            for key in map.keys() {
                if let Some(value) = map.get(&key) {
                    parts.push(format!("{}: {}", plain(&key.value())?, plain(&value?)?));
                }
            }
            parts.sort();
            format!("{{{}}}", parts.join(", "))
        }
        Value::Null
        | Value::Bool(_)
        | Value::Int(_)
        | Value::Uint(_)
        | Value::Double(_)
        | Value::String(_)
        | Value::Bytes(_)
        | Value::Duration(_)
        | Value::Timestamp(_)
        | Value::Type(_) => value.to_string(),
        other => {
            return Err(EvalError::value(format!(
                "error during formatting: string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps, was given {}",
                other.type_of().name()
            )));
        }
    })
}

fn not_finite(n: f64) -> String {
    if n.is_nan() {
        "NaN".into()
    } else if n > 0.0 {
        "Infinity".into()
    } else {
        "-Infinity".into()
    }
}

fn signed(n: i64, digits: impl Fn(u64) -> String) -> String {
    format!("{}{}", if n < 0 { "-" } else { "" }, digits(n.unsigned_abs()))
}

/// `1.234560e+03`.
fn exponent(n: f64, precision: usize) -> String {
    let text = format!("{n:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}
