//! WebSocket connections: as channels, and as a pipe for another protocol.

use bytes::Bytes;
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::channel::{Input, Subprotocol};
use super::session::{Client, FAREWELL, Output, QUEUE};

/// A client's connection.
pub type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Bytes of a tunnel under way in each direction.
const PIPE: usize = 64 * 1024;

/// A message with data of either kind; None for others.
pub fn data(message: Message) -> Option<Bytes> {
    match message {
        Message::Binary(data) => Some(data),
        Message::Text(text) => Some(text.into()),
        _ => None,
    }
}

/// A message in the form that the subprotocol wants.
pub fn message(protocol: Subprotocol, bytes: Bytes) -> Message {
    match Utf8Bytes::try_from(bytes.clone()) {
        Ok(text) if protocol.base64 => Message::Text(text),
        _ => Message::Binary(bytes),
    }
}

/// Sends messages, and a close frame after the last.
pub async fn write_messages(
    mut sink: SplitSink<Socket, Message>,
    mut queue: mpsc::Receiver<Bytes>,
    protocol: Subprotocol,
) {
    while let Some(bytes) = queue.recv().await {
        if sink.send(message(protocol, bytes)).await.is_err() {
            return;
        }
    }
    close(sink).await;
}

async fn close(mut sink: SplitSink<Socket, Message>) {
    // Clients take a close without this code for a failure. The connection may be gone already.
    let normal = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() };
    let _ = sink.send(Message::Close(Some(normal))).await;
    let _ = sink.close().await;
}

/// The client's side of a session, and what ends when all is said.
pub fn remote_command(socket: Socket, protocol: Subprotocol) -> (Client, impl Future<Output = ()> + Send) {
    let (sink, mut stream) = socket.split();
    let (to_session, input) = mpsc::channel(QUEUE);
    let (output, mut from_session) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            if matches!(message, Message::Close(_)) {
                return;
            }
            let input: Option<Input> = data(message).and_then(|m| protocol.input(&m));
            if let Some(input) = input
                && to_session.send(input).await.is_err()
            {
                return;
            }
        }
    });
    let (messages, queue) = mpsc::channel(QUEUE);
    let writer = tokio::spawn(write_messages(sink, queue, protocol));
    let finish = async move {
        while let Some(output) = from_session.recv().await {
            let message = match output {
                Output::Data(channel, data) => Some(protocol.encode(channel, &data)),
                Output::End(outcome) => protocol.end(&outcome),
            };
            if let Some(message) = message
                && messages.send(message).await.is_err()
            {
                return;
            }
        }
        drop(messages);
        // A client that takes nothing any more is left.
        let _ = tokio::time::timeout(FAREWELL, writer).await;
    };
    (Client { input, output }, finish)
}

/// The bytes that a client's messages are.
pub fn tunnel(socket: Socket) -> DuplexStream {
    let (near, far) = tokio::io::duplex(PIPE);
    let (mut from_far, mut to_far) = tokio::io::split(far);
    let (mut sink, mut stream) = socket.split();
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            if matches!(message, Message::Close(_)) {
                break;
            }
            if let Some(bytes) = data(message)
                && to_far.write_all(&bytes).await.is_err()
            {
                break;
            }
        }
        // The reader of the pipe sees its end.
        let _ = to_far.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; PIPE / 2];
        while let Ok(n @ 1..) = from_far.read(&mut buffer).await {
            if sink.send(Message::Binary(Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
                return;
            }
        }
        close(sink).await;
    });
    near
}
