//! YAML to a value, read as go-yaml v2 reads it: plain scalars by the rules of YAML 1.1 (`yes` is a boolean, `0644` is
//! octal), merge keys, and its limit for what aliases may grow to. Of several documents the first one counts.

use std::borrow::Cow;
use std::collections::HashMap;

use base64::Engine as _;
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag};
use serde_json::{Map, Number, Value};

use super::{DecodeError, MAX_DEPTH};
use crate::text::quote;

/// A parsed document.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Yaml {
    /// Null when there is no document.
    pub value: Value,
    /// Keys that are there more than once, of which the last one counts: `line 3: key "a" already set in map`.
    pub duplicates: Vec<String>,
}

/// What strict decoding says of [duplicates](Yaml::duplicates): all of them as one error.
pub fn duplicates_error(duplicates: &[String]) -> String {
    format!("yaml: unmarshal errors:\n  {}", duplicates.join("\n  "))
}

/// Nodes up to which nearly all may come out of aliases, and from which on few may.
const ALIAS_RANGE: std::ops::Range<usize> = 400_000..4_000_000;

/// Parses a YAML document.
///
/// # Errors
/// In go-yaml's form, `yaml: line 1: did not find expected ',' or ']'`; what breaks the syntax is in the parser's words.
pub fn parse_yaml(bytes: &[u8]) -> Result<Yaml, DecodeError> {
    let text =
        std::str::from_utf8(bytes).map_err(|_| DecodeError("yaml: invalid leading UTF-8 octet".into()))?;
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| syntax_error(&e))?;
        if matches!(event, Event::DocumentEnd | Event::StreamEnd) {
            break;
        }
        builder.event(event, span)?;
    }
    Ok(Yaml { value: builder.root, duplicates: builder.duplicates })
}

fn failed(why: &str) -> DecodeError {
    DecodeError(format!("yaml: {why}"))
}

/// go-yaml names the line before the one that its parser stands at, and none for the first.
fn syntax_error(e: &ScanError) -> DecodeError {
    let info = e.info();
    if info == "recursion limit exceeded" {
        return failed("exceeded max depth");
    }
    let problem = match info.split_once(", ") {
        Some((context, problem)) if context.starts_with("while ") => problem,
        _ => info,
    };
    let problem = problem
        .strip_prefix("expected ")
        .map_or(Cow::Borrowed(problem), |what| Cow::Owned(format!("did not find expected {what}")));
    // A key that runs over lines in a list is what go-yaml takes for a missing comma.
    let problem = match &*problem {
        "illegal placement of ':' indicator" => Cow::Borrowed("did not find expected ',' or ']'"),
        _ => problem,
    };
    if problem == "found a tab" {
        return failed(&format!(
            "line {}: found a tab character that violates indentation",
            e.marker().line() + 1
        ));
    }
    // The parser's own errors are about tokens, all others come from the scanner, which names its line.
    let parser = problem.starts_with("did not find expected");
    match e.marker().line().saturating_sub(1) {
        0 => failed(&problem),
        line => failed(&format!("line {}: {problem}", if parser { line } else { line + 1 })),
    }
}

/// A collection that is being read.
enum Frame {
    List(Vec<Value>),
    /// With the key that waits for its value.
    Map(Map<String, Value>, Option<Key>),
}

struct Open {
    frame: Frame,
    anchor: usize,
    /// Count of the nodes before it.
    before: usize,
    line: usize,
}

enum Key {
    Name(String),
    /// `<<`
    Merge,
}

