//! SHA-256 digests of content: in the form `sha256:<64 hex digits>`, and computed while content streams by.

use std::io::{self, Read};

use ring::digest::{Context, SHA256};

use crate::error::{Error, Result};

/// A checked `sha256:<hex>` digest; safe as a file name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

impl Digest {
    /// Reads `sha256:<64 lower-case hex digits>`.
    ///
    /// # Errors
    /// `InvalidArgument` for anything else; other algorithms are not supported.
    pub fn parse(text: &str) -> Result<Self> {
        let hex = text.strip_prefix("sha256:").unwrap_or("");
        let good = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if good {
            Ok(Self(hex.to_owned()))
        } else {
            Err(Error::InvalidArgument(format!("{text:?} is not a sha256 digest")))
        }
    }

    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(hex::encode(ring::digest::digest(&SHA256, bytes)))
    }

    /// The 64 hex digits.
    pub fn hex(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

/// A reader that digests what passes through it.
pub struct DigestReader<R> {
    inner: R,
    context: Context,
}

impl<R: Read> DigestReader<R> {
    /// Wraps a reader.
    pub fn new(inner: R) -> Self {
        Self { inner, context: Context::new(&SHA256) }
    }

    /// Reads what is left and answers the digest of everything.
    ///
    /// # Errors
    /// What the reader answered.
    pub fn finish(mut self) -> io::Result<Digest> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(Digest(hex::encode(self.context.finish())))
    }
}

impl<R: Read> Read for DigestReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.context.update(&buffer[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests() -> io::Result<()> {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert!(Digest::parse(empty).is_ok());
        for bad in ["", "sha256:", "sha512:00", "sha256:../../../../etc/passwd", &empty.to_uppercase()] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
        let mut reader = DigestReader::new(&b"some text"[..]);
        reader.read_exact(&mut [0; 4])?;
        assert_eq!(reader.finish()?, Digest::of(b"some text"));
        Ok(())
    }
}
