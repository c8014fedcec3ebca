//! Taint eviction: pods leave a node whose NoExecute taints they do not tolerate (any longer).

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Taint, Toleration};

use super::taints::{self, NO_EXECUTE};
use crate::cache::{BY_NODE, Caches, Pod};
use crate::eviction::{self, Noted, Notes, Words};
use crate::object::{self, Key};
use crate::plan::Plan;
use crate::pods;
use crate::runner::{Clock, Controller, Failure, Queue, ViewError};

/// What a decision about a pod rests on.
pub struct View {
    /// The pod.
    pub pod: Arc<Pod>,
    /// The NoExecute taints of its node.
    pub taints: Vec<Taint>,
    /// When it was first seen under such taints.
    pub since: Timestamp,
    /// Whether it was to be evicted when last looked at.
    pub was_due: bool,
}

/// When the pod must leave; None when never.
fn due(view: &View) -> Option<Timestamp> {
    let none = Vec::new();
    let tolerations = view.pod.spec.as_ref().and_then(|s| s.tolerations.as_ref()).unwrap_or(&none);
    let mut due: Option<Timestamp> = None;
    for taint in &view.taints {
        // A taint counts from when it was put, or from when we first saw it.
        let start = taint.time_added.as_ref().map_or(view.since, |t| t.0);
        let covering: Vec<&Toleration> = tolerations.iter().filter(|t| taints::tolerates(t, taint)).collect();
        let at = if covering.is_empty() {
            start
        } else {
            match covering.iter().filter_map(|t| t.toleration_seconds).min() {
                None => continue,
                Some(seconds) => {
                    let wait = jiff::SignedDuration::from_secs(seconds.max(0));
                    start.checked_add(wait).unwrap_or(Timestamp::MAX)
                }
            }
        };
        due = Some(due.map_or(at, |before| before.min(at)));
    }
    due
}

/// Decides about a pod.
pub fn reconcile(view: &View, now: Timestamp) -> Plan {
    let pod = view.pod.as_ref();
    if object::is_deleting(pod) || pods::is_terminal(pod) {
        return Plan::new();
    }
    let key = Key::of(pod);
    let words = Words {
        condition: "DeletionByTaintManager",
        message: "Taint manager: deleting due to NoExecute taint",
        event: "TaintManagerEviction",
        deleting: format!("Marking for deletion Pod {key}"),
        cancelled: format!("Cancelling deletion of Pod {key}"),
        about: object::reference(pod),
    };
    eviction::decide(pod, due(view), view.was_due, words, now)
}

/// The controller. Keys are pods.
pub struct TaintEviction {
    caches: Arc<Caches>,
    clock: Clock,
    notes: Arc<Notes>,
}

impl TaintEviction {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>, clock: Clock) -> Self {
        Self { caches: caches.clone(), clock, notes: Notes::of(&caches.pods) }
    }

    fn taints_of(&self, node: &str) -> Vec<Taint> {
        let Some(node) = self.caches.nodes.get(&Key::cluster(node)) else { return Vec::new() };
        taints::of(&node).iter().filter(|t| t.effect == NO_EXECUTE).cloned().collect()
    }
}

#[async_trait]
impl Controller for TaintEviction {
    type View = View;

