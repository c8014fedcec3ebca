//! Changes of inputs for runs without coverage feedback: bytes, words of a dictionary, and the shapes that break parsers.

use rand::Rng;
use rand::seq::IndexedRandom as _;

/// Longest input that grows out of mutations.
const MAX: usize = 64 << 10;

/// Words that parsers look for.
const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "null",
    "true",
    "false",
    "-",
    "0",
    "1e309",
    "-1e-309",
    "9223372036854775808",
    "18446744073709551616",
    "1.5",
    "\\u0000",
    "\\ud800",
    "\"\"",
    "{}",
    "[]",
    "apiVersion",
    "kind",
    "metadata",
    "name",
    "namespace",
    "labels",
    "annotations",
    "finalizers",
    "ownerReferences",
    "managedFields",
    "spec",
    "status",
    "containers",
    "$patch",
    "replace",
    "delete",
    "merge",
    "$retainKeys",
    "$setElementOrder/containers",
    "$deleteFromPrimitiveList/finalizers",
    "op",
    "path",
    "value",
    "from",
    "add",
    "test",
    "move",
    "copy",
    "/-",
    "/~0~1",
    "k8s\0",
    "&a",
    "*a",
    "<<",
    "!!binary",
    "!!int",
    "---\n",
    "...\n",
    "? ",
    "|-\n",
    "\t",
    "%",
    "%00",
    "%2F",
    "%zz",
    "..",
    "//",
    "?",
    "&",
    "=",
    "!=",
    " in (",
    " notin (",
    ")",
    ">",
    "<",
    "metadata.name=",
    "watch=1",
    "dryRun=All",
    "fieldManager=",
    "continue=",
    "limit=-1",
    "resourceVersion=",
    "sendInitialEvents=true",
    "application/json",
    "application/vnd.kubernetes.protobuf",
    ";as=Table;v=v1;g=meta.k8s.io",
    "x-kubernetes-validations",
    "self.x",
    "\u{feff}",
    "\u{2028}",
    "é",
    "\r\n",
];

/// One input from another: a few changes. `other` is another input to take parts of.
pub fn mutate(input: &[u8], other: &[u8], rng: &mut impl Rng) -> Vec<u8> {
    let mut out = input.to_vec();
    for _ in 0..rng.random_range(1..=6) {
        change(&mut out, other, rng);
    }
    out.truncate(MAX);
    out
}

fn change(out: &mut Vec<u8>, other: &[u8], rng: &mut impl Rng) {
    let at = rng.random_range(0..=out.len());
    let end = (at + rng.random_range(0..=32)).min(out.len());
    match rng.random_range(0..10) {
        0 => {
            if let Some(byte) = out.get_mut(at) {
                *byte ^= 1 << rng.random_range(0..8);
            }
        }
        1 => {
            if let Some(byte) = out.get_mut(at) {
                *byte = rng.random();
            }
        }
        2 => drop(out.drain(at..end)),
        3 => {
            let part = out[at..end].to_vec();
            drop(out.splice(at..at, part));
        }
        4 | 5 => {
            let word = WORDS.choose(rng).copied().unwrap_or_default();
            drop(out.splice(at..at, word.bytes()));
        }
        6 => {
            let from = rng.random_range(0..=other.len());
            let to = (from + rng.random_range(0..=64)).min(other.len());
            drop(out.splice(at..end, other[from..to].iter().copied()));
        }
        7 => {
            // Depth.
            let (open, close) =
                *[("[", "]"), ("{\"a\":", "}"), ("- ", ""), ("(", ")")].choose(rng).unwrap_or(&("", ""));
            let times = rng.random_range(1..=2000);
            let part = format!("{}{}", open.repeat(times), close.repeat(times));
            drop(out.splice(at..at, part.into_bytes()));
        }
        8 => {
            // Length.
            let byte = *[b'a', b'0', b' ', b'/', 0xff, b'"'].choose(rng).unwrap_or(&b'a');
            let times = rng.random_range(1..=5000);
            drop(out.splice(at..at, std::iter::repeat_n(byte, times)));
        }
        _ => {
            // A value of another type in the place of one.
            if let Some(colon) = out.iter().skip(at).position(|b| *b == b':').map(|n| at + n + 1) {
                let stop = out.iter().skip(colon).position(|b| matches!(b, b',' | b'}' | b'\n'));
                let stop = stop.map_or(out.len(), |n| colon + n);
                let value =
                    *["null", "{}", "[]", "\"x\"", "-1", "1.5", "true", "[null]"].choose(rng).unwrap_or(&"0");
                drop(out.splice(colon..stop, value.bytes()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    #[test]
    fn mutations_are_bounded_and_repeatable() {
        let run = || {
            let mut rng = rand::rngs::StdRng::seed_from_u64(7);
            let mut input = b"{\"a\": 1}".to_vec();
            for _ in 0..2000 {
                input = mutate(&input, b"other: [1]", &mut rng);
                assert!(input.len() <= MAX);
            }
            input
        };
        assert_eq!(run(), run());
    }
}
