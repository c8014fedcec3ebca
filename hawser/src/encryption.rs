//! Encryption at rest: the key file, and what the store asks for in terms of what the API server's envelope gives.

use std::path::Path;

use anyhow::{Context, Result};
use bytes::Bytes;
use hawser_apiserver::cache::feed::Seal;
use hawser_apiserver::encryption::{Envelope, KeyRing, Transformer};
use hawser_apiserver::pki::write_private;

/// Key prefix of the objects that are encrypted: Secrets.
const ENCRYPTED: &str = "/registry/secrets/";

/// Encrypts Secrets on their way to the store.
pub struct SecretSeal(Envelope);

impl SecretSeal {
    /// With the keys of a file, which is made (mode 0600) at the first start.
    pub fn open(path: &Path) -> Result<Self> {
        let ring = match std::fs::read_to_string(path) {
            Ok(text) => KeyRing::parse(&text).with_context(|| path.display().to_string())?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let ring = KeyRing::generate()?;
                write_private(path, ring.to_text().as_bytes())?;
                ring
            }
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        Ok(SecretSeal(Envelope::new(&ring)?))
    }
}

impl Seal for SecretSeal {
    fn seal(&self, key: &str, value: Bytes) -> Result<Bytes, String> {
        if !key.starts_with(ENCRYPTED) {
            return Ok(value);
        }
        self.0.to_storage(key.as_bytes(), &value).map_err(|error| error.to_string())
    }

    fn open(&self, key: &str, value: Bytes) -> Result<Bytes, String> {
        // Values that are not sealed are told by their first bytes, whatever their key.
        self.0.from_storage(key.as_bytes(), value).map_err(|error| error.to_string())
    }
}
