//! DaemonSet: one pod on every node that fits.

mod nodes;
mod reconcile;
#[cfg(test)]
mod tests;
mod update;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;

use crate::cache::{BY_CONTROLLER, Caches, Pod};
use crate::claim;
use crate::object::{self, Key};
use crate::plan::Plan;
use crate::pods;
use crate::revisions;
use crate::runner::{Clock, Controller, Failure, Queue, ViewError};

pub use reconcile::{View, reconcile};

/// Between two replacements of a failing pod: at first, and at most.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LAST_BACKOFF: Duration = Duration::from_secs(15 * 60);

/// How often a node's pod failed lately, and when it was last replaced.
struct Backoff {
    wait: Duration,
    at: Timestamp,
}

/// The controller. Keys are DaemonSets.
pub struct DaemonSets {
    caches: Arc<Caches>,
    clock: Clock,
    /// By the DaemonSet's uid and the node.
    backoffs: Mutex<HashMap<(String, String), Backoff>>,
}

impl DaemonSets {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>, clock: Clock) -> Self {
        Self { caches: caches.clone(), clock, backoffs: Mutex::default() }
    }

    /// For each node whose pod has failed: how long its replacement has to wait still.
    fn waits(&self, set: &DaemonSet, pods: &[Arc<Pod>]) -> HashMap<String, Duration> {
        let now = (self.clock)();
        let mut backoffs = self.backoffs.lock();
        backoffs.retain(|_, b| now.duration_since(b.at).unsigned_abs() < 2 * LAST_BACKOFF);
        let failed = pods.iter().filter(|p| pods::phase(p) == "Failed" && !object::is_deleting(p.as_ref()));
        failed
            .map(|pod| {
                let node = nodes::of_pod(pod).unwrap_or_default().to_owned();
                let key = (object::uid(set).to_owned(), node.clone());
                let wait = match backoffs.get_mut(&key) {
                    None => {
                        backoffs.insert(key, Backoff { wait: FIRST_BACKOFF, at: now });
                        Duration::ZERO
                    }
                    Some(b) => {
                        let passed = now.duration_since(b.at).unsigned_abs();
                        if passed >= b.wait {
                            // Quiet for long enough counts as mended.
                            let mended = passed > 2 * LAST_BACKOFF.min(b.wait * 2);
                            b.wait = if mended { FIRST_BACKOFF } else { (b.wait * 2).min(LAST_BACKOFF) };
                            b.at = now;
                            Duration::ZERO
                        } else {
                            b.wait - passed
                        }
                    }
                };
                (node, wait)
            })
            .collect()
    }
}

#[async_trait]
impl Controller for DaemonSets {
    type View = View;

    fn name(&self) -> &'static str {
        "daemonset"
    }

    fn component(&self) -> &'static str {
        "daemonset-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let selector = |set: &DaemonSet| object::selector(&set.spec.as_ref()?.selector);
        revisions::wire(&self.caches, |caches| &caches.daemon_sets, selector, queue);
        // A node that comes, goes or changes what decides about pods concerns every DaemonSet.
        let (this, q) = (self.clone(), queue.clone());
        self.caches.nodes.on_change(move |change| {
            let facts = |n: &Arc<Node>| {
                let spec = n.spec.as_ref();
                (n.metadata.labels.clone(), spec.and_then(|s| s.taints.clone()))
            };
            if change.old.map(facts) != change.new.map(facts) {
                for set in this.caches.daemon_sets.all() {
                    q.add(Key::of(set.as_ref()));
                }
            }
        });
    }

    async fn view(&self, key: &Key, prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(set) = self.caches.daemon_sets.get(key) else { return Ok(None) };
        let owned = self.caches.pods.by_index(BY_CONTROLLER, object::uid(set.as_ref()));
        let waits = self.waits(&set, &owned);
        let candidates = claim::candidates(&self.caches.daemon_sets, &self.caches.pods, set.as_ref());
        let mut history = self.caches.revisions.by_index(BY_CONTROLLER, object::uid(set.as_ref()));
        revisions::sort(&mut history);
        let names = self.caches.revisions.clone();
        let template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
        let collisions = set.status.as_ref().and_then(|s| s.collision_count);
        let present = revisions::present(
            set.as_ref(),
            revisions::REVISION_LABEL,
            &template,
            &history,
            collisions,
            |name| names.get(&Key::new(&key.namespace, name)),
        );
        let nodes = self.caches.nodes.all();
        Ok(Some(View { set, nodes, candidates, history, present, waits, prior: prior.cloned() }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}
