//! The maps that hold addresses of one family, in the kernel.

use std::collections::HashSet;
use std::hash::Hash;
use std::net::IpAddr;
use std::path::Path;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData};
use hawser_ebpf_common::endpoint::{Announce, Endpoint4, IpcacheEntry4, IpcacheEntry6};
use hawser_ebpf_common::lb::{
    Address6, Backend, ReverseNat, ReverseSk, ServiceEntry, ServiceKey, ServiceValue, SocketKey,
};
use hawser_ebpf_common::map_names as names;
use ipnet::IpNet;

use super::kernel::{deleted, dump, each, found, kernel, open, put_batch};
use super::{MapError, SlotKey, Socket};
use crate::types::{
    L4Addr, PrefixSpec, Protocol, address_be, address_from_be, address6_be, address6_from_be,
};

/// Names of one family's maps.
pub struct Names {
    services: &'static str,
    backends: &'static str,
    reverse_nat: &'static str,
    reverse_sk: &'static str,
    ipcache: &'static str,
    endpoints: &'static str,
    announced: &'static str,
}

/// An address as the maps hold it.
pub trait Address: Copy + Eq + Hash + Default + Send + Sync + 'static {
    /// Value of the ipcache.
    type Ipcache: Pod + Send + Sync;
    /// Names of its maps.
    const NAMES: Names;
    /// Bits of an address.
    const BITS: u8;
    /// To the maps' form. One of IPv4 is IPv4-mapped in IPv6; one of IPv6 is never asked for in IPv4 and gives the
    /// unspecified one.
    fn of(address: IpAddr) -> Self;
    /// Back.
    fn ip(self) -> IpAddr;
    /// To the map's form.
    fn ipcache(spec: &PrefixSpec) -> Self::Ipcache;
    /// Back.
    fn prefix_spec(entry: &Self::Ipcache) -> PrefixSpec;
}

impl Address for u32 {
    type Ipcache = IpcacheEntry4;
    const NAMES: Names = Names {
        services: names::SERVICES4,
        backends: names::BACKENDS4,
        reverse_nat: names::REVERSE_NAT4,
        reverse_sk: names::REVERSE_SK4,
        ipcache: names::IPCACHE,
        endpoints: names::ENDPOINTS,
        announced: names::ANNOUNCE,
    };
    const BITS: u8 = 32;

    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => address_be(address),
            IpAddr::V6(_) => 0,
        }
    }

    fn ip(self) -> IpAddr {
        address_from_be(self).into()
    }

    fn ipcache(spec: &PrefixSpec) -> IpcacheEntry4 {
        let node_ip_be = spec.node.map_or(0, Self::of);
        IpcacheEntry4 { node_ip_be, identity: spec.identity, flags: spec.flags }
    }

    fn prefix_spec(entry: &IpcacheEntry4) -> PrefixSpec {
        let node = (entry.node_ip_be != 0).then(|| entry.node_ip_be.ip());
        PrefixSpec { node, identity: entry.identity, flags: entry.flags }
    }
}

impl Address for Address6 {
    type Ipcache = IpcacheEntry6;
    const NAMES: Names = Names {
        services: names::SERVICES6,
        backends: names::BACKENDS6,
        reverse_nat: names::REVERSE_NAT6,
        reverse_sk: names::REVERSE_SK6,
        ipcache: names::IPCACHE6,
        endpoints: names::ENDPOINTS6,
        announced: names::ANNOUNCE6,
    };
    const BITS: u8 = 128;

    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V6(address) => address6_be(address),
            IpAddr::V4(address) => address6_be(address.to_ipv6_mapped()),
        }
    }

    fn ip(self) -> IpAddr {
        address6_from_be(self).into()
    }

    fn ipcache(spec: &PrefixSpec) -> IpcacheEntry6 {
        let node_ip_be = spec.node.map_or([0; 4], Self::of);
        IpcacheEntry6 { node_ip_be, identity: spec.identity, flags: spec.flags }
    }

    fn prefix_spec(entry: &IpcacheEntry6) -> PrefixSpec {
        let node = (entry.node_ip_be != [0; 4]).then(|| entry.node_ip_be.ip().to_canonical());
        PrefixSpec { node, identity: entry.identity, flags: entry.flags }
    }
}

/// What is to be written at once to the maps of one family.
#[derive(Debug, Default)]
pub struct Filling {
    pub backends: Vec<(u32, L4Addr, u8)>,
    pub reverse_nat: Vec<(u32, L4Addr)>,
    pub slots: Vec<(SlotKey, ServiceValue)>,
    pub masters: Vec<(SlotKey, ServiceValue)>,
}

