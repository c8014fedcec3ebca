//! Kubernetes' channels over WebSocket (`channel.k8s.io` and its successors): messages whose first byte is a channel.
//! Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use serde::Deserialize;

use super::outcome::Outcome;

/// Channels of remote commands.
pub const STDIN: u8 = 0;
/// Output of the program.
pub const STDOUT: u8 = 1;
/// Error output of the program.
pub const STDERR: u8 = 2;
/// How it ended.
pub const ERROR: u8 = 3;
/// Sizes of the terminal, from the client.
pub const RESIZE: u8 = 4;
/// Of v5: the client closes the channel named by the second byte.
pub const CLOSE: u8 = 255;

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subprotocol {
    /// Its name; empty for clients that name none.
    pub name: &'static str,
    /// Channels are digits, and data is base64 (RFC 4648 section 4): for clients that only have text.
    pub base64: bool,
    /// The end of a remote command is a Status object, not text.
    pub status: bool,
    /// Channels can be closed.
    pub half_close: bool,
}

const fn subprotocol(name: &'static str, base64: bool, status: bool, half_close: bool) -> Subprotocol {
    Subprotocol { name, base64, status, half_close }
}

/// Those of remote commands, best first.
pub const REMOTE_COMMAND: [Subprotocol; 6] = [
    subprotocol("v5.channel.k8s.io", false, true, true),
    subprotocol("v4.channel.k8s.io", false, true, false),
    subprotocol("v4.base64.channel.k8s.io", true, true, false),
    subprotocol("channel.k8s.io", false, false, false),
    subprotocol("base64.channel.k8s.io", true, false, false),
    subprotocol("", false, false, false),
];

/// Those of port-forwards with channels, best first.
pub const PORT_FORWARD: [Subprotocol; 3] = [REMOTE_COMMAND[1], REMOTE_COMMAND[2], REMOTE_COMMAND[5]];

impl Subprotocol {
    /// The best of those a client offers; one that offers none gets the one without a name.
    pub fn choose(known: &[Self], offered: &[&str]) -> Option<Self> {
        known
            .iter()
            .find(
                |k| {
                    if offered.is_empty() { k.name.is_empty() } else { offered.iter().any(|o| *o == k.name) }
                },
            )
            .copied()
    }

    /// A message of a channel.
    pub fn encode(self, channel: u8, data: &[u8]) -> Bytes {
        if self.base64 {
            return format!("{}{}", char::from(b'0'.wrapping_add(channel)), STANDARD.encode(data)).into();
        }
        let mut message = BytesMut::with_capacity(data.len() + 1);
        message.put_u8(channel);
        message.put_slice(data);
        message.freeze()
    }

    /// Channel and data of a message; None for what is none.
    pub fn decode(self, message: &Bytes) -> Option<(u8, Bytes)> {
        let channel = *message.first()?;
        if self.base64 {
            let data = STANDARD.decode(&message[1..]).ok()?;
            return Some((channel.checked_sub(b'0')?, data.into()));
        }
        Some((channel, message.slice(1..)))
    }

    /// What a client of a remote command sends; None for what means nothing.
    pub fn input(self, message: &Bytes) -> Option<Input> {
        let (channel, data) = self.decode(message)?;
        match channel {
            STDIN if !data.is_empty() => Some(Input::Stdin(data)),
            RESIZE => serde_json::from_slice::<Size>(&data).ok().map(|s| Input::Resize(s.width, s.height)),
            CLOSE if self.half_close && data.first() == Some(&STDIN) => Some(Input::CloseStdin),
            _ => None,
        }
    }

    /// The last message of a remote command; None when there is nothing to say.
    pub fn end(self, outcome: &Outcome) -> Option<Bytes> {
        let text = if self.status { outcome.status() } else { outcome.text() };
        (!text.is_empty()).then(|| self.encode(ERROR, &text))
    }
}

/// What a client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Bytes for stdin.
    Stdin(Bytes),
    /// No more stdin.
    CloseStdin,
    /// A new size of the terminal: columns, rows.
    Resize(u16, u16),
}

/// A size of a terminal, as clients write it.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Subprotocol {
        Subprotocol::choose(&REMOTE_COMMAND, &[name]).expect("known")
    }

    #[test]
    fn messages() {
        let (v4, v5) = ("v4.channel.k8s.io", "v5.channel.k8s.io");
        let (base64, old) = ("v4.base64.channel.k8s.io", "channel.k8s.io");
        let cases: &[(&[u8], &str, Option<Input>)] = &[
            (b"\x00hi", v4, Some(Input::Stdin(Bytes::from_static(b"hi")))),
            (b"\x00hi", old, Some(Input::Stdin(Bytes::from_static(b"hi")))),
            (b"0aGk=", base64, Some(Input::Stdin(Bytes::from_static(b"hi")))),
            (b"0aGk", base64, None),
            (b"\x00aGk=", base64, None),
            (b"\x00", v5, None),
            (b"\xff\x00", v5, Some(Input::CloseStdin)),
            (b"\xff\x00", v4, None),
            (b"\xff\x01", v5, None),
            (br#"4{"Width":80,"Height":24}"#, v5, None),
            (b"4eyJXaWR0aCI6ODAsIkhlaWdodCI6MjR9", base64, Some(Input::Resize(80, 24))),
            (b"\x04{\"Width\":80,\"Height\":24}", v5, Some(Input::Resize(80, 24))),
            (b"\x04{\"Width\":-1}", v5, None),
            (b"\x01x", v5, None),
            (b"", v5, None),
            (b"", base64, None),
        ];
        for (message, protocol, want) in cases {
            let got = named(protocol).input(&Bytes::copy_from_slice(message));
            assert_eq!(got, *want, "{message:?} {protocol}");
        }
        assert_eq!(named(v5).encode(STDOUT, b"x"), &b"\x01x"[..]);
        assert_eq!(named(base64).encode(STDOUT, b"hi"), &b"1aGk="[..]);
        assert_eq!(named(old).end(&Outcome::Success), None);
        assert_eq!(
            named(old).end(&Outcome::Failed("x".into())).as_deref(),
            Some(&b"\x03Internal error occurred: x"[..])
        );
    }

    #[test]
    fn choice_of_subprotocol() {
        let offer = |names: &[&str]| Subprotocol::choose(&REMOTE_COMMAND, names).map(|p| p.name);
        assert_eq!(offer(&["v4.channel.k8s.io", "v5.channel.k8s.io"]), Some("v5.channel.k8s.io"));
        assert_eq!(offer(&["v4.channel.k8s.io"]), Some("v4.channel.k8s.io"));
        assert_eq!(offer(&["base64.channel.k8s.io"]), Some("base64.channel.k8s.io"));
        assert_eq!(offer(&[]), Some(""));
        assert_eq!(offer(&["v9.channel.k8s.io"]), None);
    }
}
