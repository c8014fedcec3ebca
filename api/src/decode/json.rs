//! JSON text to a value, with the errors and the duplicate fields that Go's decoder would see.

use super::{DecodeError, Dropped};
use crate::text::quote;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

/// Parses JSON. Of duplicate fields the last one counts; they are reported in `dropped`.
///
/// # Errors
/// When the text is not one JSON value.
pub fn parse_json(bytes: &[u8], dropped: &mut Dropped) -> Result<Value, DecodeError> {
    let mut de = serde_json::Deserializer::from_slice(bytes);
    let mut path = Vec::new();
    let seed = Tracking { path: &mut path, dropped };
    let value = seed.deserialize(&mut de).and_then(|v| de.end().map(|()| v));
    value.map_err(|e| DecodeError(go_syntax_error(bytes, &e)))
}

/// Renders a syntax error as `encoding/json` would.
fn go_syntax_error(bytes: &[u8], e: &serde_json::Error) -> String {
    use serde_json::error::Category;
    if e.classify() == Category::Eof {
        return "unexpected end of JSON input".into();
    }
    let line_start = bytes
        .iter()
        .enumerate()
        .filter(|(_, b)| **b == b'\n')
        .map(|(i, _)| i + 1)
        .nth(e.line().saturating_sub(2))
        .filter(|_| e.line() > 1)
        .unwrap_or(0);
    let at = line_start + e.column().saturating_sub(1);
    let Some(c) = bytes.get(at..).and_then(first_char) else { return e.to_string() };
    let c = match c {
        '\'' => "'\\''".to_owned(),
        '"' => "'\"'".to_owned(),
        c => format!("'{}'", quote(&c.to_string()).trim_matches('"')),
    };
    let text = e.to_string();
    let after_comma = text.starts_with("trailing comma");
    let context = if text.starts_with("key must be a string") || after_comma && c == "'}'" {
        "looking for beginning of object key string"
    } else if after_comma || text.starts_with("expected value") || text.starts_with("expected ident") {
        "looking for beginning of value"
    } else if text.starts_with("invalid escape") {
        "in string escape code"
    } else if text.starts_with("control character") {
        "in string literal"
    } else if text.starts_with("expected `:`") {
        "after object key"
    } else if text.starts_with("expected `,` or `}`") {
        "after object key:value pair"
    } else if text.starts_with("expected `,` or `]`") {
        "after array element"
    } else if text.starts_with("trailing characters") {
        "after top-level value"
    } else {
        return text;
    };
    format!("invalid character {c} {context}")
}

/// The character that bytes begin with; a byte that begins none stands for itself.
fn first_char(bytes: &[u8]) -> Option<char> {
    let first = *bytes.first()?;
    let valid = (1..=4.min(bytes.len())).find_map(|n| std::str::from_utf8(&bytes[..n]).ok());
    Some(valid.and_then(|s| s.chars().next()).unwrap_or(first as char))
}

/// What is said of a field that is there more than once.
pub(super) fn duplicate(path: &str) -> String {
    format!("duplicate field {}", quote(path))
}

/// What is said of a field that the type does not have.
pub(super) fn unknown(path: &str) -> String {
    format!("unknown field {}", quote(path))
}

/// The text of the value that a path leads to, as the document has it.
pub(super) fn raw_at<'a>(bytes: &'a [u8], path: &[Step]) -> Option<&'a str> {
    let mut at: &RawValue = serde_json::from_slice(bytes).ok()?;
    for step in path {
        at = match step {
            Step::Field(name) => serde_json::from_str::<HashMap<Cow<'_, str>, &RawValue>>(at.get())
                .ok()?
                .remove(name.as_str())?,
            Step::Index(i) => serde_json::from_str::<Vec<&RawValue>>(at.get()).ok()?.get(*i).copied()?,
        };
    }
    Some(at.get())
}

/// One step of the way to a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Field(String),
    Index(usize),
}

/// The way to the field `last`, as Kubernetes writes it: `spec.containers[0].name`.
pub(super) fn render(path: &[Step], last: &str) -> String {
    let mut out = String::new();
    for step in path {
        match step {
            Step::Field(name) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(name);
            }
            Step::Index(i) => out.push_str(&format!("[{i}]")),
        }
    }
    if !out.is_empty() {
        out.push('.');
    }
    out.push_str(last);
    out
}

/// Builds a `Value` and notes duplicate fields.
struct Tracking<'a> {
    path: &'a mut Vec<Step>,
    dropped: &'a mut Dropped,
}

impl<'de> DeserializeSeed<'de> for Tracking<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tracking<'_> {
    type Value = Value;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::from(v))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::from(v))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Number::from_f64(v).map_or(Value::Null, Value::Number))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            self.path.push(Step::Index(items.len()));
            let item = seq.next_element_seed(Tracking { path: self.path, dropped: self.dropped });
            self.path.pop();
            match item? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }
    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            self.path.push(Step::Field(key));
            let value = access.next_value_seed(Tracking { path: self.path, dropped: self.dropped });
            let Some(Step::Field(key)) = self.path.pop() else {
                return Err(serde::de::Error::custom("unbalanced path"));
            };
            let value = value?;
            if map.contains_key(&key) {
                self.dropped.messages.push(duplicate(&render(self.path, &key)));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
