//! OpenAPI: v3 as an index with hashes and one document per group version, v2 as one document; JSON and protobuf.
//!
//! Documents are large and asked for seldom, and clients keep what they have by its hash. So none is kept here: one is
//! written, part by part, when it is asked for. The hash of a document is that of what it is made from.

mod descriptions;
mod documents;
mod gnostic;
mod parameters;
mod paths;
mod schemas;
mod v2;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use hawser_api::crd::publish::Dialect;
use http::Response;
use http::header::{
    ACCEPT, CACHE_CONTROL, ETAG, EXPIRES, HeaderMap, HeaderValue, IF_NONE_MATCH, LOCATION, VARY,
};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha512};

use self::writer::{Json, Writer};
use crate::body::Body;
use crate::kinds::Table;
use crate::negotiate;
use crate::request_info::RequestInfo;
use crate::respond;

const V2: &str = "/openapi/v2";
const V3: &str = "/openapi/v3";
/// kube-apiserver sets none for the index, so Go's guess is sent.
const INDEX_TYPE: &str = "text/plain; charset=utf-8";

/// Answers `/openapi/v2`, and `/openapi/v3` and below.
#[derive(Default)]
pub struct OpenApi {
    index: Mutex<Option<(Arc<Table>, Arc<Index>)>>,
}

/// The documents of a table.
struct Index {
    /// Name → hash.
    hashes: BTreeMap<String, String>,
    /// The index as it is sent.
    document: Bytes,
    /// Hash of the index, and of the document of v2.
    hash: String,
}

impl OpenApi {
    /// Answers a path; None when it is none of OpenAPI's.
    pub fn answer(
        &self,
        table: &Arc<Table>,
        info: &RequestInfo,
        headers: &HeaderMap,
    ) -> Option<Response<Body>> {
        let text = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok());
        if info.path == V2 {
            let index = self.index(table);
            let answer = Negotiated { dialect: Dialect::V2, hash: &index.hash, forever: false };
            return Some(answer.send(text(ACCEPT), text(IF_NONE_MATCH), |w| documents::write_v2(table, w)));
        }
        let name = info.path.strip_prefix(V3).filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
        let name = name.trim_matches('/');
        let index = self.index(table);
        if name.is_empty() {
            let mut response = if is_known(text(IF_NONE_MATCH), &index.hash) {
                respond::bytes_answer(304, Bytes::new(), INDEX_TYPE)
            } else {
                respond::bytes_answer(200, index.document.clone(), INDEX_TYPE)
            };
            tag(&mut response, &index.hash);
            return Some(response);
        }
        let Some(hash) = index.hashes.get(name) else {
            let mut nothing = Response::new(Body::Empty);
            *nothing.status_mut() = http::StatusCode::NOT_FOUND;
            return Some(nothing);
        };
        let asked = info.param("hash").filter(|h| !h.is_empty());
        if asked.is_some_and(|asked| asked != hash) {
            return Some(moved(&url(name, hash)));
        }
        let answer = Negotiated { dialect: Dialect::V3, hash, forever: asked.is_some() };
        let write = |writer| documents::write_v3(table, name, writer);
        Some(answer.send(text(ACCEPT), text(IF_NONE_MATCH), write))
    }

    /// The index of a table, made once.
    fn index(&self, table: &Arc<Table>) -> Arc<Index> {
        let mut kept = self.index.lock();
        if let Some((_, index)) = kept.as_ref().filter(|(of, _)| Arc::ptr_eq(of, table)) {
            return index.clone();
        }
        let hashes = documents::hashes(table);
        let paths: Map<String, Value> = hashes
            .iter()
            .map(|(name, hash)| (name.clone(), json!({"serverRelativeURL": url(name, hash)})))
            .collect();
        let document = Bytes::from(json!({"paths": paths}).to_string());
        let hash = hex::encode_upper(Sha512::digest(&document));
        let index = Arc::new(Index { hashes, document, hash });
        *kept = Some((table.clone(), index.clone()));
        index
    }
}

fn url(name: &str, hash: &str) -> String {
    format!("{V3}/{name}?hash={hash}")
}

fn is_known(if_none_match: Option<&str>, hash: &str) -> bool {
    if_none_match.is_some_and(|tags| {
        tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.trim_matches('"') == hash)
    })
}

fn tag(response: &mut Response<Body>, hash: &str) {
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{hash}\"")) {
        response.headers_mut().insert(ETAG, tag);
    }
}

/// 301 to the document as it is now.
fn moved(url: &str) -> Response<Body> {
    let mut response = respond::bytes_answer(301, Bytes::new(), "text/html; charset=utf-8");
    if let Ok(url) = HeaderValue::from_str(url) {
        response.headers_mut().insert(LOCATION, url);
    }
    response
}

/// A document that can be had as JSON and as protobuf.
struct Negotiated<'a> {
    dialect: Dialect,
    hash: &'a str,
    /// Whether it was asked for by its hash: then it never changes.
    forever: bool,
}

impl Negotiated<'_> {
    fn send(
        &self,
        accept: Option<&str>,
        if_none_match: Option<&str>,
        write: impl FnOnce(Writer) -> Vec<u8>,
    ) -> Response<Body> {
        let (version, protobuf) = match self.dialect {
            Dialect::V2 => ("v2", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"),
            Dialect::V3 => ("v3", "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"),
        };
        let older = format!("com.github.proto-openapi.spec.{version}@v1.0+protobuf");
        let newer = protobuf.trim_start_matches("application/");
        let (content_type, writer) = match negotiate::choose(accept, &["json", newer, &older]) {
            Some(0) => ("application/json", Writer::Json(Json::new())),
            Some(_) => (protobuf, Writer::Protobuf(gnostic::Writer::new(self.dialect))),
            None => return respond::bytes_answer(406, Bytes::new(), "text/plain; charset=utf-8"),
        };
        let mut response = if is_known(if_none_match, self.hash) {
            respond::bytes_answer(304, Bytes::new(), content_type)
        } else {
            respond::bytes_answer(200, write(writer), content_type)
        };
        tag(&mut response, self.hash);
        let headers = response.headers_mut();
        headers.insert(VARY, HeaderValue::from_static("Accept"));
        if self.forever {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
            let year = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(365 * 24);
            let text = year.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
            if let Ok(text) = HeaderValue::from_str(&text) {
                headers.insert(EXPIRES, text);
            }
        }
        response
    }
}

#[cfg(test)]
mod tests;
