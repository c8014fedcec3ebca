//! Encryption at rest: an envelope around stored values (Secrets, by default).
//!
//! A key-encryption key from `pki/encryption.keys` wraps a data key that each process draws for itself at
//! start; the data key encrypts values with AES-256-GCM under random 96-bit nonces (a data key per process
//! keeps the number of values per key far from the 2^32 that NIST SP 800-38D allows for random nonces). The
//! storage key is authenticated with each value, so that no one with write access to the store can move a
//! Secret to another name. Where to call it: just before a value goes to `Storage` and just after it comes
//! back, with the storage key as `context`.

use std::collections::HashMap;
use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use parking_lot::RwLock;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

/// What an encrypted value begins with. Values without it are read as they are.
const PREFIX: &[u8] = b"hawser:enc:aes256gcm:v1:";
const KEY_LEN: usize = 32;
const TAG_LEN: usize = 16;
const WRAPPED_LEN: usize = NONCE_LEN + KEY_LEN + TAG_LEN;
/// How many other processes' data keys are kept unwrapped.
const MAX_CACHED_KEYS: usize = 1024;

/// Why a value could not be encrypted or decrypted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncryptionError {
    /// The system gave no randomness, or a key was refused.
    #[error("the system's cryptography failed")]
    System,
    /// The key file holds no usable key.
    #[error("line {line}: expected NAME:BASE64 with a key of 32 bytes")]
    KeyFile {
        /// Line number from 1; 0 when there is no key at all.
        line: usize,
    },
    /// The value was encrypted with a key that is not in the key file.
    #[error("encrypted with the unknown key {0:?}")]
    UnknownKey(String),
    /// The value was changed, cut short, or moved from another storage key.
    #[error("the stored value does not decrypt")]
    Corrupt,
}

/// Named key-encryption keys; the first one encrypts, all decrypt.
pub struct KeyRing {
    keys: Vec<(String, [u8; KEY_LEN])>,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|(name, _)| name)).finish()
    }
}

impl KeyRing {
    /// A ring of one random key.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<Self, EncryptionError> {
        let mut key = [0; KEY_LEN];
        SystemRandom::new().fill(&mut key).map_err(|_| EncryptionError::System)?;
        Ok(Self { keys: vec![("key1".to_owned(), key)] })
    }

    /// Reads a key file: one `NAME:BASE64` per line, `#` for comments.
    ///
    /// # Errors
    /// For a malformed line, or when there is no key.
    pub fn parse(text: &str) -> Result<Self, EncryptionError> {
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let malformed = EncryptionError::KeyFile { line: index + 1 };
            let (name, encoded) = line.split_once(':').ok_or_else(|| malformed.clone())?;
            let key = STANDARD.decode(encoded).map_err(|_| malformed.clone())?;
            let key = key.try_into().map_err(|_| malformed.clone())?;
            if name.is_empty() || name.len() > 255 {
                return Err(malformed);
            }
            keys.push((name.to_owned(), key));
        }
        if keys.is_empty() {
            return Err(EncryptionError::KeyFile { line: 0 });
        }
        Ok(Self { keys })
    }

    /// The key file's text.
    pub fn to_text(&self) -> String {
        let head = "# Keys for Secrets at rest. The first encrypts; keep older ones below it while values use them.\n";
        self.keys
            .iter()
            .fold(head.to_owned(), |text, (name, key)| format!("{text}{name}:{}\n", STANDARD.encode(key)))
    }
}

/// A change of stored values on their way to and from the store.
pub trait Transformer: Send + Sync {
    /// Value as the API server holds it → value as stored. `context` is the storage key.
    ///
    /// # Errors
    /// When encryption fails.
    fn encrypt(&self, context: &[u8], value: &[u8]) -> Result<Bytes, EncryptionError>;

    /// Value as stored → value as the API server holds it. Cheap for values that were not encrypted.
    ///
    /// # Errors
    /// When the value is corrupt, moved, or its key is missing. Never an empty value.
    fn decrypt(&self, context: &[u8], value: Bytes) -> Result<Bytes, EncryptionError>;

