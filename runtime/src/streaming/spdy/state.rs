//! Which streams are open, and what frames mean for them (section 2.3). Pure.

use std::collections::HashMap;

use bytes::Bytes;

use super::frame::Frame;
use super::{Headers, reset};

/// Streams that may be open at once. A port-forward needs two for each connection.
pub const MAX_STREAMS: usize = 1024;

/// A side of a connection: the client's streams and pings have odd numbers, the server's even ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The side that connected.
    Client,
    /// The side that accepted.
    Server,
}

/// What a frame means for those who use the streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The peer opens a stream; `fin`: it will send nothing on it.
    Open { id: u32, headers: Headers, fin: bool },
    /// Data came; `fin`: the last.
    Data { id: u32, data: Bytes, fin: bool },
    /// The stream is gone, both ways.
    Reset { id: u32 },
    /// More may be sent; on all streams together for 0.
    Window { id: u32, delta: u32 },
    /// The window that streams of this side begin with is another.
    InitialWindow(u32),
    /// The peer ends the connection.
    GoAway,
}

/// What is left of a stream.
#[derive(Debug, Clone, Copy)]
struct Halves {
    incoming: bool,
    outgoing: bool,
}

/// The streams of a connection.
#[derive(Debug)]
pub struct Streams {
    role: Role,
    open: HashMap<u32, Halves>,
    last_theirs: u32,
    next_own: u32,
}

impl Streams {
    /// None.
    pub fn new(role: Role) -> Self {
        let next_own = if role == Role::Client { 1 } else { 2 };
        Self { role, open: HashMap::new(), last_theirs: 0, next_own }
    }

    /// Takes a frame: what it means, and what is to be answered.
    pub fn receive(&mut self, frame: Frame) -> (Option<Event>, Option<Frame>) {
        let rejected = |id, status| (None, Some(Frame::RstStream { id, status }));
        match frame {
            Frame::SynStream { id, headers, fin, unidirectional } => {
                let theirs = id % 2 == u32::from(self.role == Role::Server);
                if !theirs || id <= self.last_theirs {
                    self.open.remove(&id);
                    return rejected(id, reset::PROTOCOL_ERROR);
                }
                self.last_theirs = id;
                if self.open.len() >= MAX_STREAMS {
                    return rejected(id, reset::REFUSED_STREAM);
                }
                self.open.insert(id, Halves { incoming: !fin, outgoing: !unidirectional });
                self.drop_if_done(id);
                (Some(Event::Open { id, headers, fin }), None)
            }
            Frame::Data { id, data, fin } => match self.open.get_mut(&id) {
                Some(halves) if halves.incoming => {
                    halves.incoming = !fin;
                    self.drop_if_done(id);
                    (Some(Event::Data { id, data, fin }), None)
                }
                Some(_) => {
                    self.open.remove(&id);
                    let answer = Frame::RstStream { id, status: reset::PROTOCOL_ERROR };
                    (Some(Event::Reset { id }), Some(answer))
                }
                // What was under way when the stream was reset; a reset answers it once, not for every piece.
                None if fin => rejected(id, reset::INVALID_STREAM),
                None => (None, None),
            },
            Frame::SynReply { id, fin, .. } | Frame::Headers { id, fin, .. } => {
                let live = self.open.get(&id).is_some_and(|h| h.incoming);
                if !(fin && live) {
                    return (None, None);
                }
                self.receive(Frame::Data { id, data: Bytes::new(), fin: true })
            }
            Frame::RstStream { id, .. } => (self.open.remove(&id).map(|_| Event::Reset { id }), None),
            Frame::WindowUpdate { id, delta } => (Some(Event::Window { id, delta }), None),
            Frame::Settings { initial_window } => (initial_window.map(Event::InitialWindow), None),
            Frame::Ping { id } => {
                let theirs = id % 2 == u32::from(self.role == Role::Server);
                (None, theirs.then_some(Frame::Ping { id }))
            }
            Frame::GoAway { .. } => (Some(Event::GoAway), None),
            Frame::Unknown { .. } => (None, None),
        }
    }

    /// A number for a stream of this side, which is open from now on; None when all are used up.
    pub fn begin(&mut self) -> Option<u32> {
        let id = self.next_own;
        if id > 0x7fff_ffff || self.open.len() >= MAX_STREAMS {
            return None;
        }
        self.next_own = id + 2;
        self.open.insert(id, Halves { incoming: true, outgoing: true });
        Some(id)
    }

