//! The client: services are found through their endpoints, connections are kept for the next call.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use hawser_api::object::ObjectExt as _;
use hawser_api::text::quote;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Method, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rand::seq::IteratorRandom as _;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::trust::Trust;
use super::{ClientConfig, Place};
use crate::admission::Lookup;

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// Idle connections that are kept to one webhook.
const MAX_IDLE: usize = 8;

/// Calls webhooks.
pub struct Client {
    reader: Lookup,
    trust: Trust,
    idle: Mutex<HashMap<Peer, Vec<SendRequest<Full<Bytes>>>>>,
}

/// The far end of a connection, and who vouches for it.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Peer {
    host: String,
    port: u16,
    server_name: String,
    ca_bundle: Vec<u8>,
}

/// A request line.
struct Line {
    authority: String,
    server_name: String,
    path: String,
    /// What the error texts call it.
    url: String,
}

impl Client {
    pub fn new(reader: Lookup) -> Self {
        Self { reader, trust: Trust::default(), idle: Mutex::default() }
    }

    /// Posts a document and answers the body of the answer. `told` says whether the webhook is told the timeout, as
    /// those of admission are.
    ///
    /// # Errors
    /// A text in the words of Go's client where it has any.
    pub async fn post(
        &self,
        config: &ClientConfig,
        timeout: Duration,
        told: bool,
        body: Bytes,
    ) -> Result<Bytes, String> {
        let line = line(config, told.then_some(timeout))?;
        let wrap = |why: String| format!("Post {}: {why}", quote(&line.url));
        let call = async {
            let (host, port) = self.resolve(config, &line).await.map_err(wrap)?;
            let peer = Peer {
                host,
                port,
                server_name: line.server_name.clone(),
                ca_bundle: config.ca_bundle.clone(),
            };
            self.exchange(&peer, &line, body).await
        };
        match tokio::time::timeout(timeout, call).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("Post {}: context deadline exceeded", quote(&line.url))),
        }
    }

    async fn exchange(&self, peer: &Peer, line: &Line, body: Bytes) -> Result<Bytes, String> {
        let wrap = |why: String| format!("Post {}: {why}", quote(&line.url));
        let response = loop {
            let kept = self.take(peer);
            let was_kept = kept.is_some();
            let mut sender = match kept {
                Some(sender) => sender,
                None => self.connect(peer).await.map_err(wrap)?,
            };
            let request = request(line, body.clone()).map_err(wrap)?;
            match sender.send_request(request).await {
                Ok(response) => break (sender, response),
                // The far end may have closed a connection that was kept.
                Err(_) if was_kept => {}
                Err(e) => return Err(wrap(e.to_string())),
            }
        };
        let (sender, response) = response;
        let code = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|e| wrap(e.to_string()))?.to_bytes();
        self.keep(peer, sender);
        if code.is_success() {
            return Ok(body);
        }
        Err(server_error(code.as_u16(), &body))
    }

    fn take(&self, peer: &Peer) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock();
        let kept = idle.get_mut(peer)?;
        let found = std::iter::from_fn(|| kept.pop()).find(|sender| sender.is_ready());
        if kept.is_empty() {
            idle.remove(peer);
        }
        found
    }

    fn keep(&self, peer: &Peer, sender: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock();
        // Connections whose far end is gone are let go whenever another one is kept.
        idle.retain(|_, kept| {
            kept.retain(|s| !s.is_closed());
            !kept.is_empty()
        });
        let kept = idle.entry(peer.clone()).or_default();
        if kept.len() < MAX_IDLE && !sender.is_closed() {
            kept.push(sender);
        }
    }

    async fn connect(&self, peer: &Peer) -> Result<SendRequest<Full<Bytes>>, String> {
        let tls = self.trust.config(&peer.ca_bundle)?;
        let address = format!("{}:{}", peer.host, peer.port);
        let stream =
            TcpStream::connect((peer.host.as_str(), peer.port)).await.map_err(|e| match e.kind() {
                std::io::ErrorKind::ConnectionRefused => {
                    format!("dial tcp {address}: connect: connection refused")
                }
                _ => format!("dial tcp {address}: {e}"),
            })?;
        // Small requests must not wait for acknowledgements.
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let name = ServerName::try_from(peer.server_name.clone()).map_err(|e| e.to_string())?;
        let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(|e| {
            let inner = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
            inner.map_or_else(|| e.to_string(), super::trust::text)
        })?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        // Ends when the sender is dropped or the far end closes; what went wrong is told to the sender.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    /// Where to connect.
    async fn resolve(&self, config: &ClientConfig, line: &Line) -> Result<(String, u16), String> {
        let Place::Service { namespace, name, port, .. } = &config.place else {
            let (host, port) = line.authority.rsplit_once(':').ok_or("missing port in address")?;
            let port = port.parse().map_err(|_| format!("invalid port {}", quote(port)))?;
            return Ok((host.trim_matches(['[', ']']).to_owned(), port));
        };
        let service = self.reader.get("", "services", namespace, name).await.map_err(|s| s.message)?;
        let service = service.ok_or_else(|| format!("service {} not found", quote(name)))?;
        if service.str_at("spec.type") == "ExternalName" {
            return Ok((service.str_at("spec.externalName").to_owned(), *port));
        }
        let wanted =
            service.items_at("spec.ports").iter().find(|p| p.int_at("port") == Some(i64::from(*port)));
        let wanted =
            wanted.ok_or_else(|| format!("no service port {port} found for service {}", quote(name)))?;
        let none = || format!("no endpoints available for service {}", quote(name));
        let endpoints = self.reader.get("", "endpoints", namespace, name).await.map_err(|s| s.message)?;
        let endpoints = endpoints.ok_or_else(none)?;
        let addresses = endpoints.items_at("subsets").iter().flat_map(|subset| {
            let target = subset.items_at("ports").iter().find(|p| p.str_at("name") == wanted.str_at("name"));
            let number = target.and_then(|p: &Value| p.int_at("port")).and_then(|p| u16::try_from(p).ok());
            let of =
                move |n| subset.items_at("addresses").iter().map(move |a| (a.str_at("ip").to_owned(), n));
            number.into_iter().flat_map(of)
        });
        addresses.choose(&mut rand::rng()).ok_or_else(none)
    }
}

