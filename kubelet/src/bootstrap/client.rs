//! API clients on TLS configurations of our own.

use super::BootstrapError;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::ConfigExt;
use parking_lot::Mutex;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, SignatureScheme};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;
use tower::{BoxError, ServiceBuilder};

/// A client that connects with a given TLS configuration, with a bearer token if there is one.
pub(super) fn over(
    server: &http::Uri,
    tls: rustls::ClientConfig,
    bearer: Option<&str>,
) -> Result<Client, BootstrapError> {
    let mut config = kube::Config::new(server.clone());
    config.auth_info.token = bearer.map(|b| b.to_owned().into());
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only()
        .enable_http1()
        .wrap_connector(http);
    let hyper = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
    let auth = config.auth_layer().map_err(|e| BootstrapError::Server(e.to_string()))?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(auth)
        .map_err(BoxError::from)
        .service(hyper);
    Ok(Client::new(service, "default"))
}

/// A TLS configuration builder with this project's crypto.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// TLS with the cluster's CA and the node's certificate, which is read again from `identity` when that changes.
pub(super) fn tls(ca_pem: &str, identity: PathBuf) -> Result<rustls::ClientConfig, BootstrapError> {
    let crypto = |e: &dyn std::fmt::Display| BootstrapError::Crypto(e.to_string());
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(ca.map_err(|e| crypto(&e))?).map_err(|e| crypto(&e))?;
    }
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| crypto(&e))?
        .with_root_certificates(roots);
    let current = (changed_at(&identity), Arc::new(read(&identity)?));
    Ok(config.with_client_cert_resolver(Arc::new(Reloaded { identity, current: Mutex::new(current) })))
}

/// A client certificate that follows its file: new connections use what was renewed.
#[derive(Debug)]
struct Reloaded {
    identity: PathBuf,
    current: Mutex<(Option<SystemTime>, Arc<CertifiedKey>)>,
}

fn changed_at(path: &PathBuf) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}

/// Reads certificate and key from one PEM file.
fn read(path: &PathBuf) -> Result<CertifiedKey, BootstrapError> {
    let crypto = |e: &dyn std::fmt::Display| BootstrapError::Crypto(format!("{}: {e}", path.display()));
    let text = std::fs::read(path).map_err(|e| BootstrapError::File(path.clone(), e))?;
    let certs =
        CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>().map_err(|e| crypto(&e))?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|e| crypto(&e))?;
    let key = provider().key_provider.load_private_key(key).map_err(|e| crypto(&e))?;
    Ok(CertifiedKey::new(certs, key))
}

impl ResolvesClientCert for Reloaded {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut current = self.current.lock();
        let changed = changed_at(&self.identity);
        if changed != current.0
            && let Ok(key) = read(&self.identity)
        {
            *current = (changed, Arc::new(key));
        }
        Some(current.1.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
