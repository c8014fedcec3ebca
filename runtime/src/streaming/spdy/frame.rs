//! Frames (sections 2.2 and 2.6). Pure: bytes are pushed in, frames are taken out, and nothing waits.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::Headers;
use super::dictionary::DICTIONARY;

/// The longest payload of a control frame, in bytes. Kubernetes' have a few dozen.
pub const MAX_CONTROL: usize = 16 * 1024;
/// The longest header block when it is unpacked, in bytes.
pub const MAX_HEADERS: usize = 32 * 1024;
/// The most data a frame is given out with at once, in bytes; longer ones come in pieces.
pub const MAX_PIECE: usize = 32 * 1024;

const FIN: u8 = 1;
const UNIDIRECTIONAL: u8 = 2;
const VERSION: u16 = 3;
/// SETTINGS_INITIAL_WINDOW_SIZE.
const INITIAL_WINDOW: u32 = 7;

/// One frame, or a piece of the data of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream { id: u32, headers: Headers, fin: bool, unidirectional: bool },
    /// Accepts a stream.
    SynReply { id: u32, headers: Headers, fin: bool },
    /// Ends a stream at once, both ways.
    RstStream { id: u32, status: u32 },
    /// Settings; of them, the window that streams begin with.
    Settings { initial_window: Option<u32> },
    /// To be sent back if it has the other side's parity.
    Ping { id: u32 },
    /// No new streams; `last` is the last that was taken.
    GoAway { last: u32, status: u32 },
    /// More headers of a stream.
    Headers { id: u32, headers: Headers, fin: bool },
    /// That many more bytes may be sent; stream 0 is the whole connection.
    WindowUpdate { id: u32, delta: u32 },
    /// Bytes of a stream; `fin` with the last of the last frame.
    Data { id: u32, data: Bytes, fin: bool },
    /// A control frame of a type that is not known; to be passed over.
    Unknown { kind: u16 },
}

/// Why bytes are no frames. The connection cannot go on after any of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Another version of the protocol.
    #[error("SPDY version {0}")]
    Version(u16),
    /// Longer than allowed.
    #[error("a control frame of {0} bytes")]
    TooLong(usize),
    /// Too short, or its parts do not fit.
    #[error("a malformed control frame of type {0}")]
    Malformed(u16),
    /// Headers that cannot be unpacked.
    #[error("a header block that cannot be unpacked")]
    Compression,
    /// Headers that are too long.
    #[error("a header block of more than {MAX_HEADERS} bytes")]
    HeadersTooLong,
}

/// Takes frames out of bytes.
pub struct Decoder {
    buffer: BytesMut,
    /// The data frame being read: stream, its last flag, bytes to come.
    data: Option<(u32, bool, usize)>,
    inflate: Decompress,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { buffer: BytesMut::new(), data: None, inflate: Decompress::new(true) }
    }
}

