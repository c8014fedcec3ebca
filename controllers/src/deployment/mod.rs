//! Deployment: rolls its ReplicaSets from one template to the next.

mod annotations;
mod numbers;
mod reconcile;
mod scale;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::core::Selector;

use crate::cache::{BY_CONTROLLER, Caches, Pod};
use crate::claim;
use crate::object::{self, Key};
use crate::plan::Plan;
use crate::pods;
use crate::runner::{Controller, Failure, Queue, ViewError};

pub use numbers::resolve;
pub use reconcile::{View, reconcile};

/// What a Deployment selects. One that would select everything selects nothing.
fn selector(deployment: &Deployment) -> Option<Selector> {
    object::selector(&deployment.spec.as_ref()?.selector).filter(|s| !s.selects_all())
}

/// The controller. Keys are Deployments.
pub struct Deployments {
    caches: Arc<Caches>,
}

impl Deployments {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone() }
    }

    /// The Deployment above a pod, by way of its ReplicaSet.
    fn key_above(&self, pod: &Pod) -> Option<Key> {
        let namespace = object::namespace(pod);
        let set = object::controller_ref(&pod.metadata).filter(|r| r.kind == "ReplicaSet")?;
        let set = self.caches.replica_sets.get(&Key::new(namespace, &set.name))?;
        let owner = object::controller_ref(&set.metadata).filter(|r| r.kind == "Deployment")?;
        Some(Key::new(namespace, &owner.name))
    }
}

#[async_trait]
impl Controller for Deployments {
    type View = View;

    fn name(&self) -> &'static str {
        "deployment"
    }

    fn component(&self) -> &'static str {
        "deployment-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        self.caches.deployments.queue_changed(queue);
        let (this, q) = (self.clone(), queue.clone());
        self.caches.replica_sets.on_change(move |change| {
            for set in change.states() {
                for key in claim::owners(&this.caches.deployments, selector, set.as_ref()) {
                    q.add(key);
                }
            }
        });
        // Only the end of a pod matters beyond what its ReplicaSet's status tells: `Recreate` waits
        // for it.
        let (this, q) = (self.clone(), queue.clone());
        self.caches.pods.on_change(move |change| {
            let ended = change.new.is_none_or(|pod| pods::is_terminal(pod));
            if ended && let Some(key) = change.old.and_then(|pod| this.key_above(pod)) {
                q.add(key);
            }
        });
    }

    async fn view(&self, key: &Key, prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(deployment) = self.caches.deployments.get(key) else { return Ok(None) };
        let owned = self.caches.replica_sets.by_index(BY_CONTROLLER, object::uid(deployment.as_ref()));
        let pods_of = |set: &Arc<ReplicaSet>| {
            let pods = self.caches.pods.by_index(BY_CONTROLLER, object::uid(set.as_ref()));
            let running = pods.iter().filter(|pod| !pods::is_terminal(pod)).count();
            (object::uid(set.as_ref()).to_owned(), running)
        };
        let running = owned.iter().map(pods_of).collect();
        let caches = &self.caches;
        let candidates = claim::candidates(&caches.deployments, &caches.replica_sets, deployment.as_ref());
        // A set of the name we would choose but of another owner: a collision of hashes.
        let name = reconcile::new_set_name(&deployment);
        let homonym = self.caches.replica_sets.get(&Key::new(&key.namespace, name));
        Ok(Some(View { deployment, candidates, running, homonym, prior: prior.cloned() }))
    }

    fn reconcile(&self, view: &View, now: jiff::Timestamp) -> Plan {
        reconcile(view, now)
    }
}
