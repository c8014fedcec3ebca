//! Acknowledgement: tells a pod when every live node's dataplane can reach it, and, once it is being deleted, when every
//! one of them sends new connections elsewhere. See [`hawser_api::dataplane`] for the conditions that say so.
//!
//! A dataplane acknowledges a revision: all EndpointSlices up to it are in its maps. So a pod need only be looked up in
//! the slices, and what it waits for is the newest revision among those that hold it. In the same way it acknowledges the
//! ways to other nodes' pods, and a pod waits for the revision at which its Node got the prefixes that it has. Only pods
//! on nodes whose Leases carry these revisions are looked at.

mod acks;
#[cfg(test)]
mod tests;
mod ways;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hawser_api::dataplane::{
    DRAINED, PROGRAMMED, PROGRAMMED_NODES_REVISION, PROGRAMMED_REVISION, PROXY_NAME,
};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{PodCondition, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;
use serde_json::json;

use crate::cache::{BY_NODE, BY_TARGET, Caches, Pod};
use crate::endpointslice::{SERVICE_NAME, desired};
use crate::object::{self, Key};
use crate::plan::{Act, Plan};
use crate::pods;
use crate::runner::{Clock, Controller, Failure, Queue, ViewError};
use crate::services;
use acks::{Acks, Laggard, Revisions};
use ways::Ways;

/// How long a Lease lasts that does not say so (that of Kubernetes' kubelet).
const LEASE: Duration = Duration::from_secs(40);

/// What a pod waits to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// That every node can reach it.
    Programmed,
    /// That every node sends new connections elsewhere.
    Drained,
}

/// Where the EndpointSlices, or all that the pod waits for, stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// They do not yet say about the pod what they will.
    Behind,
    /// They do, since this revision; 0 when none speaks of the pod.
    At(u64),
}

/// What a decision about a pod rests on.
pub struct View {
    /// The pod.
    pub pod: Arc<Pod>,
    /// What it waits to be told.
    pub wish: Wish,
    /// Where slices and Nodes stand.
    pub standing: Standing,
    /// A live node that is not there yet.
    pub laggard: Option<Laggard>,
}

/// Decides about a pod.
pub fn reconcile(view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    if view.standing == Standing::Behind {
        // A change of a slice or of the Node leads here again.
        return plan;
    }
    if let Some(laggard) = &view.laggard {
        // So does its acknowledgement; but a node that is gone acknowledges nothing.
        let left = laggard.until.duration_since(now).unsigned_abs();
        plan.requeue(left + Duration::from_millis(10));
        return plan;
    }
    let (kind, message) = match view.wish {
        Wish::Programmed => (PROGRAMMED, Some(addresses(&view.pod))),
        Wish::Drained => (DRAINED, None),
    };
    let pod = view.pod.as_ref();
    let mut conditions = pod.conditions();
    conditions.retain(|c| c.type_ != kind);
    conditions.push(PodCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some("Acknowledged".to_owned()),
        message,
        last_transition_time: Some(object::time(now)),
        ..PodCondition::default()
    });
    let patch = json!({
        "metadata": {"resourceVersion": pod.metadata.resource_version, "uid": pod.metadata.uid},
        "status": {"conditions": conditions},
    });
    plan.push(Act::patch(pod, Some("status"), patch).may_be_absent());
    plan
}

/// The pod's addresses as the condition names them.
fn addresses(pod: &Pod) -> String {
    services::ips(pod).join(",")
}

/// What the pod waits to be told, if anything.
fn wish(pod: &Pod) -> Option<Wish> {
    let programmed = pods::condition(pod, PROGRAMMED).filter(|c| c.status == "True");
    let told = |kind| pods::condition(pod, kind).is_some_and(|c| c.status == "True");
    if pods::is_terminal(pod) {
        return None;
    }
    if object::is_deleting(pod) {
        return (programmed.is_some() && !told(DRAINED)).then_some(Wish::Drained);
    }
    let addresses = addresses(pod);
    let reached = programmed.is_some_and(|c| c.message.as_deref() == Some(&addresses));
    (!addresses.is_empty() && !reached).then_some(Wish::Programmed)
}

/// Whether dataplanes serve the Service, and an endpoint of it is made of the pod.
fn expects(service: &Service, pod: &Arc<Pod>) -> bool {
    let pods = [pod.clone()];
    let families = desired::families(service, &[], &pods);
    let of_family = |ip: &String| families.iter().any(|family| desired::is_of(family, ip));
    !object::is_deleting(service)
        && !services::is_headless(service)
        && object::label(&service.metadata, PROXY_NAME).is_none()
        && services::ips(pod).iter().any(of_family)
}

/// Where the slices stand with the pod: `of_pod` are those that hold it, `services` those that select it.
fn standing(
    wish: Wish,
    pod: &Arc<Pod>,
    services: &[Arc<Service>],
    of_pod: &[Arc<EndpointSlice>],
) -> Standing {
    let uid = object::uid(pod.as_ref());
    let seen = |slice: &EndpointSlice| {
        let label = |name| object::label(&slice.metadata, name);
        label(services::HEADLESS).is_none() && label(PROXY_NAME).is_none()
    };
    let slices: Vec<&EndpointSlice> = of_pod.iter().map(Arc::as_ref).filter(|s| seen(s)).collect();
    let settled = match wish {
        Wish::Programmed => services.iter().filter(|service| expects(service, pod)).all(|service| {
            slices
                .iter()
                .any(|s| object::label(&s.metadata, SERVICE_NAME) == Some(object::name(service.as_ref())))
        }),
        Wish::Drained => {
            let of_this = |slice: &&EndpointSlice| -> bool {
                slice
                    .endpoints
                    .iter()
                    .flatten()
                    .filter(|e| e.target_ref.as_ref().and_then(|r| r.uid.as_deref()) == Some(uid))
                    .all(|e| e.conditions.as_ref().and_then(|c| c.terminating) == Some(true))
            };
            slices.iter().all(of_this)
        }
    };
    if !settled {
        return Standing::Behind;
    }
    let revision = |s: &&EndpointSlice| s.metadata.resource_version.as_deref().and_then(|v| v.parse().ok());
    Standing::At(slices.iter().filter_map(revision).max().unwrap_or(0))
}

