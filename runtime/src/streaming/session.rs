//! One exec or attach session over a WebSocket.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::{AttachRequest, ExecRequest};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::channel::{self, Input, Outcome, Subprotocol};
use super::{Pending, exec};
use crate::error::{Error, Result};
use crate::service::Inner;
use crate::shim::proto::{Request, Response};
use crate::shim::stdio;
use crate::sys::{fd, tty};

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Messages queued to and from a client before its peer has to wait.
const QUEUE: usize = 16;
/// How long a client may take to accept the last messages.
const FAREWELL: Duration = Duration::from_secs(10);

/// What a session is made of.
struct Streams {
    stdin: Option<Arc<AsyncFd<File>>>,
    outputs: Vec<(u8, Arc<AsyncFd<File>>)>,
    terminal: Option<Arc<AsyncFd<File>>>,
}

/// Runs a session to its end.
pub(crate) async fn run(inner: &Arc<Inner>, socket: Socket, protocol: Subprotocol, pending: Pending) {
    let (sink, stream) = socket.split();
    let (messages, queue) = mpsc::channel(QUEUE);
    let writer = tokio::spawn(write_messages(sink, queue));
    let outcome = match pending {
        Pending::Exec(request) => run_exec(inner, stream, protocol, request, &messages).await,
        Pending::Attach(request) => run_attach(inner, stream, protocol, request, &messages).await,
    };
    let outcome = outcome.unwrap_or_else(|e| Outcome::Failed(e.to_string()));
    let _ = messages.send(channel::encode(channel::ERROR, &channel::status(&outcome))).await;
    drop(messages);
    // A client that takes nothing any more is left.
    let _ = tokio::time::timeout(FAREWELL, writer).await;
}

/// Sends messages, and a close frame after the last.
async fn write_messages(mut sink: SplitSink<Socket, Message>, mut queue: mpsc::Receiver<Bytes>) {
    while let Some(message) = queue.recv().await {
        if sink.send(Message::Binary(message)).await.is_err() {
            return;
        }
    }
    // Clients take a close without this code for a failure. The connection may be gone already.
    let normal = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() };
    let _ = sink.send(Message::Close(Some(normal))).await;
    let _ = sink.close().await;
}

/// Tells the client that the session stands: an empty message on the first channel it reads.
async fn greet(messages: &mpsc::Sender<Bytes>, stdout: bool, stderr: bool) {
    let first = match (stdout, stderr) {
        (true, _) => channel::STDOUT,
        (false, true) => channel::STDERR,
        (false, false) => channel::ERROR,
    };
    let _ = messages.send(channel::encode(first, &[])).await;
}

/// Copies the client's input until it closes the connection, which ends `resize`; `stdin_closed` tells that no more
/// input comes, or none is taken.
async fn read_client(
    mut stream: SplitStream<Socket>,
    protocol: Subprotocol,
    stdin: Option<Arc<AsyncFd<File>>>,
    resize: mpsc::Sender<(u16, u16)>,
    stdin_closed: watch::Sender<bool>,
) {
    // Input has a task of its own: a program that does not read must not keep sizes from its terminal.
    let (chunks, mut queue) = mpsc::channel::<Bytes>(QUEUE);
    let mut chunks = stdin.is_some().then_some(chunks);
    let feeder = async move {
        if let Some(stdin) = stdin {
            while let Some(chunk) = queue.recv().await {
                if stdio::write_all(&stdin, &chunk).await.is_err() {
                    break;
                }
            }
        }
        // Dropping the last reference closes the pipe: end of file for the program.
        stdin_closed.send_replace(true);
    };
    let reader = async move {
        while let Some(Ok(message)) = stream.next().await {
            let data = match message {
                Message::Binary(data) => data,
                Message::Close(_) => break,
                _ => continue,
            };
            match channel::decode(protocol, &data) {
                Input::Stdin(bytes) if !bytes.is_empty() => {
                    if let Some(c) = &chunks
                        && c.send(bytes).await.is_err()
                    {
                        chunks = None;
                    }
                }
                Input::CloseStdin => chunks = None,
                Input::Resize(columns, rows) => {
                    let _ = resize.send((columns, rows)).await;
                }
                Input::Stdin(_) | Input::Ignored => {}
            }
        }
    };
    tokio::join!(feeder, reader);
}

/// Copies the program's output to the client until it ends.
async fn write_client(
    outputs: Vec<(u8, Arc<AsyncFd<File>>)>,
    ended: watch::Receiver<bool>,
    to: mpsc::Sender<Bytes>,
) {
    let copies = outputs.into_iter().map(|(channel, source)| {
        let (ended, to) = (ended.clone(), to.clone());
        async move {
            exec::read_out(&source, ended, |chunk| {
                let to = to.clone();
                async move { to.send(channel::encode(channel, &chunk)).await.is_ok() }
            })
            .await;
        }
    });
    futures::future::join_all(copies).await;
}

fn shared(fd: OwnedFd) -> Result<Arc<AsyncFd<File>>> {
    Ok(Arc::new(fd::asynchronous(fd).map_err(Error::io("use a stream"))?))
}

