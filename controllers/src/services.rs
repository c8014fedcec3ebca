//! Rules about Services and the pods behind them, shared by the EndpointSlice and Endpoints controllers.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, ObjectReference, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::cache::{BY_NODE, BY_SELECTOR, Caches, Change, Pod};
use crate::object::{self, Key, Labels};
use crate::pods;
use crate::runner::Queue;

/// Label of endpoints whose Service has no address of its own.
pub use hawser_api::dataplane::HEADLESS;
/// Node label with the zone.
pub const ZONE: &str = "topology.kubernetes.io/zone";

/// The Service's selector, if it selects at all.
pub fn selector(service: &Service) -> Option<&Labels> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector.as_ref()
}

/// Whether the Service has no address of its own.
pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// Whether endpoints count as ready whatever their pods say.
pub fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false)
}

/// The pods that a Service selects.
pub fn pods_of(caches: &Caches, service: &Service) -> Vec<Arc<Pod>> {
    match selector(service) {
        Some(pairs) if !pairs.is_empty() => caches.pods_with(object::namespace(service), pairs),
        _ => Vec::new(),
    }
}

/// The Services that select a pod.
pub fn services_of(caches: &Caches, pod: &Pod) -> Vec<Key> {
    object::label_buckets(object::namespace(pod), &pod.metadata.labels)
        .iter()
        .flat_map(|bucket| caches.services.by_index(BY_SELECTOR, bucket))
        .filter(|s| selector(s).is_some_and(|pairs| object::matches_pairs(pairs, &pod.metadata.labels)))
        .map(|s| Key::of(s.as_ref()))
        .collect()
}

/// Queues the Services that a change of pods, nodes or Services concerns.
pub fn wire(caches: &Arc<Caches>, queue: &Arc<Queue>) {
    let q = queue.clone();
    caches.services.on_change(move |change| q.add(change.key.clone()));
    let (all, q) = (caches.clone(), queue.clone());
    caches.pods.on_change(move |change| {
        if !concerns_endpoints(change) {
            return;
        }
        let keys: HashSet<Key> = change.states().flat_map(|pod| services_of(&all, pod)).collect();
        for key in keys {
            q.add(key);
        }
    });
    let (all, q) = (caches.clone(), queue.clone());
    caches.nodes.on_change(move |change| {
        let (old, new) = (change.old.map(|n| zone(n)), change.new.map(|n| zone(n)));
        if old == new {
            return;
        }
        let pods = all.pods.by_index(BY_NODE, &change.key.name);
        let keys: HashSet<Key> = pods.iter().flat_map(|pod| services_of(&all, pod)).collect();
        for key in keys {
            q.add(key);
        }
    });
}

/// The node's zone.
pub fn zone(node: &Node) -> Option<String> {
    object::label(&node.metadata, ZONE).map(str::to_owned)
}

/// Whether a change of a pod can show in endpoints: most status updates do not.
fn concerns_endpoints(change: &Change<'_, Pod>) -> bool {
    let (Some(old), Some(new)) = (change.old, change.new) else { return true };
    let facts = |pod: &Pod| {
        let spec = pod.spec.as_ref();
        (
            ips(pod),
            pods::is_ready(pod),
            pods::is_terminal(pod),
            object::is_deleting(pod),
            pods::node(pod).to_owned(),
            spec.and_then(|s| s.hostname.clone()),
            spec.and_then(|s| s.subdomain.clone()),
        )
    };
    facts(old) != facts(new) || old.metadata.labels != new.metadata.labels
}

/// The pod's addresses, of either family.
pub fn ips(pod: &Pod) -> Vec<String> {
    pod.status.ips.iter().map(|ip| ip.to_string()).collect()
}

/// The number of the pod's port that a Service port leads to; `None` if the pod has no such port.
pub fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => return Some(port.port),
        Some(IntOrString::String(name)) => name,
    };
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let spec = pod.spec.as_ref()?;
    // Restartable init containers (sidecars) serve as well.
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .find(|p| p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol)
        .map(|p| p.container_port)
}

/// The pod's own name under the Service's domain, if it asks for one there.
pub fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let same = spec.subdomain.as_deref() == Some(object::name(service))
        && object::namespace(pod) == object::namespace(service);
    spec.hostname.clone().filter(|h| same && !h.is_empty())
}

/// The reference to a pod that endpoints hold.
pub fn pod_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: Some(object::namespace(pod).to_owned()),
        name: Some(object::name(pod).to_owned()),
        uid: object::known_uid(pod),
        ..ObjectReference::default()
    }
}
