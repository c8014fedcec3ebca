//! One HTTP/1.1 connection over TLS with the administrator's certificate: what benches measure with, since it adds
//! next to nothing of its own.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use base64::Engine;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{CipherSuite, ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A connection.
pub struct Wire {
    sender: http1::SendRequest<Full<Bytes>>,
    host: String,
}

/// A connection of HTTP/2 that many requests share, as client-go's do.
#[derive(Clone)]
pub struct Shared {
    sender: http2::SendRequest<Full<Bytes>>,
    authority: String,
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
        let mut provider = rustls::crypto::ring::default_provider();
        // What Go's clients ask for first.
        provider.cipher_suites.sort_by_key(|s| s.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
        let provider = Arc::new(provider);
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
        let tls = self.secure(self.tls.clone()).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
        tokio::spawn(connection);
        Ok(Wire { sender, host: self.host.clone() })
    }

    /// Opens a connection of HTTP/2.
    pub async fn connect_shared(&self) -> Result<Shared> {
        let mut config = ClientConfig::clone(&self.tls);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tls = self.secure(Arc::new(config)).await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await?;
        tokio::spawn(connection);
        Ok(Shared { sender, authority: format!("{}:{}", self.host, self.port) })
    }

    async fn secure(&self, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(self.host.clone())?;
        Ok(TlsConnector::from(config).connect(name, tcp).await?)
    }
}

impl Shared {
    /// GET whose answer is read as it comes; anything but success is an error.
    pub async fn open(&mut self, path: &str) -> Result<Incoming> {
        let uri = format!("https://{}{path}", self.authority);
        let request = Request::get(uri).body(Full::default())?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        if !answer.status().is_success() {
            bail!("GET {path}: {}", answer.status());
        }
        Ok(answer.into_body())
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

    /// GET whose answer is read as it comes, after which the connection is used up; anything but success is an error.
    pub async fn open(&mut self, path: &str) -> Result<Incoming> {
        let request = Request::get(path).header("host", &self.host).body(Full::default())?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        if !answer.status().is_success() {
            bail!("GET {path}: {}", answer.status());
        }
        Ok(answer.into_body())
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
            // Writers have a name, so that objects have managedFields as those of any client.
            .header("user-agent", "hawser-tests")
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
