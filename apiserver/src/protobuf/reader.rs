//! The generic reader: one message by its fields into a JSON object.

use base64::{Engine, engine::general_purpose::STANDARD};
use hawser_api::time;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::table::{Field, Message, Messages, Place, Shape, Type};
use super::wire::{self, Wire};
use super::{ProtobufError, text};

/// How deep messages may lie in each other. JSONSchemaProps is the deepest that people write.
const MAX_DEPTH: usize = 64;

pub(super) struct Reader<'t> {
    pub(super) table: &'t Messages,
}

fn misfit(field: &Field) -> ProtobufError {
    let name = match field.place {
        Place::Name(name) => name,
        Place::Parent | Place::Whole => "an embedded message",
    };
    ProtobufError::Value(name.to_owned())
}

impl Reader<'_> {
    /// Reads a message's fields into `into`.
    pub(super) fn message(
        &self,
        message: &Message,
        mut bytes: &[u8],
        into: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), ProtobufError> {
        if depth > MAX_DEPTH {
            return Err(ProtobufError::TooDeep);
        }
        while !bytes.is_empty() {
            let (number, wire) = wire::field(&mut bytes)?;
            // Fields of a later version are left out, as an older server leaves them out.
            let Some(field) = message.fields.get(&number) else { continue };
            match (field.shape, field.place) {
                (Shape::Single, Place::Parent) => {
                    let (Type::Message(index), Wire::Bytes(inner)) = (field.ty, wire) else {
                        return Err(misfit(field));
                    };
                    if let Some(inner_message) = self.table.at(index) {
                        self.message(inner_message, inner, into, depth + 1)?;
                    }
                }
                (Shape::Single, Place::Name(name)) => {
                    if let Some(value) = self.value(field, wire, depth)? {
                        merge(into, name, value);
                    }
                }
                (Shape::List, Place::Name(name)) => self.item(field, wire, depth, list_of(into, name))?,
                (Shape::Map, Place::Name(name)) => {
                    let Wire::Bytes(entry) = wire else { return Err(misfit(field)) };
                    let (key, value) = self.entry(field, entry, depth)?;
                    if !into.get(name).is_some_and(Value::is_object) {
                        into.insert(name.to_owned(), Value::Object(Map::new()));
                    }
                    if let Some(Value::Object(map)) = into.get_mut(name) {
                        map.insert(key, value);
                    }
                }
                // A message that is a value is read by `whole`.
                (_, Place::Whole | Place::Parent) => return Err(misfit(field)),
            }
        }
        Ok(())
    }

    /// One item, or several that are packed, of a list.
    fn item(
        &self,
        field: &Field,
        wire: Wire<'_>,
        depth: usize,
        list: &mut Vec<Value>,
    ) -> Result<(), ProtobufError> {
        if let (Wire::Bytes(mut packed), Type::Int | Type::Bool) = (wire, field.ty) {
            while !packed.is_empty() {
                let number = wire::varint(&mut packed)?;
                list.extend(self.single(field, Wire::Varint(number), depth)?);
            }
            return Ok(());
        }
        // In a list nothing is left out: an absent item would shift the others.
        list.push(self.single(field, wire, depth)?.unwrap_or(Value::Null));
        Ok(())
    }

    fn entry(&self, field: &Field, mut entry: &[u8], depth: usize) -> Result<(String, Value), ProtobufError> {
        let (mut key, mut value) = (String::new(), None);
        while !entry.is_empty() {
            match wire::field(&mut entry)? {
                (1, Wire::Bytes(b)) => key = text(b, "map key")?,
                (2, wire) => value = self.single(field, wire, depth)?,
                _ => {}
            }
        }
        // A missing value is the zero of its type.
        let value = value.unwrap_or_else(|| match field.ty {
            Type::String | Type::Bytes | Type::Quantity => json!(""),
            Type::Bool => json!(false),
            Type::Int => json!(0),
            Type::Message(_) => json!({}),
            _ => Value::Null,
        });
        Ok((key, value))
    }

    /// A field's value, or None when JSON would leave it out.
    fn value(&self, field: &Field, wire: Wire<'_>, depth: usize) -> Result<Option<Value>, ProtobufError> {
        let value = self.single(field, wire, depth)?;
        let zero = match &value {
            Some(Value::String(s)) => s.is_empty(),
            Some(Value::Bool(b)) => !b,
            Some(Value::Number(n)) => n.as_i64() == Some(0),
            _ => false,
        };
        let scalar = matches!(field.ty, Type::String | Type::Bytes | Type::Bool | Type::Int);
        Ok(value.filter(|_| !(zero && scalar && !field.keep_zero)))
    }

    fn single(&self, field: &Field, wire: Wire<'_>, depth: usize) -> Result<Option<Value>, ProtobufError> {
        Ok(match (field.ty, wire) {
            (Type::Int, Wire::Varint(n)) => Some(json!(n.cast_signed())),
            (Type::Int, Wire::Fixed64(n)) => Some(json!(n.cast_signed())),
            (Type::Int, Wire::Fixed32(n)) => Some(json!(n.cast_signed())),
            (Type::Bool, Wire::Varint(n)) => Some(Value::Bool(n != 0)),
            (Type::String, Wire::Bytes(b)) => Some(Value::String(text(b, &misfit(field).to_string())?)),
            (Type::Bytes, Wire::Bytes(b)) => Some(Value::String(STANDARD.encode(b))),
            (Type::Message(index), Wire::Bytes(b)) => match self.table.at(index) {
                Some(message) => Some(self.whole(message, b, depth + 1)?),
                None => None,
            },
            (Type::Quantity, Wire::Bytes(b)) => {
                let (_, texts) = scalars(b)?;
                Some(Value::String(text(texts.first().copied().flatten().unwrap_or_default(), "a quantity")?))
            }
            (Type::IntOrString, Wire::Bytes(b)) => Some(int_or_string(b)?),
            (Type::Json, Wire::Bytes(b)) => json_bytes(b)?,
            (Type::Time | Type::MicroTime, Wire::Bytes(b)) => timestamp(b, field.ty == Type::MicroTime)?,
            (Type::Duration, Wire::Bytes(b)) => {
                let (numbers, _) = scalars(b)?;
                let nanos = numbers.first().copied().flatten().unwrap_or(0);
                Some(Value::String(time::go_duration(nanos)))
            }
            _ => return Err(misfit(field)),
        })
    }

    /// A message as a value: an object, or what it stands for.
    fn whole(&self, message: &Message, mut bytes: &[u8], depth: usize) -> Result<Value, ProtobufError> {
        if depth > MAX_DEPTH {
            return Err(ProtobufError::TooDeep);
        }
        if !message.fields.values().any(|f| f.place == Place::Whole) {
            let mut object = Map::new();
            self.message(message, bytes, &mut object, depth)?;
            return Ok(Value::Object(object));
        }
        let mut list = Vec::new();
        while !bytes.is_empty() {
            let (number, wire) = wire::field(&mut bytes)?;
            if let Some(field) = message.fields.get(&number) {
                self.item(field, wire, depth, &mut list)?;
            }
        }
        Ok(Value::Array(list))
    }
}