fn line(config: &ClientConfig, timeout: Option<Duration>) -> Result<Line, String> {
    let (authority, host, path) = match &config.place {
        Place::Service { namespace, name, port, path } => {
            let host = format!("{name}.{namespace}.svc");
            let path = if path.starts_with('/') { path.clone() } else { format!("/{path}") };
            (format!("{host}:{port}"), host, path)
        }
        Place::Url(text) => {
            let url = url::Url::parse(text).map_err(|e| format!("Unparsable URL: {e}"))?;
            let host = url.host_str().ok_or("webhook configuration must have either service or URL")?;
            let port = url.port().unwrap_or(443);
            (format!("{host}:{port}"), host.trim_matches(['[', ']']).to_owned(), url.path().to_owned())
        }
    };
    let shown = match &config.place {
        Place::Url(text) => {
            text.trim_end_matches('/').split(['?', '#']).next().unwrap_or_default().to_owned()
        }
        Place::Service { .. } => format!("https://{authority}{path}"),
    };
    let query = timeout.map_or_else(String::new, |t| format!("?timeout={}s", t.as_secs()));
    Ok(Line { authority, server_name: host, path: format!("{path}{query}"), url: format!("{shown}{query}") })
}

fn request(line: &Line, body: Bytes) -> Result<Request<Full<Bytes>>, String> {
    let host = line.authority.strip_suffix(":443").unwrap_or(&line.authority);
    let json = HeaderValue::from_static("application/json");
    Request::builder()
        .method(Method::POST)
        .uri(&line.path)
        .header(HOST, host)
        .header(USER_AGENT, "hawser-apiserver-admission")
        .header(CONTENT_TYPE, json.clone())
        .header(ACCEPT, json)
        .body(Full::new(body))
        .map_err(|e| e.to_string())
}

/// The text of an answer that is an HTTP error.
fn server_error(code: u16, body: &[u8]) -> String {
    if let Ok(status) = serde_json::from_slice::<hawser_api::status::Status>(body)
        && !status.message.is_empty()
    {
        return status.message;
    }
    let text = String::from_utf8_lossy(body);
    let text: String = text.trim().chars().take(2048).collect();
    match code {
        400 => "the server rejected our request for an unknown reason".into(),
        401 => "the server has asked for the client to provide credentials".into(),
        403 => text,
        404 => "the server could not find the requested resource".into(),
        405 => "the server does not allow this method on the requested resource".into(),
        503 => "the server is currently unable to handle the request".into(),
        504 => "the server was unable to return a response in the time allotted, but may still be processing the request".into(),
        _ => format!("an error on the server ({}) has prevented the request from succeeding", quote(&text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let service =
            Place::Service { namespace: "n".into(), name: "s".into(), port: 443, path: "/v".into() };
        let line =
            line(&ClientConfig { place: service, ca_bundle: Vec::new() }, Some(Duration::from_secs(10)))
                .unwrap();
        assert_eq!(line.url, "https://s.n.svc:443/v?timeout=10s");
        assert_eq!((line.server_name.as_str(), line.path.as_str()), ("s.n.svc", "/v?timeout=10s"));
        let url = ClientConfig { place: Place::Url("https://[::1]:8443/x".into()), ca_bundle: Vec::new() };
        let line = super::line(&url, None).unwrap();
        assert_eq!(
            (line.authority.as_str(), line.server_name.as_str(), line.path.as_str()),
            ("[::1]:8443", "::1", "/x")
        );
    }
}
