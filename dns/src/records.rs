//! PURE: what matters of Services and EndpointSlices, by name and by address. A change costs its one Service.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use hawser_watch::ObjectName;
pub use hawser_watch::Protocol;

/// A port of a Service or a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Name in lower case; empty when it has none.
    pub name: Box<str>,
    /// Transport.
    pub protocol: Protocol,
    /// Number.
    pub number: u16,
}

/// What a Service's name leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Its own addresses.
    Cluster(Box<[IpAddr]>),
    /// Its endpoints.
    Headless,
    /// Another name.
    External(Box<str>),
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// What its name leads to.
    pub target: Target,
    /// Its ports.
    pub ports: Box<[Port]>,
    /// Whether endpoints that are not ready count as well.
    pub publish_not_ready: bool,
}

/// One address of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// The endpoint's own name below the Service's.
    pub hostname: Option<Box<str>>,
    /// Whether it is ready.
    pub ready: bool,
}

impl Endpoint {
    /// Its label below the Service's name: the hostname, else the address with dashes, as CoreDNS makes it.
    pub fn label(&self) -> String {
        match (&self.hostname, self.address) {
            (Some(name), _) => name.to_string(),
            (None, IpAddr::V4(address)) => address.to_string().replace('.', "-"),
            (None, IpAddr::V6(address)) => {
                let mut label = address.to_string().replace(':', "-");
                if label.ends_with('-') {
                    label.push('0');
                }
                label
            }
        }
    }
}

/// An EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Whose endpoints these are.
    pub service: ObjectName,
    /// Their ports.
    pub ports: Box<[Port]>,
    /// The endpoints, one per address.
    pub endpoints: Box<[Endpoint]>,
}

/// A Service with its slices. Either may be known first.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Entry {
    service: Option<Service>,
    slices: BTreeMap<ObjectName, Slice>,
    /// Its addresses in the reverse index, in order.
    addresses: Vec<IpAddr>,
}

impl Entry {
    /// The Service; `None` while only slices are known.
    pub fn service(&self) -> Option<&Service> {
        self.service.as_ref()
    }

    /// Each endpoint that counts, with the ports of its slice.
    pub fn endpoints(&self) -> impl Iterator<Item = (&Endpoint, &[Port])> {
        let all = self.service.as_ref().is_some_and(|service| service.publish_not_ready);
        self.slices.values().flat_map(move |slice| {
            let counted = slice.endpoints.iter().filter(move |endpoint| endpoint.ready || all);
            counted.map(|endpoint| (endpoint, &*slice.ports))
        })
    }

    /// The addresses whose reverse names lead here.
    fn reverse(&self) -> Vec<IpAddr> {
        let mut addresses = match self.service.as_ref().map(|service| &service.target) {
            Some(Target::Cluster(addresses)) => addresses.to_vec(),
            Some(Target::Headless) => self.endpoints().map(|(endpoint, _)| endpoint.address).collect(),
            Some(Target::External(_)) | None => Vec::new(),
        };
        addresses.sort_unstable();
        addresses.dedup();
        addresses.shrink_to_fit();
        addresses
    }
}

/// All records of the cluster.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Index {
    namespaces: HashSet<ObjectName>,
    entries: HashMap<ObjectName, Entry>,
    /// Slices by name: whose they are.
    owners: HashMap<ObjectName, ObjectName>,
    /// Services by address, in order.
    by_address: HashMap<IpAddr, Vec<ObjectName>>,
}

impl Index {
    /// Sets or removes a namespace.
    pub fn set_namespace(&mut self, name: &ObjectName, exists: bool) {
        if exists {
            self.namespaces.insert(name.clone());
        } else {
            self.namespaces.remove(name);
        }
    }

    /// Sets or removes a Service.
    pub fn set_service(&mut self, name: &ObjectName, service: Option<Service>) {
        if service.is_some() || self.entries.contains_key(name) {
            self.entries.entry(name.clone()).or_default().service = service;
            self.refresh(name);
        }
    }

    /// Sets or removes a slice. It may have become another Service's.
    pub fn set_slice(&mut self, name: &ObjectName, slice: Option<Slice>) {
        let owner = slice.as_ref().map(|slice| slice.service.clone());
        let before = match &owner {
            Some(owner) => self.owners.insert(name.clone(), owner.clone()),
            None => self.owners.remove(name),
        };
        if let Some(before) = before.filter(|before| Some(before) != owner.as_ref())
            && let Some(entry) = self.entries.get_mut(&before)
        {
            entry.slices.remove(name);
            self.refresh(&before);
        }
        if let (Some(owner), Some(slice)) = (owner, slice) {
            self.entries.entry(owner.clone()).or_default().slices.insert(name.clone(), slice);
            self.refresh(&owner);
        }
    }

    /// Whether there is such a namespace.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains(name)
    }

    /// A Service, by the names of its namespace and its own.
    pub fn entry(&self, namespace: &str, name: &str) -> Option<&Entry> {
        let entry = self.entries.get(format!("{namespace}/{name}").as_str())?;
        entry.service.is_some().then_some(entry)
    }

    /// The Services that an address leads back to, in the order of their names.
    pub fn by_address(&self, address: IpAddr) -> impl Iterator<Item = (&ObjectName, &Entry)> {
        let names = self.by_address.get(&address).into_iter().flatten();
        names.filter_map(|name| self.entries.get_key_value(name))
    }

    /// Number of Services and of endpoints.
    pub fn counts(&self) -> (usize, usize) {
        let services = self.entries.values().filter(|entry| entry.service.is_some()).count();
        let slices = self.entries.values().flat_map(|entry| entry.slices.values());
        (services, slices.map(|slice| slice.endpoints.len()).sum())
    }

    /// Brings the reverse index in line with a Service that has changed, and drops what is empty.
    fn refresh(&mut self, name: &ObjectName) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        let now = entry.reverse();
        let before = std::mem::replace(&mut entry.addresses, now.clone());
        if entry.service.is_none() && entry.slices.is_empty() {
            self.entries.remove(name);
        }
        for address in before.iter().filter(|address| now.binary_search(address).is_err()) {
            if let Some(names) = self.by_address.get_mut(address) {
                names.retain(|held| held != name);
                if names.is_empty() {
                    self.by_address.remove(address);
                }
            }
        }
        for address in now.into_iter().filter(|address| before.binary_search(address).is_err()) {
            let names = self.by_address.entry(address).or_default();
            if let Err(place) = names.binary_search(name) {
                names.insert(place, Arc::clone(name));
            }
        }
    }
}
