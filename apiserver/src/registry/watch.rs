//! WATCH: a cursor into the events of a scope.
//!
//! A watcher holds no queue. It reads what the ring of its scope has after its cursor, as fast as the client takes
//! it; the bytes of each event are shared with all watchers that want the same form. One that falls behind the ring
//! is cut off with `410 Expired`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use hawser_api::status::Status;
use tokio::time::Instant;

use super::{Call, Registry, feed_status, reloading};
use crate::cache::entry::Entry;
use crate::cache::feed::{Feed, FeedError};
use crate::cache::filter::Filter;
use crate::cache::ring::{Event, EventType, Ring};
use crate::cache::{LOST, ResourceCache, Scope};
use crate::crd::convert::{Converter, webhook};
use crate::kinds::Row;
use crate::options::ListOptions;
use crate::respond::Renderer;

/// Most events that one turn reads from the ring.
const BATCH: usize = 256;
/// Bytes after which a turn's buffer is sent.
const FLUSH: usize = 64 << 10;
/// How often a quiet watch gets a bookmark.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How long before its end a watch gets a last bookmark.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
/// How long a watch without `timeoutSeconds` lasts at least; at most twice as long.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);

/// The state that a watch begins with. It is read in pieces as the client takes them, so that one that takes nothing
/// holds nothing; once history no longer reaches back to it, the watch is cut off.
enum Initial {
    /// A small scope, read at once.
    Ready(VecDeque<Arc<Entry>>),
    /// From the first key that is not smaller than this, at the watch's first cursor.
    From(String),
}

/// A watch that has been accepted.
pub struct Watch {
    feed: Arc<Feed>,
    cache: Arc<ResourceCache>,
    ring: Arc<Ring>,
    filter: Filter,
    cursor: u64,
    renderer: Renderer,
    /// The row, and who converts its objects, where a webhook has to be asked.
    conversion: Option<(Arc<Row>, Converter)>,
    initial: Option<Initial>,
    /// Revision of the bookmark that ends the initial events.
    initial_end: Option<u64>,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    failure: Option<Status>,
    done: bool,
    /// Events given out of which nobody was told yet.
    given: u64,
}

impl Registry {
    /// Begins a watch.
    ///
    /// # Errors
    /// 400, 422 for options that cannot be read, 504 for a revision that does not come. A revision that is too old is
    /// no error but the watch's only event.
    pub async fn watch(&self, call: &Call<'_>, renderer: Renderer) -> Result<Watch, Status> {
        let options = ListOptions::parse(call.info, true)?;
        let filter = self.filter(call, &options)?;
        let revision = options.revision().map_err(Status::plain_error)?;
        let cache = call.cache()?.clone();
        let waited = match (revision, options.send_initial_events) {
            (None, _) => self.feed.consistent(&cache).await.map(drop),
            (Some(revision), Some(true)) => match self.feed.ensure(&cache).await {
                Ok(()) => self.feed.wait_for(revision).await,
                Err(e) => Err(e),
            },
            // Who wants no state may wait for its revision inside the watch.
            (Some(_), _) => self.feed.ensure(&cache).await,
        };
        // As in Kubernetes a revision that does not come is the watch's only event.
        let mut failure = match waited {
            Ok(()) => None,
            Err(e @ FeedError::TooLarge { .. }) => Some(feed_status(&e)),
            Err(e) => return Err(feed_status(&e)),
        };
        let send_initial = options.send_initial_events.unwrap_or(matches!(revision, None | Some(0)));
        let seen = self.feed.seen();
        let scope = filter.scope(cache.kind().namespaced, cache.indexed_field());
        let mut initial = None;
        let cursor = if send_initial && failure.is_none() {
            let mut ready = VecDeque::new();
            let small = matches!(scope, Scope::Object(_) | Scope::Field(_));
            let state = cache.scan_scope(&scope, None, |e| {
                if small && filter.matches(e) {
                    ready.push_back(e.clone());
                }
                small
            });
            initial = Some(if small { Initial::Ready(ready) } else { Initial::From(String::new()) });
            state.map_err(reloading)?.max(seen)
        } else {
            revision.filter(|r| *r > 0).unwrap_or_else(|| cache.revision().max(seen))
        };
        let ring = cache.ring(&scope, cursor);
        if cursor < ring.floor() {
            failure = failure.or_else(|| Some(too_old(cursor, cache.floor())));
        }
        let now = Instant::now();
        let timeout = options.timeout.unwrap_or_else(|| DEFAULT_TIMEOUT.mul_f64(1.0 + rand::random::<f64>()));
        let deadline = now + timeout;
        let mut watch = Watch {
            feed: self.feed.clone(),
            cache,
            ring,
            filter,
            cursor,
            renderer,
            conversion: webhook(&call.row.kind).map(|_| (call.row.clone(), self.converter.clone())),
            initial,
            initial_end: (options.send_initial_events == Some(true) && options.bookmarks).then_some(cursor),
            bookmarks: options.bookmarks,
            next_bookmark: deadline,
            deadline,
            failure,
            done: false,
            given: 0,
        };
        watch.schedule_bookmark(now);
        Ok(watch)
    }
}

