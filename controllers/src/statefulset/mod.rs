//! StatefulSet: pods with names, in order, each with storage of its own.

mod pod;
mod reconcile;
mod status;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::StatefulSet;

use crate::cache::{BY_CONTROLLER, Caches};
use crate::claim;
use crate::object::{self, Key};
use crate::plan::Plan;
use crate::revisions;
use crate::runner::{Controller, Failure, Queue, ViewError};

pub use reconcile::{View, reconcile};

/// The controller. Keys are StatefulSets.
pub struct StatefulSets {
    caches: Arc<Caches>,
}

impl StatefulSets {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone() }
    }
}

#[async_trait]
impl Controller for StatefulSets {
    type View = View;

    fn name(&self) -> &'static str {
        "statefulset"
    }

    fn component(&self) -> &'static str {
        "statefulset-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let selector = |set: &StatefulSet| object::selector(&set.spec.as_ref()?.selector);
        revisions::wire(&self.caches, |caches| &caches.stateful_sets, selector, queue);
        self.caches.claims.want();
    }

    async fn view(&self, key: &Key, prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(set) = self.caches.stateful_sets.get(key) else { return Ok(None) };
        let candidates = claim::candidates(&self.caches.stateful_sets, &self.caches.pods, set.as_ref());
        let mut history = self.caches.revisions.by_index(BY_CONTROLLER, object::uid(set.as_ref()));
        revisions::sort(&mut history);
        let names = self.caches.revisions.clone();
        let template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
        let collisions = set.status.as_ref().and_then(|s| s.collision_count);
        let present =
            revisions::present(set.as_ref(), revisions::HASH, &template, &history, collisions, |name| {
                names.get(&Key::new(&key.namespace, name))
            });
        // Of the claims only those that the set's pods have by name: at most replicas times templates.
        let mut claims = HashMap::new();
        for (ordinal, name) in reconcile::claim_names(&set, &candidates) {
            if let Some(claim) = self.caches.claims.get(&Key::new(&key.namespace, &name)) {
                claims.insert(name, (ordinal, claim));
            }
        }
        Ok(Some(View { set, candidates, history, present, claims, prior: prior.cloned() }))
    }

    fn reconcile(&self, view: &View, now: jiff::Timestamp) -> Plan {
        reconcile(view, now)
    }
}
