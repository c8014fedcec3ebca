//! Between etcd's terms and ours. Pure.

use bytes::Bytes;

use crate::{Error, KeyValue, Revision};

/// A revision as etcd counts; what it could never reach is the greatest.
pub(super) fn to_i64(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

/// Whether a stored key is one of the engine's own.
pub(super) fn is_mark(stored: &[u8]) -> bool {
    stored.contains(&0)
}

/// The first key after all those that start with `prefix`; a single NUL, in etcd's protocol "no end",
/// if there is none.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// Our keys below a prefix.
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub fn new(prefix: String) -> Keys {
        Keys { prefix }
    }

    pub fn stored(&self, key: &str) -> Vec<u8> {
        [self.prefix.as_bytes(), key.as_bytes()].concat()
    }

    /// Begin and end of the keys below `prefix` that are greater than `start_after`.
    pub fn range(&self, prefix: &str, start_after: Option<&str>) -> (Vec<u8>, Vec<u8>) {
        let begin = match start_after {
            // The key's successor.
            Some(after) if after >= prefix => [&self.stored(after)[..], b"\0"].concat(),
            _ => self.stored(prefix),
        };
        let end = end_of(&self.stored(prefix));
        if begin.is_empty() {
            return (vec![0], end);
        }
        if end != [0] && begin > end {
            // Beyond the prefix: a range that holds nothing.
            return (end.clone(), end);
        }
        (begin, end)
    }

    /// # Errors
    /// [`Error::Corrupt`] for keys that somebody else must have written.
    pub fn key(&self, stored: &[u8]) -> Result<std::sync::Arc<str>, Error> {
        stored
            .strip_prefix(self.prefix.as_bytes())
            .and_then(|key| std::str::from_utf8(key).ok())
            .map(Into::into)
            .ok_or_else(|| Error::Corrupt {
                what: format!("key {} is not one of ours", stored.escape_ascii()),
            })
    }

    /// # Errors
    /// As [`Keys::key`].
    pub fn key_value(&self, kv: &etcd_client::KeyValue) -> Result<KeyValue, Error> {
        Ok(KeyValue {
            key: self.key(kv.key())?,
            value: Bytes::copy_from_slice(kv.value()),
            create_revision: u64::try_from(kv.create_revision()).unwrap_or(0),
            mod_revision: u64::try_from(kv.mod_revision()).unwrap_or(0),
        })
    }
}

/// etcd's error as ours. The revisions it does not tell are 0, for the caller to fill in.
pub(super) fn error_of(error: &etcd_client::Error) -> Error {
    if let etcd_client::Error::GRpcStatus(status) = error {
        // etcd tells these apart by their text only.
        let message = status.message();
        if message.contains("required revision has been compacted") {
            return Error::Compacted { compacted: 0 };
        }
        if message.contains("required revision is a future revision") {
            return Error::FutureRevision { current: 0 };
        }
        if message.contains("request is too large") || message.contains("message larger than max") {
            return Error::TooLarge { size: 0, limit: 0 };
        }
    }
    Error::Unavailable(format!("etcd: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let plain = Keys::new(String::new());
        let below = Keys::new("/x/".to_owned());
        for (keys, prefix, after, begin, end) in [
            (&plain, "", None, &b"\0"[..], &b"\0"[..]),
            (&plain, "", Some("a"), b"a\0", b"\0"),
            (&plain, "a/", None, b"a/", b"a0"),
            (&plain, "a/", Some("a/b"), b"a/b\0", b"a0"),
            (&plain, "a/", Some("A"), b"a/", b"a0"),
            (&plain, "a/", Some("b"), b"a0", b"a0"),
            (&below, "", None, b"/x/", b"/x0"),
            (&below, "k", Some("k"), b"/x/k\0", b"/x/l"),
        ] {
            let want = (begin.to_vec(), end.to_vec());
            assert_eq!(keys.range(prefix, after), want, "{prefix} {after:?}");
        }
        assert_eq!(end_of(&[1, 0xff, 0xff]), [2]);
        assert_eq!(end_of(&[0xff]), [0]);
    }

    #[test]
    fn foreign_keys_are_errors() {
        let keys = Keys::new("/x/".to_owned());
        assert_eq!(&*keys.key(b"/x/a").unwrap(), "a");
        assert!(keys.key(b"/y/a").is_err());
        assert!(keys.key(b"/x/\xff").is_err());
    }
}
