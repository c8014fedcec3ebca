//! Names derived from contents: stable hashes written with letters that spell nothing.

use serde::Serialize;

/// Letters and digits without vowels and look-alikes: `kubectl` users read these names aloud.
const SAFE: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// FNV-1a, 32 bits.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Writes each character of `text` as one of the safe alphabet.
pub fn safe_encode(text: &str) -> String {
    text.bytes().map(|b| char::from(SAFE[usize::from(b) % SAFE.len()])).collect()
}

/// A label value of at most ten characters that stands for `value`; `salt` gives another one after a
/// collision.
pub fn content_hash<T: Serialize>(value: &T, salt: Option<i32>) -> String {
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    if let Some(salt) = salt {
        bytes.extend_from_slice(&salt.to_le_bytes());
    }
    safe_encode(&fnv1a(&bytes).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_stable_safe_and_salted() {
        // The published test vector of FNV-1a.
        assert_eq!(fnv1a(b"foobar"), 0xbf9c_f968);
        let a = content_hash(&"a", None);
        assert_eq!(a, content_hash(&"a", None));
        assert_ne!(a, content_hash(&"b", None));
        assert_ne!(a, content_hash(&"a", Some(1)));
        assert!(a.len() <= 10 && a.bytes().all(|b| SAFE.contains(&b)));
    }
}