    /// Whether a stored value is plain or needs another key than the one that encrypts today.
    fn is_outdated(&self, value: &[u8]) -> bool;
}

/// [`Transformer`] with envelope encryption. See the module's text.
pub struct Envelope {
    kek: HashMap<String, LessSafeKey>,
    /// Prefix, key name and wrapped data key: the same for every value this process writes.
    header: Vec<u8>,
    /// How much of it is the same for every process that encrypts with that key.
    named: usize,
    data_key: LessSafeKey,
    /// Data keys of earlier processes, by their wrapped form.
    unwrapped: RwLock<HashMap<[u8; WRAPPED_LEN], LessSafeKey>>,
    random: SystemRandom,
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope").finish_non_exhaustive()
    }
}

fn aead(key: &[u8]) -> Result<LessSafeKey, EncryptionError> {
    UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new).map_err(|_| EncryptionError::System)
}

impl Envelope {
    /// Draws this process' data key and wraps it with the ring's first key.
    ///
    /// # Errors
    /// When the system gives no randomness or the ring is empty.
    pub fn new(ring: &KeyRing) -> Result<Self, EncryptionError> {
        let random = SystemRandom::new();
        let (name, first) = ring.keys.first().ok_or(EncryptionError::KeyFile { line: 0 })?;
        let mut key = [0; KEY_LEN];
        random.fill(&mut key).map_err(|_| EncryptionError::System)?;
        let mut header = PREFIX.to_vec();
        // Key names are at most 255 bytes: checked where they are read.
        header.push(u8::try_from(name.len()).map_err(|_| EncryptionError::System)?);
        header.extend_from_slice(name.as_bytes());
        let named = header.len();
        seal(&aead(first)?, &random, name.as_bytes(), &key, &mut header)?;
        let kek =
            ring.keys.iter().map(|(name, key)| Ok((name.clone(), aead(key)?))).collect::<Result<_, _>>()?;
        Ok(Self { kek, header, named, data_key: aead(&key)?, unwrapped: RwLock::default(), random })
    }

    fn open_with(
        &self,
        name: &str,
        wrapped: &[u8; WRAPPED_LEN],
        context: &[u8],
        body: &[u8],
    ) -> Result<Bytes, EncryptionError> {
        if let Some(key) = self.unwrapped.read().get(wrapped) {
            return open(key, context, body);
        }
        let kek = self.kek.get(name).ok_or_else(|| EncryptionError::UnknownKey(name.to_owned()))?;
        let key = aead(&open(kek, name.as_bytes(), wrapped)?)?;
        let value = open(&key, context, body)?;
        let mut cache = self.unwrapped.write();
        if cache.len() >= MAX_CACHED_KEYS {
            cache.clear();
        }
        cache.insert(*wrapped, key);
        Ok(value)
    }
}

/// Appends nonce, ciphertext and tag to `out`.
fn seal(
    key: &LessSafeKey,
    random: &SystemRandom,
    context: &[u8],
    plain: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), EncryptionError> {
    let mut nonce = [0; NONCE_LEN];
    random.fill(&mut nonce).map_err(|_| EncryptionError::System)?;
    out.extend_from_slice(&nonce);
    let start = out.len();
    out.extend_from_slice(plain);
    let tag = key
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(context),
            &mut out[start..],
        )
        .map_err(|_| EncryptionError::System)?;
    out.extend_from_slice(tag.as_ref());
    Ok(())
}

fn open(key: &LessSafeKey, context: &[u8], sealed: &[u8]) -> Result<Bytes, EncryptionError> {
    let (nonce, body) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(EncryptionError::Corrupt)?;
    let mut body = body.to_vec();
    let plain = key
        .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(context), &mut body)
        .map_err(|_| EncryptionError::Corrupt)?
        .len();
    body.truncate(plain);
    Ok(body.into())
}

impl Transformer for Envelope {
    fn encrypt(&self, context: &[u8], value: &[u8]) -> Result<Bytes, EncryptionError> {
        let mut out = Vec::with_capacity(self.header.len() + NONCE_LEN + value.len() + TAG_LEN);
        out.extend_from_slice(&self.header);
        seal(&self.data_key, &self.random, context, value, &mut out)?;
        Ok(out.into())
    }

