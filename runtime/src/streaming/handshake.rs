//! Leaving HTTP: what a client asks to go on with, and the answer to it. Pure.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::channel::{self, Subprotocol};

/// How SPDY's protocol versions are negotiated.
pub const PROTOCOL_VERSION: &str = "x-stream-protocol-version";
/// The versions a server knows, when it knows none of the client's.
const ACCEPTED_VERSIONS: &str = "x-accepted-stream-protocol-versions";
/// Port-forwards over SPDY inside a WebSocket (KEP-4006).
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// The protocols of remote commands over SPDY, best first.
const SPDY_REMOTE_COMMAND: [&str; 4] =
    ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
const SPDY_PORT_FORWARD: [&str; 1] = ["portforward.k8s.io"];

/// What a URL is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Exec and attach.
    RemoteCommand,
    /// Port-forward.
    PortForward,
}

/// What a connection goes on as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// WebSocket with channels.
    Channels(Subprotocol),
    /// WebSocket whose messages are the bytes of a SPDY connection.
    Tunnel,
    /// SPDY, with one of [`SPDY_REMOTE_COMMAND`] or [`SPDY_PORT_FORWARD`].
    Spdy(&'static str),
}

/// An answer.
pub type Answer = Response<Full<Bytes>>;

/// A plain text answer.
pub fn plain(status: StatusCode, text: &str) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = status;
    response
}

fn value<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

/// The items of all of a header's lists.
fn items<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(str::trim).filter(|v| !v.is_empty()).collect()
}

/// What to go on with, and the answer that says so.
///
/// # Errors
/// The answer that refuses.
pub fn negotiate(
    purpose: Purpose,
    method: &Method,
    headers: &HeaderMap,
) -> Result<(Protocol, Answer), Box<Answer>> {
    let asked = items(headers, "connection").iter().any(|t| t.eq_ignore_ascii_case("upgrade"));
    let upgrades = items(headers, "upgrade");
    let offers = |name: &str| asked && upgrades.iter().any(|t| t.eq_ignore_ascii_case(name));
    if offers("websocket") {
        websocket(purpose, method, headers)
    } else if offers("SPDY/3.1") {
        spdy(purpose, headers)
    } else {
        let text = "unable to upgrade: a WebSocket or SPDY/3.1 handshake is required";
        Err(Box::new(plain(StatusCode::BAD_REQUEST, text)))
    }
}

fn switching(protocol: &'static str) -> Answer {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(protocol));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response
}

