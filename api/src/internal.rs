//! Objects as kube-apiserver has them in memory (`data/internal.txt`), which is how its messages print them.

use serde_json::Value;
use std::collections::HashMap;
use std::sync::LazyLock;

/// A field of a type.
struct Field {
    /// The name that is printed.
    name: &'static str,
    /// `*`, `[]`, `map:` and a base, outermost first.
    ty: &'static str,
    /// The name in the API, and whether the object around this one has it.
    json: String,
    outside: bool,
    omit_empty: bool,
}

type Types = HashMap<&'static str, Vec<Field>>;

static TYPES: LazyLock<Types> = LazyLock::new(|| parse(include_str!("../data/internal.txt")));

/// Marks a type whose fields stand among those of another one.
const INLINED: &str = "*";

fn parse(text: &'static str) -> Types {
    let mut types = Types::new();
    let mut fields: Option<&mut Vec<Field>> = None;
    for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some(name) = line.strip_prefix("type ") {
            fields = Some(types.entry(name).or_default());
            continue;
        }
        let mut words = line.split_whitespace();
        let (Some(name), Some(ty), Some(fields)) = (words.next(), words.next(), fields.as_mut()) else {
            continue;
        };
        let mut field = Field { name, ty, json: lowered(name), outside: false, omit_empty: false };
        for flag in words {
            match flag.strip_prefix('=') {
                Some(json) => {
                    field.outside = json.starts_with('^');
                    field.json = json.trim_start_matches('^').to_owned();
                }
                None => field.omit_empty = true,
            }
        }
        fields.push(field);
    }
    types
}

/// `HostIP` to `hostIP`, `IP` to `ip`, `APIVersion` to `apiVersion`.
fn lowered(name: &str) -> String {
    let capitals = name.bytes().take_while(u8::is_ascii_uppercase).count();
    let lower = if capitals > 1 && capitals < name.len() { capitals - 1 } else { capitals };
    let (head, tail) = name.split_at(lower);
    head.to_ascii_lowercase() + tail
}

/// What a message prints of a value of the internal type `ty` (`core.PodSpec`, `*core.Affinity`, `[]core.Taint`).
pub fn compact(ty: &'static str, value: Option<&Value>) -> String {
    write(ty, value, Writer::default())
}

/// Whether two values of the internal type `ty` are the same to Kubernetes: lists and maps that are empty and those
/// that are absent are.
pub fn same(ty: &'static str, a: Option<&Value>, b: Option<&Value>) -> bool {
    let text = |v| write(ty, v, Writer { empty_is_null: true, ..Writer::default() });
    a == b || text(a) == text(b)
}

fn write(ty: &'static str, value: Option<&Value>, mut out: Writer) -> String {
    out.value(ty, value, None);
    out.text
}

/// How a message shows that a value of the internal type `ty` was changed.
pub fn difference(ty: &'static str, old: Option<&Value>, new: Option<&Value>) -> String {
    crate::difference::unified(&pretty(ty, old), &pretty(ty, new))
}

/// As [`compact`], one field or item per line, indented by one blank per level.
fn pretty(ty: &'static str, value: Option<&Value>) -> String {
    write(ty, value, Writer { indent: Some(0), ..Writer::default() })
}

#[derive(Default)]
struct Writer {
    text: String,
    /// The level, when printed over several lines.
    indent: Option<usize>,
    /// Prints empty lists and maps as if they were absent.
    empty_is_null: bool,
}

impl Writer {
    fn value(&mut self, ty: &'static str, value: Option<&Value>, outer: Option<&Value>) {
        let value = value.filter(|v| !v.is_null());
        if let Some(inner) = ty.strip_prefix('*') {
            // Fields that come from the object around make a pointer of their own.
            let made = fields(inner).iter().any(|f| f.outside);
            return match value {
                None if !made => self.text.push_str("null"),
                value => self.value(inner, value, outer),
            };
        }
        if let Some(inner) = ty.strip_prefix("[]") {
            return match value.and_then(Value::as_array).filter(|a| !(self.empty_is_null && a.is_empty())) {
                None => self.text.push_str("null"),
                Some(items) => self.group(['[', ']'], items, |w, item| w.value(inner, Some(item), None)),
            };
        }
        if let Some(inner) = ty.strip_prefix("map:") {
            return match value.and_then(Value::as_object).filter(|o| !(self.empty_is_null && o.is_empty())) {
                None => self.text.push_str("null"),
                Some(map) => {
                    let mut entries: Vec<_> = map.iter().collect();
                    entries.sort_by_key(|(key, _)| *key);
                    self.group(['{', '}'], &entries, |w, (key, value)| {
                        w.key(key);
                        w.value(inner, Some(value), None);
                    });
                }
            };
        }
        match (ty, value) {
            ("string", None) => self.text.push_str("\"\""),
            ("int" | "intorstring", None) => self.text.push('0'),
            ("bool", None) => self.text.push_str("false"),
            ("quantity", None) => self.text.push_str("\"0\""),
            ("string" | "int" | "bool" | "bytes" | "quantity" | "time" | "intorstring" | "raw", Some(v)) => {
                self.json(v);
            }
            ("time" | "bytes" | "raw", None) => self.text.push_str("null"),
            (name, value) => self.object(name, value, outer),
        }
    }

