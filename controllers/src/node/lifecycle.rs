//! Node lifecycle: marks nodes that have gone silent, taints nodes by their state.
//!
//! A node lives as long as its Lease is renewed or its status is reported. When that was is noted by
//! our own clock, as changes arrive, so that clocks of machines are never compared.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, PodCondition, Taint};
use parking_lot::Mutex;
use serde_json::json;

use super::taints::{self, NO_EXECUTE, NOT_READY, UNREACHABLE};
use super::zones::{Rates, Zones, zone_of};
use crate::cache::{BY_NODE, Caches};
use crate::object::{self, Key};
use crate::plan::{Act, Note, Plan, Step};
use crate::pods;
use crate::runner::{Clock, Controller, Failure, Queue, ViewError};

/// The conditions that a silent node loses.
const WATCHED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Times of the node monitor.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Silence after which a node counts as unknown.
    pub grace: Duration,
    /// The same for a node that has never reported.
    pub startup_grace: Duration,
    /// How often nodes are looked at, at least while something is amiss.
    pub period: Duration,
}

/// What a decision about a node rests on.
pub struct View {
    /// The node.
    pub node: Arc<Node>,
    /// When it last gave a sign of life, by our clock.
    pub last_sign: Timestamp,
    /// Its pods that count as ready, where those are to be marked.
    pub ready_pods: Vec<Arc<Pod>>,
    /// Whether a first NoExecute taint may be put on it now; else when to ask again.
    pub may_evict: Result<(), Option<Duration>>,
    /// Whether all zones are gone: then nobody is evicted.
    pub all_disrupted: bool,
    /// Times.
    pub times: Times,
}

/// Whether the node is to leave the ranks of those whose pods may stay, and is not yet marked so. A node
/// that has not said anything yet, and still has time to, is left alone.
fn awaits_eviction(node: &Node, conditions: &[NodeCondition]) -> bool {
    let marked = |key| taints::has(taints::of(node), key, NO_EXECUTE);
    let ready = taints::condition(conditions, "Ready");
    ready.is_some_and(|c| c.status != "True") && !marked(NOT_READY) && !marked(UNREACHABLE)
}

