//! Talking to shims.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

use crate::error::{Error, Result};
use crate::shim::SOCKET;
use crate::shim::proto::{self, Request, Response};

/// The shim of one sandbox, by the sandbox's directory.
#[derive(Debug, Clone)]
pub struct ShimClient {
    dir: PathBuf,
}

/// A connection to a shim on which more follows than one answer.
pub struct Conversation {
    stream: UnixStream,
}

impl ShimClient {
    /// The shim that serves in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Connects. The path goes through a descriptor of the directory: socket addresses hold 107 bytes only.
    async fn connect(&self) -> io::Result<UnixStream> {
        let dir = std::fs::File::open(&self.dir)?;
        UnixStream::connect(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(SOCKET)).await
    }

    /// Sends a request and keeps the connection for what follows.
    ///
    /// # Errors
    /// What the socket answered.
    pub async fn converse(&self, request: &Request) -> io::Result<Conversation> {
        let stream = self.connect().await?;
        proto::send(&stream, request, &[]).await?;
        Ok(Conversation { stream })
    }

    /// Sends a request and takes its answer.
    ///
    /// # Errors
    /// `Failed` with the shim's words, `Unavailable` when it does not answer.
    pub async fn call(&self, request: &Request) -> Result<(Response, Vec<OwnedFd>)> {
        let answered = async { self.converse(request).await?.next().await };
        match answered.await {
            Ok(Some((Response::Failed { message }, _))) => Err(Error::Failed(message)),
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Error::Unavailable("the pod's shim closed the connection".into())),
            Err(e) => Err(Error::Unavailable(format!("the pod's shim does not answer: {e}"))),
        }
    }
}

impl Conversation {
    /// The next answer; `None` when the shim has closed the connection.
    ///
    /// # Errors
    /// What the socket answered.
    pub async fn next(&self) -> io::Result<Option<(Response, Vec<OwnedFd>)>> {
        proto::receive(&self.stream).await
    }

    /// Sends a further request.
    ///
    /// # Errors
    /// What the socket answered.
    pub async fn send(&self, request: &Request) -> io::Result<()> {
        proto::send(&self.stream, request, &[]).await
    }
}
