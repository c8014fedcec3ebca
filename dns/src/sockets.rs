//! UDP and TCP: questions in, answers out. Stopped, they take nothing more from the sockets, which another process may
//! have by then, and answer what they took.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::respond::{Reply, Responder, Transport};

/// Longest question that is read from a datagram. One with EDNS options has a few hundred bytes.
const DATAGRAM: usize = 4096;
/// How long a connection may be silent (RFC 7766, 6.2.3: a few seconds).
const IDLE: Duration = Duration::from_secs(10);
/// Connections at a time; further ones wait to be accepted.
const CONNECTIONS: usize = 1024;
/// Wait after an error of a socket, which may come again at once.
pub const AFTER_ERROR: Duration = Duration::from_millis(10);

/// A socket of each transport at one address.
pub struct Sockets {
    /// UDP.
    pub udp: Arc<UdpSocket>,
    /// TCP.
    pub tcp: Arc<TcpListener>,
}

impl Sockets {
    /// Opens both.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let udp = UdpSocket::bind(address).await?;
        // The same port for both, also when any free one will do.
        let address = udp.local_addr()?;
        Ok(Sockets { udp: Arc::new(udp), tcp: Arc::new(TcpListener::bind(address).await?) })
    }

    /// Their address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    /// Answers until stopped.
    pub fn serve(&self, responder: &Arc<Responder>, tasks: &TaskTracker, stop: &CancellationToken) {
        let (socket, to) = (self.udp.clone(), responder.clone());
        tasks.spawn(datagrams(socket, to, tasks.clone(), stop.clone()));
        tasks.spawn(connections(self.tcp.clone(), responder.clone(), tasks.clone(), stop.clone()));
    }
}

async fn datagrams(
    socket: Arc<UdpSocket>,
    responder: Arc<Responder>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let received = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (length, client) = match received {
            Ok(received) => received,
            // A client that has gone says so here.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => {
                tracing::warn!(%error, "reading a datagram");
                tokio::time::sleep(AFTER_ERROR).await;
                continue;
            }
        };
        match responder.respond(&buffer[..length], client.ip(), Transport::Udp) {
            Reply::Silence => {}
            Reply::Now(answer) => send(&socket, &answer, client).await,
            Reply::Later(pending) => {
                let (socket, responder) = (socket.clone(), responder.clone());
                tasks.spawn(async move { send(&socket, &responder.finish(pending).await, client).await });
            }
        }
    }
}

async fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(answer, client).await {
        tracing::debug!(%client, %error, "sending an answer");
    }
}

async fn connections(
    listener: Arc<TcpListener>,
    responder: Arc<Responder>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                let responder = responder.clone();
                tasks.spawn(async move {
                    if let Err(error) = converse(stream, client, &responder).await {
                        tracing::debug!(%client, %error, "connection");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(AFTER_ERROR).await;
            }
        }
    }
}

/// One question after the other, each behind its length (RFC 1035, 4.2.2).
async fn converse(mut stream: TcpStream, client: SocketAddr, responder: &Responder) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut question = Vec::new();
    loop {
        let read = async {
            let length = match stream.read_u16().await {
                Ok(length) => usize::from(length),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                Err(error) => return Err(error),
            };
            question.resize(length, 0);
            stream.read_exact(&mut question).await.map(|_| true)
        };
        match tokio::time::timeout(IDLE, read).await {
            Err(_) | Ok(Ok(false)) => return Ok(()),
            Ok(Ok(true)) => {}
            Ok(Err(error)) => return Err(error),
        }
        let answer = match responder.respond(&question, client.ip(), Transport::Tcp) {
            Reply::Silence => return Ok(()),
            Reply::Now(answer) => answer,
            Reply::Later(pending) => responder.finish(pending).await,
        };
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        let message = [&length.to_be_bytes()[..], &answer].concat();
        tokio::time::timeout(IDLE, stream.write_all(&message)).await??;
    }
}
