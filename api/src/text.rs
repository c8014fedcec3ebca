//! Text renderings that Kubernetes' messages share: Go's quoting and Go's `%v` of JSON values.

use serde_json::Value;
use std::fmt::Write as _;

/// Quotes `s` as Go's `%q` does.
pub fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\u{b}' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c if (0x80..0xa1).contains(&(c as u32)) || c as u32 == 0xad || c as u32 == 0xfeff => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Renders a decoded JSON value as Go's `%v` renders what `encoding/json` decodes it to:
/// `map[a:1 b:[x y]]`, strings bare, null as `<nil>`.
pub fn go_value(v: &Value) -> String {
    match v {
        Value::Null => "<nil>".into(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) => s.clone(),
        Value::Array(a) => {
            let items: Vec<String> = a.iter().map(go_value).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(m) => {
            let mut keys: Vec<&String> = m.keys().collect();
            keys.sort();
            let items: Vec<String> = keys.into_iter().map(|k| format!("{k}:{}", go_value(&m[k]))).collect();
            format!("map[{}]", items.join(" "))
        }
    }
}

/// The Go type that `encoding/json` names when it meets this value: `string`, `number`, `bool`,
/// `array`, `object`, `null`.
pub fn json_type(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quoting_follows_go() {
        for (input, want) in [
            ("a", "\"a\""),
            ("a\"b\\", "\"a\\\"b\\\\\""),
            ("é\u{1}\n", "\"é\\x01\\n\""),
            ("\u{feff}", "\"\\ufeff\""),
        ] {
            assert_eq!(quote(input), want);
        }
    }

    #[test]
    fn values_follow_go() {
        assert_eq!(go_value(&json!({"b": [1, "x"], "a": null})), "map[a:<nil> b:[1 x]]");
    }
}
