//! PURE: the load balancer's maps in the words of the inspection service.

use std::collections::HashMap;

use hawser_ebpf_common::lb::{
    ALGORITHM_NAMES, BACKEND_TERMINATING, KIND_NAMES, SERVICE_FLAG_NAMES, ServiceValue,
};

use super::name;
use super::proto::{Backend, Frontend, L4Addr};
use crate::maps::{SlotKey, Snapshot};
use crate::types;

/// Everything that is to be shown of Services.
pub(super) struct Tables {
    backends: HashMap<u32, (types::L4Addr, u8)>,
    slots: HashMap<SlotKey, ServiceValue>,
    ranges: HashMap<u32, Vec<String>>,
    connections: HashMap<u32, u64>,
}

impl Tables {
    pub fn new(snapshot: &Snapshot, connections: Vec<(u32, u64)>) -> Self {
        let mut ranges: HashMap<u32, Vec<String>> = HashMap::new();
        for (id, range) in &snapshot.source_ranges {
            ranges.entry(*id).or_default().push(range.to_string());
        }
        ranges.values_mut().for_each(|ranges| ranges.sort());
        Self {
            backends: snapshot
                .backends
                .iter()
                .map(|(id, address, flags)| (*id, (*address, *flags)))
                .collect(),
            slots: snapshot.services.iter().copied().collect(),
            ranges,
            connections: connections.into_iter().collect(),
        }
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

fn l4(address: &types::L4Addr) -> L4Addr {
    L4Addr {
        address: address.address.to_string(),
        port: u32::from(address.port),
        protocol: address.protocol.to_string(),
    }
}