/// What an anchor stands for, and how many nodes that is.
struct Anchored {
    value: Value,
    nodes: usize,
    is_map: bool,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Anchored>,
    root: Value,
    duplicates: Vec<String>,
    /// Nodes in all, and those of them that came out of aliases.
    nodes: usize,
    aliased: usize,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), DecodeError> {
        match event {
            Event::SequenceStart(anchor, _) => self.begin(Frame::List(Vec::new()), anchor, span),
            Event::MappingStart(anchor, _) => self.begin(Frame::Map(Map::new(), None), anchor, span),
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Scalar(text, style, anchor, tag) => {
                self.nodes += 1;
                let plain = style == ScalarStyle::Plain;
                let merge = text == "<<" && plain && tag.is_none();
                let value = resolve(&text, plain, tag.as_deref())?;
                self.anchor(anchor, &value, 1, false);
                if merge && let Some(Open { frame: Frame::Map(_, key @ None), .. }) = self.open.last_mut() {
                    *key = Some(Key::Merge);
                    return Ok(());
                }
                self.place(value, false, span.start.line())
            }
            Event::Alias(id) => {
                let Some(known) = self.anchors.get(&id) else {
                    return Err(failed("anchor contains itself"));
                };
                self.nodes += known.nodes;
                self.aliased += known.nodes;
                if self.aliased > 100 && self.nodes > 1000 && self.aliased > self.allowed() {
                    return Err(failed("document contains excessive aliasing"));
                }
                let (value, is_map) = (known.value.clone(), known.is_map);
                self.place(value, is_map, span.start.line())
            }
            _ => Ok(()),
        }
    }

    /// How many of the nodes so far may have come out of aliases: 99 % of few, a tenth of many.
    fn allowed(&self) -> usize {
        let (low, high) = (ALIAS_RANGE.start, ALIAS_RANGE.end);
        let percent = match self.nodes {
            n if n <= low => 99,
            n if n >= high => 10,
            n => 99 - 89 * (n - low) / (high - low),
        };
        self.nodes / 100 * percent
    }

    fn begin(&mut self, frame: Frame, anchor: usize, span: Span) -> Result<(), DecodeError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(failed("exceeded max depth"));
        }
        self.open.push(Open { frame, anchor, before: self.nodes, line: span.start.line() });
        self.nodes += 1;
        Ok(())
    }

    fn end(&mut self) -> Result<(), DecodeError> {
        let Some(Open { frame, anchor, before, line }) = self.open.pop() else { return Ok(()) };
        let (value, is_map) = match frame {
            Frame::List(items) => (Value::Array(items), false),
            Frame::Map(map, _) => (Value::Object(map), true),
        };
        self.anchor(anchor, &value, self.nodes - before, is_map);
        self.place(value, is_map, line)
    }

    fn anchor(&mut self, id: usize, value: &Value, nodes: usize, is_map: bool) {
        if id != 0 {
            self.anchors.insert(id, Anchored { value: value.clone(), nodes, is_map });
        }
    }

    /// Puts a whole value where the document has it.
    fn place(&mut self, value: Value, is_map: bool, line: usize) -> Result<(), DecodeError> {
        match self.open.last_mut().map(|o| &mut o.frame) {
            None => self.root = value,
            Some(Frame::List(items)) => items.push(value),
            Some(Frame::Map(map, key)) => match key.take() {
                None => *key = Some(Key::Name(name(&value)?)),
                Some(Key::Merge) => merge(map, value, is_map)?,
                Some(Key::Name(name)) => {
                    if map.contains_key(&name) {
                        self.duplicates.push(format!("line {line}: key {} already set in map", quote(&name)));
                    }
                    map.insert(name, value);
                }
            },
        }
        Ok(())
    }
}

/// Takes the entries of a map, or of a list of maps of which the first have precedence.
fn merge(map: &mut Map<String, Value>, value: Value, is_map: bool) -> Result<(), DecodeError> {
    match value {
        Value::Object(other) if is_map => map.extend(other),
        Value::Array(items) if items.iter().all(Value::is_object) => {
            items
                .into_iter()
                .rev()
                .filter_map(|i| if let Value::Object(m) = i { Some(m) } else { None })
                .for_each(|m| map.extend(m));
        }
        _ => return Err(failed("map merge requires map or sequence of maps as the value")),
    }
    Ok(())
}

