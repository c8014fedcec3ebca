//! `GET /metrics` and `GET /health` over HTTP.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::respond::Responder;

/// Connections at a time; further ones wait.
const CONNECTIONS: usize = 16;

/// Serves until dropped. Without an address it only waits.
///
/// # Errors
/// An address cannot be had.
pub async fn run(addresses: &[SocketAddr], responder: &Arc<Responder>) -> io::Result<()> {
    if addresses.is_empty() {
        return std::future::pending().await;
    }
    let serving = addresses.iter().map(|address| serve_on(*address, responder));
    futures::future::try_join_all(serving).await.map(drop)
}

async fn serve_on(address: SocketAddr, responder: &Arc<Responder>) -> io::Result<()> {
    // The process before this one has the port until it has ended.
    let socket =
        if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    serve(socket.listen(16)?, responder).await
}

async fn serve(listener: TcpListener, responder: &Arc<Responder>) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection for metrics");
                tokio::time::sleep(crate::sockets::AFTER_ERROR).await;
                continue;
            }
        };
        let responder = responder.clone();
        tokio::spawn(async move {
            let answer =
                service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&request, &responder))));
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(std::time::Duration::from_secs(10))
                .serve_connection(TokioIo::new(stream), answer);
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection for metrics");
            }
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, responder: &Responder) -> Response<String> {
    let synced = responder.synced.load(Relaxed);
    let (status, kind, text) = match request.uri().path() {
        "/metrics" => {
            let counts = responder.index.read().counts();
            (StatusCode::OK, "text/plain; version=0.0.4", responder.metrics.render(counts, synced))
        }
        "/health" => (StatusCode::OK, "text/plain", "OK".to_owned()),
        "/ready" if synced => (StatusCode::OK, "text/plain", "OK".to_owned()),
        "/ready" => {
            (StatusCode::SERVICE_UNAVAILABLE, "text/plain", "the API has not been read yet".to_owned())
        }
        _ => (StatusCode::NOT_FOUND, "text/plain", "there are /metrics, /health and /ready".to_owned()),
    };
    let response = Response::builder().status(status).header(http::header::CONTENT_TYPE, kind);
    response.body(text).unwrap_or_default()
}
