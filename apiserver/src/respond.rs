//! From an [`Answer`] to bytes: JSON, YAML, Table and PartialObjectMetadata, lists and watch events.
//!
//! The ordinary case joins slices of stored bytes. Only other forms, and versions that differ in more than their
//! name, decode objects.

use std::io::Write as _;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use hawser_api::object::ObjectExt as _;
use hawser_api::status::Status;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::body::{Body, Pieces};
use crate::cache::entry::Entry;
use crate::cache::ring::{Event, EventType};
use crate::convert;
use crate::kinds::Row;
use crate::negotiate::{Accepted, Encoding, Transform};
use crate::registry::list::Page;
use crate::table;

/// Bytes of one piece of a list: small enough to stay in the processor's cache until it is encrypted.
const CHUNK: usize = 64 << 10;
/// What closes a list.
const LIST_END: &[u8] = b"]}";
/// Answers from this size on are compressed for clients that take gzip (as kube-apiserver).
const GZIP_FROM: usize = 128 << 10;

/// Renders the objects of one row in one form.
#[derive(Clone)]
pub struct Renderer {
    row: Arc<Row>,
    accepted: Accepted,
    include: table::Include,
    /// Whether a Table of this watch has told its columns already.
    columns_sent: bool,
}

impl Renderer {
    /// A renderer for a row's objects.
    pub fn new(row: Arc<Row>, accepted: Accepted, include: table::Include) -> Self {
        Self { row, accepted, include, columns_sent: false }
    }

