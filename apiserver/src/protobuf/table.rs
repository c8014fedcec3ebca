//! The table of messages, read once on first use.

use std::collections::HashMap;
use std::sync::LazyLock;

const TABLE: &str = include_str!("messages.txt");

/// All messages.
#[derive(Debug, Default)]
pub(super) struct Messages {
    /// Index into `messages` by `package.Message`.
    names: HashMap<String, usize>,
    messages: Vec<Message>,
}

/// One message's fields by number.
#[derive(Debug, Default)]
pub(super) struct Message {
    pub(super) fields: HashMap<u32, Field>,
}

/// How a field's values are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Single,
    List,
    /// From strings.
    Map,
}

/// Where a field's value goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Under this JSON name.
    Name(&'static str),
    /// The value's fields become the parent's.
    Parent,
    /// The message is this value.
    Whole,
}

#[derive(Debug)]
pub(super) struct Field {
    pub(super) place: Place,
    /// Whether zero is kept.
    pub(super) keep_zero: bool,
    pub(super) shape: Shape,
    pub(super) ty: Type,
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    String,
    Bytes,
    Bool,
    Int,
    /// Index of a message.
    Message(usize),
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    /// JSON in bytes.
    Json,
    Duration,
}

impl Messages {
    pub(super) fn find(&self, name: &str) -> Option<&Message> {
        self.names.get(name).and_then(|index| self.messages.get(*index))
    }

    pub(super) fn at(&self, index: usize) -> Option<&Message> {
        self.messages.get(index)
    }
}

/// The table. A malformed line is left out; a test reads them all.
pub(super) fn messages() -> &'static Messages {
    static MESSAGES: LazyLock<Messages> = LazyLock::new(|| parse(TABLE).0);
    &MESSAGES
}

/// The table, and the words in it that could not be read.
fn parse(table: &'static str) -> (Messages, Vec<&'static str>) {
    let mut lines: Vec<(&str, &'static str)> = Vec::new();
    let mut package = "";
    for line in table.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        match line.strip_prefix("package ") {
            Some(name) => package = name,
            None => lines.push((package, line.trim_start())),
        }
    }
    let mut messages = Messages::default();
    for (index, (package, line)) in lines.iter().enumerate() {
        let name = line.split(' ').next().unwrap_or("");
        messages.names.insert(format!("{package}.{name}"), index);
    }
    let mut malformed = Vec::new();
    for (package, line) in lines {
        let mut message = Message::default();
        for word in line.split(' ').skip(1) {
            match parse_field(word, package, &messages.names) {
                Some((number, field)) => {
                    message.fields.insert(number, field);
                }
                None => malformed.push(word),
            }
        }
        messages.messages.push(message);
    }
    (messages, malformed)
}

fn parse_field(word: &'static str, package: &str, names: &HashMap<String, usize>) -> Option<(u32, Field)> {
    let (number, rest) = word.split_once(':')?;
    let (name, ty) = rest.split_once(':')?;
    let (name, keep_zero) = name.strip_suffix('!').map_or((name, false), |name| (name, true));
    let place = match name {
        "." => Place::Parent,
        "*" => Place::Whole,
        name => Place::Name(name),
    };
    let (shape, ty) = if let Some(ty) = ty.strip_prefix("[]") {
        (Shape::List, ty)
    } else if let Some(ty) = ty.strip_prefix("{}") {
        (Shape::Map, ty)
    } else {
        (Shape::Single, ty)
    };
    let ty = match ty {
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "bool" => Type::Bool,
        "int32" | "int64" => Type::Int,
        "@time" => Type::Time,
        "@microtime" => Type::MicroTime,
        "@quantity" => Type::Quantity,
        "@intorstring" => Type::IntOrString,
        "@raw" | "@fields" => Type::Json,
        "@duration" => Type::Duration,
        name if name.contains('.') => Type::Message(*names.get(name)?),
        name => Type::Message(*names.get(&format!("{package}.{name}"))?),
    };
    Some((number.parse().ok()?, Field { place, keep_zero, shape, ty }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_the_table_is_read() {
        let (messages, malformed) = parse(TABLE);
        assert!(malformed.is_empty(), "{malformed:?}");
        assert!(messages.names.len() > 500);
        for name in [
            "core.v1.Pod",
            "apps.v1.Deployment",
            "rbac.v1.ClusterRole",
            "policy.v1.Eviction",
            "meta.v1.DeleteOptions",
        ] {
            assert!(messages.find(name).is_some(), "{name}");
        }
    }

    #[test]
    fn every_stored_kind_has_a_message() {
        let elsewhere = [
            "apiextensions.k8s.io",
            "apiregistration.k8s.io",
            "internal.apiserver.k8s.io",
            "storagemigration.k8s.io",
        ];
        for kind in hawser_api::kinds::builtin().iter().filter(|k| k.on_by_default) {
            if elsewhere.contains(&kind.group.as_str()) {
                continue;
            }
            let name = super::super::message_name(&kind.api_version(), &kind.kind);
            assert!(messages().find(&name).is_some(), "{name}");
        }
    }
}
