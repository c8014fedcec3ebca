//! How a machine becomes a node: a join token is exchanged for certificates of the node's own.
//!
//! The token names the digest of the cluster's CA, so the first connection trusts exactly that CA, which the server
//! sends in its chain. With the token's secret a client certificate is asked for, with the client certificate a
//! serving certificate; both are renewed before they end. Files, below the data directory:
//! `kubelet.kubeconfig`, `pki/ca.crt`, `pki/kubelet-client.pem`, `pki/kubelet-server.pem` (certificate and key in
//! one file, so that a crash never leaves one without the other).

mod client;
mod csr;
mod files;
mod token;
mod verify;

use crate::config::TlsPaths;
use csr::{Purpose, obtain, renew_at, validity};
use files::write_private;
use jiff::Timestamp;
use kube::Client;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
pub use token::BadToken;
use token::Token;
use tokio_util::sync::CancellationToken;
use verify::PinnedCa;

use crate::tls::Judged;

/// What a machine needs to join.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// URL of the API server, `https://host:port`.
    pub server: String,
    /// The join token.
    pub token: String,
    /// Name of the node.
    pub node_name: String,
    /// Addresses at which the kubelet's server is reached.
    pub node_ips: Vec<IpAddr>,
    /// The agent's data directory.
    pub data_dir: PathBuf,
}

