//! A connection over a socket: streams with readers and writers.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::frame::{Decoder, Encoder, Frame};
use super::state::{Event, Role, Streams};
use super::{Headers, reset};

/// Bytes that wait for one stream's reader before the whole connection has to: the peers that matter know no windows.
/// Far more than [`WINDOW`], so that one that keeps windows is never stopped by it.
const BUFFER: usize = 512 * 1024;
/// Frames queued for the socket before their senders have to wait.
const COMMANDS: usize = 32;
/// Streams that wait to be taken.
const BACKLOG: usize = 64;
/// The window that streams and the connection begin with, in bytes (section 2.6.8).
const WINDOW: i64 = 64 * 1024;
/// Bytes read from the socket at once.
const READ: usize = 32 * 1024;
/// Bytes of frames put together before they are written.
const BATCH: usize = 128 * 1024;

/// Control frames that wait for the socket. A peer that asks for so many answers and reads none is given up.
const CONTROL: usize = 4096;

/// Frames that answer the peer. They do not wait for room and go before data: those who read must never wait for those
/// who write, or two sides wait for each other.
#[derive(Default)]
struct Control {
    frames: Mutex<VecDeque<Frame>>,
    some: Notify,
}

impl Control {
    /// False when there are too many.
    fn push(&self, frame: Frame) -> bool {
        let mut frames = self.frames.lock();
        if let Frame::WindowUpdate { id, delta } = frame
            && let Some(Frame::WindowUpdate { delta: sum, .. }) =
                frames.iter_mut().find(|f| matches!(f, Frame::WindowUpdate { id: other, .. } if *other == id))
        {
            *sum = sum.saturating_add(delta).min(0x7fff_ffff);
            return true;
        }
        let room = frames.len() < CONTROL;
        if room {
            frames.push_back(frame);
        }
        self.some.notify_one();
        room
    }
}

/// Bytes that may be sent.
#[derive(Debug)]
struct Window(watch::Sender<i64>);

impl Window {
    fn new(size: i64) -> Self {
        Self(watch::Sender::new(size))
    }

    fn add(&self, delta: i64) {
        self.0.send_modify(|left| *left = left.saturating_add(delta));
    }

    /// Takes up to `wanted` bytes, at least one.
    async fn take(&self, wanted: i64) -> i64 {
        let mut changes = self.0.subscribe();
        loop {
            let mut got = 0;
            self.0.send_if_modified(|left| {
                got = wanted.min(*left).max(0);
                *left -= got;
                false
            });
            if got > 0 {
                return got;
            }
            if changes.wait_for(|left| *left > 0).await.is_err() {
                return wanted;
            }
        }
    }
}

/// Where a stream's data waits.
#[derive(Clone)]
struct Queue {
    pieces: mpsc::UnboundedSender<Bytes>,
    /// Bytes that may still be put in; closed when nobody reads any more.
    room: Arc<Semaphore>,
}

impl Queue {
    /// Waits for room. A stream whose reader is gone throws its data away.
    async fn put(&self, data: Bytes) {
        let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
        if let Ok(room) = self.room.acquire_many(bytes).await {
            room.forget();
            let _ = self.pieces.send(data);
        }
    }
}

/// What is known of a stream besides its halves.
struct Port {
    /// Where its data goes; None once there is no more.
    queue: Option<Queue>,
    window: Arc<Window>,
    gone: CancellationToken,
}

struct State {
    streams: Streams,
    ports: HashMap<u32, Port>,
}

struct Shared {
    state: Mutex<State>,
    /// Data, and the last goodbye.
    commands: mpsc::Sender<Frame>,
    control: Control,
    /// The peer keeps windows.
    windows: AtomicBool,
    initial: AtomicI64,
    session: Window,
    closed: CancellationToken,
}

impl Shared {
    /// Answers the peer.
    fn control(&self, frame: Frame) {
        if !self.control.push(frame) {
            self.closed.cancel();
        }
    }

    /// Forgets a stream if nothing is left of it.
    fn sweep(state: &mut State, id: u32) {
        if !state.streams.is_open(id)
            && let Some(port) = state.ports.remove(&id)
        {
            port.gone.cancel();
        }
    }

    /// Makes the ends of a stream that is open.
    fn stream(self: &Arc<Self>, state: &mut State, id: u32, headers: Headers, ended: bool) -> Stream {
        let (pieces, queue) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(BUFFER));
        let window = Arc::new(Window::new(self.initial.load(Ordering::Relaxed)));
        let gone = self.closed.child_token();
        let end = Queue { pieces, room: Arc::clone(&room) };
        let port = Port { queue: (!ended).then_some(end), window: Arc::clone(&window), gone: gone.clone() };
        state.ports.insert(id, port);
        let reader = Reader { id, queue, room, taken: 0, shared: Arc::clone(self) };
        Stream { id, headers, reader, writer: Writer { id, window, gone, shared: Arc::clone(self) } }
    }
}

