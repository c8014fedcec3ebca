//! Node lifecycle: marks nodes that have gone silent, taints nodes by their state.
//!
//! A node lives as long as its Lease is renewed or its status is reported. When that was is noted by
//! our own clock, as changes arrive, so that clocks of machines are never compared.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use parking_lot::Mutex;
use serde_json::json;

use super::taints::{self, NO_EXECUTE, NOT_READY, UNREACHABLE};
use super::zones::{Rates, Zones, zone_of};
use crate::cache::{BY_NODE, Caches, Pod};
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

/// What has to be told of a node itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It was not there before.
    New,
    /// Nothing.
    Told,
    /// It is not there any more.
    Gone,
}

/// What a decision about a node rests on.
pub struct View {
    /// The node; as it was, if it is gone.
    pub node: Arc<Node>,
    /// Whether it is new to us, or gone, and nobody was told yet.
    pub known: Known,
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
    let name = object::name(node);
    let (reason, what) = match view.known {
        Known::New => ("RegisteredNode", format!("Registered Node {name} in Controller")),
        Known::Gone => ("RemovingNode", format!("Removing Node {name} from Controller")),
        Known::Told => ("", String::new()),
    };
    if view.known != Known::Told {
        let message = format!("Node {name} event: {what}");
        plan.events.push(Note::normal(object::reference(node), reason, message));
    }
    if object::is_deleting(node) || view.known == Known::Gone {
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
    let mut conditions = pod.conditions();
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
    /// Nodes that were told of as new.
    told: HashSet<String>,
    /// Those of them that are gone, and were not told of as such.
    gone: HashMap<String, Arc<Node>>,
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
        let noted = Noted {
            signs: HashMap::new(),
            unmarked: HashSet::new(),
            told: HashSet::new(),
            gone: HashMap::new(),
            zones: Zones::new(rates),
        };
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
            let Some(old) = old.filter(|_| noted.told.remove(name)) else { return false };
            noted.gone.insert(name.to_owned(), old.clone());
            return true;
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
        let node = self.caches.nodes.get(key);
        let now = (self.clock)();
        let mut noted = self.noted.lock();
        let gone = noted.gone.remove(&key.name);
        let Some(node) = node else {
            let view = |node| View {
                node,
                known: Known::Gone,
                last_sign: now,
                ready_pods: Vec::new(),
                may_evict: Err(None),
                all_disrupted: false,
                times: self.times,
            };
            return Ok(gone.map(view));
        };
        let known = if noted.told.insert(key.name.clone()) { Known::New } else { Known::Told };
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
        Ok(Some(View { node, known, last_sign, ready_pods, may_evict, all_disrupted, times: self.times }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}
