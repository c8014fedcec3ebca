//! Exec, attach and port-forward as kubectl's SPDY client and its WebSocket tunnel speak them.

use std::sync::Arc;

use futures::{SinkExt, StreamExt};
use hawser_runtime::streaming::spdy::{Connection, Headers, Reader, Role, Stream};
use k8s_cri::v1::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::kit::{FOREVER, Failure, Node, Outcome, PATIENCE, Pod, ensure, eventually, sh};

fn parts(url: &str) -> Result<(String, String), Failure> {
    let rest = url.strip_prefix("http://").ok_or_else(|| Failure(format!("url {url}")))?;
    let (address, path) = rest.split_once('/').ok_or_else(|| Failure(format!("url {url}")))?;
    Ok((address.to_owned(), path.to_owned()))
}

/// Upgrades to SPDY the way client-go does.
async fn connect(url: &str, protocol: &str) -> Result<Connection, Failure> {
    let (address, path) = parts(url)?;
    let mut stream = TcpStream::connect(&address).await?;
    let head = format!(
        "POST /{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\
         X-Stream-Protocol-Version: {protocol}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(tokio::time::timeout(PATIENCE, stream.read_u8()).await??);
    }
    let answer = String::from_utf8_lossy(&answer).to_lowercase();
    ensure!(answer.starts_with("http/1.1 101 "), "{answer}");
    let chosen = format!("x-stream-protocol-version: {protocol}");
    ensure!(answer.contains(&chosen) && answer.contains("upgrade: spdy/3.1"), "{answer}");
    Ok(Connection::start(stream, Role::Client, |_| false).0)
}