/// Sorts the descriptors of an exec.
fn exec_streams(fds: Vec<OwnedFd>, request: &ExecRequest) -> Result<Streams> {
    let mut fds = fds.into_iter().map(shared);
    let mut next = |wanted: bool| if wanted { fds.next().transpose() } else { Ok(None) };
    if request.tty {
        let master = next(true)?;
        return Ok(Streams {
            stdin: master.clone().filter(|_| request.stdin),
            outputs: master.iter().map(|m| (channel::STDOUT, Arc::clone(m))).collect(),
            terminal: master,
        });
    }
    let stdin = next(request.stdin)?;
    let stdout = next(request.stdout)?.map(|f| (channel::STDOUT, f));
    let stderr = next(request.stderr)?.map(|f| (channel::STDERR, f));
    Ok(Streams { stdin, outputs: stdout.into_iter().chain(stderr).collect(), terminal: None })
}

async fn run_exec(
    inner: &Arc<Inner>,
    stream: SplitStream<Socket>,
    protocol: Subprotocol,
    request: ExecRequest,
    messages: &mpsc::Sender<Bytes>,
) -> Result<Outcome> {
    let wanted = [request.stdin, request.stdout, request.stderr];
    let started = exec::start(inner, &request.container_id, request.cmd.clone(), request.tty, wanted).await?;
    let streams = exec_streams(started.fds, &request)?;
    greet(messages, request.stdout, request.stderr).await;

    let (ended, watching) = watch::channel(false);
    let (resize, mut sizes) = mpsc::channel(1);
    let (stdin_closed, _) = watch::channel(false);
    let input = tokio::spawn(read_client(stream, protocol, streams.stdin, resize, stdin_closed));
    let terminal = streams.terminal;
    let client_gone = async move {
        while let Some((columns, rows)) = sizes.recv().await {
            if let Some(t) = &terminal {
                // A terminal that is gone needs no size.
                let _ = tty::set_window_size(t.get_ref(), columns, rows);
            }
        }
    };
    let output = write_client(streams.outputs, watching, messages.clone());
    let exit = async {
        let code = exec::exit_code(&started.conversation).await;
        ended.send_replace(true);
        code
    };
    let finished = tokio::select! {
        (code, ()) = async { tokio::join!(exit, output) } => Some(code?),
        // The streams close with this session: a terminal's program is hung up on, another finds its pipes broken.
        () = client_gone => None,
    };
    input.abort();
    Ok(match finished {
        Some(0) | None => Outcome::Success,
        Some(code) => Outcome::ExitCode(code),
    })
}

async fn run_attach(
    inner: &Arc<Inner>,
    stream: SplitStream<Socket>,
    protocol: Subprotocol,
    request: AttachRequest,
    messages: &mpsc::Sender<Bytes>,
) -> Result<Outcome> {
    let record = inner.running(&request.container_id)?;
    let container = inner.store.container(&record.id)?;
    let shim = inner.shim(&record.sandbox_id);
    let ask = Request::Attach {
        container: record.id.clone(),
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    };
    let (answer, fds) = shim.call(&ask).await?;
    let Response::Attached { streams: [has_stdin, has_stdout, has_stderr] } = answer else {
        return Err(Error::Failed(format!("unexpected answer of the shim: {answer:?}")));
    };
    let mut fds = fds.into_iter().map(shared);
    let mut next = |wanted: bool| if wanted { fds.next().transpose() } else { Ok(None) };
    let stdin = next(has_stdin)?;
    let stdout = next(has_stdout)?.map(|f| (channel::STDOUT, f));
    let stderr = next(has_stderr)?.map(|f| (channel::STDERR, f));
    greet(messages, request.stdout, request.stderr).await;

    let (ended, watching) = watch::channel(false);
    let (resize, mut sizes) = mpsc::channel(1);
    let (stdin_closed, mut closing) = watch::channel(false);
    let input = tokio::spawn(read_client(stream, protocol, stdin, resize, stdin_closed));
    let client_gone = async {
        while let Some((columns, rows)) = sizes.recv().await {
            // Only terminals have sizes; others refuse.
            let _ = shim.call(&Request::Resize { container: record.id.clone(), columns, rows }).await;
        }
    };
    let close_for_good = has_stdin && record.config.stdin_once;
    let close_stdin = async || {
        if close_for_good {
            // A container that has ended has no stdin to close.
            let _ = shim.call(&Request::CloseStdin { container: record.id.clone() }).await;
        }
    };
    let half_closed = async {
        if closing.wait_for(|c| *c).await.is_ok() {
            close_stdin().await;
        }
        std::future::pending::<()>().await;
    };
    let output = write_client(stdout.into_iter().chain(stderr).collect(), watching, messages.clone());
    let mut phase = container.phase.subscribe();
    let container_gone = async {
        let _ = phase.wait_for(|p| !p.running()).await;
        ended.send_replace(true);
    };
    tokio::select! {
        _ = async { tokio::join!(container_gone, output) } => {}
        () = client_gone => close_stdin().await,
        () = half_closed => {}
    }
    input.abort();
    Ok(Outcome::Success)
}
