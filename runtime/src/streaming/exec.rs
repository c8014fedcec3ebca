//! Running a program in a container and following it: what ExecSync and exec sessions share.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1::{ExecSyncRequest, ExecSyncResponse};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::service::Inner;
use crate::service::shim_client::Conversation;
use crate::shim::proto::{Request, Response};
use crate::shim::stdio;
use crate::sys::fd;

/// The most output ExecSync keeps of each stream, bytes (containerd's limit).
const MAX_SYNC_OUTPUT: usize = 16 << 20;
/// How long an ended program's output may be silent before it is taken to be held open by something else.
const SILENCE: Duration = Duration::from_millis(500);

/// A program running in a container.
pub struct Exec {
    /// Ends with `ExecExited`.
    pub conversation: Conversation,
    /// The terminal, or stdin, stdout, stderr as asked for, in this order.
    pub fds: Vec<OwnedFd>,
}

/// Starts a program.
///
/// # Errors
/// `NotFound`, `FailedPrecondition`, or `Failed` with the reason why it does not run.
pub(crate) async fn start(
    inner: &Inner,
    container: &str,
    args: Vec<String>,
    tty: bool,
    [stdin, stdout, stderr]: [bool; 3],
) -> Result<Exec> {
    let record = inner.running(container)?;
    let request = Request::Exec { container: record.id, args, tty, stdin, stdout, stderr };
    let broken = |e: io::Error| Error::Unavailable(format!("the pod's shim does not answer: {e}"));
    let conversation = inner.shim(&record.sandbox_id).converse(&request).await.map_err(broken)?;
    match conversation.next().await.map_err(broken)? {
        Some((Response::ExecStarted { .. }, fds)) => Ok(Exec { conversation, fds }),
        Some((Response::Failed { message }, _)) => Err(Error::Failed(message)),
        other => Err(Error::Failed(format!("unexpected answer of the shim: {other:?}"))),
    }
}

/// Waits for the program's exit code.
///
/// # Errors
/// When the shim goes away.
pub async fn exit_code(conversation: &Conversation) -> Result<i32> {
    match conversation.next().await {
        Ok(Some((Response::ExecExited { code }, _))) => Ok(code),
        Ok(other) => Err(Error::Failed(format!("the pod's shim went away: {other:?}"))),
        Err(e) => Err(Error::Failed(format!("the pod's shim went away: {e}"))),
    }
}

/// Reads a stream to its end, handing out chunks. Once `ended` says that the program is gone, silence is an end
/// too: a process it left behind may hold the stream open for ever.
pub async fn read_out<F: Future<Output = bool>>(
    source: &AsyncFd<File>,
    mut ended: watch::Receiver<bool>,
    mut chunk: impl FnMut(Vec<u8>) -> F,
) {
    let mut buffer = vec![0u8; 32 * 1024];
    loop {
        let gone = *ended.borrow_and_update();
        let n = if gone {
            match tokio::time::timeout(SILENCE, stdio::read(source, &mut buffer)).await {
                Ok(Ok(n)) => n,
                Ok(Err(_)) | Err(_) => return,
            }
        } else {
            tokio::select! {
                read = stdio::read(source, &mut buffer) => match read {
                    Ok(n) => n,
                    Err(_) => return,
                },
                changed = ended.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    continue;
                }
            }
        };
        if n == 0 || !chunk(buffer[..n].to_vec()).await {
            return;
        }
    }
}

async fn collect(source: Option<OwnedFd>, ended: watch::Receiver<bool>) -> Result<Vec<u8>> {
    let Some(source) = source else { return Ok(Vec::new()) };
    let source = fd::asynchronous(source).map_err(Error::io("read output"))?;
    let mut out = Vec::new();
    read_out(&source, ended, |chunk| {
        let room = MAX_SYNC_OUTPUT - out.len();
        out.extend_from_slice(&chunk[..chunk.len().min(room)]);
        std::future::ready(true)
    })
    .await;
    Ok(out)
}

/// CRI's ExecSync.
///
/// # Errors
/// As [`start`]; `DeadlineExceeded` after the timeout, the program killed.
pub(crate) async fn sync(inner: &Arc<Inner>, request: ExecSyncRequest) -> Result<ExecSyncResponse> {
    let exec = start(inner, &request.container_id, request.cmd.clone(), false, [false, true, true]).await?;
    let mut fds = exec.fds.into_iter();
    let (stdout, stderr) = (fds.next(), fds.next());
    let (ended, watching) = watch::channel(false);
    let finished = async {
        let code = async {
            let code = exit_code(&exec.conversation).await;
            ended.send_replace(true);
            code
        };
        let (code, stdout, stderr) =
            tokio::join!(code, collect(stdout, watching.clone()), collect(stderr, watching.clone()));
        Ok(ExecSyncResponse { exit_code: code?, stdout: stdout?, stderr: stderr? })
    };
    let Some(seconds) = u64::try_from(request.timeout).ok().filter(|s| *s > 0) else { return finished.await };
    match tokio::time::timeout(Duration::from_secs(seconds), finished).await {
        Ok(result) => result,
        Err(_) => {
            let kill = Request::ExecSignal { signal: libc::SIGKILL };
            exec.conversation.send(&kill).await.map_err(Error::io("kill an exec"))?;
            // Its end is collected so that the signal is known to have been taken.
            exit_code(&exec.conversation).await?;
            Err(Error::DeadlineExceeded(format!("command {:?} timed out after {seconds} s", request.cmd)))
        }
    }
}
