//! The kubelet's HTTPS server: logs, exec, attach and port-forward for the API server; pods, statistics and metrics
//! for those who watch the node.
//!
//! Every request is authenticated (client certificate of the cluster CA, or bearer token through a TokenReview) and
//! authorized (SubjectAccessReview on `nodes/<subresource>`), except `/healthz` on behalf of nobody: none is open.

mod auth;
mod container_logs;
mod proxy;
mod routes;
mod stats;

use crate::config::TlsPaths;
use crate::manager::Pods;
use crate::shared::Shared;
use auth::{Authorizer, User};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Time that a client has for the TLS handshake and for the headers of a request.
const PATIENCE: Duration = Duration::from_secs(30);

/// A response body.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The port is not to be had.
    #[error("{0}: {1}")]
    Bind(std::net::SocketAddr, #[source] io::Error),
    /// A certificate or key cannot be read.
    #[error("{0}: {1}")]
    Pem(PathBuf, String),
    /// TLS does not take what it is given.
    #[error("TLS: {0}")]
    Tls(String),
    /// Nothing to bind to.
    #[error("no listen address or no certificate is configured")]
    Unconfigured,
}

pub(crate) struct Server {
    /// One for each address.
    listeners: Vec<TcpListener>,
    acceptor: TlsAcceptor,
    state: Arc<State>,
}

pub(crate) struct State {
    pub shared: Arc<Shared>,
    pub pods: Pods,
    authorizer: Authorizer,
    pub stop: CancellationToken,
    pub started: SystemTime,
    /// For the rate of the node's processor time.
    pub cpu: stats::node::LastCpu,
    /// Requests by method and first part of the path, of those that are served.
    pub requests: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
}

impl Server {
    /// Binds the port on each address and reads the certificates.
    pub async fn bind(shared: Arc<Shared>, pods: Pods) -> Result<Server, ServerError> {
        let Some(tls) = shared.config.tls.clone() else {
            return Err(ServerError::Unconfigured);
        };
        let config = tls_config(&tls)?;
        let mut listeners = Vec::new();
        for address in &shared.config.listen {
            let listener = TcpListener::bind(address).await.map_err(|e| ServerError::Bind(*address, e))?;
            listeners.push(listener);
        }
        let authorizer = Authorizer::new(shared.client.clone(), &shared.config.node_name);
        let state = State {
            shared,
            pods,
            authorizer,
            stop: CancellationToken::new(),
            started: SystemTime::now(),
            cpu: stats::node::LastCpu::default(),
            requests: Mutex::default(),
        };
        Ok(Server { listeners, acceptor: TlsAcceptor::from(Arc::new(config)), state: Arc::new(state) })
    }

    /// Serves until cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let _end = self.state.stop.clone().drop_guard();
        let accepting = self.listeners.iter().map(|listener| self.accept(listener));
        tokio::select! {
            () = stop.cancelled() => {}
            _ = futures::future::join_all(accepting) => {}
        }
    }

    async fn accept(&self, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(serve(stream, self.acceptor.clone(), self.state.clone()));
                }
                Err(e) => {
                    // Out of descriptors, most likely: others will be closed.
                    tracing::warn!("accepting a connection: {e}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, state: Arc<State>) {
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!("TCP_NODELAY: {e}");
    }
    let tls = match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(e)) => return tracing::debug!("TLS handshake: {e}"),
        Err(_) => return tracing::debug!("TLS handshake timed out"),
    };
    let certificate = tls.get_ref().1.peer_certificates().and_then(|c| c.first());
    let user = certificate.and_then(|c| User::of_certificate(c));
    let stop = state.stop.clone();
    let service = hyper::service::service_fn(move |request| handle(state.clone(), user.clone(), request));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(tls), service)
        .with_upgrades();
    tokio::select! {
        () = stop.cancelled() => {}
        done = connection => if let Err(e) = done { tracing::debug!("serving a connection: {e}") },
    }
}

async fn handle(
    state: Arc<State>,
    user: Option<User>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let user = match state.authorizer.authenticate(user, request.headers()).await {
        Ok(user) => user,
        Err(e) => return Ok(text(StatusCode::UNAUTHORIZED, e)),
    };
    match state.authorizer.authorize(&user, request.method(), request.uri().path()).await {
        Ok(()) => Ok(routes::route(&state, request).await),
        Err((code, e)) => Ok(text(code, e)),
    }
}

/// A plain text response.
pub(crate) fn text(status: StatusCode, message: impl Into<String>) -> Response<Body> {
    respond(status, "text/plain; charset=utf-8", message.into())
}

pub(crate) fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let body = Full::new(Bytes::from(body)).map_err(|e| match e {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

fn tls_config(paths: &TlsPaths) -> Result<rustls::ServerConfig, ServerError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = |e: &dyn std::fmt::Display| ServerError::Tls(e.to_string());
    let verifier = match &paths.client_ca {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(file) => {
            let pem = |e: &dyn std::fmt::Display| ServerError::Pem(file.clone(), e.to_string());
            let mut roots = RootCertStore::empty();
            for ca in CertificateDer::pem_file_iter(file).map_err(|e| pem(&e))? {
                roots.add(ca.map_err(|e| pem(&e))?).map_err(|e| tls(&e))?;
            }
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .allow_unauthenticated()
                .build()
                .map_err(|e| tls(&e))?
        }
    };
    let identity = Identity::load(paths.clone())?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| tls(&e))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(identity));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The serving certificate, read again when its file changes: certificates are renewed while the server runs.
#[derive(Debug)]
struct Identity {
    paths: TlsPaths,
    current: Mutex<(Option<SystemTime>, Option<Arc<CertifiedKey>>)>,
}

impl Identity {
    /// A file that is not there yet is no error: handshakes fail until it is.
    fn load(paths: TlsPaths) -> Result<Identity, ServerError> {
        let changed = changed_at(&paths);
        let key = changed.map(|_| read_key(&paths)).transpose()?;
        Ok(Identity { current: Mutex::new((changed, key.map(Arc::new))), paths })
    }
}

fn changed_at(paths: &TlsPaths) -> Option<SystemTime> {
    std::fs::metadata(&paths.cert).and_then(|m| m.modified()).ok()
}

fn read_key(paths: &TlsPaths) -> Result<CertifiedKey, ServerError> {
    let pem = |path: &PathBuf, e: &dyn std::fmt::Display| ServerError::Pem(path.clone(), e.to_string());
    let certs = CertificateDer::pem_file_iter(&paths.cert)
        .map_err(|e| pem(&paths.cert, &e))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| pem(&paths.cert, &e))?;
    let key = PrivateKeyDer::from_pem_file(&paths.key).map_err(|e| pem(&paths.key, &e))?;
    let provider = rustls::crypto::ring::default_provider();
    let key = provider.key_provider.load_private_key(key).map_err(|e| pem(&paths.key, &e))?;
    let certified = CertifiedKey::new(certs, key);
    certified.keys_match().map_err(|e| pem(&paths.key, &e))?;
    Ok(certified)
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut current = self.current.lock();
        let changed = changed_at(&self.paths);
        if changed != current.0 {
            match read_key(&self.paths) {
                Ok(key) => *current = (changed, Some(Arc::new(key))),
                // Half written: the old one is good for a while.
                Err(e) => tracing::debug!("reading the renewed certificate: {e}"),
            }
        }
        current.1.clone()
    }
}