/// One stream.
pub struct Stream {
    /// Its number.
    pub id: u32,
    /// What it was opened with.
    pub headers: Headers,
    /// What the peer sends.
    pub reader: Reader,
    /// What it is sent.
    pub writer: Writer,
}

/// The reading end of a stream.
pub struct Reader {
    id: u32,
    queue: mpsc::UnboundedReceiver<Bytes>,
    room: Arc<Semaphore>,
    /// Bytes taken of which the peer does not know yet.
    taken: u32,
    shared: Arc<Shared>,
}

impl Reader {
    /// The next data; None at the end, also when the stream was reset or the connection ended.
    pub async fn next(&mut self) -> Option<Bytes> {
        let data = self.queue.recv().await?;
        self.room.add_permits(data.len());
        self.taken = self.taken.saturating_add(u32::try_from(data.len()).unwrap_or(u32::MAX));
        if i64::from(self.taken) >= WINDOW / 2 {
            let delta = std::mem::take(&mut self.taken);
            for id in [self.id, 0] {
                // Peers that do not know windows pass it over, those that do need it.
                self.shared.control(Frame::WindowUpdate { id, delta });
            }
        }
        Some(data)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.room.close();
    }
}

/// The writing end of a stream.
#[derive(Clone)]
pub struct Writer {
    id: u32,
    window: Arc<Window>,
    gone: CancellationToken,
    shared: Arc<Shared>,
}

impl Writer {
    async fn send(&self, frame: Frame) -> io::Result<()> {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        tokio::select! {
            () = self.shared.closed.cancelled() => Err(broken()),
            sent = self.shared.commands.send(frame) => sent.map_err(|_| broken()),
        }
    }

    /// Sends data, waiting for room.
    ///
    /// # Errors
    /// `BrokenPipe` when the stream was reset or the connection ended.
    pub async fn write(&self, mut data: Bytes) -> io::Result<()> {
        while !data.is_empty() {
            let wanted = i64::try_from(data.len().min(READ)).unwrap_or(1);
            let room = async {
                if !self.shared.windows.load(Ordering::Relaxed) {
                    self.window.add(-wanted);
                    self.shared.session.add(-wanted);
                    return wanted;
                }
                let of_stream = self.window.take(wanted).await;
                let of_both = self.shared.session.take(of_stream).await;
                self.window.add(of_stream - of_both);
                of_both
            };
            let n = tokio::select! {
                biased;
                () = self.gone.cancelled() => return Err(io::ErrorKind::BrokenPipe.into()),
                n = room => usize::try_from(n).unwrap_or(1),
            };
            let piece = data.split_to(n.min(data.len()));
            self.send(Frame::Data { id: self.id, data: piece, fin: false }).await?;
        }
        Ok(())
    }

    /// Sends nothing more. Does nothing when that is so already.
    pub async fn finish(&self) {
        let could = self.shared.state.lock().streams.finish(self.id);
        if could {
            // A connection that is gone needs no ends.
            let _ = self.send(Frame::Data { id: self.id, data: Bytes::new(), fin: true }).await;
            Shared::sweep(&mut self.shared.state.lock(), self.id);
        }
    }

    /// Ends the stream both ways.
    pub fn reset(&self, status: u32) {
        let was = self.shared.state.lock().streams.give_up(self.id);
        if was {
            Shared::sweep(&mut self.shared.state.lock(), self.id);
            self.shared.control(Frame::RstStream { id: self.id, status });
        }
    }
}

/// A connection. It lives until the peer, or [`Connection::close`], ends it.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

impl Connection {
    /// Drives a socket. Streams that the peer opens come out of the receiver, those that `accept` does not like are
    /// reset; it ends when the connection does.
    pub fn start<S>(socket: S, role: Role, accept: fn(&Headers) -> bool) -> (Self, mpsc::Receiver<Stream>)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (commands, queue) = mpsc::channel(COMMANDS);
        let (opened, streams) = mpsc::channel(BACKLOG);
        let shared = Arc::new(Shared {
            state: Mutex::new(State { streams: Streams::new(role), ports: HashMap::new() }),
            commands,
            control: Control::default(),
            // Servers are what sends updates always; clients of Go never do.
            windows: AtomicBool::new(role == Role::Client),
            initial: AtomicI64::new(WINDOW),
            session: Window::new(WINDOW),
            closed: CancellationToken::new(),
        });
        let (reading, writing) = tokio::io::split(socket);
        tokio::spawn(write_frames(writing, queue, Arc::clone(&shared)));
        tokio::spawn(read_frames(reading, Arc::clone(&shared), opened, accept));
        (Self { shared }, streams)
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// When the connection has ended or has no room for one more.
    pub fn open(&self, headers: Headers) -> io::Result<Stream> {
        let stream = {
            let mut state = self.shared.state.lock();
            let id = state.streams.begin().ok_or_else(|| io::Error::other("too many streams"))?;
            self.shared.stream(&mut state, id, headers.clone(), false)
        };
        let frame = Frame::SynStream { id: stream.id, headers, fin: false, unidirectional: false };
        self.shared.control(frame);
        Ok(stream)
    }

