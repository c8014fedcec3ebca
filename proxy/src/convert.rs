//! PURE: API objects → the few fields that matter. Everything else is dropped at once, so that the
//! agent's memory is that of its maps.

use std::net::IpAddr;
use std::sync::Arc;

use hawser_api::dataplane::{HEADLESS, PROXY_NAME};
use hawser_ebpf_common::lb::{ALGORITHM_DEFAULT, ALGORITHM_LEAST, ALGORITHM_MAGLEV, ALGORITHM_RANDOM};
use hawser_watch::SERVICE_NAME;
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::ResourceExt;

use crate::desired::{Forwarding, Hints, Node, Service, ServicePort, Slice, SliceEndpoint};
use crate::types::Protocol;

/// Label that names a Node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Annotation of a Service: how a backend is chosen.
pub const ALGORITHM: &str = "hawser.io/load-balancer-algorithm";
/// Annotation of a Service: how packets from outside reach a backend on another node.
pub const FORWARDING: &str = "hawser.io/forwarding-mode";
/// Annotation of a Service: the node that answers for its load balancer's addresses.
pub const ANNOUNCED_BY: &str = "hawser.io/announced-by";
/// `spec.sessionAffinityConfig.clientIP.timeoutSeconds` when absent.
const AFFINITY_TIMEOUT_S: u32 = 10_800;

/// The label selector of the Services and EndpointSlices that this proxy serves: not another one's, and not those of
/// headless Services, which need none.
pub fn selector() -> String {
    format!("!{PROXY_NAME},!{HEADLESS}")
}

/// A Service; `None` for headless ones, ExternalName, and those without an address.
pub fn service(object: &core::Service) -> Option<Service> {
    let spec = object.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let cluster_ips = addresses(spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter()));
    if cluster_ips.is_empty() {
        return None;
    }
    let balanced = spec.type_.as_deref() == Some("LoadBalancer");
    let node_ports = balanced || spec.type_.as_deref() == Some("NodePort");
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        Some(ServicePort {
            name: port.name.clone().unwrap_or_default(),
            port: u16::try_from(port.port).ok()?,
            protocol: Protocol::from_api(port.protocol.as_deref())?,
            node_port: port.node_port.filter(|_| node_ports).and_then(port_number).unwrap_or(0),
        })
    });
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let ranges = spec.load_balancer_source_ranges.iter().flatten();
    let annotation = |name| object.annotations().get(name).map(String::as_str);
    Some(Service {
        cluster_ips,
        external_ips: addresses(spec.external_ips.iter().flatten()),
        balancer_ips: if balanced { ingress(object) } else { Box::default() },
        ports: ports.collect(),
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        external_local,
        affinity_timeout_s: affinity(spec),
        source_ranges: match balanced {
            true => ranges.filter_map(|range| range.trim().parse::<IpNet>().ok()).collect(),
            false => Arc::default(),
        },
        health_check_port: match balanced && external_local {
            true => spec.health_check_node_port.and_then(port_number),
            false => None,
        },
        algorithm: match annotation(ALGORITHM) {
            Some("random") => ALGORITHM_RANDOM,
            Some("maglev") => ALGORITHM_MAGLEV,
            Some("least-loaded") => ALGORITHM_LEAST,
            _ => ALGORITHM_DEFAULT,
        },
        forwarding: match annotation(FORWARDING) {
            Some("dsr") => Forwarding::Dsr,
            Some("hybrid") => Forwarding::Hybrid,
            _ => Forwarding::Snat,
        },
        announced_by: annotation(ANNOUNCED_BY).filter(|node| balanced && !node.is_empty()).map(Arc::from),
    })
}

fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

/// Addresses in order, each once.
fn addresses<'a>(texts: impl Iterator<Item = &'a String>) -> Box<[IpAddr]> {
    let mut addresses: Vec<IpAddr> = texts.filter_map(|ip| ip.parse().ok()).collect();
    addresses.sort();
    addresses.dedup();
    addresses.into()
}

/// Load balancer addresses that packets still carry when they reach a node: with `ipMode: Proxy` they do
/// not (KEP-1860).
fn ingress(object: &core::Service) -> Box<[IpAddr]> {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    let kept = ingress.iter().filter(|one| one.ip_mode.as_deref().is_none_or(|mode| mode == "VIP"));
    addresses(kept.filter_map(|one| one.ip.as_ref()))
}

/// Seconds of session affinity, 0 without.
fn affinity(spec: &core::ServiceSpec) -> u32 {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return 0;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds);
    seconds.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(AFFINITY_TIMEOUT_S)
}

/// An EndpointSlice; `None` when it holds no addresses or belongs to no Service.
pub fn slice(object: &discovery::EndpointSlice) -> Option<Slice> {
    let is_of_type: fn(&IpAddr) -> bool = match object.address_type.as_str() {
        "IPv4" => IpAddr::is_ipv4,
        "IPv6" => IpAddr::is_ipv6,
        _ => return None,
    };
    let service = object.labels().get(SERVICE_NAME)?;
    let namespace = object.namespace()?;
    let ports = object.ports.iter().flatten().filter_map(|port| {
        Some(ServicePort {
            name: port.name.clone().unwrap_or_default(),
            port: u16::try_from(port.port?).ok()?,
            protocol: Protocol::from_api(port.protocol.as_deref())?,
            node_port: 0,
        })
    });
    let endpoints = object.endpoints.iter().flatten().filter_map(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        // An absent condition means: ready, serving, not terminating (EndpointConditions).
        let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
        let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
        let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
        Some(SliceEndpoint {
            address: endpoint.addresses.first()?.parse().ok().filter(is_of_type)?,
            ready,
            serving,
            terminating,
            node: endpoint.node_name.as_deref().map(Arc::from),
            hints: hints(endpoint),
        })
    });
    Some(Slice {
        service: Arc::from(format!("{namespace}/{service}")),
        ports: ports.collect(),
        endpoints: endpoints.collect(),
    })
}

fn hints(endpoint: &discovery::Endpoint) -> Option<Box<Hints>> {
    let hints = endpoint.hints.as_ref()?;
    let zones = hints.for_zones.iter().flatten().map(|zone| Arc::from(zone.name.as_str())).collect();
    let nodes = hints.for_nodes.iter().flatten().map(|node| Arc::from(node.name.as_str())).collect();
    Some(Box::new(Hints { zones, nodes }))
}

/// A Node.
pub fn node(object: &core::Node) -> Node {
    let addresses = object.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let addresses = addresses
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse::<IpAddr>().ok())
        .collect();
    let spec = object.spec.as_ref();
    let all = spec.and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default();
    let single = spec.and_then(|spec| spec.pod_cidr.as_deref());
    let mut pod_cidrs: Vec<IpNet> =
        all.iter().map(String::as_str).chain(single).filter_map(|cidr| cidr.parse().ok()).collect();
    pod_cidrs.sort();
    pod_cidrs.dedup();
    let zone = object.labels().get(ZONE).filter(|zone| !zone.is_empty());
    Node { addresses, pod_cidrs, zone: zone.map(|zone| Arc::from(zone.as_str())) }
}
