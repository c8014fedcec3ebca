//! Load balancers: gives Services of the type LoadBalancer addresses of the pools, and says which node answers for them.
//!
//! - [`pool`]: the custom resource of pools.
//! - [`ledger`]: who has which address.
//! - [`announce`]: which node answers.
//! - [`status`]: how full the pools are.

pub mod announce;
pub mod ledger;
pub mod pool;
pub mod status;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use parking_lot::Mutex;
use serde_json::{Value, json};

use self::announce::{ANNOUNCED_BY, can_announce, is_local};
use self::ledger::{Ledger, Pool, Why, Wish};
use self::pool::LoadBalancerIPPool;
use crate::cache::{BY_ANNOUNCER, BY_SERVICE, Caches};
use crate::object::{self, Key};
use crate::plan::{Act, Note, Plan};
use crate::runner::{Controller, Failure, Queue, ViewError};

/// The class of Services that are ours, besides those without one.
pub const CLASS: &str = "hawser.io/l2";
/// Annotation with the addresses that a Service asks for, separated by commas.
const ASKED: &str = "hawser.io/load-balancer-ips";
/// What holds a Service until its addresses are given up.
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

/// Whether the Service is a load balancer.
pub fn is_balancer(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.type_.as_deref()) == Some("LoadBalancer")
}

fn class(service: &Service) -> Option<&str> {
    service.spec.as_ref().and_then(|s| s.load_balancer_class.as_deref())
}

/// Whether the Service is to get addresses from us.
fn wanted(service: &Service) -> bool {
    is_balancer(service) && class(service).is_none_or(|c| c == CLASS) && !object::is_deleting(service)
}

/// The addresses that the status of a load balancer has.
pub fn addresses(service: &Service) -> Vec<IpAddr> {
    if !is_balancer(service) {
        return Vec::new();
    }
    let ingress = service.status.iter().filter_map(|s| s.load_balancer.as_ref()).flat_map(|b| &b.ingress);
    ingress.flatten().filter_map(|i| i.ip.as_deref()?.parse().ok()).collect()
}

/// Index values: the node that answers for a Service that has addresses; empty if there is none.
pub fn announcer(service: &Service) -> Vec<String> {
    let node = object::annotation(&service.metadata, ANNOUNCED_BY).unwrap_or_default();
    if wanted(service) { vec![node.to_owned()] } else { Vec::new() }
}

/// What the Service asks for.
fn asked(service: &Service) -> Vec<IpAddr> {
    let list = object::annotation(&service.metadata, ASKED);
    let one = service.spec.as_ref().and_then(|s| s.load_balancer_ip.as_deref());
    let text = list.or(one).unwrap_or_default();
    text.split(',').filter_map(|t| t.trim().parse().ok()).collect()
}

/// What a decision about a Service rests on.
pub struct View {
    /// The Service.
    pub service: Arc<Service>,
    /// What it can have, per family; empty if it is not ours.
    pub offers: Vec<Result<IpAddr, Why>>,
    /// Whether there is any pool.
    pub pools: bool,
    /// The nodes that can answer; the current one alone if it can.
    pub candidates: Vec<String>,
}

/// Decides about a Service: first the finalizer and the node, then the addresses.
pub fn reconcile(view: &View, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let service = view.service.as_ref();
    let meta = &service.metadata;
    let held = object::has_finalizer(meta, FINALIZER);
    let current = object::annotation(meta, ANNOUNCED_BY);
    if !wanted(service) {
        // Another's load balancer has a finalizer of the same name.
        let ours = current.is_some() || class(service).is_none_or(|c| c == CLASS);
        if ours && (held || current.is_some()) {
            plan.push(metadata(service, false, None));
        }
        return plan;
    }
    plan.events.extend(notes(view));
    let given: Vec<IpAddr> = view.offers.iter().flatten().copied().collect();
    let candidates: Vec<&str> = view.candidates.iter().map(String::as_str).collect();
    let node = given.first().and_then(|a| announce::pick(&a.to_string(), current, &candidates));
    let has = addresses(service);
    if (given.is_empty() && has.is_empty()) && !held && current.is_none() {
        return plan;
    }
    if !held || node != current {
        plan.push(metadata(service, true, node));
    } else if given != has {
        if let Some(text) = shown(&given) {
            plan.events.push(Note::normal(
                object::reference(service),
                "IPAllocated",
                format!("Assigned {text}"),
            ));
        }
        let ingress: Vec<Value> = given.iter().map(|a| json!({"ip": a, "ipMode": "VIP"})).collect();
        let patch = json!({"metadata": {"resourceVersion": meta.resource_version},
            "status": {"loadBalancer": {"ingress": ingress}}});
        plan.status = Some(Box::new(Act::patch(service, Some("status"), patch).may_be_absent()));
    }
    plan
}

