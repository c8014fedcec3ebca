//! One HTTP/1.1 connection over TLS with the administrator's certificate: what benches measure with, since it adds
//! next to nothing of its own.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use base64::Engine;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A connection.
pub struct Wire {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

/// How to reach a server, read once for many connections.
#[derive(Clone)]
pub struct Endpoint {
    tls: Arc<ClientConfig>,
    host: String,
    port: u16,
}

impl Endpoint {
    /// From a kubeconfig with one cluster and one user.
    pub fn from_kubeconfig(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let config: Value = serde_yaml_ng::from_str(&text)?;
        let cluster = &config["clusters"][0]["cluster"];
        let user = &config["users"][0]["user"];
        let pem = |value: &Value, field: &str| -> Result<Vec<u8>> {
            let encoded = value[field].as_str().with_context(|| format!("no {field}"))?;
            Ok(base64::engine::general_purpose::STANDARD.decode(encoded)?)
        };
        let mut roots = RootCertStore::empty();
        for ca in certificates(&pem(cluster, "certificate-authority-data")?)? {
            roots.add(ca)?;
        }
        let key = private_key(&pem(user, "client-key-data")?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(&pem(user, "client-certificate-data")?)?, key)?;
        let server: http::Uri = cluster["server"].as_str().context("no server")?.parse()?;
        let host = server.host().context("a server without host")?.to_owned();
        Ok(Endpoint { tls: Arc::new(tls), host, port: server.port_u16().unwrap_or(443) })
    }

    /// Opens a connection.
    pub async fn connect(&self) -> Result<Wire> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(self.host.clone())?;
        let tls = TlsConnector::from(self.tls.clone()).connect(name, tcp).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
        tokio::spawn(connection);
        Ok(Wire { sender, host: self.host.clone() })
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    Ok(rustls_pemfile::certs(&mut &pem[..]).collect::<Result<_, _>>()?)
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>> {
    rustls_pemfile::private_key(&mut &pem[..])?.context("no private key")
}

impl Wire {
    /// Opens a connection for a kubeconfig.
    pub async fn connect(kubeconfig: &Path) -> Result<Self> {
        Endpoint::from_kubeconfig(kubeconfig)?.connect().await
    }

    /// Sends one request and reads the whole answer.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.host)
            .header("content-type", content_type)
            .body(Full::new(body))?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status();
        Ok((status, answer.into_body().collect().await?.to_bytes()))
    }

    /// GET; anything but success is an error.
    pub async fn get(&mut self, path: &str) -> Result<Bytes> {
        self.expect(Method::GET, path, "application/json", Bytes::new()).await
    }

    /// POST of JSON; anything but success is an error.
    pub async fn create(&mut self, path: &str, body: Bytes) -> Result<Bytes> {
        self.expect(Method::POST, path, "application/json", body).await
    }

    /// Any request; anything but success is an error.
    pub async fn expect(
        &mut self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<Bytes> {
        let (status, answer) = self.send(method.clone(), path, content_type, body).await?;
        if !status.is_success() {
            bail!("{method} {path}: {status}: {}", String::from_utf8_lossy(&answer));
        }
        Ok(answer)
    }
}