    fn tail<'v>(&self, value: &'v [u8]) -> &'v [u8] {
        let head = self.row.cache.as_ref().map_or(0, |c| c.head().len());
        value.get(head..).unwrap_or_default()
    }

    /// Whether stored bytes can be sent as they are, the head excepted.
    fn direct(&self) -> bool {
        convert::only_head(&self.row)
    }

    /// A stored object in the row's version.
    ///
    /// # Errors
    /// When the stored bytes are no object.
    pub fn decode(&self, value: &[u8], revision: u64) -> Result<Value, Status> {
        let object = crate::encode::decode(value, revision).map_err(Status::internal)?;
        Ok(convert::from_stored(&self.row, object))
    }

    /// A stored object as JSON in the row's version.
    fn json(&self, value: &[u8], revision: u64) -> Result<Bytes, Status> {
        if self.direct() {
            return Ok(self.row.head.object(revision, self.tail(value)));
        }
        to_json(&self.decode(value, revision)?)
    }

    /// The form that was negotiated, of a decoded object.
    fn transform(&self, object: Value) -> Value {
        match self.accepted.transform {
            Transform::None => object,
            Transform::Partial(beta) => partial(&object, beta),
            Transform::Table(beta) => table::of_object(&self.row.kind, &object, self.include, beta),
        }
    }

    /// One stored object as the body of an answer.
    ///
    /// # Errors
    /// When the stored bytes are no object.
    pub fn stored(&self, value: &[u8], revision: u64) -> Result<Bytes, Status> {
        if self.accepted.transform == Transform::None && self.accepted.encoding == Encoding::Json {
            return self.json(value, revision);
        }
        self.object(self.decode(value, revision)?)
    }

    /// One decoded object of the row's kind as the body of an answer.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn object(&self, object: Value) -> Result<Bytes, Status> {
        encode(&self.transform(object), self.accepted.encoding)
    }

    /// A page as the body of an answer.
    ///
    /// # Errors
    /// When a stored object cannot be decoded.
    pub fn list(&self, page: Page) -> Result<Body, Status> {
        let plain = self.accepted.transform == Transform::None && self.accepted.encoding == Encoding::Json;
        if plain && self.direct() {
            return Ok(self.list_of_bytes(page));
        }
        let mut objects = Vec::with_capacity(page.entries.len());
        for entry in &page.entries {
            objects.push(self.decode(&entry.value, entry.revision)?);
        }
        let mut meta = Map::new();
        meta.insert("resourceVersion".into(), page.revision.to_string().into());
        if let Some(next) = page.next {
            meta.insert("continue".into(), next.into());
        }
        if let Some(remaining) = page.remaining {
            meta.insert("remainingItemCount".into(), remaining.into());
        }
        self.objects(objects, meta).map(Body::Full)
    }

    /// Decoded objects as a list.
    ///
    /// # Errors
    /// When they cannot be encoded.
    pub fn objects(&self, objects: Vec<Value>, meta: Map<String, Value>) -> Result<Bytes, Status> {
        let list = match self.accepted.transform {
            Transform::None => {
                let items: Vec<Value> = objects.into_iter().map(|o| self.as_item(o)).collect();
                json!({"kind": self.row.kind.list_kind, "apiVersion": self.row.kind.api_version(),
                    "metadata": meta, "items": items})
            }
            Transform::Partial(beta) => {
                let items: Vec<Value> = objects.iter().map(|o| partial(o, beta)).collect();
                json!({"kind": "PartialObjectMetadataList", "apiVersion": meta_version(beta),
                    "metadata": meta, "items": items})
            }
            Transform::Table(beta) => table::of_list(&self.row.kind, &objects, meta, self.include, beta),
        };
        encode(&list, self.accepted.encoding)
    }

    fn as_item(&self, mut object: Value) -> Value {
        if self.row.kind.builtin
            && let Some(map) = object.as_object_mut()
        {
            map.remove("kind");
            map.remove("apiVersion");
        }
        object
    }

    /// Concatenates stored bytes, as fast as the client takes them; the only cost per object is copying it once.
    fn list_of_bytes(&self, page: Page) -> Body {
        let kind = &self.row.kind;
        let mut head = format!(
            "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{{\"resourceVersion\":\"{}\"",
            kind.list_kind,
            kind.api_version(),
            page.revision
        );
        if let Some(next) = &page.next {
            head += &format!(",\"continue\":\"{next}\"");
        }
        if let Some(remaining) = page.remaining {
            head += &format!(",\"remainingItemCount\":{remaining}");
        }
        head += "},\"items\":[";
        let renderer = self.clone();
        let length: usize = page
            .entries
            .iter()
            .map(|e| 1 + self.row.head.item_len(e.revision, self.tail(&e.value)))
            .sum::<usize>()
            .saturating_sub(1)
            + head.len()
            + LIST_END.len();
        let (mut at, mut started) = (0, false);
        let mut pieces = Pieces::new(length as u64, move || {
            let mut out = BytesMut::with_capacity(CHUNK.min(length));
            if !std::mem::replace(&mut started, true) {
                out.put_slice(head.as_bytes());
            }
            while let Some(entry) = page.entries.get(at) {
                let tail = renderer.tail(&entry.value);
                if out.len() + tail.len() + renderer.row.head.room() > CHUNK && !out.is_empty() {
                    return out.freeze();
                }
                if at > 0 {
                    out.put_u8(b',');
                }
                renderer.row.head.put_item(&mut out, entry.revision, tail);
                at += 1;
            }
            out.put_slice(LIST_END);
            out.freeze()
        });
        if length + self.row.head.room() > CHUNK {
            return Body::Pieces(pieces);
        }
        // All of it is one piece.
        Body::Full(pieces.next().unwrap_or_default())
    }

    /// A watch event for one watcher.
    ///
    /// # Errors
    /// When the stored bytes are no object.
    pub fn event(&mut self, kind: EventType, entry: &Entry, revision: u64) -> Result<Bytes, Status> {
        let object = match self.accepted.transform {
            Transform::None => self.json(&entry.value, revision)?,
            Transform::Partial(beta) => to_json(&partial(&self.decode(&entry.value, revision)?, beta))?,
            Transform::Table(beta) => {
                let object = self.decode(&entry.value, revision)?;
                let mut table = table::of_object(&self.row.kind, &object, self.include, beta);
                if std::mem::replace(&mut self.columns_sent, true) {
                    table["columnDefinitions"] = Value::Null;
                }
                to_json(&table)?
            }
        };
        Ok(frame(kind.name(), &object))
    }

    /// A watch event whose bytes are shared with all watchers that want the same form.
    ///
    /// # Errors
    /// When the stored bytes are no object.
    pub fn shared_event(&mut self, event: &Event, kind: EventType, entry: &Entry) -> Result<Bytes, Status> {
        let form = match self.accepted.transform {
            Transform::None => 0,
            Transform::Partial(false) => 1,
            Transform::Partial(true) => 2,
            // The first Table of a watch has columns, and rows show ages.
            Transform::Table(_) => return self.event(kind, entry, event.revision),
        };
        let key = (Arc::as_ptr(&self.row) as usize, form, kind);
        event.frame(key, || self.event(kind, entry, event.revision))
    }

    /// A bookmark; `initial` marks the end of the initial events.
    pub fn bookmark(&self, revision: u64, initial: bool) -> Bytes {
        let kind = &self.row.kind;
        let mut meta = json!({"resourceVersion": revision.to_string()});
        if initial {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.accepted.transform {
            Transform::Partial(beta) => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": meta_version(beta), "metadata": meta})
            }
            Transform::Table(beta) => json!({"kind": "Table", "apiVersion": meta_version(beta),
                "metadata": {"resourceVersion": revision.to_string()}, "columnDefinitions": null,
                "rows": [{"cells": [], "object": {"kind": "PartialObjectMetadata",
                    "apiVersion": meta_version(beta), "metadata": meta}}]}),
            Transform::None => {
                json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": meta})
            }
        };
        frame("BOOKMARK", object.to_string().as_bytes())
    }

    /// The event that ends a watch with an error.
    pub fn error(&self, status: &Status) -> Bytes {
        frame("ERROR", status.to_value().to_string().as_bytes())
    }
}

