//! Connections into a pod's network namespace, and the streams that lead to them.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;

use super::channel::Subprotocol;
use super::session::{FAREWELL, QUEUE};
use super::spdy::{Connection, Headers, Reader, Role, Stream, Writer, header, reset};
use super::websocket::{self, Socket};

/// How long a pod may take to accept a connection.
const DIAL: Duration = Duration::from_secs(30);
/// How long the second stream of a pair may take (Kubernetes' default).
const CREATION: Duration = Duration::from_secs(30);
/// Bytes read from the pod at once.
const CHUNK: usize = 32 * 1024;
/// The most ports of one WebSocket: channels are numbered by a byte.
pub const MAX_PORTS: usize = 127;

/// Where connections go.
#[derive(Debug, Clone)]
pub struct Target {
    /// The pod's network namespace; None for the host's.
    pub netns: Option<PathBuf>,
    /// For messages: name of the pod with its namespace.
    pub pod: String,
    /// For messages.
    pub uid: String,
    /// Ports that were named before (for WebSocket channels).
    pub ports: Vec<u16>,
}

/// A TCP socket of a network namespace. A socket keeps the namespace that it was made in, so one short-lived thread
/// enters it and nothing else does.
async fn open_socket(netns: &Path, family: AddressFamily) -> io::Result<OwnedFd> {
    let namespace = std::fs::File::open(netns)?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
        let made = setns(namespace, CloneFlags::CLONE_NEWNET).and_then(|()| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            socket(family, SockType::Stream, flags, None)
        });
        // The receiver waits, or its task was cancelled: then nobody needs the answer.
        let _ = sender.send(made);
    })?;
    Ok(receiver.await.map_err(|_| io::Error::other("the namespace's thread died"))??)
}

async fn dial(target: &Target, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match &target.netns {
        Some(netns) => {
            let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            TcpSocket::from_std_stream(open_socket(netns, family).await?.into())
        }
        None if address.is_ipv4() => TcpSocket::new_v4()?,
        None => TcpSocket::new_v6()?,
    };
    let stream = tokio::time::timeout(DIAL, socket.connect(address)).await??;
    // Small writes are keystrokes. Failing to say so only costs time.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Connects to a port of the pod's loopback, by IPv4 and else by IPv6.
async fn connect(target: &Target, port: u16) -> Result<TcpStream, String> {
    let mut why = String::new();
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let address = SocketAddr::new(ip, port);
        match dial(target, address).await {
            Ok(stream) => return Ok(stream),
            Err(e) if why.is_empty() => {
                let text = e.to_string().to_lowercase();
                let text = text.split(" (os error").next().unwrap_or_default();
                why = format!("dial tcp {address}: connect: {text}");
            }
            Err(_) => {}
        }
    }
    Err(why)
}

/// What a client sends to a port.
enum Incoming {
    Stream(Reader),
    Channel(mpsc::Receiver<Bytes>),
}

impl Incoming {
    async fn next(&mut self) -> Option<Bytes> {
        match self {
            Self::Stream(reader) => reader.next().await,
            Self::Channel(queue) => queue.recv().await,
        }
    }
}

/// What a client gets.
enum Outgoing {
    Stream(Writer),
    Channel { messages: mpsc::Sender<Bytes>, protocol: Subprotocol, channel: u8 },
}

impl Outgoing {
    /// False when the client takes no more.
    async fn give(&self, data: Bytes) -> bool {
        match self {
            Self::Stream(writer) => writer.write(data).await.is_ok(),
            Self::Channel { messages, protocol, channel } => {
                messages.send(protocol.encode(*channel, &data)).await.is_ok()
            }
        }
    }

    async fn finish(self) {
        if let Self::Stream(writer) = self {
            writer.finish().await;
        }
    }
}

