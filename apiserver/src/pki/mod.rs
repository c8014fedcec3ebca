//! The cluster's own public key infrastructure.
//!
//! On first start everything is created below one directory (mode 0700, keys 0600) under the names that
//! kubeadm uses; later starts reuse it. A leaf certificate is renewed when it is near its end (also by a server
//! that runs: [`Pki::keep_renewed`]), when it no longer carries the names the server is reached by, or when it was
//! not signed by the present CA. The CA itself is never replaced: nodes pin its digest in their join token.

mod files;
mod issue;
mod kubeconfig;
mod live;
mod tls;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub use files::write_private;
pub use issue::{Identity, LeafSpec};
pub use kubeconfig::kubeconfig;
pub use live::{AdminFile, Live, Presented};
pub use tls::{kubelet_client_config, server_config, unverified_client_config};

use crate::encryption::KeyRing;

/// Lifetime of the CA certificate.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Lifetime of each leaf certificate.
const LEAF_LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// A leaf with less than this left is renewed at start.
const RENEW_BEFORE: Duration = Duration::from_secs(90 * 86_400);

/// User name of the API server when it calls a kubelet.
pub const KUBELET_CLIENT_USER: &str = "kube-apiserver-kubelet-client";
/// Group of the API server's kubelet client certificate; bound to `system:kubelet-api-admin` at bootstrap.
pub const KUBELET_CLIENT_GROUP: &str = "hawser:apiserver-kubelet-clients";

/// What the certificates must say.
#[derive(Debug, Clone)]
pub struct PkiConfig {
    /// Directory that holds all keys and certificates (`DATA/pki`).
    pub dir: PathBuf,
    /// ClusterIPs of `kubernetes.default`.
    pub service_ips: Vec<IpAddr>,
    /// Addresses under which clients reach the server.
    pub advertise: Vec<IpAddr>,
    /// Further DNS names or addresses for the serving certificate.
    pub extra_sans: Vec<String>,
    /// The cluster's DNS domain, `cluster.local` by default.
    pub cluster_domain: String,
}

impl PkiConfig {
    /// The defaults of the project for a data directory: service address 10.96.0.1, domain `cluster.local`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            service_ips: vec![IpAddr::from([10, 96, 0, 1])],
            advertise: Vec::new(),
            extra_sans: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
        }
    }

    /// Every subject alternative name of the serving certificate, without repetition.
    fn serving_sans(&self) -> Vec<String> {
        let mut sans = vec![
            "kubernetes".to_owned(),
            "kubernetes.default".to_owned(),
            "kubernetes.default.svc".to_owned(),
            format!("kubernetes.default.svc.{}", self.cluster_domain),
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
        ];
        let addresses = self.service_ips.iter().chain(&self.advertise).filter(|a| !a.is_unspecified());
        sans.extend(addresses.map(IpAddr::to_string));
        sans.extend(self.extra_sans.iter().cloned());
        let mut seen = std::collections::HashSet::new();
        sans.retain(|san| seen.insert(san.clone()));
        sans
    }
}

