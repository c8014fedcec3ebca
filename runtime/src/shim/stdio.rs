//! The streams between a container's program, its log and those attached to it.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::fcntl::OFlag;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::log::{LineSplitter, LogFile, timestamp};
pub use crate::sys::fd::asynchronous;

/// Chunks queued for a slow reader of an attached stream before it is cut off (some 1 MiB).
const ATTACH_QUEUE: usize = 64;
/// Bytes read at once.
const CHUNK: usize = 16 * 1024;

/// A pipe that is close-on-exec: (reading end, writing end).
///
/// # Errors
/// What `pipe2(2)` answered.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

/// Reads once; `Ok(0)` at the end. A pty master whose slaves are closed answers EIO, which is its end.
///
/// # Errors
/// What `read(2)` answered.
pub async fn read(fd: &AsyncFd<File>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut guard = fd.readable().await?;
        match guard.try_io(|f| f.get_ref().read(buffer)) {
            Ok(Err(e)) if e.raw_os_error() == Some(libc::EIO) => return Ok(0),
            Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

/// Writes all.
///
/// # Errors
/// What `write(2)` answered.
pub async fn write_all(fd: &AsyncFd<File>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut guard = fd.writable().await?;
        match guard.try_io(|f| f.get_ref().write(bytes)) {
            Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(Ok(n)) => bytes = &bytes[n..],
            Ok(Err(e)) => return Err(e),
            Err(_would_block) => {}
        }
    }
    Ok(())
}

/// Those attached to one stream.
#[derive(Debug, Default)]
pub struct Fanout {
    clients: RefCell<Vec<mpsc::Sender<Rc<[u8]>>>>,
}

impl Fanout {
    /// Adds a reader and answers its end of a pipe.
    ///
    /// # Errors
    /// What `pipe2(2)` answered.
    pub fn attach(&self) -> io::Result<OwnedFd> {
        let (reader, writer) = pipe()?;
        let writer = asynchronous(writer)?;
        let (sender, mut receiver) = mpsc::channel::<Rc<[u8]>>(ATTACH_QUEUE);
        tokio::task::spawn_local(async move {
            while let Some(chunk) = receiver.recv().await {
                if write_all(&writer, &chunk).await.is_err() {
                    break;
                }
            }
        });
        self.clients.borrow_mut().push(sender);
        Ok(reader)
    }

    fn send(&self, bytes: &[u8]) {
        let mut clients = self.clients.borrow_mut();
        if clients.is_empty() {
            return;
        }
        let chunk: Rc<[u8]> = bytes.into();
        // A reader whose queue is full is cut off: the container must not wait for it.
        clients.retain(|c| c.try_send(Rc::clone(&chunk)).is_ok());
    }

    fn close(&self) {
        self.clients.borrow_mut().clear();
    }
}

/// Reads one stream to its end into the log and to those attached.
pub async fn pump(source: AsyncFd<File>, name: &'static str, log: Rc<RefCell<LogFile>>, fanout: Rc<Fanout>) {
    let mut buffer = vec![0u8; CHUNK];
    let mut splitter = LineSplitter::default();
    let mut records = Vec::new();
    loop {
        let n = match read(&source, &mut buffer).await {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) => {
                eprintln!("read {name}: {e}");
                break;
            }
        };
        splitter.push(&buffer[..n], |text, ends| records.push((text.to_vec(), ends)));
        if !records.is_empty() {
            log.borrow_mut().write(name, &timestamp(), &records);
            records.clear();
        }
        fanout.send(&buffer[..n]);
    }
    splitter.finish(|text, ends| records.push((text.to_vec(), ends)));
    if !records.is_empty() {
        log.borrow_mut().write(name, &timestamp(), &records);
    }
    fanout.close();
}
