//! The load generator: a server, and a client that makes a round of requests whenever it is told to.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Bytes of a request and of its answer.
pub const MESSAGE: usize = 64;
/// Connections of the request mode, and connecting tasks of the connection mode.
const PARALLEL: usize = 16;
/// What is written at once when throughput is measured.
const CHUNK: usize = 128 << 10;
/// Sockets and bytes of datagrams that nobody answers.
const FLOWS: usize = 64;
const DATAGRAM: usize = 18;
/// What every TCP socket is set to: the machine's default may depend on timers, and so on what else runs. This one is
/// allowed to everybody.
const CONGESTION: &str = "reno";
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// How long an answer may take.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// First byte of the last answer over a connection: the server closes it.
pub const CLOSING: u8 = b'c';
/// A server that was told to stop does so once nothing has come for so long.
const QUIET: Duration = Duration::from_millis(300);

/// What the client counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// New connections, with one exchange each.
    Connections,
    /// Exchanges over kept connections.
    Requests,
    /// Bytes over one connection.
    Throughput,
    /// Datagrams that nobody answers.
    Packets,
}

impl Mode {
    /// How far from the server's first port the one is that serves this.
    pub fn offset(self) -> u16 {
        match self {
            Self::Connections | Self::Requests => 0,
            Self::Throughput => 1,
            Self::Packets => 2,
        }
    }
}

/// Echoes, over TCP and UDP, until it is told to stop, and then politely: who is connected hears of it with the next
/// answer, and what is on its way is answered. The next port counts bytes, the one after it takes datagrams that are
/// never read: the kernel counts them. Prints a line when all are open.
pub async fn serve(port: u16) -> Result<()> {
    let mut signal = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let listener = listen(port)?;
    let datagrams = UdpSocket::bind(("0.0.0.0", port)).await?;
    let counting = listen(port + Mode::Throughput.offset())?;
    let _unread = UdpSocket::bind(("0.0.0.0", port + Mode::Packets.offset())).await?;
    println!("ready");
    tokio::spawn(async move {
        while let Ok((stream, _)) = counting.accept().await {
            tokio::spawn(count(stream));
        }
    });
    let answering = tokio::spawn(answer(datagrams, stop.clone()));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => Some(accepted?),
            _ = signal.recv(), if !stop.is_cancelled() => {
                stop.cancel();
                continue;
            }
            () = tokio::time::sleep(QUIET), if stop.is_cancelled() => None,
        };
        let Some((stream, _)) = accepted else { break };
        let stop = stop.clone();
        connections.spawn(async move {
            // A client that goes away ends its connection, nothing else.
            let _ = echo(stream, &stop).await;
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
    Ok(answering.await?)
}

/// A listener whose connections have the bench's congestion control.
fn listen(port: u16) -> Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    fix_congestion(&socket)?;
    socket.bind((Ipv4Addr::UNSPECIFIED, port).into())?;
    Ok(socket.listen(BACKLOG)?)
}

fn fix_congestion(socket: &impl AsFd) -> Result<()> {
    let name = OsString::from(CONGESTION);
    setsockopt(socket, sockopt::TcpCongestion, &name)
        .with_context(|| format!("congestion control {CONGESTION}"))
}

/// Reads to the end and says how much it was.
async fn count(mut stream: TcpStream) -> Result<()> {
    let (mut buffer, mut total) = (vec![0u8; CHUNK], 0u64);
    loop {
        match stream.read(&mut buffer).await? {
            0 => break,
            length => total += length as u64,
        }
    }
    Ok(stream.write_u64(total).await?)
}

/// Echoes datagrams until none comes any more.
async fn answer(datagrams: UdpSocket, stop: CancellationToken) {
    let mut message = [0u8; 2048];
    loop {
        let received = tokio::select! {
            received = datagrams.recv_from(&mut message) => received,
            () = async { stop.cancelled().await; tokio::time::sleep(QUIET).await } => return,
        };
        let Ok((length, from)) = received else { return };
        // A client that is gone already needs no answer.
        let _ = datagrams.send_to(&message[..length], from).await;
    }
}

