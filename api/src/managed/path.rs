//! Steps of a field path, in the written form of FieldsV1 (KEP-555) and as messages print them.

use std::cmp::Ordering;
use std::fmt;

use serde_json::{Map, Value};

use crate::text::quote;

/// One step of a path. The order is that of kube-apiserver: fields, keys, values, indices.
#[derive(Debug, Clone)]
pub enum Element {
    /// `f:name`
    Field(Box<str>),
    /// `k:{"name":"x"}`: an item of a list, by its keys, sorted by name.
    Key(Vec<(Box<str>, Value)>),
    /// `v:"x"`: a member of a set.
    Value(Value),
    /// `i:0`
    Index(i64),
}

impl Element {
    /// A field.
    pub fn field(name: &str) -> Self {
        Self::Field(name.into())
    }

    /// Reads the written form. `Ok(None)` for a form that only later servers know.
    ///
    /// # Errors
    /// For what is no step at all.
    pub fn parse(text: &str) -> Result<Option<Self>, Malformed> {
        let (form, rest) = text.split_once(':').ok_or(Malformed)?;
        Ok(Some(match form {
            "f" => Self::field(rest),
            "k" => {
                let keys: Map<String, Value> = serde_json::from_str(rest).map_err(|_| Malformed)?;
                let mut keys: Vec<(Box<str>, Value)> =
                    keys.into_iter().map(|(k, v)| (k.into_boxed_str(), v)).collect();
                keys.sort_by(|a, b| a.0.cmp(&b.0));
                Self::Key(keys)
            }
            "v" => Self::Value(serde_json::from_str(rest).map_err(|_| Malformed)?),
            "i" => Self::Index(rest.parse().map_err(|_| Malformed)?),
            _ if form.len() == 1 => return Ok(None),
            _ => return Err(Malformed),
        }))
    }

    /// The written form.
    pub fn written(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(keys) => {
                let parts: Vec<String> = keys
                    .iter()
                    .map(|(name, value)| format!("{}:{}", json(&Value::from(&**name)), json(value)))
                    .collect();
                format!("k:{{{}}}", parts.join(","))
            }
            Self::Value(value) => format!("v:{}", json(value)),
            Self::Index(i) => format!("i:{i}"),
        }
    }
}

/// A text that is no step of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed field path")]
pub struct Malformed;

/// JSON the way Go writes it, HTML's characters escaped.
pub(super) fn json(value: &Value) -> String {
    let text = value.to_string();
    if !text.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// Whether two values are the same to server-side apply: numbers are compared by value.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => compare_numbers(x, y) == Ordering::Equal,
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y)),
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(k, v)| y.get(k).is_some_and(|w| same(v, w)))
        }
        _ => a == b,
    }
}

fn compare_numbers(a: &serde_json::Number, b: &serde_json::Number) -> Ordering {
    if let (Some(a), Some(b)) = (a.as_i64(), b.as_i64()) {
        return a.cmp(&b);
    }
    a.as_f64().unwrap_or(0.0).total_cmp(&b.as_f64().unwrap_or(0.0))
}

/// A total order of values: numbers, strings, booleans, lists, objects, null.
fn compare_values(a: &Value, b: &Value) -> Ordering {
    let rank = |v: &Value| match v {
        Value::Number(_) => 0,
        Value::String(_) => 1,
        Value::Bool(_) => 2,
        Value::Array(_) => 3,
        Value::Object(_) => 4,
        Value::Null => 5,
    };
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => compare_numbers(x, y),
        (Value::String(x), Value::String(y)) => x.cmp(y),
        (Value::Bool(x), Value::Bool(y)) => x.cmp(y),
        (Value::Array(x), Value::Array(y)) => {
            let items = x.iter().zip(y).map(|(x, y)| compare_values(x, y)).find(|o| o.is_ne());
            items.unwrap_or_else(|| x.len().cmp(&y.len()))
        }
        (Value::Object(x), Value::Object(y)) => {
            let pairs = x.iter().zip(y).map(|(x, y)| x.0.cmp(y.0).then_with(|| compare_values(x.1, y.1)));
            pairs.into_iter().find(|o| o.is_ne()).unwrap_or_else(|| x.len().cmp(&y.len()))
        }
        _ => rank(a).cmp(&rank(b)),
    }
}

impl Ord for Element {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |e: &Self| match e {
            Self::Field(_) => 0,
            Self::Key(_) => 1,
            Self::Value(_) => 2,
            Self::Index(_) => 3,
        };
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Key(a), Self::Key(b)) => {
                let pairs =
                    a.iter().zip(b).map(|(x, y)| x.0.cmp(&y.0).then_with(|| compare_values(&x.1, &y.1)));
                pairs.into_iter().find(|o| o.is_ne()).unwrap_or_else(|| a.len().cmp(&b.len()))
            }
            (Self::Value(a), Self::Value(b)) => compare_values(a, b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            _ => rank(self).cmp(&rank(other)),
        }
    }
}

impl PartialOrd for Element {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Element {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Element {}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(keys) => {
                let parts: Vec<String> =
                    keys.iter().map(|(name, value)| format!("{name}={}", shown(value))).collect();
                write!(f, "[{}]", parts.join(","))
            }
            Self::Value(value) => write!(f, "[={}]", shown(value)),
            Self::Index(i) => write!(f, "[{i}]"),
        }
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(s) => quote(s),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn written_and_shown() {
        for (text, shown) in [
            ("f:spec", ".spec"),
            (r#"k:{"containerPort":80,"protocol":"TCP"}"#, r#"[containerPort=80,protocol="TCP"]"#),
            (r#"v:"a\u003cb""#, r#"[="a<b"]"#),
            ("i:3", "[3]"),
        ] {
            let element = Element::parse(text).expect("step").expect("known");
            assert_eq!((element.written().as_str(), element.to_string().as_str()), (text, shown));
        }
        assert_eq!(Element::parse("x:1"), Ok(None));
        for text in ["x", "k:[]", "v:", "i:a", "xy:1"] {
            assert_eq!(Element::parse(text), Err(Malformed), "{text}");
        }
    }

    #[test]
    fn numbers_are_compared_by_value() {
        assert!(same(&json!({"a": [1]}), &json!({"a": [1.0]})) && !same(&json!(1), &json!("1")));
        assert!(Element::Value(json!(80)) < Element::Value(json!(443)));
        assert!(Element::field("z") < Element::Key(Vec::new()));
    }

    proptest! {
        #[test]
        fn parsing_what_is_written(name in ".{0,6}", value in any::<i32>(), text in ".{0,6}") {
            for element in [Element::field(&name), Element::Value(json!(text)), Element::Value(json!(value)),
                Element::Key(vec![("a".into(), json!(value)), ("b".into(), json!(text))])] {
                prop_assert_eq!(Element::parse(&element.written()), Ok(Some(element)));
            }
        }

        #[test]
        fn never_panics(text in ".{0,20}") {
            let _ = Element::parse(&text);
        }
    }
}