    fn decrypt(&self, context: &[u8], value: Bytes) -> Result<Bytes, EncryptionError> {
        if let Some(body) = value.strip_prefix(self.header.as_slice()) {
            return open(&self.data_key, context, body);
        }
        let Some(rest) = value.strip_prefix(PREFIX) else { return Ok(value) };
        let (&len, rest) = rest.split_first().ok_or(EncryptionError::Corrupt)?;
        let (name, rest) = rest.split_at_checked(len.into()).ok_or(EncryptionError::Corrupt)?;
        let name = std::str::from_utf8(name).map_err(|_| EncryptionError::Corrupt)?;
        let (wrapped, body) = rest.split_first_chunk::<WRAPPED_LEN>().ok_or(EncryptionError::Corrupt)?;
        self.open_with(name, wrapped, context, body)
    }

    fn is_outdated(&self, value: &[u8]) -> bool {
        !self.header.get(..self.named).is_some_and(|today| value.starts_with(today))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_survive_a_new_process_and_a_key_rotation() {
        let old = KeyRing::generate().expect("ring");
        let stored = Envelope::new(&old).expect("envelope").encrypt(b"/secrets/a", b"value").expect("seal");
        assert!(!stored.windows(5).any(|w| w == b"value"));
        let again = Envelope::new(&old).expect("envelope");
        assert_eq!(again.decrypt(b"/secrets/a", stored.clone()).expect("open"), "value");
        let new = KeyRing::generate().expect("ring").to_text().replace("key1", "key2");
        let both = KeyRing::parse(&format!("{new}\n{}", old.to_text())).expect("parse");
        let both = Envelope::new(&both).expect("envelope");
        assert_eq!(both.decrypt(b"/secrets/a", stored.clone()).expect("open"), "value");
        assert!(both.is_outdated(&stored) && both.is_outdated(b"{}") && !again.is_outdated(&stored));
        assert!(!both.is_outdated(&both.encrypt(b"/secrets/a", b"value").expect("seal")));
        let only_new = Envelope::new(&KeyRing::parse(&new).expect("parse")).expect("envelope");
        assert_eq!(
            only_new.decrypt(b"/secrets/a", stored),
            Err(EncryptionError::UnknownKey("key1".to_owned()))
        );
    }

    #[test]
    fn a_value_moved_to_another_key_does_not_open() {
        let envelope = Envelope::new(&KeyRing::generate().expect("ring")).expect("envelope");
        let stored = envelope.encrypt(b"/secrets/a", b"value").expect("seal");
        assert_eq!(envelope.decrypt(b"/secrets/b", stored), Err(EncryptionError::Corrupt));
    }

    #[test]
    fn plain_values_pass_and_key_files_are_checked() {
        let envelope = Envelope::new(&KeyRing::generate().expect("ring")).expect("envelope");
        assert_eq!(envelope.decrypt(b"k", Bytes::from_static(b"{}")).expect("plain"), "{}");
        for (text, line) in [("", 0), ("a", 1), ("# c\na:zz", 2), ("a:AAAA", 1)] {
            assert_eq!(KeyRing::parse(text).err(), Some(EncryptionError::KeyFile { line }), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_value_round_trips_and_no_changed_byte_goes_unseen(
            value in proptest::collection::vec(any::<u8>(), 0..200), at in any::<proptest::sample::Index>(), flip in 1u8..
        ) {
            let envelope = Envelope::new(&KeyRing::generate().expect("ring")).expect("envelope");
            let stored = envelope.encrypt(b"k", &value).expect("seal");
            prop_assert_eq!(envelope.decrypt(b"k", stored.clone()).expect("open"), value.clone());
            let mut changed = stored.to_vec();
            let at = at.index(changed.len());
            changed[at] ^= flip;
            // A changed prefix makes it a plain value, which is then not the secret either.
            prop_assert_ne!(envelope.decrypt(b"k", changed.into()).ok(), Some(Bytes::from(value)));
        }
    }
}
