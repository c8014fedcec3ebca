//! Steady requests while the servers behind a Service change: every one is counted, and those that fail.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use crate::load::{ANSWER_TIMEOUT, CLOSING, MESSAGE, connect};

/// Clients of each kind. Few enough that a full socket buffer loses no datagram.
const CLIENTS: [(Kind, usize); 3] = [(Kind::Connections, 4), (Kind::Kept, 8), (Kind::Datagrams, 4)];
/// Texts of failures that are kept.
const MAX_TEXTS: usize = 10;

/// How requests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One TCP connection each.
    Connections,
    /// Over TCP connections that last until the server says that it closes them.
    Kept,
    /// Over UDP, from unconnected sockets.
    Datagrams,
}

/// What became of the requests.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    /// New TCP connections, requests over kept ones, datagrams.
    pub done: [u64; 3],
    /// Those that failed.
    pub failed: [u64; 3],
    /// How the first of them failed.
    pub texts: Vec<String>,
}

/// Makes requests of `target` for `span`, or until the standard input ends, and prints a line of JSON.
pub async fn run(target: SocketAddr, span: Option<Duration>) -> Result<()> {
    let counts = Arc::new(Mutex::new(Counts::default()));
    let stop = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    for (kind, clients) in CLIENTS {
        for _ in 0..clients {
            tasks.spawn(client(kind, target, stop.clone(), counts.clone()));
        }
    }
    match span {
        Some(span) => tokio::time::sleep(span).await,
        None => drop(tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await?),
    }
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    println!("{}", serde_json::to_string(&*counts.lock())?);
    Ok(())
}

async fn client(
    kind: Kind,
    target: SocketAddr,
    stop: CancellationToken,
    counts: Arc<Mutex<Counts>>,
) -> Result<()> {
    let datagrams = UdpSocket::bind(("0.0.0.0", 0)).await?;
    let mut kept = None;
    let mut number = 0u64;
    while !stop.is_cancelled() {
        number += 1;
        let request = async {
            match kind {
                Kind::Datagrams => ask(&datagrams, target, number).await,
                Kind::Connections | Kind::Kept => {
                    let mut stream = match kept.take() {
                        Some(stream) => stream,
                        None => connect(target).await?,
                    };
                    let mut message = [7u8; MESSAGE];
                    stream.write_all(&message).await?;
                    stream.read_exact(&mut message).await?;
                    kept = (kind == Kind::Kept && message[0] != CLOSING).then_some(stream);
                    Ok(())
                }
            }
        };
        let mut request = std::pin::pin!(request);
        let failure = match tokio::time::timeout(ANSWER_TIMEOUT, &mut request).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            // Its socket is still open.
            Err(_) => Some(format!("no answer in time, {}", waiting(target.port()))),
        };
        let mut counts = counts.lock();
        counts.done[kind as usize] += 1;
        let Some(failure) = failure else { continue };
        counts.failed[kind as usize] += 1;
        if counts.texts.len() < MAX_TEXTS {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
            let text = format!("{now:.3} {kind:?}: {failure}");
            counts.texts.push(text);
        }
    }
    Ok(())
}

/// The pods that sockets wait for: connecting, or with bytes that nobody acknowledged. See proc_pid_net(5).
fn waiting(port: u16) -> String {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let mut waiting: Vec<String> = table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (remote, state, queues) = (fields.get(2)?, fields.get(3)?, fields.get(4)?);
            let (address, remote_port) = remote.split_once(':')?;
            let address = Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?.swap_bytes());
            let stuck = *state == "02" || !queues.starts_with("00000000:");
            let is_ours = u16::from_str_radix(remote_port, 16) == Ok(port);
            (is_ours && stuck).then(|| {
                format!("{address} ({})", if *state == "02" { "SYN-SENT" } else { "unacknowledged" })
            })
        })
        .collect();
    waiting.sort();
    waiting.dedup();
    format!("waiting for [{}]", waiting.join(", "))
}

async fn ask(socket: &UdpSocket, target: SocketAddr, number: u64) -> Result<()> {
    socket.send_to(&number.to_be_bytes(), target).await?;
    let mut answer = [0u8; 64];
    loop {
        let (length, from) = socket.recv_from(&mut answer).await?;
        ensure!(from == target, "answered by {from}");
        // The answer to an earlier request that came too late was counted as a failure then.
        if answer[..length] == number.to_be_bytes() {
            return Ok(());
        }
    }
}
