//! The one body type of requests and answers inside the server.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

/// Errors of bodies.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

type Dynamic = Pin<Box<dyn http_body::Body<Data = Bytes, Error = BoxError> + Send>>;

/// A request's or an answer's body. The buffers of `Chunks` are shared with the watch cache and never copied
/// before the socket.
#[derive(Default)]
pub enum Body {
    /// No bytes.
    #[default]
    Empty,
    /// One buffer.
    Full(Bytes),
    /// Several buffers, sent in order with a known length.
    Chunks(VecDeque<Bytes>),
    /// Buffers that are made as the client takes them, of a length that is known.
    Pieces(Pieces),
    /// Whatever comes.
    Stream(Dynamic),
}

/// Makes an answer piece by piece, so that it is never in memory as a whole.
pub struct Pieces {
    left: u64,
    next: Box<dyn FnMut() -> Bytes + Send>,
}

impl Pieces {
    /// An answer of `length` bytes; `next` makes the piece that follows, which is not empty before the end.
    pub fn new(length: u64, next: impl FnMut() -> Bytes + Send + 'static) -> Self {
        Self { left: length, next: Box::new(next) }
    }

    /// Bytes that are still to come.
    pub fn left(&self) -> u64 {
        self.left
    }
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.left == 0 {
            return None;
        }
        let piece = (self.next)();
        // A piece that is empty too early ends the answer short of its length, which the client notices.
        self.left = if piece.is_empty() { 0 } else { self.left.saturating_sub(piece.len() as u64) };
        Some(piece).filter(|p| !p.is_empty())
    }
}

/// A request body is longer than allowed.
#[derive(Debug, thiserror::Error)]
#[error("request body is larger than {limit} bytes")]
pub struct TooLarge {
    /// The limit in bytes.
    pub limit: usize,
}

impl Body {
    /// Wraps any body.
    pub fn new<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if body.is_end_stream() {
            return Self::Empty;
        }
        Self::Stream(Box::pin(body.map_err(Into::into)))
    }

    /// Reads everything, at most `limit` bytes.
    ///
    /// # Errors
    /// [`TooLarge`] inside the box, or the transport's error.
    pub async fn collect(self, limit: usize) -> Result<Bytes, BoxError> {
        match self {
            Self::Empty => Ok(Bytes::new()),
            Self::Full(b) if b.len() <= limit => Ok(b),
            Self::Full(_) => Err(Box::new(TooLarge { limit })),
            other => {
                let mut body = std::pin::pin!(other);
                let mut first: Option<Bytes> = None;
                let mut rest: Vec<u8> = Vec::new();
                while let Some(frame) = body.as_mut().frame().await {
                    let Ok(data) = frame?.into_data() else { continue };
                    let have = first.as_ref().map_or(0, Bytes::len) + rest.len();
                    if have + data.len() > limit {
                        return Err(Box::new(TooLarge { limit }));
                    }
                    match &first {
                        None => first = Some(data),
                        Some(f) if rest.is_empty() => {
                            rest.reserve(f.len() + data.len());
                            rest.extend_from_slice(f);
                            first = Some(Bytes::new());
                            rest.extend_from_slice(&data);
                        }
                        Some(_) => rest.extend_from_slice(&data),
                    }
                }
                Ok(if rest.is_empty() { first.unwrap_or_default() } else { rest.into() })
            }
        }
    }
}

impl From<Bytes> for Body {
    fn from(b: Bytes) -> Self {
        Self::Full(b)
    }
}

impl From<String> for Body {
    fn from(s: String) -> Self {
        Self::Full(s.into())
    }
}

impl From<Vec<u8>> for Body {
    fn from(v: Vec<u8>) -> Self {
        Self::Full(v.into())
    }
}

impl From<&'static str> for Body {
    fn from(s: &'static str) -> Self {
        Self::Full(Bytes::from_static(s.as_bytes()))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Full(_) => match std::mem::take(&mut *self) {
                Self::Full(b) if !b.is_empty() => Poll::Ready(Some(Ok(Frame::data(b)))),
                _ => Poll::Ready(None),
            },
            Self::Chunks(chunks) => Poll::Ready(chunks.pop_front().map(|b| Ok(Frame::data(b)))),
            Self::Pieces(pieces) => Poll::Ready(pieces.next().map(|b| Ok(Frame::data(b)))),
            Self::Stream(inner) => inner.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(b) => b.is_empty(),
            Self::Chunks(c) => c.is_empty(),
            Self::Pieces(p) => p.left() == 0,
            Self::Stream(s) => s.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(b) => SizeHint::with_exact(b.len() as u64),
            Self::Chunks(c) => SizeHint::with_exact(c.iter().map(|b| b.len() as u64).sum()),
            Self::Pieces(p) => SizeHint::with_exact(p.left()),
            Self::Stream(s) => s.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(parts: &[&'static str]) -> Body {
        Body::Chunks(parts.iter().map(|p| Bytes::from_static(p.as_bytes())).collect())
    }

    #[tokio::test]
    async fn collect_joins_chunks_and_keeps_the_limit() {
        for (parts, limit, want) in [
            (&["ab", "cd", "ef"][..], 6, Some("abcdef")),
            (&["ab", "cd", "ef"][..], 5, None),
            (&["abc"][..], 3, Some("abc")),
            (&[][..], 0, Some("")),
        ] {
            let got = chunks(parts).collect(limit).await;
            match want {
                Some(text) => assert_eq!(got.expect("fits"), text),
                None => assert!(got.expect_err("too large").is::<TooLarge>()),
            }
        }
    }
}
