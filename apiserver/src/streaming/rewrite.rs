//! What comes back through the proxy is changed so that it leads back through the proxy: `Location` headers and the
//! links of HTML pages (as `k8s.io/apimachinery/pkg/util/proxy`).

use std::io::Write;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzDecoder, GzEncoder};
use futures::StreamExt as _;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use lol_html::send::{HtmlRewriter, Settings};
use lol_html::{MemorySettings, OutputSink, element};

use crate::body::{Body, BoxError};

/// Attributes that hold URLs (HTML's list of attributes), by element.
const LINKS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];
/// The most memory that one page's parsing may take, in bytes.
const MAX_PARSING: usize = 1 << 20;

/// Where a proxied backend is for its clients.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Path up to and with `/proxy`.
    pub(super) prefix: String,
    /// `host:port` of the backend.
    pub(super) backend: String,
    /// `Host` of the request.
    pub(super) asked: String,
}

impl Place {
    /// A URL of the backend as one that leads through the proxy; None when it can stay as it is: relative, of another
    /// host, or leading through the proxy already.
    fn rewrite(&self, url: &str) -> Option<String> {
        let after_scheme = match url.split_once("://") {
            Some(("http" | "https", rest)) => Some(rest),
            _ => url.strip_prefix("//"),
        };
        let path = match after_scheme {
            None => url,
            Some(rest) => {
                let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
                if host != self.backend && host != self.asked {
                    return None;
                }
                path
            }
        };
        if !path.starts_with('/') || (path.starts_with(&self.prefix) && after_scheme.is_none()) {
            return None;
        }
        let prefix = if path.starts_with(&self.prefix) { "" } else { self.prefix.as_str() };
        Some(format!("{prefix}{path}"))
    }

    /// Changes an answer.
    pub(super) fn answer(&self, mut response: Response<Body>) -> Response<Body> {
        let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
        if let Some(location) = location {
            let changed = self.rewrite(location).and_then(|l| HeaderValue::from_str(&l).ok());
            if let Some(changed) = changed {
                response.headers_mut().insert(LOCATION, changed);
            }
            return response;
        }
        let Some(gzip) = page(response.headers()) else { return response };
        response.headers_mut().remove(CONTENT_LENGTH);
        let page = Page::new(self.clone(), gzip);
        response.map(|body| page.rewrite(body))
    }
}

/// Whether an answer is a page whose links can be changed, and if so whether it is packed.
fn page(headers: &HeaderMap) -> Option<bool> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let kind = text(CONTENT_TYPE).split(';').next().unwrap_or_default().trim();
    match text(CONTENT_ENCODING) {
        _ if kind != "text/html" => None,
        "" | "identity" => Some(false),
        "gzip" => Some(true),
        // Encodings that are not understood are passed on.
        _ => None,
    }
}

/// Bytes that have been made.
#[derive(Clone, Default)]
struct Out(Arc<Mutex<Vec<u8>>>);

impl Out {
    fn take(&self) -> Vec<u8> {
        self.0.lock().map(|mut out| std::mem::take(&mut *out)).unwrap_or_default()
    }
}

impl OutputSink for Out {
    fn handle_chunk(&mut self, chunk: &[u8]) {
        if let Ok(mut out) = self.0.lock() {
            out.extend_from_slice(chunk);
        }
    }
}

/// A page on its way.
struct Page {
    gunzip: Option<GzDecoder<Vec<u8>>>,
    rewriter: Option<HtmlRewriter<'static, Out>>,
    out: Out,
    gzip: Option<GzEncoder<Vec<u8>>>,
}

impl Page {
    fn new(place: Place, gzip: bool) -> Self {
        let selectors: Vec<String> = LINKS
            .iter()
            .flat_map(|(tag, attributes)| attributes.iter().map(move |a| format!("{tag}[{a}]")))
            .collect();
        let handler = element!(selectors.join(","), move |element| {
            let tag = element.tag_name();
            let attributes = LINKS.iter().find(|(name, _)| *name == tag).map_or(&[][..], |(_, a)| a);
            for attribute in attributes {
                if let Some(changed) = element.get_attribute(attribute).and_then(|url| place.rewrite(&url)) {
                    element.set_attribute(attribute, &changed)?;
                }
            }
            Ok(())
        });
        let memory = MemorySettings::new().with_max_allowed_memory_usage(MAX_PARSING);
        let settings = Settings::new_send()
            .append_element_content_handler(handler)
            .with_memory_settings(memory)
            .with_strict(false);
        let out = Out::default();
        Self {
            gunzip: gzip.then(|| GzDecoder::new(Vec::new())),
            rewriter: Some(HtmlRewriter::new(settings, out.clone())),
            out,
            gzip: gzip.then(|| GzEncoder::new(Vec::new(), Compression::default())),
        }
    }

    fn push(&mut self, data: &[u8]) -> Result<Bytes, BoxError> {
        let plain = match &mut self.gunzip {
            None => None,
            Some(gunzip) => {
                gunzip.write_all(data)?;
                gunzip.flush()?;
                Some(std::mem::take(gunzip.get_mut()))
            }
        };
        if let Some(rewriter) = &mut self.rewriter {
            rewriter.write(plain.as_deref().unwrap_or(data))?;
        }
        self.packed()
    }

