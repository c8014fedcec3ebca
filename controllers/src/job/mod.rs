//! Job: runs pods until enough of them have succeeded.

mod count;
mod indexes;
mod manage;
mod policy;
mod reconcile;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::batch::v1::{Job, JobCondition};

use crate::cache::{BY_CONTROLLER, Caches, Pod};
use crate::claim;
use crate::object::{self, Key};
use crate::plan::Plan;
use crate::runner::{Controller, Failure, Queue, ViewError};

pub use reconcile::{View, reconcile};

/// Before the name of a pod in keys of pods that have no Job; no object's name holds a colon.
const POD: &str = "pod:";

/// What a decision rests on.
pub enum Look {
    /// A Job and its pods.
    Job(View),
    /// A pod that still carries our finalizer although it has no Job, or one that is gone.
    Stray(Arc<Pod>),
}

/// Finalizer of pods that are not counted yet.
const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// Annotation and label with the index of a pod.
pub const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Annotation with how often the index failed before.
pub const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";

/// A condition of the Job that is true.
pub fn condition<'a>(job: &'a Job, kind: &str) -> Option<&'a JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == kind && c.status == "True")
}

/// The condition that ended the Job, if it has ended.
pub fn ended(job: &Job) -> Option<&JobCondition> {
    condition(job, "Complete").or_else(|| condition(job, "Failed"))
}

/// The controller. Keys are Jobs, and pods that have no Job to count them.
pub struct Jobs {
    caches: Arc<Caches>,
}

impl Jobs {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone() }
    }

    fn keys_of(&self, pod: &Pod) -> Vec<Key> {
        let selector = |job: &Job| object::selector(job.spec.as_ref()?.selector.as_ref()?);
        let mut keys = claim::owners(&self.caches.jobs, selector, pod);
        keys.extend(self.is_stray(pod).then(|| pod_key(pod)));
        keys
    }
}

impl Jobs {
    /// Whether the pod waits to be counted by a Job that is gone, or by none. Who adopts a pod adds the finalizer.
    fn is_stray(&self, pod: &Pod) -> bool {
        if !object::has_finalizer(&pod.metadata, TRACKING) {
            return false;
        }
        let Some(owner) = object::controller_ref(&pod.metadata) else { return true };
        let ours = owner.kind == "Job" && owner.api_version.starts_with("batch/");
        let job = self.caches.jobs.get(&Key::new(object::namespace(pod), &owner.name));
        ours && job.is_none_or(|job| object::uid(job.as_ref()) != owner.uid)
    }
}

fn pod_key(pod: &Pod) -> Key {
    Key::new(object::namespace(pod), format!("{POD}{}", object::name(pod)))
}

#[async_trait]
impl Controller for Jobs {
    type View = Look;

    fn name(&self) -> &'static str {
        "job"
    }

    fn component(&self) -> &'static str {
        "job-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let (this, q) = (self.clone(), queue.clone());
        self.caches.jobs.on_change(move |change| {
            q.add(change.key.clone());
            let gone =
                change.old.filter(|old| change.new.is_none_or(|new| new.metadata.uid != old.metadata.uid));
            if let Some(gone) = gone {
                for pod in this.caches.pods.by_index(BY_CONTROLLER, object::uid(gone.as_ref())) {
                    q.add(pod_key(&pod));
                }
            }
        });
        let (this, q) = (self.clone(), queue.clone());
        self.caches.pods.on_change(move |change| {
            for pod in change.states() {
                for key in this.keys_of(pod) {
                    q.add(key);
                }
            }
        });
    }

    async fn view(&self, key: &Key, prior: Option<&Failure>) -> Result<Option<Look>, ViewError> {
        if let Some(pod) = key.name.strip_prefix(POD) {
            let pod = self.caches.pods.get(&Key::new(&key.namespace, pod));
            return Ok(pod.filter(|pod| self.is_stray(pod)).map(Look::Stray));
        }
        let Some(job) = self.caches.jobs.get(key) else { return Ok(None) };
        let candidates = claim::candidates(&self.caches.jobs, &self.caches.pods, job.as_ref());
        Ok(Some(Look::Job(View { job, candidates, prior: prior.cloned() })))
    }

    fn reconcile(&self, look: &Look, now: jiff::Timestamp) -> Plan {
        match look {
            Look::Job(view) => reconcile(view, now),
            Look::Stray(pod) => {
                let mut plan = Plan::new();
                reconcile::release(&mut plan, std::iter::once(pod));
                plan
            }
        }
    }
}
