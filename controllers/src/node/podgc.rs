//! Pod garbage collector: pods whose node is gone, pods that nobody will ever end, too many ended pods.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use parking_lot::Mutex;

use super::taints;
use crate::cache::{BY_NODE, Caches, Pod, TERMINATED};
use crate::eviction::disruption_target;
use crate::object::{self, Key};
use crate::plan::{Act, DeleteOptions, Plan, Step, Target};
use crate::pods;
use crate::runner::{Clock, Controller, Failure, Queue, ViewError};

/// How often ended pods are counted while there are too many.
const COUNT_PERIOD: Duration = Duration::from_secs(20);

/// What is known of a pod's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// The pod is on no node.
    None,
    /// It is there and fit to end its pods.
    Present,
    /// It is not ready and marked as out of service.
    OutOfService,
    /// It is missing since then; nobody has asked the server yet.
    Missing(Timestamp),
    /// The server says that it does not exist.
    Gone,
}

/// What a decision rests on.
pub enum View {
    /// One pod and its node.
    Pod {
        /// The pod.
        pod: Arc<Pod>,
        /// Its node.
        node: NodeState,
        /// How long a pod of a missing node is left alone.
        quarantine: Duration,
    },
    /// All ended pods, where there are more than `keep`.
    Ended {
        /// Ended pods.
        pods: Vec<Arc<Pod>>,
        /// How many may stay.
        keep: usize,
    },
}

/// Decides about a pod, or about the ended ones.
pub fn reconcile(view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    match view {
        View::Pod { pod, node, quarantine } => {
            let deleting = object::is_deleting(pod.as_ref());
            match node {
                // Nobody but us ends a pod that was deleted before it had a node.
                NodeState::None if deleting => plan.push(force_delete(pod)),
                NodeState::OutOfService if deleting => {
                    fail(&mut plan, pod, "PodGC: node is out-of-service", now);
                }
                NodeState::Gone => fail(&mut plan, pod, "PodGC: node no longer exists", now),
                NodeState::Missing(since) => {
                    let left = quarantine.saturating_sub(now.duration_since(*since).unsigned_abs());
                    plan.requeue(left.max(Duration::from_millis(10)));
                }
                _ => {}
            }
        }
        View::Ended { pods, keep } => {
            let mut oldest = pods.clone();
            let evicted = |p: &Pod| p.status.reason.as_deref() == Some("Evicted");
            oldest.sort_by_key(|p| (!evicted(p), p.metadata.creation_timestamp.clone(), Key::of(p.as_ref())));
            let excess = oldest.len().saturating_sub(*keep);
            let acts: Vec<Act> = oldest.iter().take(excess).map(|p| force_delete(p)).collect();
            if !acts.is_empty() {
                plan.actions.push(Step::Parallel(acts));
            }
        }
    }
    plan
}

fn fail(plan: &mut Plan, pod: &Pod, message: &str, now: Timestamp) {
    if !pods::is_terminal(pod) {
        plan.push(disruption_target(pod, "DeletionByPodGC", message, Some("Failed"), now));
    }
    plan.push(force_delete(pod));
}

/// Deletes without grace: there is no kubelet that would give it.
fn force_delete(pod: &Pod) -> Act {
    let options =
        DeleteOptions { uid: object::known_uid(pod), grace_seconds: Some(0), ..DeleteOptions::default() };
    Act::delete_with(Target::of(pod), options)
}

/// The key under which ended pods are counted. No pod can have it: its namespace is empty.
fn ended_key() -> Key {
    Key::cluster("ended")
}

/// The controller. Keys are pods, and one for all ended pods.
pub struct PodGc {
    caches: Arc<Caches>,
    client: Client,
    clock: Clock,
    threshold: usize,
    quarantine: Duration,
    /// Nodes that pods name but that are not there, since when.
    missing: Mutex<HashMap<String, Timestamp>>,
}

impl PodGc {
    /// A controller on these caches. `threshold` 0 keeps all ended pods.
    pub fn new(
        caches: &Arc<Caches>,
        client: &Client,
        clock: Clock,
        threshold: usize,
        quarantine: Duration,
    ) -> Self {
        let client = client.clone();
        Self { caches: caches.clone(), client, clock, threshold, quarantine, missing: Mutex::default() }
    }

