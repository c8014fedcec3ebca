//! The load balancer's maps in the words of the inspection service.

use std::collections::HashMap;
use std::net::IpAddr;

use hawser_ebpf_common::lb::{
    ALGORITHM_NAMES, BACKEND_TERMINATING, KIND_NAMES, SERVICE_FLAG_NAMES, SERVICE_SOURCE_RANGES, ServiceValue,
};

use super::name;
use super::proto::{Backend, Frontend, L4Addr};
use crate::maps::{KernelMaps, MapError, SlotKey};
use crate::types;

/// Everything that is to be shown of Services.
#[derive(Default)]
pub(super) struct Tables {
    backends: HashMap<u32, (types::L4Addr, u8)>,
    slots: HashMap<SlotKey, ServiceValue>,
    ranges: HashMap<u32, Vec<String>>,
    connections: HashMap<u32, u64>,
}

/// How often one frontend is read again because the agent changed it meanwhile.
const ATTEMPTS: usize = 8;

impl Tables {
    /// Of all Services.
    pub fn read(maps: &KernelMaps) -> Result<Self, MapError> {
        let services = maps.services()?;
        let masters = services.iter().filter(|(key, _)| key.slot == 0);
        let frontends: Vec<_> = masters.map(|(key, master)| (master.rev_nat_id, key.frontend)).collect();
        Ok(Self {
            backends: maps
                .backends()?
                .into_iter()
                .map(|(id, address, flags)| (id, (address, flags)))
                .collect(),
            slots: services.into_iter().collect(),
            ranges: Self::ranges(maps, &frontends)?,
            connections: maps.connections()?.into_iter().collect(),
        })
    }

    /// Of one frontend, looked up as the programs do: the cost is that of its backends.
    pub fn read_one(maps: &KernelMaps, frontend: types::L4Addr) -> Result<Self, MapError> {
        let mut tables = Self::default();
        let key = SlotKey::master(frontend);
        for _ in 0..ATTEMPTS {
            tables = Self::default();
            let Some(master) = maps.service(&key)? else { break };
            tables.slots.insert(key, master);
            for (scope, count) in [(0, master.count), (1, master.count_external)] {
                for slot in 1..=count {
                    let slot = key.slot(scope, master.generation, slot);
                    let Some(entry) = maps.service(&slot)? else { continue };
                    tables.slots.insert(slot, entry);
                    let Some(backend) = maps.backend(entry.backend_id, frontend.family())? else { continue };
                    tables.backends.insert(entry.backend_id, backend);
                    tables.connections.insert(entry.backend_id, maps.connections_to(entry.backend_id)?);
                }
            }
            if master.flags & SERVICE_SOURCE_RANGES != 0 {
                tables.ranges = Self::ranges(maps, &[(master.rev_nat_id, frontend)])?;
            }
            // Slots of a generation that was switched away from may be gone already.
            if maps.service(&key)?.is_some_and(|now| now.generation == master.generation) {
                break;
            }
        }
        Ok(tables)
    }

    fn ranges(
        maps: &KernelMaps,
        frontends: &[(u32, types::L4Addr)],
    ) -> Result<HashMap<u32, Vec<String>>, MapError> {
        let mut ranges: HashMap<u32, Vec<String>> = HashMap::new();
        for (id, range) in maps.source_ranges(frontends)? {
            ranges.entry(id).or_default().push(range.to_string());
        }
        ranges.values_mut().for_each(|ranges| ranges.sort());
        Ok(ranges)
    }

    /// All frontends, by address.
    pub fn frontends(&self) -> Vec<Frontend> {
        let mut masters: Vec<_> = self.slots.iter().filter(|(key, _)| key.slot == 0).collect();
        masters.sort_by_key(|(key, _)| **key);
        masters.into_iter().map(|(key, master)| self.frontend(key, master)).collect()
    }

    fn frontend(&self, key: &SlotKey, master: &ServiceValue) -> Frontend {
        let set = SERVICE_FLAG_NAMES.iter().enumerate().filter(|(bit, _)| master.flags & (1 << bit) != 0);
        Frontend {
            address: Some(l4(&key.frontend)),
            rev_nat_id: master.rev_nat_id,
            generation: u32::from(master.generation),
            backends: self.backends(key, master, 0, master.count),
            flags: set.map(|(_, name)| (*name).to_string()).collect(),
            kind: name(&KIND_NAMES, u32::from(master.kind)),
            algorithm: name(&ALGORITHM_NAMES, u32::from(master.algorithm)),
            affinity_timeout_s: master.affinity_timeout_s,
            source_ranges: self.ranges.get(&master.rev_nat_id).cloned().unwrap_or_default(),
            external_backends: self.backends(key, master, 1, master.count_external),
        }
    }

    fn backends(&self, key: &SlotKey, master: &ServiceValue, scope: u8, count: u16) -> Vec<Backend> {
        let backend = |slot| {
            let entry = self.slots.get(&key.slot(scope, master.generation, slot))?;
            let (address, flags) = self.backends.get(&entry.backend_id)?;
            let state = if flags & BACKEND_TERMINATING == 0 { "active" } else { "terminating" };
            Some(Backend {
                id: entry.backend_id,
                address: Some(l4(address)),
                slot: u32::from(slot),
                state: state.to_string(),
                open_connections: self.connections.get(&entry.backend_id).copied().unwrap_or(0),
            })
        };
        (1..=count).filter_map(backend).collect()
    }
}

/// An address as it came in a request.
pub(super) fn parse(address: &L4Addr) -> Result<types::L4Addr, String> {
    let ip: IpAddr = address.address.parse().map_err(|_| format!("{:?} is no address", address.address))?;
    let port = u16::try_from(address.port).map_err(|_| format!("{} is no port", address.port))?;
    let protocol = types::Protocol::from_api(Some(&address.protocol))
        .ok_or_else(|| format!("{:?} is none of TCP, UDP and SCTP", address.protocol))?;
    Ok(types::L4Addr::new(ip, port, protocol))
}

fn l4(address: &types::L4Addr) -> L4Addr {
    L4Addr {
        address: address.address.to_string(),
        port: u32::from(address.port),
        protocol: address.protocol.to_string(),
    }
}