    /// Resolves once the connection has ended.
    pub async fn closed(&self) {
        self.shared.closed.cancelled().await;
    }

    /// Says goodbye and ends the connection, what was sent before it included.
    pub async fn close(&self) {
        let last = self.shared.state.lock().streams.last_theirs();
        // Gone already is as good.
        let _ = self.shared.commands.send(Frame::GoAway { last, status: 0 }).await;
        self.shared.closed.cancelled().await;
    }
}

/// Writes frames until the connection ends; a GOAWAY is the last.
async fn write_frames<S: AsyncWrite>(
    mut socket: WriteHalf<S>,
    mut queue: mpsc::Receiver<Frame>,
    shared: Arc<Shared>,
) {
    let closed = &shared.closed;
    let _closed = closed.clone().drop_guard();
    let mut encoder = Encoder::default();
    let mut batch = BytesMut::new();
    loop {
        let mut last = false;
        let mut next = tokio::select! {
            () = closed.cancelled() => return,
            () = shared.control.some.notified() => None,
            frame = queue.recv() => frame,
        };
        for frame in std::mem::take(&mut *shared.control.frames.lock()) {
            encoder.encode(&frame, &mut batch);
        }
        while let Some(frame) = next {
            last |= matches!(frame, Frame::GoAway { .. });
            encoder.encode(&frame, &mut batch);
            next = if last || batch.len() >= BATCH { None } else { queue.try_recv().ok() };
        }
        let written = tokio::select! {
            () = closed.cancelled() => return,
            written = socket.write_all(&batch) => written,
        };
        if written.is_err() || socket.flush().await.is_err() {
            return;
        }
        batch.clear();
        if last {
            // The peer closes when it has read it; what cannot be said is noticed by its end.
            let _ = socket.shutdown().await;
            return;
        }
    }
}

