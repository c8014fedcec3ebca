//! Maps in memory, and the programs' lookup over them in Rust: the second of the three ways in which
//! the load balancer is tested.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use hawser_ebpf_common::endpoint::{Endpoint4, IpcacheEntry4};
use hawser_ebpf_common::lb::{Backend4, ReverseNat4, ServiceKey4, ServiceValue4};
use ipnet::Ipv4Net;

use super::{MapError, Maps, Op, Snapshot};
use crate::diff::{backend_address, service_key};
use crate::types::L4Addr;

/// Maps in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FakeMaps {
    services: BTreeMap<ServiceKey4, ServiceValue4>,
    backends: BTreeMap<u32, Backend4>,
    reverse_nat: BTreeMap<u32, ReverseNat4>,
    prefixes: BTreeMap<Ipv4Net, IpcacheEntry4>,
    endpoints: BTreeMap<Ipv4Addr, Endpoint4>,
}

/// What a lookup of the load balancer may find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// No Service has this frontend.
    NoService,
    /// The Service refuses.
    Refused,
    /// Any of these, in the order of their slots.
    Backends(Vec<L4Addr>),
    /// The maps contradict themselves: what is missing.
    Broken(String),
}

impl FakeMaps {
    /// Does what the programs do for one frontend, for every slot instead of a random one.
    pub fn lookup(&self, frontend: &L4Addr) -> Lookup {
        let key = service_key(frontend);
        let Some(master) = self.services.get(&key) else { return Lookup::NoService };
        match self.reverse_nat.get(&master.rev_nat_id) {
            Some(value) if value.address_be == key.address_be && value.port_be == key.port_be => {}
            other => return Lookup::Broken(format!("rev_nat {}: {other:?}", master.rev_nat_id)),
        }
        if master.count == 0 {
            return Lookup::Refused;
        }
        let mut backends = Vec::with_capacity(usize::from(master.count));
        for slot in 1..=master.count {
            let Some(entry) = self.services.get(&key.slot(master.generation, slot)) else {
                return Lookup::Broken(format!("slot {slot} of generation {}", master.generation));
            };
            let Some(backend) = self.backends.get(&entry.backend_id).and_then(backend_address) else {
                return Lookup::Broken(format!("backend {}", entry.backend_id));
            };
            backends.push(backend);
        }
        Lookup::Backends(backends)
    }
}

impl Maps for FakeMaps {
    fn apply(&mut self, op: &Op) -> Result<(), MapError> {
        match *op {
            Op::PutService { key, value } => drop(self.services.insert(key, value)),
            Op::DeleteService { key } => drop(self.services.remove(&key)),
            Op::PutBackend { id, value } => drop(self.backends.insert(id, value)),
            Op::DeleteBackend { id } => drop(self.backends.remove(&id)),
            Op::PutReverseNat { id, value } => drop(self.reverse_nat.insert(id, value)),
            Op::DeleteReverseNat { id } => drop(self.reverse_nat.remove(&id)),
            Op::PutPrefix { prefix, value } => drop(self.prefixes.insert(prefix, value)),
            Op::DeletePrefix { prefix } => drop(self.prefixes.remove(&prefix)),
            Op::PutEndpoint { address, value } => drop(self.endpoints.insert(address, value)),
            Op::DeleteEndpoint { address } => drop(self.endpoints.remove(&address)),
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot, MapError> {
        Ok(Snapshot {
            services: self.services.iter().map(|(key, value)| (*key, *value)).collect(),
            backends: self.backends.iter().map(|(key, value)| (*key, *value)).collect(),
            reverse_nat: self.reverse_nat.iter().map(|(key, value)| (*key, *value)).collect(),
            prefixes: self.prefixes.iter().map(|(key, value)| (*key, *value)).collect(),
            endpoints: self.endpoints.iter().map(|(key, value)| (*key, *value)).collect(),
        })
    }

    fn forget_sockets(&mut self) -> Result<(), MapError> {
        Ok(())
    }
}
