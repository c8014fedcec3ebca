//! Finding and destroying sockets by netlink (sock_diag(7), `SOCK_DESTROY` since 4.5): in the calling thread's network
//! namespace, of TCP and UDP.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::types::Protocol;

/// include/uapi/linux/sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// include/uapi/linux/netlink.h
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER_LEN: usize = 16;
/// `struct inet_diag_sockid`.
const ID_LEN: usize = 48;
/// `struct inet_diag_req_v2`.
const REQUEST_LEN: usize = 56;
/// All states of a connection that somebody holds: not TIME_WAIT (6), CLOSE (7), LISTEN (10), NEW_SYN_RECV (12).
const STATES: u32 = !(1 << 6 | 1 << 7 | 1 << 10 | 1 << 12);
/// Nobody else answers on this socket: the kernel does at once.
const PATIENCE_S: i64 = 5;

/// A connected socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    family: u8,
    protocol: Protocol,
    id: [u8; ID_LEN],
}

impl Found {
    /// `SO_COOKIE`.
    pub fn cookie(&self) -> u64 {
        u64::from(word(&self.id, 40)) | u64::from(word(&self.id, 44)) << 32
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|two| two.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

fn request(kind: u16, flags: u16, family: u8, protocol: Protocol, id: &[u8; ID_LEN]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER_LEN + REQUEST_LEN);
    message.extend(((HEADER_LEN + REQUEST_LEN) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family, protocol.number(), 0, 0]);
    message.extend(STATES.to_ne_bytes());
    message.extend(id);
    message
}

/// One netlink message out of a buffer, and the rest.
fn split(buffer: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = word(buffer, 0) as usize;
    if length < HEADER_LEN || buffer.len() < length {
        return None;
    }
    let rest = buffer.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((half(buffer, 4), &buffer[HEADER_LEN..length], rest))
}

/// A netlink socket of the network namespace in which it was opened.
#[derive(Debug)]
pub struct SockDiag {
    socket: OwnedFd,
}

impl SockDiag {
    /// Opens one in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel has no sock_diag.
    pub fn open() -> io::Result<Self> {
        let protocol = SockProtocol::NetlinkSockDiag;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE_S, 0))?;
        Ok(Self { socket })
    }

    /// The connected sockets of a protocol, of both families.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn connected(&self, protocol: Protocol) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            self.send(&request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, protocol, &[0; ID_LEN]))?;
            self.replies(|body| {
                // `struct inet_diag_msg`: family and three more bytes, then the id.
                if let Some(id) = body.get(4..4 + ID_LEN).and_then(|id| id.try_into().ok()) {
                    found.push(Found { family: body[0], protocol, id });
                }
            })?;
        }
        Ok(found)
    }

    /// Destroys a socket: whoever uses it gets ECONNABORTED. `false` when it is gone already.
    ///
    /// # Errors
    /// The kernel refused, or cannot (`CONFIG_INET_DIAG_DESTROY`).
    pub fn destroy(&self, socket: &Found) -> io::Result<bool> {
        self.send(&request(SOCK_DESTROY, NLM_F_ACK, socket.family, socket.protocol, &socket.id))?;
        match self.replies(|_| ()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        send(self.socket.as_raw_fd(), message, MsgFlags::empty())?;
        Ok(())
    }

    /// Hands every answer on, until the last one or an acknowledgement.
    fn replies(&self, mut seen: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..length];
            while let Some((kind, body, after)) = split(rest) {
                rest = after;
                match kind {
                    NLMSG_DONE => return Ok(()),
                    // A negative error number, or 0 for an acknowledgement.
                    NLMSG_ERROR => match word(body, 0) as i32 {
                        0 => return Ok(()),
                        error => return Err(io::Error::from_raw_os_error(error.saturating_neg())),
                    },
                    _ => seen(body),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    /// On loopback, with sockets of the test's own.
    #[test]
    fn own_sockets_are_found() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let stream = TcpStream::connect(address).expect("connects");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let unconnected = UdpSocket::bind("127.0.0.1:0").expect("a port");
        udp.connect(address).expect("connects");
        let diag = SockDiag::open().expect("sock_diag");
        let has = |protocol, address: std::net::SocketAddr| {
            let port = address.port().to_be_bytes();
            diag.connected(protocol).expect("a dump").iter().any(|found| found.id[..2] == port)
        };
        assert!(has(Protocol::Tcp, stream.local_addr().expect("bound")));
        assert!(has(Protocol::Udp, udp.local_addr().expect("bound")));
        assert!(!has(Protocol::Udp, unconnected.local_addr().expect("bound")));
    }

    #[test]
    fn what_is_cut_short_is_not_read() {
        let message = request(SOCK_DESTROY, NLM_F_ACK, 2, Protocol::Udp, &[7; ID_LEN]);
        assert_eq!(
            split(&message).map(|(kind, body, rest)| (kind, body.len(), rest.len())),
            Some((21, 56, 0))
        );
        for length in 0..message.len() {
            assert_eq!(split(&message[..length]), None);
        }
        assert_eq!(split(&[0; 64]), None);
    }
}
