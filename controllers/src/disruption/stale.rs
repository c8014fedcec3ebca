//! Takes the condition DisruptionTarget back from pods that nobody ended (KEP-3329).
//!
//! Who is about to delete a pod says so first. If it ends between the two, the pod would be marked for good.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodCondition;
use serde_json::json;

use crate::cache::{Caches, Pod};
use crate::object::{self, Key};
use crate::plan::{Act, Plan};
use crate::pods;
use crate::runner::{Controller, Failure, Queue, ViewError};

const DISRUPTION_TARGET: &str = "DisruptionTarget";
/// The kubelet's own announcements may come long before the pod is deleted.
const BY_KUBELET: &str = "TerminationByKubelet";
/// How long a deletion may take to follow.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whether the pod says that it is about to go, and nobody has begun to end it.
fn is_marked(pod: &Pod) -> bool {
    let marked = pods::condition(pod, DISRUPTION_TARGET)
        .is_some_and(|c| c.status == "True" && c.reason.as_deref() != Some(BY_KUBELET));
    marked && !object::is_deleting(pod) && !pods::is_terminal(pod)
}

/// Decides about a pod.
pub fn reconcile(pod: &Arc<Pod>, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    if !is_marked(pod) {
        return plan;
    }
    let since = pods::condition(pod, DISRUPTION_TARGET).and_then(|c| c.last_transition_time.as_ref());
    let passed = since.map_or(PATIENCE, |at| now.duration_since(at.0).try_into().unwrap_or_default());
    if passed < PATIENCE {
        plan.requeue(PATIENCE - passed);
        return plan;
    }
    let mut conditions = pod.conditions();
    conditions.retain(|c| c.type_ != DISRUPTION_TARGET);
    conditions.push(PodCondition {
        type_: DISRUPTION_TARGET.to_owned(),
        status: "False".to_owned(),
        last_transition_time: Some(object::time(now)),
        ..PodCondition::default()
    });
    let meta = json!({"resourceVersion": pod.metadata.resource_version, "uid": pod.metadata.uid});
    let patch = json!({"metadata": meta, "status": {"conditions": conditions}});
    plan.push(Act::patch(pod.as_ref(), Some("status"), patch).may_be_absent());
    plan
}

/// The controller. Keys are pods.
pub struct StaleTargets {
    caches: Arc<Caches>,
}

impl StaleTargets {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone() }
    }
}

#[async_trait]
impl Controller for StaleTargets {
    type View = Arc<Pod>;

    fn name(&self) -> &'static str {
        "disruption-stale-targets"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let q = queue.clone();
        self.caches.pods.on_change(move |change| {
            if change.new.is_some_and(|pod| is_marked(pod)) && !change.old.is_some_and(|pod| is_marked(pod)) {
                q.add(change.key.clone());
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<Arc<Pod>>, ViewError> {
        Ok(self.caches.pods.get(key))
    }

    fn reconcile(&self, view: &Arc<Pod>, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod as WirePod;

    use super::*;
    use crate::testing::Harness;

    fn pod(name: &str, reason: &str, phase: &str) -> WirePod {
        let at = object::time(crate::testing::clock()());
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns"}, "spec": {"containers": []},
            "status": {"phase": phase, "conditions": [
                {"type": "Ready", "status": "True"},
                {"type": DISRUPTION_TARGET, "status": "True", "reason": reason, "message": "m",
                    "lastTransitionTime": at}]},
        }))
        .expect("a pod")
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_not_deleted_is_not_marked_for_good() {
        let mut h = Harness::new(|caches, _| StaleTargets::new(caches));
        h.model.lock().put(&pod("spared", "EvictionByEvictionAPI", "Running"));
        h.model.lock().put(&pod("by-kubelet", BY_KUBELET, "Running"));
        h.model.lock().put(&pod("ended", "EvictionByEvictionAPI", "Failed"));
        let marked = |h: &Harness<StaleTargets>| {
            let of = |pod: WirePod| {
                let conditions = pod.status?.conditions?;
                let marked = conditions.iter().find(|c| c.type_ == DISRUPTION_TARGET)?;
                Some((pod.metadata.name?, marked.status.clone(), marked.reason.clone(), conditions.len()))
            };
            h.model.lock().list::<WirePod>().into_iter().filter_map(of).collect::<Vec<_>>()
        };
        let before = marked(&h);
        tokio::time::advance(PATIENCE - Duration::from_secs(1)).await;
        h.settle(20).await;
        assert_eq!(marked(&h), before);
        tokio::time::advance(Duration::from_secs(1)).await;
        h.settle(20).await;
        let after = marked(&h);
        assert_eq!(after[..2], before[..2]);
        assert_eq!(after[2], ("spared".to_owned(), "False".to_owned(), None, 2));
    }
}