/// The maps of one family.
pub struct FamilyMaps<A: Address>
where
    ServiceKey<A>: Pod,
    ServiceEntry<A>: Pod,
    Backend<A>: Pod,
    ReverseNat<A>: Pod,
    SocketKey<A>: Pod,
    A: Pod,
{
    services: HashMap<MapData, ServiceKey<A>, ServiceEntry<A>>,
    backends: HashMap<MapData, u32, Backend<A>>,
    reverse_nat: HashMap<MapData, u32, ReverseNat<A>>,
    reverse_sk: HashMap<MapData, SocketKey<A>, ReverseSk>,
    ipcache: LpmTrie<MapData, A, A::Ipcache>,
    endpoints: HashMap<MapData, A, Endpoint4>,
    announced: HashMap<MapData, A, Announce>,
}

impl<A: Address> FamilyMaps<A>
where
    ServiceKey<A>: Pod,
    ServiceEntry<A>: Pod,
    Backend<A>: Pod,
    ReverseNat<A>: Pod,
    SocketKey<A>: Pod,
    A: Pod,
{
    pub fn open(dir: &Path) -> Result<Self, MapError> {
        Ok(Self {
            services: open(dir, A::NAMES.services)?,
            backends: open(dir, A::NAMES.backends)?,
            reverse_nat: open(dir, A::NAMES.reverse_nat)?,
            reverse_sk: open(dir, A::NAMES.reverse_sk)?,
            ipcache: open(dir, A::NAMES.ipcache)?,
            endpoints: open(dir, A::NAMES.endpoints)?,
            announced: open(dir, A::NAMES.announced)?,
        })
    }

    pub fn put_service(&mut self, key: &SlotKey, value: &ServiceValue) -> Result<(), MapError> {
        let backend = match value.backend_id {
            0 => None,
            id => found(A::NAMES.backends, self.backends.get(&id, 0))?,
        };
        let entry = entry(value, backend.as_ref());
        self.services.insert(service_key::<A>(key), entry, 0).map_err(kernel(A::NAMES.services))
    }

    pub fn delete_service(&mut self, key: &SlotKey) -> Result<(), MapError> {
        deleted(A::NAMES.services, self.services.remove(&service_key::<A>(key)))
    }

    pub fn put_backend(&mut self, id: u32, address: &L4Addr, flags: u8) -> Result<(), MapError> {
        self.backends.insert(id, backend(address, flags), 0).map_err(kernel(A::NAMES.backends))
    }

    pub fn delete_backend(&mut self, id: u32) -> Result<(), MapError> {
        deleted(A::NAMES.backends, self.backends.remove(&id))
    }

    pub fn put_reverse_nat(&mut self, id: u32, frontend: &L4Addr) -> Result<(), MapError> {
        self.reverse_nat.insert(id, reverse_nat(frontend), 0).map_err(kernel(A::NAMES.reverse_nat))
    }

    pub fn delete_reverse_nat(&mut self, id: u32) -> Result<(), MapError> {
        deleted(A::NAMES.reverse_nat, self.reverse_nat.remove(&id))
    }

    pub fn put_prefix(&mut self, prefix: IpNet, spec: &PrefixSpec) -> Result<(), MapError> {
        self.ipcache.insert(&lpm_key(prefix), A::ipcache(spec), 0).map_err(kernel(A::NAMES.ipcache))
    }

    pub fn delete_prefix(&mut self, prefix: IpNet) -> Result<(), MapError> {
        deleted(A::NAMES.ipcache, self.ipcache.remove(&lpm_key(prefix)))
    }

    pub fn put_endpoint(&mut self, address: IpAddr, value: &Endpoint4) -> Result<(), MapError> {
        self.endpoints.insert(A::of(address), value, 0).map_err(kernel(A::NAMES.endpoints))
    }

    pub fn delete_endpoint(&mut self, address: IpAddr) -> Result<(), MapError> {
        deleted(A::NAMES.endpoints, self.endpoints.remove(&A::of(address)))
    }

    pub fn put_announced(&mut self, address: IpAddr) -> Result<(), MapError> {
        let value = Announce::default();
        self.announced.insert(A::of(address), value, 0).map_err(kernel(A::NAMES.announced))
    }

    pub fn delete_announced(&mut self, address: IpAddr) -> Result<(), MapError> {
        deleted(A::NAMES.announced, self.announced.remove(&A::of(address)))
    }

    /// Backends, reverse translations and slots.
    pub fn fill(&mut self, all: &Filling) -> Result<(), MapError> {
        let backends = all.backends.iter().map(|(id, address, flags)| (*id, backend(address, *flags)));
        put_batch(A::NAMES.backends, &self.backends, backends)?;
        let frontends = all.reverse_nat.iter().map(|(id, frontend)| (*id, reverse_nat(frontend)));
        put_batch(A::NAMES.reverse_nat, &self.reverse_nat, frontends)?;
        self.fill_services(all, &all.slots)
    }

    /// Master entries.
    pub fn fill_masters(&mut self, all: &Filling) -> Result<(), MapError> {
        self.fill_services(all, &all.masters)
    }

    fn fill_services(&mut self, all: &Filling, which: &[(SlotKey, ServiceValue)]) -> Result<(), MapError> {
        let new: std::collections::HashMap<u32, Backend<A>> =
            all.backends.iter().map(|(id, address, flags)| (*id, backend(address, *flags))).collect();
        let mut entries = Vec::with_capacity(which.len());
        for (key, value) in which {
            let known = match value.backend_id {
                0 => None,
                id => match new.get(&id) {
                    Some(backend) => Some(*backend),
                    None => found(A::NAMES.backends, self.backends.get(&id, 0))?,
                },
            };
            entries.push((service_key::<A>(key), entry(value, known.as_ref())));
        }
        put_batch(A::NAMES.services, &self.services, entries.into_iter())
    }

    /// A master entry or a slot.
    pub fn service(&self, key: &SlotKey) -> Result<Option<ServiceValue>, MapError> {
        let found = found(A::NAMES.services, self.services.get(&service_key::<A>(key), 0))?;
        Ok(found.map(|entry| entry.value))
    }

    /// A backend's address with its `BACKEND_*` flags.
    pub fn backend(&self, id: u32) -> Result<Option<(L4Addr, u8)>, MapError> {
        let value = found(A::NAMES.backends, self.backends.get(&id, 0))?;
        Ok(value.and_then(|v| Some((l4(v.address_be, v.port_be, v.protocol)?, v.flags))))
    }

    /// Adds the master entries and slots. Entries of no known protocol are nobody's: no lookup finds them.
    pub fn services(&self, into: &mut Vec<(SlotKey, ServiceValue)>) -> Result<(), MapError> {
        for (key, ServiceEntry { value, .. }) in dump(A::NAMES.services, &self.services)? {
            if let Some(frontend) = l4(key.address_be, key.port_be, key.protocol) {
                let (scope, generation, slot) = (key.scope, key.generation, key.slot);
                into.push((SlotKey { frontend, scope, generation, slot }, value));
            }
        }
        Ok(())
    }

    /// Adds the backends.
    pub fn backends(&self, into: &mut Vec<(u32, L4Addr, u8)>) -> Result<(), MapError> {
        for (id, value) in dump(A::NAMES.backends, &self.backends)? {
            if let Some(address) = l4(value.address_be, value.port_be, value.protocol) {
                into.push((id, address, value.flags));
            }
        }
        Ok(())
    }

    /// Adds the frontends by their `rev_nat` ids.
    pub fn reverse_nat(&self, into: &mut Vec<(u32, L4Addr)>) -> Result<(), MapError> {
        for (id, value) in dump(A::NAMES.reverse_nat, &self.reverse_nat)? {
            if let Some(frontend) = l4(value.address_be, value.port_be, value.protocol) {
                into.push((id, frontend));
            }
        }
        Ok(())
    }

    /// Adds the pods.
    pub fn endpoints(&self, into: &mut Vec<(IpAddr, Endpoint4)>) -> Result<(), MapError> {
        let endpoints = dump(A::NAMES.endpoints, &self.endpoints)?;
        into.extend(endpoints.into_iter().map(|(address, value)| (address.ip(), value)));
        Ok(())
    }

    /// Adds the addresses that the node answers for.
    pub fn announced(&self, into: &mut Vec<IpAddr>) -> Result<(), MapError> {
        into.extend(dump(A::NAMES.announced, &self.announced)?.into_iter().map(|(address, _)| address.ip()));
        Ok(())
    }

    /// Adds the prefixes.
    pub fn prefixes(&self, into: &mut Vec<(IpNet, PrefixSpec)>) -> Result<(), MapError> {
        for item in self.ipcache.iter() {
            let (key, value) = item.map_err(kernel(A::NAMES.ipcache))?;
            let prefix_len = u8::try_from(key.prefix_len()).unwrap_or(A::BITS).min(A::BITS);
            // The length fits the family, so this is always a prefix.
            if let Ok(prefix) = IpNet::new(key.data().ip(), prefix_len) {
                into.push((prefix, A::prefix_spec(&value)));
            }
        }
        Ok(())
    }

    /// Sockets that were translated to one of these backends by one of these frontends, by cookie, but those that are
    /// counted.
    pub fn sockets_of(
        &self,
        wanted: &HashSet<(u32, L4Addr)>,
        into: &mut Vec<Socket>,
    ) -> Result<(), MapError> {
        let endpoints: HashSet<(IpAddr, u16)> = wanted.iter().map(|(_, b)| (b.address, b.port)).collect();
        each(A::NAMES.reverse_sk, &self.reverse_sk, |key: &SocketKey<A>, value: &ReverseSk| {
            let (address, port) = (key.address_be.ip(), u16::from_be(key.port_be));
            if !endpoints.contains(&(address, port)) {
                return;
            }
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let backend = L4Addr::new(address, port, protocol);
                if wanted.contains(&(value.rev_nat_id, backend)) {
                    let cookie = u64::from(key.cookie[0]) | u64::from(key.cookie[1]) << 32;
                    into.push(Socket { cookie, netns_cookie: value.netns_cookie, protocol });
                }
            }
        })
    }

    /// Forgets the sockets of frontends that are gone. Returns the frontends that are not.
    pub fn forget_sockets(&mut self) -> Result<HashSet<u32>, MapError> {
        let live: HashSet<u32> =
            dump(A::NAMES.reverse_nat, &self.reverse_nat)?.into_iter().map(|(id, _)| id).collect();
        for (key, value) in dump(A::NAMES.reverse_sk, &self.reverse_sk)? {
            if !live.contains(&value.rev_nat_id) {
                deleted(A::NAMES.reverse_sk, self.reverse_sk.remove(&key))?;
            }
        }
        Ok(live)
    }
}

