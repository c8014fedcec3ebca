//! ReplicaSet and ReplicationController: keep the wanted number of pods of a template. The two kinds differ in
//! their selectors' form and in their names; [`Replicates`] is all that is told apart.

mod kind;
mod reconcile;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;

use crate::cache::{BY_CONTROLLER, Caches, Change, Pod, Store};
use crate::claim;
use crate::object::{self, Key};
use crate::plan::Plan;
use crate::pods;
use crate::runner::{Controller, Failure, Queue, ViewError};

pub use kind::Replicates;
pub use reconcile::{View, reconcile};

/// The controller of ReplicaSets.
pub type ReplicaSets = Replicas<ReplicaSet>;
/// The controller of ReplicationControllers.
pub type ReplicationControllers = Replicas<ReplicationController>;

/// The controller of one kind. Keys are the kind's objects.
pub struct Replicas<K: Replicates> {
    caches: Arc<Caches>,
    store: fn(&Caches) -> &Store<K>,
}

impl<K: Replicates> Replicas<K> {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone(), store: K::store }
    }

    fn sets(&self) -> &Store<K> {
        (self.store)(&self.caches)
    }

    /// The active pods of all sets with the same owner as `set`, itself included.
    fn related(&self, set: &K) -> Vec<Arc<Pod>> {
        let siblings = match object::controller_ref(set.meta()) {
            Some(owner) => self.sets().by_index(BY_CONTROLLER, &owner.uid),
            None => return self.caches.pods.by_index(BY_CONTROLLER, object::uid(set)),
        };
        siblings
            .iter()
            .flat_map(|sibling| self.caches.pods.by_index(BY_CONTROLLER, object::uid(sibling.as_ref())))
            .filter(|pod| pods::is_active(pod))
            .collect()
    }
}

/// Whether a change of a pod can show in a set's status or in what becomes of its pods. Most do not: that a pod is placed
/// or has an address, and what its containers do as long as it is as ready as before.
fn concerns_sets(change: &Change<'_, Pod>) -> bool {
    let (Some(old), Some(new)) = (change.old, change.new) else { return true };
    let ready = |pod: &Pod| {
        let ready = pods::condition(pod, "Ready").filter(|c| c.status == "True");
        ready.map(|c| c.last_transition_time.clone())
    };
    ready(old) != ready(new)
        || pods::is_terminal(old) != pods::is_terminal(new)
        || object::is_deleting(old.as_ref()) != object::is_deleting(new.as_ref())
        || !Pod::have_in_common(old, new)
}

#[async_trait]
impl<K: Replicates> Controller for Replicas<K> {
    type View = View<K>;

    fn name(&self) -> &'static str {
        K::NAME
    }

    fn component(&self) -> &'static str {
        K::COMPONENT
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let q = queue.clone();
        self.sets().on_change(move |change| q.add(change.key.clone()));
        let (this, q) = (self.clone(), queue.clone());
        self.caches.pods.on_change(move |change| {
            if !concerns_sets(change) {
                return;
            }
            for pod in change.states() {
                for key in claim::owners(this.sets(), K::selector, pod.as_ref()) {
                    q.add(key);
                }
            }
        });
    }

    async fn view(&self, key: &Key, prior: Option<&Failure>) -> Result<Option<View<K>>, ViewError> {
        let Some(set) = self.sets().get(key) else { return Ok(None) };
        let candidates = claim::candidates(self.sets(), &self.caches.pods, set.as_ref());
        // Only who is deleted hangs on them.
        let wanted = usize::try_from(set.replicas()).unwrap_or(0);
        let related = if candidates.len() > wanted { self.related(&set) } else { Vec::new() };
        Ok(Some(View { set, candidates, related, prior: prior.cloned() }))
    }

    fn reconcile(&self, view: &View<K>, now: jiff::Timestamp) -> Plan {
        reconcile(view, now)
    }
}
