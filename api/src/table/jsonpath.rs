//! The JSON paths of custom columns: fields, indices, `[*]` and filters such as `[?(@.type=="Ready")]`.

use crate::time;
use jiff::Timestamp;
use serde_json::{Value, json};

/// The cell of a custom column: the first value that the path finds, by the column's type.
pub fn cell(object: &Value, path: &str, ty: &str, now: Timestamp) -> Value {
    let found = find(object, path);
    let Some(value) = found.first() else { return Value::Null };
    match (ty, value) {
        (_, Value::Null) => Value::Null,
        ("integer", Value::Number(n)) => {
            n.as_i64().or(n.as_f64().map(|f| f as i64)).map_or(Value::Null, |n| json!(n))
        }
        ("number", Value::Number(n)) => json!(n),
        ("boolean", Value::Bool(b)) => json!(b),
        ("integer" | "number" | "boolean", _) => Value::Null,
        ("date", value) => match time::from_value(Some(value)) {
            Some(_) => json!(time::age(Some(value), now)),
            None => json!("<invalid>"),
        },
        (_, Value::String(s)) => json!(s),
        (_, other) => json!(other.to_string()),
    }
}

/// Every value that the path finds, in order. A malformed path finds nothing.
pub fn find<'a>(root: &'a Value, path: &str) -> Vec<&'a Value> {
    let mut at = vec![root];
    let path = path.strip_prefix('{').and_then(|p| p.strip_suffix('}')).unwrap_or(path);
    let mut rest = path.strip_prefix('$').unwrap_or(path);
    while !rest.is_empty() {
        if let Some(bracket) = rest.strip_prefix('[') {
            let Some(end) = closing(bracket) else { return Vec::new() };
            let inside = &bracket[..end];
            rest = &bracket[end + 1..];
            at = at.into_iter().flat_map(|v| subscript(v, inside)).collect();
        } else {
            let field = rest.strip_prefix('.').unwrap_or(rest);
            let (name, tail) = field_name(field);
            rest = tail;
            if name.is_empty() && !rest.starts_with('[') {
                return Vec::new();
            }
            if name == "*" {
                at = at.into_iter().flat_map(children).collect();
            } else if !name.is_empty() {
                at = at.into_iter().filter_map(|v| v.get(&name)).collect();
            }
        }
    }
    at
}

/// Reads a field name up to the next unescaped dot or bracket.
fn field_name(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => {
                if let Some((_, next)) = chars.next() {
                    name.push(next);
                }
            }
            '.' | '[' => return (name, &text[i..]),
            c => name.push(c),
        }
    }
    (name, "")
}

/// The position of the bracket that closes, brackets and quotes inside observed.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quoted) = (0, None);
    for (i, c) in text.char_indices() {
        match (quoted, c) {
            (Some(q), c) if c == q => quoted = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quoted = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(i),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn children(v: &Value) -> Vec<&Value> {
    match v {
        Value::Array(items) => items.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => Vec::new(),
    }
}

fn subscript<'a>(v: &'a Value, inside: &str) -> Vec<&'a Value> {
    if inside == "*" {
        return children(v);
    }
    if let Some(filter) = inside.strip_prefix("?(").and_then(|f| f.strip_suffix(')')) {
        return children(v).into_iter().filter(|item| matches(item, filter)).collect();
    }
    if let Some(name) = unquote(inside) {
        return v.get(name).into_iter().collect();
    }
    let Value::Array(items) = v else { return Vec::new() };
    let Ok(index) = inside.parse::<i64>() else { return Vec::new() };
    let index = if index < 0 { index + i64::try_from(items.len()).unwrap_or(0) } else { index };
    usize::try_from(index).ok().and_then(|i| items.get(i)).into_iter().collect()
}

fn unquote(text: &str) -> Option<&str> {
    let text = text.trim();
    ['\'', '"'].into_iter().find_map(|q| text.strip_prefix(q)?.strip_suffix(q))
}

fn matches(item: &Value, filter: &str) -> bool {
    for operator in ["==", "!=", ">=", "<=", ">", "<"] {
        let Some((left, right)) = filter.split_once(operator) else { continue };
        let Some(path) = left.trim().strip_prefix('@') else { return false };
        let found = find(item, path);
        let Some(value) = found.first() else { return false };
        let right = right.trim();
        let wanted: Value = match unquote(right) {
            Some(text) => json!(text),
            None => serde_json::from_str(right).unwrap_or(Value::Null),
        };
        return match (operator, value.as_f64(), wanted.as_f64()) {
            ("==", ..) => **value == wanted,
            ("!=", ..) => **value != wanted,
            (">=", Some(a), Some(b)) => a >= b,
            ("<=", Some(a), Some(b)) => a <= b,
            (">", Some(a), Some(b)) => a > b,
            ("<", Some(a), Some(b)) => a < b,
            _ => false,
        };
    }
    filter.trim().strip_prefix('@').is_some_and(|path| !find(item, path).is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds() {
        let v = json!({"a": {"b.c": 1, "l": [{"n": "x", "v": 1}, {"n": "y", "v": 2}]}});
        for (path, want) in [
            (".a.l[1].v", vec![json!(2)]),
            (".a.l[-1].n", vec![json!("y")]),
            (".a.l[*].v", vec![json!(1), json!(2)]),
            (".a.l[?(@.n=='y')].v", vec![json!(2)]),
            (".a.l[?(@.v>1)].n", vec![json!("y")]),
            ("{.a['b.c']}", vec![json!(1)]),
            (".a.b\\.c", vec![json!(1)]),
            (".a.none", vec![]),
            (".a[", vec![]),
        ] {
            assert_eq!(find(&v, path).into_iter().cloned().collect::<Vec<_>>(), want, "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_path_is_survived(path in "[.a\\[\\]*?(@=)'\"0-9\\\\-]{0,20}") {
            let v = json!({"a": [1, {"a": 2}]});
            let _ = find(&v, &path);
        }
    }
}
