//! The protobuf form of OpenAPI documents: gnostic's messages, written from JSON by a table (`data/gnostic.txt`).

use std::collections::HashMap;
use std::sync::LazyLock;

use hawser_api::crd::publish::Dialect;
use hawser_api::protobuf::{nested, put_bytes, put_fixed64, put_varint_field};
use serde_json::Value;

type Name = &'static str;

#[derive(Debug)]
enum Message {
    /// Fields by JSON name, the entries of a map, and the extensions.
    Fields { fields: HashMap<Name, Field>, entries: Option<Field>, extensions: Option<Field> },
    /// Alternatives in the order of the table.
    Choice(Vec<Field>),
}

#[derive(Debug, Clone, Copy)]
struct Field {
    number: u32,
    ty: Name,
}

type Messages = HashMap<Name, Message>;

static TABLES: LazyLock<[Messages; 2]> = LazyLock::new(|| {
    let text = include_str!("../../data/gnostic.txt");
    let (head, v3) = text.split_once("\ndocument 3\n").unwrap_or((text, ""));
    let v2 = head.split_once("\ndocument 2\n").map_or("", |(_, rest)| rest);
    [parse(v2), parse(v3)]
});

fn parse(text: &'static str) -> Messages {
    let mut messages = Messages::new();
    let mut current = "";
    for line in text.lines() {
        let words: Vec<Name> = line.split_whitespace().collect();
        match (line.starts_with(' '), words.as_slice()) {
            (false, ["msg", name]) => {
                current = *name;
                let empty = Message::Fields { fields: HashMap::new(), entries: None, extensions: None };
                messages.insert(*name, empty);
            }
            (false, ["one", name, alternatives @ ..]) => {
                let fields = alternatives.iter().filter_map(|a| a.split_once(':'));
                let fields =
                    fields.filter_map(|(n, ty)| Some(Field { number: n.parse().ok()?, ty })).collect();
                messages.insert(*name, Message::Choice(fields));
            }
            (true, [name, number, ty]) => {
                if let Some(Message::Fields { fields, entries, extensions }) = messages.get_mut(current)
                    && let Ok(number) = number.parse()
                {
                    let field = Field { number, ty };
                    match *name {
                        "*" => *entries = Some(field),
                        "x-" => *extensions = Some(field),
                        name => drop(fields.insert(name, field)),
                    }
                }
            }
            _ => {}
        }
    }
    messages
}

/// Writes a document's parts as they come.
pub(super) struct Writer {
    messages: &'static Messages,
    /// The messages that are open: the field of the one before, and what is written so far.
    open: Vec<(Field, Vec<u8>)>,
}

impl Writer {
    pub(super) fn new(dialect: Dialect) -> Self {
        let messages = &TABLES[usize::from(dialect == Dialect::V3)];
        Self { messages, open: vec![(Field { number: 0, ty: "Document" }, Vec::new())] }
    }

    /// Begins a field that is an object of its own.
    pub(super) fn open(&mut self, name: &str) {
        let field = self.open.last().and_then(|(parent, _)| field(self.messages.get(parent.ty)?, name));
        self.open.push((field.map_or(Field { number: 0, ty: "" }, |(f, _)| f), Vec::new()));
    }

    /// A field, or an entry of the map that is open.
    pub(super) fn put(&mut self, name: &str, value: &Value) {
        let messages = self.messages;
        if let Some((parent, out)) = self.open.last_mut()
            && let Some(message) = messages.get(parent.ty)
        {
            put_named(messages, message, name, value, out);
        }
    }

    /// Ends what [`Writer::open`] began.
    pub(super) fn close(&mut self) {
        if let Some((field, bytes)) = self.open.pop()
            && let Some((_, out)) = self.open.last_mut().filter(|_| field.number > 0)
        {
            put_bytes(out, field.number, &bytes);
        }
    }

    /// The document.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.open.pop().map(|(_, bytes)| bytes).unwrap_or_default()
    }
}

/// The field of a name; whether it is an entry, which carries its name.
fn field(message: &Message, name: &str) -> Option<(Field, bool)> {
    let Message::Fields { fields, entries, extensions } = message else { return None };
    let extension = extensions.filter(|_| name.starts_with("x-")).map(|f| (f, true));
    let named = fields.get(name).map(|f| (*f, false));
    named.or(extension).or_else(|| entries.map(|f| (f, true)))
}

