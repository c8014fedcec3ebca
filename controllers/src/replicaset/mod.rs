//! ReplicaSet: keeps the wanted number of pods of a template.

mod reconcile;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;

use crate::cache::{BY_CONTROLLER, BY_SELECTOR, Caches, ORPHANS};
use crate::object::{self, Key};
use crate::plan::Plan;
use crate::pods;
use crate::runner::{Controller, Failure, Queue, ViewError};

pub use reconcile::{View, reconcile};

/// The controller. Keys are ReplicaSets.
pub struct ReplicaSets {
    caches: Arc<Caches>,
}

impl ReplicaSets {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone() }
    }

    /// The ReplicaSets that a pod concerns: its controller, or for an orphan all that select it.
    fn keys_of(&self, pod: &Pod) -> Vec<Key> {
        let namespace = object::namespace(pod);
        if let Some(owner) = object::controller_ref(&pod.metadata) {
            let ours = owner.kind == "ReplicaSet" && owner.api_version.starts_with("apps/");
            return ours.then(|| Key::new(namespace, &owner.name)).into_iter().collect();
        }
        let selects = |set: &ReplicaSet| {
            let selector = set.spec.as_ref().and_then(|s| object::selector(&s.selector));
            selector.is_some_and(|s| object::matches(&s, &pod.metadata.labels))
        };
        object::label_buckets(namespace, &pod.metadata.labels)
            .iter()
            .flat_map(|bucket| self.caches.replica_sets.by_index(BY_SELECTOR, bucket))
            .filter(|set| selects(set))
            .map(|set| Key::of(set.as_ref()))
            .collect()
    }

    /// The active pods of all sets with the same owner as `set`, itself included.
    fn related(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let siblings = match object::controller_ref(&set.metadata) {
            Some(owner) => self.caches.replica_sets.by_index(BY_CONTROLLER, &owner.uid),
            None => return self.caches.pods.by_index(BY_CONTROLLER, object::uid(set)),
        };
        siblings
            .iter()
            .flat_map(|sibling| self.caches.pods.by_index(BY_CONTROLLER, object::uid(sibling.as_ref())))
            .filter(|pod| pods::is_active(pod))
            .collect()
    }
}

#[async_trait]
impl Controller for ReplicaSets {
    type View = View;

    fn name(&self) -> &'static str {
        "replicaset"
    }

    fn component(&self) -> &'static str {
        "replicaset-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let q = queue.clone();
        self.caches.replica_sets.on_change(move |change| q.add(change.key.clone()));
        let (this, q) = (self.clone(), queue.clone());
        self.caches.pods.on_change(move |change| {
            for pod in change.states() {
                for key in this.keys_of(pod) {
                    q.add(key);
                }
            }
        });
    }

    async fn view(&self, key: &Key, prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(set) = self.caches.replica_sets.get(key) else { return Ok(None) };
        let mut candidates = self.caches.pods.by_index(BY_CONTROLLER, object::uid(set.as_ref()));
        candidates.extend(self.caches.pods.by_index(ORPHANS, &key.namespace));
        let related = self.related(&set);
        Ok(Some(View { set, candidates, related, prior: prior.cloned() }))
    }

    fn reconcile(&self, view: &View, now: jiff::Timestamp) -> Plan {
        reconcile(view, now)
    }
}
