//! What a connection of HTTP/2 writes in one turn goes out together.
//!
//! HTTP/2 writes and flushes each frame by itself. An event that a thousand watchers share would be a thousand TLS
//! records and system calls, with a turn of the connection's task between each two. Behind a [`Cork`] frames gather,
//! and [`uncorked`] lets them out when the connection has its next turn: the streams that were woken together have
//! theirs before.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::body::BoxError;

/// Bytes that gather at most, one write excepted.
const LIMIT: usize = 64 << 10;

/// A stream whose writes are held back until [`uncorked`] lets them go. Cloning shares it.
#[derive(Debug)]
pub struct Cork<T>(Arc<Mutex<State<T>>>);

impl<T> Clone for Cork<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct State<T> {
    io: T,
    held: Vec<u8>,
    /// How much of `held` is written.
    written: usize,
    /// Something was written below and is not flushed there.
    unflushed: bool,
    /// A write had to wait.
    blocked: bool,
}

impl<T: AsyncWrite + Unpin> State<T> {
    fn is_empty(&self) -> bool {
        self.held.is_empty() && !self.unflushed
    }

    /// Writes and flushes everything.
    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.held.get(self.written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.written += n,
            }
            self.unflushed = true;
        }
        // Connections are many and mostly have nothing to write.
        (self.held, self.written) = (Vec::new(), 0);
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T> Cork<T> {
    /// In front of a stream.
    pub fn new(io: T) -> Self {
        let state = State { io, held: Vec::new(), written: 0, unflushed: false, blocked: false };
        Self(Arc::new(Mutex::new(state)))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Cork<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Cork<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock();
        if state.held.len() >= LIMIT {
            let drained = state.drain(cx)?;
            state.blocked = drained.is_pending();
            ready!(drained);
        }
        let length = bufs.iter().map(|b| b.len()).sum();
        state.held.reserve(length);
        bufs.iter().for_each(|b| state.held.extend_from_slice(b));
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Is [`uncorked`]'s to do.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        ready!(state.drain(cx))?;
        Pin::new(&mut state.io).poll_shutdown(cx)
    }
}

/// Runs a connection behind a cork, and lets out what it writes.
///
/// # Errors
/// The connection's, or that of writing.
pub async fn uncorked<T, F, E>(cork: &Cork<T>, mut connection: Pin<&mut F>) -> Result<(), BoxError>
where
    T: AsyncWrite + Unpin,
    F: Future<Output = Result<(), E>>,
    E: Into<BoxError>,
{
    poll_fn(|cx| {
        let waited = !cork.0.lock().is_empty();
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            return Poll::Ready(result.map_err(Into::into));
        }
        let mut state = cork.0.lock();
        if state.is_empty() {
            return Poll::Pending;
        }
        if !waited {
            // Whoever else is waiting for a turn may have something to add.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(state.drain(cx))?;
        if std::mem::take(&mut state.blocked) {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    /// A stream that counts writes.
    struct Counted(DuplexStream, Arc<Mutex<usize>>);

    impl AsyncWrite for Counted {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            *self.1.lock() += 1;
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    #[tokio::test]
    async fn what_is_written_in_one_turn_goes_out_together() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let writes = Arc::new(Mutex::new(0));
        let cork = Cork::new(Counted(near, writes.clone()));
        let mut inner = cork.clone();
        let (asked, mut wait) = tokio::sync::mpsc::channel::<()>(1);
        let connection = std::pin::pin!(async move {
            for _ in 0..100 {
                inner.write_all(b"frame").await?;
                inner.flush().await?;
            }
            wait.recv().await;
            Ok::<_, io::Error>(())
        });
        let reading = async {
            let mut got = [0; 500];
            far.read_exact(&mut got).await.expect("all of it");
            drop(asked);
            got
        };
        let (done, got) = tokio::join!(uncorked(&cork, connection), reading);
        done.expect("no error");
        assert_eq!((got.to_vec(), *writes.lock()), (b"frame".repeat(100), 1));
    }

    #[tokio::test]
    async fn a_reader_that_is_slow_holds_the_writer_back_and_loses_nothing() {
        const TOTAL: usize = 4 << 20;
        let (near, mut far) = tokio::io::duplex(1000);
        let cork = Cork::new(near);
        let mut inner = cork.clone();
        let connection = std::pin::pin!(async move {
            let data: Vec<u8> = (0..TOTAL).map(|n| n as u8).collect();
            for (n, piece) in data.chunks(777).enumerate() {
                inner.write_all(piece).await?;
                if n % 3 == 0 {
                    tokio::task::yield_now().await;
                }
                assert!(inner.0.lock().held.len() < LIMIT + 777);
            }
            inner.shutdown().await
        });
        let reading = async {
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.expect("all of it");
            got
        };
        let (done, got) = tokio::join!(uncorked(&cork, connection), reading);
        done.expect("no error");
        assert_eq!(got.len(), TOTAL);
        assert!(got.iter().enumerate().all(|(n, byte)| *byte == n as u8));
    }

    #[tokio::test]
    async fn an_error_of_writing_ends_the_connection() {
        let (near, far) = tokio::io::duplex(10);
        drop(far);
        let cork = Cork::new(near);
        let mut inner = cork.clone();
        let connection = std::pin::pin!(async move {
            inner.write_all(b"frame").await?;
            std::future::pending::<io::Result<()>>().await
        });
        assert!(uncorked(&cork, connection).await.is_err());
    }
}
