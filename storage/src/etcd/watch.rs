//! Watches on etcd: a task per watch that follows one gRPC stream at a time.
//!
//! The task hands on one response at a time. While nobody takes it, it does not read on, and
//! etcd holds the watch back and cuts it off once what it lacks is compacted.

use std::{sync::Arc, time::Duration};

use etcd_client::{
    EventType, GetOptions, PutOptions, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream,
};
use futures::{StreamExt, stream};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use super::{
    Inner, MAX_MESSAGE_BYTES,
    convert::{error_of, is_mark, to_i64},
    revision,
};
use crate::{Error, Event, EventKind, KeyValue, Revision, WatchItem, WatchStream};

/// Pauses between attempts to begin a broken watch again.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// How long progress may take before it is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(200);

type Items = mpsc::Sender<Result<WatchItem, Error>>;

/// A watch of `prefix` after `after`.
pub(super) fn start(inner: Arc<Inner>, prefix: &str, after: Revision) -> WatchStream {
    let (items, receiver) = mpsc::channel(1);
    let wanted = Arc::new(Notify::new());
    let follower = Follower { inner, prefix: prefix.to_owned(), seen: after, wanted: wanted.clone() };
    tokio::spawn(follower.run(items));
    let receiver =
        stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    WatchStream::new(receiver.boxed(), move || wanted.notify_one())
}

struct Follower {
    inner: Arc<Inner>,
    prefix: String,
    /// Everything up to here has been handed on.
    seen: Revision,
    /// Somebody wants progress.
    wanted: Arc<Notify>,
}

/// Why a stream is not followed any longer.
enum End {
    /// Nobody reads.
    Gone,
    /// The watch cannot go on.
    Failed(Error),
    /// The connection can be made again.
    Broken(Error),
}