/// Why a machine does not become a node.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The token is malformed.
    #[error(transparent)]
    Token(#[from] BadToken),
    /// The server's URL is malformed.
    #[error("{0:?} is not a URL of the form https://host:port")]
    Url(String),
    /// The server is not the one that the token names, or does not talk sense.
    #[error("the API server: {0}")]
    Server(String),
    /// The server refuses the request.
    #[error("the API server refuses the certificate request: {0}")]
    Refused(String),
    /// The request was not signed.
    #[error("certificate request {0}: {1}")]
    NotSigned(String, String),
    /// Keys or certificates that cannot be made or read.
    #[error("keys and certificates: {0}")]
    Crypto(String),
    /// A file.
    #[error("{0}: {1}")]
    File(PathBuf, #[source] std::io::Error),
}

/// A node's credentials.
pub struct Identity {
    /// Kubeconfig of `system:node:<name>`.
    pub kubeconfig: PathBuf,
    /// The kubelet server's certificate, key and the CA of its clients.
    pub tls: TlsPaths,
    /// Keeps both certificates current; to be run beside the node's components.
    pub renewal: Renewal,
}

impl Identity {
    /// A client that is the node, and goes on being it when the certificate is renewed.
    ///
    /// # Errors
    /// When the credentials cannot be read.
    pub fn client(&self) -> Result<Client, BootstrapError> {
        self.renewal.paths.client(&self.renewal.server)
    }
}

#[derive(Clone, Debug)]
struct Paths {
    kubeconfig: PathBuf,
    ca: PathBuf,
    client: PathBuf,
    server: PathBuf,
}

impl Paths {
    fn below(data_dir: &Path) -> Paths {
        let pki = data_dir.join("pki");
        Paths {
            kubeconfig: data_dir.join("kubelet.kubeconfig"),
            ca: pki.join("ca.crt"),
            client: pki.join("kubelet-client.pem"),
            server: pki.join("kubelet-server.pem"),
        }
    }

    fn tls(&self) -> TlsPaths {
        let client_ca = self.ca.exists().then(|| self.ca.clone());
        TlsPaths { cert: self.server.clone(), key: self.server.clone(), client_ca }
    }

    fn client(&self, server: &http::Uri) -> Result<Client, BootstrapError> {
        let ca = read(&self.ca)?;
        client::over(server, client::tls(&ca, self.client.clone())?, None)
    }
}

fn read(path: &Path) -> Result<String, BootstrapError> {
    std::fs::read_to_string(path).map_err(|e| BootstrapError::File(path.to_owned(), e))
}

/// Joins the cluster, or takes up the identity of an earlier run.
///
/// # Errors
/// A malformed token or URL, a server that is not the token's, a refusal. A server that does not answer is waited
/// for.
pub async fn bootstrap(b: Bootstrap) -> Result<Identity, BootstrapError> {
    let url = || BootstrapError::Url(b.server.clone());
    let server: http::Uri = b.server.trim_end_matches('/').parse().map_err(|_| url())?;
    if server.scheme_str() != Some("https") || server.host().is_none() {
        return Err(url());
    }
    let token = Token::parse(&b.token)?;
    let paths = Paths::below(&b.data_dir);
    if !is_current(&paths.client) || !is_ca(&paths.ca, &token) {
        join(&server, &token, &b.node_name, &paths).await?;
    }
    // The kubeconfig is made from the other files: a server that moved is found again.
    write_kubeconfig(&paths, &server, &b.node_name)?;
    // The serving certificate is signed only once the Node says that the addresses are its own, so it is got by
    // `Renewal`, beside the kubelet that registers the Node. One for other addresses is of no use.
    if paths.server.exists() && !serves(&paths.server, &b.node_ips) {
        std::fs::remove_file(&paths.server).map_err(|e| BootstrapError::File(paths.server.clone(), e))?;
    }
    Ok(Identity {
        kubeconfig: paths.kubeconfig.clone(),
        tls: paths.tls(),
        renewal: Renewal { server, node: b.node_name, ips: b.node_ips, paths },
    })
}

/// Whether a certificate is there and not soon over.
fn is_current(path: &Path) -> bool {
    let span = std::fs::read_to_string(path).ok().and_then(|t| validity(&t));
    span.is_some_and(|span| Timestamp::now() < renew_at(span, 1.0))
}

/// Whether the stored CA is the one that the token names.
fn is_ca(path: &Path, token: &Token) -> bool {
    use sha2::{Digest, Sha256};
    let Ok(text) = std::fs::read(path) else { return false };
    let parsed = x509_parser::pem::parse_x509_pem(&text);
    parsed.is_ok_and(|(_, pem)| <[u8; 32]>::from(Sha256::digest(&pem.contents)) == token.ca_digest)
}

/// Exchanges the token for a client certificate.
async fn join(server: &http::Uri, token: &Token, node: &str, paths: &Paths) -> Result<(), BootstrapError> {
    let provider = client::provider();
    let algorithms = provider.signature_verification_algorithms;
    let pinned = Arc::new(Judged { judge: PinnedCa::new(token.ca_digest, provider.clone()), algorithms });
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| BootstrapError::Crypto(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(pinned.clone())
        .with_no_client_auth();
    let client = client::over(server, tls, Some(&token.bearer))?;
    let issued = obtain(&client, node, Purpose::Client).await?;
    let ca = pinned.judge.ca().ok_or_else(|| BootstrapError::Server("sent no CA".into()))?;
    write_private(&paths.ca, &pem_of(&ca))?;
    write_private(&paths.client, &(issued.certificate + &issued.key))
}

fn pem_of(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

/// Splits a file of certificate and key into the two.
fn split_pem(text: &str) -> (String, String) {
    let mut blocks = text.match_indices("-----BEGIN ").map(|(i, _)| i);
    match blocks.find(|i| !text[*i..].starts_with("-----BEGIN CERTIFICATE")) {
        Some(i) => (text[..i].to_owned(), text[i..].to_owned()),
        None => (text.to_owned(), String::new()),
    }
}

fn write_kubeconfig(paths: &Paths, server: &http::Uri, node: &str) -> Result<(), BootstrapError> {
    use base64::Engine;
    let encode = |t: &str| base64::engine::general_purpose::STANDARD.encode(t);
    let (certificate, key) = split_pem(&read(&paths.client)?);
    let ca = read(&paths.ca)?;
    let server = server.to_string();
    let user = format!("system:node:{node}");
    // JSON is YAML.
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "default", "cluster": {
            "server": server.trim_end_matches('/'), "certificate-authority-data": encode(&ca)}}],
        "users": [{"name": user, "user": {
            "client-certificate-data": encode(&certificate), "client-key-data": encode(&key)}}],
        "contexts": [{"name": "default", "context": {"cluster": "default", "user": user}}],
        "current-context": "default"
    });
    let text = serde_json::to_string_pretty(&config).map_err(|e| BootstrapError::Crypto(e.to_string()))?;
    write_private(&paths.kubeconfig, &text)
}

/// Where the serving certificate of a data directory is, or will be once [`serving_certificate`] has got it.
pub fn serving_paths(data_dir: &Path) -> TlsPaths {
    Paths::below(data_dir).tls()
}

