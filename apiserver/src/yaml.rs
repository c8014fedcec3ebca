//! What a YAML document says twice, in the words of Go's decoder.

use std::collections::HashSet;

use hawser_api::text::quote;
use saphyr_parser::{Event, Parser, ScalarStyle};

/// Words that are booleans to YAML 1.1.
const TRUE: [&str; 11] = ["y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE"];
const FALSE: [&str; 11] = ["n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE"];
/// The key whose value is merged into its map; it may come again.
const MERGE: &str = "<<";

/// An open collection.
enum Open {
    Sequence,
    /// A map with its keys so far; `key` says that a key comes next.
    Map {
        keys: HashSet<String>,
        key: bool,
    },
}

/// The keys that the first document has twice, each as `line 5: key "a" already set in map`, in their order. Lines
/// are counted from 1. A document that cannot be read to its end is read as far as possible.
pub fn duplicates(document: &[u8]) -> Vec<String> {
    let Ok(text) = std::str::from_utf8(document) else { return Vec::new() };
    let mut found = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(text) {
        let Ok((event, span)) = event else { break };
        match event {
            Event::DocumentEnd => break,
            Event::SequenceStart(..) => open.push(Open::Sequence),
            Event::MappingStart(..) => open.push(Open::Map { keys: HashSet::new(), key: true }),
            Event::SequenceEnd | Event::MappingEnd => {
                open.pop();
                node_ends(&mut open);
            }
            Event::Scalar(value, style, ..) => {
                if let Some(Open::Map { keys, key: true }) = open.last_mut()
                    && (style != ScalarStyle::Plain || value != MERGE)
                {
                    let key = key_text(&value, style);
                    if keys.contains(&key) {
                        found.push(format!("line {}: key {key} already set in map", span.start.line()));
                    } else {
                        keys.insert(key);
                    }
                }
                node_ends(&mut open);
            }
            Event::Alias(..) => node_ends(&mut open),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(..) => {}
        }
    }
    found
}

/// After a key comes its value, and after that the next key.
fn node_ends(open: &mut [Open]) {
    if let Some(Open::Map { key, .. }) = open.last_mut() {
        *key = !*key;
    }
}

/// A key as Go prints it: strings are quoted, numbers and booleans are not.
fn key_text(value: &str, style: ScalarStyle) -> String {
    if style != ScalarStyle::Plain {
        return quote(value);
    }
    if TRUE.contains(&value) {
        return "true".into();
    }
    if FALSE.contains(&value) {
        return "false".into();
    }
    if value.parse::<i64>().is_ok() {
        return value.trim_start_matches('+').to_owned();
    }
    match value.parse::<f64>() {
        Ok(_) if value.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) => value.to_owned(),
        _ => quote(value),
    }
}

/// All of them as one error of Go's decoder.
pub fn errors(duplicates: &[String]) -> String {
    format!("yaml: unmarshal errors:\n  {}", duplicates.join("\n  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_come_again() {
        for (text, want) in [
            ("a: 1\nb: 2\n", vec![]),
            ("\na: 1\na: 2\nb: {c: 1, d: 2,\n c: 3}\na: 4\n", vec![(3, "\"a\""), (5, "\"c\""), (6, "\"a\"")]),
            ("1: a\n1: b\n1.0: c\n\"1\": d\ntrue: e\nyes: f\n", vec![(2, "1"), (6, "true")]),
            ("{\"a\": [{\"b\": 1,\n\"b\": 2}, {\"b\": 3}],\n\"a\": 0}", vec![(2, "\"b\""), (3, "\"a\"")]),
            ("x: &x {a: 1}\n<<: *x\n<<: *x\ny: *x\ny: *x\n", vec![(5, "true")]),
            ("a: 1\n---\na: 1\na: 2\n", vec![]),
            ("? [a, a]\n: 1\nb: 1\nb: 2\n", vec![(4, "\"b\"")]),
            ("a: 1\na: 2\nb: [", vec![(2, "\"a\"")]),
        ] {
            let want: Vec<String> =
                want.iter().map(|(line, key)| format!("line {line}: key {key} already set in map")).collect();
            assert_eq!(duplicates(text.as_bytes()), want, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[ \\n\\-:a-c\\[\\]{},&*?|>'\"#%!<0-9]{0,60}") {
            let _ = duplicates(text.as_bytes());
        }
    }
}
