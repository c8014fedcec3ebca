//! One exec or attach session, over whatever protocol its client speaks.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use k8s_cri::v1::{AttachRequest, ExecRequest};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

use super::channel::{self, Input};
use super::exec;
use super::outcome::Outcome;
use crate::error::{Error, Result};
use crate::service::Inner;
use crate::shim::proto::{Request, Response};
use crate::shim::stdio;
use crate::sys::{fd, tty};

/// Messages queued to and from a client before its peer has to wait.
pub const QUEUE: usize = 16;
/// How long a client may take to accept the last messages.
pub const FAREWELL: Duration = Duration::from_secs(10);

/// The client's side of a session.
pub struct Client {
    /// What it sends; ends when it is gone.
    pub input: mpsc::Receiver<Input>,
    /// What it gets.
    pub output: mpsc::Sender<Output>,
}

/// What a client gets.
#[derive(Debug)]
pub enum Output {
    /// Output of a channel. The first is empty: it says that the session stands.
    Data(u8, Bytes),
    /// The last.
    End(Outcome),
}

/// What a session is of.
#[derive(Debug, Clone)]
pub enum Command {
    /// An exec.
    Exec(ExecRequest),
    /// An attach.
    Attach(AttachRequest),
}

/// What a session is made of.
struct Streams {
    stdin: Option<Arc<AsyncFd<File>>>,
    outputs: Vec<(u8, Arc<AsyncFd<File>>)>,
    terminal: Option<Arc<AsyncFd<File>>>,
}

/// Runs a session to its end.
pub(crate) async fn run(inner: &Arc<Inner>, client: Client, command: Command) {
    let Client { input, output } = client;
    let outcome = match command {
        Command::Exec(request) => run_exec(inner, input, request, &output).await,
        Command::Attach(request) => run_attach(inner, input, request, &output).await,
    };
    let outcome = outcome.unwrap_or_else(|e| Outcome::Failed(e.to_string()));
    // A client that is gone does not need to know.
    let _ = output.send(Output::End(outcome)).await;
}

/// Tells the client that the session stands: an empty message on the first channel it reads.
async fn greet(output: &mpsc::Sender<Output>, stdout: bool, stderr: bool) {
    let first = match (stdout, stderr) {
        (true, _) => channel::STDOUT,
        (false, true) => channel::STDERR,
        (false, false) => channel::ERROR,
    };
    let _ = output.send(Output::Data(first, Bytes::new())).await;
}

/// Copies the client's input until it is gone, which ends `resize`; `stdin_closed` tells that no more input comes, or
/// none is taken.
async fn read_client(
    mut input: mpsc::Receiver<Input>,
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
        while let Some(input) = input.recv().await {
            match input {
                Input::Stdin(bytes) => {
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
            }
        }
    };
    tokio::join!(feeder, reader);
}

/// Copies the program's output to the client until it ends.
async fn write_client(
    outputs: Vec<(u8, Arc<AsyncFd<File>>)>,
    ended: watch::Receiver<bool>,
    to: mpsc::Sender<Output>,
) {
    let copies = outputs.into_iter().map(|(channel, source)| {
        let (ended, to) = (ended.clone(), to.clone());
        async move {
            exec::read_out(&source, ended, |chunk| {
                let to = to.clone();
                async move { to.send(Output::Data(channel, chunk.into())).await.is_ok() }
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
    input: mpsc::Receiver<Input>,
    request: ExecRequest,
    output: &mpsc::Sender<Output>,
) -> Result<Outcome> {
    let wanted = [request.stdin, request.stdout, request.stderr];
    let started = exec::start(inner, &request.container_id, request.cmd.clone(), request.tty, wanted).await?;
    let streams = exec_streams(started.fds, &request)?;
    greet(output, request.stdout, request.stderr).await;

    let (ended, watching) = watch::channel(false);
    let (resize, mut sizes) = mpsc::channel(1);
    let (stdin_closed, _) = watch::channel(false);
    let reading = tokio::spawn(read_client(input, streams.stdin, resize, stdin_closed));
    let terminal = streams.terminal;
    let client_gone = async move {
        while let Some((columns, rows)) = sizes.recv().await {
            if let Some(t) = &terminal {
                // A terminal that is gone needs no size.
                let _ = tty::set_window_size(t.get_ref(), columns, rows);
            }
        }
    };
    let writing = write_client(streams.outputs, watching, output.clone());
    let exit = async {
        let code = exec::exit_code(&started.conversation).await;
        ended.send_replace(true);
        code
    };
    let finished = tokio::select! {
        (code, ()) = async { tokio::join!(exit, writing) } => Some(code?),
        // The streams close with this session: a terminal's program is hung up on, another finds its pipes broken.
        () = client_gone => None,
    };
    reading.abort();
    Ok(match finished {
        Some(0) | None => Outcome::Success,
        Some(code) => Outcome::ExitCode(code),
    })
}

async fn run_attach(
    inner: &Arc<Inner>,
    input: mpsc::Receiver<Input>,
    request: AttachRequest,
    output: &mpsc::Sender<Output>,
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
    greet(output, request.stdout, request.stderr).await;

    let (ended, watching) = watch::channel(false);
    let (resize, mut sizes) = mpsc::channel(1);
    let (stdin_closed, mut closing) = watch::channel(false);
    let reading = tokio::spawn(read_client(input, stdin, resize, stdin_closed));
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
    let writing = write_client(stdout.into_iter().chain(stderr).collect(), watching, output.clone());
    let mut phase = container.phase.subscribe();
    let container_gone = async {
        let _ = phase.wait_for(|p| !p.running()).await;
        ended.send_replace(true);
    };
    tokio::select! {
        _ = async { tokio::join!(container_gone, writing) } => {}
        () = client_gone => close_stdin().await,
        () = half_closed => {}
    }
    reading.abort();
    Ok(Outcome::Success)
}
