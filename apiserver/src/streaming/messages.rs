//! An answer as the messages of a WebSocket, for clients in browsers: the protocols `binary.k8s.io` and
//! `base64.binary.k8s.io`, in one direction only.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use hawser_api::status::Status;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::forward::is_upgrade;
use crate::authn::is_credential_protocol;
use crate::body::Body;
use crate::metrics::Running;

const BINARY: &str = "binary.k8s.io";
const BASE64: &str = "base64.binary.k8s.io";

/// A client that waits for messages.
pub(super) struct Socket {
    upgrade: OnUpgrade,
    accept: HeaderValue,
    /// None when the client named no protocol; messages are binary then.
    protocol: Option<&'static str>,
    running: Option<std::sync::Arc<Running>>,
}

impl Socket {
    /// The WebSocket that a request asks for, if it does.
    ///
    /// # Errors
    /// 400 for a bad handshake, 403 when none of the protocols is known.
    pub(super) fn asked(request: &mut Request<Body>) -> Result<Option<Self>, Status> {
        let headers = request.headers();
        let websocket = headers.get(UPGRADE).is_some_and(|u| u.as_bytes().eq_ignore_ascii_case(b"websocket"));
        if !websocket || !is_upgrade(headers) {
            return Ok(None);
        }
        let key = headers.get(SEC_WEBSOCKET_KEY).filter(|k| !k.is_empty());
        let key = key.ok_or_else(|| Status::bad_request("the WebSocket handshake has no key"))?;
        if headers.get(SEC_WEBSOCKET_VERSION).is_some_and(|v| v != "13") {
            return Err(Status::bad_request("only version 13 of WebSocket is spoken"));
        }
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(Status::internal)?;
        let protocol = protocol(headers)?;
        let running = request.extensions_mut().remove();
        Ok(Some(Self { upgrade: hyper::upgrade::on(request), accept, protocol, running }))
    }

    /// Sends a body: an empty message first, as Kubernetes does, then what comes, then the end of the connection. It
    /// ends early when the client leaves; what the client sends is not read for meaning.
    pub(super) fn answer(self, body: Body) -> Response<Body> {
        let mut answer = Response::new(Body::Empty);
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, self.accept);
        if let Some(protocol) = self.protocol {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        }
        let encode = if self.protocol == Some(BASE64) { base64_message } else { Message::Binary };
        let (upgrade, running) = (self.upgrade, self.running);
        tokio::spawn(async move {
            let _counted = running;
            let Ok(client) = upgrade.await else { return };
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(client), Role::Server, None).await;
            copy(body, socket, encode).await;
        });
        answer
    }
}

fn base64_message(data: Bytes) -> Message {
    Message::text(STANDARD.encode(data))
}

/// The first protocol of the client that is known.
fn protocol(headers: &HeaderMap) -> Result<Option<&'static str>, Status> {
    let lists = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    let mut offered = lists
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .filter(|p| !p.is_empty() && !is_credential_protocol(p))
        .peekable();
    if offered.peek().is_none() {
        return Ok(None);
    }
    let known = offered.find_map(|p| [BINARY, BASE64].into_iter().find(|k| *k == p));
    let why = "none of the requested WebSocket protocols is supported: binary.k8s.io, base64.binary.k8s.io";
    known.map(Some).ok_or_else(|| Status::failure(403, "Forbidden", why))
}

async fn copy<S>(mut body: Body, socket: WebSocketStream<S>, encode: fn(Bytes) -> Message)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut sink, mut stream) = socket.split();
    let mut data = Some(Bytes::new());
    loop {
        // An error is the client's end: there is nobody left to tell.
        if let Some(data) = data.take()
            && sink.send(encode(data)).await.is_err()
        {
            return;
        }
        tokio::select! {
            frame = body.frame() => match frame {
                Some(Ok(frame)) => data = frame.into_data().ok().filter(|d| !d.is_empty()),
                // What was cut short ends like what is whole: the protocol has no other word for it.
                Some(Err(_)) | None => break,
            },
            message = stream.next() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                Some(Ok(_)) => {}
            },
        }
    }
    let _ = sink.close().await;
}

/// The headers that the handshake needs, for tests of others.
#[cfg(test)]
pub(super) const HANDSHAKE: [(http::HeaderName, &str); 4] = [
    (CONNECTION, "Upgrade"),
    (UPGRADE, "websocket"),
    (SEC_WEBSOCKET_VERSION, "13"),
    (SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(protocols: Option<&str>) -> Result<Option<Option<&'static str>>, u16> {
        let mut request = Request::builder();
        for (name, value) in HANDSHAKE {
            request = request.header(name, value);
        }
        if let Some(protocols) = protocols {
            request = request.header(SEC_WEBSOCKET_PROTOCOL, protocols);
        }
        let mut request = request.body(Body::Empty).expect("request");
        Socket::asked(&mut request).map(|s| s.map(|s| s.protocol)).map_err(|s| s.code)
    }

    #[test]
    fn protocols_are_agreed_on() {
        assert_eq!(asked(None), Ok(Some(None)));
        assert_eq!(asked(Some("x, base64.binary.k8s.io, binary.k8s.io")), Ok(Some(Some(BASE64))));
        assert_eq!(asked(Some("base64url.bearer.authorization.k8s.io.c2VjcmV0")), Ok(Some(None)));
        assert_eq!(asked(Some("channel.k8s.io")), Err(403));
        let mut plain = Request::new(Body::Empty);
        assert!(Socket::asked(&mut plain).expect("no handshake").is_none());
        plain.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        plain.headers_mut().insert(UPGRADE, HeaderValue::from_static("WebSocket"));
        assert_eq!(Socket::asked(&mut plain).err().map(|s| s.code), Some(400), "no key");
    }

    #[tokio::test]
    async fn bodies_become_messages() {
        for (encode, want) in [
            (
                Message::Binary as fn(Bytes) -> Message,
                ["", "one", "two"].map(|t| Message::binary(t.as_bytes().to_vec())),
            ),
            (base64_message, ["", "b25l", "dHdv"].map(Message::text)),
        ] {
            let (client, server) = tokio::io::duplex(1 << 12);
            let server = WebSocketStream::from_raw_socket(server, Role::Server, None).await;
            let body = Body::Chunks(["one", "two"].map(Bytes::from).into());
            tokio::spawn(copy(body, server, encode));
            let client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
            let got: Vec<Message> = client.take(4).map(|m| m.expect("a message")).collect().await;
            assert_eq!(got[..3], want);
            assert!(matches!(got[3..], [Message::Close(_)]), "{got:?}");
        }
    }
}
