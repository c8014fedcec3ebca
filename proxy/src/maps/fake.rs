//! Maps in memory, and the programs' lookup over them in Rust: the second of the three ways in which
//! the load balancer is tested.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hawser_ebpf_common::endpoint::Endpoint4;
use hawser_ebpf_common::lb::{
    ALGORITHM_MAGLEV, AffinityMatch, AffinityMatchKey, MAGLEV_SIZE, MaglevChunk, MaglevKey, SERVICE_AFFINITY,
    SERVICE_DENY_NODE, SERVICE_DROP_IF_EMPTY, SERVICE_LOOPBACK, SERVICE_SOURCE_RANGES, SERVICE_TWO_SCOPES,
    ServiceValue,
};
use ipnet::IpNet;

use super::{MapError, Maps, Op, SlotKey, Snapshot};
use crate::maglev;
use crate::types::{L4Addr, PrefixSpec};

/// Maps in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FakeMaps {
    services: BTreeMap<SlotKey, ServiceValue>,
    backends: BTreeMap<u32, (L4Addr, u8)>,
    reverse_nat: BTreeMap<u32, L4Addr>,
    members: BTreeMap<AffinityMatchKey, AffinityMatch>,
    source_ranges: BTreeSet<(u32, IpNet)>,
    maglev: BTreeMap<MaglevKey, Arc<MaglevChunk>>,
    prefixes: BTreeMap<IpNet, PrefixSpec>,
    announced: BTreeSet<IpAddr>,
    endpoints: BTreeMap<IpAddr, Endpoint4>,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// A packet's sender, and the `SCOPE_*` of the place where it was seen.
    Packet(IpAddr, u8),
    /// A socket in a pod.
    PodSocket,
    /// A socket in the node's own network namespace.
    NodeSocket,
}

/// What a lookup of the load balancer may find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// No Service has this frontend.
    NoService,
    /// The Service refuses.
    Refused,
    /// The packet is dropped.
    Dropped,
    /// Any of these, in the order of their slots.
    Backends(Vec<L4Addr>),
    /// The maps contradict themselves: what is missing.
    Broken(String),
}

impl FakeMaps {
    /// Does what the programs do for one frontend, for every slot instead of a random one.
    pub fn lookup(&self, frontend: &L4Addr, client: Client) -> Lookup {
        let key = SlotKey::master(*frontend);
        let Some(master) = self.services.get(&key) else { return Lookup::NoService };
        match self.reverse_nat.get(&master.rev_nat_id) {
            Some(value) if value == frontend => {}
            other => return Lookup::Broken(format!("rev_nat {}: {other:?}", master.rev_nat_id)),
        }
        let has = |flag| master.flags & flag != 0;
        if has(SERVICE_LOOPBACK) && client != Client::NodeSocket {
            return Lookup::NoService;
        }
        if has(SERVICE_SOURCE_RANGES) {
            let within = |address: &IpAddr| {
                self.source_ranges
                    .iter()
                    .any(|(id, range)| *id == master.rev_nat_id && range.contains(address))
            };
            match &client {
                Client::Packet(address, _) if !within(address) => return Lookup::Dropped,
                Client::NodeSocket if has(SERVICE_DENY_NODE) => return Lookup::Dropped,
                Client::PodSocket => return Lookup::NoService,
                _ => {}
            }
        }
        let asked = if let Client::Packet(_, scope) = client { scope } else { 0 };
        let (scope, count) = master.scope(asked);
        if master.backend_id != 0 && (count != 1 || has(SERVICE_TWO_SCOPES)) {
            return Lookup::Broken(format!("one backend in the master entry and {count} slots"));
        }
        if count == 0 {
            return if has(SERVICE_DROP_IF_EMPTY) { Lookup::Dropped } else { Lookup::Refused };
        }
        let mut backends = Vec::with_capacity(usize::from(count));
        for slot in 1..=count {
            let Some(entry) = self.services.get(&key.slot(scope, master.generation, slot)) else {
                return Lookup::Broken(format!("slot {slot} of generation {}", master.generation));
            };
            let backend_id = if master.backend_id != 0 { master.backend_id } else { entry.backend_id };
            let Some((backend, _)) = self.backends.get(&backend_id) else {
                return Lookup::Broken(format!("backend {backend_id}"));
            };
            let member = AffinityMatchKey { rev_nat_id: master.rev_nat_id, backend_id };
            if has(SERVICE_AFFINITY) && !self.members.contains_key(&member) {
                return Lookup::Broken(format!("backend {backend_id} has no affinity"));
            }
            backends.push(*backend);
        }
        if master.algorithm == ALGORITHM_MAGLEV
            && let Err(what) = self.check_maglev(master, scope, count)
        {
            return Lookup::Broken(what);
        }
        Lookup::Backends(backends)
    }

