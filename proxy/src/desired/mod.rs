//! PURE: what the maps should hold, from Services, EndpointSlices, Nodes and pods' host ports.
//!
//! The rules are kube-proxy's (Kubernetes documentation, "Virtual IPs and Service Proxies"; KEP-1669 for
//! terminating endpoints; KEP-2086 for `internalTrafficPolicy`; KEP-2433 and KEP-3015 for hints). Work per
//! event grows with the one Service's ports and endpoints, not with the number of Services; only a change of
//! this node's own addresses or zone looks at all of them.

mod departed;
mod endpoints;
mod frontends;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use hawser_ebpf_common::endpoint::{
    IDENTITY_HOST, IDENTITY_PODS, IDENTITY_REMOTE_NODE, IDENTITY_SERVICES, IPCACHE_ON_LINK,
};
use ipnet::IpNet;

use crate::claims::Claims;
use crate::types::{FrontendSpec, L4Addr, PrefixSpec, Protocol};

pub use hawser_watch::ObjectName;

/// What matters of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// Its cluster addresses.
    pub cluster_ips: Box<[IpAddr]>,
    /// `spec.externalIPs`.
    pub external_ips: Box<[IpAddr]>,
    /// Addresses of its load balancer.
    pub balancer_ips: Box<[IpAddr]>,
    /// Its ports.
    pub ports: Box<[ServicePort]>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// Seconds of session affinity; 0 without.
    pub affinity_timeout_s: u32,
    /// Who may use the load balancer's addresses; everybody when empty.
    pub source_ranges: Arc<[IpNet]>,
    /// `healthCheckNodePort` of a load balancer with `externalTrafficPolicy: Local`.
    pub health_check_port: Option<u16>,
    /// `ALGORITHM_*`.
    pub algorithm: u8,
    /// How packets from outside reach other nodes' backends.
    pub forwarding: Forwarding,
    /// The node that answers for the load balancer's addresses on its link.
    pub announced_by: Option<Arc<str>>,
}

/// How packets from outside reach a backend on another node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Forwarding {
    /// With this node's address as their source.
    #[default]
    Snat,
    /// With the client's; the answers go straight back.
    Dsr,
    /// TCP as [`Self::Dsr`], all else as [`Self::Snat`].
    Hybrid,
}

/// One port of a Service or of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Name, empty when it has none.
    pub name: String,
    /// Port of the frontend, or of a slice's backends.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Its node port; 0 without.
    pub node_port: u16,
}

/// What matters of an EndpointSlice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slice {
    /// The Service it belongs to.
    pub service: ObjectName,
    /// Port of the backends by name of the Service's port.
    pub ports: Box<[ServicePort]>,
    /// The endpoints, all of one family.
    pub endpoints: Box<[SliceEndpoint]>,
}

impl Slice {
    /// The node of each endpoint that says one.
    fn nodes(&self) -> impl Iterator<Item = &Arc<str>> {
        self.endpoints.iter().filter_map(|endpoint| endpoint.node.as_ref())
    }
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its first address: the others are the same endpoint again.
    pub address: IpAddr,
    /// It may get new connections.
    pub ready: bool,
    /// It answers, whether it terminates or not.
    pub serving: bool,
    /// Its pod is being deleted.
    pub terminating: bool,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// Who should use it.
    pub hints: Option<Box<Hints>>,
}

impl SliceEndpoint {
    /// It may get new connections when none is ready.
    fn is_last_resort(&self) -> bool {
        self.serving && self.terminating
    }
}

/// Where an endpoint should be used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// In these zones.
    pub zones: Box<[Arc<str>]>,
    /// On these nodes.
    pub nodes: Box<[Arc<str>]>,
}

/// What matters of a Node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Its internal addresses, the primary one first.
    pub addresses: Vec<IpAddr>,
    /// Its pods' prefixes.
    pub pod_cidrs: Vec<IpNet>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
}

/// A port of this node that leads to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// The node's address; all of those of node ports when absent.
    pub host_ip: Option<IpAddr>,
    /// The node's port.
    pub host_port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// The pod's addresses, at most one of each family.
    pub pod_ips: Vec<IpAddr>,
    /// The pod's port.
    pub container_port: u16,
}

