//! [`ObjectReader`] over the watch caches.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::access::{Change, GroupResource, ObjectReader, ObjectRef, ReadError};
use crate::cache::entry::Entry;
use crate::cache::feed::{Feed, FeedError};
use crate::cache::ring::{EventType, Ring};
use crate::cache::{ResourceCache, Scope};
use crate::kinds::KindsRegistry;

/// Events taken from the ring at once.
const BATCH: usize = 512;
/// Pause before a cache that could not be started is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// Reads the caches of a server.
#[derive(Clone)]
pub struct Reader {
    /// Between storage and the caches.
    pub feed: Arc<Feed>,
    /// The rows served.
    pub kinds: Arc<KindsRegistry>,
}

impl Reader {
    fn cache(&self, resource: &GroupResource) -> Result<Arc<ResourceCache>, ReadError> {
        let table = self.kinds.load();
        table
            .find_resource(resource)
            .and_then(|row| row.cache.clone())
            .ok_or_else(|| ReadError::NoResource(resource.clone()))
    }

    async fn ready(&self, resource: &GroupResource, fresh: bool) -> Result<Arc<ResourceCache>, ReadError> {
        let cache = self.cache(resource)?;
        let done: Result<(), FeedError> =
            if fresh { self.feed.consistent(&cache).await.map(drop) } else { self.feed.ensure(&cache).await };
        done.map_err(|e| ReadError::Storage(e.to_string()))?;
        Ok(cache)
    }
}

fn object(cache: &ResourceCache, entry: &Entry) -> ObjectRef {
    let (namespace, name) = entry.namespace_and_name();
    ObjectRef {
        namespace: namespace.into(),
        name: name.into(),
        resource_version: entry.revision,
        json: cache.head().object(entry.revision, entry.tail(cache.head())),
    }
}

#[async_trait]
impl ObjectReader for Reader {
    async fn get(
        &self,
        resource: &GroupResource,
        namespace: &str,
        name: &str,
        fresh: bool,
    ) -> Result<Option<ObjectRef>, ReadError> {
        let cache = self.ready(resource, fresh).await?;
        let found = cache.get(namespace, name).map_err(|e| ReadError::Storage(e.to_string()))?;
        Ok(found.map(|entry| object(&cache, &entry)))
    }

    async fn list(
        &self,
        resource: &GroupResource,
        namespace: Option<&str>,
        fresh: bool,
    ) -> Result<Vec<ObjectRef>, ReadError> {
        let cache = self.ready(resource, fresh).await?;
        let (entries, _) = cache.entries(namespace).map_err(|e| ReadError::Storage(e.to_string()))?;
        Ok(entries.iter().map(|e| object(&cache, e)).collect())
    }

    fn changes(&self, resource: &GroupResource) -> Result<BoxStream<'static, Change>, ReadError> {
        let follower = Follower {
            cache: self.cache(resource)?,
            feed: self.feed.clone(),
            position: None,
            waiting: std::collections::VecDeque::new(),
        };
        Ok(Box::pin(futures::stream::unfold(follower, |mut f| async move { f.next().await.map(|c| (c, f)) })))
    }
}

/// A subscriber: a cursor into the ring of everything, and what has been read and not yet taken.
struct Follower {
    cache: Arc<ResourceCache>,
    feed: Arc<Feed>,
    position: Option<(Arc<Ring>, u64)>,
    waiting: std::collections::VecDeque<Change>,
}

impl Follower {
    async fn next(&mut self) -> Option<Change> {
        loop {
            if let Some(change) = self.waiting.pop_front() {
                return Some(change);
            }
            let Some((ring, cursor)) = self.position.clone() else {
                return Some(self.reset().await);
            };
            let mut changed = std::pin::pin!(ring.changed.notified());
            changed.as_mut().enable();
            if self.feed.is_stopped() {
                return None;
            }
            let mut events = Vec::new();
            if ring.read(cursor, BATCH, &mut events).is_err() {
                self.position = None;
                continue;
            }
            let Some(last) = events.last() else {
                changed.await;
                continue;
            };
            self.position = Some((ring.clone(), last.revision));
            for event in events {
                let entry = object(&self.cache, &event.entry);
                self.waiting.push_back(match event.kind {
                    EventType::Deleted => Change::Deleted(entry),
                    EventType::Added | EventType::Modified => Change::Applied(entry),
                });
            }
        }
    }

    async fn reset(&mut self) -> Change {
        let (ring, entries, revision) = loop {
            let ring = self.cache.ring(&Scope::All, 0);
            let read = match self.feed.ensure(&self.cache).await {
                Ok(()) => self.cache.entries(None).map_err(FeedError::from),
                Err(e) => Err(e),
            };
            match read {
                Ok((entries, revision)) => break (ring, entries, revision),
                Err(e) => {
                    tracing::warn!(error = %e, prefix = self.cache.prefix(), "cannot read what others wait for")
                }
            }
            tokio::time::sleep(RETRY).await;
        };
        self.position = Some((ring, revision));
        Change::Reset(entries.iter().map(|e| object(&self.cache, e)).collect())
    }
}
