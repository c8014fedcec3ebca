//! rustls configurations over the PKI.

use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::{Pki, PkiError};

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(pki: &Pki) -> Result<RootCertStore, PkiError> {
    let mut roots = RootCertStore::empty();
    roots.add(pki.ca.cert_der()?).map_err(|e| PkiError::Tls(e.to_string()))?;
    Ok(roots)
}

/// TLS for the API server's port: HTTP/2 and HTTP/1.1, client certificates of the cluster CA asked for but
/// not demanded (a bearer token may come instead). The chain carries the CA, which a joining node checks
/// against its token's digest.
///
/// # Errors
/// When the key material does not fit together.
pub fn server_config(pki: &Pki) -> Result<ServerConfig, PkiError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(pki)?), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| PkiError::Tls(e.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| PkiError::Tls(e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![pki.serving.cert_der()?, pki.ca.cert_der()?], pki.serving.key_der()?)
        .map_err(|e| PkiError::Tls(e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// TLS for calls to kubelets: presents `kube-apiserver-kubelet-client`, accepts only serving certificates
/// of the cluster CA. HTTP/1.1 only, since upgrades need it.
///
/// # Errors
/// When the key material does not fit together.
pub fn kubelet_client_config(pki: &Pki) -> Result<ClientConfig, PkiError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| PkiError::Tls(e.to_string()))?
        .with_root_certificates(roots(pki)?)
        .with_client_auth_cert(vec![pki.kubelet_client.cert_der()?], pki.kubelet_client.key_der()?)
        .map_err(|e| PkiError::Tls(e.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