fn put_named(messages: &Messages, message: &Message, name: &str, value: &Value, out: &mut Vec<u8>) {
    match field(message, name) {
        Some((field, true)) => nested(out, field.number, |out| {
            put_bytes(out, 1, name.as_bytes());
            put(messages, Field { number: 2, ty: field.ty }, value, out);
        }),
        Some((field, false)) => put(messages, field, value, out),
        None => {}
    }
}

fn put(messages: &Messages, field: Field, value: &Value, out: &mut Vec<u8>) {
    let number = field.number;
    if let Some(item) = field.ty.strip_prefix("[]") {
        let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        items.iter().for_each(|v| put(messages, Field { number, ty: item }, v, out));
        return;
    }
    match (field.ty, value) {
        ("string", Value::String(text)) => put_bytes(out, number, text.as_bytes()),
        ("bool", Value::Bool(v)) => put_varint_field(out, number, u64::from(*v)),
        ("int", value) => {
            if let Some(v) = value.as_i64() {
                put_varint_field(out, number, v.cast_unsigned());
            }
        }
        ("double", value) => {
            if let Some(v) = value.as_f64() {
                put_fixed64(out, number, v.to_bits());
            }
        }
        // JSON is YAML.
        ("any", value) => nested(out, number, |out| put_bytes(out, 2, value.to_string().as_bytes())),
        (ty, value) => match messages.get(ty) {
            Some(message @ Message::Fields { fields, .. }) => nested(out, number, |out| match value {
                Value::Object(map) if !is_wrapper(ty) => {
                    map.iter().for_each(|(name, v)| put_named(messages, message, name, v, out));
                }
                // A list in a message of its own.
                value => fields.values().for_each(|f| put(messages, *f, value, out)),
            }),
            Some(Message::Choice(alternatives)) => {
                if let Some(choice) = choose(ty, value).and_then(|n| alternatives.get(n)) {
                    nested(out, number, |out| put(messages, *choice, value, out));
                }
            }
            None => {}
        },
    }
}

/// Messages that stand for one value or several.
fn is_wrapper(ty: &str) -> bool {
    matches!(ty, "TypeItem" | "ItemsItem" | "StringArray")
}

/// Which alternative a value is.
fn choose(ty: &str, value: &Value) -> Option<usize> {
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let at = |known: &[&str], text: &str| known.iter().position(|k| *k == text);
    match ty {
        "Parameter" => Some(usize::from(text("in") != "body")),
        "NonBodyParameter" => at(&["header", "formData", "query", "path"], text("in")),
        "AdditionalPropertiesItem" => Some(usize::from(value.is_boolean())),
        "SchemaItem" => Some(usize::from(text("type") == "file")),
        "SecurityDefinitionsItem" => at(&["basic", "apiKey"], text("type")),
        // An object as a default has no place in the message.
        "DefaultType" => match value {
            Value::Number(_) => Some(0),
            Value::Bool(_) => Some(1),
            Value::String(_) => Some(2),
            _ => None,
        },
        "AnyOrExpression" => Some(0),
        _ => Some(usize::from(value.get("$ref").is_some())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_type_of_the_table_is_known() {
        for messages in TABLES.iter() {
            assert!(messages.contains_key("Document"));
            let scalar = ["string", "bool", "int", "double", "any"];
            for (name, message) in messages {
                let fields: Vec<Field> = match message {
                    Message::Choice(fields) => fields.clone(),
                    Message::Fields { fields, entries, extensions } => {
                        fields.values().copied().chain(*entries).chain(*extensions).collect()
                    }
                };
                for field in fields {
                    let ty = field.ty.trim_start_matches("[]");
                    assert!(scalar.contains(&ty) || messages.contains_key(ty), "{name}: {ty}");
                }
            }
        }
    }

    #[test]
    fn a_small_document() {
        let mut writer = Writer::new(Dialect::V2);
        writer.put("swagger", &json!("2.0"));
        writer.open("definitions");
        writer
            .put("A", &json!({"type": "object", "x-k": 1, "properties": {"b": {"$ref": "#/definitions/B"}}}));
        writer.close();
        let bytes = writer.finish();
        // swagger = 1, then definitions = 9 with one NamedSchema {name, value {type {value}, …}}.
        assert_eq!(&bytes[..5], b"\x0a\x032.0");
        assert_eq!(bytes[5], 9 << 3 | 2);
        let text = String::from_utf8_lossy(&bytes);
        for part in ["\u{a}\u{1}A", "object", "#/definitions/B", "x-k"] {
            assert!(text.contains(part), "{part:?}");
        }
    }
}