/// The node's conditions as they should be after `silence`; changed ones begin now.
fn judged(node: &Node, last_sign: Timestamp, times: &Times, now: Timestamp) -> Vec<NodeCondition> {
    let mut conditions = node.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    if now.duration_since(last_sign).unsigned_abs() <= grace(&conditions, times) {
        return conditions;
    }
    for kind in WATCHED {
        match conditions.iter_mut().find(|c| c.type_ == kind) {
            None => conditions.push(NodeCondition {
                type_: kind.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusNeverUpdated".to_owned()),
                message: Some("Kubelet never posted node status.".to_owned()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(object::time(now)),
            }),
            Some(c) if c.status != "Unknown" => {
                c.status = "Unknown".to_owned();
                c.reason = Some("NodeStatusUnknown".to_owned());
                c.message = Some("Kubelet stopped posting node status.".to_owned());
                c.last_transition_time = Some(object::time(now));
            }
            Some(_) => {}
        }
    }
    conditions
}

fn grace(conditions: &[NodeCondition], times: &Times) -> Duration {
    if taints::condition(conditions, "Ready").is_some() { times.grace } else { times.startup_grace }
}

/// Decides about a node.
pub fn reconcile(view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let node = view.node.as_ref();
    if object::is_deleting(node) {
        return plan;
    }
    let before = node.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let conditions = judged(node, view.last_sign, &view.times, now);
    let (was, is) = (taints::ready_status(&before).to_owned(), taints::ready_status(&conditions).to_owned());
    let version = node.metadata.resource_version.clone();
    if conditions != before {
        let patch = json!({"metadata": {"resourceVersion": version}, "status": {"conditions": conditions}});
        plan.push(Act::patch(node, Some("status"), patch).may_be_absent());
        if was == "True" && is != "True" {
            let name = object::name(node);
            let message = format!("Node {name} status is now: NodeNotReady");
            plan.events.push(Note::normal(object::reference(node), "NodeNotReady", message));
        }
    }

    let old = taints::of(node);
    let mut new: Vec<Taint> = old.to_vec();
    taints::sync_no_schedule(&mut new, node, &conditions, now);
    if taints::condition(&conditions, "Ready").is_some() {
        sync_no_execute(&mut new, &mut plan, view, &is, now);
    }
    if new != old {
        let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": new}});
        plan.push(Act::patch(node, None, patch).may_be_absent());
    }

    let marks: Vec<Act> = view.ready_pods.iter().map(|pod| mark_unready(pod, now)).collect();
    if is != "True" && !marks.is_empty() {
        plan.actions.push(Step::Parallel(marks));
    }

    // The next look is when silence would become too long; while it is, nothing is left to find out.
    let silent = now.duration_since(view.last_sign).unsigned_abs();
    let grace = grace(&conditions, &view.times);
    if silent <= grace {
        plan.requeue(grace - silent + Duration::from_millis(10));
    } else {
        plan.requeue(view.times.period.max(Duration::from_millis(100)));
    }
    plan
}

/// Sets the one NoExecute taint that the node's state asks for.
fn sync_no_execute(taints: &mut Vec<Taint>, plan: &mut Plan, view: &View, ready: &str, now: Timestamp) {
    let wanted = match ready {
        "True" => None,
        "False" => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    };
    let ours = |t: &Taint| t.effect == NO_EXECUTE && (t.key == NOT_READY || t.key == UNREACHABLE);
    let marked = taints.iter().any(ours);
    let wanted = match wanted {
        // When everything seems gone, it is us who are cut off: pods stay where they are.
        Some(_) if view.all_disrupted => None,
        // The first mark is rationed, its exchange for the other is not.
        Some(_) if !marked && view.may_evict.is_err() => {
            if let Err(Some(wait)) = view.may_evict {
                plan.requeue(wait.max(Duration::from_millis(100)));
            }
            return;
        }
        other => other,
    };
    taints.retain(|t| !ours(t) || wanted == Some(t.key.as_str()));
    if let Some(key) = wanted
        && !taints::has(taints, key, NO_EXECUTE)
    {
        taints.push(taints::new(key, NO_EXECUTE, now));
    }
}

/// A pod whose node is not ready is not ready either: nobody is there to say otherwise.
fn mark_unready(pod: &Pod, now: Timestamp) -> Act {
    let mut conditions: Vec<PodCondition> =
        pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    for condition in conditions.iter_mut().filter(|c| c.type_ == "Ready") {
        condition.status = "False".to_owned();
        condition.last_transition_time = Some(object::time(now));
    }
    let patch = json!({
        "metadata": {"resourceVersion": pod.metadata.resource_version, "uid": pod.metadata.uid},
        "status": {"conditions": conditions},
    });
    Act::patch(pod, Some("status"), patch).may_be_absent().ok(Note::warning(
        object::reference(pod),
        "NodeNotReady",
        "Node is not ready",
    ))
}

/// What is noted as changes arrive.
struct Noted {
    signs: HashMap<String, Timestamp>,
    /// Nodes that ceased to be ready and whose pods are still to be marked.
    unmarked: HashSet<String>,
    zones: Zones,
}

/// The controller. Keys are nodes.
pub struct NodeLifecycle {
    caches: Arc<Caches>,
    times: Times,
    clock: Clock,
    noted: Mutex<Noted>,
}

impl NodeLifecycle {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>, times: Times, rates: Rates, clock: Clock) -> Self {
        let noted = Noted { signs: HashMap::new(), unmarked: HashSet::new(), zones: Zones::new(rates) };
        Self { caches: caches.clone(), times, clock, noted: Mutex::new(noted) }
    }

    /// Takes a change of a node into account; tells whether to look at it.
    fn note(&self, name: &str, old: Option<&Arc<Node>>, new: Option<&Arc<Node>>) -> bool {
        let conditions = |n: &Node| n.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        let mut noted = self.noted.lock();
        let Some(node) = new else {
            noted.zones.count(name, None);
            noted.signs.remove(name);
            noted.unmarked.remove(name);
            return false;
        };
        let is = conditions(node);
        let ready = taints::ready_status(&is) == "True";
        let counts = taints::condition(&is, "Ready").is_some();
        noted.zones.count(name, counts.then(|| (zone_of(node), ready)));
        let heartbeat =
            |c: &[NodeCondition]| taints::condition(c, "Ready").and_then(|c| c.last_heartbeat_time.clone());
        let Some(old) = old else {
            noted.signs.entry(name.to_owned()).or_insert_with(|| (self.clock)());
            return true;
        };
        let was = conditions(old);
        if heartbeat(&was) != heartbeat(&is) {
            noted.signs.insert(name.to_owned(), (self.clock)());
        }
        if taints::ready_status(&was) == "True" && !ready {
            noted.unmarked.insert(name.to_owned());
        }
        let status = |c: &[NodeCondition]| -> Vec<(String, String)> {
            c.iter().map(|c| (c.type_.clone(), c.status.clone())).collect()
        };
        let unschedulable = |n: &Node| n.spec.as_ref().and_then(|s| s.unschedulable);
        status(&was) != status(&is)
            || taints::of(old) != taints::of(node)
            || unschedulable(old) != unschedulable(node)
    }
}