/// Asks over UDP, from a connected and from an unconnected socket, and checks that the answers come from the target.
pub async fn ask(target: SocketAddr) -> Result<()> {
    for connected in [true, false] {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).await?;
        let message = format!("connected: {connected}");
        if connected {
            socket.connect(target).await?;
            socket.send(message.as_bytes()).await?;
        } else {
            socket.send_to(message.as_bytes(), target).await?;
        }
        let mut answer = [0u8; 2048];
        let received = tokio::time::timeout(ANSWER_TIMEOUT, socket.recv_from(&mut answer));
        let (length, from) =
            received.await.with_context(|| format!("{message}: no answer of {target}"))??;
        ensure!(&answer[..length] == message.as_bytes(), "{message}: another answer");
        ensure!(from == target, "{message}: asked {target}, answered by {from}");
    }
    println!("answered");
    Ok(())
}

async fn echo(mut stream: TcpStream, stop: &CancellationToken) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut message = [0u8; MESSAGE];
    while stream.read_exact(&mut message).await.is_ok() {
        let last = stop.is_cancelled();
        if last {
            message[0] = CLOSING;
        }
        stream.write_all(&message).await?;
        if last {
            break;
        }
    }
    Ok(())
}

/// Loads the target for `span` for each line of standard input, and answers with a line: the rate per second. Ends with
/// its input.
pub async fn load(target: SocketAddr, mode: Mode, span: Duration) -> Result<()> {
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    let mut stdout = tokio::io::stdout();
    while orders.next_line().await?.is_some() {
        let rate = match mode {
            Mode::Connections | Mode::Requests => exchanges(target, mode, span).await?,
            Mode::Throughput => stream_bytes(target, span).await?,
            Mode::Packets => tokio::task::spawn_blocking(move || flood(target, span)).await??,
        };
        stdout.write_all(format!("{rate}\n").as_bytes()).await?;
        stdout.flush().await?;
    }
    Ok(())
}

async fn exchanges(target: SocketAddr, mode: Mode, span: Duration) -> Result<f64> {
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..PARALLEL {
        tasks.spawn(async move {
            let mut done = 0u64;
            let mut kept = None;
            while started.elapsed() < span {
                let mut stream = match kept.take() {
                    Some(stream) => stream,
                    None => connect(target).await?,
                };
                exchange(&mut stream).await?;
                done += 1;
                if mode == Mode::Requests {
                    kept = Some(stream);
                }
            }
            anyhow::Ok(done)
        });
    }
    let mut done = 0;
    while let Some(task) = tasks.join_next().await {
        done += task??;
    }
    Ok(done as f64 / started.elapsed().as_secs_f64())
}

/// Bytes per second over one connection, until the server says that it has read them all.
async fn stream_bytes(target: SocketAddr, span: Duration) -> Result<f64> {
    let mut stream = connect(target).await?;
    let chunk = vec![7u8; CHUNK];
    let started = Instant::now();
    let mut sent = 0u64;
    while started.elapsed() < span {
        sent += stream.write(&chunk).await? as u64;
    }
    stream.shutdown().await?;
    let read =
        tokio::time::timeout(ANSWER_TIMEOUT, stream.read_u64()).await.context("the bytes' count")??;
    ensure!(read == sent, "sent {sent} bytes, {read} arrived");
    Ok(sent as f64 / started.elapsed().as_secs_f64())
}

/// Datagrams sent per second, from several sockets in turns. How many arrive is for others to say.
fn flood(target: SocketAddr, span: Duration) -> Result<f64> {
    let sockets = (0..FLOWS)
        .map(|_| {
            let socket = std::net::UdpSocket::bind(("0.0.0.0", 0))?;
            socket.connect(target)?;
            Ok(socket)
        })
        .collect::<std::io::Result<Vec<_>>>()?;
    let (started, mut sent) = (Instant::now(), 0u64);
    while started.elapsed() < span {
        for socket in &sockets {
            socket.send(&[7; DATAGRAM])?;
        }
        sent += FLOWS as u64;
    }
    Ok(sent as f64 / started.elapsed().as_secs_f64())
}

/// A connection that ends with a reset.
pub async fn connect(target: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    // Ends with a reset, so that ports do not wait for minutes and run out.
    socket.set_zero_linger()?;
    fix_congestion(&socket)?;
    let stream = socket.connect(target).await.with_context(|| format!("connecting to {target}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn exchange(stream: &mut TcpStream) -> Result<()> {
    let mut message = [7u8; MESSAGE];
    stream.write_all(&message).await?;
    stream.read_exact(&mut message).await?;
    Ok(())
}