impl Decoder {
    /// Room for bytes off the wire. What is not a whole frame yet stays in it: [`Decoder::next`] is to be called until
    /// it has none before more is read.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next frame, once its bytes are there.
    ///
    /// # Errors
    /// See [`FrameError`]; the decoder is of no use after one.
    pub fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some((id, last, left)) = self.data {
            if left > 0 && self.buffer.is_empty() {
                return Ok(None);
            }
            let piece = left.min(self.buffer.len()).min(MAX_PIECE);
            let data = self.buffer.split_to(piece).freeze();
            let done = piece == left;
            self.data = (!done).then_some((id, last, left - piece));
            return Ok(Some(Frame::Data { id, data, fin: done && last }));
        }
        let Some(head) = self.buffer.first_chunk::<8>() else { return Ok(None) };
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let (flags, length) = (head[4], u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize);
        if first >> 31 == 0 {
            self.buffer.advance(8);
            self.data = Some((first, flags & FIN != 0, length));
            return self.next();
        }
        let (version, kind) = ((first >> 16) as u16 & 0x7fff, first as u16);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if length > MAX_CONTROL {
            return Err(FrameError::TooLong(length));
        }
        if self.buffer.len() < 8 + length {
            return Ok(None);
        }
        self.buffer.advance(8);
        let payload = self.buffer.split_to(length).freeze();
        self.control(kind, flags, payload).map(Some)
    }

    fn control(&mut self, kind: u16, flags: u8, mut payload: Bytes) -> Result<Frame, FrameError> {
        let fin = flags & FIN != 0;
        let word = |payload: &mut Bytes| payload.try_get_u32().map_err(|_| FrameError::Malformed(kind));
        let stream = |word: u32| word & 0x7fff_ffff;
        Ok(match kind {
            1 => {
                let id = stream(word(&mut payload)?);
                // The stream it belongs to, and its priority: Kubernetes' streams have neither.
                word(&mut payload)?;
                payload.try_get_u16().map_err(|_| FrameError::Malformed(kind))?;
                let headers = self.headers(&payload)?;
                Frame::SynStream { id, headers, fin, unidirectional: flags & UNIDIRECTIONAL != 0 }
            }
            2 => {
                let id = stream(word(&mut payload)?);
                Frame::SynReply { id, headers: self.headers(&payload)?, fin }
            }
            3 => Frame::RstStream { id: stream(word(&mut payload)?), status: word(&mut payload)? },
            4 => {
                let mut initial_window = None;
                for _ in 0..word(&mut payload)? {
                    let (id, value) = (word(&mut payload)?, word(&mut payload)?);
                    if id & 0x00ff_ffff == INITIAL_WINDOW {
                        initial_window = Some(value & 0x7fff_ffff);
                    }
                }
                Frame::Settings { initial_window }
            }
            6 => Frame::Ping { id: word(&mut payload)? },
            7 => Frame::GoAway { last: stream(word(&mut payload)?), status: word(&mut payload)? },
            8 => {
                let id = stream(word(&mut payload)?);
                Frame::Headers { id, headers: self.headers(&payload)?, fin }
            }
            9 => Frame::WindowUpdate { id: stream(word(&mut payload)?), delta: stream(word(&mut payload)?) },
            _ => Frame::Unknown { kind },
        })
    }

    /// Unpacks a header block. All blocks of a connection are one zlib stream.
    fn headers(&mut self, mut packed: &[u8]) -> Result<Headers, FrameError> {
        let mut out: Vec<u8> = Vec::with_capacity(1024);
        loop {
            if out.len() == out.capacity() {
                if out.len() > MAX_HEADERS {
                    return Err(FrameError::HeadersTooLong);
                }
                out.reserve(1024);
            }
            let (had, made) = (self.inflate.total_in(), out.len());
            let result = self.inflate.decompress_vec(packed, &mut out, FlushDecompress::Sync);
            let taken =
                usize::try_from(self.inflate.total_in() - had).map_err(|_| FrameError::Compression)?;
            packed = packed.get(taken..).ok_or(FrameError::Compression)?;
            match result {
                Ok(_) if packed.is_empty() && out.len() < out.capacity() => break,
                // Neither input nor output moved: what is left is no deflate stream.
                Ok(_) if taken == 0 && out.len() == made && out.len() < out.capacity() => {
                    return Err(FrameError::Compression);
                }
                Ok(_) => {}
                Err(e) if e.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(&DICTIONARY).map_err(|_| FrameError::Compression)?;
                }
                Err(_) => return Err(FrameError::Compression),
            }
        }
        if out.len() > MAX_HEADERS {
            return Err(FrameError::HeadersTooLong);
        }
        read_headers(&out).ok_or(FrameError::Compression)
    }
}

fn read_headers(mut block: &[u8]) -> Option<Headers> {
    let text = |block: &mut &[u8]| {
        let length = usize::try_from(block.try_get_u32().ok()?).ok()?;
        let (text, rest) = block.split_at_checked(length)?;
        *block = rest;
        Some(String::from_utf8_lossy(text).into_owned())
    };
    let count = block.try_get_u32().ok()?;
    (0..count).map(|_| Some((text(&mut block)?, text(&mut block)?))).collect()
}

/// Writes frames.
pub struct Encoder {
    deflate: Compress,
}

impl Default for Encoder {
    fn default() -> Self {
        let mut deflate = Compress::new(Compression::default(), true);
        // A fresh stream takes any dictionary; without one, peers that have it read the stream just as well.
        let _ = deflate.set_dictionary(&DICTIONARY);
        Self { deflate }
    }
}

