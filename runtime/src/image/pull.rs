//! Pulling images from registries (OCI distribution), every piece checked against its digest.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use futures::StreamExt;
use k8s_cri::v1::AuthConfig;
use oci_client::Reference;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;

use crate::error::{Error, Result};
use crate::image::digest::Digest;
use crate::image::manifest::{ConfigFile, Descriptor, Manifest};
use crate::image::reference::{self, ImageName};
use crate::image::store::{ImageRecord, ImageStore, StagedLayer};

/// Manifest types we read.
const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// The largest manifest or configuration, bytes.
const MAX_JSON: u64 = 8 << 20;
/// Layers fetched and unpacked at once.
const PARALLEL: usize = 3;
/// A registry that sends nothing for this long is given up.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Likewise for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// The credentials of a pull as the kubelet gives them.
///
/// # Errors
/// `InvalidArgument` when `auth` is not base64 of `user:password`.
pub fn credentials(auth: Option<&AuthConfig>) -> Result<RegistryAuth> {
    let Some(auth) = auth else { return Ok(RegistryAuth::Anonymous) };
    if !auth.registry_token.is_empty() {
        return Ok(RegistryAuth::Bearer(auth.registry_token.clone()));
    }
    if !auth.username.is_empty() || !auth.password.is_empty() {
        return Ok(RegistryAuth::Basic(auth.username.clone(), auth.password.clone()));
    }
    if !auth.auth.is_empty() {
        let wrong = || Error::InvalidArgument("auth is not base64 of user:password".into());
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(auth.auth.trim()).map_err(|_| wrong())?;
        let text = String::from_utf8(bytes).map_err(|_| wrong())?;
        let (user, password) = text.trim_end_matches('\0').split_once(':').ok_or_else(wrong)?;
        return Ok(RegistryAuth::Basic(user.to_owned(), password.to_owned()));
    }
    if !auth.identity_token.is_empty() {
        return Err(Error::Unimplemented("identity tokens are not supported; use a registry token".into()));
    }
    Ok(RegistryAuth::Anonymous)
}

fn registry_error(what: &str, error: OciDistributionError) -> Error {
    let text = format!("{what}: {error}");
    match &error {
        OciDistributionError::ImageManifestNotFoundError(_) => Error::NotFound(text),
        OciDistributionError::AuthenticationFailure(_) | OciDistributionError::UnauthorizedError { .. } => {
            Error::Unauthorized(text)
        }
        OciDistributionError::RegistryError { envelope, .. } => {
            match envelope.errors.first().map(|e| &e.code) {
                Some(OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown | OciErrorCode::NotFound) => {
                    Error::NotFound(text)
                }
                Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => Error::Unauthorized(text),
                _ => Error::Failed(text),
            }
        }
        OciDistributionError::DigestError(_) => Error::Corrupt(text),
        OciDistributionError::RequestError(_) => Error::Unavailable(text),
        _ => Error::Failed(text),
    }
}

struct Puller<'a> {
    store: &'a Arc<ImageStore>,
    client: Client,
    name: ImageName,
    reference: Reference,
    auth: RegistryAuth,
}

