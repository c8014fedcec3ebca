//! Which endpoints a Service should have.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};

use super::{View, topology};
use crate::cache::Pod;
use crate::object;
use crate::pods;
use crate::services;

/// A set of ports, comparable: name, protocol, number, application protocol.
pub type PortsKey = Vec<(String, String, Option<i32>, Option<String>)>;

/// Endpoints that have the same ports.
pub struct PortGroup {
    /// The ports as slices hold them.
    pub ports: Vec<EndpointPort>,
    /// The endpoints, by the identity of what is behind them.
    pub endpoints: BTreeMap<String, Endpoint>,
}

/// The endpoints of one address family.
pub struct Desired {
    /// Grouped by ports.
    pub by_ports: BTreeMap<PortsKey, PortGroup>,
    /// Whether a pod was left out because its node is not there.
    pub missing_nodes: bool,
    /// Whether there are hints, or why not, where the annotation asks for them.
    pub topology: Option<Result<(), topology::Why>>,
}

/// The comparable form of a slice's ports.
pub fn ports_key(ports: &[EndpointPort]) -> PortsKey {
    let text = |v: &Option<String>| v.clone().unwrap_or_default();
    let mut key: PortsKey =
        ports.iter().map(|p| (text(&p.name), text(&p.protocol), p.port, p.app_protocol.clone())).collect();
    key.sort();
    key
}

/// What tells one endpoint from another: the pod behind it, or else its addresses.
pub fn identity(endpoint: &Endpoint) -> String {
    match endpoint.target_ref.as_ref().and_then(|r| r.uid.as_deref()) {
        Some(uid) => format!("{uid} {}", endpoint.addresses.join(",")),
        None => endpoint.addresses.join(","),
    }
}

/// Whether an address is of a family.
pub fn is_of(family: &str, ip: &str) -> bool {
    match ip.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => family == "IPv4",
        Ok(IpAddr::V6(_)) => family == "IPv6",
        Err(_) => false,
    }
}

/// The address families that the Service's slices are of.
pub fn families(service: &Service, slices: &[Arc<EndpointSlice>], pods: &[Arc<Pod>]) -> Vec<&'static str> {
    let spec = service.spec.as_ref();
    let named: Vec<&'static str> = spec
        .and_then(|s| s.ip_families.as_ref())
        .into_iter()
        .flatten()
        .filter_map(|f| match f.as_str() {
            "IPv4" => Some("IPv4"),
            "IPv6" => Some("IPv6"),
            _ => None,
        })
        .collect();
    if !named.is_empty() {
        return named;
    }
    // Without the field (an old object), its address tells, then what is there.
    let mut samples = spec.and_then(|s| s.cluster_ip.clone()).into_iter().collect::<Vec<_>>();
    samples
        .extend(slices.iter().map(|s| if s.address_type == "IPv6" { "::".into() } else { "0.0.0.0".into() }));
    samples.extend(pods.iter().flat_map(|p| services::ips(p)));
    let v6 = samples.iter().find_map(|s| s.parse::<IpAddr>().ok()).is_some_and(|ip| ip.is_ipv6());
    vec![if v6 { "IPv6" } else { "IPv4" }]
}

/// The endpoints that the Service's pods make in one family.
pub fn endpoints(view: &View, family: &str) -> Desired {
    let service = view.service.as_ref();
    let mut desired = Desired { by_ports: BTreeMap::new(), missing_nodes: false, topology: None };
    for pod in &view.pods {
        if pods::is_terminal(pod) {
            continue;
        }
        let addresses: Vec<String> = services::ips(pod).into_iter().filter(|ip| is_of(family, ip)).collect();
        if addresses.is_empty() {
            continue;
        }
        let node = pods::node(pod);
        if !node.is_empty() && !view.nodes.contains_key(node) && !services::publishes_not_ready(service) {
            desired.missing_nodes = true;
            continue;
        }
        let ports = ports(service, pod);
        let endpoint = endpoint(view, pod, addresses);
        let group = desired
            .by_ports
            .entry(ports_key(&ports))
            .or_insert_with(|| PortGroup { ports, endpoints: BTreeMap::new() });
        group.endpoints.insert(identity(&endpoint), endpoint);
    }
    if topology::is_wanted(service) {
        let groups = desired.by_ports.values_mut();
        let mut all: Vec<&mut Endpoint> = groups.flat_map(|g| g.endpoints.values_mut()).collect();
        desired.topology = Some(topology::hint(view.shares.as_deref(), &mut all));
        return desired;
    }
    for group in desired.by_ports.values_mut() {
        hint(service, group);
    }
    desired
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_ref());
    ports
        .into_iter()
        .flatten()
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(services::target_port(pod, port)?),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn endpoint(view: &View, pod: &Pod, addresses: Vec<String>) -> Endpoint {
    let service = view.service.as_ref();
    let serving = pods::is_ready(pod);
    let terminating = object::is_deleting(pod);
    let ready = services::publishes_not_ready(service) || serving && !terminating;
    let node = Some(pods::node(pod)).filter(|n| !n.is_empty());
    Endpoint {
        // A pod has one address per family.
        addresses: addresses.into_iter().take(1).collect(),
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        deprecated_topology: None,
        hints: None,
        hostname: services::hostname(pod, service),
        node_name: node.map(str::to_owned),
        target_ref: Some(services::pod_reference(pod)),
        zone: node.and_then(|n| view.nodes.get(n)).cloned().flatten(),
    }
}

/// Hints for proxies that keep traffic close, where the Service asks for that. (KEP-4444, KEP-3015.)
fn hint(service: &Service, group: &mut PortGroup) {
    let distribution = service.spec.as_ref().and_then(|s| s.traffic_distribution.as_deref());
    let (zones, nodes) = match distribution {
        Some("PreferClose" | "PreferSameZone") => (true, false),
        Some("PreferSameNode") => (true, true),
        _ => return,
    };
    let ready = |e: &Endpoint| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(false);
    for endpoint in group.endpoints.values_mut().filter(|e| ready(e)) {
        let zone = endpoint.zone.clone().filter(|_| zones);
        let node = endpoint.node_name.clone().filter(|_| nodes);
        if zone.is_none() && node.is_none() {
            continue;
        }
        endpoint.hints = Some(EndpointHints {
            for_zones: zone.map(|name| vec![ForZone { name }]),
            for_nodes: node.map(|name| vec![ForNode { name }]),
        });
    }
}