impl Follower {
    async fn run(mut self, items: Items) {
        let mut closed = self.inner.closed.subscribe();
        let mut retry = RETRY_MIN;
        loop {
            let before = self.seen;
            let end = tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => End::Failed(Error::Closed),
                () = items.closed() => End::Gone,
                end = self.follow(&items) => end,
            };
            match end {
                End::Gone => return,
                End::Failed(error) => {
                    // Nobody to tell, or told: the stream ends either way.
                    let _ = items.send(Err(error)).await;
                    return;
                }
                End::Broken(error) => {
                    tracing::debug!(prefix = self.prefix, after = self.seen, %error, "watching etcd again");
                    retry = if self.seen > before { RETRY_MIN } else { (retry * 2).min(RETRY_MAX) };
                    tokio::select! {
                        () = tokio::time::sleep(retry) => {}
                        () = items.closed() => return,
                        _ = closed.wait_for(|closed| *closed) => {}
                    }
                }
            }
        }
    }

    async fn follow(&mut self, items: &Items) -> End {
        match self.follow_stream(items).await {
            Ok(end) => end,
            Err(Error::Compacted { .. }) => End::Failed(self.inner.note_compacted(self.seen + 1)),
            Err(error @ Error::Corrupt { .. }) => End::Failed(error),
            Err(error) => End::Broken(error),
        }
    }

    async fn follow_stream(&mut self, items: &Items) -> Result<End, Error> {
        let (mut requests, mut responses) = self.begin().await?;
        // When progress was asked for that has not come.
        let mut asked: Option<Instant> = None;
        loop {
            let again = asked.unwrap_or_else(Instant::now) + ASK_AGAIN;
            let response = tokio::select! {
                response = next_response(&mut responses) => response?,
                () = self.wanted.notified() => {
                    self.request_progress(&mut requests).await?;
                    asked = Some(Instant::now());
                    continue;
                }
                // etcd drops the request while the watch is behind.
                () = tokio::time::sleep_until(again), if asked.is_some() => {
                    self.request_progress(&mut requests).await?;
                    asked = Some(Instant::now());
                    continue;
                }
            };
            if response.compact_revision() > 0 {
                let compacted = Revision::try_from(response.compact_revision()).unwrap_or(0);
                return Ok(End::Failed(self.inner.note_compacted(compacted)));
            }
            if response.canceled() {
                return Err(Error::Unavailable(format!(
                    "etcd ended the watch: {}",
                    response.cancel_reason()
                )));
            }
            if response.created() {
                continue;
            }
            for item in self.items(&response).await? {
                if matches!(item, WatchItem::Progress(_)) {
                    asked = None;
                }
                if items.send(Ok(item)).await.is_err() {
                    return Ok(End::Gone);
                }
            }
        }
    }

    async fn begin(&self) -> Result<(WatchRequestSender, WatchResponseStream), Error> {
        let (from, end) = self.inner.keys.range(&self.prefix, None);
        let options = WatchOptions::new()
            .with_range(end)
            .with_start_revision(to_i64(self.seen + 1))
            .with_prev_key()
            .with_progress_notify();
        let mut client = self.inner.client.watch_client().max_decoding_message_size(MAX_MESSAGE_BYTES);
        Ok(self.inner.ask(client.watch(from, Some(options))).await?.split())
    }

    /// Makes etcd send something that tells how far this watch has come. Where its progress may overtake
    /// events, that is a mark among the watched keys: an event like the others.
    async fn request_progress(&self, requests: &mut WatchRequestSender) -> Result<(), Error> {
        if self.inner.progress_is_ordered {
            return requests.request_progress().await.map_err(|e| error_of(&e));
        }
        let mark = self.inner.keys.stored(&format!("{}\0progress", self.prefix));
        let put = self.inner.kv().put(mark.clone(), "", Some(PutOptions::new())).await;
        put.map_err(|e| error_of(&e))?;
        self.inner.kv().delete(mark, None).await.map_err(|e| error_of(&e))?;
        Ok(())
    }

    /// What to yield for a response: its events, and progress if it has none or has a mark.
    async fn items(&mut self, response: &WatchResponse) -> Result<Vec<WatchItem>, Error> {
        let before = self.seen;
        let mut events = Vec::with_capacity(response.events().len());
        let mut progress = false;
        for event in response.events() {
            let kv = event
                .kv()
                .ok_or_else(|| Error::Corrupt { what: "etcd sent an event without a key".into() })?;
            let revision = u64::try_from(kv.mod_revision()).unwrap_or(0);
            self.seen = self.seen.max(revision);
            if is_mark(kv.key()) {
                progress = true;
            } else if revision > before {
                let mut event = self.event(event, kv)?;
                if event.prev.is_none() && !event.is_create() {
                    event.prev = Some(self.before(kv).await?);
                }
                events.push(event);
            }
        }
        if response.events().is_empty() {
            self.seen = self.seen.max(revision(response.header())?);
            progress = true;
        }
        let mut items = Vec::new();
        if !events.is_empty() {
            items.push(WatchItem::Events(events));
        }
        if progress {
            items.push(WatchItem::Progress(self.seen));
        }
        Ok(items)
    }

    /// What a key held before an event. etcd leaves it out where its own look fails, for which being busy with a compaction
    /// is enough; what is compacted indeed ends the watch, as it has lost something.
    async fn before(&self, kv: &etcd_client::KeyValue) -> Result<KeyValue, Error> {
        let options = GetOptions::new().with_revision(kv.mod_revision() - 1);
        let response = self.inner.ask(self.inner.kv().get(kv.key(), Some(options))).await?;
        let held = response.kvs().first().map(|held| self.inner.keys.key_value(held)).transpose()?;
        held.ok_or_else(|| Error::Compacted { compacted: u64::try_from(kv.mod_revision()).unwrap_or(0) })
    }

    fn event(&self, event: &etcd_client::Event, kv: &etcd_client::KeyValue) -> Result<Event, Error> {
        let prev = event.prev_kv().map(|prev| self.inner.keys.key_value(prev)).transpose()?;
        let kv = self.inner.keys.key_value(kv)?;
        Ok(match event.event_type() {
            EventType::Put => Event { kind: EventKind::Put, kv, prev },
            EventType::Delete => {
                // All copies of a key share one allocation.
                let key = prev.as_ref().map_or(kv.key, |prev| prev.key.clone());
                Event { kind: EventKind::Delete, kv: KeyValue { key, create_revision: 0, ..kv }, prev }
            }
        })
    }
}

async fn next_response(responses: &mut WatchResponseStream) -> Result<WatchResponse, Error> {
    match responses.message().await {
        Ok(Some(response)) => Ok(response),
        Ok(None) => Err(Error::Unavailable("etcd ended the stream".to_owned())),
        Err(error) => Err(error_of(&error)),
    }
}
