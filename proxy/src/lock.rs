//! One agent per node: a lock on the run directory, whose pins it owns, and an abstract socket, which
//! exists once per network namespace and so guards the node's interfaces. The kernel releases both
//! when the process ends, however it ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

/// Name of the abstract socket.
const SOCKET: &[u8] = b"hawser-proxy";

/// Held by the one agent of this node.
#[derive(Debug)]
pub struct InstanceLock {
    _file: Flock<File>,
    _socket: UnixListener,
}

/// Why the lock was not given.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent holds it.
    #[error("another dataplane agent runs on this node ({0})")]
    Held(String),
    /// The lock file could not be opened.
    #[error("{path}: {source}")]
    Io {
        /// The path.
        path: String,
        /// What went wrong.
        source: io::Error,
    },
}

impl InstanceLock {
    /// Takes the lock, without waiting.
    pub fn take(run_dir: &Path) -> Result<Self, LockError> {
        let path = run_dir.join("proxy.lock");
        let io_error = |source| LockError::Io { path: path.display().to_string(), source };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error)?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                return Err(LockError::Held(path.display().to_string()));
            }
            Err((_, error)) => return Err(io_error(error.into())),
        };
        let address = SocketAddr::from_abstract_name(SOCKET).map_err(io_error)?;
        let socket = match UnixListener::bind_addr(&address) {
            Ok(socket) => socket,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(LockError::Held("in this network namespace".to_string()));
            }
            Err(error) => return Err(io_error(error)),
        };
        Ok(Self { _file: file, _socket: socket })
    }
}
