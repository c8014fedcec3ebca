//! A remote command over SPDY: streams `error`, `stdin`, `stdout`, `stderr` and `resize`, opened by the client and
//! told apart by their `streamtype`.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::channel::{self, Input, Size};
use super::session::{Client, Output, QUEUE};
use super::spdy::{Connection, Headers, Reader, Role, Stream, Writer, header};

/// How long a client may take to open its streams (Kubernetes' default).
const CREATION: Duration = Duration::from_secs(30);
/// How long a client may take to close the connection once all is said.
const FAREWELL: Duration = Duration::from_secs(10);
/// Bytes of sizes that may wait to be whole.
const MAX_SIZES: usize = 4096;

/// The streams that a session needs.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub resize: bool,
}

#[derive(Default)]
struct Opened {
    error: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl Opened {
    fn slot(&mut self, kind: &str) -> Option<&mut Option<Stream>> {
        match kind {
            "error" => Some(&mut self.error),
            "stdin" => Some(&mut self.stdin),
            "stdout" => Some(&mut self.stdout),
            "stderr" => Some(&mut self.stderr),
            "resize" => Some(&mut self.resize),
            _ => None,
        }
    }

    fn complete(&self, wanted: Wanted) -> bool {
        let has = |wanted: bool, stream: &Option<Stream>| !wanted || stream.is_some();
        self.error.is_some()
            && has(wanted.stdin, &self.stdin)
            && has(wanted.stdout, &self.stdout)
            && has(wanted.stderr, &self.stderr)
            && has(wanted.resize, &self.resize)
    }
}

fn known(headers: &Headers) -> bool {
    matches!(header(headers, "streamtype"), "error" | "stdin" | "stdout" | "stderr" | "resize")
}

/// Waits for the client's streams. The client's side of the session, and what ends when all is said; None when the
/// client does not open them.
pub async fn open<S>(
    socket: S,
    wanted: Wanted,
    status: bool,
) -> Option<(Client, impl Future<Output = ()> + Send)>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (connection, mut streams) = Connection::start(socket, Role::Server, known);
    let mut opened = Opened::default();
    let collect = async {
        while !opened.complete(wanted) {
            let Some(stream) = streams.recv().await else { return false };
            if let Some(slot) = opened.slot(header(&stream.headers, "streamtype")) {
                *slot = Some(stream);
            }
        }
        true
    };
    if !tokio::time::timeout(CREATION, collect).await.unwrap_or(false) {
        tracing::debug!("a client opened not all streams of its session");
        connection.close().await;
        return None;
    }
    let Opened { error, stdin, stdout, stderr, resize } = opened;
    let (to_session, input) = mpsc::channel(QUEUE);
    let (output, from_session) = mpsc::channel(QUEUE);
    let writers = Writers {
        error: error.map(|s| s.writer),
        stdout: stdout.map(|s| s.writer),
        stderr: stderr.map(|s| s.writer),
        others: stdin.iter().chain(&resize).map(|s| s.writer.clone()).collect(),
    };
    tokio::spawn(read(connection.clone(), stdin.map(|s| s.reader), resize.map(|s| s.reader), to_session));
    // Streams beyond those wanted are refused by nobody: dropping the receiver ends the connection, so they are taken.
    tokio::spawn(async move { while streams.recv().await.is_some() {} });
    let finish = async move {
        writers.run(from_session, status).await;
        let _ = tokio::time::timeout(FAREWELL, connection.closed()).await;
        let _ = tokio::time::timeout(FAREWELL, connection.close()).await;
    };
    Some((Client { input, output }, finish))
}

/// Passes the client's input on. The session sees its end when the connection is gone.
async fn read(
    connection: Connection,
    stdin: Option<Reader>,
    resize: Option<Reader>,
    to_session: mpsc::Sender<Input>,
) {
    let input = async {
        let Some(mut stdin) = stdin else { return };
        while let Some(data) = stdin.next().await {
            if to_session.send(Input::Stdin(data)).await.is_err() {
                return;
            }
        }
        let _ = to_session.send(Input::CloseStdin).await;
    };
    let sizes = async {
        let Some(mut resize) = resize else { return };
        let mut text = BytesMut::new();
        while let Some(data) = resize.next().await {
            if text.len() + data.len() > MAX_SIZES {
                return;
            }
            text.extend_from_slice(&data);
            for size in take_sizes(&mut text) {
                if to_session.send(Input::Resize(size.width, size.height)).await.is_err() {
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = async { tokio::join!(input, sizes); std::future::pending().await } => {}
        () = connection.closed() => {}
        () = to_session.closed() => {}
    }
}

/// The sizes at the beginning of a stream of JSON objects; a part of one stays. Nonsense is thrown away.
fn take_sizes(text: &mut BytesMut) -> Vec<Size> {
    let mut sizes = Vec::new();
    let mut stream = serde_json::Deserializer::from_slice(text).into_iter::<Size>();
    let nonsense = loop {
        match stream.next() {
            Some(Ok(size)) => sizes.push(size),
            Some(Err(e)) => break !e.is_eof(),
            None => break false,
        }
    };
    let done = if nonsense { text.len() } else { stream.byte_offset() };
    drop(stream);
    let _ = text.split_to(done);
    sizes
}

struct Writers {
    error: Option<Writer>,
    stdout: Option<Writer>,
    stderr: Option<Writer>,
    /// Of streams that are only read.
    others: Vec<Writer>,
}

impl Writers {
    async fn run(self, mut from_session: mpsc::Receiver<Output>, status: bool) {
        while let Some(output) = from_session.recv().await {
            let (writer, data) = match output {
                Output::Data(channel::STDOUT, data) => (&self.stdout, data),
                Output::Data(channel::STDERR, data) => (&self.stderr, data),
                Output::Data(..) => continue,
                Output::End(outcome) => {
                    (&self.error, Bytes::from(if status { outcome.status() } else { outcome.text() }))
                }
            };
            if let Some(writer) = writer {
                // A stream that the client gave up takes no more; the others go on.
                let _ = writer.write(data).await;
            }
        }
        for writer in self.stdout.iter().chain(&self.stderr).chain(&self.error).chain(&self.others) {
            writer.finish().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_in_any_pieces() {
        let text = b"{\"Width\":80,\"Height\":24}\n{\"Width\":100,\"Height\":30}\n";
        for piece in 1..text.len() {
            let mut buffer = BytesMut::new();
            let mut got = Vec::new();
            for chunk in text.chunks(piece) {
                buffer.extend_from_slice(chunk);
                got.extend(take_sizes(&mut buffer).iter().map(|s| (s.width, s.height)));
            }
            assert_eq!(got, [(80, 24), (100, 30)], "pieces of {piece}");
        }
        let mut nonsense = BytesMut::from(&b"nonsense"[..]);
        assert!(take_sizes(&mut nonsense).is_empty() && nonsense.is_empty());
    }
}
