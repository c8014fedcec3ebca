//! Exec and attach, as kubectl's WebSocket client speaks them, and what the streaming server refuses.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use k8s_cri::v1::*;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::kit::{FOREVER, Failure, Node, Outcome, PATIENCE, Pod, ensure, eventually, sh};

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";

/// A session from the client's side.
struct Session {
    socket: WebSocketStream<TcpStream>,
    out: Vec<u8>,
    err: Vec<u8>,
    status: Option<serde_json::Value>,
}

impl Session {
    async fn open(url: &str, protocol: &str) -> Result<Self, Failure> {
        let rest = url.strip_prefix("http://").ok_or_else(|| Failure(format!("url {url}")))?;
        let address = rest.split('/').next().unwrap_or_default().to_owned();
        let mut request = format!("ws://{rest}").into_client_request()?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse()?);
        let stream = TcpStream::connect(address).await?;
        let (socket, response) = tokio_tungstenite::client_async(request, stream).await?;
        let chosen = response.headers().get("Sec-WebSocket-Protocol").and_then(|p| p.to_str().ok());
        ensure!(chosen.is_some_and(|c| protocol.contains(c)), "{chosen:?}");
        Ok(Self { socket, out: Vec::new(), err: Vec::new(), status: None })
    }

    async fn send(&mut self, channel: u8, data: &[u8]) -> Outcome {
        let message = [&[channel], data].concat();
        Ok(self.socket.send(Message::Binary(message.into())).await?)
    }

    /// Takes one message; false at the end.
    async fn step(&mut self) -> Result<bool, Failure> {
        match tokio::time::timeout(PATIENCE, self.socket.next()).await? {
            None => Ok(false),
            Some(Ok(Message::Close(frame))) => {
                // kubectl takes any other code for a failure.
                let code = frame.map(|f| u16::from(f.code));
                ensure!(code == Some(1000), "closed with {code:?}");
                Ok(false)
            }
            Some(Ok(Message::Binary(data))) => {
                match data.split_first() {
                    Some((1, rest)) => self.out.extend(rest),
                    Some((2, rest)) => self.err.extend(rest),
                    Some((3, rest)) => self.status = Some(serde_json::from_slice(rest)?),
                    other => return Err(Failure(format!("message {other:?}"))),
                }
                Ok(true)
            }
            Some(Ok(other)) => Err(Failure(format!("message {other:?}"))),
            Some(Err(e)) => Err(e.into()),
        }
    }

    async fn until(&mut self, text: &str) -> Outcome {
        while !String::from_utf8_lossy(&self.out).contains(text) {
            let more = self.step().await?;
            ensure!(more, "the stream ended before {text:?}: {:?}", String::from_utf8_lossy(&self.out));
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<(String, String, serde_json::Value), Failure> {
        while self.step().await? {}
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        let status = self.status.ok_or_else(|| Failure("no status".into()))?;
        Ok((text(&self.out), text(&self.err), status))
    }
}

async fn exec(pod: &Pod, id: &str, script: &str, tty: bool, protocol: &str) -> Result<Session, Failure> {
    let request = ExecRequest {
        container_id: id.into(),
        cmd: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    };
    let url = pod.runtime.clone().exec(request).await?.into_inner().url;
    Session::open(&url, protocol).await
}

pub async fn exec_sync(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    let id = pod.start(sh(FOREVER)).await?;
    let r = pod.exec(&id, "echo out; echo err >&2; exit 5").await?;
    ensure!(r.stdout == b"out\n" && r.stderr == b"err\n" && r.exit_code == 5, "{r:?}");
    let own =
        pod.output(&id, "readlink /proc/self/ns/pid; hostname; cat /proc/1/cmdline | tr '\\0' ' '").await?;
    ensure!(own.contains("trap") && own.contains(&pod.config.hostname), "{own}");
    let begin = Instant::now();
    let request = ExecSyncRequest {
        container_id: id.clone(),
        cmd: ["/bin/sh", "-c", "sleep 999 & wait"].map(str::to_owned).to_vec(),
        timeout: 1,
    };
    let late = pod.runtime.clone().exec_sync(request).await;
    ensure!(late.as_ref().is_err_and(|e| e.code() == tonic::Code::DeadlineExceeded), "{late:?}");
    ensure!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    // What was started by it is gone too.
    let left = pod.exec(&id, "ps | grep '[s]leep 999'").await?;
    ensure!(left.stdout.is_empty(), "{left:?}");
    let missing = ExecSyncRequest { container_id: id, cmd: vec!["nothing".into()], timeout: 5 };
    let failed = pod.runtime.clone().exec_sync(missing).await;
    ensure!(failed.is_err_and(|e| e.message().contains("not found in $PATH")), "a missing program ran");
    Ok(())
}

pub async fn exec_over_websocket(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    let id = pod.start(sh(FOREVER)).await?;
    let mut s = exec(&pod, &id, "cat; echo done >&2; exit 3", false, &format!("{V4}, {V5}")).await?;
    s.send(0, b"hello ").await?;
    s.send(0, b"there").await?;
    s.until("hello there").await?;
    // v5: closing stdin ends cat.
    s.send(255, &[0]).await?;
    let (out, err, status) = s.finish().await?;
    ensure!(out == "hello there" && err == "done\n", "{out:?} {err:?}");
    ensure!(status["status"] == "Failure" && status["reason"] == "NonZeroExitCode", "{status}");
    let cause = &status["details"]["causes"][0];
    ensure!(cause["reason"] == "ExitCode" && cause["message"] == "3", "{status}");

    let (_, _, status) = exec(&pod, &id, "true", false, V4).await?.finish().await?;
    ensure!(status == serde_json::json!({ "metadata": {}, "status": "Success" }), "{status}");
    let mut request = ExecRequest { container_id: id.clone(), stdout: true, ..Default::default() };
    request.cmd = vec!["no-such-program".into()];
    let url = pod.runtime.clone().exec(request).await?.into_inner().url;
    let (_, _, status) = Session::open(&url, V5).await?.finish().await?;
    ensure!(status["reason"] == "InternalError", "{status}");
    ensure!(status["message"].as_str().is_some_and(|m| m.contains("not found in $PATH")), "{status}");
    // A URL is good once.
    ensure!(Session::open(&url, V5).await.is_err(), "a URL was used twice");
    Ok(())
}

pub async fn exec_with_terminal(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    let id = pod.start(sh(FOREVER)).await?;
    let script = "trap 'stty size' WINCH; tty; while :; do read line || continue; echo got $line; test $line = end && exit 4; done";
    let mut s = exec(&pod, &id, script, true, V5).await?;
    s.until("/dev/pts/").await?;
    s.send(4, br#"{"Width":97,"Height":31}"#).await?;
    s.send(0, b"x\n").await?;
    s.until("got x").await?;
    s.until("31 97").await?;
    s.send(0, b"end\n").await?;
    let (out, _, status) = s.finish().await?;
    ensure!(out.contains("got end\r\n"), "{out:?}");
    ensure!(status["details"]["causes"][0]["message"] == "4", "{status}");
    // A client that goes away hangs up.
    let s = exec(&pod, &id, "sleep 777", true, V5).await?;
    eventually("it runs", async || Ok(pod.output(&id, "ps | grep -c '[s]leep 777'").await.is_ok())).await?;
    drop(s);
    eventually("it is hung up on", async || {
        Ok(pod.exec(&id, "ps | grep -c '[s]leep 777'").await?.stdout == b"0\n")
    })
    .await
}

pub async fn exec_much_output(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    let id = pod.start(sh(FOREVER)).await?;
    let (out, _, status) = exec(&pod, &id, "seq 1 300000", false, V5).await?.finish().await?;
    ensure!(status["status"] == "Success", "{status}");
    ensure!(out.lines().count() == 300_000 && out.ends_with("\n300000\n"), "{} bytes", out.len());
    // And in: what goes in comes out whole.
    let mut s = exec(&pod, &id, "wc -c", false, V5).await?;
    for _ in 0..64 {
        s.send(0, &[b'x'; 32 * 1024]).await?;
    }
    s.send(255, &[0]).await?;
    let (out, _, _) = s.finish().await?;
    ensure!(out.trim() == (64 * 32 * 1024).to_string(), "{out}");
    // A program that leaves a child with its output open does not hang the session.
    let begin = Instant::now();
    let (out, _, _) = exec(&pod, &id, "sleep 50 & echo out", false, V5).await?.finish().await?;
    ensure!(out == "out\n" && begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    Ok(())
}

pub async fn attach(node: Arc<Node>) -> Outcome {
    let pod = node.pod().await?;
    let mut config = sh("while read line; do echo $line; echo $line >&2; done; echo end of input");
    config.stdin = true;
    config.stdin_once = true;
    let id = pod.start(config).await?;
    let request =
        AttachRequest { container_id: id.clone(), stdin: true, tty: false, stdout: true, stderr: true };
    let mut runtime = pod.runtime.clone();
    let url = runtime.attach(request.clone()).await?.into_inner().url;
    let mut first = Session::open(&url, V5).await?;
    first.send(0, b"one\n").await?;
    first.until("one").await?;
    // A second one sees what comes from then on.
    let url = runtime.attach(AttachRequest { stdin: false, ..request }).await?.into_inner().url;
    let mut second = Session::open(&url, V5).await?;
    second.step().await?;
    first.send(0, b"two\n").await?;
    second.until("two").await?;
    first.send(255, &[0]).await?;
    let (out, err, status) = first.finish().await?;
    ensure!(out == "one\ntwo\nend of input\n" && err == "one\ntwo\n", "{out:?} {err:?}");
    ensure!(status["status"] == "Success", "{status}");
    let (out, _, _) = second.finish().await?;
    ensure!(out == "two\nend of input\n", "{out:?}");
    let ran = pod.wait(&id).await?;
    ensure!(ran.code == 0 && ran.out == "one\ntwo\nend of input\n", "{ran:?}");
    Ok(())
}

pub async fn what_streams_refuse(node: Arc<Node>) -> Outcome {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let pod = node.pod().await?;
    let id = pod.start(sh(FOREVER)).await?;
    let request = ExecRequest {
        container_id: id.clone(),
        cmd: vec!["true".into()],
        stdout: true,
        ..Default::default()
    };
    let mut runtime = pod.runtime.clone();
    let url = runtime.exec(request.clone()).await?.into_inner().url;
    let (address, path) = url.trim_start_matches("http://").split_once('/').unwrap_or_default();
    let cases = [
        ("Upgrade: SPDY/3.1\r\nConnection: Upgrade", "400"),
        ("Upgrade: SPDY/3.1\r\nConnection: Upgrade\r\nX-Stream-Protocol-Version: v9.channel.k8s.io", "403"),
        ("Accept: */*", "400"),
        (
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: \
             dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v9.channel.k8s.io",
            "400",
        ),
    ];
    for (headers, code) in cases {
        let mut stream = TcpStream::connect(address).await?;
        let head = format!("GET /{path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut answer = vec![0; 64];
        let n = tokio::time::timeout(PATIENCE, stream.read(&mut answer)).await??;
        let answer = String::from_utf8_lossy(&answer[..n]);
        ensure!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{headers}: {answer}");
    }
    let refused = [
        runtime.exec(ExecRequest { tty: true, stderr: true, ..request.clone() }).await.is_err(),
        runtime.exec(ExecRequest { stdout: false, ..request.clone() }).await.is_err(),
        runtime.exec(ExecRequest { cmd: vec![], ..request.clone() }).await.is_err(),
        runtime.exec(ExecRequest { container_id: "none".into(), ..request }).await.is_err(),
    ];
    ensure!(refused.iter().all(|r| *r), "{refused:?}");
    let none = PortForwardRequest { pod_sandbox_id: "none".into(), port: vec![80] };
    ensure!(runtime.port_forward(none).await.is_err(), "a port-forward to no pod");
    let bad = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![70_000] };
    let bad = runtime.port_forward(bad).await;
    ensure!(bad.is_err_and(|e| e.code() == tonic::Code::InvalidArgument), "a port-forward to no port");
    Ok(())
}
