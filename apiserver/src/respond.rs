//! From an [`Answer`] to bytes: JSON, YAML, protobuf, Table and PartialObjectMetadata, lists and watch events.
//!
//! The ordinary case joins slices of stored bytes. Only other forms, and versions that differ in more than their
//! name, decode objects.

use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use hawser_api::object::ObjectExt as _;
use hawser_api::protobuf::{self, EncodeError};
use hawser_api::schema;
use hawser_api::status::Status;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::body::{Body, Pieces};
use crate::cache::entry::Entry;
use crate::cache::ring::{Event, EventType, Form};
use crate::convert;
use crate::kinds::Row;
use crate::negotiate::{Accepted, Encoding, Transform};
use crate::registry::list::Page;
use crate::{pretty, table};

/// Bytes of one piece of a list: small enough to stay in the processor's cache until it is encrypted.
const CHUNK: usize = 64 << 10;
/// What closes a list.
const LIST_END: &[u8] = b"]}";
/// Answers larger than this are compressed for clients that take gzip (as kube-apiserver).
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
        match (self.accepted.transform, self.accepted.encoding) {
            (Transform::None, Encoding::Json) => self.json(value, revision),
            (Transform::None, Encoding::Protobuf) => Ok(self.in_envelope(&self.message(value, revision)?)),
            _ => self.object(self.decode(value, revision)?),
        }
    }

    /// One object of the cache as the body of an answer.
    ///
    /// # Errors
    /// When the stored bytes are no object.
    pub fn entry(&self, entry: &Entry) -> Result<Bytes, Status> {
        if self.accepted.transform == Transform::None && self.accepted.encoding == Encoding::Protobuf {
            return Ok(self.in_envelope(&self.entry_message(entry)?));
        }
        self.stored(&entry.value, entry.revision)
    }

    /// A stored object as a protobuf message in the row's version.
    fn message(&self, value: &[u8], revision: u64) -> Result<Bytes, Status> {
        let kind = &self.row.kind;
        let ty = schema::of(kind).ok_or_else(Status::not_acceptable)?;
        let json = self.json(value, revision)?;
        protobuf::message_of_json(ty, &json).map(Bytes::from).map_err(Status::internal)
    }

    /// The message of an object of the cache, made once for all who ask.
    fn entry_message(&self, entry: &Entry) -> Result<Bytes, Status> {
        if !self.row.is_stored_version() {
            return self.message(&entry.value, entry.revision);
        }
        if let Some(known) = entry.message.get() {
            return Ok(known.clone());
        }
        let made = self.message(&entry.value, entry.revision)?;
        Ok(entry.message.get_or_init(|| made).clone())
    }

    fn in_envelope(&self, message: &[u8]) -> Bytes {
        let kind = &self.row.kind;
        protobuf::envelope(&kind.api_version(), &kind.kind, message).into()
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
        match (self.accepted.transform, self.accepted.encoding) {
            (Transform::None, Encoding::Json) if self.direct() => return Ok(self.list_of_bytes(page)),
            (Transform::None, Encoding::Protobuf) => return self.list_of_messages(page),
            _ => {}
        }
        let mut objects = Vec::with_capacity(page.entries.len());
        for entry in &page.entries {
            objects.push(self.decode(&entry.value, entry.revision)?);
        }
        self.objects(objects, list_meta(&page)).map(Body::Full)
    }

    /// Joins the messages of a page's objects in one envelope.
    fn list_of_messages(&self, page: Page) -> Result<Body, Status> {
        let kind = &self.row.kind;
        let mut head = Vec::new();
        let meta = Value::Object(list_meta(&page));
        protobuf::list_meta(&meta, &mut head).map_err(Status::internal)?;
        let mut chunks = VecDeque::new();
        let mut out = head;
        let mut total = 0;
        for entry in &page.entries {
            let message = self.entry_message(entry)?;
            protobuf::item_head(message.len(), &mut out);
            out.extend_from_slice(&message);
            if out.len() >= CHUNK {
                total += out.len();
                chunks.push_back(Bytes::from(std::mem::replace(&mut out, Vec::with_capacity(CHUNK))));
            }
        }
        total += out.len();
        chunks.push_back(out.into());
        let envelope = protobuf::envelope_head(&kind.api_version(), &kind.list_kind, total);
        chunks.push_front(envelope.into());
        Ok(Body::Chunks(chunks))
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
        if self.accepted.encoding == Encoding::Protobuf {
            return self.protobuf_event(kind, entry, revision);
        }
        let object = match self.accepted.transform {
            Transform::None if self.direct() => {
                let tail = self.tail(&entry.value);
                let room = self.row.head.room() + tail.len();
                return Ok(frame(kind.name(), room, |out| self.row.head.put_object(out, revision, tail)));
            }
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
        Ok(frame(kind.name(), object.len(), |out| out.put_slice(&object)))
    }

    fn protobuf_event(&self, kind: EventType, entry: &Entry, revision: u64) -> Result<Bytes, Status> {
        let object = match self.accepted.transform {
            // The last state of a deleted object has the revision of the deletion.
            Transform::None if revision == entry.revision => self.in_envelope(&self.entry_message(entry)?),
            Transform::None => self.in_envelope(&self.message(&entry.value, revision)?),
            Transform::Partial(_) | Transform::Table(_) => {
                encode(&self.transform(self.decode(&entry.value, revision)?), Encoding::Protobuf)?
            }
        };
        Ok(protobuf::watch_frame(kind.name(), &object).into())
    }

    /// A watch event whose bytes are shared with all watchers that want the same form.
    ///
    /// # Errors
    /// When the stored bytes are no object.
    pub fn shared_event(&mut self, event: &Event, kind: EventType, entry: &Entry) -> Result<Bytes, Status> {
        let form = match self.accepted.transform {
            // The first Table of a watch has columns, and rows show ages.
            Transform::Table(_) if !self.columns_sent || !event.is_recent() => None,
            Transform::Table(beta) => {
                let form = 6 + 2 * self.include as u8 + u8::from(beta);
                Some((self.row.number, form + if self.is_protobuf() { 6 } else { 0 }))
            }
            Transform::None | Transform::Partial(_) => self.form(),
        };
        match form {
            Some(form) => event.frame((form, kind), || self.event(kind, entry, event.revision)),
            None => self.event(kind, entry, event.revision),
        }
    }

    /// The form of watch events that look the same whenever they are rendered.
    pub fn form(&self) -> Option<Form> {
        let form = match self.accepted.transform {
            Transform::None => 0,
            Transform::Partial(false) => 1,
            Transform::Partial(true) => 2,
            Transform::Table(_) => return None,
        };
        Some((self.row.number, if self.is_protobuf() { form + 3 } else { form }))
    }

    fn is_protobuf(&self) -> bool {
        self.accepted.encoding == Encoding::Protobuf
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
        self.framed("BOOKMARK", &object)
    }

    /// The event that ends a watch with an error.
    pub fn error(&self, status: &Status) -> Bytes {
        self.framed("ERROR", &status.to_value())
    }

    fn framed(&self, kind: &str, object: &Value) -> Bytes {
        if self.accepted.encoding == Encoding::Protobuf
            && let Ok(object) = protobuf::encode(object)
        {
            return protobuf::watch_frame(kind, &object).into();
        }
        let object = object.to_string();
        frame(kind, object.len(), |out| out.put_slice(object.as_bytes()))
    }
}

