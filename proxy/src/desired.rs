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

/// `namespace/name`.
pub type ObjectName = Arc<str>;

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
        let old = match slice {
            Some(slice) => self.slices.insert(name.clone(), slice),
            None => self.slices.remove(name),
        };
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
        touched
    }

    /// A Node was written, or is gone (`None`).
    pub fn set_node(&mut self, name: &ObjectName, node: Option<&Node>) -> Touched {
        let local = **name == *self.local.node_name;
        let claims = node.map(|node| self.node_prefixes(node, local)).unwrap_or_default();
        Touched { frontends: Vec::new(), prefixes: self.prefixes.set(name, claims) }
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