    async fn node_state(&self, name: &str) -> Result<NodeState, ViewError> {
        if name.is_empty() {
            return Ok(NodeState::None);
        }
        if let Some(node) = self.caches.nodes.get(&Key::cluster(name)) {
            let conditions = node.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
            let unfit = taints::ready_status(&conditions) != "True"
                && taints::of(&node).iter().any(|t| t.key == taints::OUT_OF_SERVICE);
            return Ok(if unfit { NodeState::OutOfService } else { NodeState::Present });
        }
        let now = (self.clock)();
        let since = *self.missing.lock().entry(name.to_owned()).or_insert(now);
        if now.duration_since(since).unsigned_abs() < self.quarantine {
            return Ok(NodeState::Missing(since));
        }
        // A cache may be wrong; what cannot be undone rests on a live answer.
        let api: Api<Node> = Api::all(self.client.clone());
        Ok(match api.get_metadata_opt(name).await? {
            Some(_) => {
                // The cache is behind: it gets as long again.
                self.missing.lock().insert(name.to_owned(), now);
                NodeState::Missing(now)
            }
            None => NodeState::Gone,
        })
    }
}

#[async_trait]
impl Controller for PodGc {
    type View = View;

    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let (this, q) = (self.clone(), queue.clone());
        self.caches.pods.on_change(move |change| {
            if this.threshold > 0 && this.caches.pods.count(TERMINATED, "") > this.threshold {
                q.add_after(ended_key(), COUNT_PERIOD);
            }
            let Some(pod) = change.new else { return };
            let node = pods::node(pod);
            let deleted = object::is_deleting(pod.as_ref())
                && change.old.is_none_or(|old| !object::is_deleting(old.as_ref()));
            let placed = change.old.is_none_or(|old| pods::node(old) != node);
            if deleted || placed && !node.is_empty() && this.caches.nodes.get(&Key::cluster(node)).is_none() {
                q.add(change.key.clone());
            }
        });
        let (this, q) = (self.clone(), queue.clone());
        self.caches.nodes.on_change(move |change| {
            let pods_of = || this.caches.pods.by_index(BY_NODE, &change.key.name);
            match change.new {
                None => {
                    this.missing.lock().insert(change.key.name.clone(), (this.clock)());
                    for pod in pods_of() {
                        q.add(Key::of(pod.as_ref()));
                    }
                }
                Some(node) => {
                    this.missing.lock().remove(&change.key.name);
                    let out = |n: &Node| taints::of(n).iter().any(|t| t.key == taints::OUT_OF_SERVICE);
                    if out(node) {
                        for pod in pods_of().iter().filter(|p| object::is_deleting(p.as_ref())) {
                            q.add(Key::of(pod.as_ref()));
                        }
                    }
                }
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        if *key == ended_key() {
            let pods = self.caches.pods.by_index(TERMINATED, "");
            return Ok(Some(View::Ended { pods, keep: self.threshold }));
        }
        let Some(pod) = self.caches.pods.get(key) else { return Ok(None) };
        let node = self.node_state(pods::node(&pod)).await?;
        Ok(Some(View::Pod { pod, node, quarantine: self.quarantine }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Harness;
    use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
    use proptest::prelude::*;

    fn harness(threshold: usize) -> Harness<PodGc> {
        let clock = crate::testing::clock();
        let h = Harness::new(|caches, client| {
            PodGc::new(caches, client, clock, threshold, Duration::from_secs(40))
        });
        h.model.lock().graceful = true;
        h
    }

    fn pod(name: &str, node: Option<&str>, phase: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.namespace = Some("ns".into());
        pod.spec = Some(PodSpec { node_name: node.map(str::to_owned), ..Default::default() });
        pod.status = Some(PodStatus { phase: Some(phase.into()), ..Default::default() });
        pod
    }

    fn node(name: &str) -> Node {
        let mut node = Node::default();
        node.metadata.name = Some(name.into());
        node
    }

    #[tokio::test(start_paused = true)]
    async fn pods_of_a_deleted_node_go_after_quarantine() {
        let mut h = harness(0);
        for name in ["a", "b"] {
            h.model.lock().put(&node(name));
            h.model.lock().put(&pod(&format!("on-{name}"), Some(name), "Running"));
        }
        h.settle(50).await;
        h.model.lock().delete_as_user::<Node>("", "a");
        h.settle(50).await;
        assert_eq!(h.model.lock().list::<Pod>().len(), 2);
        tokio::time::advance(Duration::from_secs(41)).await;
        h.settle(50).await;
        let left = h.model.lock().list::<Pod>();
        assert_eq!(left.iter().map(|p| p.metadata.name.clone().unwrap()).collect::<Vec<_>>(), ["on-b"]);
        let failed = h.model.lock().log.iter().any(|e| {
            e.object["status"]["phase"] == "Failed"
                && e.object["status"]["conditions"][0]["message"] == "PodGC: node no longer exists"
        });
        assert!(failed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_returns_keeps_its_pods() {
        let mut h = harness(0);
        h.model.lock().put(&node("a"));
        h.model.lock().put(&pod("p", Some("a"), "Running"));
        h.settle(50).await;
        h.model.lock().delete_as_user::<Node>("", "a");
        h.settle(50).await;
        tokio::time::advance(Duration::from_secs(30)).await;
        h.model.lock().put(&node("a"));
        h.settle(50).await;
        tokio::time::advance(Duration::from_secs(30)).await;
        h.settle(50).await;
        assert_eq!(h.model.lock().list::<Pod>().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stale_cache_deletes_nothing() {
        let mut h = harness(0);
        h.model.lock().put(&node("a"));
        h.model.lock().put(&pod("p", Some("a"), "Running"));
        // The node's event never arrives; the pod's does.
        h.deliver();
        h.caches.nodes.begin_list();
        h.caches.nodes.end_list();
        for _ in 0..3 {
            tokio::time::advance(Duration::from_secs(41)).await;
            h.settle(50).await;
        }
        assert_eq!(h.model.lock().list::<Pod>().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_deleted_before_it_had_a_node_ends() {
        let mut h = harness(0);
        let mut p = pod("p", None, "Pending");
        p.metadata.finalizers = Some(vec!["x/y".into()]);
        h.model.lock().put(&p);
        h.settle(50).await;
        h.model.lock().delete_as_user::<Pod>("ns", "p");
        h.settle(50).await;
        let key = Key::new("ns", "p");
        let plan = h.plan(&key).await;
        let grace = plan.acts().find_map(|a| match &a.action {
            crate::plan::Action::Delete { options, .. } => options.grace_seconds,
            _ => None,
        });
        assert_eq!(grace, Some(0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Of the ended pods the threshold stays, the youngest ones, and no running pod goes.
        #[test]
        fn the_threshold_holds(ended in 0..12usize, running in 0..4usize, threshold in 1..6usize) {
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            rt.block_on(async move {
                let mut h = harness(threshold);
                h.model.lock().put(&node("n"));
                for n in 0..running {
                    h.model.lock().put(&pod(&format!("r{n}"), Some("n"), "Running"));
                }
                for n in 0..ended {
                    h.model.lock().put(&pod(&format!("e{n:02}"), Some("n"), "Succeeded"));
                    tokio::time::advance(Duration::from_secs(1)).await;
                }
                h.settle(100).await;
                for _ in 0..2 {
                    tokio::time::advance(Duration::from_secs(21)).await;
                    h.settle(100).await;
                }
                let left = h.model.lock().list::<Pod>();
                let names: Vec<String> = left.iter().map(|p| p.metadata.name.clone().unwrap()).collect();
                prop_assert_eq!(names.iter().filter(|n| n.starts_with('r')).count(), running);
                let kept: Vec<&String> = names.iter().filter(|n| n.starts_with('e')).collect();
                prop_assert_eq!(kept.len(), ended.min(threshold));
                let eldest = format!("e{:02}", ended.saturating_sub(threshold));
                prop_assert!(kept.into_iter().all(|name| *name >= eldest));
                Ok(())
            })?;
        }
    }
}