/// The controller. Keys are pods.
pub struct Acknowledgement {
    caches: Arc<Caches>,
    clock: Clock,
    acks: Mutex<Acks>,
    ways: Mutex<Ways>,
}

impl Acknowledgement {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>, clock: Clock) -> Self {
        Self { caches: caches.clone(), clock, acks: Mutex::default(), ways: Mutex::default() }
    }

    /// Whether the pod waits for something that is known here.
    fn waits(&self, pod: &Pod) -> Option<Wish> {
        wish(pod).filter(|_| self.acks.lock().has(pods::node(pod)))
    }

    /// Takes a node's Lease into account. Returns the pods to look at.
    fn heard(&self, node: &str, lease: Option<&Lease>) -> Vec<Key> {
        let now = (self.clock)();
        let mut acks = self.acks.lock();
        let Some((lease, revisions)) = lease.and_then(|lease| Some((lease, revisions(lease)?))) else {
            acks.forget(node);
            return acks.due(now);
        };
        let lasts = lease.spec.as_ref().and_then(|s| s.lease_duration_seconds);
        let lasts = lasts.and_then(|s| u64::try_from(s).ok()).map_or(LEASE, Duration::from_secs);
        let new = acks.heard(node, revisions, lasts, now);
        let mut keys = acks.due(now);
        drop(acks);
        if new {
            keys.extend(self.waiting_on(node));
        }
        keys
    }

    /// Pods of a node that wait to be told something.
    fn waiting_on(&self, node: &str) -> Vec<Key> {
        let pods = self.caches.pods.by_index(BY_NODE, node);
        pods.iter().filter(|pod| wish(pod).is_some()).map(|pod| Key::of(pod.as_ref())).collect()
    }
}

/// What a node's dataplane acknowledges. One that says nothing of Nodes, of an older version, is not waited for there.
fn revisions(lease: &Lease) -> Option<Revisions> {
    let annotations = lease.metadata.annotations.as_ref()?;
    let slices = annotations.get(PROGRAMMED_REVISION)?.parse().ok()?;
    let nodes = annotations.get(PROGRAMMED_NODES_REVISION).and_then(|revision| revision.parse().ok());
    Some([slices, nodes.unwrap_or(u64::MAX)])
}

#[async_trait]
impl Controller for Acknowledgement {
    type View = View;

    fn name(&self) -> &'static str {
        "acknowledgement"
    }

    fn component(&self) -> &'static str {
        "acknowledgement-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let (this, q) = (self.clone(), queue.clone());
        self.caches.node_leases.on_change(move |change| {
            let lease = change.new.map(Arc::as_ref);
            for key in this.heard(&change.key.name, lease) {
                q.add(key);
            }
        });
        let (this, q) = (self.clone(), queue.clone());
        self.caches.nodes.on_change(move |change| {
            if this.ways.lock().heard(&change.key.name, change.new.map(Arc::as_ref)) {
                this.waiting_on(&change.key.name).into_iter().for_each(|key| q.add(key));
            }
        });
        let (this, q) = (self.clone(), queue.clone());
        self.caches.pods.on_change(move |change| {
            if change.new.is_some_and(|pod| this.waits(pod).is_some()) {
                q.add(change.key.clone());
            }
        });
        let (this, q) = (self.clone(), queue.clone());
        self.caches.slices.on_change(move |change| {
            let endpoints = change.states().flat_map(|slice| slice.endpoints.iter().flatten());
            for target in endpoints.filter_map(|e| e.target_ref.as_ref()) {
                let Some(name) = target.name.as_deref() else { continue };
                let key = Key::new(target.namespace.as_deref().unwrap_or_default(), name);
                if this.caches.pods.get(&key).is_some_and(|pod| this.waits(&pod).is_some()) {
                    q.add(key);
                }
            }
        });
        // A Service that goes, or selects others, is not waited for any more.
        let (this, q) = (self.clone(), queue.clone());
        self.caches.services.on_change(move |change| {
            for pod in change.states().flat_map(|service| services::pods_of(&this.caches, service)) {
                if this.waits(&pod).is_some() {
                    q.add(Key::of(pod.as_ref()));
                }
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(pod) = self.caches.pods.get(key) else { return Ok(None) };
        let Some(wish) = self.waits(&pod) else { return Ok(None) };
        let selecting = services::services_of(&self.caches, &pod);
        let services: Vec<_> = selecting.iter().filter_map(|key| self.caches.services.get(key)).collect();
        let slices = self.caches.slices.by_index(BY_TARGET, object::uid(pod.as_ref()));
        let way = match wish {
            Wish::Programmed => self.ways.lock().to(pods::node(&pod)),
            Wish::Drained => Some(0),
        };
        let (standing, laggard) = match (standing(wish, &pod, &services, &slices), way) {
            (Standing::At(slices), Some(node)) => {
                let laggard = self.acks.lock().await_all([slices, node], key, (self.clock)());
                (Standing::At(slices), laggard)
            }
            // The Node will turn up, or the pod goes with it.
            (Standing::Behind, _) | (_, None) => (Standing::Behind, None),
        };
        Ok(Some(View { pod, wish, standing, laggard }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}
