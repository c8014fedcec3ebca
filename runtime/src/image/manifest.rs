//! Manifests, indexes and configurations of images: the fields used here of the OCI image format and of Docker's
//! schema 2, which name them alike. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};
use crate::image::digest::Digest;

/// Takes `null` for the default.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// A reference to content.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: String,
    /// Its size, bytes.
    #[serde(default)]
    pub size: u64,
    /// For which platform, in an index.
    pub platform: Option<Platform>,
    /// Names and notes.
    #[serde(default, deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
}

/// A platform.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, …
    #[serde(default)]
    pub architecture: String,
    /// `linux`, …
    #[serde(default)]
    pub os: String,
}

/// A manifest or an index, whichever fields are there.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Of an image: its configuration.
    pub config: Option<Descriptor>,
    /// Of an image: its layers, lowest first.
    #[serde(default, deserialize_with = "nullable")]
    pub layers: Vec<Descriptor>,
    /// Of an index: what to choose from.
    #[serde(default, deserialize_with = "nullable")]
    pub manifests: Vec<Descriptor>,
}

/// The architecture of this machine in the words of image indexes.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// `Corrupt` for what is none.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|e| Error::Corrupt(format!("image manifest: {e}")))
    }

    /// Of an index, the entry for this machine; one without a platform serves when it is the only one.
    pub fn for_this_platform(&self) -> Option<&Descriptor> {
        let fits = |d: &&Descriptor| {
            d.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == architecture())
        };
        self.manifests.iter().find(fits).or(match self.manifests.as_slice() {
            [only] if only.platform.is_none() => Some(only),
            _ => None,
        })
    }
}

/// An image's configuration file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ConfigFile {
    /// How to run it.
    #[serde(default, deserialize_with = "nullable")]
    pub config: ImageConfig,
    /// What it is made of.
    pub rootfs: RootFs,
}

/// The layers of an image.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RootFs {
    /// Digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<String>,
}

/// How to run an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// `user[:group]`.
    #[serde(deserialize_with = "nullable")]
    pub user: String,
    /// `KEY=value`.
    #[serde(deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// Program and first arguments.
    #[serde(deserialize_with = "nullable")]
    pub entrypoint: Vec<String>,
    /// Default arguments (or program, without an entry point).
    #[serde(deserialize_with = "nullable")]
    pub cmd: Vec<String>,
    /// Working directory.
    #[serde(deserialize_with = "nullable")]
    pub working_dir: String,
    /// Signal that asks it to stop.
    #[serde(deserialize_with = "nullable")]
    pub stop_signal: String,
    /// Labels.
    #[serde(deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
}

impl ConfigFile {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// `Corrupt` for what is none.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|e| Error::Corrupt(format!("image configuration: {e}")))
    }

    /// The layers' digests, lowest first.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no sha256 digest.
    pub fn diff_ids(&self) -> Result<Vec<Digest>> {
        self.rootfs.diff_ids.iter().map(|d| Digest::parse(d)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_missing_fields_are_defaults() -> Result<()> {
        let c = ConfigFile::parse(br#"{"config":{"Env":null,"Cmd":["sh"]},"rootfs":{"diff_ids":[]}}"#)?;
        assert_eq!(c.config, ImageConfig { cmd: vec!["sh".into()], ..ImageConfig::default() });
        assert!(ConfigFile::parse(br#"{"config":null,"rootfs":{"diff_ids":[]}}"#).is_ok());
        assert!(ConfigFile::parse(b"{}").is_err());
        Ok(())
    }

    #[test]
    fn index_picks_this_platform() -> Result<()> {
        let arch = architecture();
        let text = format!(
            r#"{{"manifests":[
                {{"digest":"sha256:w","platform":{{"os":"windows","architecture":"{arch}"}}}},
                {{"digest":"sha256:l","platform":{{"os":"linux","architecture":"{arch}"}}}}]}}"#
        );
        let m = Manifest::parse(text.as_bytes())?;
        assert_eq!(m.for_this_platform().map(|d| d.digest.as_str()), Some("sha256:l"));
        let lone = Manifest::parse(br#"{"manifests":[{"digest":"sha256:x"}]}"#)?;
        assert_eq!(lone.for_this_platform().map(|d| d.digest.as_str()), Some("sha256:x"));
        Ok(())
    }
}