    fn name(&self) -> &'static str {
        "taint-eviction"
    }

    fn component(&self) -> &'static str {
        "taint-eviction-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let (this, q) = (self.clone(), queue.clone());
        self.caches.nodes.on_change(move |change| {
            let executing = |n: &Arc<k8s_openapi::api::core::v1::Node>| -> Vec<Taint> {
                taints::of(n).iter().filter(|t| t.effect == NO_EXECUTE).cloned().collect()
            };
            let (old, new) = (change.old.map(executing), change.new.map(executing));
            if old.unwrap_or_default() != new.unwrap_or_default() {
                for pod in this.caches.pods.by_index(BY_NODE, &change.key.name) {
                    q.add(Key::of(pod.as_ref()));
                }
            }
        });
        let (this, q) = (self.clone(), queue.clone());
        self.caches.pods.on_change(move |change| {
            let Some(pod) = change.new else { return };
            let placed = change.old.is_none_or(|old| {
                pods::node(old) != pods::node(pod)
                    || old.spec.as_ref().and_then(|s| s.tolerations.as_ref())
                        != pod.spec.as_ref().and_then(|s| s.tolerations.as_ref())
            });
            if placed && !pods::node(pod).is_empty() && !this.taints_of(pods::node(pod)).is_empty() {
                q.add(change.key.clone());
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(pod) = self.caches.pods.get(key) else { return Ok(None) };
        let taints = self.taints_of(pods::node(&pod));
        let Noted { since, was_due } = self.notes.get(key, (self.clock)());
        let view = View { pod, taints, since, was_due };
        if view.taints.is_empty() {
            self.notes.forget(key);
        } else {
            self.notes.keep(key, since, due(&view).is_some());
        }
        Ok(Some(view))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Harness;
    use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
    use proptest::prelude::*;
    use std::time::Duration;

    fn harness() -> Harness<TaintEviction> {
        let clock = crate::testing::clock();
        Harness::new(|caches, _| TaintEviction::new(caches, clock))
    }

    fn pod(name: &str, seconds: Option<Option<i64>>) -> Pod {
        let tolerations = seconds.map(|toleration_seconds| {
            vec![Toleration {
                key: Some(taints::UNREACHABLE.into()),
                operator: Some("Exists".into()),
                effect: Some(NO_EXECUTE.into()),
                toleration_seconds,
                value: None,
            }]
        });
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.namespace = Some("ns".into());
        pod.spec = Some(PodSpec { node_name: Some("n".into()), tolerations, ..Default::default() });
        pod
    }

    fn node() -> Node {
        let mut node = Node::default();
        node.metadata.name = Some("n".into());
        node
    }

    fn taint(h: &Harness<TaintEviction>, on: bool) {
        let now = (h.clock)();
        let taints = on.then(|| vec![taints::new(taints::UNREACHABLE, NO_EXECUTE, now)]);
        h.model.lock().edit::<Node>("", "n", |n| n.spec.get_or_insert_default().taints = taints);
    }

    fn names(h: &Harness<TaintEviction>) -> Vec<String> {
        h.model.lock().list::<Pod>().iter().map(|p| p.metadata.name.clone().unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn pods_stay_as_long_as_they_tolerate() {
        let mut h = harness();
        h.model.lock().put(&node());
        for (name, seconds) in [("none", None), ("ever", Some(None)), ("five", Some(Some(300)))] {
            h.model.lock().put(&pod(name, seconds));
        }
        h.settle(50).await;
        taint(&h, true);
        h.settle(50).await;
        assert_eq!(names(&h), ["ever", "five"]);
        assert_eq!(h.notes(), ["Normal TaintManagerEviction Marking for deletion Pod ns/none"]);
        let marked = h
            .model
            .lock()
            .log
            .iter()
            .any(|e| e.object["status"]["conditions"][0]["reason"] == "DeletionByTaintManager");
        assert!(marked);
        tokio::time::advance(Duration::from_secs(299)).await;
        h.settle(50).await;
        assert_eq!(names(&h), ["ever", "five"]);
        tokio::time::advance(Duration::from_secs(2)).await;
        h.settle(50).await;
        assert_eq!(names(&h), ["ever"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_taint_that_goes_cancels() {
        let mut h = harness();
        h.model.lock().put(&node());
        h.model.lock().put(&pod("five", Some(Some(300))));
        taint(&h, true);
        h.settle(50).await;
        tokio::time::advance(Duration::from_secs(200)).await;
        taint(&h, false);
        h.settle(50).await;
        assert_eq!(h.notes(), ["Normal TaintManagerEviction Cancelling deletion of Pod ns/five"]);
        tokio::time::advance(Duration::from_secs(200)).await;
        h.settle(50).await;
        assert_eq!(names(&h), ["five"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// A pod is gone exactly when its node has been tainted for longer than it tolerates.
        #[test]
        fn time_decides(tolerance in proptest::option::of(proptest::option::of(1..50i64)), waits in proptest::collection::vec((any::<bool>(), 1..40u64), 1..6)) {
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            rt.block_on(async move {
                let mut h = harness();
                h.model.lock().put(&node());
                h.model.lock().put(&pod("p", tolerance));
                let mut gone = false;
                let mut tainted_for = 0;
                let mut tainted = false;
                for (on, seconds) in waits {
                    if on != tainted {
                        tainted = on;
                        tainted_for = 0;
                        taint(&h, on);
                        h.settle(50).await;
                    }
                    tokio::time::advance(Duration::from_secs(seconds)).await;
                    h.settle(50).await;
                    if tainted {
                        tainted_for += seconds as i64;
                        gone |= match tolerance {
                            None => true,
                            Some(None) => false,
                            Some(Some(t)) => tainted_for >= t,
                        };
                    }
                    prop_assert_eq!(names(&h).is_empty(), gone);
                }
                Ok(())
            })?;
        }
    }
}
