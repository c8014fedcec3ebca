//! Services, for environment variables only: one shared watch for all pods.

use crate::retry::Retry;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

/// How long a container waits for the first list of services.
const FIRST_LIST: Duration = Duration::from_secs(10);

pub(crate) struct Services {
    store: Store<Service>,
    _task: AbortOnDropHandle<()>,
}

impl Services {
    pub fn start(client: Client) -> Services {
        let (store, writer) = reflector::store();
        let stream = watcher(Api::<Service>::all(client), watcher::Config::default());
        // Only what the variables are made of is kept.
        let stream = stream.modify(|s: &mut Service| {
            s.metadata.managed_fields = None;
            s.metadata.annotations = None;
            s.status = None;
        });
        let task = tokio::spawn(async move {
            let mut stream = std::pin::pin!(stream.backoff(Retry::default()).reflect(writer));
            while let Some(event) = stream.next().await {
                if let Err(e) = event {
                    tracing::debug!("watching services: {e}");
                }
            }
        });
        Services { store, _task: AbortOnDropHandle::new(task) }
    }

    /// The services whose variables a pod gets: `default/kubernetes`, and those of its namespace if it wants links.
    ///
    /// # Errors
    /// When services were not listed in time.
    pub async fn visible(&self, namespace: &str, links: bool) -> Result<Vec<Arc<Service>>, String> {
        match tokio::time::timeout(FIRST_LIST, self.store.wait_until_ready()).await {
            Ok(Ok(())) => {}
            _ => return Err("services have not yet been read at least once, cannot construct envs".into()),
        }
        let is_master = |s: &Service| {
            s.metadata.namespace.as_deref() == Some("default")
                && s.metadata.name.as_deref() == Some("kubernetes")
        };
        let in_namespace = |s: &Service| s.metadata.namespace.as_deref() == Some(namespace);
        let mut out: Vec<_> =
            self.store.state().into_iter().filter(|s| is_master(s) || links && in_namespace(s)).collect();
        // The namespace's own service of a name wins over the master: it comes later.
        out.sort_by_key(|s| !is_master(s));
        Ok(out)
    }
}
