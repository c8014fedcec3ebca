//! A small HTTP client for probes and lifecycle hooks: one connection per request, redirects on the same host,
//! no certificate checks (as the kubelet's probes: the target is a pod by address).

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPHeader;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::{Arc, OnceLock};
use tokio::net::TcpStream;

use crate::tls::{Judge, Judged};

/// The most of a body that is read.
const MAX_BODY: usize = 10 << 10;
/// Redirects that are followed.
const MAX_REDIRECTS: usize = 10;

/// What went wrong, in words.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(crate) struct HttpError(pub String);

/// The answer to a GET.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub status: StatusCode,
    pub body: String,
    /// The server pointed to another host; its answer is the redirect itself.
    pub redirected_away: bool,
}

/// Headers of a probe; `Host` is a header like any other.
pub(crate) fn headers(own: Option<&Vec<HTTPHeader>>, agent: &str) -> Result<HeaderMap, HttpError> {
    let mut out = HeaderMap::new();
    for h in own.into_iter().flatten() {
        let name = HeaderName::try_from(&h.name).map_err(|e| HttpError(e.to_string()))?;
        let value = HeaderValue::from_str(&h.value).map_err(|e| HttpError(e.to_string()))?;
        out.append(name, value);
    }
    if !out.contains_key(http::header::USER_AGENT) {
        let agent = HeaderValue::from_str(agent).map_err(|e| HttpError(e.to_string()))?;
        out.insert(http::header::USER_AGENT, agent);
    }
    out.entry(http::header::ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    Ok(out)
}

/// `host:port` for a URL or a dial message.
pub(crate) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Sends a GET and follows redirects on the same host. The caller bounds the time.
pub(crate) async fn get(
    https: bool,
    host: &str,
    port: u16,
    path: &str,
    headers: HeaderMap,
) -> Result<Answer, HttpError> {
    let scheme = if https { "https" } else { "http" };
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let mut uri: Uri = format!("{scheme}://{}{path}", authority(host, port))
        .parse()
        .map_err(|e| HttpError(format!("parse {path:?}: {e}")))?;
    for _ in 0..MAX_REDIRECTS {
        let (status, response_headers, body) = once(&uri, &headers).await?;
        let location = response_headers.get(http::header::LOCATION).and_then(|l| l.to_str().ok());
        let Some(location) = location.filter(|_| status.is_redirection()) else {
            return Ok(Answer { status, body, redirected_away: false });
        };
        let base = url::Url::parse(&uri.to_string()).map_err(|e| HttpError(e.to_string()))?;
        let next = base.join(location).map_err(|e| HttpError(e.to_string()))?;
        if next.host_str() != base.host_str() {
            return Ok(Answer { status, body, redirected_away: true });
        }
        uri = next.as_str().parse().map_err(|e| HttpError(format!("{e}")))?;
    }
    Err(HttpError(format!("stopped after {MAX_REDIRECTS} redirects")))
}

async fn once(uri: &Uri, headers: &HeaderMap) -> Result<(StatusCode, HeaderMap, String), HttpError> {
    let fail = |e: &dyn std::fmt::Display| HttpError(format!("Get \"{uri}\": {e}"));
    let https = uri.scheme_str() == Some("https");
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
    let stream = TcpStream::connect((host.as_str(), port))
        .await
        .map_err(|e| fail(&format!("dial tcp {}: connect: {}", authority(&host, port), os_text(&e))))?;
    let mut request =
        Request::builder().method(Method::GET).uri(uri.path_and_query().map_or("/", |p| p.as_str()));
    if let Some(map) = request.headers_mut() {
        map.extend(headers.clone());
        if !map.contains_key(http::header::HOST)
            && let Some(a) = uri.authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok())
        {
            map.insert(http::header::HOST, a);
        }
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| fail(&e))?;
    if https {
        let name = ServerName::try_from(host).map_err(|e| fail(&e))?;
        let tls = connector().connect(name, stream).await.map_err(|e| fail(&e))?;
        exchange(TokioIo::new(tls), request).await.map_err(|e| fail(&e))
    } else {
        exchange(TokioIo::new(stream), request).await.map_err(|e| fail(&e))
    }
}

async fn exchange<I>(
    io: I,
    request: Request<Empty<Bytes>>,
) -> Result<(StatusCode, HeaderMap, String), hyper::Error>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    let driver = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        // An error of the connection shows in the request as well.
        let _ = connection.await;
    }));
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, MAX_BODY).collect().await;
    drop(driver);
    let body = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned()).unwrap_or_default();
    Ok((head.status, head.headers, body))
}

/// The operating system's words without Rust's additions.
pub(crate) fn os_text(e: &std::io::Error) -> String {
    let text = e.to_string().to_lowercase();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

fn connector() -> tokio_rustls::TlsConnector {
    static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone());
        let builder = match builder.with_safe_default_protocol_versions() {
            Ok(b) => b,
            Err(e) => unreachable!("the default protocol versions are rustls' own: {e}"),
        };
        let algorithms = provider.signature_verification_algorithms;
        let verifier = Arc::new(Judged { judge: AnyCertificate, algorithms });
        Arc::new(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
    });
    tokio_rustls::TlsConnector::from(config.clone())
}

/// Accepts every certificate.
#[derive(Debug)]
struct AnyCertificate;

impl Judge for AnyCertificate {
    fn judge(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<(), rustls::Error> {
        Ok(())
    }
}
