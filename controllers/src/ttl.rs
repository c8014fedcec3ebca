//! TTL after finished: deletes Jobs some time after they ended.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;

use crate::cache::Caches;
use crate::job::ended;
use crate::object;
use crate::plan::{Act, DeleteOptions, Plan, Propagation, Target};
use crate::runner::{Controller, Failure, Queue, ViewError};

/// Decides about a Job.
pub fn reconcile(job: &Arc<Job>, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let ttl = job.spec.as_ref().and_then(|s| s.ttl_seconds_after_finished);
    let (Some(ttl), Some(end)) = (ttl, ended(job)) else { return plan };
    if object::is_deleting(job.as_ref()) {
        return plan;
    }
    let since = end.last_transition_time.as_ref().map_or(0, |t| object::seconds_since(t, now));
    match u64::try_from(i64::from(ttl) - since) {
        Ok(left) if left > 0 => plan.requeue(Duration::from_secs(left)),
        _ => plan.push(Act::delete_with(
            Target::of(job.as_ref()),
            DeleteOptions {
                uid: job.metadata.uid.clone(),
                // A time to live that was extended a moment ago must not be missed.
                resource_version: job.metadata.resource_version.clone(),
                propagation: Some(Propagation::Foreground),
                grace_seconds: None,
            },
        )),
    }
    plan
}

/// The controller. Keys are Jobs.
pub struct TtlAfterFinished {
    caches: Arc<Caches>,
}

impl TtlAfterFinished {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone() }
    }
}

#[async_trait]
impl Controller for TtlAfterFinished {
    type View = Arc<Job>;

    fn name(&self) -> &'static str {
        "ttl-after-finished"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let q = queue.clone();
        self.caches.jobs.on_change(move |change| {
            let lives = |j: &Job| j.spec.as_ref().is_some_and(|s| s.ttl_seconds_after_finished.is_some());
            if change.new.is_some_and(|j| lives(j) && ended(j).is_some()) {
                q.add(change.key.clone());
            }
        });
    }

    async fn view(&self, key: &object::Key, _prior: Option<&Failure>) -> Result<Option<Arc<Job>>, ViewError> {
        Ok(self.caches.jobs.get(key))
    }

    fn reconcile(&self, view: &Arc<Job>, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Harness;
    use k8s_openapi::api::batch::v1::{JobCondition, JobSpec, JobStatus};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// A Job that ended goes when its time is over, and not before; one without a time stays.
        #[test]
        fn jobs_live_as_long_as_they_may(ttl in proptest::option::of(0..100i32), done in any::<bool>(), passed in 0..200u64) {
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            rt.block_on(async move {
                let mut h = Harness::new(|caches, _| TtlAfterFinished::new(caches));
                let mut job = Job {
                    spec: Some(JobSpec { ttl_seconds_after_finished: ttl, ..Default::default() }),
                    ..Default::default()
                };
                job.metadata.name = Some("j".into());
                job.metadata.namespace = Some("ns".into());
                if done {
                    job.status = Some(JobStatus {
                        conditions: Some(vec![JobCondition {
                            type_: "Failed".into(),
                            status: "True".into(),
                            last_transition_time: Some(object::time((h.clock)())),
                            ..Default::default()
                        }]),
                        ..Default::default()
                    });
                }
                h.model.lock().put(&job);
                h.settle(20).await;
                tokio::time::advance(Duration::from_secs(passed + 1)).await;
                h.settle(20).await;
                let deleted = h.model.lock().log.iter().any(|e| e.object["metadata"]["deletionTimestamp"].is_string());
                let over = done && ttl.is_some_and(|t| u64::try_from(t).unwrap() <= passed + 1);
                prop_assert_eq!(deleted, over);
                Ok(())
            })?;
        }
    }
}
