//! EndpointSlice: the addresses behind a Service, in slices of at most 100.

pub mod desired;
pub mod mirror;
mod place;
#[cfg(test)]
mod tests;
pub mod topology;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;

use crate::cache::{BY_SERVICE, BY_TOPOLOGY, Caches, Pod};
use crate::object::{self, Key};
use crate::plan::{Act, Note, Plan, Step};
use crate::pods;
use crate::runner::{Controller, Failure, Queue, ViewError};
use crate::services;

/// Label that names the Service of a slice.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label that says who keeps a slice.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Our value of [`MANAGED_BY`].
pub const MANAGER: &str = "endpointslice-controller.k8s.io";

/// What a decision about a Service's slices rests on.
pub struct View {
    /// The Service.
    pub service: Arc<Service>,
    /// The pods that it selects.
    pub pods: Vec<Arc<Pod>>,
    /// The nodes of those pods that exist, with their zones.
    pub nodes: BTreeMap<String, Option<String>>,
    /// The zones' shares in the cluster's CPUs, if they matter and are known.
    pub shares: Option<Arc<BTreeMap<String, f64>>>,
    /// Its slices that we keep.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// How many endpoints a slice holds at most.
    pub max_endpoints: usize,
    /// What failed last time.
    pub prior: Option<Failure>,
}

/// Decides about a Service's slices.
pub fn reconcile(view: &View, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let service = view.service.as_ref();
    if object::is_deleting(service) {
        return plan;
    }
    if services::selector(service).is_none() {
        // What a selector made does not outlive it.
        delete(&mut plan, &view.slices);
        return plan;
    }
    let families = desired::families(service, &view.slices, &view.pods);
    let (kept, foreign): (Vec<_>, Vec<_>) =
        view.slices.iter().cloned().partition(|s| families.contains(&s.address_type.as_str()));
    delete(&mut plan, &foreign);
    let mut acts = Vec::new();
    for family in families {
        let wanted = desired::endpoints(view, family);
        if wanted.missing_nodes {
            // The node may appear yet; if not, the pod goes the way of its node.
            plan.requeue(Duration::from_secs(5));
        }
        let existing: Vec<_> = kept.iter().filter(|s| s.address_type == family).cloned().collect();
        plan.events.extend(hint_note(service, family, wanted.topology.as_ref(), &existing));
        acts.extend(place::place(service, family, wanted.by_ports, &existing, view.max_endpoints));
    }
    if let Some(failure) = view.prior.as_ref().filter(|f| f.plural == "endpointslices") {
        let message =
            format!("Error updating Endpoint Slices for Service {}: {}", Key::of(service), failure.message);
        plan.events.push(Note::warning(object::reference(service), "FailedToUpdateEndpointSlices", message));
    }
    if !acts.is_empty() {
        plan.actions.push(Step::Parallel(acts));
    } else {
        plan.events.clear();
    }
    plan
}

/// Tells when hints come or go.
fn hint_note(
    service: &Service,
    family: &str,
    outcome: Option<&Result<(), topology::Why>>,
    before: &[Arc<EndpointSlice>],
) -> Option<Note> {
    let had = before.iter().flat_map(|s| s.endpoints.iter().flatten()).any(|e| e.hints.is_some());
    let about = object::reference(service);
    match outcome? {
        Ok(()) if had => None,
        Ok(()) => {
            let message = format!("Topology Aware Hints has been enabled, addressType: {family}");
            Some(Note::normal(about, "TopologyAwareHintsEnabled", message))
        }
        Err(why) => {
            let message = format!("{why}, addressType: {family}");
            Some(Note::warning(about, "TopologyAwareHintsDisabled", message))
        }
    }
}

fn delete(plan: &mut Plan, slices: &[Arc<EndpointSlice>]) {
    if !slices.is_empty() {
        plan.actions.push(Step::Parallel(slices.iter().map(|s| Act::delete(s.as_ref())).collect()));
    }
}

/// The controller. Keys are Services.
pub struct EndpointSlices {
    caches: Arc<Caches>,
    max_endpoints: usize,
    /// The zones' shares as last counted; nothing once a node has changed.
    shares: Mutex<Option<Shares>>,
}

type Shares = Option<Arc<BTreeMap<String, f64>>>;

/// What of a node the zones' shares rest on.
fn share_facts(node: &Node) -> impl PartialEq {
    let status = node.status.as_ref();
    let conditions = status.and_then(|s| s.conditions.clone()).unwrap_or_default();
    let ready = conditions.into_iter().find(|c| c.type_ == "Ready").map(|c| c.status);
    let cpu = status.and_then(|s| s.allocatable.as_ref()?.get("cpu").cloned());
    (ready, cpu, node.metadata.labels.clone())
}

impl EndpointSlices {
    /// A controller on these caches that puts at most `max_endpoints` into a slice.
    pub fn new(caches: &Arc<Caches>, max_endpoints: usize) -> Self {
        Self { caches: caches.clone(), max_endpoints: max_endpoints.clamp(1, 1000), shares: Mutex::default() }
    }

    fn shares(&self) -> Shares {
        let mut shares = self.shares.lock();
        let count = || topology::shares(self.caches.nodes.all().iter().map(AsRef::as_ref)).map(Arc::new);
        shares.get_or_insert_with(count).clone()
    }
}

#[async_trait]
impl Controller for EndpointSlices {
    type View = View;

    fn name(&self) -> &'static str {
        "endpointslice"
    }

    fn component(&self) -> &'static str {
        "endpoint-slice-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        services::wire(&self.caches, queue);
        let (this, q) = (self.clone(), queue.clone());
        self.caches.nodes.on_change(move |change| {
            if change.old.map(|n| share_facts(n)) == change.new.map(|n| share_facts(n)) {
                return;
            }
            *this.shares.lock() = None;
            for service in this.caches.services.by_index(BY_TOPOLOGY, "") {
                q.add(Key::of(service.as_ref()));
            }
        });
        let q = queue.clone();
        self.caches.slices.on_change(move |change| {
            for slice in change.states() {
                let ours = object::label(&slice.metadata, MANAGED_BY) == Some(MANAGER);
                if ours && let Some(service) = object::label(&slice.metadata, SERVICE_NAME) {
                    q.add(Key::new(object::namespace(slice.as_ref()), service));
                }
            }
        });
    }

    async fn view(&self, key: &Key, prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        // The slices of a Service that is gone go with their owner reference.
        let Some(service) = self.caches.services.get(key) else { return Ok(None) };
        let pods = services::pods_of(&self.caches, &service);
        let nodes = pods
            .iter()
            .filter_map(|pod| self.caches.nodes.get(&Key::cluster(pods::node(pod))))
            .map(|node| (object::name(node.as_ref()).to_owned(), services::zone(&node)))
            .collect();
        let mut slices = self.caches.slices.by_index(BY_SERVICE, &key.to_string());
        slices.retain(|s| {
            object::label(&s.metadata, MANAGED_BY) == Some(MANAGER) && !object::is_deleting(s.as_ref())
        });
        let max_endpoints = self.max_endpoints;
        let shares = if topology::is_wanted(&service) { self.shares() } else { None };
        Ok(Some(View { service, pods, nodes, shares, slices, max_endpoints, prior: prior.cloned() }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}
