//! Decoding of a few parts of a large object. The rest is checked for being JSON and skipped.

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Error, Map, Value};

/// The object without what does not lie on one of the dotted paths.
///
/// # Errors
/// When the bytes are no JSON object.
pub fn parse(json: &[u8], paths: &[&str]) -> Result<Value, Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = Parts(paths).deserialize(&mut deserializer)?;
    deserializer.end()?;
    if !value.is_object() {
        return Err(Error::custom("no object"));
    }
    Ok(value)
}

/// What lies on the paths, of an object; null for anything else.
struct Parts<'p>(&'p [&'p str]);

/// What is wanted of a field.
enum Wanted<'p> {
    Nothing,
    Whole(String),
    Parts(String, Vec<&'p str>),
}

/// Reads a field's name.
struct Name<'p>(&'p [&'p str]);

impl<'de> DeserializeSeed<'de> for Parts<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Parts<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut found = Map::new();
        while let Some(wanted) = fields.next_key_seed(Name(self.0))? {
            match wanted {
                Wanted::Nothing => {
                    fields.next_value::<IgnoredAny>()?;
                }
                Wanted::Whole(name) => {
                    found.insert(name, fields.next_value()?);
                }
                Wanted::Parts(name, below) => {
                    found.insert(name, fields.next_value_seed(Parts(&below))?);
                }
            }
        }
        Ok(Value::Object(found))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_str<E>(self, _: &str) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

impl<'de, 'p> DeserializeSeed<'de> for Name<'p> {
    type Value = Wanted<'p>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Wanted<'p>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'p> Visitor<'_> for Name<'p> {
    type Value = Wanted<'p>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Wanted<'p>, E> {
        let mut below = Vec::new();
        for path in self.0 {
            let Some(rest) = path.strip_prefix(name) else { continue };
            if rest.is_empty() {
                return Ok(Wanted::Whole(name.to_owned()));
            }
            below.extend(rest.strip_prefix('.'));
        }
        Ok(if below.is_empty() { Wanted::Nothing } else { Wanted::Parts(name.to_owned(), below) })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keeps_what_lies_on_the_paths() {
        let object = json!({
            "a": {"b": {"c": [1, {"d": 2}], "x": 1}, "bb": 2},
            "ab": {"b": 3},
            "n": 7, "f": 1.5, "s": "\"", "t": true, "z": null, "l": [[], {"a": 1}],
        });
        for (paths, want) in [
            (&["a.b.c"][..], json!({"a": {"b": {"c": [1, {"d": 2}]}}})),
            (&["a.b.c", "a.bb"], json!({"a": {"b": {"c": [1, {"d": 2}]}, "bb": 2}})),
            (&["a.b.c", "a.b"], json!({"a": {"b": {"c": [1, {"d": 2}], "x": 1}}})),
            (&["a.q", "q"], json!({"a": {}})),
            (
                &["n.x", "f.x", "s.x", "t.x", "z.x", "l.a"],
                json!({"n": null, "f": null, "s": null, "t": null, "z": null, "l": null}),
            ),
            (&[], json!({})),
        ] {
            let bytes = serde_json::to_vec(&object).expect("json");
            assert_eq!(parse(&bytes, paths).expect("an object"), want, "{paths:?}");
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in
            ["", "1", "[]", "\"a\"", "null", "{", "{\"a\":}", "{\"x\":[1,}", "{} {}", "{\"x\":\"\u{1}\"}"]
        {
            assert!(parse(text.as_bytes(), &["a"]).is_err(), "{text}");
        }
    }
}