fn websocket(
    purpose: Purpose,
    method: &Method,
    headers: &HeaderMap,
) -> Result<(Protocol, Answer), Box<Answer>> {
    let bad = |text: &str| Box::new(plain(StatusCode::BAD_REQUEST, text));
    let key = value(headers, "sec-websocket-key");
    if method != Method::GET || value(headers, "sec-websocket-version") != "13" || key.is_empty() {
        return Err(bad("a WebSocket handshake of version 13 is required"));
    }
    let offered = items(headers, "sec-websocket-protocol");
    let known: &[Subprotocol] = match purpose {
        Purpose::RemoteCommand => &channel::REMOTE_COMMAND,
        Purpose::PortForward => &channel::PORT_FORWARD,
    };
    let tunnel = purpose == Purpose::PortForward && offered.contains(&TUNNEL);
    let chosen = if tunnel {
        Some((Protocol::Tunnel, TUNNEL))
    } else {
        Subprotocol::choose(known, &offered).map(|p| (Protocol::Channels(p), p.name))
    };
    let Some((protocol, name)) = chosen else {
        let known: Vec<&str> = known.iter().map(|k| k.name).filter(|n| !n.is_empty()).collect();
        return Err(bad(&format!("none of the subprotocols is supported; known: {}", known.join(", "))));
    };
    let mut response = switching("websocket");
    if !name.is_empty() {
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    if let Ok(accept) = derive_accept_key(key.as_bytes()).parse() {
        response.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    Ok((protocol, response))
}

fn spdy(purpose: Purpose, headers: &HeaderMap) -> Result<(Protocol, Answer), Box<Answer>> {
    let known: &[&'static str] = match purpose {
        Purpose::RemoteCommand => &SPDY_REMOTE_COMMAND,
        Purpose::PortForward => &SPDY_PORT_FORWARD,
    };
    let offered = items(headers, PROTOCOL_VERSION);
    if offered.is_empty() {
        let text = format!("unable to upgrade: header {PROTOCOL_VERSION} names no protocol");
        return Err(Box::new(plain(StatusCode::BAD_REQUEST, &text)));
    }
    // The client's order counts.
    let Some(name) = offered.iter().find_map(|o| known.iter().find(|k| *k == o)) else {
        let text = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {known:?}"
        );
        let mut refusal = plain(StatusCode::FORBIDDEN, &text);
        for name in known {
            refusal.headers_mut().append(ACCEPTED_VERSIONS, HeaderValue::from_static(name));
        }
        return Err(Box::new(refusal));
    };
    let mut response = switching("SPDY/3.1");
    response.headers_mut().insert(PROTOCOL_VERSION, HeaderValue::from_static(name));
    Ok((Protocol::Spdy(name), response))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WS: &[(&str, &str)] = &[
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    const SPDY: &[(&str, &str)] = &[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];

    fn ask(purpose: Purpose, base: &[(&str, &str)], more: &[(&str, &str)]) -> Result<Protocol, u16> {
        let mut headers = HeaderMap::new();
        for (name, value) in base.iter().chain(more) {
            let name: header::HeaderName = name.parse().expect("name");
            headers.append(name, value.parse().expect("value"));
        }
        match negotiate(purpose, &Method::GET, &headers) {
            Ok((protocol, answer)) => {
                assert_eq!(answer.status(), 101);
                Ok(protocol)
            }
            Err(answer) => Err(answer.status().as_u16()),
        }
    }

    #[test]
    fn table() {
        use Purpose::{PortForward, RemoteCommand};
        let protocol = |name| ("sec-websocket-protocol", name);
        let version = |name| (PROTOCOL_VERSION, name);
        let name = |p: Result<Protocol, u16>| match p {
            Ok(Protocol::Channels(p)) => format!("channels {}", p.name),
            other => format!("{other:?}"),
        };
        let v5 = "v5.channel.k8s.io";
        for (purpose, base, more, want) in [
            (
                RemoteCommand,
                WS,
                vec![protocol("v4.channel.k8s.io, v5.channel.k8s.io")],
                "channels v5.channel.k8s.io",
            ),
            (RemoteCommand, WS, vec![], "channels "),
            (RemoteCommand, WS, vec![protocol(TUNNEL)], "Err(400)"),
            (PortForward, WS, vec![protocol(TUNNEL)], "Ok(Tunnel)"),
            (PortForward, WS, vec![protocol(v5)], "Err(400)"),
            (
                PortForward,
                WS,
                vec![protocol("v4.base64.channel.k8s.io")],
                "channels v4.base64.channel.k8s.io",
            ),
            (
                RemoteCommand,
                SPDY,
                vec![version(v5), version("v4.channel.k8s.io")],
                "Ok(Spdy(\"v4.channel.k8s.io\"))",
            ),
            (
                RemoteCommand,
                SPDY,
                vec![version("v3.channel.k8s.io,v4.channel.k8s.io")],
                "Ok(Spdy(\"v3.channel.k8s.io\"))",
            ),
            (RemoteCommand, SPDY, vec![version(v5)], "Err(403)"),
            (RemoteCommand, SPDY, vec![], "Err(400)"),
            (PortForward, SPDY, vec![version("portforward.k8s.io")], "Ok(Spdy(\"portforward.k8s.io\"))"),
            (PortForward, &[][..], vec![version("portforward.k8s.io")], "Err(400)"),
        ] {
            assert_eq!(name(ask(purpose, base, &more)), want, "{purpose:?} {more:?}");
        }
    }
}
