//! Feeds the graph: one metadata watch per resource that the caches do not hold anyway.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use kube::Api;
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::GarbageCollector;
use crate::discovery::{Resource, discover};

/// How often discovery is asked what is new, if nothing says so earlier.
const REDISCOVER: Duration = Duration::from_secs(30);
/// How long the graph waits for a resource that does not answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The state of the watches.
#[derive(Default)]
pub struct Monitors {
    synced: AtomicBool,
    pending: Mutex<HashSet<(String, String)>>,
    moved: Notify,
    /// Kinds came or went.
    stale: Notify,
}

impl Monitors {
    /// Whether every resource was listed once (or given up on).
    pub fn are_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    fn listed(&self, id: &(String, String)) {
        if self.pending.lock().remove(id) {
            self.moved.notify_waiters();
        }
    }

    #[cfg(test)]
    pub fn declare_synced(&self) {
        self.synced.store(true, Ordering::Release);
    }

    async fn wait(&self) {
        let all = async {
            loop {
                let moved = self.moved.notified();
                tokio::pin!(moved);
                moved.as_mut().enable();
                if self.pending.lock().is_empty() {
                    return;
                }
                moved.await;
            }
        };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            let missing: Vec<_> = self.pending.lock().iter().cloned().collect();
            tracing::warn!(?missing, "resources that the garbage collector cannot watch");
        }
        self.synced.store(true, Ordering::Release);
    }
}

/// Objects of these resources own nothing and are owned by nothing, and there are many.
fn is_ignored(resource: &Resource) -> bool {
    resource.api.plural == "events" && ["", "events.k8s.io"].contains(&resource.api.group.as_str())
}

/// Resources that tell that there are other resources.
fn tells_of_kinds(resource: &Resource) -> bool {
    matches!(resource.api.plural.as_str(), "customresourcedefinitions" | "apiservices")
}

/// Keeps one watch per resource until cancelled.
pub async fn run(gc: Arc<GarbageCollector>, stop: CancellationToken) {
    let mut watches: BTreeMap<(String, String), (String, CancellationToken)> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        match discover(&gc.client).await {
            Ok(found) => {
                let mut wanted = BTreeMap::new();
                for resource in found.resources {
                    if resource.can(&["delete", "list", "watch"]) && !is_ignored(&resource) {
                        let id = (resource.api.group.clone(), resource.api.plural.clone());
                        wanted.insert(id, Arc::new(resource));
                    }
                }
                // A group that does not answer has not lost its kinds.
                let failed: Vec<&str> = found.failed.iter().filter_map(|v| v.split('/').next()).collect();
                watches.retain(|id, (version, token)| {
                    // A custom resource may cease to be served in the version it is watched in.
                    let same = wanted.get(id).is_some_and(|r| r.api.version == *version);
                    let keep = same || failed.contains(&id.0.as_str());
                    if !keep {
                        token.cancel();
                    }
                    keep
                });
                for (id, resource) in wanted {
                    if let Entry::Vacant(new) = watches.entry(id) {
                        let token = stop.child_token();
                        let version = resource.api.version.clone();
                        start(&gc, resource, new.key(), &token, &mut tasks);
                        new.insert((version, token));
                    }
                }
                gc.monitors.wait().await;
            }
            Err(error) => tracing::debug!(%error, "discovery failed, trying again"),
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = gc.monitors.stale.notified() => {}
            () = tokio::time::sleep(REDISCOVER) => {}
        }
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
}

fn start(
    gc: &Arc<GarbageCollector>,
    resource: Arc<Resource>,
    id: &(String, String),
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) {
    let kind = (resource.api.group.clone(), resource.api.kind.clone());
    gc.kinds.write().insert(kind, resource.clone());
    let work = gc.graph.lock().learn(&resource);
    gc.enqueue(work);
    gc.monitors.pending.lock().insert(id.clone());

    if let Some(store) = gc.caches.stores().into_iter().find(|s| s.kind() == *id && s.holds_all()) {
        let (gc, id, stop) = (gc.clone(), id.clone(), stop.clone());
        tasks.spawn(async move {
            let weak = Arc::downgrade(&gc);
            let res = resource.clone();
            store.observe(Box::new(move |meta, there| {
                let Some(gc) = weak.upgrade() else { return };
                match there {
                    true => gc.observe(&res, meta),
                    false => gc.forget(meta.uid()),
                }
            }));
            store.synced().await;
            gc.monitors.listed(&id);
            // The store's observer lives as long as the store: built-in kinds do not go away.
            stop.cancelled().await;
        });
        return;
    }
    let (gc, id, stop) = (gc.clone(), id.clone(), stop.clone());
    tasks.spawn(async move { watch(&gc, &resource, &id, &stop).await });
}

/// Watches the metadata of one resource.
async fn watch(
    gc: &GarbageCollector,
    resource: &Arc<Resource>,
    id: &(String, String),
    stop: &CancellationToken,
) {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(gc.watcher.clone(), &resource.api);
    let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
    let mut held: HashSet<String> = HashSet::new();
    let mut listed: HashSet<String> = HashSet::new();
    let uid = |o: &PartialObjectMeta<DynamicObject>| o.metadata.uid.clone().unwrap_or_default();
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => break,
            event = events.next() => event,
        };
        match event {
            Some(Ok(watcher::Event::Init)) => listed = HashSet::new(),
            Some(Ok(watcher::Event::InitApply(object))) => {
                gc.observe(resource, &object.metadata);
                listed.insert(uid(&object));
            }
            Some(Ok(watcher::Event::InitDone)) => {
                let now = std::mem::take(&mut listed);
                for gone in held.difference(&now) {
                    gc.forget(gone);
                }
                held = now;
                gc.monitors.listed(id);
            }
            Some(Ok(watcher::Event::Apply(object))) => {
                gc.observe(resource, &object.metadata);
                if held.insert(uid(&object)) && tells_of_kinds(resource) {
                    gc.monitors.stale.notify_one();
                }
            }
            Some(Ok(watcher::Event::Delete(object))) => {
                let uid = uid(&object);
                held.remove(&uid);
                gc.forget(&uid);
                if tells_of_kinds(resource) {
                    gc.monitors.stale.notify_one();
                }
            }
            Some(Err(error)) => {
                tracing::debug!(kind = resource.api.kind, %error, "watch failed, trying again")
            }
            None => break,
        }
    }
    // The kind is gone, and with it its objects.
    if !stop.is_cancelled() || gc.monitors.are_synced() {
        for uid in held {
            gc.forget(&uid);
        }
    }
    gc.monitors.listed(id);
}
