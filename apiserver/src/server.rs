//! Sockets: TLS with optional client certificates, HTTP/1.1 with upgrades and HTTP/2 by ALPN.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::body::Body;
use crate::cork::{Cork, uncorked};
use crate::pipeline::{Connection, Peer, Pipeline};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long requests may go on after the stop.
const GRACE: Duration = Duration::from_secs(5);
/// How long a connection may wait for its next request (as kube-apiserver).
const IDLE: Duration = Duration::from_secs(90);
/// Requests at the same time on one HTTP/2 connection.
const STREAMS: u32 = 1000;

/// Opens the sockets of some addresses, and takes those that a supervisor passed (`LISTEN_FDS`).
///
/// # Errors
/// When an address cannot be bound; the text names it.
pub fn listen(addresses: &[SocketAddr], inherited: bool) -> Result<Vec<TcpListener>, String> {
    let mut listeners = Vec::new();
    if inherited {
        let mut fds = listenfd::ListenFd::from_env();
        for n in 0..fds.len() {
            let passed = fds.take_tcp_listener(n).map_err(|e| format!("passed socket {n}: {e}"))?;
            if let Some(listener) = passed {
                listener.set_nonblocking(true).map_err(|e| format!("passed socket {n}: {e}"))?;
                listeners
                    .push(TcpListener::from_std(listener).map_err(|e| format!("passed socket {n}: {e}"))?);
            }
        }
    }
    for address in addresses {
        let bind = || {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        listeners.push(bind().map_err(|e| format!("cannot listen on {address}: {e}"))?);
    }
    Ok(listeners)
}

/// Accepts connections of all listeners until `stop`, then lets requests end.
pub async fn serve(
    listeners: Vec<TcpListener>,
    tls: Arc<rustls::ServerConfig>,
    pipeline: Arc<Pipeline>,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    let acceptor = TlsAcceptor::from(tls);
    let mut accepting = tokio::task::JoinSet::new();
    for listener in listeners {
        let (acceptor, pipeline) = (acceptor.clone(), pipeline.clone());
        let (stop, connections) = (stop.clone(), connections.clone());
        accepting.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((stream, peer)) => {
                        connections.spawn(connection(
                            (stream, Peer(peer)),
                            acceptor.clone(),
                            pipeline.clone(),
                            stop.clone(),
                        ));
                    }
                    Err(e) => {
                        // Out of file descriptors, mostly: waiting lets connections end.
                        tracing::warn!(error = %e, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        });
    }
    while accepting.join_next().await.is_some() {}
    connections.close();
    if tokio::time::timeout(GRACE, connections.wait()).await.is_err() {
        tracing::warn!(left = connections.len(), "connections did not end in time");
    }
}

fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(IDLE).keep_alive(true);
    builder
}

fn http2() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(15));
    builder
}

async fn connection(
    (stream, peer): (TcpStream, Peer),
    acceptor: TlsAcceptor,
    pipeline: Arc<Pipeline>,
    stop: CancellationToken,
) {
    // Without it small answers wait for acknowledgements.
    let _ = stream.set_nodelay(true);
    let tls = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(e)) => {
            tracing::debug!(error = %e, "TLS handshake failed");
            pipeline.metrics.handshake_errors.fetch_add(1, Ordering::Relaxed);
            return;
        }
        Err(_) => {
            pipeline.metrics.handshake_errors.fetch_add(1, Ordering::Relaxed);
            return;
        }
    };
    let session = tls.get_ref().1;
    // As with Go's server nothing else says so: who does not offer it gets HTTP/1.1.
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    let chain = session.peer_certificates().map(<[_]>::to_vec);
    let user = chain.and_then(|chain| pipeline.registry.access.authenticator.connection(&chain));
    let service = service_fn(move |request: http::Request<Incoming>| {
        let pipeline = pipeline.clone();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Connection(user.clone()));
        request.extensions_mut().insert(peer);
        // In a box of its own: what a request needs while it is worked on would else be kept with its connection or
        // stream, as long as a watch lasts.
        Box::pin(async move { Ok::<_, std::convert::Infallible>(pipeline.serve(request).await) })
    });
    let result = if is_http2 {
        let cork = Cork::new(tls);
        let mut connection = pin!(http2().serve_connection(TokioIo::new(cork.clone()), service));
        tokio::select! {
            result = uncorked(&cork, connection.as_mut()) => result,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(GRACE, uncorked(&cork, connection)).await {
                    Ok(result) => result,
                    Err(_) => return,
                }
            }
        }
    } else {
        let connection = http1().serve_connection(TokioIo::new(tls), service).with_upgrades();
        let mut connection = pin!(connection);
        tokio::select! {
            result = connection.as_mut() => result.map_err(Into::into),
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(GRACE, connection).await {
                    Ok(result) => result.map_err(Into::into),
                    Err(_) => return,
                }
            }
        }
    };
    if let Err(e) = result {
        tracing::trace!(error = %e, "connection ended");
    }
}
