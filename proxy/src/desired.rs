//! PURE: what the maps should hold, from Services, EndpointSlices and Nodes.
//!
//! The rules are kube-proxy's for ClusterIP (Kubernetes documentation, "Virtual IPs and Service
//! Proxies"; KEP-1669 for terminating endpoints; KEP-2086 for `internalTrafficPolicy`). Work per event
//! grows with the one Service's ports and endpoints, not with the number of Services.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use hawser_ebpf_common::endpoint::{
    IDENTITY_HOST, IDENTITY_PODS, IDENTITY_REMOTE_NODE, IDENTITY_SERVICES, IPCACHE_ON_LINK, IpcacheEntry4,
};
use hawser_ebpf_common::lb::{BACKEND_TERMINATING, SERVICE_INTERNAL_LOCAL};
use ipnet::Ipv4Net;

use crate::claims::Claims;
use crate::types::{FrontendSpec, L4Addr, Protocol, address_be};

pub use hawser_watch::ObjectName;

/// What matters of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// Its IPv4 cluster addresses.
    pub cluster_ips: Vec<Ipv4Addr>,
    /// Its ports of translated protocols.
    pub ports: Vec<ServicePort>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Name, empty when it has none.
    pub name: String,
    /// Port of the frontend.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// What matters of an EndpointSlice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slice {
    /// The Service it belongs to.
    pub service: ObjectName,
    /// Port of the backends by name of the Service's port.
    pub ports: Vec<ServicePort>,
    /// The endpoints.
    pub endpoints: Vec<SliceEndpoint>,
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
    pub address: Ipv4Addr,
    /// It may get new connections.
    pub ready: bool,
    /// It may get them when none is ready, while it terminates.
    pub serving_terminating: bool,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
}

/// What matters of a Node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Its internal addresses, the primary one first.
    pub addresses: Vec<Ipv4Addr>,
    /// Its pods' prefixes.
    pub pod_cidrs: Vec<Ipv4Net>,
}

/// What the desired state needs to know of its own node.
#[derive(Debug, Clone)]
pub struct Local {
    /// Name of this Node.
    pub node_name: String,
    /// Its address, which is known before the Node says it.
    pub node_ip: Option<Ipv4Addr>,
    /// Subnet of the uplink: a node in it is reached without a router.
    pub link: Option<Ipv4Net>,
    /// Addresses of Services.
    pub service_cidr: Option<Ipv4Net>,
}

/// What an event may have changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Frontends.
    pub frontends: Vec<L4Addr>,
    /// Prefixes.
    pub prefixes: Vec<Ipv4Net>,
}

/// The desired state.
#[derive(Debug)]
pub struct Desired {
    local: Local,
    services: HashMap<ObjectName, Service>,
    slices: HashMap<ObjectName, Slice>,
    /// Slices of a Service, which may not be there (yet).
    by_service: HashMap<ObjectName, Vec<ObjectName>>,
    frontends: Claims<L4Addr, ObjectName, FrontendSpec>,
    prefixes: Claims<Ipv4Net, ObjectName, IpcacheEntry4>,
    /// How many endpoints the slices have on each node.
    endpoints_on: HashMap<Arc<str>, usize>,
    /// Nodes that were deleted while slices still lead to them, with their prefixes. These stay until the last such
    /// endpoint goes: the deletion and the slices come by different watches, and connections must not fail between.
    departed: HashMap<ObjectName, Vec<Ipv4Net>>,
}

impl Desired {
    /// Nothing but what the node knows without the API.
    pub fn new(local: Local) -> Self {
        let here = |identity| IpcacheEntry4 { node_ip_be: 0, identity, flags: 0 };
        let services = local.service_cidr.map(|cidr| (cidr.trunc(), here(IDENTITY_SERVICES)));
        let host = local.node_ip.map(|address| (Ipv4Net::from(address), here(IDENTITY_HOST)));
        let mut prefixes = Claims::default();
        // No object has an empty name, and none is smaller: nobody can claim these away.
        prefixes.set(&ObjectName::from(""), services.into_iter().chain(host).collect());
        Self {
            local,
            services: HashMap::new(),
            slices: HashMap::new(),
            by_service: HashMap::new(),
            frontends: Claims::default(),
            prefixes,
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
            touched.frontends.extend(self.refresh(&service).frontends);
        }
        touched.prefixes.extend(released);
        touched
    }