fn list_meta(page: &Page) -> Map<String, Value> {
    let mut meta = Map::new();
    meta.insert("resourceVersion".into(), page.revision.to_string().into());
    if let Some(next) = &page.next {
        meta.insert("continue".into(), next.as_str().into());
    }
    if let Some(remaining) = page.remaining {
        meta.insert("remainingItemCount".into(), remaining.into());
    }
    meta
}

/// A watch event around an object of about `room` bytes that `put` writes.
fn frame(kind: &str, room: usize, put: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::with_capacity(room + kind.len() + 24);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    put(&mut out);
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
/// When it cannot be written as YAML; 406 when its kind has no protobuf message.
pub fn encode(value: &Value, encoding: Encoding) -> Result<Bytes, Status> {
    match encoding {
        Encoding::Protobuf => match protobuf::encode(value) {
            Ok(bytes) => Ok(bytes.into()),
            Err(EncodeError::UnknownKind { .. }) => Err(Status::not_acceptable()),
            Err(error @ EncodeError::Json(_)) => Err(Status::internal(error)),
        },
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

/// Breaks JSON into lines of two spaces' indent, for people.
pub fn indent(response: &mut Response<Body>) {
    if response.headers().get(CONTENT_TYPE).is_none_or(|t| t != "application/json") {
        return;
    }
    let pieces: Vec<Bytes> = match std::mem::take(response.body_mut()) {
        Body::Full(bytes) => vec![bytes],
        Body::Chunks(chunks) => chunks.into(),
        Body::Pieces(pieces) => pieces.collect(),
        other @ (Body::Empty | Body::Stream(_)) => {
            *response.body_mut() = other;
            return;
        }
    };
    *response.body_mut() = Body::from(pretty::indent(&pieces));
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
    if size <= GZIP_FROM {
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