impl Encoder {
    /// Appends a frame. Data of more than 2^24-1 bytes is the caller's to split.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        let fin_flag = |fin: &bool| if *fin { FIN } else { 0 };
        let (kind, flags, payload): (u16, u8, Vec<u8>) = match frame {
            Frame::Data { id, data, fin } => {
                out.reserve(8 + data.len());
                out.put_u32(*id);
                out.put_u32((u32::from(fin_flag(fin)) << 24) | (data.len() as u32 & 0x00ff_ffff));
                out.put_slice(data);
                return;
            }
            Frame::SynStream { id, headers, fin, unidirectional } => {
                let mut payload = Vec::new();
                payload.put_u32(*id);
                payload.put_u32(0);
                payload.put_u16(0);
                payload.extend(self.headers(headers));
                (1, fin_flag(fin) | if *unidirectional { UNIDIRECTIONAL } else { 0 }, payload)
            }
            Frame::SynReply { id, headers, fin } => (2, fin_flag(fin), self.stream_headers(*id, headers)),
            Frame::RstStream { id, status } => (3, 0, words(&[*id, *status])),
            Frame::Settings { initial_window: None } => (4, 0, words(&[0])),
            Frame::Settings { initial_window: Some(window) } => (4, 0, words(&[1, INITIAL_WINDOW, *window])),
            Frame::Ping { id } => (6, 0, words(&[*id])),
            Frame::GoAway { last, status } => (7, 0, words(&[*last, *status])),
            Frame::Headers { id, headers, fin } => (8, fin_flag(fin), self.stream_headers(*id, headers)),
            Frame::WindowUpdate { id, delta } => (9, 0, words(&[*id, *delta])),
            Frame::Unknown { kind } => (*kind, 0, Vec::new()),
        };
        out.put_u16(0x8000 | VERSION);
        out.put_u16(kind);
        out.put_u32((u32::from(flags) << 24) | (payload.len() as u32 & 0x00ff_ffff));
        out.put_slice(&payload);
    }

    fn stream_headers(&mut self, id: u32, headers: &Headers) -> Vec<u8> {
        let mut payload = words(&[id]);
        payload.extend(self.headers(headers));
        payload
    }

    fn headers(&mut self, headers: &Headers) -> Vec<u8> {
        let mut block = words(&[headers.len() as u32]);
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.put_u32(text.len() as u32);
            block.put_slice(text.as_bytes());
        }
        let mut packed = Vec::with_capacity(block.len() + 64);
        let begun = self.deflate.total_in();
        loop {
            let done = usize::try_from(self.deflate.total_in() - begun).unwrap_or(block.len());
            let result = self.deflate.compress_vec(&block[done..], &mut packed, FlushCompress::Sync);
            let taken = usize::try_from(self.deflate.total_in() - begun).unwrap_or(block.len());
            // A full output may hide more of the flush; an error of a live deflate stream means no progress.
            if result.is_err() || (taken == block.len() && packed.len() < packed.capacity()) {
                return packed;
            }
            packed.reserve(256);
        }
    }
}

