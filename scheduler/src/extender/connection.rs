//! How an extender is reached: a URL, and over TLS whom to trust and who we are.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use k8s_openapi::ByteString;
use kube::Client;
use kube::client::Body;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// A PEM document, or the file that holds it.
#[derive(Clone, Debug, PartialEq)]
pub enum Pem {
    /// Read when a connection is made, and again from time to time.
    File(PathBuf),
    /// The document itself.
    Data(ByteString),
}

/// `tlsConfig` of an extender.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tls {
    /// The server's certificate is not checked.
    pub insecure: bool,
    /// The name that the server's certificate must have, if not that of the URL.
    pub server_name: Option<String>,
    /// The CA of the server's certificate.
    pub ca: Option<Pem>,
    /// Our certificate and key.
    pub identity: Option<(Pem, Pem)>,
}

/// A client for one extender.
pub struct Connection {
    url: String,
    timeout: Duration,
    client: Client,
}

impl Connection {
    /// For a URL without a slash at its end. Made inside a runtime.
    ///
    /// # Errors
    /// What is wrong with the URL or a certificate.
    pub fn new(url: &str, tls: &Tls, timeout: Duration) -> Result<Self, String> {
        let wrong = |what: &str, error: &dyn std::fmt::Display| format!("extender {url}: {what}: {error}");
        let mut config = kube::Config::new(url.parse().map_err(|e| wrong("urlPrefix", &e))?);
        // Who asks decides what a failure means.
        config.default_retry = false;
        config.accept_invalid_certs = tls.insecure;
        config.tls_server_name.clone_from(&tls.server_name);
        match &tls.ca {
            None => {}
            Some(Pem::File(path)) => {
                std::fs::metadata(path).map_err(|e| wrong("tlsConfig.caFile", &e))?;
                config.root_cert_file = Some(path.clone());
            }
            Some(Pem::Data(pem)) => {
                let certificates = CertificateDer::pem_slice_iter(&pem.0).map(|c| c.map(|c| c.to_vec()));
                let certificates: Vec<_> =
                    certificates.collect::<Result<_, _>>().map_err(|e| wrong("tlsConfig.caData", &e))?;
                if certificates.is_empty() {
                    return Err(wrong("tlsConfig.caData", &"there is no certificate in it"));
                }
                config.root_cert = Some(certificates);
            }
        }
        if let Some((certificate, key)) = &tls.identity {
            let auth = &mut config.auth_info;
            match certificate {
                Pem::File(path) => auth.client_certificate = Some(path.display().to_string()),
                Pem::Data(pem) => auth.client_certificate_data = Some(base64(pem)),
            }
            match key {
                Pem::File(path) => auth.client_key = Some(path.display().to_string()),
                Pem::Data(pem) => auth.client_key_data = Some(base64(pem).into()),
            }
        }
        let client = Client::try_from(config).map_err(|e| wrong("tlsConfig", &e))?;
        Ok(Connection { url: url.to_owned(), timeout, client })
    }

    /// Asks, and reads the answer.
    ///
    /// # Errors
    /// If there is no answer in time, or not the one that is expected.
    pub async fn post<T: DeserializeOwned>(&self, verb: &str, body: &Value) -> Result<T, String> {
        let url = format!("{}/{verb}", self.url);
        let body = serde_json::to_vec(body).map_err(|e| e.to_string())?;
        let request = http::Request::post(format!("/{verb}"))
            .header("Content-Type", "application/json")
            .body(Body::from(Bytes::from(body)))
            .map_err(|e| e.to_string())?;
        let call = async {
            let answer =
                self.client.send(request).await.map_err(|e| format!("Post \"{url}\": {}", chain(&e)))?;
            if answer.status() != http::StatusCode::OK {
                let code = answer.status().as_u16();
                return Err(format!("failed {verb} with extender at URL {url}, code {code}"));
            }
            let body =
                Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|e| e.to_string())?;
            serde_json::from_slice(&body.to_bytes()).map_err(|e| e.to_string())
        };
        let timed = tokio::time::timeout(self.timeout, call).await;
        timed.unwrap_or_else(|_| Err(format!("extender at URL {url} did not answer in time")))
    }
}

/// As configurations of clients have it.
fn base64(pem: &ByteString) -> String {
    match serde_json::to_value(pem) {
        Ok(Value::String(text)) => text,
        _ => String::new(),
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
