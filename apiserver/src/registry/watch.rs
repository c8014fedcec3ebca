//! WATCH: a cursor into the events of a scope.
//!
//! A watcher holds no queue. It reads what the ring of its scope has after its cursor, as fast as the client takes
//! it; the bytes of each event are shared with all watchers that want the same form. One that falls behind the ring
//! is cut off with `410 Expired`.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use hawser_api::status::Status;
use tokio::time::{Instant, Sleep};

use super::{Call, Registry, feed_status, reloading};
use crate::cache::entry::Entry;
use crate::cache::feed::{Feed, FeedError};
use crate::cache::filter::Filter;
use crate::cache::ring::{Batch, Event, EventType, Seat};
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
    ring: Seat,
    filter: Filter,
    /// Whether all that is in the ring is shown, so that what one watcher makes of it does for the others.
    whole: bool,
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
    /// Runs for as long as the watch does, so that waiting does not begin with setting a timer.
    timer: Pin<Box<Sleep>>,
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
        let ring = Seat::new(cache.ring(&scope, cursor));
        if cursor < ring.floor() {
            failure = failure.or_else(|| Some(too_old(cursor, cache.floor())));
        }
        let now = Instant::now();
        let timeout = options.timeout.unwrap_or_else(|| DEFAULT_TIMEOUT.mul_f64(1.0 + rand::random::<f64>()));
        let deadline = now + timeout;
        let conversion = webhook(&call.row.kind).map(|_| (call.row.clone(), self.converter.clone()));
        let mut watch = Watch {
            feed: self.feed.clone(),
            cache,
            ring,
            whole: conversion.is_none() && filter.is_scope(&scope),
            filter,
            cursor,
            renderer,
            conversion,
            initial,
            initial_end: (options.send_initial_events == Some(true) && options.bookmarks).then_some(cursor),
            bookmarks: options.bookmarks,
            next_bookmark: deadline,
            deadline,
            timer: Box::pin(tokio::time::sleep_until(deadline)),
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
            match self.batch().await {
                Ok(Some(batch)) => {
                    self.cursor = batch.last;
                    if !batch.bytes.is_empty() {
                        self.given += batch.events;
                        return Some(batch.bytes);
                    }
                }
                Ok(None) => {
                    if let Some(bookmark) = self.wait().await {
                        return Some(bookmark);
                    }
                }
                Err(status) => self.failure = Some(status),
            }
        }
    }

    /// What is made of the events after the cursor; None when there are none.
    async fn batch(&mut self) -> Result<Option<Batch>, Status> {
        let form = if self.whole { self.renderer.form() } else { None };
        if let Some(batch) = form.and_then(|form| self.ring.batch(form, self.cursor)) {
            return Ok(Some(batch));
        }
        let mut events = Vec::new();
        let read = self.ring.read(self.cursor, BATCH, &mut events);
        read.map_err(|lagged| too_old(self.cursor, lagged.floor))?;
        if events.is_empty() {
            return Ok(None);
        }
        if let Some((row, converter)) = self.conversion.clone() {
            return self.converted(&events, &row, &converter).await.map(Some);
        }
        let batch = self.rendered(&events)?;
        if let Some(form) = form {
            self.ring.share_batch(form, self.cursor, &batch);
        }
        Ok(Some(batch))
    }

    /// Waits until there may be something to read. Answers a bookmark when it is time for one.
    async fn wait(&mut self) -> Option<Bytes> {
        {
            let mut changed = std::pin::pin!(self.ring.changed.notified());
            // Listening begins before looking, so that nothing falls between.
            changed.as_mut().enable();
            let seen = self.feed.seen();
            if self.feed.is_stopped() || self.ring.has_after(self.cursor) {
                return None;
            }
            // Everything up to `seen` was applied before it was read, and nothing of it is left.
            self.cursor = self.cursor.max(seen);
            let wake = if self.bookmarks { self.next_bookmark.min(self.deadline) } else { self.deadline };
            if self.timer.deadline() != wake {
                self.timer.as_mut().reset(wake);
            }
            tokio::select! {
                () = changed => return None,
                () = self.timer.as_mut() => {}
            }
        }
        let now = Instant::now();
        if now >= self.deadline {
            self.done = true;
            return None;
        }
        self.schedule_bookmark(now);
        // Nothing can be said of a revision that is still to come.
        (self.cursor <= self.feed.seen()).then(|| self.renderer.bookmark(self.cursor, false))
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
            Some((row, converter)) => {
                let shown = converter.present(row, entries.clone()).await?;
                let agreed =
                    shown.into_iter().zip(&entries).filter(|(shown, e)| self.filter.agrees(e, shown));
                agreed.map(|(shown, _)| shown).collect()
            }
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

    /// Renders events.
    fn rendered(&mut self, events: &[Arc<Event>]) -> Result<Batch, Status> {
        let mut only: Option<Bytes> = None;
        let mut out = BytesMut::new();
        let (mut count, mut last) = (0, self.cursor);
        for event in events {
            last = event.revision;
            let (now, before) = states_of(&self.filter, event);
            let Some((kind, entry)) = change(now, before) else { continue };
            let frame = self.renderer.shared_event(event, kind, entry)?;
            count += 1;
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
        Ok(Batch { bytes: only.unwrap_or_else(|| out.freeze()), events: count, last })
    }

    /// Renders events whose objects a webhook has to convert first. These frames are this watcher's own.
    async fn converted(
        &mut self,
        events: &[Arc<Event>],
        row: &Row,
        converter: &Converter,
    ) -> Result<Batch, Status> {
        let filter = &self.filter;
        let (mut states, mut entries) = (Vec::new(), Vec::new());
        for event in events {
            let (now, before) = states_of(filter, event);
            let mut place = |entry: &Arc<Entry>| {
                entries.push(entry.clone());
                entries.len() - 1
            };
            let now = now.map(&mut place);
            let before = match (now, before) {
                // That it was shown is all that counts, and known without converting it.
                (Some(now), Some(_)) if !filter.is_about_converted() => Some(now),
                (_, before) => before.map(&mut place),
            };
            states.push((now, before, event.revision));
        }
        let shown = converter.present(row, entries.clone()).await?;
        let agreed = |at: Option<usize>| {
            let (entry, shown) = (entries.get(at?)?, shown.get(at?)?);
            filter.agrees(entry, shown).then_some(shown)
        };
        let mut out = BytesMut::new();
        let mut count = 0;
        for (now, before, revision) in states {
            if let Some((kind, entry)) = change(agreed(now), agreed(before)) {
                out.extend_from_slice(&self.renderer.event(kind, entry, revision)?);
                count += 1;
            }
        }
        let last = events.last().map_or(self.cursor, |e| e.revision);
        Ok(Batch { bytes: out.freeze(), events: count, last })
    }
}

/// What an object is after an event and what it was before it, where a watcher's selectors show that.
fn states_of<'e>(filter: &Filter, event: &'e Event) -> (Option<&'e Arc<Entry>>, Option<&'e Arc<Entry>>) {
    let now = (event.kind != EventType::Deleted && filter.matches(&event.entry)).then_some(&event.entry);
    (now, event.previous.as_ref().filter(|p| filter.matches(p)))
}

/// What an event is to a watcher: an object that begins to match is added, one that ceases to is deleted.
fn change<T>(now: Option<T>, before: Option<T>) -> Option<(EventType, T)> {
    match (now, before) {
        (Some(now), Some(_)) => Some((EventType::Modified, now)),
        (Some(now), None) => Some((EventType::Added, now)),
        (None, Some(before)) => Some((EventType::Deleted, before)),
        (None, None) => None,
    }
}
