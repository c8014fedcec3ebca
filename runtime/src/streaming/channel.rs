//! Kubernetes' remote command protocol over WebSocket (`v4.channel.k8s.io`, `v5.channel.k8s.io`): binary messages
//! whose first byte is a channel. Pure.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Deserialize;

/// Channels.
pub const STDIN: u8 = 0;
/// Output of the program.
pub const STDOUT: u8 = 1;
/// Error output of the program.
pub const STDERR: u8 = 2;
/// How it ended, as a Status object.
pub const ERROR: u8 = 3;
/// Sizes of the terminal, from the client.
pub const RESIZE: u8 = 4;
/// Of v5: the client closes the channel named by the second byte.
pub const CLOSE: u8 = 255;

/// The versions spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subprotocol {
    /// Status as JSON.
    V4,
    /// Also half-close of stdin.
    V5,
}

impl Subprotocol {
    /// Names, best first.
    pub const NAMES: [&'static str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

    /// The best of those a client offers.
    pub fn choose(offered: &[String]) -> Option<Self> {
        let has = |name: &str| offered.iter().any(|o| o == name);
        match () {
            () if has(Self::NAMES[0]) => Some(Self::V5),
            () if has(Self::NAMES[1]) => Some(Self::V4),
            () => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::V5 => Self::NAMES[0],
            Self::V4 => Self::NAMES[1],
        }
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
    /// Nothing of meaning.
    Ignored,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Reads a message.
pub fn decode(protocol: Subprotocol, message: &Bytes) -> Input {
    match (message.first(), protocol) {
        (Some(&STDIN), _) => Input::Stdin(message.slice(1..)),
        (Some(&RESIZE), _) => match serde_json::from_slice::<Size>(&message[1..]) {
            Ok(size) => Input::Resize(size.width, size.height),
            Err(_) => Input::Ignored,
        },
        (Some(&CLOSE), Subprotocol::V5) if message.get(1) == Some(&STDIN) => Input::CloseStdin,
        _ => Input::Ignored,
    }
}

/// A message of a channel.
pub fn encode(channel: u8, data: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(data.len() + 1);
    message.put_u8(channel);
    message.put_slice(data);
    message.freeze()
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0, or a stream that just ended.
    Success,
    /// The program's exit code.
    ExitCode(i32),
    /// It could not run, or the connection to it broke.
    Failed(String),
}

/// The Status object for the error channel, as Kubernetes' API machinery writes it.
pub fn status(outcome: &Outcome) -> Vec<u8> {
    let value = match outcome {
        Outcome::Success => serde_json::json!({ "metadata": {}, "status": "Success" }),
        Outcome::ExitCode(code) => serde_json::json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit code {code}"),
            "reason": "NonZeroExitCode",
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        Outcome::Failed(message) => serde_json::json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("Internal error occurred: {message}"),
            "reason": "InternalError",
            "details": { "causes": [{ "message": message }] },
            "code": 500,
        }),
    };
    value.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let cases: &[(&[u8], Subprotocol, Input)] = &[
            (b"\x00hi", Subprotocol::V4, Input::Stdin(Bytes::from_static(b"hi"))),
            (b"\x00", Subprotocol::V5, Input::Stdin(Bytes::new())),
            (b"\xff\x00", Subprotocol::V5, Input::CloseStdin),
            (b"\xff\x00", Subprotocol::V4, Input::Ignored),
            (b"\xff\x01", Subprotocol::V5, Input::Ignored),
            (br#"4{"Width":80,"Height":24}"#, Subprotocol::V5, Input::Ignored),
            (b"\x04{\"Width\":80,\"Height\":24}", Subprotocol::V5, Input::Resize(80, 24)),
            (b"\x04{\"Width\":-1}", Subprotocol::V5, Input::Ignored),
            (b"\x01x", Subprotocol::V5, Input::Ignored),
            (b"", Subprotocol::V5, Input::Ignored),
        ];
        for (message, protocol, want) in cases {
            assert_eq!(decode(*protocol, &Bytes::copy_from_slice(message)), *want, "{message:?}");
        }
        assert_eq!(encode(STDOUT, b"x"), &b"\x01x"[..]);
    }

    #[test]
    fn choice_of_subprotocol() {
        let offer =
            |names: &[&str]| Subprotocol::choose(&names.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(offer(&["v4.channel.k8s.io", "v5.channel.k8s.io"]), Some(Subprotocol::V5));
        assert_eq!(offer(&["v4.channel.k8s.io"]), Some(Subprotocol::V4));
        assert_eq!(offer(&["channel.k8s.io"]), None);
    }
}
