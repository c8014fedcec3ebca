//! The field numbers (`data/protobuf.txt`), parsed once on first use.

use std::collections::HashMap;
use std::sync::LazyLock;

/// A message.
#[derive(Debug, Default)]
pub struct Message {
    /// By field number.
    pub fields: HashMap<u32, Entry>,
    /// By the name in JSON, fields of inlined messages included.
    pub by_name: HashMap<&'static str, Place>,
    /// The field numbers in the order of the Go type.
    sequence: Vec<u32>,
}

/// Where a field of a JSON object is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Numbers of the inlined messages around it, outermost first.
    pub path: Vec<u32>,
    pub number: u32,
    pub mark: Mark,
}

/// What a field number stands for.
#[derive(Debug, Clone, Copy)]
pub enum Entry {
    /// A field of the JSON object.
    Field { name: &'static str, mark: Mark },
    /// A message whose fields are the object's own.
    Inline(&'static str),
}

/// Scalars and free values of JSON that are messages of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// As the schema says.
    None,
    /// `{1: bytes}` that are JSON: RawExtension, FieldsV1, JSON.
    Json,
    /// `{1: repeated string}`: ExtraValue, Verbs.
    Strings,
    /// `{1: nanoseconds}`: Duration.
    Duration,
    /// A schema, or several.
    SchemaOrArray,
    /// A schema, or whether anything is allowed.
    SchemaOrBool,
    /// A schema, or names of properties.
    SchemaOrStrings,
}

static MESSAGES: LazyLock<HashMap<&'static str, Message>> =
    LazyLock::new(|| parse(include_str!("../../data/protobuf.txt")));

/// The message of a type, by its short name in the schema table.
pub fn find(name: &str) -> Option<&'static Message> {
    MESSAGES.get(name)
}

/// The names of a message's fields in the order in which Go writes them, inlined messages included.
pub fn in_go_order(name: &str) -> Vec<&'static str> {
    let Some(message) = find(name) else { return Vec::new() };
    let entries = message.sequence.iter().filter_map(|number| message.fields.get(number));
    entries
        .flat_map(|entry| match entry {
            Entry::Field { name, .. } => vec![*name],
            Entry::Inline(inner) => in_go_order(inner),
        })
        .collect()
}

fn parse(text: &'static str) -> HashMap<&'static str, Message> {
    let mut messages: HashMap<&'static str, Message> = HashMap::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("msg ") {
            current = Some(name);
            messages.entry(name).or_default();
        } else if let Some(line) = line.strip_prefix(' ')
            && let Some(message) = current.and_then(|name| messages.get_mut(name))
            && let Some((number, entry)) = parse_field(line)
        {
            message.fields.insert(number, entry);
            message.sequence.push(number);
        }
    }
    let names: Vec<_> = messages.keys().map(|name| (*name, places(&messages, name))).collect();
    for (name, places) in names {
        messages.entry(name).or_default().by_name = places;
    }
    messages
}

fn places(messages: &HashMap<&'static str, Message>, name: &str) -> HashMap<&'static str, Place> {
    let mut found = HashMap::new();
    for (number, entry) in messages.get(name).into_iter().flat_map(|message| &message.fields) {
        match entry {
            Entry::Field { name, mark } => {
                found.insert(*name, Place { path: Vec::new(), number: *number, mark: *mark });
            }
            Entry::Inline(inner) => {
                found.extend(places(messages, inner).into_iter().map(|(name, mut place)| {
                    place.path.insert(0, *number);
                    (name, place)
                }))
            }
        }
    }
    found
}

fn parse_field(line: &'static str) -> Option<(u32, Entry)> {
    let mut words = line.split(' ');
    let (first, second) = (words.next()?, words.next()?);
    if let Some(number) = first.strip_prefix('*') {
        return Some((number.parse().ok()?, Entry::Inline(second)));
    }
    let mark = match words.next() {
        None => Mark::None,
        Some("RawExtension" | "FieldsV1" | "JSON") => Mark::Json,
        Some("ExtraValue" | "Verbs") => Mark::Strings,
        Some("Duration") => Mark::Duration,
        Some("JSONSchemaPropsOrArray") => Mark::SchemaOrArray,
        Some("JSONSchemaPropsOrBool") => Mark::SchemaOrBool,
        Some("JSONSchemaPropsOrStringArray") => Mark::SchemaOrStrings,
        Some(_) => return None,
    };
    Some((second.parse().ok()?, Entry::Field { name: first, mark }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;

    #[test]
    fn every_line_is_understood() {
        for line in include_str!("../../data/protobuf.txt").lines() {
            let known = line.starts_with('#')
                || line.starts_with("msg ")
                || line.strip_prefix(' ').is_some_and(|line| parse_field(line).is_some());
            assert!(known, "{line}");
        }
    }

    #[test]
    fn every_named_field_exists_in_the_schema_and_every_inline_message_in_the_table() {
        for (name, message) in MESSAGES.iter() {
            for entry in message.fields.values() {
                match entry {
                    Entry::Inline(inner) => assert!(find(inner).is_some(), "{name}: {inner}"),
                    Entry::Field { name: field, .. } => {
                        // Inlined messages have no type; their fields are checked through the types they are in.
                        if let Some(ty) = schema::find(name) {
                            assert!(ty.field(field).is_some(), "{name}.{field}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_type_has_a_message() {
        // The one that is never a body: the answer of /version.
        for ty in schema::all().iter().filter(|ty| !ty.name.contains("version.Info")) {
            assert!(find(ty.name).is_some(), "{}", ty.name);
        }
    }
}