/// What the desired state needs to know of its own node.
#[derive(Debug, Clone, Default)]
pub struct Local {
    /// Name of this Node.
    pub node_name: String,
    /// Its addresses, which are known before the Node says them; the primary one of a family first.
    pub node_ips: Vec<IpAddr>,
    /// Subnets of the uplink: a node in one of them is reached without a router.
    pub links: Vec<IpNet>,
    /// Other nodes' pods are reached by tunnels.
    pub tunnel: bool,
    /// Addresses of Services.
    pub service_cidrs: Vec<IpNet>,
    /// Addresses that node ports are open on. Absent: the node's primary address of each family, and
    /// 127.0.0.1 for sockets of the node itself.
    pub node_port_addresses: Option<Vec<IpAddr>>,
}

/// What an event may have changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Frontends.
    pub frontends: Vec<L4Addr>,
    /// Prefixes.
    pub prefixes: Vec<IpNet>,
    /// Services.
    pub services: Vec<ObjectName>,
    /// Addresses that this node answers for, or did.
    pub announced: Vec<IpAddr>,
    /// Endpoints of a Service that its frontends will not have again.
    pub departed: Vec<(ObjectName, L4Addr)>,
}

impl Touched {
    /// Both.
    pub fn merge(&mut self, other: Self) {
        self.frontends.extend(other.frontends);
        self.prefixes.extend(other.prefixes);
        self.services.extend(other.services);
        self.announced.extend(other.announced);
        self.departed.extend(other.departed);
    }
}

/// The desired state.
#[derive(Debug)]
pub struct Desired {
    local: Local,
    /// This node's zone.
    zone: Option<Arc<str>>,
    /// Addresses of node ports, loopback included.
    node_ports_on: Vec<IpAddr>,
    services: HashMap<ObjectName, Service>,
    slices: HashMap<ObjectName, Slice>,
    /// Slices of a Service, which may not be there (yet).
    by_service: HashMap<ObjectName, Vec<ObjectName>>,
    /// Ports of this node by the pod they lead to.
    host_ports: HashMap<ObjectName, Vec<HostPort>>,
    frontends: Claims<L4Addr, ObjectName, FrontendSpec>,
    prefixes: Claims<IpNet, ObjectName, PrefixSpec>,
    /// Addresses that this node answers for.
    announced: Claims<IpAddr, ObjectName, ()>,
    /// How many endpoints the slices have on each node.
    endpoints_on: HashMap<Arc<str>, usize>,
    /// Nodes that were deleted while slices still lead to them, with their prefixes. These stay until the last such
    /// endpoint goes: the deletion and the slices come by different watches, and connections must not fail between.
    departed: HashMap<ObjectName, Vec<IpNet>>,
}

impl Desired {
    /// Nothing but what the node knows without the API.
    pub fn new(local: Local) -> Self {
        let here = |identity| PrefixSpec { node: None, identity, flags: 0 };
        let services = local.service_cidrs.iter().map(|cidr| (cidr.trunc(), here(IDENTITY_SERVICES)));
        let host = local.node_ips.iter().map(|address| (IpNet::from(*address), here(IDENTITY_HOST)));
        let mut prefixes = Claims::default();
        // No object has an empty name, and none is smaller: nobody can claim these away.
        prefixes.set(&ObjectName::from(""), services.chain(host).collect());
        let node_ports_on = frontends::node_port_addresses(&local, &[]);
        Self {
            local,
            zone: None,
            node_ports_on,
            services: HashMap::new(),
            slices: HashMap::new(),
            by_service: HashMap::new(),
            host_ports: HashMap::new(),
            frontends: Claims::default(),
            prefixes,
            announced: Claims::default(),
            endpoints_on: HashMap::new(),
            departed: HashMap::new(),
        }
    }

    /// A Service was written, or is gone (`None`).
    pub fn set_service(&mut self, name: &ObjectName, service: Option<Service>) -> Touched {
        match service {
            Some(service) if self.services.get(name) == Some(&service) => return Touched::default(),
            Some(service) => self.services.insert(name.clone(), service),
            None => self.services.remove(name),
        };
        self.refresh(name)
    }

    /// An EndpointSlice was written, or is gone (`None`).
    pub fn set_slice(&mut self, name: &ObjectName, slice: Option<Slice>) -> Touched {
        if slice.is_some() && self.slices.get(name) == slice.as_ref() {
            return Touched::default();
        }
        let mut touched = Touched::default();
        let new_service = slice.as_ref().map(|slice| slice.service.clone());
        for node in slice.iter().flat_map(Slice::nodes) {
            *self.endpoints_on.entry(node.clone()).or_default() += 1;
        }
        let old = match slice {
            Some(slice) => self.slices.insert(name.clone(), slice),
            None => self.slices.remove(name),
        };
        let released = self.release(old.as_ref());
        let departed = old.as_ref().map(|old| self.departed_with(old)).unwrap_or_default();
        if let Some(old) = old
            && new_service.as_ref() != Some(&old.service)
        {
            if let Some(slices) = self.by_service.get_mut(&old.service) {
                slices.retain(|other| other != name);
                if slices.is_empty() {
                    self.by_service.remove(&old.service);
                }
            }
            touched = self.refresh(&old.service);
        }
        if let Some(service) = new_service {
            let slices = self.by_service.entry(service.clone()).or_default();
            if !slices.contains(name) {
                slices.push(name.clone());
            }
            touched.merge(self.refresh(&service));
        }
        touched.prefixes.extend(released);
        touched.departed.extend(departed);
        touched
    }

