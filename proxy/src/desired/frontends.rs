//! Which frontends a Service, or a pod's host ports, have on this node.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use hawser_ebpf_common::lb::{
    KIND_CLUSTER_IP, KIND_EXTERNAL_IP, KIND_HOST_PORT, KIND_LOAD_BALANCER, KIND_NODE_PORT, SERVICE_AFFINITY,
    SERVICE_DENY_NODE, SERVICE_DROP_IF_EMPTY, SERVICE_DSR, SERVICE_EXTERNAL_LOCAL, SERVICE_INTERNAL_LOCAL,
    SERVICE_LOOPBACK, SERVICE_SOURCE_RANGES, SERVICE_TWO_SCOPES,
};
use ipnet::IpNet;

use super::endpoints::Usable;
use super::{Desired, Forwarding, Local, ObjectName, Service, ServicePort, Touched};
use crate::types::{Backends, Family, FrontendSpec, L4Addr, Protocol};

/// Where sockets of the node expect its node ports too, as with kube-proxy in its iptables mode.
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Addresses that node ports are open on. `node` is what the Node object says.
pub(super) fn node_port_addresses(local: &Local, node: &[IpAddr]) -> Vec<IpAddr> {
    if let Some(given) = &local.node_port_addresses {
        return given.clone();
    }
    let known = || local.node_ips.iter().chain(node).copied();
    let primary = [known().find(IpAddr::is_ipv4), known().find(IpAddr::is_ipv6)];
    primary.into_iter().flatten().chain([LOOPBACK]).collect()
}

impl Desired {
    pub(super) fn service_frontends(
        &self,
        name: &ObjectName,
        service: &Service,
    ) -> Vec<(L4Addr, FrontendSpec)> {
        let mut claims = Vec::with_capacity(service.ports.len() * service.cluster_ips.len());
        for port in &service.ports {
            for family in [Family::V4, Family::V6] {
                self.port_frontends(name, service, port, family, &mut claims);
            }
        }
        claims
    }

    fn port_frontends(
        &self,
        name: &ObjectName,
        service: &Service,
        port: &ServicePort,
        family: Family,
        claims: &mut Vec<(L4Addr, FrontendSpec)>,
    ) {
        // A Service speaks a family when it has a cluster address of it.
        let of_family = |address: &&IpAddr| Family::of(**address) == family;
        if !service.cluster_ips.iter().any(|address| of_family(&address)) {
            return;
        }
        let usable = self.usable(name, port, family, service.internal_local || service.external_local);
        let common = FrontendSpec {
            algorithm: service.algorithm,
            flags: if service.affinity_timeout_s > 0 { SERVICE_AFFINITY } else { 0 },
            affinity_timeout_s: service.affinity_timeout_s,
            ..FrontendSpec::default()
        };
        let internal = FrontendSpec {
            kind: KIND_CLUSTER_IP,
            flags: common.flags
                | if service.internal_local { SERVICE_INTERNAL_LOCAL | drop_if_empty(&usable) } else { 0 },
            backends: if service.internal_local { usable.local.clone() } else { usable.cluster.clone() },
            ..common.clone()
        };
        let external = external_spec(service, port.protocol, &usable, common);
        let mut claim = |address: &IpAddr, number: u16, spec: FrontendSpec| {
            claims.push((L4Addr::new(*address, number, port.protocol), spec));
        };
        for address in service.cluster_ips.iter().filter(of_family) {
            claim(address, port.port, internal.clone());
        }
        for address in service.external_ips.iter().filter(of_family) {
            claim(address, port.port, FrontendSpec { kind: KIND_EXTERNAL_IP, ..external.clone() });
        }
        for address in service.balancer_ips.iter().filter(of_family) {
            let spec = FrontendSpec { kind: KIND_LOAD_BALANCER, ..external.clone() };
            claim(address, port.port, self.with_source_ranges(service, family, spec));
        }
        if port.node_port == 0 {
            return;
        }
        for address in self.node_ports_on.iter().filter(of_family) {
            let flags = external.flags | loopback_flag(address);
            claim(address, port.node_port, FrontendSpec { kind: KIND_NODE_PORT, flags, ..external.clone() });
        }
    }

    /// Ranges of the other family say nothing about this one.
    fn with_source_ranges(&self, service: &Service, family: Family, spec: FrontendSpec) -> FrontendSpec {
        let ranges: Arc<[IpNet]> = service
            .source_ranges
            .iter()
            .filter(|range| Family::of(range.addr()) == family)
            .map(IpNet::trunc)
            .collect();
        if ranges.is_empty() {
            return spec;
        }
        let own = self.node_ports_on.iter().filter(|address| !address.is_loopback());
        let node_may = own.clone().any(|own| ranges.iter().any(|range| range.contains(own)));
        let deny = if node_may { 0 } else { SERVICE_DENY_NODE };
        FrontendSpec { flags: spec.flags | SERVICE_SOURCE_RANGES | deny, source_ranges: ranges, ..spec }
    }

    pub(super) fn refresh_host_ports(&mut self, pod: &ObjectName) -> Touched {
        let mut claims = Vec::new();
        for port in self.host_ports.get(pod).into_iter().flatten() {
            let given = port.host_ip.filter(|address| !address.is_unspecified());
            let on: &[IpAddr] = given.as_ref().map_or(&self.node_ports_on, std::slice::from_ref);
            for pod_ip in &port.pod_ips {
                let backend = L4Addr::new(*pod_ip, port.container_port, port.protocol);
                let backends: Backends = Arc::from([(backend, 0)]);
                for address in on.iter().filter(|address| address.is_ipv4() == pod_ip.is_ipv4()) {
                    let spec = FrontendSpec {
                        kind: KIND_HOST_PORT,
                        flags: loopback_flag(address),
                        backends: backends.clone(),
                        ..FrontendSpec::default()
                    };
                    claims.push((L4Addr::new(*address, port.host_port, port.protocol), spec));
                }
            }
        }
        // A pod's name has one slash, as a Service's; this makes the owner another one.
        let owner = ObjectName::from(format!("{pod}/hostPort"));
        Touched { frontends: self.frontends.set(&owner, claims), ..Touched::default() }
    }
}

fn loopback_flag(address: &IpAddr) -> u32 {
    if address.is_loopback() { SERVICE_LOOPBACK } else { 0 }
}

/// Under a policy of Local: while another node has endpoints, nobody is told that there are none. A client, or the load
/// balancer before it, is to try again or ask elsewhere.
fn drop_if_empty(usable: &Usable) -> u32 {
    if usable.anywhere { SERVICE_DROP_IF_EMPTY } else { 0 }
}

/// What is common to a Service's frontends that the world outside can reach. From inside the cluster their
/// policy is always Cluster: kube-proxy calls that short-circuiting.
fn external_spec(
    service: &Service,
    protocol: Protocol,
    usable: &Usable,
    common: FrontendSpec,
) -> FrontendSpec {
    let dsr = match service.forwarding {
        Forwarding::Snat => false,
        Forwarding::Dsr => true,
        Forwarding::Hybrid => protocol == Protocol::Tcp,
    };
    let mut flags = common.flags | if dsr { SERVICE_DSR } else { 0 };
    let mut external = Backends::default();
    if service.external_local {
        flags |= SERVICE_EXTERNAL_LOCAL | SERVICE_TWO_SCOPES | drop_if_empty(usable);
        external = usable.local.clone();
    }
    FrontendSpec { flags, backends: usable.cluster.clone(), external, ..common }
}