#[async_trait]
impl Controller for NodeLifecycle {
    type View = View;

    fn name(&self) -> &'static str {
        "node-lifecycle"
    }

    fn component(&self) -> &'static str {
        "node-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let (this, q) = (self.clone(), queue.clone());
        self.caches.nodes.on_change(move |change| {
            if this.note(&change.key.name, change.old, change.new) {
                q.add(change.key.clone());
            }
        });
        // A renewed lease is noted and makes no work: the look that is due will see it.
        let this = self.clone();
        self.caches.node_leases.on_change(move |change| {
            let renewed = |l: &Arc<k8s_openapi::api::coordination::v1::Lease>| {
                l.spec.as_ref().and_then(|s| s.renew_time.clone())
            };
            if change.new.is_some() && change.new.map(renewed) != change.old.map(renewed) {
                let now = (this.clock)();
                this.noted.lock().signs.insert(change.key.name.clone(), now);
            }
        });
        self.caches.pods.want();
    }

    async fn view(&self, key: &Key, prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(node) = self.caches.nodes.get(key) else { return Ok(None) };
        let now = (self.clock)();
        let mut noted = self.noted.lock();
        let last_sign = *noted.signs.entry(key.name.clone()).or_insert(now);
        let conditions = judged(&node, last_sign, &self.times, now);
        let ready = taints::ready_status(&conditions);
        let mark = noted.unmarked.remove(&key.name) || prior.is_some() || ready == "Unknown";
        let all_disrupted = noted.zones.all_disrupted();
        let may_evict = match awaits_eviction(&node, &conditions) {
            true if !all_disrupted => noted.zones.take(&zone_of(&node), now),
            _ => Err(None),
        };
        drop(noted);
        let mut ready_pods = Vec::new();
        if mark && ready != "True" {
            ready_pods = self.caches.pods.by_index(BY_NODE, &key.name);
            ready_pods.retain(|pod| pods::is_ready(pod) && !pods::is_terminal(pod));
        }
        Ok(Some(View { node, last_sign, ready_pods, may_evict, all_disrupted, times: self.times }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Harness;
    use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
    use k8s_openapi::api::core::v1::{NodeStatus, PodSpec, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use proptest::prelude::*;

    const RATES: Rates = Rates { normal: 0.1, secondary: 0.01, threshold: 0.55, large: 50 };
    const TIMES: Times = Times {
        grace: Duration::from_secs(40),
        startup_grace: Duration::from_secs(60),
        period: Duration::from_secs(5),
    };

    fn harness() -> Harness<NodeLifecycle> {
        let clock = crate::testing::clock();
        Harness::new(|caches, _| NodeLifecycle::new(caches, TIMES, RATES, clock))
    }

    fn ready(status: &str, at: Timestamp) -> NodeCondition {
        NodeCondition {
            type_: "Ready".into(),
            status: status.into(),
            last_heartbeat_time: Some(object::time(at)),
            ..Default::default()
        }
    }

    fn node(name: &str, status: &str, at: Timestamp) -> Node {
        let mut node = Node::default();
        node.metadata.name = Some(name.into());
        node.status = Some(NodeStatus { conditions: Some(vec![ready(status, at)]), ..Default::default() });
        node
    }

    fn renew(h: &Harness<NodeLifecycle>, name: &str) {
        let now = (h.clock)();
        let spec = Some(LeaseSpec { renew_time: Some(MicroTime(now)), ..Default::default() });
        let mut model = h.model.lock();
        if model.get::<Lease>("kube-node-lease", name).is_some() {
            model.edit::<Lease>("kube-node-lease", name, |l| l.spec = spec);
        } else {
            let mut lease = Lease { spec, ..Default::default() };
            lease.metadata.name = Some(name.into());
            lease.metadata.namespace = Some("kube-node-lease".into());
            model.put(&lease);
        }
    }

    async fn pass(h: &mut Harness<NodeLifecycle>, seconds: u64, alive: &[&str]) {
        for _ in 0..seconds {
            for name in alive {
                renew(h, name);
            }
            h.deliver();
            tokio::time::advance(Duration::from_secs(1)).await;
            h.settle(50).await;
        }
    }

    fn status(h: &Harness<NodeLifecycle>, name: &str) -> (String, Vec<(String, String)>) {
        let node: Node = h.model.lock().get("", name).unwrap();
        let mut list: Vec<_> = taints::of(&node).iter().map(|t| (t.key.clone(), t.effect.clone())).collect();
        list.sort();
        (taints::ready_status(node.status.unwrap().conditions.as_ref().unwrap()).to_owned(), list)
    }

    fn pair(key: &str, effect: &str) -> (String, String) {
        (key.into(), effect.into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_becomes_unknown_and_tainted_and_recovers() {
        let mut h = harness();
        let now = (h.clock)();
        h.model.lock().put(&node("a", "True", now));
        h.model.lock().put(&node("b", "True", now));
        let mut pod = Pod::default();
        pod.metadata.name = Some("p".into());
        pod.metadata.namespace = Some("ns".into());
        pod.spec = Some(PodSpec { node_name: Some("b".into()), ..Default::default() });
        pod.status = Some(PodStatus {
            phase: Some("Running".into()),
            conditions: Some(vec![PodCondition {
                type_: "Ready".into(),
                status: "True".into(),
                ..Default::default()
            }]),
            ..Default::default()
        });
        h.model.lock().put(&pod);
        pass(&mut h, 30, &["a", "b"]).await;
        assert_eq!(status(&h, "b"), ("True".into(), vec![]));
        pass(&mut h, 35, &["a"]).await;
        assert_eq!(status(&h, "b").0, "True");
        pass(&mut h, 9, &["a"]).await;
        assert_eq!(
            status(&h, "b"),
            ("Unknown".into(), vec![pair(UNREACHABLE, "NoExecute"), pair(UNREACHABLE, "NoSchedule")])
        );
        assert_eq!(status(&h, "a"), ("True".into(), vec![]));
        let b: Node = h.model.lock().get("", "b").unwrap();
        let conditions = b.status.unwrap().conditions.unwrap();
        let c = taints::condition(&conditions, "Ready").unwrap();
        assert_eq!(c.reason.as_deref(), Some("NodeStatusUnknown"));
        assert_eq!(c.message.as_deref(), Some("Kubelet stopped posting node status."));
        assert!(!pods::is_ready(&h.model.lock().get::<Pod>("ns", "p").unwrap()));
        let notes = h.notes();
        assert!(
            notes.contains(&"Normal NodeNotReady Node b status is now: NodeNotReady".into()),
            "{notes:?}"
        );
        assert!(notes.contains(&"Warning NodeNotReady Node is not ready".into()), "{notes:?}");

        let now = (h.clock)();
        h.model.lock().edit::<Node>("", "b", |n| {
            n.status.as_mut().unwrap().conditions = Some(vec![ready("True", now)]);
        });
        pass(&mut h, 2, &["a", "b"]).await;
        assert_eq!(status(&h, "b"), ("True".into(), vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_never_reported_is_told_so() {
        let mut h = harness();
        let mut mute = Node::default();
        mute.metadata.name = Some("mute".into());
        h.model.lock().put(&mute);
        let now = (h.clock)();
        h.model.lock().put(&node("a", "True", now));
        pass(&mut h, 50, &["a"]).await;
        let n: Node = h.model.lock().get("", "mute").unwrap();
        assert!(taints::of(&n).is_empty(), "it still has time");
        pass(&mut h, 12, &["a"]).await;
        let n: Node = h.model.lock().get("", "mute").unwrap();
        let c = n.status.unwrap().conditions.unwrap();
        assert_eq!(c.len(), 4);
        assert!(c.iter().all(|c| c.reason.as_deref() == Some("NodeStatusNeverUpdated")));
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_are_silent_nobody_is_evicted() {
        let mut h = harness();
        let now = (h.clock)();
        for name in ["a", "b", "c"] {
            h.model.lock().put(&node(name, "True", now));
        }
        pass(&mut h, 60, &[]).await;
        for name in ["a", "b", "c"] {
            let (ready, list) = status(&h, name);
            assert_eq!(ready, "Unknown");
            assert!(list.contains(&pair(UNREACHABLE, "NoSchedule")));
        }
        // The first to be found out was still one of several; once all are, the marks are taken back.
        pass(&mut h, 10, &[]).await;
        for name in ["a", "b", "c"] {
            assert!(!status(&h, name).1.contains(&pair(UNREACHABLE, "NoExecute")), "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn not_ready_is_another_taint_and_foreign_taints_stay() {
        let mut h = harness();
        let now = (h.clock)();
        h.model.lock().put(&node("a", "True", now));
        let mut b = node("b", "False", now);
        b.spec.get_or_insert_default().taints =
            Some(vec![Taint { key: "dedicated".into(), effect: "NoExecute".into(), ..Default::default() }]);
        h.model.lock().put(&b);
        pass(&mut h, 1, &["a", "b"]).await;
        assert_eq!(
            status(&h, "b").1,
            [pair("dedicated", "NoExecute"), pair(NOT_READY, "NoExecute"), pair(NOT_READY, "NoSchedule")]
        );
        assert!(h.plan(&Key::cluster("b")).await.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Whatever nodes fall silent and return: what is silent for the grace is Unknown and kept free of
        /// new pods, what lives and says Ready bears no taint of ours.
        #[test]
        fn taints_follow_life(phases in proptest::collection::vec(proptest::collection::vec(any::<bool>(), 4), 1..5)) {
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            rt.block_on(async move {
                let mut h = harness();
                let names = ["a", "b", "c", "d"];
                let now = (h.clock)();
                for name in names {
                    h.model.lock().put(&node(name, "True", now));
                }
                for alive in phases {
                    let living: Vec<&str> =
                        names.iter().zip(&alive).filter(|(_, a)| **a).map(|(n, _)| *n).collect();
                    let now = (h.clock)();
                    for name in &living {
                        h.model.lock().edit::<Node>("", name, |n| {
                            n.status.as_mut().unwrap().conditions = Some(vec![ready("True", now)]);
                        });
                    }
                    pass(&mut h, 60, &living).await;
                    for (name, alive) in names.iter().zip(&alive) {
                        let (ready, list) = status(&h, name);
                        if *alive {
                            prop_assert_eq!(ready, "True");
                            prop_assert!(list.is_empty(), "{}: {:?}", name, list);
                        } else {
                            prop_assert_eq!(ready, "Unknown");
                            prop_assert!(list.contains(&pair(UNREACHABLE, "NoSchedule")));
                        }
                    }
                }
                Ok(())
            })?;
        }
    }
}
