//! PURE reference model of the load balancer.
//!
//! Written from the rules of the Service API (Kubernetes documentation: "Service", "EndpointSlices",
//! "Virtual IPs and Service Proxies", "Service Internal Traffic Policy", "Topology Aware Routing"; KEP-1669,
//! KEP-1860, KEP-3015) and not from the dataplane's code, which it judges. It is as slow and as plain as it
//! can be: no index, no state, no update; a question is answered by looking at every object.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

/// `spec.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceType {
    /// ClusterIP.
    ClusterIp,
    /// NodePort, with a ClusterIP.
    NodePort,
    /// LoadBalancer, with node ports and a ClusterIP.
    LoadBalancer,
    /// A name in DNS and nothing else.
    ExternalName,
}

/// `protocol` of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Name, or empty.
    pub name: String,
    /// Number.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Node port.
    pub node_port: Option<u16>,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Type.
    pub kind: ServiceType,
    /// `spec.clusterIPs`; empty in place of "None".
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress`: the address, and whether its `ipMode` is Proxy.
    pub ingress: Vec<(IpAddr, bool)>,
    /// Ports.
    pub ports: Vec<Port>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `loadBalancerSourceRanges`: address and length.
    pub source_ranges: Vec<(IpAddr, u8)>,
    /// `sessionAffinity: ClientIP`.
    pub affinity: bool,
    /// The label `service.kubernetes.io/service-proxy-name` is there.
    pub other_proxy: bool,
}

/// An EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Label `kubernetes.io/service-name`.
    pub service: Option<String>,
    /// The label `service.kubernetes.io/headless` is there.
    pub headless: bool,
    /// `addressType` is IPv6.
    pub v6: bool,
    /// Ports: name, port, protocol.
    pub ports: Vec<(String, Option<u16>, Protocol)>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// An endpoint of a slice. An absent condition is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses, which are all the same endpoint.
    pub addresses: Vec<IpAddr>,
    /// Condition `ready`.
    pub ready: Option<bool>,
    /// Condition `serving`.
    pub serving: Option<bool>,
    /// Condition `terminating`.
    pub terminating: Option<bool>,
    /// The node it is on.
    pub node: Option<String>,
    /// `hints.forZones`.
    pub for_zones: Vec<String>,
    /// `hints.forNodes`.
    pub for_nodes: Vec<String>,
}

/// The node on which is decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// The primary address of each family.
    pub addresses: Vec<IpAddr>,
}

/// Everything that the API holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct World {
    /// The node.
    pub node: Node,
    /// Services.
    pub services: Vec<Service>,
    /// EndpointSlices.
    pub slices: Vec<Slice>,
}

/// Who opens a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// A socket in a pod. Its address is known only once it sends packets.
    PodSocket,
    /// A socket of the node itself.
    NodeSocket,
    /// A packet of somebody inside the cluster.
    Inside(IpAddr),
    /// A packet of somebody outside the cluster.
    Outside(IpAddr),
}

/// What must become of a new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is not to a Service: leave it alone.
    NotAService,
    /// The Service has nobody to answer: refuse.
    Refuse,
    /// Say nothing.
    Drop,
    /// It goes to one of these.
    OneOf(BTreeSet<(IpAddr, u16)>),
}

/// By what a Service is addressed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    ClusterIp,
    ExternalIp,
    Balancer,
    NodePort,
}

impl World {
    /// Decides about a connection.
    pub fn decide(&self, from: From, address: IpAddr, port: u16, protocol: Protocol) -> Decision {
        let Some((service, port, kind)) = self.addressed(address, port, protocol) else {
            return Decision::NotAService;
        };
        if address == IpAddr::V4(Ipv4Addr::LOCALHOST) && from != From::NodeSocket {
            // Everybody else has a loopback of their own.
            return Decision::NotAService;
        }
        if kind == Kind::Balancer {
            let same = |range: &&(IpAddr, u8)| range.0.is_ipv4() == address.is_ipv4();
            let ranges: Vec<_> = service.source_ranges.iter().filter(same).collect();
            let within = |one: &IpAddr| ranges.iter().any(|range| contains(range, one));
            let allowed = match from {
                _ if ranges.is_empty() => true,
                From::PodSocket => return Decision::NotAService,
                From::NodeSocket => self.node.addresses.iter().any(within),
                From::Inside(source) | From::Outside(source) => within(&source),
            };
            if !allowed {
                return Decision::Drop;
            }
        }
        let v6 = address.is_ipv6();
        let local = match kind {
            Kind::ClusterIp => service.internal_local,
            _ => service.external_local && matches!(from, From::Outside(_)),
        };
        let usable = self.usable(service, port, v6, local);
        if !usable.is_empty() {
            return Decision::OneOf(usable);
        }
        let elsewhere = || {
            let all = self.endpoints(service, port, v6);
            all.iter().any(|(_, one)| one.is_ready() || one.serves_last())
        };
        if local && elsewhere() { Decision::Drop } else { Decision::Refuse }
    }

    /// Whether a client keeps its backend at this frontend.
    pub fn has_affinity(&self, address: IpAddr, port: u16, protocol: Protocol) -> bool {
        self.addressed(address, port, protocol).is_some_and(|(service, ..)| service.affinity)
    }

    /// The Service and port that an address and port mean.
    fn addressed(&self, address: IpAddr, port: u16, protocol: Protocol) -> Option<(&Service, &Port, Kind)> {
        // Two Services can claim one address only for a moment; then the smaller name is right.
        let mut claims = Vec::new();
        for service in &self.services {
            if service.kind == ServiceType::ExternalName || service.other_proxy {
                continue;
            }
            let speaks = service.cluster_ips.iter().any(|ip| ip.is_ipv4() == address.is_ipv4());
            if !speaks {
                continue;
            }
            if let Some((port, kind)) = self.port_of(service, address, port, protocol) {
                claims.push((service, port, kind));
            }
        }
        claims.sort_by_key(|(service, ..)| format!("{}/{}", service.namespace, service.name));
        claims.into_iter().next()
    }

    fn port_of<'a>(
        &self,
        service: &'a Service,
        address: IpAddr,
        number: u16,
        protocol: Protocol,
    ) -> Option<(&'a Port, Kind)> {
        let balanced = service.kind == ServiceType::LoadBalancer;
        let on_node = service.kind == ServiceType::NodePort || balanced;
        for port in service.ports.iter().filter(|port| port.protocol == protocol) {
            if port.port == number {
                if service.cluster_ips.contains(&address) {
                    return Some((port, Kind::ClusterIp));
                }
                if service.external_ips.contains(&address) {
                    return Some((port, Kind::ExternalIp));
                }
                if balanced && service.ingress.contains(&(address, false)) {
                    return Some((port, Kind::Balancer));
                }
            }
            let own = self.node.addresses.contains(&address) || address == Ipv4Addr::LOCALHOST;
            if on_node && port.node_port == Some(number) && own {
                return Some((port, Kind::NodePort));
            }
        }
        None
    }

    /// All endpoints of a Service's port, of one family.
    fn endpoints(&self, service: &Service, port: &Port, v6: bool) -> Vec<((IpAddr, u16), &Endpoint)> {
        let mut all = Vec::new();
        for slice in &self.slices {
            let belongs = slice.namespace == service.namespace
                && slice.service.as_deref() == Some(&service.name)
                && !slice.headless
                && slice.v6 == v6;
            if !belongs {
                continue;
            }
            for (name, target, protocol) in &slice.ports {
                let Some(target) = target else { continue };
                if *name != port.name || *protocol != port.protocol {
                    continue;
                }
                for endpoint in &slice.endpoints {
                    if let Some(address) = endpoint.addresses.first() {
                        all.push(((*address, *target), endpoint));
                    }
                }
            }
        }
        all
    }

    fn usable(&self, service: &Service, port: &Port, v6: bool, local: bool) -> BTreeSet<(IpAddr, u16)> {
        let mut all = self.endpoints(service, port, v6);
        if local {
            all.retain(|(_, endpoint)| endpoint.node.as_ref() == Some(&self.node.name));
        }
        let ready: Vec<_> = all.iter().filter(|(_, endpoint)| endpoint.is_ready()).collect();
        if ready.is_empty() {
            let last = all.iter().filter(|(_, endpoint)| endpoint.serves_last());
            return last.map(|(target, _)| *target).collect();
        }
        let everybody = |has: &dyn Fn(&Endpoint) -> bool| ready.iter().all(|(_, endpoint)| has(endpoint));
        let only = |means: &dyn Fn(&Endpoint) -> bool| -> BTreeSet<(IpAddr, u16)> {
            ready.iter().filter(|(_, endpoint)| means(endpoint)).map(|(target, _)| *target).collect()
        };
        if !local && everybody(&|endpoint| !endpoint.for_nodes.is_empty()) {
            let here = only(&|endpoint| endpoint.for_nodes.contains(&self.node.name));
            if !here.is_empty() {
                return here;
            }
        }
        if !local
            && everybody(&|endpoint| !endpoint.for_zones.is_empty())
            && let Some(zone) = &self.node.zone
        {
            let near = only(&|endpoint| endpoint.for_zones.contains(zone));
            if !near.is_empty() {
                return near;
            }
        }
        only(&|_| true)
    }
}

impl Endpoint {
    /// "A nil value should be interpreted as true" (EndpointConditions.ready).
    fn is_ready(&self) -> bool {
        self.ready.unwrap_or(true)
    }

    /// Usable when nobody is ready. "If nil, consumers should defer to the ready condition"
    /// (EndpointConditions.serving), "a nil value should be interpreted as false" (terminating).
    fn serves_last(&self) -> bool {
        !self.is_ready() && self.serving.unwrap_or(self.is_ready()) && self.terminating.unwrap_or(false)
    }
}

/// Bit by bit.
fn contains((prefix, length): &(IpAddr, u8), address: &IpAddr) -> bool {
    let bits = |address: &IpAddr| match address {
        IpAddr::V4(address) => (u128::from(u32::from(*address)) << 96, 32),
        IpAddr::V6(address) => (u128::from(*address), 128),
    };
    let ((prefix, width), (address, other)) = (bits(prefix), bits(address));
    let differ = (0..u32::from(*length)).any(|bit| (prefix ^ address) >> (127 - bit) & 1 == 1);
    width == other && !differ
}
