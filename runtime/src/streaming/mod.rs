//! The streaming server: exec and attach over WebSocket, under one-time URLs that CRI calls hand out. It listens
//! on loopback only; the kubelet passes connections through to it.

pub mod channel;
pub mod exec;
pub mod session;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::{AttachRequest, ExecRequest};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::service::Inner;
use channel::Subprotocol;

/// How long a URL may be used.
const TOKEN_LIFE: Duration = Duration::from_secs(60);

/// What a URL stands for.
#[derive(Debug, Clone)]
pub enum Pending {
    /// An exec.
    Exec(ExecRequest),
    /// An attach.
    Attach(AttachRequest),
}

/// The server's address and the URLs it has handed out.
pub struct Streaming {
    listener: Mutex<Option<std::net::TcpListener>>,
    address: SocketAddr,
    pending: Mutex<HashMap<String, (Instant, Pending)>>,
}

impl Streaming {
    /// Binds the address.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn bind(address: SocketAddr) -> Result<Self> {
        let listener =
            std::net::TcpListener::bind(address).map_err(Error::io("bind the streaming address"))?;
        listener.set_nonblocking(true).map_err(Error::io("bind the streaming address"))?;
        let address = listener.local_addr().map_err(Error::io("bind the streaming address"))?;
        Ok(Self { listener: Mutex::new(Some(listener)), address, pending: Mutex::default() })
    }

    /// A URL, good once and for a minute.
    pub fn url(&self, pending: Pending) -> String {
        let token = hex::encode(rand::random::<[u8; 32]>());
        let kind = match pending {
            Pending::Exec(_) => "exec",
            Pending::Attach(_) => "attach",
        };
        let url = format!("http://{}/{kind}/{token}", self.address);
        let mut all = self.pending.lock();
        all.retain(|_, (since, _)| since.elapsed() < TOKEN_LIFE);
        all.insert(token, (Instant::now(), pending));
        url
    }

    fn take(&self, path: &str) -> Option<Pending> {
        let token = path.rsplit('/').next()?;
        let (since, pending) = self.pending.lock().remove(token)?;
        (since.elapsed() < TOKEN_LIFE).then_some(pending)
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = status;
    response
}

fn header(request: &Request<Incoming>, name: header::HeaderName) -> &str {
    request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

fn has_token(value: &str, token: &str) -> bool {
    value.split(',').any(|t| t.trim().eq_ignore_ascii_case(token))
}

/// Answers one request: checks the handshake, and goes on with the session once the connection is handed over.
fn answer(inner: &Arc<Inner>, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let upgrade = header(&request, header::UPGRADE);
    if upgrade.to_ascii_uppercase().starts_with("SPDY/") {
        let text =
            "SPDY/3.1 is not supported by this runtime; use a client that speaks WebSocket (kubectl 1.31+)";
        return plain(StatusCode::NOT_IMPLEMENTED, text);
    }
    let websocket = request.method() == Method::GET
        && has_token(upgrade, "websocket")
        && has_token(header(&request, header::CONNECTION), "upgrade")
        && header(&request, header::SEC_WEBSOCKET_VERSION) == "13";
    let key = header(&request, header::SEC_WEBSOCKET_KEY).to_owned();
    if !websocket || key.is_empty() {
        return plain(StatusCode::BAD_REQUEST, "a WebSocket handshake is required");
    }
    let offered = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let offered: Vec<_> = offered
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|p| p.trim().to_owned())
        .collect();
    let Some(protocol) = Subprotocol::choose(&offered) else {
        let known = Subprotocol::NAMES.join(", ");
        return plain(
            StatusCode::BAD_REQUEST,
            &format!("none of the subprotocols is supported; known: {known}"),
        );
    };
    let Some(pending) = inner.streaming.take(request.uri().path()) else {
        return plain(StatusCode::NOT_FOUND, "this URL is not valid (any more)");
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let inner = Arc::clone(inner);
    tokio::spawn(async move {
        let connection = match upgraded.await {
            Ok(connection) => TokioIo::new(connection),
            Err(e) => {
                tracing::debug!(error = %e, "a stream's connection was not handed over");
                return;
            }
        };
        let socket = WebSocketStream::from_raw_socket(connection, Role::Server, None).await;
        session::run(&inner, socket, protocol, pending).await;
    });
    let mut response = plain(StatusCode::SWITCHING_PROTOCOLS, "");
    *response.body_mut() = Full::default();
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, header::HeaderValue::from_static(protocol.name()));
    if let Ok(accept) = derive_accept_key(key.as_bytes()).parse() {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

/// Serves until cancelled.
///
/// # Errors
/// When the listener cannot be used.
pub(crate) async fn serve(inner: Arc<Inner>, cancel: CancellationToken) -> Result<()> {
    let Some(listener) = inner.streaming.listener.lock().take() else {
        return Err(Error::Failed("the streaming server runs already".into()));
    };
    let listener = TcpListener::from_std(listener).map_err(Error::io("serve streams"))?;
    loop {
        let stream = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    tracing::warn!(error = %e, "cannot accept a stream");
                    continue;
                }
            }
        };
        // Keystrokes are small.
        let _ = stream.set_nodelay(true);
        let inner = Arc::clone(&inner);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let response = answer(&inner, request);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            if let Err(e) = connection.await {
                tracing::debug!(error = %e, "a stream's connection broke");
            }
        });
    }
}