/// The end of a watch that cannot go on.
fn too_old(cursor: u64, floor: u64) -> Status {
    if floor == LOST {
        return Status::expired(format!("too old resource version: {cursor}, history was lost"));
    }
    Status::too_old(cursor, floor)
}

impl Watch {
    /// The events as chunks of newline-separated JSON, each with the number of events in it (bookmarks and errors are
    /// none).
    pub fn into_stream(self) -> impl Stream<Item = (Bytes, u64)> + Send {
        futures::stream::unfold(self, |mut watch| async move {
            let frame = watch.next().await?;
            let events = std::mem::take(&mut watch.given);
            Some(((frame, events), watch))
        })
    }

    /// The next chunk; None at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(status) = self.failure.take() {
                self.done = true;
                return Some(self.renderer.error(&status));
            }
            if self.done || self.feed.is_stopped() {
                return None;
            }
            if self.initial.is_some() {
                match self.initial_chunk().await {
                    Ok(Some(chunk)) => return Some(chunk),
                    Ok(None) => {}
                    Err(status) => self.failure = Some(status),
                }
                continue;
            }
            if let Some(revision) = self.initial_end.take() {
                return Some(self.renderer.bookmark(revision, true));
            }
            let ring = self.ring.clone();
            let mut changed = std::pin::pin!(ring.changed.notified());
            // Listening begins before looking, so that nothing falls between.
            changed.as_mut().enable();
            if self.feed.is_stopped() {
                return None;
            }
            let seen = self.feed.seen();
            let mut events = Vec::new();
            if let Err(lagged) = self.ring.read(self.cursor, BATCH, &mut events) {
                self.failure = Some(too_old(self.cursor, lagged.floor));
                continue;
            }
            if !events.is_empty() {
                let chunk = match self.conversion.clone() {
                    None => self.chunk(&events),
                    Some((row, converter)) => self.converted_chunk(&events, &row, &converter).await,
                };
                match chunk {
                    Ok(Some(chunk)) => return Some(chunk),
                    Ok(None) => {}
                    Err(status) => self.failure = Some(status),
                }
                continue;
            }
            // Everything up to `seen` was applied before it was read, and nothing of it is left.
            self.cursor = self.cursor.max(seen);
            let wake = if self.bookmarks { self.next_bookmark.min(self.deadline) } else { self.deadline };
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(wake) => {
                    let now = Instant::now();
                    if now >= self.deadline {
                        self.done = true;
                    } else {
                        self.schedule_bookmark(now);
                        // Nothing can be said of a revision that is still to come.
                        if self.cursor <= self.feed.seen() {
                            return Some(self.renderer.bookmark(self.cursor, false));
                        }
                    }
                }
            }
        }
    }

    fn schedule_bookmark(&mut self, now: Instant) {
        let last =
            self.deadline.checked_sub(BOOKMARK_BEFORE_END).filter(|t| *t > now).unwrap_or(self.deadline);
        self.next_bookmark = (now + BOOKMARK_EVERY).min(last);
    }

    /// The next objects of the state that the watch begins with; None when there are no more.
    async fn initial_chunk(&mut self) -> Result<Option<Bytes>, Status> {
        let entries = match &mut self.initial {
            None => return Ok(None),
            Some(Initial::Ready(ready)) => {
                let at = ready.len().min(BATCH);
                let entries: Vec<_> = ready.drain(..at).collect();
                if ready.is_empty() {
                    self.initial = None;
                }
                entries
            }
            Some(Initial::From(key)) => {
                let mut entries = Vec::new();
                let (mut bytes, mut next) = (0, None);
                let (filter, revision) = (&self.filter, self.cursor);
                let read = self.cache.scan_at(revision, filter.namespace(), Some(key), |entry| {
                    if bytes >= FLUSH || entries.len() >= BATCH {
                        next = Some(entry.key.to_string());
                        return false;
                    }
                    if filter.matches(entry) {
                        bytes += entry.value.len();
                        entries.push(entry.clone());
                    }
                    true
                });
                if read.map_err(reloading)?.is_none() {
                    return Err(too_old(revision, self.cache.floor()));
                }
                self.initial = next.map(Initial::From);
                entries
            }
        };
        let entries = match &self.conversion {
            None => entries,
            Some((row, converter)) => converter.present(row, entries).await?,
        };
        let mut out = BytesMut::new();
        for entry in &entries {
            let frame = self.renderer.event(EventType::Added, entry, entry.revision)?;
            self.given += 1;
            if entries.len() == 1 {
                return Ok(Some(frame));
            }
            out.extend_from_slice(&frame);
        }
        Ok((!out.is_empty()).then(|| out.freeze()))
    }

    /// Renders events; None when none of them concerns this watcher.
    fn chunk(&mut self, events: &[Arc<Event>]) -> Result<Option<Bytes>, Status> {
        let mut only: Option<Bytes> = None;
        let mut out = BytesMut::new();
        for event in events {
            self.cursor = event.revision;
            let Some((kind, entry)) = self.as_seen(event) else { continue };
            let frame = self.renderer.shared_event(event, kind, entry)?;
            self.given += 1;
            match only.take() {
                None if out.is_empty() => only = Some(frame),
                None => out.extend_from_slice(&frame),
                Some(first) => {
                    out.reserve(FLUSH.min((first.len() + frame.len()) * events.len() / 2 + 64));
                    out.extend_from_slice(&first);
                    out.extend_from_slice(&frame);
                }
            }
            if out.len() >= FLUSH {
                break;
            }
        }
        Ok(only.or_else(|| (!out.is_empty()).then(|| out.freeze())))
    }

    /// Renders events whose objects a webhook has to convert first. These frames are this watcher's own.
    async fn converted_chunk(
        &mut self,
        events: &[Arc<Event>],
        row: &Row,
        converter: &Converter,
    ) -> Result<Option<Bytes>, Status> {
        let (mut seen, mut entries) = (Vec::new(), Vec::new());
        for event in events {
            self.cursor = event.revision;
            if let Some((kind, entry)) = self.as_seen(event) {
                seen.push((kind, event.revision));
                entries.push(entry.clone());
            }
        }
        let mut out = BytesMut::new();
        for ((kind, revision), entry) in seen.into_iter().zip(converter.present(row, entries).await?) {
            out.extend_from_slice(&self.renderer.event(kind, &entry, revision)?);
        }
        Ok((!out.is_empty()).then(|| out.freeze()))
    }

    /// What an event is to this watcher: an object that begins to match is added, one that ceases to is deleted.
    fn as_seen<'e>(&self, event: &'e Event) -> Option<(EventType, &'e Arc<Entry>)> {
        let now = event.kind != EventType::Deleted && self.filter.matches(&event.entry);
        let before = event.previous.as_ref().filter(|p| self.filter.matches(p));
        match (now, before) {
            (true, Some(_)) => Some((EventType::Modified, &event.entry)),
            (true, None) => Some((EventType::Added, &event.entry)),
            (false, Some(previous)) => Some((EventType::Deleted, previous)),
            (false, None) => None,
        }
    }
}