    /// Counts an old slice's endpoints no longer. Returns the prefixes of deleted nodes that nothing leads to now.
    fn release(&mut self, old: Option<&Slice>) -> Vec<IpNet> {
        let mut released = Vec::new();
        for node in old.into_iter().flat_map(Slice::nodes) {
            let Some(count) = self.endpoints_on.get_mut(node) else { continue };
            *count -= 1;
            if *count == 0 {
                self.endpoints_on.remove(node);
                if self.departed.remove(node).is_some() {
                    released.extend(self.prefixes.set(node, Vec::new()));
                }
            }
        }
        released
    }

    /// A Node was written, or is gone (`None`).
    pub fn set_node(&mut self, name: &ObjectName, node: Option<&Node>) -> Touched {
        let local = **name == *self.local.node_name;
        let mut touched = match node {
            Some(node) if local => self.set_own_node(node),
            _ => Touched::default(),
        };
        let mut prefixes = Vec::new();
        match node {
            None if self.endpoints_on.contains_key(name) => {
                let held = self.prefixes.of(name).to_vec();
                self.departed.insert(name.clone(), held);
            }
            None => prefixes = self.prefixes.set(name, Vec::new()),
            Some(node) => {
                self.departed.remove(name);
                let claims = self.node_prefixes(node, local);
                // A node that is there comes before one that is not.
                let overtaken = |held: &Vec<IpNet>| held.iter().any(|p| claims.iter().any(|(c, _)| c == p));
                let lost: Vec<_> = self.departed.extract_if(|_, held| overtaken(held)).collect();
                for (departed, _) in lost {
                    prefixes.extend(self.prefixes.set(&departed, Vec::new()));
                }
                prefixes.extend(self.prefixes.set(name, claims));
            }
        }
        touched.prefixes.extend(prefixes);
        touched
    }

    /// This node's zone and addresses are part of every Service's rules.
    fn set_own_node(&mut self, node: &Node) -> Touched {
        let node_ports_on = frontends::node_port_addresses(&self.local, &node.addresses);
        let mut touched = Touched::default();
        if self.zone == node.zone && self.node_ports_on == node_ports_on {
            return touched;
        }
        self.zone = node.zone.clone();
        self.node_ports_on = node_ports_on;
        let services: Vec<ObjectName> = self.services.keys().cloned().collect();
        services.iter().for_each(|name| touched.merge(self.refresh(name)));
        let pods: Vec<ObjectName> = self.host_ports.keys().cloned().collect();
        pods.iter().for_each(|name| touched.merge(self.refresh_host_ports(name)));
        touched
    }

    /// The ports of this node that lead to a pod, or none any more. `pod` is any name of the pod's sandbox.
    pub fn set_host_ports(&mut self, pod: &ObjectName, ports: Vec<HostPort>) -> Touched {
        match ports.is_empty() {
            true => drop(self.host_ports.remove(pod)),
            false => drop(self.host_ports.insert(pod.clone(), ports)),
        }
        self.refresh_host_ports(pod)
    }

    /// What a frontend should lead to; `None` when there should be no such frontend.
    pub fn frontend(&self, frontend: &L4Addr) -> Option<&FrontendSpec> {
        self.frontends.get(frontend)
    }

    /// The Service that owns a frontend.
    pub fn owner(&self, frontend: &L4Addr) -> Option<&ObjectName> {
        self.frontends.owner(frontend)
    }

    /// All frontends.
    pub fn frontends(&self) -> impl Iterator<Item = (&L4Addr, &FrontendSpec)> {
        self.frontends.iter()
    }

    /// What should be known of a prefix.
    pub fn prefix(&self, prefix: &IpNet) -> Option<&PrefixSpec> {
        self.prefixes.get(prefix)
    }

    /// All prefixes.
    pub fn prefixes(&self) -> impl Iterator<Item = (&IpNet, &PrefixSpec)> {
        self.prefixes.iter()
    }