fn headers(all: &[(&str, &str)]) -> Headers {
    all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn open(connection: &Connection, kind: &str) -> Result<Stream, Failure> {
    Ok(connection.open(headers(&[("streamtype", kind)]))?)
}

async fn rest(reader: &mut Reader) -> Result<String, Failure> {
    let mut out = Vec::new();
    while let Some(data) = tokio::time::timeout(PATIENCE, reader.next()).await? {
        out.extend(data);
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

async fn until(reader: &mut Reader, text: &str) -> Outcome {
    let mut out = String::new();
    while !out.contains(text) {
        let data = tokio::time::timeout(PATIENCE, reader.next()).await?;
        let data = data.ok_or_else(|| Failure(format!("the stream ended before {text:?}: {out:?}")))?;
        out += &String::from_utf8_lossy(&data);
    }
    Ok(())
}

async fn exec(pod: &Pod, id: &str, script: &str, tty: bool, protocol: &str) -> Result<Connection, Failure> {
    let request = ExecRequest {
        container_id: id.into(),
        cmd: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    };
    connect(&pod.runtime.clone().exec(request).await?.into_inner().url, protocol).await
}

pub async fn exec_over_spdy(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    let id = pod.start(sh(FOREVER)).await?;
    for (protocol, json) in
        [("v4.channel.k8s.io", true), ("v3.channel.k8s.io", false), ("v2.channel.k8s.io", false)]
    {
        let connection = exec(&pod, &id, "cat; echo done >&2; exit 3", false, protocol).await?;
        let mut error = open(&connection, "error")?;
        let stdin = open(&connection, "stdin")?;
        let mut stdout = open(&connection, "stdout")?;
        let mut stderr = open(&connection, "stderr")?;
        error.writer.finish().await;
        stdin.writer.write(b"hello ".as_slice().into()).await?;
        until(&mut stdout.reader, "hello ").await?;
        // More than queues and windows hold.
        let much = vec![b'x'; 2 << 20];
        let writing = stdin.writer.clone();
        let (wrote, out) = tokio::join!(
            async {
                writing.write(much.into()).await?;
                writing.finish().await;
                Ok::<_, std::io::Error>(())
            },
            rest(&mut stdout.reader)
        );
        wrote?;
        ensure!(out?.len() == 2 << 20, "{protocol}: not all came back");
        ensure!(rest(&mut stderr.reader).await? == "done\n", "{protocol}: stderr");
        let status = rest(&mut error.reader).await?;
        if json {
            let status: serde_json::Value = serde_json::from_str(&status)?;
            let cause = &status["details"]["causes"][0];
            ensure!(status["reason"] == "NonZeroExitCode" && cause["message"] == "3", "{status}");
        } else {
            ensure!(status == "command terminated with non-zero exit code: exit code 3", "{status}");
        }
    }
    Ok(())
}

pub async fn spdy_terminal(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    let id = pod.start(sh(FOREVER)).await?;
    let script = "trap 'stty size' WINCH; while :; do read line || continue; echo got $line; test $line = end && exit 0; done";
    let connection = exec(&pod, &id, script, true, "v4.channel.k8s.io").await?;
    let mut error = open(&connection, "error")?;
    let stdin = open(&connection, "stdin")?;
    let mut stdout = open(&connection, "stdout")?;
    let resize = open(&connection, "resize")?;
    stdin.writer.write(b"x\n".as_slice().into()).await?;
    until(&mut stdout.reader, "got x").await?;
    resize.writer.write(b"{\"Width\":97,\"Height\":31}\n".as_slice().into()).await?;
    until(&mut stdout.reader, "31 97").await?;
    stdin.writer.write(b"end\n".as_slice().into()).await?;
    until(&mut stdout.reader, "got end").await?;
    let status: serde_json::Value = serde_json::from_str(&rest(&mut error.reader).await?)?;
    ensure!(status["status"] == "Success", "{status}");
    // A client that goes away hangs up.
    let connection = exec(&pod, &id, "sleep 779", true, "v4.channel.k8s.io").await?;
    let streams = ["error", "stdin", "stdout", "resize"].map(|kind| open(&connection, kind));
    eventually("it runs", async || Ok(pod.output(&id, "ps | grep -c '[s]leep 779'").await.is_ok())).await?;
    connection.close().await;
    drop(streams);
    eventually("it is hung up on", async || {
        Ok(pod.exec(&id, "ps | grep -c '[s]leep 779'").await?.stdout == b"0\n")
    })
    .await
}

/// Sends a line to a port and takes one back; or the error stream's text.
async fn ask(connection: &Connection, port: u16, id: &str) -> Result<(String, String), Failure> {
    let port = port.to_string();
    let with = |kind| headers(&[("streamtype", kind), ("port", &port), ("requestid", id)]);
    let mut error = connection.open(with("error"))?;
    error.writer.finish().await;
    let mut data = connection.open(with("data"))?;
    data.writer.write(b"ping\n".as_slice().into()).await?;
    data.writer.finish().await;
    Ok((rest(&mut data.reader).await?, rest(&mut error.reader).await?))
}

pub async fn port_forward(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    let id = pod.start(sh("exec nc -ll -p 7070 -e cat")).await?;
    // 7070 in hexadecimal, listening.
    eventually("it listens", async || {
        Ok(pod.exec(&id, "cat /proc/net/tcp /proc/net/tcp6 | grep -c ':1B9E .* 0A '").await?.exit_code == 0)
    })
    .await?;
    let request = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![7070, 7071] };
    let mut runtime = pod.runtime.clone();
    let url = runtime.port_forward(request.clone()).await?.into_inner().url;
    let connection = connect(&url, "portforward.k8s.io").await?;
    // Several connections at once, in the pod's own network namespace.
    let (first, second) = tokio::join!(ask(&connection, 7070, "0"), ask(&connection, 7070, "1"));
    ensure!(first? == ("ping\n".into(), String::new()), "the first");
    ensure!(second? == ("ping\n".into(), String::new()), "the second");
    let (data, error) = ask(&connection, 7071, "2").await?;
    ensure!(data.is_empty() && error.contains("error forwarding port 7071 to pod"), "{data:?} {error:?}");
    ensure!(error.contains("connect: connection refused"), "{error}");
    connection.close().await;

    // The tunnel (KEP-4006): the same, in the messages of a WebSocket.
    let url = runtime.port_forward(request.clone()).await?.into_inner().url;
    let (address, path) = parts(&url)?;
    let mut handshake = format!("ws://{address}/{path}").into_client_request()?;
    handshake.headers_mut().insert("Sec-WebSocket-Protocol", "SPDY/3.1+portforward.k8s.io".parse()?);
    let (socket, _) = tokio_tungstenite::client_async(handshake, TcpStream::connect(&address).await?).await?;
    let (near, far) = tokio::io::duplex(4096);
    let (mut sink, mut stream) = socket.split();
    let (mut from_far, mut to_far) = tokio::io::split(far);
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok(n @ 1..) = from_far.read(&mut buffer).await {
            if sink.send(Message::Binary(buffer[..n].to_vec().into())).await.is_err() {
                break;
            }
        }
    });
    tokio::spawn(async move {
        while let Some(Ok(Message::Binary(data))) = stream.next().await {
            if to_far.write_all(&data).await.is_err() {
                break;
            }
        }
    });
    let tunnel = Connection::start(near, Role::Client, |_| false).0;
    ensure!(ask(&tunnel, 7070, "7").await? == ("ping\n".into(), String::new()), "through the tunnel");

    // Channels: each begins with its port.
    let url = runtime.port_forward(request).await?.into_inner().url;
    let (address, path) = parts(&url)?;
    let mut handshake = format!("ws://{address}/{path}").into_client_request()?;
    handshake.headers_mut().insert("Sec-WebSocket-Protocol", "v4.channel.k8s.io".parse()?);
    let (mut socket, _) =
        tokio_tungstenite::client_async(handshake, TcpStream::connect(&address).await?).await?;
    socket.send(Message::Binary(b"\x00pong\n".as_slice().into())).await?;
    let mut got: Vec<Vec<u8>> = vec![Vec::new(); 4];
    while got[0].len() < 7 || got[3].len() < 3 {
        let message = tokio::time::timeout(PATIENCE, socket.next()).await?;
        let message = message.ok_or_else(|| Failure(format!("ended: {got:?}")))??;
        let data = message.into_data();
        let channel = usize::from(data[0]);
        ensure!(channel < 4, "channel {channel}");
        got[channel].extend(&data[1..]);
    }
    ensure!(got[0] == [&7070u16.to_le_bytes()[..], b"pong\n"].concat(), "{:?}", got[0]);
    ensure!(got[1] == 7070u16.to_le_bytes() && got[2] == 7071u16.to_le_bytes(), "{got:?}");
    let error = String::from_utf8_lossy(&got[3][2..]).into_owned();
    ensure!(error.contains("error forwarding port 7071"), "{error}");
    Ok(())
}