    fn packed(&mut self) -> Result<Bytes, BoxError> {
        let made = self.out.take();
        let Some(gzip) = &mut self.gzip else { return Ok(made.into()) };
        gzip.write_all(&made)?;
        gzip.flush()?;
        Ok(std::mem::take(gzip.get_mut()).into())
    }

    fn finish(&mut self) -> Result<Bytes, BoxError> {
        let mut rest = Vec::new();
        if let Some(mut gunzip) = self.gunzip.take() {
            gunzip.try_finish()?;
            rest = std::mem::take(gunzip.get_mut());
        }
        if let Some(mut rewriter) = self.rewriter.take() {
            rewriter.write(&rest)?;
            rewriter.end()?;
        }
        let mut last = self.packed()?.to_vec();
        if let Some(gzip) = self.gzip.take() {
            last.extend(gzip.finish()?);
        }
        Ok(last.into())
    }

    fn rewrite(self, body: Body) -> Body {
        let stream = futures::stream::unfold(Some((self, body.into_data_stream())), |state| async move {
            let (mut page, mut data) = state?;
            match data.next().await {
                Some(chunk) => {
                    let made = chunk.and_then(|chunk| page.push(&chunk));
                    let next = made.is_ok().then_some((page, data));
                    Some((made.map(Frame::data), next))
                }
                None => Some((page.finish().map(Frame::data), None)),
            }
        });
        Body::new(StreamBody::new(Box::pin(stream)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn place() -> Place {
        Place {
            prefix: "/api/v1/namespaces/n/pods/p:80/proxy".into(),
            backend: "10.0.0.1:80".into(),
            asked: "localhost:8001".into(),
        }
    }

    #[test]
    fn urls() {
        let p = "/api/v1/namespaces/n/pods/p:80/proxy";
        for (url, expected) in [
            ("/x", Some(format!("{p}/x"))),
            ("/x/?q=/y#z", Some(format!("{p}/x/?q=/y#z"))),
            ("/", Some(format!("{p}/"))),
            ("http://10.0.0.1:80/x", Some(format!("{p}/x"))),
            ("http://10.0.0.1:80", Some(format!("{p}/"))),
            ("//localhost:8001/x", Some(format!("{p}/x"))),
            ("http://localhost:8001/api/v1/namespaces/n/pods/p:80/proxy/x", Some(format!("{p}/x"))),
            ("/api/v1/namespaces/n/pods/p:80/proxy/x", None),
            ("https://example.com/x", None),
            ("//example.com/x", None),
            ("x/y", None),
            ("?q", None),
            ("#z", None),
            ("", None),
            ("mailto:a@b", None),
            ("javascript:alert('://')", None),
        ] {
            assert_eq!(place().rewrite(url), expected, "{url}");
        }
    }

    async fn through(kind: &str, encoding: Option<&str>, body: Vec<u8>) -> Vec<u8> {
        // In pieces that cut words.
        let pieces: Vec<Result<_, BoxError>> =
            body.chunks(7).map(|c| Ok(Frame::data(Bytes::copy_from_slice(c)))).collect();
        let body = Body::new(StreamBody::new(futures::stream::iter(pieces)));
        let mut response = Response::new(body);
        response.headers_mut().insert(CONTENT_TYPE, kind.parse().expect("value"));
        response.headers_mut().insert(CONTENT_LENGTH, "7".parse().expect("value"));
        if let Some(encoding) = encoding {
            response.headers_mut().insert(CONTENT_ENCODING, encoding.parse().expect("value"));
        }
        let response = place().answer(response);
        let page = kind.starts_with("text/html");
        assert_eq!(response.headers().contains_key(CONTENT_LENGTH), !page);
        response.into_body().collect(1 << 20).await.expect("body").to_vec()
    }

    const PAGE: &[u8] = b"<!DOCTYPE html><p title='/t'><a class=b href=\"/rewriteme\">t \xc3\xa4 &amp;</a><img src='/i.png' \
                          usemap='#m'><script>var x = '<a href=\"/no\">';</script><a href=https://example.com/>e</a>";

    #[tokio::test]
    async fn pages_are_rewritten() {
        let made = through("text/html; charset=utf-8", None, PAGE.to_vec()).await;
        let made = String::from_utf8(made).expect("text");
        let prefix = place().prefix;
        for part in [
            format!("<a class=b href=\"{prefix}/rewriteme\">t ä &amp;</a>"),
            format!("src=\"{prefix}/i.png\""),
            "usemap='#m'".to_owned(),
            "var x = '<a href=\"/no\">';".to_owned(),
            "<a href=https://example.com/>".to_owned(),
            "<p title='/t'>".to_owned(),
        ] {
            assert!(made.contains(&part), "{part} in {made}");
        }
        assert_eq!(through("text/plain", None, PAGE.to_vec()).await, PAGE);
        assert_eq!(
            through("text/html", None, b"<a href='/unfinished".to_vec()).await,
            b"<a href='/unfinished"
        );
    }

    #[tokio::test]
    async fn packed_pages_too() {
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        packed.write_all(PAGE).expect("packed");
        let made = through("text/html", Some("gzip"), packed.finish().expect("packed")).await;
        let mut text = String::new();
        flate2::read::GzDecoder::new(&made[..]).read_to_string(&mut text).expect("unpacked");
        assert!(text.contains("/proxy/rewriteme") && text.ends_with("e</a>"), "{text}");
    }
}
