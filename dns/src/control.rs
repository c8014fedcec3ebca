//! The control socket: who serves, and how its sockets come to the next process.
//!
//! A stream on a unix socket. The server begins with one line of JSON, a [`Hello`], and keeps the connection open for as
//! long as it lives, so that its end is seen. Then it does what it is told, a line each: `metrics` (answered by the
//! metrics up to the end of the stream), `stop` (it answers what it has and ends), and `take` (it answers by a line of
//! JSON, the addresses, with the sockets beside it as SCM_RIGHTS, and ends as with `stop`). Sockets that are handed
//! over lose nothing: what waits in them is read by the one or the other.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};

/// Longest line, and most sockets, that go over the stream.
const LINE: usize = 4096;
const SOCKETS: usize = 32;

/// Who serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its process.
    pub pid: u32,
    /// Its build and settings.
    pub fingerprint: String,
    /// Whether it has read the cluster's Services.
    pub synced: bool,
}

/// What a server is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Hand the sockets over, and end.
    Take,
    /// End.
    Stop,
    /// Tell the metrics.
    Metrics,
}

impl Command {
    const ALL: [(Command, &str); 3] =
        [(Command::Take, "take"), (Command::Stop, "stop"), (Command::Metrics, "metrics")];

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(command, _)| *command == self).map_or("", |(_, word)| word)
    }
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// The sockets of one address: UDP, then TCP.
pub type Pair = (SocketAddr, OwnedFd, OwnedFd);

/// A connection to the process that serves.
pub struct Incumbent {
    stream: UnixStream,
    /// Who it is.
    pub hello: Hello,
}

impl Incumbent {
    /// Connects; `None` when nobody serves.
    ///
    /// # Errors
    /// Whoever is there does not say who it is.
    pub async fn find(path: &Path) -> io::Result<Option<Self>> {
        let mut stream = match UnixStream::connect(path).await {
            Ok(stream) => stream,
            Err(error)
                if [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&error.kind()) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let Some(line) = read_line(&mut stream).await? else { return Ok(None) };
        let hello = serde_json::from_str(&line).map_err(|e| invalid(e.to_string()))?;
        Ok(Some(Incumbent { stream, hello }))
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) {
        let mut byte = [0];
        // It says nothing unasked; anything but silence is its end.
        let _ = self.stream.read(&mut byte).await;
    }

    /// Takes its sockets; `None` when it ended instead.
    ///
    /// # Errors
    /// It answers something else.
    pub async fn take(mut self) -> io::Result<Option<Vec<Pair>>> {
        if self.tell(Command::Take).await.is_err() {
            return Ok(None);
        }
        let (line, descriptors) =
            self.stream.async_io(Interest::READABLE, || receive(self.stream.as_fd())).await?;
        if line.is_empty() {
            return Ok(None);
        }
        let addresses: Vec<SocketAddr> =
            serde_json::from_slice(&line).map_err(|e| invalid(format!("addresses: {e}")))?;
        if descriptors.len() != addresses.len() * 2 {
            return Err(invalid(format!("{} sockets for {} addresses", descriptors.len(), addresses.len())));
        }
        let mut descriptors = descriptors.into_iter();
        let pair = |address| Some((address, descriptors.next()?, descriptors.next()?));
        Ok(Some(addresses.into_iter().map_while(pair).collect()))
    }

    /// Ends it, and waits until it has.
    ///
    /// # Errors
    /// It cannot be told.
    pub async fn stop(mut self) -> io::Result<()> {
        self.tell(Command::Stop).await?;
        self.ended().await;
        Ok(())
    }

    /// Its metrics.
    ///
    /// # Errors
    /// It cannot be asked.
    pub async fn metrics(mut self) -> io::Result<String> {
        self.tell(Command::Metrics).await?;
        let mut text = String::new();
        self.stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    async fn tell(&mut self, command: Command) -> io::Result<()> {
        self.stream.write_all(format!("{}\n", command.word()).as_bytes()).await
    }
}

/// Opens the control socket in the place of one that is there. Nothing but its owner may connect.
///
/// # Errors
/// It cannot be made.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    let _ = std::fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}

/// The server's side of a connection.
pub struct Guest {
    stream: UnixStream,
}

impl Guest {
    /// Greets whoever connected.
    ///
    /// # Errors
    /// It has gone.
    pub async fn greet(mut stream: UnixStream, hello: &Hello) -> io::Result<Self> {
        let line = serde_json::to_string(hello).map_err(|e| invalid(e.to_string()))?;
        stream.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(Guest { stream })
    }

    /// Its next command; `None` when it has gone.
    ///
    /// # Errors
    /// It says something else.
    pub async fn command(&mut self) -> io::Result<Option<Command>> {
        let Some(line) = read_line(&mut self.stream).await? else { return Ok(None) };
        let known = Command::ALL.iter().find(|(_, word)| *word == line);
        known.map(|(command, _)| Some(*command)).ok_or_else(|| invalid(format!("no such command: {line:?}")))
    }

    /// Hands sockets over, a UDP and a TCP one for each address.
    ///
    /// # Errors
    /// They could not be sent; then they have not been.
    pub async fn give(&mut self, sockets: &[(SocketAddr, BorrowedFd<'_>, BorrowedFd<'_>)]) -> io::Result<()> {
        let addresses: Vec<SocketAddr> = sockets.iter().map(|(address, ..)| *address).collect();
        let line = serde_json::to_vec(&addresses).map_err(|e| invalid(e.to_string()))?;
        let descriptors: Vec<BorrowedFd<'_>> =
            sockets.iter().flat_map(|(_, udp, tcp)| [*udp, *tcp]).collect();
        if line.len() > LINE || descriptors.len() > SOCKETS {
            return Err(invalid("too many sockets"));
        }
        let fd = self.stream.as_fd();
        self.stream.async_io(Interest::WRITABLE, || send(fd, &line, &descriptors)).await
    }

    /// Answers by a text, up to the end of the stream.
    ///
    /// # Errors
    /// It has gone.
    pub async fn tell(mut self, text: &str) -> io::Result<()> {
        self.stream.write_all(text.as_bytes()).await
    }
}

/// A line without its end; `None` at the end of the stream. What follows it stays unread.
async fn read_line(stream: &mut UnixStream) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await {
            Ok(b'\n') => return String::from_utf8(line).map(Some).map_err(|e| invalid(e.to_string())),
            Ok(_) if line.len() >= LINE => return Err(invalid("a line without end")),
            Ok(byte) => line.push(byte),
            Err(error) if gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

fn gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

fn send(stream: BorrowedFd<'_>, line: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    let sent = rustix::net::sendmsg(stream, &[IoSlice::new(line)], &mut ancillary, SendFlags::NOSIGNAL)?;
    if sent == line.len() { Ok(()) } else { Err(invalid("a line was cut")) }
}

fn receive(stream: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut line = vec![0; LINE];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut line)], &mut ancillary, flags)?;
    line.truncate(got.bytes);
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok((line, rights.flatten().collect()))
}