fn backend<A: Address>(address: &L4Addr, flags: u8) -> Backend<A> {
    Backend {
        address_be: A::of(address.address),
        port_be: address.port.to_be(),
        protocol: address.protocol.number(),
        flags,
    }
}

/// A backend that is not in its map is looked up by the programs when somebody asks.
fn entry<A: Address>(value: &ServiceValue, backend: Option<&Backend<A>>) -> ServiceEntry<A> {
    let (address_be, port_be) =
        backend.map_or_else(Default::default, |known| (known.address_be, known.port_be));
    ServiceEntry { value: *value, address_be, port_be, pad: 0 }
}

fn reverse_nat<A: Address>(frontend: &L4Addr) -> ReverseNat<A> {
    ReverseNat {
        address_be: A::of(frontend.address),
        port_be: frontend.port.to_be(),
        protocol: frontend.protocol.number(),
        pad: 0,
    }
}

fn service_key<A: Address>(key: &SlotKey) -> ServiceKey<A> {
    let frontend = &key.frontend;
    ServiceKey::master(A::of(frontend.address), frontend.port.to_be(), frontend.protocol.number()).slot(
        key.scope,
        key.generation,
        key.slot,
    )
}

fn l4<A: Address>(address: A, port_be: u16, protocol: u8) -> Option<L4Addr> {
    Some(L4Addr::new(address.ip(), u16::from_be(port_be), Protocol::from_number(protocol)?))
}

fn lpm_key<A: Address + Pod>(prefix: IpNet) -> Key<A> {
    Key::new(u32::from(prefix.prefix_len()), A::of(prefix.network()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_comes_back_as_it_was_written() {
        let spec = |node: Option<&str>| PrefixSpec {
            node: node.map(|node| node.parse().expect("an address")),
            identity: 16,
            flags: 1,
        };
        for node in [None, Some("10.0.0.1")] {
            assert_eq!(u32::prefix_spec(&u32::ipcache(&spec(node))), spec(node));
        }
        for node in [None, Some("10.0.0.1"), Some("fd00::1")] {
            assert_eq!(Address6::prefix_spec(&Address6::ipcache(&spec(node))), spec(node));
        }
        // The form that the programs look for.
        let mapped = Address6::ipcache(&spec(Some("10.0.0.1"))).node_ip_be;
        assert_eq!(mapped, [0, 0, 0xffff_u32.to_be(), address_be([10, 0, 0, 1].into())]);
    }
}
