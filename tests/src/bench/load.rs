//! The load generator that runs inside the bench's pods: a server, and a client that compares targets in turns.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Bytes of a request and of its answer.
pub const MESSAGE: usize = 64;
/// Connections of the request mode, and connecting tasks of the connection mode.
const PARALLEL: usize = 16;
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
}

/// Echoes, over TCP and UDP, until it is told to stop, and then politely: who is connected hears of it with the next
/// answer, and what is on its way is answered.
pub async fn serve(port: u16) -> Result<()> {
    let mut signal = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    let datagrams = UdpSocket::bind(("0.0.0.0", port)).await?;
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

/// Loads each target for `span`, in turns, and prints a line of JSON with the rates per second of each target. Every
/// other round goes through the targets backwards, so that none is always the one that comes after another.
pub async fn load(targets: &[SocketAddr], mode: Mode, rounds: usize, span: Duration) -> Result<()> {
    let mut rates = vec![Vec::new(); targets.len()];
    // One round to warm up, which does not count.
    for round in 0..=rounds {
        for turn in 0..targets.len() {
            let at = if round % 2 == 0 { turn } else { targets.len() - 1 - turn };
            let rate = one_round(targets[at], mode, span).await?;
            if round > 0 {
                rates[at].push(rate);
            }
        }
    }
    println!("{}", json!({"rates": rates}));
    Ok(())
}

async fn one_round(target: SocketAddr, mode: Mode, span: Duration) -> Result<f64> {
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

/// A connection that ends with a reset.
pub async fn connect(target: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    // Ends with a reset, so that ports do not wait for minutes and run out.
    socket.set_zero_linger()?;
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