fn frame(kind: &str, object: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(object.len() + kind.len() + 24);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
    out.freeze()
}

fn meta_version(beta: bool) -> &'static str {
    if beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" }
}

/// The metadata of an object, alone.
pub fn partial(object: &Value, beta: bool) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": meta_version(beta),
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({}))})
}

fn to_json(value: &Value) -> Result<Bytes, Status> {
    serde_json::to_vec(value).map(Bytes::from).map_err(Status::internal)
}

/// Encodes a value.
///
/// # Errors
/// When it cannot be written as YAML.
pub fn encode(value: &Value, encoding: Encoding) -> Result<Bytes, Status> {
    match encoding {
        Encoding::Json => to_json(value),
        Encoding::Yaml => serde_yaml_ng::to_string(value).map(Bytes::from).map_err(Status::internal),
    }
}

/// An answer of one value.
pub fn value(code: u16, value: &Value, encoding: Encoding) -> Response<Body> {
    match encode(value, encoding) {
        Ok(bytes) => bytes_answer(code, bytes, encoding.content_type()),
        Err(status) => self::status(&status, Encoding::Json),
    }
}

/// The answer of a failure.
pub fn status(status: &Status, encoding: Encoding) -> Response<Body> {
    let mut response = value(status.code, &status.to_value(), encoding);
    if let Some(seconds) = status.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0) {
        response.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// An answer of bytes.
pub fn bytes_answer(code: u16, bytes: impl Into<Body>, content_type: &'static str) -> Response<Body> {
    let mut response = Response::new(bytes.into());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A text answer as Go's `http.Error` gives it.
pub fn text(code: u16, text: impl Into<String>) -> Response<Body> {
    let mut response = bytes_answer(code, text.into(), "text/plain; charset=utf-8");
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// The `Warning:` header of a text.
pub fn warning(text: &str) -> Option<HeaderValue> {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let quoted = clean.replace('\\', "\\\\").replace('"', "\\\"");
    HeaderValue::from_str(&format!("299 - \"{quoted}\"")).ok()
}

/// Compresses a large answer for a client that takes gzip.
pub fn gzip(response: &mut Response<Body>, accept_encoding: Option<&str>) {
    let wanted = accept_encoding
        .is_some_and(|a| a.split(',').any(|e| e.split(';').next().is_some_and(|n| n.trim() == "gzip")));
    if !wanted {
        return;
    }
    let size = match response.body() {
        Body::Full(b) => b.len(),
        Body::Chunks(c) => c.iter().map(Bytes::len).sum(),
        Body::Pieces(p) => usize::try_from(p.left()).unwrap_or(usize::MAX),
        Body::Empty | Body::Stream(_) => return,
    };
    if size < GZIP_FROM {
        return;
    }
    let mut encoder =
        flate2::write::GzEncoder::new(Vec::with_capacity(size / 4), flate2::Compression::new(1));
    let written = match std::mem::take(response.body_mut()) {
        Body::Full(b) => encoder.write_all(&b),
        Body::Chunks(c) => c.iter().try_for_each(|b| encoder.write_all(b)),
        Body::Pieces(mut p) => p.try_for_each(|b| encoder.write_all(&b)),
        Body::Empty | Body::Stream(_) => Ok(()),
    };
    // Writing into memory cannot fail.
    if let Ok(bytes) = written.and_then(|()| encoder.finish()) {
        *response.body_mut() = Body::from(bytes);
        let headers = response.headers_mut();
        headers.insert(http::header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(http::header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
}

/// Kind and apiVersion of a decoded object, for routing what came in a body.
pub fn type_of(object: &Value) -> (&str, &str) {
    (object.api_version(), object.kind())
}
