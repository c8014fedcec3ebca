//! The key file of encryption at rest.

use std::path::Path;

use anyhow::{Context, Result};
use hawser_apiserver::encryption::{Envelope, KeyRing};
use hawser_apiserver::pki::write_private;

/// The envelope with the keys of a file, which is made (mode 0600) at the first start.
pub fn open(path: &Path) -> Result<Envelope> {
    let ring = match std::fs::read_to_string(path) {
        Ok(text) => KeyRing::parse(&text).with_context(|| path.display().to_string())?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let ring = KeyRing::generate()?;
            write_private(path, ring.to_text().as_bytes())?;
            ring
        }
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    Ok(Envelope::new(&ring)?)
}
