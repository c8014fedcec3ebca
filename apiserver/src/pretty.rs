//! JSON for people: line breaks and an indent of two spaces, as Go's `json.Indent` writes them.

/// Indents JSON text that comes in pieces. Text that is no JSON comes out with odd line breaks and nothing lost.
pub fn indent(pieces: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let size: usize = pieces.iter().map(|p| p.as_ref().len()).sum();
    let mut out = Vec::with_capacity(size * 2);
    let (mut depth, mut in_string, mut escaped, mut opened) = (0usize, false, false, false);
    let line = |out: &mut Vec<u8>, depth: usize| {
        out.push(b'\n');
        out.resize(out.len() + 2 * depth, b' ');
    };
    for &byte in pieces.iter().flat_map(|p| p.as_ref()) {
        if in_string {
            out.push(byte);
            in_string = byte != b'"' || escaped;
            escaped = byte == b'\\' && !escaped;
            continue;
        }
        if byte.is_ascii_whitespace() {
            continue;
        }
        let closes = matches!(byte, b'}' | b']');
        if closes {
            depth = depth.saturating_sub(1);
        }
        // Nothing stands between the brackets of what is empty.
        if opened != closes {
            line(&mut out, depth);
        }
        opened = matches!(byte, b'{' | b'[');
        out.push(byte);
        match byte {
            b'{' | b'[' => depth += 1,
            b',' => line(&mut out, depth),
            b':' => out.push(b' '),
            b'"' => in_string = true,
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn as_the_usual_printer_writes_it() {
        for value in [
            json!({"a": [1, {"b": "x,{\"y\\"}, [], {}], "c": null, "d": {"e": "\\\\"}}),
            json!([]),
            json!({}),
            json!([[[]], [{}]]),
            json!("a: b"),
        ] {
            let text = value.to_string();
            let want = serde_json::to_string_pretty(&value).expect("json");
            assert_eq!(String::from_utf8(indent(&[&text])).expect("text"), want);
            let (a, b) = text.as_bytes().split_at(text.len() / 2);
            assert_eq!(indent(&[a, b]), want.as_bytes());
        }
    }

    proptest::proptest! {
        #[test]
        fn strings_stay_whole(text in ".{0,40}") {
            let value = json!({"k": [text]});
            let back: Value = serde_json::from_slice(&indent(&[value.to_string()])).expect("json");
            proptest::prop_assert_eq!(back, value);
        }
    }
}