/// One connection to a port: its data, and where it is said what went wrong. Over when the pod has nothing more to say.
async fn forward(target: Target, port: u16, input: Incoming, output: Outgoing, error: Outgoing) {
    let told = |e: &dyn std::fmt::Display| {
        format!("error forwarding port {port} to pod {}, uid {}: {e}", target.pod, target.uid)
    };
    let failure = match connect(&target, port).await {
        Ok(pod) => copy(pod, input, &output).await.err().map(|e| told(&e)),
        Err(e) => Some(told(&e)),
    };
    if let Some(failure) = failure {
        error.give(failure.into()).await;
    }
    output.finish().await;
    error.finish().await;
}

async fn copy(pod: TcpStream, mut input: Incoming, output: &Outgoing) -> io::Result<()> {
    let (mut from_pod, mut to_pod) = pod.into_split();
    let inward = async {
        while let Some(data) = input.next().await {
            to_pod.write_all(&data).await?;
        }
        to_pod.shutdown().await
    };
    let outward = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK);
            if from_pod.read_buf(&mut buffer).await? == 0 || !output.give(buffer.split().freeze()).await {
                return Ok(());
            }
        }
    };
    let mut outward = std::pin::pin!(outward);
    tokio::select! {
        done = &mut outward => done,
        // A pod that reads no more may still have something to say.
        _ = inward => outward.await,
    }
}

fn port(headers: &Headers) -> Option<u16> {
    header(headers, "port").parse().ok().filter(|p| *p != 0)
}

fn acceptable(headers: &Headers) -> bool {
    port(headers).is_some() && matches!(header(headers, "streamtype"), "data" | "error")
}

/// What pairs two streams. Old clients number nothing: their data stream is the one after the error stream.
fn request_id(stream: &Stream) -> String {
    match (header(&stream.headers, "requestid"), header(&stream.headers, "streamtype")) {
        ("", "data") => stream.id.saturating_sub(2).to_string(),
        ("", _) => stream.id.to_string(),
        (id, _) => id.to_owned(),
    }
}

/// Serves port-forwards over SPDY until the client goes.
pub async fn over_spdy<S>(socket: S, target: Target)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (connection, mut streams) = Connection::start(socket, Role::Server, acceptable);
    let mut waiting: HashMap<String, (Instant, Stream)> = HashMap::new();
    let mut look = tokio::time::interval(CREATION / 2);
    loop {
        let stream = tokio::select! {
            stream = streams.recv() => stream,
            _ = look.tick() => {
                let late: Vec<String> = waiting
                    .iter()
                    .filter(|(_, (since, _))| since.elapsed() > CREATION)
                    .map(|(id, _)| id.clone())
                    .collect();
                for (_, stream) in late.iter().filter_map(|id| waiting.remove(id)) {
                    stream.writer.reset(reset::CANCEL);
                }
                continue;
            }
        };
        let Some(stream) = stream else { break };
        let id = request_id(&stream);
        let is_data = |s: &Stream| header(&s.headers, "streamtype") == "data";
        match waiting.remove(&id) {
            None => {
                waiting.insert(id, (Instant::now(), stream));
            }
            Some((_, first)) if is_data(&first) != is_data(&stream) => {
                let (data, error) = if is_data(&first) { (first, stream) } else { (stream, first) };
                // Only streams with a port are accepted.
                let Some(port) = port(&data.headers) else { continue };
                let (output, error) = (Outgoing::Stream(data.writer), Outgoing::Stream(error.writer));
                tokio::spawn(forward(target.clone(), port, Incoming::Stream(data.reader), output, error));
            }
            Some(first) => {
                stream.writer.reset(reset::PROTOCOL_ERROR);
                waiting.insert(id, first);
            }
        }
    }
    drop(waiting);
    connection.closed().await;
}