fn shown(addresses: &[IpAddr]) -> Option<String> {
    let all: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    (!all.is_empty()).then(|| all.join(" and "))
}

/// Writes finalizer and announcing node, if the Service is still as it was seen.
fn metadata(service: &Service, held: bool, node: Option<&str>) -> Act {
    let before = service.metadata.finalizers.iter().flatten().filter(|f| *f != FINALIZER);
    let finalizers: Vec<&str> = before.map(String::as_str).chain(held.then_some(FINALIZER)).collect();
    let patch = json!({"metadata": {"resourceVersion": service.metadata.resource_version,
        "finalizers": finalizers, "annotations": {ANNOUNCED_BY: node}}});
    Act::patch(service, None, patch).may_be_absent()
}

/// What its owner should know: only of pools that exist can one expect anything.
fn notes(view: &View) -> Vec<Note> {
    let about = || object::reference(view.service.as_ref());
    let any = view.offers.iter().any(Result::is_ok);
    let refusals = view.offers.iter().filter_map(|o| o.as_ref().err());
    let notes = refusals.filter_map(|why| {
        let text = match why {
            Why::NoPool if any || !view.pools => return None,
            Why::NoPool => "No address pool is for this Service".to_owned(),
            Why::Exhausted => "All addresses of the pools are given out".to_owned(),
            Why::Taken(address, other) => format!("The address {address} is that of the Service {other}"),
            Why::Outside(address) => format!("The address {address} is in no pool that is for this Service"),
        };
        let reason = if *why == Why::Exhausted { "PoolExhausted" } else { "AllocationFailed" };
        Some(Note::warning(about(), reason, text))
    });
    let mut notes: Vec<Note> = notes.collect();
    notes.dedup();
    notes
}

/// The controller. Keys are Services.
pub struct LoadBalancers {
    caches: Arc<Caches>,
    ledger: Arc<Mutex<Ledger>>,
}

impl LoadBalancers {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone(), ledger: Arc::default() }
    }

    fn wish(&self, service: &Service) -> Wish {
        let spec = service.spec.as_ref();
        let named = spec.and_then(|s| s.ip_families.clone()).unwrap_or_default();
        let mut families: Vec<bool> = named.iter().map(|f| f == "IPv4").collect();
        if families.is_empty() {
            let one = spec.and_then(|s| s.cluster_ip.as_deref()).unwrap_or_default();
            families.push(!one.contains(':'));
        }
        let namespace = self.caches.namespaces.get(&Key::cluster(object::namespace(service)));
        Wish {
            labels: service.metadata.labels.clone(),
            namespace_labels: namespace.and_then(|n| n.metadata.labels.clone()),
            families,
            asked: asked(service),
            has: addresses(service),
        }
    }

    /// Of two Services with one address the younger one loses it.
    fn loses(&self, service: &Service, other: &Key) -> bool {
        let Some(other) = self.caches.services.get(other) else { return false };
        let has = addresses(service);
        let age = |s: &Service| (s.metadata.creation_timestamp.as_ref().map(|t| t.0), s.metadata.uid.clone());
        // One that is only being offered the address does not have it yet.
        addresses(&other).iter().any(|a| has.contains(a)) && age(&other) < age(service)
    }

    /// The nodes that can answer for a Service; the current one alone if it can.
    fn candidates(&self, service: &Service) -> Vec<String> {
        let nodes = &self.caches.nodes;
        let can = |name: &str| nodes.get(&Key::cluster(name)).is_some_and(|n| can_announce(&n));
        let current = object::annotation(&service.metadata, ANNOUNCED_BY);
        if is_local(service) {
            let slices = self.caches.slices.by_index(BY_SERVICE, &Key::of(service).to_string());
            let mut names = announce::nodes_of(slices.iter().map(AsRef::as_ref));
            names.retain(|n| can(n));
            return names;
        }
        if let Some(current) = current.filter(|c| can(c)) {
            return vec![current.to_owned()];
        }
        let all = nodes.all();
        all.iter().filter(|n| can_announce(n)).map(|n| object::name(n.as_ref()).to_owned()).collect()
    }
}

