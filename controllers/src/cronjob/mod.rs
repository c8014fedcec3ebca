//! CronJob: makes Jobs at given times.

mod reconcile;
pub mod schedule;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;

use crate::cache::{BY_CONTROLLER, Caches};
use crate::object::{self, Key};
use crate::plan::Plan;
use crate::runner::{Controller, Failure, Queue, ViewError};

pub use reconcile::{View, reconcile};

/// The controller. Keys are CronJobs.
pub struct CronJobs {
    caches: Arc<Caches>,
}

impl CronJobs {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone() }
    }
}

#[async_trait]
impl Controller for CronJobs {
    type View = View;

    fn name(&self) -> &'static str {
        "cronjob"
    }

    fn component(&self) -> &'static str {
        "cronjob-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        self.caches.cron_jobs.queue_changed(queue);
        let q = queue.clone();
        self.caches.jobs.on_change(move |change| {
            for job in change.states() {
                if let Some(owner) = object::controller_ref(&job.metadata).filter(|r| r.kind == "CronJob") {
                    q.add(Key::new(object::namespace(job.as_ref()), &owner.name));
                }
            }
        });
    }

    async fn view(&self, key: &Key, prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(cron) = self.caches.cron_jobs.get(key) else { return Ok(None) };
        let jobs = self.caches.jobs.by_index(BY_CONTROLLER, object::uid(cron.as_ref()));
        Ok(Some(View { cron, jobs, prior: prior.cloned() }))
    }

    fn reconcile(&self, view: &View, now: jiff::Timestamp) -> Plan {
        reconcile(view, now)
    }
}