/// The text of a key.
fn name(value: &Value) -> Result<String, DecodeError> {
    match value {
        Value::String(s) => Ok(s.clone()),
        Value::Bool(b) => Ok(b.to_string()),
        Value::Number(n) => Ok(n.to_string()),
        Value::Null => Err(DecodeError("unsupported map key of type: %!s(<nil>), key: <nil>".into())),
        Value::Array(_) | Value::Object(_) => {
            Err(failed(&format!("invalid map key: {}", crate::text::go_value(value))))
        }
    }
}

/// The value of a scalar: by its tag, else by its looks when it is plain.
fn resolve(text: &str, plain: bool, tag: Option<&Tag>) -> Result<Value, DecodeError> {
    let wanted = match tag {
        None if plain => return looks(text),
        None => return Ok(text.into()),
        Some(tag) if tag.is_yaml_core_schema() => tag.suffix.as_str(),
        Some(_) => return Ok(text.into()),
    };
    let found = match wanted {
        "binary" => {
            let packed: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(packed)
                .map_err(|_| failed("!!binary value contains invalid base64 data"))?;
            return Ok(String::from_utf8_lossy(&bytes).into_owned().into());
        }
        "bool" | "int" | "float" | "null" => looks(text)?,
        // Timestamps stay the text that they are, as everything else does.
        _ => return Ok(text.into()),
    };
    let is = match &found {
        Value::Bool(_) => "bool",
        Value::Null => "null",
        Value::Number(n) if n.is_f64() => "float",
        Value::Number(_) => "int",
        _ => "str",
    };
    if is == wanted || (is == "int" && wanted == "float") {
        return Ok(found);
    }
    Err(failed(&format!("cannot decode !!{is} `{text}` as a !!{wanted}")))
}

/// What a plain scalar is.
fn looks(text: &str) -> Result<Value, DecodeError> {
    Ok(match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => true.into(),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => false.into(),
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        ".nan" | ".NaN" | ".NAN" => return Err(DecodeError("json: unsupported value: NaN".into())),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => {
            return Err(DecodeError("json: unsupported value: +Inf".into()));
        }
        "-.inf" | "-.Inf" | "-.INF" => return Err(DecodeError("json: unsupported value: -Inf".into())),
        _ if text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) => {
            number(text).map_or_else(|| text.into(), Value::Number)
        }
        _ => text.into(),
    })
}

/// A number as Go's `ParseInt` with base 0 reads it, else as a float.
fn number(text: &str) -> Option<Number> {
    let plain: String = text.chars().filter(|c| *c != '_').collect();
    if !plain.starts_with('.')
        && let Some(found) = integer(&plain)
    {
        return Some(found);
    }
    // No hexadecimal floats, nor names of what is no number.
    let digits = plain.bytes().any(|b| b.is_ascii_digit());
    let float = plain.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    let value: f64 = (digits && float).then(|| plain.parse().ok())??;
    #[allow(clippy::cast_possible_truncation)]
    if value.fract() == 0.0 && value.abs() < 9e15 {
        // JSON writes a whole number as one.
        return Some(Number::from(value as i64));
    }
    Number::from_f64(value)
}