    /// This side sends no more on a stream. False when it could not send anyway.
    pub fn finish(&mut self, id: u32) -> bool {
        let Some(halves) = self.open.get_mut(&id) else { return false };
        let could = std::mem::replace(&mut halves.outgoing, false);
        self.drop_if_done(id);
        could
    }

    /// This side gives a stream up. False when it is gone already.
    pub fn give_up(&mut self, id: u32) -> bool {
        self.open.remove(&id).is_some()
    }

    /// Whether a stream is open in some direction.
    pub fn is_open(&self, id: u32) -> bool {
        self.open.contains_key(&id)
    }

    /// The last stream that the peer opened.
    pub fn last_theirs(&self) -> u32 {
        self.last_theirs
    }

    fn drop_if_done(&mut self, id: u32) {
        if self.open.get(&id).is_some_and(|h| !h.incoming && !h.outgoing) {
            self.open.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn open(id: u32) -> Frame {
        Frame::SynStream { id, headers: Vec::new(), fin: false, unidirectional: false }
    }

    fn data(id: u32, fin: bool) -> Frame {
        Frame::Data { id, data: Bytes::from_static(b"x"), fin }
    }

    fn rst(id: u32, status: u32) -> (Option<Event>, Option<Frame>) {
        (None, Some(Frame::RstStream { id, status }))
    }

    #[test]
    fn a_streams_life() {
        let mut s = Streams::new(Role::Server);
        assert_eq!(s.receive(open(1)).0, Some(Event::Open { id: 1, headers: Vec::new(), fin: false }));
        assert_eq!(s.receive(open(1)), rst(1, reset::PROTOCOL_ERROR));
        assert_eq!(s.receive(open(2)), rst(2, reset::PROTOCOL_ERROR));
        assert!(s.receive(open(5)).0.is_some());
        assert_eq!(s.receive(open(3)), rst(3, reset::PROTOCOL_ERROR));
        assert!(matches!(s.receive(data(5, true)).0, Some(Event::Data { id: 5, fin: true, .. })));
        // Data after the last.
        assert_eq!(
            s.receive(data(5, false)),
            (Some(Event::Reset { id: 5 }), Some(Frame::RstStream { id: 5, status: reset::PROTOCOL_ERROR }))
        );
        assert!(!s.finish(5));
        assert_eq!(s.receive(data(7, true)), rst(7, reset::INVALID_STREAM));
        assert_eq!(s.receive(Frame::Ping { id: 9 }), (None, Some(Frame::Ping { id: 9 })));
        assert_eq!(s.receive(Frame::Ping { id: 8 }), (None, None));
        assert!(s.receive(open(9)).0.is_some() && s.finish(9) && !s.finish(9) && s.is_open(9));
        assert_eq!(s.receive(Frame::RstStream { id: 9, status: 5 }).0, Some(Event::Reset { id: 9 }));
        assert!(!s.is_open(9));
    }

    #[test]
    fn streams_are_limited() {
        let mut s = Streams::new(Role::Server);
        let ids = (0..).map(|n| 2 * n + 1);
        for id in ids.take(MAX_STREAMS) {
            assert!(s.receive(open(id)).0.is_some());
        }
        let next = 2 * MAX_STREAMS as u32 + 1;
        assert_eq!(s.receive(open(next)), rst(next, reset::REFUSED_STREAM));
        assert!(s.give_up(1));
        assert!(s.receive(open(next + 2)).0.is_some());
    }

    proptest! {
        /// Whatever comes: no more streams than allowed, and data only for streams that were opened.
        #[test]
        fn data_belongs_to_open_streams(frames in proptest::collection::vec((0..5u8, 0..40u32, any::<bool>()), 0..200)) {
            let mut s = Streams::new(Role::Server);
            let mut known = std::collections::HashSet::new();
            for (kind, id, fin) in frames {
                let frame = match kind {
                    0 => Frame::SynStream { id, headers: Vec::new(), fin, unidirectional: false },
                    1 => data(id, fin),
                    2 => Frame::RstStream { id, status: 1 },
                    3 => Frame::Headers { id, headers: Vec::new(), fin },
                    _ => { s.finish(id); continue }
                };
                match s.receive(frame).0 {
                    Some(Event::Open { id, .. }) => prop_assert!(id % 2 == 1 && known.insert(id)),
                    Some(Event::Data { id, .. } | Event::Reset { id }) => prop_assert!(known.contains(&id)),
                    _ => {}
                }
            }
        }
    }
}
