//! The order in which a document shows what decoding drops.
//!
//! Go's decoder meets duplicate and unknown fields in one pass. Here the parser finds the former and the schema
//! the latter, so that messages of both are put in the document's order afterwards. Only documents with more than
//! one of them are read again.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::Dropped;
use super::json::{Step, duplicate, render, unknown};

/// Puts the messages about a JSON document in its order. Those that it does not explain stay at the end.
pub fn in_document_order(bytes: &[u8], dropped: &mut Dropped) {
    if dropped.messages.len() < 2 {
        return;
    }
    let mut places: HashMap<&str, usize> = HashMap::new();
    {
        let mut wanted: HashMap<&str, Option<usize>> =
            dropped.messages.iter().map(|m| (m.as_str(), None)).collect();
        let mut found = 0;
        let seed = Search { path: &mut Vec::new(), wanted: &mut wanted, found: &mut found };
        let mut de = serde_json::Deserializer::from_slice(bytes);
        // The document was parsed before; what cannot be read again keeps its order.
        let _ = seed.deserialize(&mut de);
        places.extend(wanted.into_iter().filter_map(|(message, place)| Some((message, place?))));
    }
    let mut order: Vec<usize> = (0..dropped.messages.len()).collect();
    order.sort_by_key(|i| places.get(dropped.messages[*i].as_str()).copied().unwrap_or(usize::MAX));
    dropped.messages = order.into_iter().map(|i| std::mem::take(&mut dropped.messages[i])).collect();
}

/// Notes at which key of the document each message arises.
struct Search<'a, 'm> {
    path: &'a mut Vec<Step>,
    wanted: &'a mut HashMap<&'m str, Option<usize>>,
    found: &'a mut usize,
}

impl<'m> Search<'_, 'm> {
    fn inner(&mut self) -> Search<'_, 'm> {
        Search { path: self.path, wanted: self.wanted, found: self.found }
    }

    fn note(&mut self, message: &str) {
        if let Some(place @ None) = self.wanted.get_mut(message) {
            *self.found += 1;
            *place = Some(*self.found);
        }
    }
}

impl<'de> DeserializeSeed<'de> for Search<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Search<'_, '_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        for index in 0.. {
            self.path.push(Step::Index(index));
            let item = seq.next_element_seed(self.inner());
            self.path.pop();
            if item?.is_none() {
                break;
            }
        }
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(mut self, mut access: A) -> Result<(), A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = access.next_key::<String>()? {
            let path = render(self.path, &key);
            let again = !keys.insert(key.clone());
            self.note(&unknown(&path));
            if again {
                self.note(&duplicate(&path));
            }
            self.path.push(Step::Field(key));
            let value = access.next_value_seed(self.inner());
            self.path.pop();
            value?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{normalize, parse_json};
    use crate::schema;

    fn messages(document: &str) -> Vec<String> {
        let mut dropped = Dropped::default();
        let mut object = parse_json(document.as_bytes(), &mut dropped).unwrap();
        let ty = schema::find_kind("apps/v1", "Deployment").unwrap();
        normalize(ty, &mut object, &mut dropped).unwrap();
        in_document_order(document.as_bytes(), &mut dropped);
        dropped.messages
    }

    #[test]
    fn messages_come_in_the_order_of_the_document() {
        for (document, expected) in [
            (
                r#"{"spec": {"unknownField": 1, "replicas": 1, "replicas": 2}}"#,
                [r#"unknown field "spec.unknownField""#, r#"duplicate field "spec.replicas""#],
            ),
            (
                r#"{"spec": {"replicas": 1, "replicas": 2, "unknownField": 1}}"#,
                [r#"duplicate field "spec.replicas""#, r#"unknown field "spec.unknownField""#],
            ),
            (
                r#"{"spec": {"template": {"spec": {"containers": [{"z": 1}, {"a": 1}]}}}}"#,
                [
                    r#"unknown field "spec.template.spec.containers[0].z""#,
                    r#"unknown field "spec.template.spec.containers[1].a""#,
                ],
            ),
            (r#"{"zeta": 1, "alpha": 2}"#, [r#"unknown field "zeta""#, r#"unknown field "alpha""#]),
        ] {
            assert_eq!(messages(document), expected, "{document}");
        }
    }
}