    /// Counts an old slice's endpoints no longer. Returns the prefixes of deleted nodes that nothing leads to now.
    fn release(&mut self, old: Option<&Slice>) -> Vec<Ipv4Net> {
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
                let overtaken = |held: &Vec<Ipv4Net>| held.iter().any(|p| claims.iter().any(|(c, _)| c == p));
                let lost: Vec<_> = self.departed.extract_if(|_, held| overtaken(held)).collect();
                for (departed, _) in lost {
                    prefixes.extend(self.prefixes.set(&departed, Vec::new()));
                }
                prefixes.extend(self.prefixes.set(name, claims));
            }
        }
        Touched { frontends: Vec::new(), prefixes }
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
    pub fn prefix(&self, prefix: &Ipv4Net) -> Option<&IpcacheEntry4> {
        self.prefixes.get(prefix)
    }

    /// All prefixes.
    pub fn prefixes(&self) -> impl Iterator<Item = (&Ipv4Net, &IpcacheEntry4)> {
        self.prefixes.iter()
    }

    fn refresh(&mut self, name: &ObjectName) -> Touched {
        let claims = match self.services.get(name) {
            Some(service) => self.service_frontends(name, service),
            None => Vec::new(),
        };
        Touched { frontends: self.frontends.set(name, claims), prefixes: Vec::new() }
    }

    fn service_frontends(&self, name: &ObjectName, service: &Service) -> Vec<(L4Addr, FrontendSpec)> {
        let flags = if service.internal_local { SERVICE_INTERNAL_LOCAL } else { 0 };
        let mut claims = Vec::with_capacity(service.ports.len() * service.cluster_ips.len());
        for port in &service.ports {
            let spec = FrontendSpec { backends: self.backends(name, service, port), flags };
            for address in &service.cluster_ips {
                claims.push((L4Addr::new(*address, port.port, port.protocol), spec.clone()));
            }
        }
        claims
    }

    /// Ready endpoints; when there is none, those that terminate and still serve.
    fn backends(&self, name: &ObjectName, service: &Service, port: &ServicePort) -> Vec<(L4Addr, u8)> {
        let mut ready = BTreeMap::new();
        let mut terminating = BTreeMap::new();
        let names = self.by_service.get(name).into_iter().flatten();
        for slice in names.filter_map(|slice| self.slices.get(slice)) {
            let targets = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
            for target in targets {
                for endpoint in &slice.endpoints {
                    if service.internal_local && endpoint.node.as_deref() != Some(&*self.local.node_name) {
                        continue;
                    }
                    let backend = L4Addr::new(endpoint.address, target.port, port.protocol);
                    if endpoint.ready {
                        ready.insert(backend, 0);
                    } else if endpoint.serving_terminating {
                        terminating.insert(backend, BACKEND_TERMINATING);
                    }
                }
            }
        }
        let chosen = if ready.is_empty() { terminating } else { ready };
        chosen.into_iter().collect()
    }

    fn node_prefixes(&self, node: &Node, local: bool) -> Vec<(Ipv4Net, IpcacheEntry4)> {
        let own = self.local.node_ip.filter(|_| local);
        let Some(primary) = own.as_ref().or(node.addresses.first()) else { return Vec::new() };
        let flags = match self.local.link {
            Some(link) if link.contains(primary) => IPCACHE_ON_LINK,
            _ => 0,
        };
        let entry = |identity, address: &Ipv4Addr| match local {
            true => IpcacheEntry4 { node_ip_be: 0, identity, flags: 0 },
            false => IpcacheEntry4 { node_ip_be: address_be(*address), identity, flags },
        };
        let identity = if local { IDENTITY_HOST } else { IDENTITY_REMOTE_NODE };
        let addresses =
            node.addresses.iter().map(|address| (Ipv4Net::from(*address), entry(identity, address)));
        let pods = node.pod_cidrs.iter().map(|cidr| (cidr.trunc(), entry(IDENTITY_PODS, primary)));
        addresses.chain(pods).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> Node {
        Node {
            addresses: vec![Ipv4Addr::new(172, 16, 0, number)],
            pod_cidrs: vec![Ipv4Net::new_assert(Ipv4Addr::new(10, 244, number, 0), 24)],
        }
    }

    fn slice_on(nodes: &[&str]) -> Slice {
        let endpoint = |node: &&str| SliceEndpoint {
            address: Ipv4Addr::new(10, 244, 2, 7),
            ready: true,
            serving_terminating: false,
            node: Some(Arc::from(*node)),
        };
        Slice { service: "ns/web".into(), ports: Vec::new(), endpoints: nodes.iter().map(endpoint).collect() }
    }

    fn desired() -> Desired {
        Desired::new(Local { node_name: "node-1".into(), node_ip: None, link: None, service_cidr: None })
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
        let new = Node { addresses: vec![Ipv4Addr::new(172, 16, 0, 9)], ..node(2) };
        desired.set_node(&"node-9".into(), Some(&new));
        let entry = desired.prefix(&node(2).pod_cidrs[0]).copied().unwrap_or_default();
        assert_eq!(entry.node_ip_be, address_be(new.addresses[0]));
        assert!(desired.departed.is_empty());
    }
}