#[async_trait]
impl Controller for LoadBalancers {
    type View = View;

    fn name(&self) -> &'static str {
        "loadbalancer"
    }

    fn component(&self) -> &'static str {
        "load-balancer-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let (ledger, q) = (self.ledger.clone(), queue.clone());
        self.caches.services.on_change(move |change| {
            if !change.states().any(|s| is_balancer(s)) {
                return;
            }
            let again = {
                let mut ledger = ledger.lock();
                if !change.new.is_some_and(|s| wanted(s)) {
                    ledger.forget(change.key);
                }
                let addresses = change.new.map(|s| addresses(s)).unwrap_or_default();
                ledger.saw(change.key, version(change.new.map(AsRef::as_ref)), addresses)
            };
            again.into_iter().chain([change.key.clone()]).for_each(|key| q.add(key));
        });
        let (ledger, q) = (self.ledger.clone(), queue.clone());
        self.caches.pools.on_change(move |change| {
            if change.old.map(|p| &p.spec) == change.new.map(|p| &p.spec) {
                return;
            }
            let again = ledger.lock().saw_pool(&change.key.name, change.new.map(|p| read(p)));
            again.into_iter().for_each(|key| q.add(key));
        });
        let (all, q) = (self.caches.clone(), queue.clone());
        self.caches.nodes.on_change(move |change| {
            let (old, new) =
                (change.old.is_some_and(|n| can_announce(n)), change.new.is_some_and(|n| can_announce(n)));
            let concerned = match (old, new) {
                (true, false) => change.key.name.as_str(),
                (false, true) => "",
                _ => return,
            };
            for service in all.services.by_index(BY_ANNOUNCER, concerned) {
                q.add(Key::of(service.as_ref()));
            }
        });
        let (all, q) = (self.caches.clone(), queue.clone());
        self.caches.slices.on_change(move |change| {
            for key in change.states().flat_map(|s| crate::cache::slice_services(s)) {
                if all.services.get(&key).is_some_and(|s| wanted(&s) && is_local(&s)) {
                    q.add(key);
                }
            }
        });
        self.caches.namespaces.want();
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(service) = self.caches.services.get(key) else { return Ok(None) };
        if !wanted(&service) {
            return Ok(Some(View { service, offers: Vec::new(), pools: true, candidates: Vec::new() }));
        }
        let wish = self.wish(&service);
        let candidates = self.candidates(&service);
        let mut ledger = self.ledger.lock();
        let offers = ledger.offer(key, version(Some(&service)), &wish, |other| self.loses(&service, other));
        Ok(Some(View { service, offers, pools: ledger.has_pools(), candidates }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}

/// A Service's version; that of one that is gone is later than all.
fn version(service: Option<&Service>) -> u64 {
    let text = service.map(|s| s.metadata.resource_version.as_deref().unwrap_or_default());
    text.map_or(u64::MAX, |t| object::version_number(t).unwrap_or(0))
}

/// The pool that an object is.
fn read(object: &LoadBalancerIPPool) -> Pool {
    let spec = &object.spec;
    let (blocks, _) = pool::blocks(object);
    let selector = |s: &Option<_>| s.as_ref().map(object::selector);
    let (services, namespaces) = (selector(&spec.service_selector), selector(&spec.namespace_selector));
    // A selector that cannot be read selects nothing.
    let broken = matches!(services, Some(None)) || matches!(namespaces, Some(None));
    Pool {
        blocks: if broken { Vec::new() } else { blocks },
        disabled: spec.disabled,
        services: services.flatten(),
        namespaces: namespaces.flatten(),
    }
}