/// A field that is sent twice: messages are merged, anything else is replaced.
fn merge(into: &mut Map<String, Value>, name: &str, value: Value) {
    match (into.get_mut(name), value) {
        (Some(Value::Object(old)), Value::Object(new)) => old.extend(new),
        (_, value) => {
            into.insert(name.to_owned(), value);
        }
    }
}

fn list_of<'m>(into: &'m mut Map<String, Value>, name: &str) -> &'m mut Vec<Value> {
    let entry = into.entry(name.to_owned()).or_insert_with(|| Value::Array(Vec::new()));
    if !entry.is_array() {
        *entry = Value::Array(Vec::new());
    }
    match entry {
        Value::Array(list) => list,
        _ => unreachable!("it was made an array above"),
    }
}

type Scalars<'a> = ([Option<i64>; 3], [Option<&'a [u8]>; 3]);

/// The numbers and the texts of the fields 1 to 3 of a small message.
fn scalars(mut bytes: &[u8]) -> Result<Scalars<'_>, ProtobufError> {
    let mut found: Scalars<'_> = Default::default();
    while !bytes.is_empty() {
        let (number, wire) = wire::field(&mut bytes)?;
        let Some(at) = usize::try_from(number - 1).ok().filter(|at| *at < 3) else { continue };
        match wire {
            Wire::Varint(n) => found.0[at] = Some(n.cast_signed()),
            Wire::Bytes(b) => found.1[at] = Some(b),
            _ => {}
        }
    }
    Ok(found)
}

fn int_or_string(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let ([kind, number, _], [_, _, string]) = scalars(bytes)?;
    if kind == Some(1) {
        return Ok(Value::String(text(string.unwrap_or_default(), "an IntOrString")?));
    }
    Ok(json!(number.unwrap_or(0)))
}

fn json_bytes(bytes: &[u8]) -> Result<Option<Value>, ProtobufError> {
    let (_, [raw, ..]) = scalars(bytes)?;
    let Some(raw) = raw.filter(|r| !r.is_empty()) else { return Ok(None) };
    serde_json::from_slice(raw).map(Some).map_err(|_| ProtobufError::Value("embedded JSON".to_owned()))
}

/// None for the empty message, Go's zero time.
fn timestamp(bytes: &[u8], micro: bool) -> Result<Option<Value>, ProtobufError> {
    let ([seconds, nanos, _], _) = scalars(bytes)?;
    if seconds.is_none() && nanos.is_none() {
        return Ok(None);
    }
    let bad = || ProtobufError::Value("a time".to_owned());
    let nanos = i32::try_from(nanos.unwrap_or(0)).map_err(|_| bad())?;
    let at = Timestamp::new(seconds.unwrap_or(0), nanos).map_err(|_| bad())?;
    Ok(Some(Value::String(if micro { time::rfc3339_micro(at) } else { time::rfc3339(at) })))
}
