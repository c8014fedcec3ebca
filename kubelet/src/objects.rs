//! ConfigMaps and Secrets that pods of this node refer to, each watched by name while somebody needs it.
//!
//! Cost: one watch per referenced object, nothing per object of the cluster.

use crate::retry::Retry;
use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// How long an object nobody needs stays watched: the next pod of the same owner is likely to need it.
const LINGER: Duration = Duration::from_secs(60);
/// How long to wait for the first answer about an object.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// What is known of an object: not asked yet, not there, or there.
type Known<K> = Option<Option<Arc<K>>>;

/// Objects of one kind.
pub(crate) struct Cache<K> {
    client: Client,
    entries: Mutex<HashMap<(String, String), Entry<K>>>,
}

struct Entry<K> {
    value: watch::Receiver<Known<K>>,
    /// Held by each user and by the entry itself.
    users: Arc<()>,
    last_used: Instant,
    _task: AbortOnDropHandle<()>,
}

/// One user's hold on an object.
#[derive(Clone)]
pub(crate) struct Handle<K> {
    value: watch::Receiver<Known<K>>,
    _user: Arc<()>,
}

impl<K> Cache<K>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Default,
{
    pub fn new(client: Client) -> Cache<K> {
        Cache { client, entries: Mutex::new(HashMap::new()) }
    }

    /// Takes hold of an object, which starts a watch if there is none.
    pub fn hold(&self, namespace: &str, name: &str) -> Handle<K> {
        let now = Instant::now();
        let mut entries = self.entries.lock();
        entries.retain(|_, e| {
            let used = Arc::strong_count(&e.users) > 1;
            used || now.duration_since(e.last_used) < LINGER
        });
        let entry = entries
            .entry((namespace.to_owned(), name.to_owned()))
            .or_insert_with(|| self.watch(namespace, name, now));
        entry.last_used = now;
        Handle { value: entry.value.clone(), _user: entry.users.clone() }
    }

    fn watch(&self, namespace: &str, name: &str, now: Instant) -> Entry<K> {
        let (tx, value) = watch::channel(None);
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let name = name.to_owned();
        let task = tokio::spawn(async move {
            let mut stream = std::pin::pin!(watcher::watch_object(api, &name).backoff(Retry::default()));
            while let Some(item) = stream.next().await {
                match item {
                    Ok(object) => {
                        tx.send_replace(Some(object.map(Arc::new)));
                    }
                    Err(e) => {
                        tracing::debug!(%name, "watching a {}: {e}", K::kind(&K::DynamicType::default()))
                    }
                }
                if tx.is_closed() {
                    return;
                }
            }
        });
        Entry { value, users: Arc::new(()), last_used: now, _task: AbortOnDropHandle::new(task) }
    }
}

impl<K> Handle<K> {
    /// The object, or `None` if it does not exist.
    ///
    /// # Errors
    /// When the API server does not answer in time.
    pub async fn get(&self) -> Result<Option<Arc<K>>, Unanswered> {
        let mut value = self.value.clone();
        let known = tokio::time::timeout(FIRST_ANSWER, value.wait_for(Option::is_some)).await;
        match known {
            Ok(Ok(v)) => Ok(v.clone().flatten()),
            _ => Err(Unanswered),
        }
    }

    /// A receiver that sees every later change.
    pub fn changes(&self) -> watch::Receiver<Known<K>> {
        self.value.clone()
    }
}

/// The API server did not answer in time.
#[derive(Debug, thiserror::Error)]
#[error("timed out waiting for the API server")]
pub(crate) struct Unanswered;