/// Why the key material could not be loaded or made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory concerned.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A file was read but does not hold what its name says.
    #[error("{path}: {what}")]
    Malformed {
        /// The file concerned.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A certificate could not be made.
    #[error("cannot issue a certificate: {0}")]
    Issue(#[from] rcgen::Error),
    /// A TLS configuration could not be built.
    #[error("cannot configure TLS: {0}")]
    Tls(String),
}

/// All key material of a control plane.
#[derive(Debug)]
pub struct Pki {
    /// The cluster CA: signs every certificate of the cluster, nodes' included.
    pub ca: Identity,
    /// What the API server presents to clients.
    pub serving: Identity,
    /// What the API server presents to kubelets.
    pub kubelet_client: Identity,
    /// The administrator (`kubernetes-admin` in `system:masters`).
    pub admin: Identity,
    /// `system:kube-controller-manager`.
    pub controller_manager: Identity,
    /// `system:kube-scheduler`.
    pub scheduler: Identity,
    /// ES256 key that signs ServiceAccount tokens, PKCS#8 PEM.
    pub service_account_key: String,
    /// Keys for Secrets at rest.
    pub encryption: KeyRing,
    /// What a running server presents: as renewed since.
    pub live: Live,
}

impl Pki {
    /// Loads the key material below `config.dir`, making what is missing and renewing what is near its end.
    ///
    /// # Errors
    /// When a file cannot be read or written, holds something else than its name says, or when a CA
    /// certificate is there without its key (which is never overwritten).
    pub fn load_or_create(config: &PkiConfig, now: SystemTime) -> Result<Self, PkiError> {
        let dir = &config.dir;
        files::ensure_private_dir(dir)?;
        let ca = load_or_create_ca(dir, now)?;
        let leaf = |name: &str, spec: LeafSpec| load_or_create_leaf(dir, name, &spec, &ca, now);
        let serving = leaf("apiserver", LeafSpec::server("kube-apiserver", config.serving_sans()))?;
        let client = LeafSpec::client(KUBELET_CLIENT_USER, Some(KUBELET_CLIENT_GROUP));
        let kubelet_client = leaf("apiserver-kubelet-client", client)?;
        Ok(Self {
            live: Live::new(&serving, &kubelet_client, &ca)?,
            serving,
            kubelet_client,
            admin: leaf("admin", LeafSpec::client("kubernetes-admin", Some("system:masters")))?,
            controller_manager: leaf(
                "controller-manager",
                LeafSpec::client("system:kube-controller-manager", None),
            )?,
            scheduler: leaf("scheduler", LeafSpec::client("system:kube-scheduler", None))?,
            service_account_key: load_or_create_key(&dir.join("sa.key"))?,
            encryption: load_or_create_key_ring(&dir.join("encryption.keys"))?,
            ca,
        })
    }

    /// Writes a kubeconfig for the administrator, mode 0600.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_admin_kubeconfig(&self, path: &Path, server_url: &str) -> Result<(), PkiError> {
        files::write_private(path, self.admin_kubeconfig(server_url).as_bytes())
    }

    fn admin_kubeconfig(&self, server_url: &str) -> String {
        kubeconfig("hawser", server_url, &self.ca.cert_pem, "kubernetes-admin", &self.admin)
    }

    /// SHA-256 of the CA certificate's DER in lower-case hex: what a node's join token pins.
    ///
    /// # Errors
    /// When the CA's PEM is malformed.
    pub fn ca_digest(&self) -> Result<String, PkiError> {
        use sha2::Digest;
        Ok(hex::encode(sha2::Sha256::digest(self.ca.cert_der()?)))
    }
}

fn load_or_create_ca(dir: &Path, now: SystemTime) -> Result<Identity, PkiError> {
    let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
    if cert_path.exists() {
        // A CA certificate without its key is somebody's only copy: an error, never a new CA.
        let ca = Identity { cert_pem: files::read_text(&cert_path)?, key_pem: files::read_text(&key_path)? };
        if !ca.key_matches() {
            return Err(PkiError::Malformed { path: key_path, what: "is not the key of ca.crt".to_owned() });
        }
        return Ok(ca);
    }
    // The key is written first, so a crash in between leaves a key that the next start takes up.
    let key_pem = load_or_create_key(&key_path)?;
    let ca = issue::self_signed_ca("hawser-ca", &key_pem, now, CA_LIFETIME)?;
    files::write_public(&cert_path, ca.cert_pem.as_bytes())?;
    Ok(ca)
}

fn load_or_create_leaf(
    dir: &Path,
    name: &str,
    spec: &LeafSpec,
    ca: &Identity,
    now: SystemTime,
) -> Result<Identity, PkiError> {
    let (cert_path, key_path) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    if cert_path.exists() && key_path.exists() {
        let found =
            Identity { cert_pem: files::read_text(&cert_path)?, key_pem: files::read_text(&key_path)? };
        if found.serves(spec, ca, now + RENEW_BEFORE) {
            return Ok(found);
        }
        tracing::info!(certificate = name, "renewing");
    }
    let key_pem = load_or_create_key(&key_path)?;
    let leaf = issue::signed_leaf(spec, &key_pem, ca, now, LEAF_LIFETIME)?;
    files::write_public(&cert_path, leaf.cert_pem.as_bytes())?;
    Ok(leaf)
}

/// An ECDSA P-256 key in PKCS#8 PEM, made when the file is missing.
fn load_or_create_key(path: &Path) -> Result<String, PkiError> {
    if path.exists() {
        let text = files::read_text(path)?;
        return match rcgen::KeyPair::from_pem(&text) {
            Ok(_) => Ok(text),
            Err(error) => Err(PkiError::Malformed {
                path: path.to_owned(),
                what: format!("not a private key: {error}"),
            }),
        };
    }
    let text = rcgen::KeyPair::generate()?.serialize_pem();
    files::write_private(path, text.as_bytes())?;
    Ok(text)
}

fn load_or_create_key_ring(path: &Path) -> Result<KeyRing, PkiError> {
    if path.exists() {
        return KeyRing::parse(&files::read_text(path)?)
            .map_err(|error| PkiError::Malformed { path: path.to_owned(), what: error.to_string() });
    }
    let ring = KeyRing::generate()
        .map_err(|error| PkiError::Malformed { path: path.to_owned(), what: error.to_string() })?;
    files::write_private(path, ring.to_text().as_bytes())?;
    Ok(ring)
}

#[cfg(test)]
mod tests;