async fn read_frames<S: AsyncRead>(
    mut socket: ReadHalf<S>,
    shared: Arc<Shared>,
    opened: mpsc::Sender<Stream>,
    accept: fn(&Headers) -> bool,
) {
    let _closed = shared.closed.clone().drop_guard();
    let work = async {
        let mut decoder = Decoder::default();
        loop {
            decoder.buffer().reserve(READ);
            match socket.read_buf(decoder.buffer()).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            loop {
                match decoder.next() {
                    Ok(Some(frame)) => {
                        if !take(&shared, frame, &opened, accept).await {
                            return;
                        }
                    }
                    Ok(None) => break,
                    Err(e) => {
                        tracing::debug!(error = %e, "a SPDY connection is given up");
                        let last = shared.state.lock().streams.last_theirs();
                        let _ = shared.commands.send(Frame::GoAway { last, status: 1 }).await;
                        shared.closed.cancelled().await;
                        return;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = shared.closed.cancelled() => {}
    }
    // Readers see their ends.
    shared.state.lock().ports.clear();
}

/// Takes a frame; false when the connection is to end.
async fn take(
    shared: &Arc<Shared>,
    frame: Frame,
    opened: &mpsc::Sender<Stream>,
    accept: fn(&Headers) -> bool,
) -> bool {
    if matches!(frame, Frame::WindowUpdate { .. } | Frame::Settings { initial_window: Some(_) }) {
        shared.windows.store(true, Ordering::Relaxed);
    }
    let (event, answer) = shared.state.lock().streams.receive(frame);
    if let Some(answer) = answer {
        shared.control(answer);
    }
    match event {
        None => {}
        Some(Event::GoAway) => return false,
        Some(Event::InitialWindow(size)) => {
            let before = shared.initial.swap(i64::from(size), Ordering::Relaxed);
            for port in shared.state.lock().ports.values() {
                port.window.add(i64::from(size) - before);
            }
        }
        Some(Event::Window { id: 0, delta }) => shared.session.add(i64::from(delta)),
        Some(Event::Window { id, delta }) => {
            if let Some(port) = shared.state.lock().ports.get(&id) {
                port.window.add(i64::from(delta));
            }
        }
        Some(Event::Open { id, headers, fin }) => {
            if !accept(&headers) {
                shared.state.lock().streams.give_up(id);
                shared.control(Frame::RstStream { id, status: reset::REFUSED_STREAM });
                return true;
            }
            let stream = shared.stream(&mut shared.state.lock(), id, headers, fin);
            shared.control(Frame::SynReply { id, headers: Headers::new(), fin: false });
            return opened.send(stream).await.is_ok();
        }
        Some(Event::Data { id, data, fin }) => {
            let queue = shared.state.lock().ports.get(&id).and_then(|p| p.queue.clone());
            if let Some(queue) = queue
                && !data.is_empty()
            {
                queue.put(data).await;
            }
            if fin {
                let mut state = shared.state.lock();
                if let Some(port) = state.ports.get_mut(&id) {
                    port.queue = None;
                }
                Shared::sweep(&mut state, id);
            }
        }
        Some(Event::Reset { id }) => Shared::sweep(&mut shared.state.lock(), id),
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(accept: fn(&Headers) -> bool) -> (Connection, Connection, mpsc::Receiver<Stream>) {
        let (near, far) = tokio::io::duplex(1024);
        let (client, _) = Connection::start(near, Role::Client, |_| false);
        let (server, streams) = Connection::start(far, Role::Server, accept);
        (client, server, streams)
    }

    fn named(name: &str) -> Headers {
        vec![("streamtype".to_owned(), name.to_owned())]
    }

    async fn read_all(reader: &mut Reader) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some(data) = reader.next().await {
            out.extend(data);
        }
        out
    }

    #[tokio::test]
    async fn much_data_both_ways() {
        let (client, _server, mut streams) = pair(|_| true);
        let mut near = client.open(named("data")).expect("open");
        let far = streams.recv().await.expect("a stream");
        assert_eq!(far.headers, named("data"));
        let echo = tokio::spawn(async move {
            let Stream { mut reader, writer, .. } = far;
            while let Some(data) = reader.next().await {
                writer.write(data).await.expect("write");
            }
            writer.finish().await;
        });
        let payload: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
        let (sent, got) = tokio::join!(
            async {
                near.writer.write(payload.clone().into()).await.expect("write");
                near.writer.finish().await;
            },
            read_all(&mut near.reader)
        );
        assert_eq!(((), payload.len()), (sent, got.len()));
        assert!(got == payload);
        echo.await.expect("echo");
        assert!(client.shared.state.lock().ports.is_empty());
    }

    #[tokio::test]
    async fn refusals_resets_and_ends() {
        let (client, server, mut streams) = pair(|h| h[0].1 == "good");
        let mut bad = client.open(named("bad")).expect("open");
        assert_eq!(bad.reader.next().await, None);
        bad.writer.gone.cancelled().await;
        assert!(bad.writer.write(Bytes::from_static(b"x")).await.is_err());
        let mut good = client.open(named("good")).expect("open");
        let mut far = streams.recv().await.expect("a stream");
        far.writer.reset(reset::CANCEL);
        assert_eq!(good.reader.next().await, None);
        let last = client.open(named("good")).expect("open");
        let mut far2 = streams.recv().await.expect("a stream");
        far2.writer.write(Bytes::from_static(b"bye")).await.expect("write");
        server.close().await;
        client.closed().await;
        assert_eq!(far.reader.next().await, None);
        assert_eq!(far2.reader.next().await, None);
        assert!(streams.recv().await.is_none());
        let mut reader = last.reader;
        assert_eq!(reader.next().await.as_deref(), Some(&b"bye"[..]));
        assert_eq!(reader.next().await, None);
    }

    /// A peer that keeps windows gets no more than it allowed.
    #[tokio::test]
    async fn windows_of_a_peer_are_kept() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let (_server, mut streams) = Connection::start(far, Role::Server, |_| true);
        let mut encoder = Encoder::default();
        let mut bytes = BytesMut::new();
        encoder.encode(&Frame::Settings { initial_window: Some(1000) }, &mut bytes);
        let open = Frame::SynStream { id: 1, headers: named("data"), fin: false, unidirectional: false };
        encoder.encode(&open, &mut bytes);
        near.write_all(&bytes).await.expect("write");
        let stream = streams.recv().await.expect("a stream");
        let writer = stream.writer.clone();
        let writing = tokio::spawn(async move { writer.write(vec![0; 2500].into()).await });
        let mut decoder = Decoder::default();
        let mut got = 0;
        for (until, more) in [(1000, 1200), (2200, 5000), (2500, 0)] {
            while got < until {
                match decoder.next().expect("frames") {
                    Some(Frame::Data { data, .. }) => got += data.len(),
                    Some(_) => {}
                    None => {
                        near.read_buf(decoder.buffer()).await.expect("read");
                    }
                }
            }
            assert_eq!(got, until);
            bytes.clear();
            encoder.encode(&Frame::WindowUpdate { id: 1, delta: more }, &mut bytes);
            near.write_all(&bytes).await.expect("write");
        }
        writing.await.expect("task").expect("write");
    }
}
