//! Passing an upgraded connection (WebSocket or SPDY) on to the runtime's streaming server, byte for byte: only the
//! runtime reads the stream.

use super::{Body, text};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, HOST, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::io;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// Answers a request with what the server at `url` answers to it, and connects the two once both have upgraded.
pub(super) async fn upgrade(
    request: Request<Incoming>,
    url: &str,
    stop: CancellationToken,
) -> Response<Body> {
    match try_upgrade(request, url, stop).await {
        Ok(response) => response,
        Err(e) => {
            text(StatusCode::BAD_GATEWAY, format!("error dialing the runtime's streaming server: {e}\n"))
        }
    }
}

async fn try_upgrade(
    mut request: Request<Incoming>,
    url: &str,
    stop: CancellationToken,
) -> Result<Response<Body>, String> {
    let target: Uri = url.parse().map_err(|e| format!("{url:?}: {e}"))?;
    let host = match target.host().unwrap_or_default().trim_matches(['[', ']']) {
        // The runtime listens everywhere: here is where it is reached.
        "" | "0.0.0.0" | "::" => "127.0.0.1",
        host => host,
    };
    if target.scheme_str() != Some("http") {
        return Err(format!("{url:?}: only http is supported between kubelet and runtime"));
    }
    let port = target.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((host, port)).await.map_err(|e| e.to_string())?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .preserve_header_case(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        if let Err(e) = connection.with_upgrades().await {
            tracing::debug!("connection to the runtime: {e}");
        }
    });
    let client = hyper::upgrade::on(&mut request);
    let path = target.path_and_query().map_or("/", |p| p.as_str());
    let mut onward = Request::builder().method(request.method()).uri(path);
    if let Some(headers) = onward.headers_mut() {
        *headers = request.headers().clone();
        // The runtime's server knows its clients by the secret in the URL.
        headers.remove(AUTHORIZATION);
        let authority = target.authority().map_or(host, |a| a.as_str());
        headers.insert(HOST, HeaderValue::from_str(authority).map_err(|e| e.to_string())?);
    }
    let onward = onward.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let mut answer = sender.send_request(onward).await.map_err(|e| e.to_string())?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer.map(|b| b.map_err(io::Error::other).boxed_unsync()));
    }
    let mut response = Response::new(Empty::new().map_err(|e| match e {}).boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    let names = response.headers().contains_key(UPGRADE) && response.headers().contains_key(CONNECTION);
    if !names {
        return Err("the runtime's answer to the upgrade names no protocol".into());
    }
    let runtime = hyper::upgrade::on(&mut answer);
    tokio::spawn(async move {
        let both = tokio::try_join!(client, runtime);
        let (client, runtime) = match both {
            Ok(both) => both,
            Err(e) => return tracing::debug!("upgrading a stream: {e}"),
        };
        let (mut client, mut runtime) = (TokioIo::new(client), TokioIo::new(runtime));
        tokio::select! {
            () = stop.cancelled() => {}
            done = tokio::io::copy_bidirectional(&mut client, &mut runtime) => if let Err(e) = done {
                tracing::debug!("a stream ended: {e}");
            },
        }
    });
    Ok(response)
}