fn words(all: &[u32]) -> Vec<u8> {
    all.iter().flat_map(|w| w.to_be_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers() -> impl Strategy<Value = Headers> {
        proptest::collection::vec(("[a-z-]{1,20}", "[ -~]{0,200}"), 0..6)
    }

    fn id() -> impl Strategy<Value = u32> {
        0..=0x7fff_ffffu32
    }

    fn frames() -> impl Strategy<Value = Frame> {
        prop_oneof![
            (id(), headers(), any::<bool>(), any::<bool>()).prop_map(|(id, headers, fin, unidirectional)| {
                Frame::SynStream { id, headers, fin, unidirectional }
            }),
            (id(), headers(), any::<bool>()).prop_map(|(id, headers, fin)| Frame::SynReply {
                id,
                headers,
                fin
            }),
            (id(), headers(), any::<bool>()).prop_map(|(id, headers, fin)| Frame::Headers {
                id,
                headers,
                fin
            }),
            (id(), 1..12u32).prop_map(|(id, status)| Frame::RstStream { id, status }),
            proptest::option::of(id()).prop_map(|initial_window| Frame::Settings { initial_window }),
            any::<u32>().prop_map(|id| Frame::Ping { id }),
            (id(), 0..3u32).prop_map(|(last, status)| Frame::GoAway { last, status }),
            (id(), id()).prop_map(|(id, delta)| Frame::WindowUpdate { id, delta }),
            (id(), proptest::collection::vec(any::<u8>(), 0..300), any::<bool>())
                .prop_map(|(id, data, fin)| Frame::Data { id, data: data.into(), fin }),
        ]
    }

    /// What a decoder makes of bytes that come in pieces, with the pieces of data put together again.
    fn decode(bytes: &[u8], piece: usize) -> Result<Vec<Frame>, FrameError> {
        let mut decoder = Decoder::default();
        let mut out: Vec<Frame> = Vec::new();
        let mut open = false;
        for chunk in bytes.chunks(piece) {
            decoder.buffer().extend_from_slice(chunk);
            while let Some(frame) = decoder.next()? {
                let more = decoder.data.is_some();
                match (out.last_mut(), frame) {
                    (Some(Frame::Data { data, fin, .. }), Frame::Data { data: piece, fin: last, .. })
                        if open =>
                    {
                        *data = [&data[..], &piece[..]].concat().into();
                        *fin = last;
                    }
                    (_, frame) => out.push(frame),
                }
                open = more;
            }
        }
        Ok(out)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(all in proptest::collection::vec(frames(), 1..20), piece in 1..2000usize) {
            let mut encoder = Encoder::default();
            let mut bytes = BytesMut::new();
            for frame in &all {
                encoder.encode(frame, &mut bytes);
            }
            prop_assert_eq!(decode(&bytes, piece), Ok(all));
        }

        #[test]
        fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..4000), piece in 1..100usize) {
            let _ = decode(&bytes, piece);
        }

        /// Damage to good frames gets further than noise does.
        #[test]
        fn no_damage_breaks_it(
            all in proptest::collection::vec(frames(), 1..8),
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut encoder = Encoder::default();
            let mut bytes = BytesMut::new();
            for frame in &all {
                encoder.encode(frame, &mut bytes);
            }
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            let _ = decode(&bytes, 64);
        }
    }

    #[test]
    fn headers_do_not_blow_up() {
        // A block that unpacks to far more than it has: zeros.
        let mut encoder = Encoder::default();
        let long = vec![("a".to_owned(), "0".repeat(200_000))];
        let mut bytes = BytesMut::new();
        encoder.encode(
            &Frame::SynStream { id: 1, headers: long, fin: false, unidirectional: false },
            &mut bytes,
        );
        assert!(bytes.len() < MAX_CONTROL, "{}", bytes.len());
        assert_eq!(decode(&bytes, 4096), Err(FrameError::HeadersTooLong));
    }

    #[test]
    fn limits() {
        assert_eq!(decode(&[0x80, 2, 0, 1, 0, 0, 0, 0], 8), Err(FrameError::Version(2)));
        assert_eq!(decode(&[0x80, 3, 0, 1, 0, 1, 0, 0], 8), Err(FrameError::TooLong(65536)));
        assert_eq!(decode(&[0x80, 3, 0, 3, 0, 0, 0, 2, 0, 0], 8), Err(FrameError::Malformed(3)));
        assert_eq!(decode(&[0x80, 3, 0, 99, 0, 0, 0, 0], 8), Ok(vec![Frame::Unknown { kind: 99 }]));
        // Data is given out as it comes: no frame is held whole.
        let mut decoder = Decoder::default();
        decoder.buffer().extend_from_slice(&[0, 0, 0, 1, 1, 0xff, 0xff, 0xff]);
        decoder.buffer().extend_from_slice(&[7; MAX_PIECE + 1]);
        let mut lengths = Vec::new();
        while let Ok(Some(Frame::Data { data, fin: false, .. })) = decoder.next() {
            lengths.push(data.len());
        }
        assert_eq!(lengths, [MAX_PIECE, 1]);
    }
}
