//! One HTTP/1.1 exchange with a backend, upgraded on both sides if the backend says so.

use std::sync::Arc;
use std::time::Duration;

use hawser_api::status::Status;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, HOST, SEC_WEBSOCKET_PROTOCOL, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::authn::impersonation::is_impersonation_header;
use crate::authn::is_credential_protocol;
use crate::body::Body;
use crate::metrics::Running;

/// How long a backend may take to accept a connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Buffer in each direction of an upgraded connection, in bytes.
const BUFFER: usize = 32 * 1024;

/// How the message begins when a backend does not answer.
pub(super) const DIALING: &str = "error dialing backend: ";

/// Headers that concern one connection only (RFC 9110 section 7.6.1).
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Where a request goes.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    /// Speak TLS with this configuration.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// Path and query as the backend gets them, percent-encoded.
    pub(super) path: String,
}

impl Target {
    /// `host:port`
    pub(super) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Whether a request asks to leave HTTP.
pub(super) fn is_upgrade(headers: &HeaderMap) -> bool {
    let asked = headers.get_all(CONNECTION).iter().filter_map(|v| v.to_str().ok());
    headers.contains_key(UPGRADE)
        && asked.flat_map(|v| v.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

/// Sends a request on and answers what the backend answers.
///
/// # Errors
/// When the backend cannot be reached or does not speak HTTP.
pub(super) async fn forward(mut request: Request<Body>, target: &Target) -> Result<Response<Body>, Status> {
    let upgrade = is_upgrade(request.headers());
    let running = request.extensions_mut().remove::<Arc<Running>>();
    let client_side = upgrade.then(|| hyper::upgrade::on(&mut request));
    let request = outgoing(request, target, upgrade)?;
    let mut response = send(request, target).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (mut parts, body) = response.into_parts();
        strip_hop_by_hop(&mut parts.headers);
        return Ok(Response::from_parts(parts, Body::new(body)));
    }
    let Some(client_side) = client_side else {
        return Err(Status::internal("the backend switched protocols without being asked"));
    };
    let backend_side = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        let _counted = running;
        // The client's side becomes an upgraded connection only once the 101 below has been written.
        let (Ok(client), Ok(backend)) = tokio::join!(client_side, backend_side) else { return };
        let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
        // An error is one side's end; the other side sees its connection close, which is all it can use.
        let _ = copy_bidirectional_with_sizes(&mut client, &mut backend, BUFFER, BUFFER).await;
    });
    let (parts, _) = response.into_parts();
    let mut answer = Response::new(Body::Empty);
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = parts.headers;
    Ok(answer)
}

/// The request as the backend gets it: none of the caller's credentials, no headers of the caller's connection.
fn outgoing(request: Request<Body>, target: &Target, upgrade: bool) -> Result<Request<Body>, Status> {
    let (mut parts, body) = request.into_parts();
    let kept = upgrade.then(|| parts.headers.get(UPGRADE).cloned()).flatten();
    strip_hop_by_hop(&mut parts.headers);
    parts.headers.remove(AUTHORIZATION);
    parts.headers.remove(COOKIE);
    let impersonation: Vec<HeaderName> =
        parts.headers.keys().filter(|name| is_impersonation_header(name.as_str())).cloned().collect();
    for name in impersonation {
        parts.headers.remove(name);
    }
    if let Some(protocol) = kept {
        parts.headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        parts.headers.insert(UPGRADE, protocol);
        parts.headers.remove(CONTENT_LENGTH);
        strip_credential_protocols(&mut parts.headers);
    }
    let host = HeaderValue::from_str(&target.authority())
        .map_err(|e| Status::internal(format!("backend address: {e}")))?;
    parts.headers.insert(HOST, host);
    parts.uri = target.path.parse().map_err(|e| Status::bad_request(format!("invalid path: {e}")))?;
    parts.version = http::Version::HTTP_11;
    parts.extensions = http::Extensions::new();
    Ok(Request::from_parts(parts, if upgrade { Body::Empty } else { body }))
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|token| token.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(TRANSFER_ENCODING);
}

/// A WebSocket client may have put its token among the subprotocols.
fn strip_credential_protocols(headers: &mut HeaderMap) {
    let protocols: Vec<String> = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|p| p.trim().to_owned())
        .filter(|p| !p.is_empty() && !is_credential_protocol(p))
        .collect();
    headers.remove(SEC_WEBSOCKET_PROTOCOL);
    if let Ok(value) = HeaderValue::from_str(&protocols.join(", "))
        && !protocols.is_empty()
    {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, value);
    }
}

async fn send(request: Request<Body>, target: &Target) -> Result<Response<Incoming>, Status> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Status::failure(500, "InternalError", format!("{DIALING}{what} {}: {error}", target.authority()))
    };
    let dial = TcpStream::connect((target.host.as_str(), target.port));
    let stream = tokio::time::timeout(DIAL_TIMEOUT, dial)
        .await
        .map_err(|_| failed("dial tcp", &"i/o timeout"))?
        .map_err(|error| failed("dial tcp", &format_args!("connect: {}", os_text(&error))))?;
    // Small writes are keystrokes: they must not wait for each other. Failing to say so only costs time.
    let _ = stream.set_nodelay(true);
    let Some(config) = &target.tls else {
        return exchange(request, stream).await.map_err(|error| failed("http", &error));
    };
    let name = ServerName::try_from(target.host.clone()).map_err(|error| failed("tls", &error))?;
    let handshake = TlsConnector::from(Arc::clone(config)).connect(name, stream);
    let stream = tokio::time::timeout(DIAL_TIMEOUT, handshake)
        .await
        .map_err(|_| failed("tls", &"handshake timeout"))?
        .map_err(|error| failed("tls", &error))?;
    exchange(request, stream).await.map_err(|error| failed("http", &error))
}

/// The operating system's words without Rust's additions.
fn os_text(error: &std::io::Error) -> String {
    let text = error.to_string().to_lowercase();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

async fn exchange<S>(request: Request<Body>, stream: S) -> Result<Response<Incoming>, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the answer's body, or when an upgrade has taken the connection over.
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_caller_leaks() {
        let request = Request::builder()
            .uri("/api/v1/namespaces/a/pods/p/exec")
            .header("Authorization", "Bearer secret")
            .header("Cookie", "c")
            .header("Impersonate-User", "root")
            .header("Connection", "Upgrade, X-Drop")
            .header("X-Drop", "1")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Key", "k")
            .header(
                "Sec-WebSocket-Protocol",
                "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.c2VjcmV0",
            )
            .body(Body::Empty)
            .expect("request");
        assert!(is_upgrade(request.headers()));
        let target = Target {
            host: "::1".to_owned(),
            port: 10250,
            tls: None,
            path: "/exec/a/p/c?command=x".to_owned(),
        };
        let sent = outgoing(request, &target, true).expect("request");
        let headers = sent.headers();
        for gone in ["authorization", "cookie", "impersonate-user", "x-drop"] {
            assert!(!headers.contains_key(gone), "{gone}");
        }
        assert_eq!(headers["sec-websocket-protocol"], "v5.channel.k8s.io");
        assert_eq!(
            (&headers["upgrade"], &headers["connection"]),
            (&"websocket".parse().expect("value"), &"Upgrade".parse().expect("value"))
        );
        assert_eq!(headers["host"], "[::1]:10250");
        assert_eq!(sent.uri().to_string(), "/exec/a/p/c?command=x");
    }
}