fn integer(text: &str) -> Option<Number> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (base, digits) = match lower.get(..2) {
        Some("0x") => (16, lower.get(2..)?),
        Some("0b") => (2, lower.get(2..)?),
        Some("0o") => (8, lower.get(2..)?),
        _ if lower.len() > 1 && lower.starts_with('0') => (8, lower.get(1..)?),
        _ => (10, lower.as_str()),
    };
    if !digits.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return None;
    }
    let magnitude = u64::from_str_radix(digits, base).ok()?;
    if negative { 0i64.checked_sub_unsigned(magnitude).map(Number::from) } else { Some(magnitude.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn value(text: &str) -> Value {
        parse_yaml(text.as_bytes()).expect("YAML").value
    }

    #[test]
    fn scalars_are_those_of_yaml_1_1() {
        for (text, want) in [
            ("yes", json!(true)),
            ("Off", json!(false)),
            ("y", json!(true)),
            ("'y'", json!("y")),
            ("yEs", json!("yEs")),
            ("~", json!(null)),
            ("0644", json!(420)),
            ("0o17", json!(15)),
            ("089", json!(89)),
            ("0x1F", json!(31)),
            ("-0b11", json!(-3)),
            ("1_000", json!(1000)),
            ("1e3", json!(1000)),
            ("1.5", json!(1.5)),
            (".5", json!(0.5)),
            ("1.2.3", json!("1.2.3")),
            ("+", json!("+")),
            ("-", json!([null])),
            ("18446744073709551615", json!(u64::MAX)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("2001-01-01", json!("2001-01-01")),
            ("1:30", json!("1:30")),
            ("infinity", json!("infinity")),
            ("!!str 1", json!("1")),
            ("!!float 1", json!(1)),
            ("!!binary aGk=", json!("hi")),
            ("!own x", json!("x")),
            ("|\n a\n b\n", json!("a\nb\n")),
            ("", json!(null)),
        ] {
            assert_eq!(value(text), want, "{text:?}");
        }
    }

    #[test]
    fn maps() {
        assert_eq!(value("{y: 1, 2: b, 1.5: c}"), json!({"true": 1, "2": "b", "1.5": "c"}));
        let merged = "base: &b {x: 1, y1: 2}\nchild: {<<: *b, x: 3}\nboth: {<<: [{a: 1}, {a: 2, c: 3}]}\n";
        assert_eq!(
            value(merged),
            json!({"base": {"x": 1, "y1": 2}, "child": {"x": 3, "y1": 2}, "both": {"a": 1, "c": 3}})
        );
        let twice = parse_yaml(b"a: 1\nb:\n  c: 1\n  c: 2\na: 3\n").expect("YAML");
        assert_eq!(twice.value, json!({"a": 3, "b": {"c": 2}}));
        assert_eq!(
            duplicates_error(&twice.duplicates),
            "yaml: unmarshal errors:\n  line 4: key \"c\" already set in map\n  line 5: key \"a\" already set in map"
        );
        assert_eq!(value("a: 1\n---\nb: 2\n"), json!({"a": 1}));
    }

    #[test]
    fn errors_speak_as_go_yaml() {
        for (text, want) in [
            ("a: [b\nc: d", "yaml: line 1: did not find expected ',' or ']'"),
            ("a: [b", "yaml: line 1: did not find expected ',' or ']'"),
            ("{[a]: b}", "yaml: invalid map key: [a]"),
            ("<<: x", "yaml: map merge requires map or sequence of maps as the value"),
            ("!!int x", "yaml: cannot decode !!str `x` as a !!int"),
            ("a: .nan", "json: unsupported value: NaN"),
            ("&a [*a]", "yaml: anchor contains itself"),
        ] {
            assert_eq!(parse_yaml(text.as_bytes()).expect_err(text).0, want, "{text:?}");
        }
        assert!(parse_yaml(b"\xff").is_err());
        let deep = "[".repeat(100_000);
        assert_eq!(parse_yaml(deep.as_bytes()).expect_err("deep").0, "yaml: exceeded max depth");
    }

    #[test]
    fn aliases_grow_only_so_far() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..12 {
            text += &format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", "));
        }
        let refused = parse_yaml(text.as_bytes()).expect_err("grows");
        assert_eq!(refused.0, "yaml: document contains excessive aliasing");
    }

    proptest! {
        #[test]
        fn never_panics(text in "[-a-z0-9:{}\\[\\]&*<>|'\"!#%@,? \n\t]{0,80}") {
            let _ = parse_yaml(text.as_bytes());
        }

        #[test]
        fn json_is_yaml(n in any::<i64>(), s in "[ -~]{0,20}", b in any::<bool>()) {
            let json = json!({"n": n, "s": s, "b": b, "l": [n, null, s]});
            prop_assert_eq!(value(&json.to_string()), json);
        }
    }
}
