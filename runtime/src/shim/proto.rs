//! The protocol between the runtime and a pod's shim: frames of a length (u32, big endian) and JSON over a unix
//! stream socket, one request per connection, descriptors passed beside a frame. Both ends are this crate; a
//! newer runtime talks to older shims, so fields are only ever added, with defaults.

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::spec::{ExitRecord, StartRecord};
use crate::sys::socket;

/// The longest frame either side accepts, bytes.
const MAX_FRAME: usize = 4 << 20;

/// What the runtime asks of a shim.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// Start the container whose spec lies in its directory. Answer: `Started` or `Failed`.
    Start {
        /// Container id.
        container: String,
    },
    /// Send a signal to the container's init. Answer: `Done` or `Failed`.
    Signal {
        /// Container id.
        container: String,
        /// Signal number.
        signal: i32,
    },
    /// Kill everything in the container. Answer: `Done` or `Failed`.
    KillAll {
        /// Container id.
        container: String,
    },
    /// Run a program in the container. Answer: `ExecStarted` with descriptors (the pty master, or those of
    /// stdin, stdout, stderr asked for, in this order), and later on the same connection `ExecExited`.
    Exec {
        /// Container id.
        container: String,
        /// Program and arguments.
        args: Vec<String>,
        /// On a pseudo-terminal.
        tty: bool,
        /// Give a pipe to its stdin; else it reads nothing.
        stdin: bool,
        /// Give a pipe of its stdout; else output is dropped.
        stdout: bool,
        /// Give a pipe of its stderr; else output is dropped.
        stderr: bool,
    },
    /// On an exec's connection: signal the program.
    ExecSignal {
        /// Signal number.
        signal: i32,
    },
    /// Copies of the container's streams from now on. Answer: `Attached` with descriptors (stdin, stdout, stderr
    /// as asked for and as there are).
    Attach {
        /// Container id.
        container: String,
        /// Give the writing end of stdin.
        stdin: bool,
        /// Give a copy of stdout.
        stdout: bool,
        /// Give a copy of stderr.
        stderr: bool,
    },
    /// Close the container's stdin for good. Answer: `Done`.
    CloseStdin {
        /// Container id.
        container: String,
    },
    /// Set the size of the container's terminal. Answer: `Done` or `Failed`.
    Resize {
        /// Container id.
        container: String,
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// Open the log file anew, after a rotation. Answer: `Done` or `Failed`.
    ReopenLog {
        /// Container id.
        container: String,
    },
    /// Tell of every container's state now and of each exit from now on. Answer: `Event`s without end.
    Watch,
    /// Kill what runs and exit. Answer: `Done`.
    Shutdown,
}

/// What a shim answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Response {
    /// It is done.
    Done,
    /// The container runs.
    Started(StartRecord),
    /// The exec'd program runs; descriptors come along.
    ExecStarted {
        /// Its process id as the host sees it.
        pid: i32,
    },
    /// The exec'd program ended.
    ExecExited {
        /// Exit code; 128 + n for signal n.
        code: i32,
    },
    /// Streams come along.
    Attached {
        /// Which of stdin, stdout, stderr.
        streams: [bool; 3],
    },
    /// News of a container.
    Event(Event),
    /// It did not work.
    Failed {
        /// Why, for people.
        message: String,
    },
}

/// News of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// All events of the past have been told.
    Synced {
        /// The shim's process id.
        pid: i32,
    },
    /// It runs.
    Running {
        /// Container id.
        container: String,
        /// How it began.
        start: StartRecord,
    },
    /// It ended.
    Exited {
        /// Container id.
        container: String,
        /// How it ended.
        exit: ExitRecord,
    },
}

/// Sends one frame with descriptors.
///
/// # Errors
/// What the socket answered.
pub async fn send<T: Serialize>(stream: &UnixStream, message: &T, fds: &[RawFd]) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend(body);
    let mut sent = 0;
    while sent < frame.len() {
        // The descriptors go with the first byte.
        let with = if sent == 0 { fds } else { &[] };
        stream.writable().await?;
        match stream.try_io(Interest::WRITABLE, || socket::send_with_fds(stream, &frame[sent..], with)) {
            Ok(n) => sent += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Receives one frame and its descriptors; `None` at the end of the stream.
///
/// # Errors
/// What the socket answered; `InvalidData` for what is no frame.
pub async fn receive<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut header = [0u8; 4];
    let mut fds = Vec::new();
    if !fill(stream, &mut header, &mut fds).await? {
        return Ok(None);
    }
    let length = u32::from_be_bytes(header) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
    }
    let mut body = vec![0u8; length];
    if !fill(stream, &mut body, &mut fds).await? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some((serde_json::from_slice(&body)?, fds)))
}

/// Fills `buffer`; false when the stream ends before its first byte.
async fn fill(stream: &UnixStream, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        stream.readable().await?;
        match stream.try_io(Interest::READABLE, || socket::recv_with_fds(stream, &mut buffer[filled..])) {
            Ok((0, _)) if filled == 0 => return Ok(false),
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((n, received)) => {
                filled += n;
                fds.extend(received);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}
