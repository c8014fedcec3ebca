//! The streaming server: exec, attach and port-forward over WebSocket and SPDY/3.1, under one-time URLs that CRI calls
//! hand out. It listens on loopback only; the kubelet passes connections through to it.

pub mod channel;
pub mod exec;
pub mod handshake;
pub mod outcome;
pub mod port_forward;
pub mod remote_command;
pub mod session;
pub mod spdy;
pub mod websocket;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::service::Inner;
use handshake::{Answer, Protocol, Purpose, negotiate, plain};
use port_forward::Target;
use remote_command::Wanted;
use session::Command;

/// How long a URL may be used.
const TOKEN_LIFE: Duration = Duration::from_secs(60);

/// What a URL stands for.
#[derive(Debug, Clone)]
pub enum Pending {
    /// An exec or an attach.
    Command(Command),
    /// A port-forward.
    PortForward(Target),
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
            Pending::Command(Command::Exec(_)) => "exec",
            Pending::Command(Command::Attach(_)) => "attach",
            Pending::PortForward(_) => "portforward",
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

/// Answers one request: checks the handshake, and goes on with the session once the connection is handed over.
fn answer(inner: &Arc<Inner>, mut request: Request<Incoming>) -> Answer {
    let purpose = match request.uri().path().split('/').nth(1) {
        Some("portforward") => Purpose::PortForward,
        _ => Purpose::RemoteCommand,
    };
    let (protocol, response) = match negotiate(purpose, request.method(), request.headers()) {
        Ok(chosen) => chosen,
        Err(refusal) => return *refusal,
    };
    let Some(pending) = inner.streaming.take(request.uri().path()) else {
        return plain(StatusCode::NOT_FOUND, "this URL is not valid (any more)");
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let inner = Arc::clone(inner);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(connection) => serve_stream(&inner, connection, protocol, pending).await,
            Err(e) => tracing::debug!(error = %e, "a stream's connection was not handed over"),
        }
    });
    response
}

async fn serve_stream(inner: &Arc<Inner>, connection: Upgraded, protocol: Protocol, pending: Pending) {
    let connection = TokioIo::new(connection);
    match (protocol, pending) {
        (Protocol::Channels(protocol), Pending::Command(command)) => {
            let socket = WebSocketStream::from_raw_socket(connection, Role::Server, None).await;
            let (client, finish) = websocket::remote_command(socket, protocol);
            tokio::join!(session::run(inner, client, command), finish);
        }
        (Protocol::Channels(protocol), Pending::PortForward(target)) => {
            let socket = WebSocketStream::from_raw_socket(connection, Role::Server, None).await;
            port_forward::over_channels(socket, protocol, target).await;
        }
        (Protocol::Tunnel, Pending::PortForward(target)) => {
            let socket = WebSocketStream::from_raw_socket(connection, Role::Server, None).await;
            port_forward::over_spdy(websocket::tunnel(socket), target).await;
        }
        (Protocol::Spdy(name), Pending::Command(command)) => {
            let wanted = wanted_streams(&command, name);
            // Only the fourth version has Status objects.
            let status = name == "v4.channel.k8s.io";
            if let Some((client, finish)) = remote_command::open(connection, wanted, status).await {
                tokio::join!(session::run(inner, client, command), finish);
            }
        }
        (Protocol::Spdy(_), Pending::PortForward(target)) => {
            port_forward::over_spdy(connection, target).await;
        }
        // The handshake offers tunnels to port-forwards only; a URL's path says what it is for.
        (Protocol::Tunnel, Pending::Command(_)) => {}
    }
}

/// The streams that a SPDY client opens: resize came with the third version.
fn wanted_streams(command: &Command, protocol: &str) -> Wanted {
    let (stdin, stdout, stderr, tty) = match command {
        Command::Exec(r) => (r.stdin, r.stdout, r.stderr, r.tty),
        Command::Attach(r) => (r.stdin, r.stdout, r.stderr, r.tty),
    };
    let resizes = !matches!(protocol, "channel.k8s.io" | "v2.channel.k8s.io");
    Wanted { stdin, stdout, stderr, resize: tty && resizes }
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
