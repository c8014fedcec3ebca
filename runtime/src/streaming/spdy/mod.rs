//! SPDY/3.1, as far as Kubernetes' remote commands and port-forwards use it (The Chromium Projects, "SPDY Protocol,
//! Draft 3.1"): what kubectl up to 1.30, client-go's fallback, and (inside a WebSocket) newer port-forwards speak.
//!
//! [`frame`] turns bytes into frames and back, [`state`] knows which streams are open; both are pure and hold no more
//! than their limits allow. [`connection`] drives them over a socket.
//!
//! Flow control: data is taken per stream into a bounded queue, and what a reader takes is told to the peer in window
//! updates. A server keeps the windows of a client once that has shown that it knows windows (by an update, or by
//! announcing its own): Go's library, which kubectl uses, sends no updates, and would else get 64 KiB and no more.

pub mod connection;
pub mod dictionary;
pub mod frame;
pub mod state;

pub use connection::{Connection, Reader, Stream, Writer};
pub use state::Role;

/// Names and values of a stream, in lower case and as sent.
pub type Headers = Vec<(String, String)>;

/// A header's value; empty when there is none. Names are compared in lower case.
pub fn header<'a>(headers: &'a Headers, name: &str) -> &'a str {
    headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map_or("", |(_, v)| v)
}

/// Statuses of RST_STREAM (section 2.6.3).
pub mod reset {
    /// The peer broke a rule of the stream.
    pub const PROTOCOL_ERROR: u32 = 1;
    /// A frame for a stream that is not open.
    pub const INVALID_STREAM: u32 = 2;
    /// The stream was not begun.
    pub const REFUSED_STREAM: u32 = 3;
    /// Nobody wants it any more.
    pub const CANCEL: u32 = 5;
}