    fn object(&mut self, ty: &str, value: Option<&Value>, outer: Option<&Value>) {
        let mut shown: Vec<(&'static Field, Option<&Value>)> = Vec::new();
        for field in fields(ty) {
            if field.name == INLINED {
                let part = if field.json == INLINED { value } else { at(value, field) };
                shown.extend(fields(field.ty).iter().map(|f| (f, at(part, f))));
            } else {
                shown.push((field, at(if field.outside { outer } else { value }, field)));
            }
        }
        shown.retain(|(field, value)| !(field.omit_empty && empty(field.ty, *value)));
        self.group(['{', '}'], &shown, |w, (field, inner)| {
            w.key(field.name);
            w.value(field.ty, *inner, value);
        });
    }

    /// Items between brackets.
    fn group<T>(&mut self, [open, close]: [char; 2], items: &[T], each: impl Fn(&mut Self, &T)) {
        self.text.push(open);
        self.indent = self.indent.map(|n| n + 1);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.text.push(',');
            }
            self.line();
            each(self, item);
        }
        self.indent = self.indent.map(|n| n - 1);
        if !items.is_empty() {
            self.line();
        }
        self.text.push(close);
    }

    fn line(&mut self) {
        if let Some(level) = self.indent {
            self.text.push('\n');
            self.text.extend(std::iter::repeat_n(' ', level));
        }
    }

    fn key(&mut self, key: &str) {
        self.string(key);
        self.text.push_str(if self.indent.is_some() { ": " } else { ":" });
    }

    /// A value that is printed as it is in the API.
    fn json(&mut self, value: &Value) {
        match value {
            Value::String(s) => self.string(s),
            Value::Array(items) => self.group(['[', ']'], items, |w, item| w.json(item)),
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                self.group(['{', '}'], &entries, |w, (key, value)| {
                    w.key(key);
                    w.json(value);
                });
            }
            other => self.text.push_str(&other.to_string()),
        }
    }

    /// A string as encoding/json writes it: also what HTML gives a meaning is escaped.
    fn string(&mut self, s: &str) {
        for c in Value::from(s).to_string().chars() {
            match c {
                '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                    self.text.push_str(&format!("\\u{:04x}", u32::from(c)));
                }
                c => self.text.push(c),
            }
        }
    }
}

fn fields(ty: &str) -> &'static [Field] {
    TYPES.get(ty).map_or(&[], Vec::as_slice)
}

fn at<'v>(object: Option<&'v Value>, field: &Field) -> Option<&'v Value> {
    object?.get(&field.json).filter(|v| !v.is_null())
}

/// What `omitempty` leaves out: zero values, but of structs and behind pointers.
fn empty(ty: &str, value: Option<&Value>) -> bool {
    match value {
        None => true,
        Some(_) if ty.starts_with('*') => false,
        Some(Value::Bool(b)) => !b,
        Some(Value::String(s)) => s.is_empty(),
        Some(Value::Array(a)) => a.is_empty(),
        Some(Value::Object(o)) => o.is_empty() && ty.starts_with("map:"),
        Some(Value::Number(n)) => n.as_i64() == Some(0),
        Some(Value::Null) => true,
    }
}

/// A value of no internal type, as encoding/json writes it.
pub fn plain(value: &Value) -> String {
    let mut out = Writer::default();
    out.json(value);
    out.text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_of_the_api() {
        for (go, json) in [
            ("HostIP", "hostIP"),
            ("IP", "ip"),
            ("APIVersion", "apiVersion"),
            ("FSGroup", "fsGroup"),
            ("Name", "name"),
            ("matchLabels", "matchLabels"),
            ("DNSPolicy", "dnsPolicy"),
        ] {
            assert_eq!(lowered(go), json);
        }
    }

    #[test]
    fn every_type_that_is_named_is_there() {
        let scalars = ["string", "int", "bool", "bytes", "quantity", "time", "intorstring", "raw"];
        for (name, fields) in TYPES.iter() {
            for field in fields {
                let base = field.ty.trim_start_matches(['*', '[', ']']).trim_start_matches("map:");
                assert!(scalars.contains(&base) || TYPES.contains_key(base), "{name} {}: {base}", field.name);
            }
        }
    }

    #[test]
    fn zero_values_omissions_and_what_is_taken_from_around() {
        assert_eq!(compact("core.EventSource", None), r#"{"Component":"","Host":""}"#);
        assert_eq!(compact("*core.Affinity", None), "null");
        let selector = json!({"matchExpressions": [{"key": "a<b", "operator": "Exists"}]});
        assert_eq!(
            compact("meta.v1.LabelSelector", Some(&selector)),
            r#"{"matchExpressions":[{"key":"a\u003cb","operator":"Exists"}]}"#
        );
        let policy = json!({"rules": [{"succeededCount": 1}]});
        assert_eq!(
            compact("batch.SuccessPolicy", Some(&policy)),
            r#"{"Rules":[{"SucceededIndexes":null,"SucceededCount":1}]}"#
        );
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"hostNetwork": true}});
        let shown = compact("core.PodTemplateSpec", Some(&template));
        assert!(shown.starts_with(r#"{"labels":{"a":"b"},"Spec":{"Volumes":null,"#), "{shown}");
        assert!(shown.contains(r#""SecurityContext":{"HostNetwork":true,"HostPID":false,"#), "{shown}");
        assert_eq!(
            pretty("core.ResourceRequirements", Some(&json!({"limits": {"cpu": "1"}, "claims": []}))),
            "{\n \"Limits\": {\n  \"cpu\": \"1\"\n },\n \"Requests\": null,\n \"Claims\": []\n}"
        );
    }
}