/// A serving certificate for the kubelet's server: the one of an earlier run if it is good for these addresses, else
/// a new one from the control plane. `pki/ca.crt` below the data directory, if it is there, signs its clients.
///
/// # Errors
/// When the control plane refuses, or a file cannot be written.
///
/// It is signed only once the Node is registered with these addresses: to be run beside the kubelet.
pub async fn serving_certificate(
    client: &Client,
    node_name: &str,
    node_ips: &[IpAddr],
    data_dir: &Path,
) -> Result<TlsPaths, BootstrapError> {
    let paths = Paths::below(data_dir);
    if !(is_current(&paths.server) && serves(&paths.server, node_ips)) {
        let issued = obtain(client, node_name, Purpose::Serving(node_ips)).await?;
        write_private(&paths.server, &(issued.certificate + &issued.key))?;
    }
    Ok(paths.tls())
}

/// Whether a certificate is valid for all addresses.
fn serves(path: &Path, ips: &[IpAddr]) -> bool {
    use x509_parser::extensions::GeneralName;
    let Ok(text) = std::fs::read(path) else { return false };
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(&text) else { return false };
    let Ok(certificate) = pem.parse_x509() else { return false };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    let has = |ip: &IpAddr| {
        let bytes = match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        names
            .value
            .general_names
            .iter()
            .any(|n| matches!(n, GeneralName::IPAddress(b) if *b == bytes.as_slice()))
    };
    ips.iter().all(has)
}

/// Keeps a node's certificates current.
pub struct Renewal {
    server: http::Uri,
    node: String,
    ips: Vec<IpAddr>,
    paths: Paths,
}

/// Longest sleep at once: the wall clock may jump.
const NAP: Duration = Duration::from_secs(3600);
/// Wait after a renewal that failed.
const RETRY: Duration = Duration::from_secs(60);

impl Renewal {
    /// Renews both certificates when most of their life is over, until cancelled.
    ///
    /// # Errors
    /// None that ends it: a renewal that fails is tried again.
    pub async fn run(self, stop: CancellationToken) -> Result<(), BootstrapError> {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            done = self.keep() => done,
        }
    }

    async fn keep(&self) -> Result<(), BootstrapError> {
        let chance: f64 = rand::random();
        loop {
            let due = |path: &Path| {
                let span = std::fs::read_to_string(path).ok().and_then(|t| validity(&t));
                span.map_or(Timestamp::MIN, |s| renew_at(s, chance))
            };
            let (client, server) = (due(&self.paths.client), due(&self.paths.server));
            let now = Timestamp::now();
            let left = Duration::try_from(client.min(server).duration_since(now)).unwrap_or(Duration::ZERO);
            if !left.is_zero() {
                tokio::time::sleep(left.min(NAP)).await;
                continue;
            }
            if let Err(e) = self.renew(client <= now, server <= now).await {
                tracing::warn!("renewing the node's certificates: {e}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    async fn renew(&self, client_due: bool, server_due: bool) -> Result<(), BootstrapError> {
        let client = self.paths.client(&self.server)?;
        if client_due {
            let issued = obtain(&client, &self.node, Purpose::Client).await?;
            write_private(&self.paths.client, &(issued.certificate + &issued.key))?;
            write_kubeconfig(&self.paths, &self.server, &self.node)?;
        }
        if server_due {
            let issued = obtain(&client, &self.node, Purpose::Serving(&self.ips)).await?;
            write_private(&self.paths.server, &(issued.certificate + &issued.key))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_and_key_come_apart_again() {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["n".to_owned()]).unwrap();
        let cert = params.self_signed(&key).unwrap();
        let (c, k) = (cert.pem(), key.serialize_pem());
        let (c2, k2) = split_pem(&format!("{c}{k}"));
        assert_eq!((c2.as_str(), k2.as_str()), (c.as_str(), k.as_str()));
        let again = pem_of(cert.der());
        assert_eq!(again.replace(['\r', '\n'], ""), c.replace(['\r', '\n'], ""));
        assert!(validity(&c).is_some());
    }

    #[tokio::test]
    async fn malformed_input_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let b = |server: &str, token: &str| Bootstrap {
            server: server.into(),
            token: token.into(),
            node_name: "n".into(),
            node_ips: vec![],
            data_dir: dir.path().into(),
        };
        assert!(matches!(bootstrap(b("http://x", "t")).await, Err(BootstrapError::Url(_))));
        assert!(matches!(bootstrap(b("https://x", "t")).await, Err(BootstrapError::Token(_))));
    }
}