/// Pulls an image by name. Needs a rustls crypto provider installed as the process' default.
///
/// # Errors
/// `InvalidArgument` for a bad name, `NotFound`, `Unauthorized`, `Corrupt` when a digest differs, and what the
/// registry or the file system answered.
pub async fn pull(
    store: &Arc<ImageStore>,
    name: &str,
    auth: RegistryAuth,
    insecure: &[String],
) -> Result<Arc<ImageRecord>> {
    let parsed = reference::parse(name)?;
    let _busy = store.busy();
    let plain = reference::is_insecure(&parsed.registry, insecure);
    let config = ClientConfig {
        protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
        read_timeout: Some(READ_TIMEOUT),
        connect_timeout: Some(CONNECT_TIMEOUT),
        user_agent: concat!("hawser/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    // One client per pull: a client keeps the first credentials it sees for a registry.
    let client = Client::try_from(config).map_err(|e| registry_error("make client", e))?;
    let puller = Puller { store, client, reference: parsed.reference(), name: parsed, auth };
    puller.run().await
}

impl Puller<'_> {
    async fn manifest(&self, reference: &Reference) -> Result<(Vec<u8>, Digest)> {
        let (bytes, _) = self
            .client
            .pull_manifest_raw(reference, &self.auth, &ACCEPTED)
            .await
            .map_err(|e| registry_error(&format!("pull manifest of {reference}"), e))?;
        let digest = Digest::of(&bytes);
        if let Some(want) = reference.digest()
            && Digest::parse(want)? != digest
        {
            return Err(Error::Corrupt(format!("manifest is {digest}, not {want}")));
        }
        Ok((bytes.to_vec(), digest))
    }

    async fn run(&self) -> Result<Arc<ImageRecord>> {
        let (mut bytes, named_digest) = self.manifest(&self.reference).await?;
        let mut manifest = Manifest::parse(&bytes)?;
        if !manifest.manifests.is_empty() {
            let chosen = manifest.for_this_platform().ok_or_else(|| {
                let arch = crate::image::manifest::architecture();
                Error::NotFound(format!("{} has no image for linux/{arch}", self.reference))
            })?;
            let by_digest = self.reference.clone_with_digest(chosen.digest.clone());
            bytes = self.manifest(&by_digest).await?.0;
            manifest = Manifest::parse(&bytes)?;
        }
        let config_at = manifest
            .config
            .as_ref()
            .ok_or_else(|| Error::Corrupt("manifest without configuration".into()))?;
        let tags: BTreeSet<_> = self.name.tagged().into_iter().collect();
        let digests: BTreeSet<_> = [self.name.with_digest(&named_digest)].into();
        let id = Digest::parse(&config_at.digest)?;
        if let Some(image) = self.store.add_names(&id.to_string(), &tags, &digests)? {
            return Ok(image);
        }
        let config = self.small_blob(config_at, &id).await?;
        let diff_ids = ConfigFile::parse(&config)?.diff_ids()?;
        if diff_ids.len() != manifest.layers.len() {
            let (layers, ids) = (manifest.layers.len(), diff_ids.len());
            return Err(Error::Corrupt(format!("{layers} layers but {ids} diff ids")));
        }
        // A layer may occur twice in an image.
        let mut wanted: Vec<(Descriptor, Digest)> = Vec::new();
        for (layer, diff_id) in manifest.layers.iter().zip(diff_ids) {
            if !self.store.has_layer(&diff_id) && !wanted.iter().any(|(_, d)| *d == diff_id) {
                wanted.push((layer.clone(), diff_id));
            }
        }
        let mut fetches = futures::stream::iter(wanted)
            .map(|(layer, diff_id)| async move { self.layer(&layer, &diff_id).await })
            .buffer_unordered(PARALLEL);
        let mut staged = Vec::new();
        while let Some(layer) = fetches.next().await {
            staged.push(layer?);
        }
        drop(fetches);
        let store = Arc::clone(self.store);
        blocking(move || store.commit(&config, Some(&bytes), staged, tags, digests)).await
    }

    async fn small_blob(&self, descriptor: &Descriptor, digest: &Digest) -> Result<Vec<u8>> {
        if descriptor.size > MAX_JSON {
            return Err(Error::Corrupt(format!("{digest} is too large: {} bytes", descriptor.size)));
        }
        let mut bytes = Vec::new();
        self.client
            .pull_blob(&self.reference, digest.to_string().as_str(), &mut bytes)
            .await
            .map_err(|e| registry_error(&format!("pull {digest}"), e))?;
        if Digest::of(&bytes) != *digest {
            return Err(Error::Corrupt(format!("{digest} has another digest")));
        }
        Ok(bytes)
    }

    async fn layer(&self, descriptor: &Descriptor, diff_id: &Digest) -> Result<StagedLayer> {
        let digest = Digest::parse(&descriptor.digest)?;
        let blob = Temporary(self.store.temporary());
        let file = tokio::fs::File::create_new(&blob.0).await.map_err(Error::path("create", &blob.0))?;
        self.client
            .pull_blob(&self.reference, digest.to_string().as_str(), file)
            .await
            .map_err(|e| registry_error(&format!("pull {digest}"), e))?;
        let store = Arc::clone(self.store);
        let diff_id = diff_id.clone();
        blocking(move || {
            let file = std::fs::File::open(&blob.0).map_err(Error::path("open", &blob.0))?;
            store.stage_layer(file, Some(&digest), &diff_id)
        })
        .await
    }
}

/// A file that goes with this object, also when a pull is given up in the middle.
struct Temporary(std::path::PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Left over, it goes with the store's next start.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Runs blocking work on tokio's pool for it.
///
/// # Errors
/// What the work answered, or that it panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::Failed(format!("worker: {e}")))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_from_every_field() {
        let config = |f: fn(&mut AuthConfig)| {
            let mut a = AuthConfig::default();
            f(&mut a);
            credentials(Some(&a)).ok()
        };
        assert_eq!(credentials(None).ok(), Some(RegistryAuth::Anonymous));
        assert_eq!(config(|_| {}), Some(RegistryAuth::Anonymous));
        let basic = Some(RegistryAuth::Basic("u".into(), "p:q".into()));
        assert_eq!(config(|a| a.auth = "dTpwOnE=".into()), basic);
        assert_eq!(
            config(|a| {
                a.username = "u".into();
                a.password = "p:q".into();
            }),
            basic
        );
        assert_eq!(config(|a| a.registry_token = "t".into()), Some(RegistryAuth::Bearer("t".into())));
        assert_eq!(config(|a| a.auth = "%".into()), None);
        assert_eq!(config(|a| a.identity_token = "t".into()), None);
    }
}