/// Serves the ports of the URL over WebSocket channels: two for each port, data and error, which begin with the port
/// in two bytes, the low one first.
pub async fn over_channels(socket: Socket, protocol: Subprotocol, target: Target) {
    let (sink, mut stream) = socket.split();
    let (messages, queue) = mpsc::channel(QUEUE);
    let writer = tokio::spawn(websocket::write_messages(sink, queue, protocol));
    let mut inputs = Vec::new();
    let mut forwards = tokio::task::JoinSet::new();
    for (n, port) in target.ports.iter().copied().enumerate().take(MAX_PORTS) {
        let Ok(channel) = u8::try_from(2 * n) else { break };
        for channel in [channel, channel + 1] {
            let _ = messages.send(protocol.encode(channel, &port.to_le_bytes())).await;
        }
        let (to_pod, input) = mpsc::channel::<Bytes>(QUEUE);
        inputs.push(to_pod);
        let end = |channel| Outgoing::Channel { messages: messages.clone(), protocol, channel };
        let (output, error) = (end(channel), end(channel + 1));
        forwards.spawn(forward(target.clone(), port, Incoming::Channel(input), output, error));
    }
    drop(messages);
    let reading = async {
        while let Some(Ok(message)) = stream.next().await {
            let input = websocket::data(message).and_then(|m| protocol.decode(&m));
            if let Some((channel, data)) = input
                && channel % 2 == 0
                && let Some(to_pod) = inputs.get(usize::from(channel / 2))
            {
                // A port whose connection has ended takes nothing more.
                let _ = to_pod.send(data).await;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = async { while forwards.join_next().await.is_some() {} } => {}
    }
    forwards.shutdown().await;
    let _ = tokio::time::timeout(FAREWELL, writer).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&str, &str)]) -> Headers {
        all.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn streams_say_what_they_are_for() {
        for (streamtype, port, good) in [
            ("data", "80", true),
            ("error", "65535", true),
            ("stdin", "80", false),
            ("data", "0", false),
            ("data", "65536", false),
            ("data", "", false),
        ] {
            let headers = headers(&[("streamtype", streamtype), ("port", port)]);
            assert_eq!(acceptable(&headers), good, "{headers:?}");
        }
    }

    /// A client over a pair of pipes, a pod on this machine's loopback.
    #[tokio::test]
    async fn pairs_lead_to_ports() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut r, mut w) = stream.split();
                    let _ = tokio::io::copy(&mut r, &mut w).await;
                });
            }
        });
        let (near, far) = tokio::io::duplex(4096);
        let target = Target { netns: None, pod: "ns/p".into(), uid: "u".into(), ports: Vec::new() };
        let serving = tokio::spawn(over_spdy(far, target));
        let (client, _) = Connection::start(near, Role::Client, |_| false);
        let open = async |kind: &str, port: u16, id: &str| {
            let port = port.to_string();
            let headers = headers(&[("streamtype", kind), ("port", &port), ("requestid", id)]);
            client.open(headers).expect("open")
        };
        for (id, reversed) in [("0", false), ("1", true)] {
            let (mut error, mut data) = if reversed {
                let data = open("data", port, id).await;
                (open("error", port, id).await, data)
            } else {
                (open("error", port, id).await, open("data", port, id).await)
            };
            error.writer.finish().await;
            data.writer.write(Bytes::from_static(b"hello")).await.expect("write");
            data.writer.finish().await;
            let mut got = Vec::new();
            while let Some(bytes) = data.reader.next().await {
                got.extend(bytes);
            }
            assert_eq!(got, b"hello");
            assert_eq!(error.reader.next().await, None);
        }
        // A port that nobody listens on. It was free a moment ago.
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let nobody = free.local_addr().expect("address").port();
        drop(free);
        let mut error = open("error", nobody, "2").await;
        let mut data = open("data", nobody, "2").await;
        assert_eq!(data.reader.next().await, None);
        let text = error.reader.next().await.expect("an error");
        let text = String::from_utf8_lossy(&text);
        assert!(
            text.contains(&format!("error forwarding port {nobody} to pod ns/p, uid u: dial tcp 127.0.0.1"))
                && text.contains("connection refused"),
            "{text}"
        );
        client.close().await;
        serving.await.expect("served");
    }
}
