//! PURE: API objects → the few fields that matter. Everything else is dropped at once, so that the
//! agent's memory is that of its maps.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::ResourceExt;

use crate::desired::{Node, Service, ServicePort, Slice, SliceEndpoint};
use crate::types::Protocol;

/// Label that names a slice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Services and slices with this label are another proxy's; headless Services need none.
pub const SELECTOR: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";

/// A Service; `None` for headless ones, ExternalName, and those without an IPv4 address.
pub fn service(object: &core::Service) -> Option<Service> {
    let spec = object.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let ips = spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter());
    let mut cluster_ips: Vec<Ipv4Addr> = ips.filter_map(|ip| ip.parse().ok()).collect();
    cluster_ips.sort();
    cluster_ips.dedup();
    if cluster_ips.is_empty() {
        return None;
    }
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        Some(ServicePort {
            name: port.name.clone().unwrap_or_default(),
            port: u16::try_from(port.port).ok()?,
            protocol: Protocol::from_api(port.protocol.as_deref())?,
        })
    });
    Some(Service {
        cluster_ips,
        ports: ports.collect(),
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
    })
}

/// An EndpointSlice; `None` when it holds no IPv4 addresses or belongs to no Service.
pub fn slice(object: &discovery::EndpointSlice) -> Option<Slice> {
    if object.address_type != "IPv4" {
        return None;
    }
    let service = object.labels().get(SERVICE_NAME)?;
    let namespace = object.namespace()?;
    let ports = object.ports.iter().flatten().filter_map(|port| {
        Some(ServicePort {
            name: port.name.clone().unwrap_or_default(),
            port: u16::try_from(port.port?).ok()?,
            protocol: Protocol::from_api(port.protocol.as_deref())?,
        })
    });
    let endpoints = object.endpoints.iter().flatten().filter_map(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        // An absent condition means: ready, serving, not terminating (EndpointConditions).
        let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
        let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
        let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
        Some(SliceEndpoint {
            address: endpoint.addresses.first()?.parse().ok()?,
            ready,
            serving_terminating: serving && terminating,
            node: endpoint.node_name.as_deref().map(Arc::from),
        })
    });
    Some(Slice {
        service: Arc::from(format!("{namespace}/{service}")),
        ports: ports.collect(),
        endpoints: endpoints.collect(),
    })
}

/// A Node.
pub fn node(object: &core::Node) -> Node {
    let addresses = object.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let addresses = addresses
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse::<IpAddr>().ok())
        .filter_map(|address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
        .collect();
    let spec = object.spec.as_ref();
    let all = spec.and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default();
    let single = spec.and_then(|spec| spec.pod_cidr.as_deref());
    let mut pod_cidrs: Vec<Ipv4Net> = all
        .iter()
        .map(String::as_str)
        .chain(single)
        .filter_map(|cidr| match cidr.parse() {
            Ok(IpNet::V4(cidr)) => Some(cidr),
            _ => None,
        })
        .collect();
    pod_cidrs.sort();
    pod_cidrs.dedup();
    Node { addresses, pod_cidrs }
}