    /// Port and answer of a Service's health check: how many of its ready endpoints are on this node.
    /// `None` when it has none.
    pub fn health_check(&self, name: &ObjectName) -> Option<(u16, usize)> {
        let port = self.services.get(name)?.health_check_port?;
        let ready = self
            .slices_of(name)
            .flat_map(|slice| &slice.endpoints)
            .filter(|endpoint| endpoint.ready && endpoint.node.as_deref() == Some(&*self.local.node_name));
        let addresses: std::collections::BTreeSet<IpAddr> = ready.map(|endpoint| endpoint.address).collect();
        Some((port, addresses.len()))
    }

    /// Whether this node answers for an address on its link.
    pub fn announces(&self, address: &IpAddr) -> bool {
        self.announced.get(address).is_some()
    }

    /// All addresses that this node answers for.
    pub fn announced(&self) -> impl Iterator<Item = &IpAddr> {
        self.announced.iter().map(|(address, ())| address)
    }

    /// The frontends that a Service claims.
    pub fn frontends_of(&self, service: &ObjectName) -> &[L4Addr] {
        self.frontends.of(service)
    }

    /// Names of all Services.
    pub fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.services.keys()
    }

    fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = &Slice> {
        self.by_service.get(service).into_iter().flatten().filter_map(|name| self.slices.get(name))
    }

    fn refresh(&mut self, name: &ObjectName) -> Touched {
        let claims = match self.services.get(name) {
            Some(service) => self.service_frontends(name, service),
            None => Vec::new(),
        };
        Touched {
            frontends: self.frontends.set(name, claims),
            services: vec![name.clone()],
            announced: self.announced.set(name, self.addresses_to_announce(name)),
            ..Touched::default()
        }
    }

    /// A Service's load balancer addresses, when this node is to answer for them.
    fn addresses_to_announce(&self, name: &ObjectName) -> Vec<(IpAddr, ())> {
        let is_here = |service: &&Service| service.announced_by.as_deref() == Some(&*self.local.node_name);
        let service = self.services.get(name).filter(is_here);
        service.into_iter().flat_map(|service| &service.balancer_ips).map(|address| (*address, ())).collect()
    }

    fn node_prefixes(&self, node: &Node, local: bool) -> Vec<(IpNet, PrefixSpec)> {
        let mut claims = Vec::with_capacity(node.addresses.len() + node.pod_cidrs.len());
        let identity = if local { IDENTITY_HOST } else { IDENTITY_REMOTE_NODE };
        let end = if self.local.tunnel && !local { self.tunnel_end(node) } else { None };
        // What goes over IPv6 is IPv6: the prefixes of IPv4 have no room for another end.
        let end_for = |to: &IpAddr| end.filter(|end| to.is_ipv6() || end.is_ipv4());
        claims.extend(node.addresses.iter().map(|to| {
            let via = end_for(to).filter(|_| to.is_ipv6()).unwrap_or(*to);
            (IpNet::from(*to), self.behind(via, identity, local))
        }));
        for cidr in &node.pod_cidrs {
            let known = if local { &self.local.node_ips } else { &node.addresses };
            // Pods of one family are reached by the node's primary address of that family.
            let same = |address: &&IpAddr| address.is_ipv4() == cidr.addr().is_ipv4();
            let Some(via) = known.iter().chain(&node.addresses).find(same) else { continue };
            claims.push((
                cidr.trunc(),
                self.behind(end_for(&cidr.addr()).unwrap_or(*via), IDENTITY_PODS, local),
            ));
        }
        claims
    }

    /// The address of another node at which its tunnel ends: of IPv4 if both nodes have it, else of IPv6.
    fn tunnel_end(&self, node: &Node) -> Option<IpAddr> {
        let here = |v6| self.local.node_ips.iter().any(|address| address.is_ipv6() == v6);
        let there = |v6| node.addresses.iter().find(|address| address.is_ipv6() == v6);
        [false, true].into_iter().filter(|v6| here(*v6)).find_map(there).copied()
    }

    /// What lies behind a node's address.
    fn behind(&self, node: IpAddr, identity: u32, local: bool) -> PrefixSpec {
        // Behind a tunnel the address may be of the other family than the packets: the routes know the way.
        let on_link =
            !local && !self.local.tunnel && self.local.links.iter().any(|link| link.contains(&node));
        PrefixSpec {
            node: (!local).then_some(node),
            identity,
            flags: if on_link { IPCACHE_ON_LINK } else { 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn node(number: u8) -> Node {
        Node {
            addresses: vec![Ipv4Addr::new(172, 16, 0, number).into()],
            pod_cidrs: vec![IpNet::new_assert(Ipv4Addr::new(10, 244, number, 0).into(), 24)],
            zone: None,
        }
    }

    fn slice_on(nodes: &[&str]) -> Slice {
        let endpoint = |node: &&str| SliceEndpoint {
            address: Ipv4Addr::new(10, 244, 2, 7).into(),
            ready: true,
            serving: true,
            terminating: false,
            node: Some(Arc::from(*node)),
            hints: None,
        };
        Slice {
            service: "ns/web".into(),
            ports: Box::default(),
            endpoints: nodes.iter().map(endpoint).collect(),
        }
    }

    fn desired() -> Desired {
        Desired::new(Local { node_name: "node-1".into(), ..Local::default() })
    }

    #[test]
    fn a_deleted_node_is_reached_until_no_slice_leads_to_it() {
        let mut desired = desired();
        let (name, pods) = (ObjectName::from("node-2"), node(2).pod_cidrs[0]);
        desired.set_node(&name, Some(&node(2)));
        desired.set_slice(&"ns/a".into(), Some(slice_on(&["node-2", "node-2"])));
        desired.set_slice(&"ns/b".into(), Some(slice_on(&["node-2"])));
        assert_eq!(desired.set_node(&name, None), Touched::default());
        assert!(desired.prefix(&pods).is_some());
        assert!(desired.set_slice(&"ns/a".into(), Some(slice_on(&["node-3"]))).prefixes.is_empty());
        let touched = desired.set_slice(&"ns/b".into(), None).prefixes;
        assert!(touched.contains(&pods) && desired.prefix(&pods).is_none());
        assert_eq!(desired.endpoints_on.len(), 1);
        assert!(desired.departed.is_empty());
    }

    #[test]
    fn tunnels_end_at_an_address_of_ipv4_if_there_is_one() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let net = |text: &str| text.parse::<IpNet>().expect("a prefix");
        let dual = ["172.16.0.2", "fd00::2"];
        // Addresses of this node and of the other; whether there are tunnels; where the other's pods are.
        type Case<'a> = (&'a [&'a str], &'a [&'a str], bool, [Option<&'a str>; 2]);
        let cases: [Case<'_>; 5] = [
            (&["fd00::1"], &dual[1..], true, [None, Some("fd00::2")]),
            (&["fd00::1"], &dual, true, [Some("172.16.0.2"), Some("fd00::2")]),
            (&["172.16.0.1", "fd00::1"], &dual, false, [Some("172.16.0.2"), Some("fd00::2")]),
            (&["172.16.0.1", "fd00::1"], &dual, true, [Some("172.16.0.2"), Some("172.16.0.2")]),
            (&["172.16.0.1"], &dual[..1], true, [Some("172.16.0.2"), None]),
        ];
        for (here, there, tunnel, ends) in cases {
            let mut desired = Desired::new(Local {
                node_name: "node-1".into(),
                node_ips: here.iter().map(|address| ip(address)).collect(),
                tunnel,
                ..Local::default()
            });
            let other = Node {
                addresses: there.iter().map(|address| ip(address)).collect(),
                pod_cidrs: vec![net("10.244.2.0/24"), net("fd01::/64")],
                zone: None,
            };
            desired.set_node(&"node-2".into(), Some(&other));
            for (prefix, end) in other.pod_cidrs.iter().zip(ends) {
                let at = desired.prefix(prefix).and_then(|spec| spec.node);
                assert_eq!(at, end.map(ip), "{here:?} {prefix}");
            }
        }
    }

    #[test]
    fn a_deleted_node_without_endpoints_goes_at_once() {
        let mut desired = desired();
        desired.set_node(&"node-2".into(), Some(&node(2)));
        assert!(desired.set_node(&"node-2".into(), None).prefixes.contains(&node(2).pod_cidrs[0]));
    }

    #[test]
    fn a_new_node_takes_a_deleted_ones_prefix() {
        let mut desired = desired();
        desired.set_node(&"a-gone".into(), Some(&node(2)));
        desired.set_slice(&"ns/a".into(), Some(slice_on(&["a-gone"])));
        desired.set_node(&"a-gone".into(), None);
        let new = Node { addresses: vec![Ipv4Addr::new(172, 16, 0, 9).into()], ..node(2) };
        desired.set_node(&"node-9".into(), Some(&new));
        let entry = desired.prefix(&node(2).pod_cidrs[0]).copied();
        assert_eq!(entry.and_then(|entry| entry.node), Some(new.addresses[0]));
        assert!(desired.departed.is_empty());
    }
}