    /// A Maglev table is whole and leads to slots that are there.
    fn check_maglev(&self, master: &ServiceValue, scope: u8, count: u16) -> Result<(), String> {
        let mut left = MAGLEV_SIZE as usize;
        for key in maglev::keys(master.rev_nat_id, master.generation, scope) {
            let chunk = self.maglev.get(&key).ok_or_else(|| format!("{key:?}"))?;
            let part = &chunk[..left.min(chunk.len())];
            left -= part.len();
            if let Some(slot) = part.iter().find(|slot| **slot == 0 || **slot > count) {
                return Err(format!("{key:?} leads to slot {slot}"));
            }
        }
        Ok(())
    }
}

impl Maps for FakeMaps {
    fn apply(&mut self, op: &Op) -> Result<(), MapError> {
        match op.clone() {
            Op::PutService { key, value } => drop(self.services.insert(key, value)),
            Op::DeleteService { key } => drop(self.services.remove(&key)),
            Op::PutBackend { id, address, flags } => drop(self.backends.insert(id, (address, flags))),
            Op::DeleteBackend { id, .. } => drop(self.backends.remove(&id)),
            Op::PutReverseNat { id, frontend } => drop(self.reverse_nat.insert(id, frontend)),
            Op::DeleteReverseNat { id, .. } => drop(self.reverse_nat.remove(&id)),
            Op::PutMember { key, value } => drop(self.members.insert(key, value)),
            Op::DeleteMember { key } => drop(self.members.remove(&key)),
            Op::PutSourceRange { id, range } => drop(self.source_ranges.insert((id, range))),
            Op::DeleteSourceRange { id, range } => drop(self.source_ranges.remove(&(id, range))),
            Op::PutMaglev { key, chunk } => drop(self.maglev.insert(key, chunk)),
            Op::DeleteMaglev { key } => drop(self.maglev.remove(&key)),
            Op::PutPrefix { prefix, value } => drop(self.prefixes.insert(prefix, value)),
            Op::DeletePrefix { prefix } => drop(self.prefixes.remove(&prefix)),
            Op::PutAnnounced { address } => drop(self.announced.insert(address)),
            Op::DeleteAnnounced { address } => drop(self.announced.remove(&address)),
            Op::PutEndpoint { address, value } => drop(self.endpoints.insert(address, value)),
            Op::DeleteEndpoint { address } => drop(self.endpoints.remove(&address)),
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot, MapError> {
        Ok(Snapshot {
            services: self.services.iter().map(|(key, value)| (*key, *value)).collect(),
            backends: self.backends.iter().map(|(id, (address, flags))| (*id, *address, *flags)).collect(),
            reverse_nat: self.reverse_nat.iter().map(|(key, value)| (*key, *value)).collect(),
            members: self.members.iter().map(|(key, value)| (*key, *value)).collect(),
            source_ranges: self.source_ranges.iter().copied().collect(),
            maglev: self.maglev.keys().copied().collect(),
            prefixes: self.prefixes.iter().map(|(key, value)| (*key, *value)).collect(),
            announced: self.announced.iter().copied().collect(),
            endpoints: self.endpoints.iter().map(|(key, value)| (*key, *value)).collect(),
        })
    }

    fn forget_sockets(&mut self) -> Result<(), MapError> {
        Ok(())
    }
}
